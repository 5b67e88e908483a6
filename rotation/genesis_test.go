package rotation_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// TestLastEpoch: a deployment of rows that an earlier one has moved begins after the highest
// epoch that one of them carries, in whichever source. An epoch that counts no rotations is
// refused by the item.
func TestLastEpoch(t *testing.T) {
	s := newSite(t)
	sources := []kek.Source{s.orders.Source(), s.people.Source(), s.known()}
	if last, err := s.LastEpoch(t.Context(), sources); last != 1 || err != nil {
		t.Errorf("as written: %d, %v", last, err)
	}
	s.people.Plant("moved", memstore.Record{KEK: s.first, Epoch: 7, WrappedDEK: []byte("w"), Ciphertext: []byte("c")})
	if last, err := s.LastEpoch(t.Context(), sources); last != 7 || err != nil {
		t.Errorf("with a row of epoch 7: %d, %v", last, err)
	}
	if last, err := s.LastEpoch(t.Context(), nil); last != 0 || err != nil {
		t.Errorf("without a source: %d, %v", last, err)
	}
	s.people.Plant("odd", memstore.Record{KEK: s.first, Epoch: 1 << 40, WrappedDEK: []byte("w"), Ciphertext: []byte("c")})
	_, err := s.LastEpoch(t.Context(), sources)
	wantKind(t, err, rotation.RowsUnaccounted)
}
