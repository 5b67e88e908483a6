package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// ending is all that a run has come to.
type ending struct {
	Violation *Violation
	Now       time.Time
	Skew      time.Duration
	Calls     int
	Rounds    int
	Trails    [2][]string
	States    [2]string
	Chain     []audit.Entry // what was done and when: every effect on the registry has its record
	View      kek.View
	KEKs      []kek.KEK
	Rotations []kek.Rotation
	Leases    []rotation.Lease
	Fences    []map[int]string
	Keys      []keyring.Key
	Rows      map[string]memstore.Record
	Want      map[string]string
	Opened    map[string]int
	First     map[string]kek.ID
	Dek       map[string]string
	Epoch     int64
}

func (r *run) ending(t *testing.T) (e ending) {
	t.Helper()
	r.mine = true
	e.Violation, e.Now, e.Skew, e.Calls, e.Rounds = r.failed, r.now, r.skew, r.call, r.rounds
	for i, m := range []*machine{r.main, r.rival} {
		if m != nil {
			e.Trails[i], e.States[i] = m.trail, m.state
		}
	}
	get := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	var err error
	e.Chain, err = r.store.AuditEntries(ctx, 1)
	get(err)
	e.View, err = r.store.LoadAll(ctx, mainID)
	get(err)
	e.Rotations, err = r.store.Rotations(ctx)
	get(err)
	e.KEKs, err = r.store.KEKs(ctx)
	get(err)
	for _, k := range e.KEKs {
		key, err := r.kms.Describe(ctx, k.ID)
		get(err)
		leases, err := r.store.Leases(ctx, k.ID)
		get(err)
		e.Keys, e.Leases, e.Fences = append(e.Keys, key), append(e.Leases, leases...), append(e.Fences, r.store.Fences(k.ID))
	}
	e.Rows = map[string]memstore.Record{}
	for _, t := range r.tables() {
		t.Each(func(id string, rec memstore.Record) {
			rec.Ciphertext = make([]byte, len(rec.Ciphertext)) // its nonce is drawn at random
			e.Rows[id] = rec
		})
	}
	c := r.check
	e.Want, e.First, e.Dek, e.Epoch, e.Opened = r.want, c.seen.First, c.seen.DEK, c.epoch, map[string]int{}
	for id, b := range c.seen.Opened {
		e.Opened[id] = len(b)
	}
	return e
}

var payload = regexp.MustCompile(`"Ciphertext":"[^"]*"`)

// log notes every effect from now on, beside the checker.
func (r *run) log(t *testing.T) *[]string {
	t.Helper()
	var lines []string
	r.world.SetObserver(func(caller, op string, result any, err error, args ...any) {
		if op == "Vault.Read" {
			return // a verification reads ahead, in no order
		}
		line, jerr := json.Marshal([]any{r.call, r.now, caller, op, result, err != nil, args})
		if jerr != nil {
			t.Error(jerr)
		}
		lines = append(lines, payload.ReplaceAllString(string(line), ""))
		r.check.observe(op, result, err, args...)
	})
	return &lines
}

func equal(t *testing.T, what string, whole, forked ending) {
	t.Helper()
	a, err := json.Marshal(whole)
	b, err2 := json.Marshal(forked)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if !bytes.Equal(a, b) {
		t.Fatalf("%s (-whole +forked):\n%s\n%s\n%s", what, cmp.Diff(whole, forked), a, b)
	}
}

// TestForksAreWholeRuns: a run that goes on from a snapshot or a trunk is the run
// from the beginning. Every single fault ends in the same state; of some, and of
// pairs and seeds, every call answers the same in the same order. It looks at every
// tenth single fault, with MATTER_SIM_BUDGET at all.
func TestForksAreWholeRuns(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	n, i, each := 0, 0, 10*raced
	if os.Getenv("MATTER_SIM_BUDGET") != "" {
		each = 1
	}
	for s := range Undisturbed() {
		if i++; i%each == 0 {
			same(t, s, fork(s), i%(each*16) == 0)
			n++
		}
	}
	var common trunk
	later, left := 0, 300/raced
	for s := range Pairs() {
		if left--; left < 0 {
			break
		}
		r := common.fork(s)
		if r.call > s.Faults[0].At && r.next > 0 {
			later++
		}
		same(t, s, r, true)
		n++
	}
	if later < 100/raced {
		t.Errorf("%d pairs were started after their first fault", later)
	}
	for seed := range uint64(100 / raced) {
		s := Random(seed)
		same(t, s, fork(s), true)
		n++
	}
	t.Logf("%d schedules, %d started between their faults", n, later)
}

func same(t *testing.T, s Schedule, forked *run, calls bool) {
	t.Helper()
	whole := newRun(s)
	var all, rest *[]string
	if calls {
		all, rest = whole.log(t), forked.log(t)
	}
	whole.play()
	forked.play()
	equal(t, s.String(), whole.ending(t), forked.ending(t))
	if calls {
		if diff := cmp.Diff((*all)[len(*all)-len(*rest):], *rest); diff != "" {
			t.Fatalf("%s (-whole +forked):\n%s", s, diff)
		}
	}
}

// TestPairs: every pair of two of the core faults is there once.
func TestPairs(t *testing.T) {
	var index [2]map[Fault]int
	var seen [2][]bool
	want := 0
	for mode, emergency := range []bool{false, true} {
		all := Cores(emergency)
		index[mode], seen[mode] = map[Fault]int{}, make([]bool, len(all)*len(all))
		for i, f := range all {
			index[mode][f] = i
		}
		want += len(all) * (len(all) + 1) / 2
	}
	n := 0
	for s := range Pairs() {
		mode := 0
		if s.Emergency {
			mode = 1
		}
		at := index[mode][s.Faults[0]]*len(index[mode]) + index[mode][s.Faults[1]]
		if seen[mode][at] || s.Faults[0].At > s.Faults[1].At {
			t.Fatalf("%s is there twice, or out of order", s)
		}
		seen[mode][at] = true
		n++
	}
	if n != want {
		t.Errorf("%d pairs, want %d", n, want)
	}
}

// TestSnapshotsAreOnTheWay: there is one for each invocation of the undisturbed run,
// and no run that starts from it changes it.
func TestSnapshotsAreOnTheWay(t *testing.T) {
	for _, emergency := range []bool{false, true} {
		all := snapshots[0]()
		if emergency {
			all = snapshots[1]()
		}
		whole := newRun(Schedule{Emergency: emergency})
		for i, s := range all {
			for _, f := range []Fault{{s.call, CrashAfter, 0}, {s.call, Pause, 40}, {s.call, Operator, 3}} {
				_, _ = Run(Schedule{emergency, []Fault{f}})
			}
			equal(t, fmt.Sprintf("snapshot %d, call %d", i, s.call), whole.ending(t), s.ending(t))
			whole.mine, s.mine = false, false
			whole.advance()
		}
		if !whole.main.over() || len(all) != 11 {
			t.Errorf("after %d snapshots the run is at %s", len(all), whole.main.state)
		}
	}
}
