package sim

import (
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// recordKeyed records a schedule in the world with keyed rows; nil if the model has no such run.
func recordKeyed(t *testing.T, s Schedule) []trace.KeyedEvent {
	t.Helper()
	e := amid(t, s, false, recorded)
	if e.v != nil {
		t.Fatalf("%s: %v", s, e.v)
	}
	if e.keys.recorder.Beyond() != "" {
		return nil
	}
	return e.keys.recorder.Events()
}

// falseRun is a run that the code must never make, made of one that it made.
type falseRun struct {
	name     string
	mutate   func(events []trace.KeyedEvent) []trace.KeyedEvent
	violates string // the promise that it breaks, if an action explains it all the same
}

type ofEvent func(trace.KeyedEvent) bool

func called(effect string) ofEvent {
	return func(e trace.KeyedEvent) bool { return e.Effect == effect }
}

// moveEvent moves the first event of one kind behind, or before, the last of another.
func moveEvent(of, to ofEvent, behind int) func([]trace.KeyedEvent) []trace.KeyedEvent {
	return func(events []trace.KeyedEvent) []trace.KeyedEvent {
		from := slices.IndexFunc(events, of)
		e := events[from]
		events = slices.Delete(events, from, from+1)
		at := slices.IndexFunc(events, to)
		return slices.Insert(events, at+behind, e)
	}
}

func dropEvents(of ofEvent) func([]trace.KeyedEvent) []trace.KeyedEvent {
	return func(events []trace.KeyedEvent) []trace.KeyedEvent { return slices.DeleteFunc(events, of) }
}

// addEvent adds an event behind the first of a kind.
func addEvent(e trace.KeyedEvent, behind ofEvent) func([]trace.KeyedEvent) []trace.KeyedEvent {
	return func(events []trace.KeyedEvent) []trace.KeyedEvent {
		return slices.Insert(events, slices.IndexFunc(events, behind)+1, e)
	}
}

// falseRuns are made of the undisturbed rotation, in which KEK 2 comes after KEK 1.
var falseRuns = []falseRun{
	{"a record created under a sealed KEK", moveEvent(called("create"), called("seal"), 1), ""},
	{"a record created before its copy", moveEvent(called("create"), called("copy"), 0), ""},
	{"a record moved back", addEvent(trace.KeyedEvent{Effect: "rewrap", DEK: 1, KEK: 1, Was: 2, Epoch: 1}, called("rewrapped")), ""},
	{"a record rewrapped before the seal", moveEvent(called("rewrap"), called("seal"), 0), ""},
	{"a record that says another epoch", addEvent(trace.KeyedEvent{Effect: "rewrap", DEK: 1, KEK: 2, Was: 1, Epoch: 2}, called("seal")), ""},
	{"a record removed", addEvent(trace.KeyedEvent{Effect: "remove", DEK: 1}, called("retire")), ""},
	{"retired with a record under the old KEK", dropEvents(func(e trace.KeyedEvent) bool { return e.Effect == "rewrap" && e.DEK == 1 }), ""},
	{"a row that names no record", dropEvents(func(e trace.KeyedEvent) bool { return e.Effect == "create" && e.DEK == 1 }), ""},
	{"a row under a data key that nobody made", addEvent(trace.KeyedEvent{Effect: "row", Row: 1, DEK: 9, Epoch: 2}, called("switch")), ""},
	{"a row that says another epoch", addEvent(trace.KeyedEvent{Effect: "row", Row: 1, DEK: 1, Epoch: 2}, called("switch")), ""},
	{"sealed with the fence open", dropEvents(called("shut")), ""},
	{"shut before the switch", moveEvent(called("shut"), called("switch"), 0), ""},
	{"disabled before it is retired", moveEvent(called("disable"), called("retire"), 0), ""},
	{"completed with the old KEK enabled", dropEvents(called("disable")), ""},
}

// TestKeyedSchedulesAreOfTheModel has TLC explain what schedules in the world with keyed rows
// did, effect by effect, by actions of spec/keyed.tla, and refuse false runs.
func TestKeyedSchedulesAreOfTheModel(t *testing.T) {
	if testing.Short() || raced > 1 {
		t.Skip("it starts TLC")
	}
	w := keyed(t)
	schedules := []Schedule{{}, {Emergency: true}}
	for s := range w.seeds(1) {
		if !slices.ContainsFunc(s.Faults, func(f Fault) bool { return f.Kind == LagDisable }) {
			schedules = append(schedules, s)
		}
		if len(schedules) == 40 {
			break
		}
	}
	var runs [][]trace.KeyedEvent
	var of []Schedule
	events := 0
	for _, s := range schedules {
		if run := recordKeyed(t, s); run != nil {
			runs, of = append(runs, run), append(of, s)
			events += len(run)
		}
	}
	for _, f := range falseRuns {
		runs = append(runs, f.mutate(slices.Clone(runs[0])))
	}
	verdicts, err := trace.CheckKeyed(t.Context(), runs...)
	tlctest.Must(t, err)
	for n, v := range verdicts {
		switch {
		case n < len(of):
			if !v.Accepted {
				t.Errorf("%s: event %d, %+v, is not explained; it breaks %q", of[n], v.At, runs[n][min(v.At, len(runs[n])-1)], v.Violated)
			}
		case v.Accepted || v.Violated != falseRuns[n-len(of)].violates:
			t.Errorf("%s: accepted %t, breaks %q", falseRuns[n-len(of)].name, v.Accepted, v.Violated)
		}
	}
	t.Logf("%d of %d schedules are of the model, %d events; %d false runs", len(of), len(schedules), events, len(falseRuns))
}
