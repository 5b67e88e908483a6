package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

var midnight = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)

// TestDedupeForgets: one data key and context is rewrapped once. A failure is not remembered, and
// a full memory is emptied.
func TestDedupeForgets(t *testing.T) {
	d := newDedupe()
	calls := 0
	do := func(row Row, err error) error {
		_, got := d.do(row, func() ([]byte, error) { calls++; return nil, err })
		return got
	}
	row := func(n int) Row { return Row{KEK: "k", WrappedDEK: fmt.Append(nil, n)} }
	fault := errors.New("no answer")
	for i, want := range []struct {
		row   Row
		err   error
		calls int
	}{
		{row(0), fault, 1},
		{row(0), nil, 2},
		{row(0), fault, 2}, // it is known
		{Row{KEK: "k", WrappedDEK: row(0).WrappedDEK, Context: map[string]string{"a": "b"}}, nil, 3},
		{Row{KEK: "k", WrappedDEK: row(0).WrappedDEK, Context: map[string]string{"a": "c"}}, nil, 4},
		{Row{KEK: "k", WrappedDEK: row(0).WrappedDEK, Context: map[string]string{"a": "", "b": ""}}, nil, 5},
		{Row{KEK: "l", WrappedDEK: row(0).WrappedDEK}, nil, 6},
		{row(1), nil, 7},
		{Row{KEK: "k", WrappedDEK: row(0).WrappedDEK, Context: map[string]string{"a": "b", "z": "1"}}, nil, 8},
		{Row{KEK: "k", WrappedDEK: row(0).WrappedDEK, Context: map[string]string{"a": "b", "z": "2"}}, nil, 9},
		{Row{KEK: "k", WrappedDEK: row(0).WrappedDEK, Context: map[string]string{"a": "b"}}, nil, 9},
	} {
		if err := do(want.row, want.err); calls != want.calls || (err != nil) != (i == 0) {
			t.Errorf("%d: %d calls, want %d; %v", i, calls, want.calls, err)
		}
	}
	for n := len(d.seen); n < maxDedupe-1; n++ {
		do(row(1000+n), nil) //nolint:errcheck // there is none
	}
	calls = 0
	if do(row(0), nil); calls != 0 || len(d.seen) != maxDedupe-1 { //nolint:errcheck // there is none
		t.Errorf("one short of full: %d calls, %d known", calls, len(d.seen))
	}
	do(row(2), nil)                                      //nolint:errcheck // there is none
	if do(row(0), nil); calls != 2 || len(d.seen) != 1 { //nolint:errcheck // there is none
		t.Errorf("full: %d calls, %d known", calls, len(d.seen))
	}
}

// TestDedupeOfAnother: a failure forgets itself, and not what came in its place.
func TestDedupeOfAnother(t *testing.T) {
	d := newDedupe()
	row := Row{KEK: "k"}
	_, err := d.do(row, func() ([]byte, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.seen[dedupeKey(row)] = &rewrapping{}
		return nil, errors.New("no answer")
	})
	if err == nil || len(d.seen) != 1 {
		t.Errorf("%v, %d known", err, len(d.seen))
	}
}

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
		s := &Steps{Deps: Deps{Checkpoints: m, Now: func() time.Time { return midnight.Add(time.Hour) }}}
		made, last, err := s.progress(t.Context(), "r", []frozen{{}}, passVerify)
		if err != nil || s.idle(made, last) != (tc.reset > 0) || tc.reset > 0 && len(made) != tc.reset {
			t.Errorf("%d: %d made, the last at %s; want %d reset; %v", i, len(made), last, tc.reset, err)
		}
	}
}

// opening is a KMS in which each wrapped data key opens.
type opening struct {
	Wrapper
	calls int
}

func (o *opening) ReEncrypt(context.Context, kek.ID, kek.ID, []byte, map[string]string) ([]byte, error) {
	o.calls++
	return nil, nil
}

// TestProverIsBounded: a sample is of twenty data keys; a full memory is emptied.
func TestProverIsBounded(t *testing.T) {
	kms := &opening{}
	s := &Steps{Deps: Deps{KMS: kms}}
	row := func(n int) Row { return Row{KEK: "k", WrappedDEK: fmt.Append(nil, n)} }
	p := s.newProver(kek.Rotation{NewKEK: "k"})
	proved := 0
	for n := range 30 {
		did, err := p.prove(t.Context(), row(n))
		if err != nil {
			t.Fatal(err)
		}
		if did {
			proved++
		}
	}
	if proved != 20 || kms.calls != 20 {
		t.Errorf("%d proved, %d calls", proved, kms.calls)
	}
	p = s.newProver(kek.Rotation{NewKEK: "k", Settings: kek.Settings{Deep: true}})
	for n := range maxProofs - 1 {
		p.seen[[32]byte{byte(n), byte(n >> 8), byte(n >> 16)}] = true
	}
	for _, want := range []int{maxProofs, 1} {
		if did, err := p.prove(t.Context(), row(want)); !did || err != nil || len(p.seen) != want {
			t.Errorf("%t, %v, %d known, want %d", did, err, len(p.seen), want)
		}
	}
}

// TestDeadline: a pass stops a minute before its context ends, or a fifth of the time.
func TestDeadline(t *testing.T) {
	s := &Steps{Deps: Deps{Now: func() time.Time { return midnight }}}
	if got := s.deadline(t.Context()).Sub(midnight); got != 24*time.Hour {
		t.Errorf("without an end: %s", got)
	}
	for left, want := range map[time.Duration]time.Duration{
		10 * time.Minute: 9 * time.Minute, 5 * time.Minute: 4 * time.Minute, 100 * time.Second: 80 * time.Second, 0: 0,
	} {
		ctx, cancel := context.WithDeadline(t.Context(), midnight.Add(left))
		if got := s.deadline(ctx).Sub(midnight); got != want {
			t.Errorf("%s left: %s, want %s", left, got, want)
		}
		cancel()
	}
}

// TestPulse: a pause of ten minutes ends a pass, also for the segments that come after. A
// clock that is read out of order is not a pause.
func TestPulse(t *testing.T) {
	p := &pulse{last: midnight}
	at := func(d time.Duration) error { return p.beat(midnight.Add(d)) }
	for _, d := range []time.Duration{5 * time.Minute, time.Minute, 15*time.Minute - time.Nanosecond} {
		if err := at(d); err != nil {
			t.Errorf("at %s: %v", d, err)
		}
	}
	if err := errors.Join(at(25*time.Minute-time.Nanosecond), at(26*time.Minute)); err == nil || strings.Count(err.Error(), "10m0s ago") != 2 {
		t.Errorf("after a pause: %v", err)
	}
	if err := (*pulse)(nil).beat(midnight); err != nil {
		t.Error(err)
	}
}

// TestCut: a text for a record has at most 900 bytes, and no rune that was cut in two.
func TestCut(t *testing.T) {
	for text, want := range map[string]string{
		"": "", strings.Repeat("x", 900): strings.Repeat("x", 900), strings.Repeat("x", 901): strings.Repeat("x", 900),
		strings.Repeat("x", 899) + "ü": strings.Repeat("x", 899), "a\uFFFDb": "ab",
	} {
		if got := cut(text); got != want {
			t.Errorf("%d bytes: %d, want %d", len(text), len(got), len(want))
		}
	}
}

// TestPerson: who is a user is nobody else.
func TestPerson(t *testing.T) {
	for arn, want := range map[string]string{
		"arn:aws:iam::1:user/a": "arn:aws:iam::1:user/a", "test": "test",
		"arn:aws:sts::1:assumed-role/ops/a":                   "arn:aws:sts::1 role ops",
		"arn:aws:sts::1:assumed-role/AWSReservedSSO_ops_00/a": "user a",
	} {
		if got := person(arn); got != want {
			t.Errorf("%s is %q, want %q", arn, got, want)
		}
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
		t1.add(many(tc.b))
		if len(t1.Poison) != tc.want || t1.ByKEK["a"] != 2 || t1.ByKEK["b"] != 4 || t1.ByKind["c"] != 6 || t1.ByKind["d"] != 8 {
			t.Errorf("%d and %d: %+v", tc.a, tc.b, t1)
		}
	}
}

// TestPlanHash: an approval is of one plan; another in any respect has another hash.
func TestPlanHash(t *testing.T) {
	s := &Steps{}
	plan := func() kek.Rotation {
		return kek.Rotation{
			ID: "i", Mode: kek.Normal, Label: "l", Reason: "r", OldKEK: "a", NewKEK: "c", Attempt: 1, Olds: []kek.ID{"a", "b"}, Sources: []kek.Source{{Name: "s"}},
		}
	}
	seen := map[string]string{s.PlanHash(plan()): "the plan"}
	for what, edit := range map[string]func(*kek.Rotation){
		"id": func(r *kek.Rotation) { r.ID = "j" }, "mode": func(r *kek.Rotation) { r.Mode = kek.Emergency }, "label": func(r *kek.Rotation) { r.Label = "m" },
		"reason": func(r *kek.Rotation) { r.Reason = "q" }, "old": func(r *kek.Rotation) { r.OldKEK = "b" }, "new": func(r *kek.Rotation) { r.NewKEK = "d" },
		"attempt": func(r *kek.Rotation) { r.Attempt = 2 }, "olds": func(r *kek.Rotation) { r.Olds = []kek.ID{"a", "c"} },
		"fewer olds": func(r *kek.Rotation) { r.Olds = r.Olds[:1] }, "sources": func(r *kek.Rotation) { r.Sources[0].Definition = "{}" },
	} {
		r := plan()
		edit(&r)
		h := s.PlanHash(r)
		if was := seen[h]; was != "" {
			t.Errorf("%s has the hash of %s", what, was)
		}
		seen[h] = what
	}
}

// TestSameSigned: a signed statement is another if any part of it is.
func TestSameSigned(t *testing.T) {
	a := audit.Signed{Statement: audit.Statement{N: 1}, Key: []byte("k"), Signature: []byte("s")}
	if !sameSigned(a, a) {
		t.Error("it is not the same as itself")
	}
	for i, edit := range []func(*audit.Signed){
		func(s *audit.Signed) { s.Statement.N = 2 }, func(s *audit.Signed) { s.Key = nil }, func(s *audit.Signed) { s.Signature = nil },
	} {
		b := a
		if edit(&b); sameSigned(a, b) {
			t.Errorf("%d: they are the same", i)
		}
	}
}

// TestWithoutLitter: of a report without litter nothing of it is left.
func TestWithoutLitter(t *testing.T) {
	stray, tail := audit.Finding{Kind: audit.StrayObject}, audit.Finding{Kind: audit.TailTooOld}
	got := withoutLitter(audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray, tail, stray}, More: 4, Strays: 6})
	if d := cmp.Diff(audit.Report{Result: audit.Unproven, Findings: []audit.Finding{tail}}, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
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
