package memstore_test

import (
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// TestSource runs the suite without and with empty pages between the others, and behind a
// fence of the table's own.
func TestSource(t *testing.T) {
	for name, make := range map[string]func(w *memstore.World) *memstore.Table{
		"full pages": func(w *memstore.World) *memstore.Table { return w.NewTable("orders") },
		"empty pages": func(w *memstore.World) *memstore.Table {
			table := w.NewTable("orders")
			table.SetEmptyPages(true)
			return table
		},
		"own fence": func(w *memstore.World) *memstore.Table { return w.NewFencedTable("orders") },
	} {
		t.Run(name, func(t *testing.T) {
			sourcetest.TestSource(t, func(t *testing.T) sourcetest.Harness {
				w := memstore.New("test", storetest.Clock())
				table := make(w)
				h := newSource(table)
				var err error
				if h.Driver, err = w.Open(table.Source()); err != nil {
					t.Fatal(err)
				}
				return h
			})
		})
	}
}

func newSource(table *memstore.Table) sourcetest.Harness {
	defects := map[source.Defect]source.Defect{}
	for _, d := range []source.Defect{
		source.NoKEK, source.NoWrappedDEK, source.NoCiphertext, source.CipherAlone, source.EpochAlone, source.WrongType,
		source.UnknownForm, source.NoContext, source.NoRoom, source.ForeignNumber, source.Damaged,
	} {
		defects[d] = d
	}
	bind := func(id string) map[string]string { return map[string]string{"owner": "owner of " + id} }
	return sourcetest.Harness{
		Driver: table, Bind: bind, Defects: defects, Declares: true,
		Put: func(_ *testing.T, id string, e sourcetest.Envelope) {
			r := memstore.Record{
				KEK: e.KEK, KeyARN: e.KeyARN, Epoch: e.Epoch, Version: e.Version, WrappedDEK: e.WrappedDEK, Ciphertext: e.Ciphertext,
				Context: map[string]string{"table": "orders", "id": id}, Bind: bind(id), Kind: e.Defect,
				Other: e.Class == sourcetest.Other, Declared: e.Class == sourcetest.Declared,
			}
			switch e.Defect {
			case source.NoWrappedDEK, source.CipherAlone, source.EpochAlone, source.WrongType:
				r.WrappedDEK = nil
			default:
			}
			table.Plant(id, r)
		},
		Insert: func(t *testing.T, id string, e sourcetest.Envelope, shard int) bool {
			err := table.Insert(t.Context(), id, memstore.Record{
				KEK: e.KEK, Epoch: e.Epoch, WrappedDEK: e.WrappedDEK, Ciphertext: e.Ciphertext, Context: map[string]string{"table": "orders", "id": id},
			}, shard)
			if err != nil && !errors.Is(err, memstore.ErrFenced) {
				t.Error(err)
			}
			return err == nil
		},
		Delete: func(t *testing.T, id string) {
			if err := table.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		},
		Get: func(t *testing.T, id string) (sourcetest.Envelope, bool) {
			r, ok, err := table.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return sourcetest.Envelope{
				KEK: r.KEK, KeyARN: r.KeyARN, Epoch: r.Epoch, Version: r.Version, WrappedDEK: r.WrappedDEK, Ciphertext: r.Ciphertext,
			}, ok
		},
	}
}

// TestOpen: a table is opened by the name of its definition.
func TestOpen(t *testing.T) {
	w := memstore.New("test", storetest.Clock())
	table := w.NewTable("orders")
	if got, err := w.Open(table.Source()); err != nil || got != source.Driver(table) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := w.Open(kek.Source{Name: "people"}); err == nil || got != nil {
		t.Errorf("a table that is not there: %v, %v", got, err)
	}
	copied := w.Clone(storetest.Clock())
	if _, err := copied.Open(table.Source()); err == nil {
		t.Error("a clone has a table that was not cloned into it")
	}
	own := table.CloneTo(copied)
	if got, err := copied.Open(table.Source()); err != nil || got != source.Driver(own) {
		t.Errorf("in a clone: %v, %v", got, err)
	}
}

// TestTableSays: what a test sets a table's checks return.
func TestTableSays(t *testing.T) {
	w := memstore.New("test", storetest.Clock())
	table := w.NewTable("orders")
	failure := errors.New("no such table")
	table.SetNotes("its stream is enabled")
	table.FailCheck(failure)
	table.SetEncryptedBy("arn:of:a:key")
	if notes, err := table.Check(t.Context()); !errors.Is(err, failure) || len(notes) != 1 || notes[0] != "its stream is enabled" {
		t.Errorf("%q, %v", notes, err)
	}
	if arn, err := table.EncryptedBy(t.Context()); err != nil || arn != "arn:of:a:key" {
		t.Errorf("%q, %v", arn, err)
	}
}

// TestTableWhole: of a row without a payload of ours none is read.
func TestTableWhole(t *testing.T) {
	table := memstore.New("test", storetest.Clock()).NewTable("orders")
	table.Plant("a", memstore.Record{KEK: "kek-0", WrappedDEK: []byte("dek"), Ciphertext: []byte("theirs"), Whole: true})
	page, err := table.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
	if err != nil || len(page.Rows) != 1 {
		t.Fatalf("%v, %v", page, err)
	}
	row := page.Rows[0]
	if !row.Whole || row.Ciphertext != nil {
		t.Errorf("%+v", row)
	}
	done, err := table.Replace(t.Context(), row, source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new"), Ciphertext: []byte("ours")})
	if done || err == nil {
		t.Errorf("its payload was replaced: %v, %v", done, err)
	}
	// The words for a defect are the test's own.
	table.Plant("a", memstore.Record{KEK: "kek-0", WrappedDEK: []byte("dek"), Defect: "not JSON"})
	if got, ok, err := table.Reread(t.Context(), row, false); err != nil || !ok || got.Defect != "not JSON" || got.Kind != source.Damaged {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
}
