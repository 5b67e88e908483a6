package rotation_test

import (
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/asltest"
)

const stolen = "emergency-1"

// TestTakeOverAtEveryCall starts an emergency at each call of a whole rotation, runs it to
// its end inside that call, and lets the rotation continue: the emergency completes, the
// other ends without a halt, no row is lost, and no key but the emergency's is left.
func TestTakeOverAtEveryCall(t *testing.T) {
	if raced > 1 {
		t.Skip("the driver knows one state at a time, and the other rows of the page continue")
	}
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "historic": faulted["historic"]} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ends := map[kek.Phase]int{}
			for _, name := range every(t, in) {
				t.Run(name, func(t *testing.T) { ends[newEffects(t).takenOver(in, name)]++ })
			}
			for _, phase := range []kek.Phase{kek.RolledBack, kek.Superseded} {
				if ends[phase] < 20/raced {
					t.Errorf("the other rotations ended: %v", ends)
				}
			}
		})
	}
}

// takenOver runs one rotation that an emergency ends, and returns the phase it ends in.
func (e *effects) takenOver(in rotation.ExecutionInput, name string) kek.Phase {
	t := e.d.t
	t.Helper()
	e.begin(in)
	e.at = name
	var urgent *asltest.Execution
	e.onHit = func(call) {
		was := e.d.at
		urgent = e.d.machine.Start(stolen, emergency)
		e.d.at = was
	}
	run := e.d.machine.Start(spring, in)
	if !e.hit || urgent.Status != "SUCCEEDED" {
		t.Fatalf("hit %t; the emergency ended in %s: %v", e.hit, urgent.Final, urgent.Failure)
	}
	if slices.Contains(run.Trail, "HaltedRecord") || slices.Contains(run.Trail, "HaltedBeforeSwitchRecord") {
		t.Errorf("the other pages: %q, %v", run.Trail, run.Failure)
	}
	v := e.d.view(spring)
	if v.Rotation == nil || v.Rotation.Phase == kek.Completed { // it had not begun, or was over
		e.d.phase(stolen, kek.Completed)
		return ""
	}
	if v.Rotation.EndedBy != stolen {
		return v.Rotation.Phase // it had rolled back, or began after the emergency
	}
	if final := []string{"Superseded", "RolledBack", "Refused"}; !slices.Contains(final, run.Final) || run.Final != "Superseded" && v.Rotation.Phase == kek.Superseded {
		t.Errorf("the other is %s, its execution ended in %s: %v", v.Rotation.Phase, run.Final, run.Failure)
	}
	e.d.settled()
	return v.Rotation.Phase
}

// TestTakeOverOfWhatHalted: the other rotation has halted after its switch on a row that
// cannot be moved, which is why an emergency must not wait for it (cases/06, 27). The
// emergency moves the pointer and every other row, and halts on the row alone.
func TestTakeOverOfWhatHalted(t *testing.T) {
	d := newDriver(newSite(t))
	d.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	odd := d.seal(d.orders, "odd", d.first, 1, "odd")
	odd.WrappedDEK = []byte("garbage")
	d.orders.Plant("odd", odd)
	run := d.machine.Start("resumed", rotation.ExecutionInput{Resume: spring})
	if run.Final != "Halted" {
		t.Fatalf("ended in %s: %v", run.Final, run.Failure)
	}
	urgent := d.machine.Start(stolen, emergency)
	r := d.record(stolen)
	if urgent.Final != "Halted" || r.Phase != kek.Drained || d.view(stolen).Pointer.KEKID != r.NewKEK {
		t.Fatalf("the emergency ended in %s at %s: %v", urgent.Final, r.Phase, urgent.Failure)
	}
	for at, row := range d.rows() {
		if row.KEK != r.NewKEK && at.id != "odd" {
			t.Errorf("row %s is under %s", at.id, row.KEK)
		}
	}
	if o := d.record(spring); o.Phase != kek.Superseded || o.EndedBy != stolen {
		t.Errorf("the other is %+v", o)
	}
	if b := d.body("emergency_took_over"); b["ended"] != spring || b["ended_at"] != "drained" || b["ended_as"] != "superseded" {
		t.Errorf("the record says %v", b)
	}
	run.Redrive() // a person who has not heard of the emergency
	if run.Final != "Superseded" {
		t.Errorf("redriven it ended in %s: %v", run.Final, run.Failure)
	}
	if err := d.orders.Delete(t.Context(), "odd"); err != nil {
		t.Fatal(err)
	}
	if urgent.Redrive(); urgent.Status != "SUCCEEDED" {
		t.Errorf("redriven the emergency ended in %s: %v", urgent.Final, urgent.Failure)
	}
	d.settled()
}

// TestEmergencyTwice: a double click starts no second emergency; asked for by name it ends
// the first.
func TestEmergencyTwice(t *testing.T) {
	s := newSite(t)
	s.advance(spring, emergency, kek.Rewrapped)
	_, err := s.Preflight(t.Context(), preflightInput(stolen, emergency))
	if wantKind(t, err, journal.RotationInProgress); s.record(spring).Phase != kek.Rewrapped {
		t.Errorf("the first is %s", s.record(spring).Phase)
	}
	again := emergency
	again.Again = true
	s.advance(stolen, again, kek.Completed)
	if r := s.record(spring); r.Phase != kek.Superseded {
		t.Errorf("the first is %s", r.Phase)
	}
	_, err = s.Preflight(t.Context(), preflightInput("next", rotation.ExecutionInput{Again: true}))
	wantKind(t, err, journal.InvalidInput)
}

// TestTakeOverLooksFirst: a look says what an emergency would end, and ends nothing.
func TestTakeOverLooksFirst(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Switched)
	in := preflightInput(stolen, emergency)
	in.CheckOnly = true
	plan, err := s.Preflight(t.Context(), in)
	s.must(err)
	if i := slices.IndexFunc(plan.Checks, func(c rotation.Check) bool { return c.Name == "pointer and lock" }); !plan.Checks[i].OK ||
		plan.Checks[i].Detail != "one active KEK; it ends rotation "+spring {
		t.Errorf("%+v", plan.Checks[i])
	}
	if r := s.record(spring); r.Phase != kek.Switched || len(plan.Olds) != 2 {
		t.Errorf("it is %s, the emergency would leave %v", r.Phase, plan.Olds)
	}
}

// TestTakeOverWithoutRecord: the lock names a rotation whose record is lost. No rotation
// can be resumed then, and an emergency starts all the same.
func TestTakeOverWithoutRecord(t *testing.T) {
	s := newSite(t)
	s.forged = true
	s.store.LoseRotation(spring)
	_, err := s.Preflight(t.Context(), preflightInput("next", rotation.ExecutionInput{}))
	wantKind(t, err, journal.RotationInProgress)
	s.advance(stolen, emergency, kek.Completed)
	s.advance("next", rotation.ExecutionInput{}, kek.Completed)
}
