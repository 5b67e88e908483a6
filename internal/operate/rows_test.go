package operate_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// sizedTable is a table of DynamoDB that knows its size.
type sizedTable struct {
	*memstore.Table
	size source.Size
}

func (s sizedTable) Size(context.Context) (source.Size, error) { return s.size, nil }

func (s sizedTable) Traits() source.Traits {
	t := s.Table.Traits()
	t.Billing = source.DynamoDBByUnit
	return t
}

// TestCountRows: a source that is read to its end is described exactly; of one that is read in
// part the rest is what its place says, and the data keys are guessed from those seen.
func TestCountRows(t *testing.T) {
	table := memstore.New("test", time.Now).NewTable("orders")
	for i, n := range rand.New(rand.NewPCG(1, 1)).Perm(1000) {
		table.Plant(fmt.Sprintf("row-%04d", n), memstore.Record{KEK: "k", WrappedDEK: []byte{byte(i % 250), byte(i % 2)}})
	}
	for i := range 100 {
		table.Plant(fmt.Sprintf("zz-%d", i), memstore.Record{Other: true})
	}
	src := sizedTable{table, source.Size{
		Items: 1100, Bytes: 1100 * 2000, WritesPerSecond: 4000, Readers: []string{"stream"},
		Copies: []source.Copy{{Name: "index a", Times: 1}, {Name: "index b", Times: 2, Units: 1}},
	}}
	d := &operate.Deployment{}
	c, err := d.CountRows(t.Context(), src, 0, func(int64) {})
	if err != nil || !c.Exact || c.Rows != 1000 || c.DataKeys != 250 || c.RowBytes != 2000 {
		t.Errorf("%+v, %v", c, err)
	}
	if diff := cmp.Diff([]string{"index a: 2 write units", "index b: 2 write units"}, c.Copies); diff != "" {
		t.Error(diff)
	}
	want := estimate.Source{
		Name: "orders", Items: 1100, Rows: 1000, Shares: []estimate.Share{{Each: 4, DEKs: 250}}, KEKs: 1, ItemBytes: 2000, ExtraWrites: 4,
		PageItems: table.Traits().PageItems, WritesPerSecond: 4000, Billing: estimate.DynamoDBByUnit,
	}
	if diff := cmp.Diff(want, c.Describe(false)); diff != "" {
		t.Error(diff)
	}
	c, err = d.CountRows(t.Context(), src, 400, func(int64) {})
	if err != nil || c.Exact || c.Seen != 400 || c.Rows != 1100 || math.Abs(float64(c.DataKeys)/275-1) > 0.1 {
		t.Errorf("a sample: %+v, %v", c, err)
	}
	c.UseCensus(rotation.Tally{Scanned: 1000}) // of a release that did not count data keys
	if c.Counted {
		t.Errorf("a census without data keys: %+v", c)
	}
	keys := make(rotation.Sketch, 2048)
	keys[7] = 1
	c.UseCensus(rotation.Tally{Scanned: 50, DataKeys: keys})
	if src := c.Describe(false); !c.Counted || c.DataKeys != 22 || len(src.Shares) != 1 || math.Abs(src.Shares[0].Each-50) > 0.1 {
		t.Errorf("by a census: %+v, %+v", c, src.Shares)
	}
}

// keyedTable is a table in which the first rows are keyed, ten of each data key.
type keyedTable struct {
	*memstore.Table
	keyed int
}

func (k keyedTable) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	p, err := k.Table.Scan(ctx, req)
	if req.Cursor != "" || err != nil {
		return p, err
	}
	for n := range k.keyed {
		p.Keyed = append(p.Keyed, source.Row{ID: fmt.Sprint(n), DEKID: fmt.Sprint(n / 10), Epoch: 1})
	}
	return p, nil
}

// TestCountKeyedRows: a normal rotation is planned with the rows that carry their data keys, an
// emergency with keyed ones too. Records of data keys are rewrapped in any mode.
func TestCountKeyedRows(t *testing.T) {
	table := memstore.New("test", time.Now).NewTable("orders")
	for n := range 40 {
		table.Plant(fmt.Sprintf("row-%04d", n), memstore.Record{KEK: "k", WrappedDEK: []byte{byte(n / 4)}})
	}
	d := &operate.Deployment{}
	c, err := d.CountRows(t.Context(), keyedTable{table, 100}, 0, func(int64) {})
	if err != nil || c.Rows != 140 || c.Keyed != 100 || c.DataKeys != 10 {
		t.Errorf("%+v, %v", c, err)
	}
	embedded := []estimate.Share{{Each: 4, DEKs: 10}}
	if normal := c.Describe(false); normal.Rows != 40 || normal.Whole || cmp.Diff(embedded, normal.Shares) != "" {
		t.Errorf("%+v", normal)
	}
	if emergency := c.Describe(true); emergency.Rows != 140 || cmp.Diff(append(embedded, estimate.Share{Each: 10, DEKs: 10}), emergency.Shares) != "" {
		t.Errorf("%+v", emergency)
	}
}
