package trace_test

import (
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/test/trace"
)

// TestBegunLater: a recording may begin when there has been something before it. A
// late call of a rotation that was over by then changes nothing; a record that was
// not in the bucket then must get there before it is marked.
func TestBegunLater(t *testing.T) {
	s := newSite(t)
	var err error
	if s.recorder, err = trace.Record(t.Context(), s.world, s.orders); err != nil {
		t.Fatal(err)
	}
	s.toTested("normal")
	s.switched()
	s.drained()
	s.rewrapped()
	s.retired()
	s.verified()
	late := slices.Insert(s.recorder.Events(), 1, trace.Event{Caller: "verify", Effect: "Store.SaveCheckpoint", Rotation: "older", Source: "orders", Sweep: "verify"})
	unpublished := s.recorder.Events()
	unpublished[0].Stored--
	published := slices.Clone(unpublished)
	published = slices.Insert(published, 1, trace.Event{Caller: "retire", Effect: "Vault.Put", Seq: published[0].Seq})
	want := []string{"", "Vault.Put", ""}
	for i, v := range check(t, late, unpublished, published) {
		if v.Accepted != (want[i] == "") || v.Event.Effect != want[i] {
			t.Errorf("run %d: %s, want it rejected at %q", i, v, want[i])
		}
	}
}
