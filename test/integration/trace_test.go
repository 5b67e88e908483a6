package integration

import (
	"testing"

	"github.com/matter-ops/kms-rotation/test/trace"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

// record begins to record what every process does to the stack.
func (w *world) record(t *testing.T) (end func() []trace.Event) {
	t.Helper()
	return tracetest.Record(t, w.Local)
}

// traced records until the test ends, which fails if the model does not explain
// what happened.
func (w *world) traced(t *testing.T) {
	t.Helper()
	end := w.record(t)
	t.Cleanup(func() {
		events := end()
		if !t.Failed() {
			tracetest.Accepted(t, events)
		}
	})
}
