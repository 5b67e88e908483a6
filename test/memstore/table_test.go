package memstore_test

import (
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// TestSource runs the suite without and with empty pages between the others.
func TestSource(t *testing.T) {
	for name, empty := range map[string]bool{"full pages": false, "empty pages": true} {
		t.Run(name, func(t *testing.T) {
			storetest.TestSource(t, func(*testing.T) storetest.SourceHarness {
				table := memstore.New("test", storetest.Clock()).NewTable("orders")
				table.SetEmptyPages(empty)
				return newSource(table)
			})
		})
	}
}

func newSource(table *memstore.Table) storetest.SourceHarness {
	defects := map[rotation.Defect]rotation.Defect{}
	for _, d := range []rotation.Defect{
		rotation.NoKEK, rotation.NoWrappedDEK, rotation.NoCiphertext, rotation.CipherAlone, rotation.EpochAlone, rotation.WrongType,
		rotation.UnknownForm, rotation.NoContext, rotation.NoRoom, rotation.ForeignNumber, rotation.Damaged,
	} {
		defects[d] = d
	}
	bind := func(id string) map[string]string { return map[string]string{"owner": "owner of " + id} }
	return storetest.SourceHarness{
		Source: table, Bind: bind, Defects: defects, Declares: true,
		Put: func(_ *testing.T, id string, e storetest.Envelope) {
			r := memstore.Record{
				KEK: e.KEK, KeyARN: e.KeyARN, Epoch: e.Epoch, Version: e.Version, WrappedDEK: e.WrappedDEK, Ciphertext: e.Ciphertext,
				Context: map[string]string{"table": "orders", "id": id}, Bind: bind(id), Kind: e.Defect,
				Other: e.Class == storetest.Other, Declared: e.Class == storetest.Declared,
			}
			switch e.Defect {
			case rotation.NoWrappedDEK, rotation.CipherAlone, rotation.EpochAlone, rotation.WrongType:
				r.WrappedDEK = nil
			default:
			}
			table.Plant(id, r)
		},
		Delete: func(t *testing.T, id string) {
			if err := table.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		},
		Get: func(t *testing.T, id string) (storetest.Envelope, bool) {
			r, ok, err := table.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return storetest.Envelope{
				KEK: r.KEK, KeyARN: r.KeyARN, Epoch: r.Epoch, Version: r.Version, WrappedDEK: r.WrappedDEK, Ciphertext: r.Ciphertext,
			}, ok
		},
	}
}

// TestOpen: a table is opened by the name of its definition.
func TestOpen(t *testing.T) {
	w := memstore.New("test", storetest.Clock())
	table := w.NewTable("orders")
	if got, err := w.Open(table.Source()); err != nil || got != rotation.Source(table) {
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
	if got, err := copied.Open(table.Source()); err != nil || got != rotation.Source(own) {
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
	page, err := table.Scan(t.Context(), rotation.ScanRequest{Total: 1, Payload: true})
	if err != nil || len(page.Rows) != 1 {
		t.Fatalf("%v, %v", page, err)
	}
	row := page.Rows[0]
	if !row.Whole || row.Ciphertext != nil {
		t.Errorf("%+v", row)
	}
	done, err := table.Replace(t.Context(), row, rotation.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new"), Ciphertext: []byte("ours")})
	if done || err == nil {
		t.Errorf("its payload was replaced: %v, %v", done, err)
	}
	// The words for a defect are the test's own.
	table.Plant("a", memstore.Record{KEK: "kek-0", WrappedDEK: []byte("dek"), Defect: "not JSON"})
	if got, ok, err := table.Reread(t.Context(), row, false); err != nil || !ok || got.Defect != "not JSON" || got.Kind != rotation.Damaged {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
}
