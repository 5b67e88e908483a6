package rowcheck_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/rowcheck"
)

// TestEachHarmIsNamed does one kind of harm to a row at a time.
func TestEachHarmIsNamed(t *testing.T) {
	kms := memstore.New("rowcheck", time.Now).KMS()
	create := func() kek.ID {
		k, err := kms.Create(t.Context(), "", 0, "", keyring.Key{})
		if err != nil {
			t.Fatal(err)
		}
		return k.ID
	}
	encctx := map[string]string{"table": "t"}
	seal := func(under kek.ID, payload string) source.Row {
		dek, wrapped, err := kms.GenerateDataKey(t.Context(), under, encctx)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := aead.Cipher{}.Seal(dek, []byte(payload), encctx)
		if err != nil {
			t.Fatal(err)
		}
		return source.Row{ID: "r", KEK: under, WrappedDEK: wrapped, Ciphertext: sealed, Context: encctx, Bound: encctx}
	}
	rewrap := func(row source.Row, to kek.ID) source.Row {
		wrapped, err := kms.ReEncrypt(t.Context(), row.KEK, to, row.WrappedDEK, encctx)
		if err != nil {
			t.Fatal(err)
		}
		row.KEK, row.WrappedDEK = to, wrapped
		return row
	}
	left, current := create(), create()
	for _, c := range []struct {
		name    string
		then    func(row source.Row) []source.Row
		promise string
	}{
		{"sealed afresh", func(source.Row) []source.Row { return []source.Row{seal(current, "mine")} }, ""},
		{"gone", func(source.Row) []source.Row { return nil }, "NoLostWrite"},
		{"another payload", func(source.Row) []source.Row { return []source.Row{seal(current, "other")} }, "NoLostWrite"},
		{"garbage for a data key", func(row source.Row) []source.Row {
			row.WrappedDEK = []byte("garbage")
			return []source.Row{row}
		}, "RowIntegrity"},
		{"a payload of another key", func(row source.Row) []source.Row {
			row.Ciphertext = seal(current, "mine").Ciphertext
			return []source.Row{row}
		}, "RowIntegrity"},
		{"a defect", func(row source.Row) []source.Row {
			row.Defect, row.WrappedDEK = "attribute edek is missing", nil
			return []source.Row{row}
		}, "RowIntegrity"},
		{"one more", func(source.Row) []source.Row {
			more := seal(current, "mine")
			more.ID = "s"
			return []source.Row{seal(current, "mine"), more}
		}, "NoRowComesBack"},
		{"the exposed data key", func(row source.Row) []source.Row { return []source.Row{rewrap(row, current)} }, "ExposedDeksGone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := rowcheck.New(kms, aead.Cipher{})
			want := map[string]string{"r": "mine"}
			row := seal(left, "mine")
			if f := check.Row(t.Context(), row, want); f != nil {
				t.Fatal(f)
			}
			var found []string
			note := func(f *rowcheck.Finding) {
				if f != nil {
					found = append(found, f.String())
				}
			}
			now := c.then(row)
			for _, row := range now {
				note(check.Row(t.Context(), row, want))
			}
			note(rowcheck.Missing(len(now), want))
			note(check.Exposed("an emergency", []kek.ID{left}, want))
			if c.promise == "" && len(found) == 0 {
				return
			}
			if len(found) == 0 || c.promise == "" || !strings.HasPrefix(found[0], c.promise+": ") {
				t.Errorf("found %q, want %q", found, c.promise)
			}
		})
	}
}

// TestAcknowledgedAndNotStored: a write that was acknowledged and left the row as it was is
// lost, though nothing of the row has changed.
func TestAcknowledgedAndNotStored(t *testing.T) {
	kms := memstore.New("rowcheck", time.Now).KMS()
	k, err := kms.Create(t.Context(), "", 0, "", keyring.Key{})
	if err != nil {
		t.Fatal(err)
	}
	dek, wrapped, err := kms.GenerateDataKey(t.Context(), k.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := aead.Cipher{}.Seal(dek, []byte("old"), nil)
	if err != nil {
		t.Fatal(err)
	}
	row := source.Row{ID: "r", KEK: k.ID, WrappedDEK: wrapped, Ciphertext: sealed}
	check := rowcheck.New(kms, aead.Cipher{})
	if f := check.Row(t.Context(), row, map[string]string{"r": "old"}); f != nil {
		t.Fatal(f)
	}
	if f := check.Row(t.Context(), row, map[string]string{"r": "new"}); f == nil || f.Promise != "NoLostWrite" {
		t.Errorf("found %v", f)
	}
}

// keeper has records of data keys, which were made in epoch 3.
type keeper struct {
	source.Keeper
	records map[string]source.Row
}

func (k keeper) FindKey(_ context.Context, id string) (source.Row, int64, bool, error) {
	record, ok := k.records[id]
	return record, 3, ok, nil
}

// TestResolve: a keyed row opens by the record of its data key, and one that does not agree with
// it, or names none, has a defect.
func TestResolve(t *testing.T) {
	record := source.Row{KEK: "k1", WrappedDEK: []byte("wrapped"), Context: map[string]string{"matter:dek_id": "a"}}
	records := keeper{records: map[string]source.Row{"a": record, "damaged": {Defect: "format"}}}
	row := source.Row{ID: "r", DEKID: "a", Epoch: 3, Ciphertext: []byte("payload"), Bound: map[string]string{"id": "r"}}
	got, err := rowcheck.Resolve(t.Context(), records, row)
	if err != nil || got.Defect != "" || got.KEK != "k1" || string(got.WrappedDEK) != "wrapped" || got.Context["matter:dek_id"] != "a" || got.Bound["id"] != "r" {
		t.Errorf("%+v, %v", got, err)
	}
	for name, spoil := range map[string]func(*source.Row){
		"no record": func(r *source.Row) { r.DEKID = "b" },
		"damaged":   func(r *source.Row) { r.DEKID = "damaged" },
		"epoch":     func(r *source.Row) { r.Epoch = 4 },
	} {
		bad := row
		spoil(&bad)
		if got, err := rowcheck.Resolve(t.Context(), records, bad); err != nil || got.Defect == "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
