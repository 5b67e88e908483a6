package sim

import (
	"testing"

	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// TestSchedulesAreOfTheModel has TLC explain what sampled schedules did, effect by
// effect, by actions of spec/rotation.tla: those of seeds, and of every kind of
// fault at a call of its own.
func TestSchedulesAreOfTheModel(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts TLC")
	}
	var schedules []Schedule
	for seed := range uint64(60) {
		schedules = append(schedules, Random(seed))
	}
	for _, emergency := range []bool{false, true} {
		singles := Singles(emergency)
		for i := 0; i < len(singles); i += len(singles)/60 + 1 {
			schedules = append(schedules, Schedule{emergency, []Fault{singles[i]}})
		}
	}
	var runs [][]trace.Event
	for _, s := range schedules {
		r := newRun(s)
		r.mine, r.oneHost = true, true
		rec, err := trace.Record(t.Context(), r.world, r.table.(*memstore.Table)) // instead of the checker
		r.mine = false
		if err != nil {
			t.Fatal(err)
		}
		r.play()
		if r.failed != nil {
			t.Fatalf("%s: %v", s, r.failed)
		}
		runs = append(runs, rec.Events())
	}
	verdicts, err := trace.Check(t.Context(), runs...)
	tlctest.Must(t, err)
	events := 0
	for i, v := range verdicts {
		if events += len(runs[i]); !v.Accepted {
			t.Errorf("%s: %s", schedules[i], v)
		}
	}
	t.Logf("%d schedules, %d events", len(runs), events)
}
