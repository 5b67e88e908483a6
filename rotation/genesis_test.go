package rotation_test

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
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
	wantKind(t, err, journal.RowsUnaccounted)
}

// TestLastEpochTells: what is refused is told by the item, with what to correct, and no number
// comes with it. The highest possible epoch is not a reason, and what cannot be read is not
// taken for rows without one.
func TestLastEpochTells(t *testing.T) {
	s := newSite(t)
	sources := []kek.Source{s.orders.Source(), s.people.Source()}
	row := memstore.Record{KEK: s.first, Epoch: math.MaxInt32, WrappedDEK: []byte("w"), Ciphertext: []byte("c")}
	s.orders.Plant("highest", row)
	if last, err := s.LastEpoch(t.Context(), sources); last != math.MaxInt32 || err != nil {
		t.Errorf("the highest epoch: %d, %v", last, err)
	}
	s.world.SetHook(away("Table.Scan"))
	last, err := s.LastEpoch(t.Context(), sources)
	if wantKind(t, err, journal.Transient); last != 0 {
		t.Errorf("a scan that fails: %d", last)
	}
	s.world.SetHook(nil)
	row.Epoch++
	s.people.Plant("odd", row)
	last, err = s.LastEpoch(t.Context(), sources)
	want := &journal.Error{
		Kind: journal.RowsUnaccounted, Field: "sources[people]", Msg: "item odd: epoch 2147483648 is too high to be a count of rotations",
		Next: journal.Next{Say: "correct the item's epoch attribute, or the name of that attribute in the source's definition"},
	}
	if d := cmp.Diff(want, typed(err)); d != "" || last != 0 {
		t.Errorf("%d (-want +got):\n%s", last, d)
	}
	if last, err := s.LastEpoch(t.Context(), []kek.Source{{Name: "letters"}}); err == nil || last != 0 {
		t.Errorf("a source that cannot be opened: %d, %v", last, err)
	}
}
