package sim

import (
	"maps"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// A schedule is the undisturbed run until its first fault. Between two invocations
// nothing of a run is on a stack, so the undisturbed run is kept as it is there, and
// a schedule goes on from the last such place before its first fault. Pairs that
// have their first fault in common are started before their second in the same way.
// TestForksAreWholeRuns holds what comes of it to runs from the beginning.

var snapshots = [2]func() []*run{takeSnapshots(false), takeSnapshots(true)}

// takeSnapshots keeps the undisturbed run of a mode before each of its invocations,
// until it breaks a promise.
func takeSnapshots(emergency bool) func() []*run {
	return sync.OnceValue(func() []*run {
		r := newRun(Schedule{Emergency: emergency})
		out := []*run{r.clone()}
		for r.advance() && r.failed == nil && !r.main.over() {
			out = append(out, r.clone())
		}
		return out
	})
}

// fork is a run of a schedule that has come to the last invocation which begins
// before its first fault.
func fork(s Schedule) *run {
	if len(s.Faults) == 0 {
		return newRun(s)
	}
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

// trunk is a run of what schedules have in common that differ in their last fault
// only. It goes on as that comes later.
type trunk struct {
	of   Schedule
	at   *run // between two invocations, not past the last fault
	next *run // one invocation further
	more bool // next is not at its end
}

// start is a run of a schedule, from the trunk if the next one will need it too.
func (t *trunk) start(s Schedule, next []Schedule) *run {
	if siblings(t.of, s) || len(next) > 0 && siblings(s, next[0]) {
		return t.fork(s)
	}
	return fork(s)
}

// fork is a run of a schedule that has come to the last invocation which begins
// before its last fault.
func (t *trunk) fork(s Schedule) *run {
	last := s.Faults[len(s.Faults)-1].At
	if t.at == nil || t.at.call > last || !siblings(t.of, s) {
		t.of, t.at = s, fork(s.without(len(s.Faults)-1, len(s.Faults)))
		t.next, t.more = t.at.clone(), true
	}
	for t.more && t.next.call <= last {
		t.at = t.next.clone()
		t.more = t.next.advance()
	}
	r := t.at.clone()
	r.sched = s
	return r
}

// siblings reports whether two schedules differ in their last fault only.
func siblings(s, o Schedule) bool {
	n := len(s.Faults)
	return n > 1 && n == len(o.Faults) && s.Emergency == o.Emergency && slices.Equal(s.Faults[:n-1], o.Faults[:n-1])
}

// clone is a run that stands where this one does, between two invocations. Neither
// changes the other.
func (r *run) clone() *run {
	c := *r
	world := r.world.Clone(c.clock)
	clone := func(t rows) *memstore.Table { return t.(*memstore.Table).CloneTo(world) } //nolint:forcetypeassert // only runs in memory are cloned
	c.wire(c.inMemory(world, clone(r.table), clone(r.late)))
	c.objects = maps.Clone(r.objects)
	c.made, c.dying = maps.Clone(r.made), maps.Clone(r.dying)
	c.actors = &actors{run: &c, want: maps.Clone(r.want), made: r.actors.made, overslept: maps.Clone(r.overslept)}
	c.apps = r.apps.clone(c.actors)
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
	own.seen = c.seen.Clone()
	own.seen.KMS = r.kms
	own.listed, own.applied = map[*invocation][]rotation.Lease{}, map[*invocation]int64{}
	own.givenUp, own.unlabelled, own.uncounted = maps.Clone(c.givenUp), maps.Clone(c.unlabelled), maps.Clone(c.uncounted)
	own.rows, own.ids, own.applier = nil, nil, nil
	return &own
}
