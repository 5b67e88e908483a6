package rotation_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

var drill = rotation.ExecutionInput{Drill: gates.DrillFailure}

// TestDrill checks what a drill shows: the canary fails, the pointer stays, the new
// key is dead, and that is recorded with its evidence.
func TestDrill(t *testing.T) {
	d, _ := watched(t)
	was := d.pointer()
	d.clock.pass(8 * time.Hour) // a drill waits for no window
	e := d.machine.Start(spring, drill)
	if e.Status != "SUCCEEDED" || e.Final != "DrillPassed" || !slices.Contains(e.Trail, "PreSwitchFailure") {
		t.Fatalf("ended in %s: %v: %q", e.Final, e.Failure, e.Trail)
	}
	r := d.record(spring)
	if r.Phase != kek.RolledBack || !strings.HasPrefix(r.Err, "CanaryFailed") || d.pointer() != was || d.state(r.NewKEK) != kek.Retired || d.enabled(r.NewKEK) {
		t.Errorf("record %+v, pointer %+v, was %+v", r, d.pointer(), was)
	}
	want := gates.Drill{
		Name: gates.DrillFailure, Rev: 1, PassedAt: d.clock.now(), Rotation: spring, Pointer: was.KEKID, Retired: r.NewKEK, Error: r.Err, Actor: "test",
	}
	got, err := d.store.LoadDrill(t.Context(), gates.DrillFailure)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("evidence (-want +got):\n%s", diff)
	}
	wantEvents(t, d.site, "rotation_started", "rows_counted", "kek_minted", "rows_rehearsed", "rolled_back", "drill_passed")
	if diff := cmp.Diff([]string{"KEK rotation started", "KEK rotation drill passed"}, d.mail); diff != "" {
		t.Errorf("mail (-want +got):\n%s", diff)
	}
	d.settled()
	d.complete(summer, rotation.ExecutionInput{Window: "any"}) // nothing is left behind
	d.settled()
}

// TestDrillFails checks that a drill which fails for another reason than its own is
// not passed, and rings like any rollback.
func TestDrillFails(t *testing.T) {
	d, w := watched(t)
	d.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.GenerateDataKey" && d.at == "DualUnwrap" {
			return false, journal.ErrRejected
		}
		return w.hook(op, args...)
	})
	e := d.machine.Start(spring, drill)
	if e.Status != "FAILED" || e.Final != "RolledBack" || e.Failure.Name != string(journal.Rejected) {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	if got, err := d.store.LoadDrill(t.Context(), gates.DrillFailure); err != nil || got.Rev != 0 {
		t.Errorf("drill %+v, %v", got, err)
	}
	d.settled()
}

// TestDrillNeverPassesTheTest checks, for a canary that proves nothing, that a drill is
// stopped by the step and by the registry's rules.
func TestDrillNeverPassesTheTest(t *testing.T) {
	s := newSite(t)
	s.Config.CanaryRounds = 0 // no deployment can have it
	s.advance(spring, drill, kek.Minted)
	s.must(s.rehearse(spring))
	_, err := s.DualUnwrap(t.Context(), input(spring))
	wantKind(t, err, journal.Internal)
	v, err := s.store.Load(t.Context(), spring)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := v.Test(map[kek.ID][]byte{s.first: []byte("probe")}, s.clock.now()); err == nil {
		t.Errorf("a drill may continue: %+v", c)
	}
	_, err = s.Switch(t.Context(), input(spring))
	wantKind(t, err, journal.Refused)
}

func TestDrillRefused(t *testing.T) {
	for _, in := range []rotation.ExecutionInput{
		{Drill: "fire"}, {Drill: gates.DrillFailure, Mode: "emergency", Reason: "r"}, {Drill: gates.DrillFailure, Resume: "r"},
	} {
		s := newSite(t)
		before := s.snapshot()
		_, err := s.Preflight(t.Context(), preflightInput(spring, in))
		wantKind(t, err, journal.InvalidInput)
		if diff := s.diff(before); diff != "" {
			t.Errorf("%+v changed the world (-was +is):\n%s", in, diff)
		}
	}
}

func TestFreshness(t *testing.T) {
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	d := gates.Drill{Rev: 1, PassedAt: at}
	for _, tc := range []struct {
		d    gates.Drill
		ago  time.Duration
		days int
		want gates.Freshness
	}{
		{gates.Drill{}, 0, 90, gates.Never},
		{gates.Drill{}, 0, 0, gates.Never},
		{d, 90 * day, 90, gates.Fresh},
		{d, 90*day + time.Second, 90, gates.Stale},
		{d, 9000 * day, 0, gates.Fresh},
	} {
		if got := tc.d.Freshness(at.Add(tc.ago), tc.days); got != tc.want {
			t.Errorf("%s after %s, %d days count: %s, want %s", tc.d.PassedAt, tc.ago, tc.days, got, tc.want)
		}
	}
}

// TestDrillUnderFaults plants each fault at each call of a drill: whatever it ends in,
// the pointer has not moved, no key is left, and the drill counts as passed only if
// the canary is what failed.
func TestDrillUnderFaults(t *testing.T) {
	free := newEffects(t)
	if e := free.d.machine.Start(spring, drill); e.Final != "DrillPassed" {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	names := slices.Compact(slices.Sorted(slices.Values(free.names)))
	if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "PreSwitchFailure Store.SaveDrill") }) {
		t.Fatalf("the drill is not saved: %q", names)
	}
	ends := map[string]int{}
	for _, name := range names {
		for _, f := range faults(name) {
			t.Run(name+"/"+string(f), func(t *testing.T) {
				e := newEffects(t)
				e.at, e.kind = name, f
				was := e.d.pointer()
				run := e.d.finish(spring, drill)
				if !e.hit {
					t.Fatalf("the call was not made: %q", run.Trail)
				}
				e.d.world.SetHook(nil)
				v := must(e.d.store.Load(t.Context(), spring))
				if r := v.Rotation; r != nil && r.Phase != kek.RolledBack { // the person on call rolls it back
					_, err := e.d.Retire(t.Context(), rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "by hand"})
					if err != nil {
						t.Fatal(err)
					}
				}
				got := must(e.d.store.LoadDrill(t.Context(), gates.DrillFailure))
				canary := v.Rotation != nil && strings.HasPrefix(e.d.record(spring).Err, "CanaryFailed")
				if e.d.pointer() != was || got.Rev > 0 && !canary || run.Final == "DrillPassed" && got.Rev == 0 {
					t.Errorf("pointer %+v, drill %+v, ended in %s: %v", e.d.pointer(), got, run.Final, run.Failure)
				}
				ends[run.Final]++
				e.next()
			})
		}
	}
	if ends["DrillPassed"] == 0 || ends["RolledBack"] == 0 {
		t.Errorf("the drills ended: %v", ends)
	}
}
