package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// counting counts the data keys that are unwrapped.
type counting struct {
	rotation.Wrapper
	decrypts int
}

func (c *counting) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	c.decrypts++
	return c.Wrapper.Decrypt(ctx, id, wrapped, encctx)
}

// page is a source of one page.
type page struct {
	rotation.Source
	rows []rotation.Row
}

func (p page) Scan(context.Context, rotation.ScanRequest) (rotation.Page, error) {
	return rotation.Page{Rows: p.rows}, nil
}

// TestDEKProof: every distinct data key is unwrapped once, or the first of them, and the
// sentence says which; a row that is not under the KEK that it names is named, and a
// row that cannot be accounted for is none of its business.
func TestDEKProof(t *testing.T) {
	kms := memstore.New("chain", time.Now).KMS()
	k, err := kms.Create(t.Context(), "r", 1, "", rotation.Key{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := kms.Create(t.Context(), "r", 2, "", rotation.Key{})
	if err != nil {
		t.Fatal(err)
	}
	var rows []rotation.Row
	for n := range 2 * dekSample {
		_, wrapped, err := kms.GenerateDataKey(t.Context(), k.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		row := rotation.Row{ID: fmt.Sprint(n), KEK: k.ID, WrappedDEK: wrapped}
		rows = append(rows, row, row) // two rows share a data key
	}
	keks := map[kek.ID]kek.KEK{k.ID: {}}
	for _, c := range []struct {
		deep     bool
		more     []rotation.Row
		decrypts int
		says     string
	}{
		{true, nil, 2 * dekSample, "every distinct data key, 40, was unwrapped"},
		{false, nil, dekSample, "a sample of 20 data keys was unwrapped"},
		{true, []rotation.Row{{ID: "defect", KEK: k.ID, Defect: "x"}, {ID: "foreign", KEK: other.ID}}, 2 * dekSample, "every distinct data key, 40, was unwrapped"},
		{
			true,
			[]rotation.Row{{ID: "label", KEK: k.ID, WrappedDEK: []byte("wrapped elsewhere")}},
			2*dekSample + 1,
			"every distinct data key, 40, was unwrapped, but 1 rows are not under the KEK that they name (first: label)",
		},
	} {
		counted := &counting{Wrapper: kms}
		p := &dekProof{kms: counted, keks: keks, deep: c.deep, seen: map[string]bool{}}
		src := provenSource{page{rows: append(rows[:len(rows):len(rows)], c.more...)}, p}
		if _, err := src.Scan(t.Context(), rotation.ScanRequest{}); err != nil {
			t.Fatal(err)
		}
		if counted.decrypts != c.decrypts || p.String() != c.says {
			t.Errorf("%d data keys unwrapped, want %d; it says %q, want %q", counted.decrypts, c.decrypts, p, c.says)
		}
	}
}
