package sim

import (
	"maps"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/rotation"
)

// A schedule is the undisturbed run until its first fault. Between two invocations
// nothing of a run is on a stack, so the undisturbed run is kept as it is there, and
// a schedule goes on from the last such place before its first fault.
// TestForksAreWholeRuns holds what comes of it to runs from the beginning.

var snapshots = [2]func() []*run{takeSnapshots(false), takeSnapshots(true)}

// takeSnapshots keeps the undisturbed run of a mode before each of its invocations,
// until it breaks a promise.
func takeSnapshots(emergency bool) func() []*run {
	return sync.OnceValue(func() []*run {
		r := newRun(Schedule{Emergency: emergency})
		out := []*run{r.clone()}
		for r.main.step(); r.failed == nil && !r.main.over(); r.main.step() {
			r.rounds++
			out = append(out, r.clone())
		}
		return out
	})
}

// fork is a run of a schedule that has come to the last invocation which begins
// before its first fault.
func fork(s Schedule) *run {
	all := snapshots[0]()
	if s.Emergency {
		all = snapshots[1]()
	}
	from := all[0]
	for _, r := range all {
		if r.call <= s.Faults[0].At {
			from = r
		}
	}
	r := from.clone()
	r.sched = s
	return r
}

// clone is a run that stands where this one does, between two invocations. Neither
// changes the other.
func (r *run) clone() *run {
	c := *r
	world := r.world.Clone(c.clock)
	c.wire(world, r.table.CloneTo(world))
	c.made, c.dying = maps.Clone(r.made), maps.Clone(r.dying)
	apps := *r.actors
	apps.run, apps.want = &c, maps.Clone(r.want)
	c.actors = &apps
	c.main, c.rival = r.main.clone(&c), r.rival.clone(&c)
	c.check = r.check.clone(&c)
	c.watch()
	return &c
}

func (m *machine) clone(r *run) *machine {
	if m == nil {
		return nil
	}
	c := *m
	c.r, c.trail = r, slices.Clip(m.trail)
	return &c
}

// clone leaves out what is kept of an invocation until it returns.
func (c *checker) clone(r *run) *checker {
	own := *c
	own.r = r
	own.states, own.recorded, own.leases = maps.Clone(c.states), maps.Clone(c.recorded), maps.Clone(c.leases)
	own.opened, own.first, own.dek = maps.Clone(c.opened), maps.Clone(c.first), maps.Clone(c.dek)
	own.listed, own.applied = map[*invocation][]rotation.Lease{}, map[*invocation]int64{}
	own.rows, own.ids = nil, nil
	return &own
}
