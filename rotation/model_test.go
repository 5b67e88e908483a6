package rotation_test

import (
	"cmp"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// sampled is one run in how many is given to TLC; another one every day.
const sampled = 40

// TestFaultSchedulesAreOfTheModel has TLC explain, effect by effect, a sample of the
// runs of TestEverySingleFault, TestDuplicatesAtEveryCall and
// TestRollbackAtEveryCall.
func TestFaultSchedulesAreOfTheModel(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts TLC")
	}
	var runs [][]trace.Event
	var names []string
	next := int(time.Now().Unix() / 86400)
	record := func(name string, run func(*effects)) {
		if next++; next%sampled != 0 {
			return
		}
		t.Run(name, func(t *testing.T) {
			e := newEffects(t)
			r, err := trace.Record(t.Context(), e.d.world, e.d.orders, e.d.people, e.d.corpus)
			if err != nil {
				t.Fatal(err)
			}
			run(e)
			runs, names = append(runs, r.Events()), append(names, t.Name())
		})
	}
	for _, in := range []rotation.ExecutionInput{{}, emergency} { // in this order: the sample is the same all day
		mode := cmp.Or(in.Mode, "normal")
		for _, name := range everyCall(t, in) {
			for _, f := range faults(name) {
				record(mode+"/"+name+"/"+string(f), func(e *effects) { e.single(in, name, f) })
			}
			record(mode+"/"+name+"/duplicate", func(e *effects) { e.duplicated(in, name) })
			record(mode+"/"+name+"/rollback", func(e *effects) { e.rolledBack(in, name) })
		}
	}
	verdicts, err := trace.Check(t.Context(), runs...)
	tlctest.Must(t, err)
	events := 0
	for i, v := range verdicts {
		if events += len(runs[i]); !v.Accepted {
			t.Errorf("%s: %s %+v", names[i], v, v.Event)
		}
	}
	t.Logf("%d runs of %d events", len(runs), events)
}
