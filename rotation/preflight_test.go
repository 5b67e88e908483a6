package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
)

// lost is a registry whose table is not there.
type lost struct{ journal.Registry }

func (lost) Load(context.Context, string) (kek.View, error) {
	return kek.View{}, fmt.Errorf("load: %w", journal.ErrNoControlTable)
}

func (lost) LoadAll(context.Context, string) (kek.View, error) {
	return kek.View{}, fmt.Errorf("load: %w", journal.ErrNoControlTable)
}

// altered is a registry whose answers a test edits.
type altered struct {
	journal.Registry
	edit func(*kek.View)
}

func (a altered) Load(ctx context.Context, id string) (kek.View, error) {
	v, err := a.Registry.Load(ctx, id)
	a.edit(&v)
	return v, err
}

func (a altered) LoadAll(ctx context.Context, id string) (kek.View, error) {
	v, err := a.Registry.LoadAll(ctx, id)
	a.edit(&v)
	return v, err
}

func alter(edit func(*kek.View)) func(*site) {
	return func(s *site) { s.Journal.Registry = altered{s.store, edit} }
}

// TestPreflightRefuses holds every bad input and every broken precondition to the
// same: an error that names the field and the next step, and a world that is byte
// for byte what it was, with no key minted.
func TestPreflightRefuses(t *testing.T) {
	misconfigured := &journal.Error{Kind: journal.SourceMisconfigured, Field: "wrapped_dek", Msg: "no such attribute", Next: journal.Next{Say: "mend the sources"}}
	for _, tc := range []struct {
		name  string
		in    rotation.ExecutionInput
		id    string
		setup func(*site)
		kind  journal.Kind
		field string
	}{
		{"unknown mode", rotation.ExecutionInput{Mode: "urgent"}, "", nil, journal.InvalidInput, "mode"},
		{"mode in capitals", rotation.ExecutionInput{Mode: "Emergency", Reason: "r"}, "", nil, journal.InvalidInput, "mode"},
		{"emergency without reason", rotation.ExecutionInput{Mode: "emergency"}, "", nil, journal.InvalidInput, "reason"},
		{"endless reason", rotation.ExecutionInput{Reason: strings.Repeat("r", 1001)}, "", nil, journal.InvalidInput, "reason"},
		{"bad label", rotation.ExecutionInput{Label: "Q2\n2026"}, "", nil, journal.InvalidInput, "label"},
		{"long label", rotation.ExecutionInput{Label: strings.Repeat("l", 81)}, "", nil, journal.InvalidInput, "label"},
		{"bad window", rotation.ExecutionInput{Window: "25:00-26:00"}, "", nil, journal.InvalidInput, "window"},
		{"empty window", rotation.ExecutionInput{Window: "03:00-03:00"}, "", nil, journal.InvalidInput, "window"},
		{"bad name", rotation.ExecutionInput{}, "Q2:2026", nil, journal.InvalidInput, "execution_name"},
		{"no name", rotation.ExecutionInput{}, "-", nil, journal.InvalidInput, "execution_name"},
		{"resume with a mode", rotation.ExecutionInput{Resume: spring, Mode: "emergency"}, "", nil, journal.InvalidInput, "resume"},
		{"resume with a label", rotation.ExecutionInput{Resume: spring, Label: "l"}, "", nil, journal.InvalidInput, "resume"},
		{"resume with a window", rotation.ExecutionInput{Resume: spring, Window: "any"}, "", nil, journal.InvalidInput, "resume"},
		{"resume with a drill", rotation.ExecutionInput{Resume: spring, Drill: gates.DrillFailure}, "", nil, journal.InvalidInput, "resume"},
		{"resume that ends another", rotation.ExecutionInput{Resume: spring, Again: true}, "", nil, journal.InvalidInput, "resume"},
		{"resume of a bad id", rotation.ExecutionInput{Resume: "a b"}, "", nil, journal.InvalidInput, "resume"},
		{"resume of nothing", rotation.ExecutionInput{Resume: "Q9"}, "", nil, journal.Refused, "rotation_id"},
		{"no control table", rotation.ExecutionInput{}, "", func(s *site) { s.Journal.Registry = lost{s.store} }, journal.ControlTableMissing, "control table"},
		{"no pointer", rotation.ExecutionInput{}, "", alter(func(v *kek.View) { v.Pointer = nil }), journal.PointerInvalid, "POINTER"},
		{"pointer to an unknown KEK", rotation.ExecutionInput{}, "", alter(func(v *kek.View) { v.KEKs = nil }), journal.PointerInvalid, "POINTER"},
		{"pointer to a retired KEK", rotation.ExecutionInput{}, "", alter(func(v *kek.View) {
			k := v.KEKs[v.Pointer.KEKID]
			k.State = kek.Retired
			v.KEKs[k.ID] = k
		}), journal.PointerInvalid, "POINTER"},
		{"pointer's key is disabled", rotation.ExecutionInput{}, "", func(s *site) { s.must(s.kms.Disable(s.t.Context(), s.first)) }, journal.PointerInvalid, "POINTER.kek_id"},
		{"emergency, and the key is disabled", emergency, "", func(s *site) { s.must(s.kms.Disable(s.t.Context(), s.first)) }, journal.PointerInvalid, "POINTER.kek_id"},
		{"second rotation", rotation.ExecutionInput{}, "", func(s *site) { s.advance("other", rotation.ExecutionInput{}, kek.Minted) }, journal.RotationInProgress, "LOCK"},
		{"second emergency", emergency, "", func(s *site) { s.advance("other", emergency, kek.Minted) }, journal.RotationInProgress, "LOCK"},
		{"source misconfigured", rotation.ExecutionInput{}, "", func(s *site) { s.people.FailCheck(misconfigured) }, journal.SourceMisconfigured, "wrapped_dek"},
		{"no sources", rotation.ExecutionInput{}, "", alter(func(v *kek.View) { v.Sources = nil }), journal.SourceMisconfigured, "sources"},
		{"audit bucket unlocked", rotation.ExecutionInput{}, "", func(s *site) { s.vault.Unlock() }, journal.AuditUnlocked, "bucket"},
		{"emergency, bucket unlocked", emergency, "", func(s *site) { s.vault.Unlock() }, journal.AuditUnlocked, "bucket"},
		{"outside the window", rotation.ExecutionInput{}, "", func(s *site) { s.clock.pass(8 * time.Hour) }, journal.WindowClosed, "window"},
		{"outside the window given", rotation.ExecutionInput{Window: "22:00-01:30"}, "", nil, journal.WindowClosed, "window"},
		{"name of a finished rotation", rotation.ExecutionInput{}, "", func(s *site) { s.advance(spring, rotation.ExecutionInput{}, kek.Completed) }, journal.InvalidInput, "execution_name"},
		{"resume of a finished rotation", rotation.ExecutionInput{Resume: spring}, "again", func(s *site) { s.advance(spring, rotation.ExecutionInput{}, kek.Completed) }, journal.InvalidInput, "resume"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t)
			if tc.setup != nil {
				tc.setup(s)
			}
			switch tc.id {
			case "":
				tc.id = spring
			case "-":
				tc.id = ""
			}
			before := s.snapshot()
			for _, only := range []bool{true, false} {
				in := preflightInput(tc.id, tc.in)
				if in.CheckOnly = only; only && tc.in.Resume == "" && tc.field == "execution_name" && tc.id == spring {
					continue // a look under a finished rotation's name is not a start
				}
				_, err := s.Preflight(t.Context(), in)
				wantKind(t, err, tc.kind)
				if e := typed(err); e.Field != tc.field || e.Next.IsZero() && tc.kind != journal.AuditUnlocked {
					t.Errorf("check only %t: field %q, want %q; next %q", only, e.Field, tc.field, e.Next)
				}
				if diff := s.diff(before); diff != "" {
					t.Errorf("check only %t: the world changed (-was +is):\n%s", only, diff)
				}
			}
			e := newDriver(s).machine.Start(tc.id, tc.in) // and as the state machine meets it
			if e.Status != "FAILED" || e.Final != "Refused" || e.Failure.Name != string(tc.kind) {
				t.Errorf("the execution ended in %s: %v", e.Final, e.Failure)
			}
			if diff := s.diff(before); diff != "" {
				t.Errorf("the execution changed the world (-was +is):\n%s", diff)
			}
		})
	}
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestPreflightNamesEveryFault checks that one run reports all that is wrong.
func TestPreflightNamesEveryFault(t *testing.T) {
	s := newSite(t)
	s.vault.Unlock()
	s.people.FailCheck(&journal.Error{Kind: journal.SourceMisconfigured, Field: "pk", Msg: "no key attribute pk"})
	s.clock.pass(8 * time.Hour)
	plan, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.WindowClosed)
	e := typed(err)
	for _, want := range []string{"outside 01:00-05:00", "no Object Lock", "no key attribute pk"} {
		if !strings.Contains(e.Error(), want) {
			t.Errorf("the error %q lacks %q", e, want)
		}
	}
	var failed []string
	for _, c := range plan.Checks {
		if !c.OK {
			failed = append(failed, c.Name)
		}
	}
	if diff := cmp.Diff([]string{"off-peak window", "audit bucket", "source people"}, failed); diff != "" {
		t.Errorf("failed checks (-want +got):\n%s", diff)
	}
}

// TestPreflightDenied is the regression test of a check that AWS denied and that
// was retried as if the service had not answered.
func TestPreflightDenied(t *testing.T) {
	for _, op := range []string{"Vault.Check", "Table.Check", "KMS.Describe", "Table.EncryptedBy", "Store.LoadAll"} {
		s := newSite(t)
		s.world.SetHook(func(got string, _ ...any) (bool, error) {
			if got == op {
				return false, fmt.Errorf("call: %w", journal.ErrDenied)
			}
			return true, nil
		})
		_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
		wantKind(t, err, journal.AccessDenied)
		if e := typed(err); !errors.Is(e, journal.ErrDenied) {
			t.Errorf("%s: %v", op, e)
		}
	}
}

func TestPreflightPlan(t *testing.T) {
	s := newSite(t)
	in := preflightInput(spring, rotation.ExecutionInput{})
	in.CheckOnly = true
	before := s.snapshot()
	look, err := s.Preflight(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := s.diff(before); diff != "" {
		t.Errorf("a look changed the world (-was +is):\n%s", diff)
	}
	in.CheckOnly = false
	plan, err := s.Preflight(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	want := rotation.Plan{
		RotationID: spring, Mode: "normal", Label: "Q2-2026-rotation", OldKEK: string(s.first), Olds: []string{string(s.first)}, Checks: plan.Checks,
		Rewrap:  rotation.Walk{Left: []rotation.Segment{{Source: "corpus"}, {Source: "corpus", Segment: 1}, {Source: "orders"}, {Source: "orders", Segment: 1}, {Source: "people"}, {Source: "people", Segment: 1}}},
		Current: rotation.Attempt{Attempt: 1},
	}
	if diff := cmp.Diff(want, plan); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	want.Current.Attempt = 0 // nothing was started
	if diff := cmp.Diff(want, look); diff != "" {
		t.Errorf("plan of a look (-want +got):\n%s", diff)
	}
	for _, c := range plan.Checks {
		if !c.OK || c.Detail == "" {
			t.Errorf("check %+v", c)
		}
	}
	s.Config.Segments = 7 // a redeployment in between: the rotation keeps its segments
	again, err := s.Preflight(t.Context(), in)
	if err != nil || len(again.Rewrap.Left) != len(plan.Rewrap.Left) {
		t.Errorf("repeated after a redeployment: %d segments, %v", len(again.Rewrap.Left), err)
	}
}

// TestPreflightEmergencyIgnoresWindow checks that an emergency starts at any hour,
// and a normal rotation in a window that it brings along.
func TestPreflightEmergencyIgnoresWindow(t *testing.T) {
	for _, in := range []rotation.ExecutionInput{emergency, {Window: "any"}, {Window: "09:00-11:00"}, {Window: "09:59-00:30"}} {
		s := newSite(t)
		s.clock.pass(8 * time.Hour)
		if _, err := s.Preflight(t.Context(), preflightInput(spring, in)); err != nil {
			t.Errorf("%+v at 10:00: %v", in, err)
		}
	}
}

// TestTwoStarts lets a second preflight run, whole, at every call of a first: one
// rotation starts, the other is told so. Under one name, but as two executions, it
// is the same.
func TestTwoStarts(t *testing.T) {
	for _, second := range []string{summer, spring} {
		won := map[bool]int{}
		for i := 0; ; i++ {
			s := newSite(t)
			w := newWatch(s)
			n, inner := 0, errors.New("not run")
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if w.looks(op, args) {
					return true, nil
				}
				w.check("before " + op)
				if n++; n == i+1 {
					in := preflightInput(second, rotation.ExecutionInput{})
					in.ExecutionARN = "arn:aws:states:another"
					_, inner = s.Preflight(t.Context(), in)
				}
				return true, nil
			})
			_, outer := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
			if n <= i {
				break // it has no more calls
			}
			s.world.SetHook(nil)
			w.check("at the end")
			if (outer == nil) == (inner == nil) {
				t.Fatalf("%s at call %d: first %v, second %v", second, i, outer, inner)
			}
			loser := errors.Join(outer, inner)
			if second == summer {
				wantKind(t, loser, journal.RotationInProgress)
			} else {
				wantKind(t, loser, journal.InvalidInput)
			}
			won[outer == nil]++
			if len(s.keys()) != 1 || len(s.snapshot().Rotations) != 1 {
				t.Errorf("%d keys, rotations %+v", len(s.keys()), s.snapshot().Rotations)
			}
		}
		if won[true] == 0 || won[false] == 0 {
			t.Errorf("%s: the first won %d times, the second %d", second, won[true], won[false])
		}
	}
}

// TestResume continues with a rotation that halted at each phase.
func TestResume(t *testing.T) {
	for _, in := range []rotation.ExecutionInput{{}, emergency} {
		for _, phase := range []kek.Phase{kek.Started, kek.Minted, kek.Tested, kek.Switched, kek.Drained, kek.Rewrapped, kek.KEKRetired} {
			d, _ := watched(t)
			d.advance(spring, in, phase)
			d.clock.pass(8 * time.Hour) // the window is for starting
			e := d.machine.Start("resumed", rotation.ExecutionInput{Resume: spring})
			if e.Status != "SUCCEEDED" {
				t.Fatalf("from %s: ended in %s: %v", phase, e.Final, e.Failure)
			}
			d.phase(spring, kek.Completed)
			d.settled()
		}
	}
}

// TestPreflightOpensEverySource: a source that cannot be opened is told, whenever that is.
func TestPreflightOpensEverySource(t *testing.T) {
	s := newSite(t)
	in := preflightInput(spring, rotation.ExecutionInput{})
	in.CheckOnly = true
	opened := 0
	for fails := 1; ; fails++ {
		opened = 0
		s.OpenSource = func(def kek.Source) (source.Driver, error) {
			if opened++; opened == fails {
				return nil, errAway
			}
			return s.world.Open(def)
		}
		_, err := s.Preflight(t.Context(), in)
		if opened < fails {
			break
		}
		if err == nil {
			t.Errorf("opening %d failed, and nobody is told", fails)
		}
	}
	if opened < 6 {
		t.Errorf("%d openings: the plan opens the sources again", opened)
	}
}

// TestPreflightOfTwoCorpora: each corpus must have a known cipher.
func TestPreflightOfTwoCorpora(t *testing.T) {
	s := newSite(t)
	def := s.newTable("wrong prefix", "").Source()
	def.Kind = s3source.KindName
	alter(func(v *kek.View) { v.Sources = append(slices.Clone(v.Sources), def) })(s)
	_, err := s.start(spring, rotation.ExecutionInput{})
	if e := typed(err); e.Kind != journal.SourceMisconfigured || e.Field != "sources[wrong prefix]" {
		t.Errorf("%v", err)
	}
}
