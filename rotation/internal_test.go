package rotation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// marks is a store of checkpoints.
type marks struct {
	Checkpoints
	list []Checkpoint
}

func (m *marks) ListCheckpoints(context.Context, string, string, string) ([]Checkpoint, error) {
	return m.list, nil
}

// TestIdle: a pass is as old as the newest of its checkpoints, in whatever order they
// are listed; one that was reset has no age.
func TestIdle(t *testing.T) {
	at := func(minutes int) Checkpoint {
		return Checkpoint{SavedAt: midnight.Add(time.Duration(minutes) * time.Minute)}
	}
	for i, tc := range []struct {
		list  []Checkpoint
		reset int
	}{
		{nil, 0},
		{[]Checkpoint{at(50), at(51)}, 0},
		{[]Checkpoint{at(51), at(40)}, 0},
		{[]Checkpoint{at(50), at(40)}, 2},
		{[]Checkpoint{at(40), {}, at(50)}, 2},
		{[]Checkpoint{{}}, 0},
	} {
		m := &marks{list: tc.list}
		s := &Steps{Journal: &journal.Journal{Now: func() time.Time { return midnight.Add(time.Hour) }}, Checkpoints: m}
		made, last, err := s.readProgress(t.Context(), "r", []frozenSource{{}}, passVerify)
		if err != nil || s.isIdle(made, last) != (tc.reset > 0) || tc.reset > 0 && len(made) != tc.reset {
			t.Errorf("%d: %d made, the last at %s; want %d reset; %v", i, len(made), last, tc.reset, err)
		}
	}
}

// opening is a KMS in which each wrapped data key opens, or none does.
type opening struct {
	keyring.Wrapper
	calls int
	err   error
}

func (o *opening) ReEncrypt(context.Context, kek.ID, kek.ID, []byte, map[string]string) ([]byte, error) {
	o.calls++
	return nil, o.err
}

// TestProofSample: a sample is of twenty data keys of each segment and call.
func TestProofSample(t *testing.T) {
	kms := &opening{}
	s := &Steps{Keys: keyring.Keyring{Wrapper: kms}}
	row := func(n int) source.Row { return source.Row{KEK: "k", WrappedDEK: fmt.Append(nil, n)} }
	for call := range 2 {
		p := s.newProver(kek.Rotation{NewKEK: "k"}, "orders")
		proved := 0
		for n := range 30 {
			did, err := p.proveKey(t.Context(), row(n))
			if err != nil {
				t.Fatal(err)
			}
			if did {
				proved++
			}
		}
		if proved != 20 || kms.calls != 20*(call+1) {
			t.Errorf("%d proved, %d calls", proved, kms.calls)
		}
	}
}

// TestDeepProofIsShared: a process asks KMS once about each distinct data key of a pass, however
// many calls and segments meet it, in any order, with little memory. A row whose page was not
// saved counts again and costs nothing.
func TestDeepProofIsShared(t *testing.T) {
	const keys, rows = 1_000_000, 1_300_000
	kms := &opening{}
	s := &Steps{Keys: keyring.Keyring{Wrapper: kms}, Memory: NewMemory(MemoryBytes)}
	r := kek.Rotation{ID: "r", NewKEK: "k", Settings: kek.Settings{Deep: true}}
	wrapped := make([]byte, 184)
	random := rand.New(rand.NewPCG(1, 3))
	prove := func(p *prover, id, key int) bool {
		t.Helper()
		copy(wrapped, fmt.Sprintf("%12d", key))
		did, err := p.proveKey(t.Context(), source.Row{ID: fmt.Sprint(id), KEK: "k", WrappedDEK: wrapped})
		if err != nil {
			t.Fatal(err)
		}
		return did
	}
	var p *prover
	distinct, proved := map[int]bool{}, 0
	for n := range rows {
		if n%10_000 == 0 { // another call, of another segment
			p = s.newProver(r, fmt.Sprint("source ", n/500_000))
		}
		key := random.IntN(keys)
		distinct[key] = true
		if prove(p, n, key) {
			proved++
		}
	}
	if kms.calls != len(distinct) || proved != len(distinct) {
		t.Errorf("%d requests and %d proved for %d data keys", kms.calls, proved, len(distinct))
	}
	size := 0
	for _, set := range s.Memory.sets {
		size += set.bytes
	}
	if size > MemoryBytes {
		t.Errorf("%d bytes", size)
	}
	kms.calls = 0
	p = s.newProver(r, "orders")
	if !prove(p, 1, keys) || prove(p, 2, keys) || !prove(s.newProver(r, "orders"), 1, keys) || kms.calls != 1 {
		t.Errorf("a row that is read again: %d requests", kms.calls)
	}
	r.Rev++ // the pass begins again
	if !prove(s.newProver(r, "orders"), 2, keys) || kms.calls != 2 {
		t.Errorf("a pass that begins again: %d requests", kms.calls)
	}
}

// TestProofFails: a data key that does not unwrap is asked about again.
func TestProofFails(t *testing.T) {
	for _, deep := range []bool{false, true} {
		kms := &opening{err: journal.ErrUnwrap}
		s := &Steps{Keys: keyring.Keyring{Wrapper: kms}, Memory: NewMemory(1 << 20)}
		p := s.newProver(kek.Rotation{NewKEK: "k", Settings: kek.Settings{Deep: deep}}, "orders")
		for n := range 2 {
			if did, err := p.proveKey(t.Context(), source.Row{ID: fmt.Sprint(n), KEK: "k"}); did || !errors.Is(err, journal.ErrUnwrap) {
				t.Errorf("deep %t: %t, %v", deep, did, err)
			}
		}
		kms.err = nil
		if did, err := p.proveKey(t.Context(), source.Row{ID: "3", KEK: "k"}); !did || err != nil || kms.calls != 3 {
			t.Errorf("deep %t, afterwards: %t, %v, %d requests", deep, did, err, kms.calls)
		}
	}
}

// TestDeadline: a pass stops a minute before its context ends, or a fifth of the time.
func TestDeadline(t *testing.T) {
	s := &Steps{Journal: &journal.Journal{Now: func() time.Time { return midnight }}}
	if got := s.passDeadline(t.Context()).Sub(midnight); got != 24*time.Hour {
		t.Errorf("without an end: %s", got)
	}
	for left, want := range map[time.Duration]time.Duration{
		10 * time.Minute: 9 * time.Minute, 5 * time.Minute: 4 * time.Minute, 100 * time.Second: 80 * time.Second, 0: 0,
	} {
		ctx, cancel := context.WithDeadline(t.Context(), midnight.Add(left))
		if got := s.passDeadline(ctx).Sub(midnight); got != want {
			t.Errorf("%s left: %s, want %s", left, got, want)
		}
		cancel()
	}
}

// TestPulse: a pause of ten minutes ends a pass, also for the segments that come after. A
// clock that is read out of order is not a pause.
func TestPulse(t *testing.T) {
	p := &pulse{last: midnight}
	at := func(d time.Duration) error { return p.recordBeat(midnight.Add(d)) }
	for _, d := range []time.Duration{5 * time.Minute, time.Minute, 15*time.Minute - time.Nanosecond} {
		if err := at(d); err != nil {
			t.Errorf("at %s: %v", d, err)
		}
	}
	if err := errors.Join(at(25*time.Minute-time.Nanosecond), at(26*time.Minute)); err == nil || strings.Count(err.Error(), "10m0s ago") != 2 {
		t.Errorf("after a pause: %v", err)
	}
	if err := (*pulse)(nil).recordBeat(midnight); err != nil {
		t.Error(err)
	}
}

// TestProgressName: each definition of a source has checkpoints of its own.
func TestProgressName(t *testing.T) {
	for generation, want := range map[int]string{0: "orders", 1: "orders~1", 2: "orders~2"} {
		if got := ProgressName(kek.Source{Name: "orders", Generation: generation}); got != want {
			t.Errorf("%d: %s", generation, got)
		}
	}
}

// TestTallyAdd: the first ten quarantined rows are kept, however many come together.
func TestTallyAdd(t *testing.T) {
	many := func(n int) Tally {
		out := Tally{ByKEK: map[string]int64{"a": 1, "b": 2}, ByKind: map[string]int64{"c": 3, "d": 4}}
		for i := range n {
			out.Poison = append(out.Poison, fmt.Sprint(i))
		}
		return out
	}
	for _, tc := range []struct{ a, b, want int }{{0, 9, 9}, {0, 12, 10}, {9, 3, 10}, {9, 1, 10}, {10, 1, 10}, {11, 2, 11}, {4, 5, 9}} {
		t1 := many(tc.a)
		t1.addTally(many(tc.b))
		if len(t1.Poison) != tc.want || t1.ByKEK["a"] != 2 || t1.ByKEK["b"] != 4 || t1.ByKind["c"] != 6 || t1.ByKind["d"] != 8 {
			t.Errorf("%d and %d: %+v", tc.a, tc.b, t1)
		}
	}
}

// TestRosterOrder: the KEKs of a rotation that would start now are in one order.
func TestRosterOrder(t *testing.T) {
	keks := map[kek.ID]kek.KEK{}
	for i := range 20 {
		id := kek.ID(fmt.Sprintf("k%02d", i))
		keks[id] = kek.KEK{ID: id, State: kek.Sealed}
	}
	for i, id := range registryRoster(kek.View{KEKs: keks}).rotation.Olds {
		if want := kek.ID(fmt.Sprintf("k%02d", i)); id != want {
			t.Fatalf("%d: %s", i, id)
		}
	}
}

// TestWithoutRows: what a log gets names no row.
func TestWithoutRows(t *testing.T) {
	tally := Tally{Scanned: 3, Poison: []string{"row"}}
	if got := (SweepOutput{Tally: tally, Sources: map[string]Tally{"s": tally}, Done: true}).WithoutRows(); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", SweepOutput{Tally: Tally{Scanned: 3}, Done: true}) {
		t.Errorf("%+v", got)
	}
	if got := (RetireOutput{Tally: tally, Drill: "passed"}).WithoutRows(); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", RetireOutput{Tally: Tally{Scanned: 3}, Drill: "passed"}) {
		t.Errorf("%+v", got)
	}
}

func TestRehearsalText(t *testing.T) {
	for want, r := range map[string]rehearsal{
		"3 rows tried (a 1, b 2)":                            {rows: 3, byKEK: map[string]int64{"a": 1, "b": 2}},
		"1 rows tried (a 1), 1 of 2 payloads open; one; two": {rows: 1, byKEK: map[string]int64{"a": 1}, opened: 1, sealed: 2, notes: []string{"one", "two"}},
	} {
		if got := r.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestOfSource: what an emergency does not wait for.
func TestOfSource(t *testing.T) {
	for kind, want := range map[journal.Kind]bool{journal.RowsUnaccounted: true, journal.SourceMisconfigured: true, journal.Transient: false, journal.AccessDenied: false} {
		if isSourceError(fmt.Errorf("x: %w", &journal.Error{Kind: kind})) != want {
			t.Errorf("%s: want %t", kind, want)
		}
	}
	if isSourceError(errors.New("x")) {
		t.Error("an error without a kind")
	}
}

// TestTickLate: what was late once in a tick stays so.
func TestTickLate(t *testing.T) {
	var tk tick
	for i, want := range []bool{false, true, true} {
		if tk.markLate(i == 1); tk.out.PreparationOverdue != want {
			t.Errorf("%d: want %t", i, want)
		}
	}
}
