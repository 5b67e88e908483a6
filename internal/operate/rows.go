package operate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
	"github.com/matter-ops/kms-rotation/source"
)

// SourceCount says how many rows a source has, and what the rows that were read are.
type SourceCount struct {
	Source   string           `json:"source"`
	Rows     int64            `json:"rows"`
	Exact    bool             `json:"exact"`                // every row was looked at
	Seen     int64            `json:"rows_seen"`            // rows looked at, those with a defect among them
	Keyed    int64            `json:"keyed_seen,omitempty"` // rows that name a data key of the key table, which a rotation does not write
	Other    int64            `json:"other_seen"`           // items that have none of the envelope's attributes
	Declared int64            `json:"declared_seen"`        // items that the definition declares to be something else
	Defects  int64            `json:"defects_seen"`
	DEKs     int64            `json:"deks_seen"` // distinct wrapped DEKs among the rows seen
	DataKeys int64            `json:"data_keys"` // distinct wrapped DEKs of all rows; if not all were read, by the last census or a guess from those seen
	Counted  bool             `json:"data_keys_by_census"`
	ByKEK    map[kek.ID]int64 `json:"by_kek_seen"`
	RowBytes int64            `json:"row_bytes"` // of an item on average; 0 if unknown
	Copies   []string         `json:"copies"`    // indexes and replicas to which each rewrap is written too
	Readers  []string         `json:"readers"`   // streams that see each rewrap

	estimate estimate.Source
	keyed    []estimate.Share // how keyed rows share the data keys that they name
}

// Describe returns the source for an estimate. A normal rotation writes no keyed row: the records
// of their data keys are rows of the key table. An emergency writes each of them, under fresh
// data keys.
func (c SourceCount) Describe(emergency bool) estimate.Source {
	e := c.estimate
	if emergency && c.Keyed > 0 {
		e.Rows = float64(c.Rows)
		e.Shares = slices.Concat(e.Shares, c.keyed)
	}
	return e
}

// CountRows reads a source until it has read limit items, and estimates the rest from the
// place's own count, if it has one. A limit of 0 reads all items. see is called after each page
// with how many items were read.
func (d *Deployment) CountRows(ctx context.Context, src source.Driver, limit int64, see func(int64)) (SourceCount, error) {
	out := SourceCount{Source: src.Name(), ByKEK: map[kek.ID]int64{}, Copies: []string{}, Readers: []string{}}
	deks, named := map[string]int{}, map[string]int{} // rows of each wrapped DEK, and keyed ones of each id
	cursor := ""
	for {
		page, err := src.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor, Limit: pageOf(limit, out.Items())})
		if err != nil {
			return out, fmt.Errorf("read source %s: %w", src.Name(), err)
		}
		out.addItems(page, deks, named)
		see(out.Items())
		if cursor = page.Next; cursor == "" {
			out.Exact = true
			break
		}
		if limit > 0 && out.Items() >= limit {
			break
		}
	}
	out.Rows, out.DEKs = out.Seen, int64(len(deks))
	var size source.Size
	if sizer, ok := src.(source.Sizer); ok {
		var err error
		if size, err = sizer.Size(ctx); err != nil {
			return out, err
		}
	}
	out.describe(src, size, slices.Collect(maps.Values(deks)))
	if out.keyed = estimate.CountShares(slices.Collect(maps.Values(named))); !out.Exact {
		out.keyed = estimate.GuessShares(float64(out.Rows)-out.estimate.Rows, float64(out.Keyed), float64(len(named)))
	}
	return out, nil
}

// describe describes a source for an estimate: what was read, and what the place says of
// itself.
func (c *SourceCount) describe(src source.Driver, size source.Size, deks []int) {
	items := c.Items()
	if !size.AtLeast && size.Items > 0 {
		c.RowBytes = size.Bytes / size.Items
		if !c.Exact && size.Items > items {
			c.Rows = int64(float64(size.Items) * float64(c.Seen) / float64(items))
			items = size.Items
		}
	}
	traits := src.Traits()
	rewrapped := float64(c.Rows)
	if c.Keyed > 0 {
		rewrapped *= float64(c.Seen-c.Keyed) / float64(c.Seen)
	}
	e := estimate.Source{
		Name: c.Source, Items: float64(items), Rows: rewrapped, Shares: estimate.CountShares(deks), KEKs: len(c.ByKEK),
		ItemBytes: float64(c.RowBytes), PageItems: traits.PageItems, PageBytes: float64(traits.PageBytes),
		WritesPerSecond: size.WritesPerSecond, ReadsPerSecond: size.ReadsPerSecond, Known: traits.KnownPlaintexts, Whole: traits.DataKeys,
	}
	if !c.Exact {
		e.Shares = estimate.GuessShares(e.Rows, float64(c.Seen-c.Keyed), float64(c.DEKs))
	}
	if src.Segments(2) == 1 { // a place that cannot be scanned in parts
		e.Segments = 1
	}
	switch traits.Billing {
	case source.Free:
	case source.DynamoDBByUnit:
		e.Billing = estimate.DynamoDBByUnit
	case source.S3ByRequest:
		e.Billing = estimate.S3ByRequest
	}
	c.DataKeys = int64(estimate.CountDEKs(e.Shares) + 0.5)
	c.Readers = append(c.Readers, size.Readers...)
	for _, copied := range size.Copies {
		units := copied.Units
		if units == 0 {
			units = max(1, math.Ceil(e.ItemBytes/1024))
		}
		e.ExtraWrites += units * copied.Times
		c.Copies = append(c.Copies, fmt.Sprintf("%s: %.0f write units", copied.Name, units*copied.Times))
	}
	c.estimate = e
}

// UseCensus takes how rows share data keys from the last census if not every row was read: a
// census counts the data keys of all rows.
func (c *SourceCount) UseCensus(t rotation.Tally) {
	shares := t.Shares()
	if c.Exact || len(shares) == 0 {
		return
	}
	shares[0].DEKs = c.estimate.Rows / shares[0].Each
	c.estimate.Shares = shares
	c.DataKeys = int64(shares[0].DEKs + 0.5)
	c.Counted = true
}

// Items returns how many items were read.
func (c SourceCount) Items() int64 { return c.Seen + c.Other + c.Declared }

// pageOf returns how many items to ask for; 0 for the source's choice.
func pageOf(limit, seen int64) int {
	const page = 1000
	if limit <= 0 {
		return 0
	}
	return int(min(limit-seen, page))
}

// addItems counts the items of a page. deks counts the rows of each wrapped data key, named the
// keyed rows of each id of one.
func (c *SourceCount) addItems(page source.Page, deks, named map[string]int) {
	c.Seen += int64(len(page.Rows) + len(page.Keyed))
	c.Keyed += int64(len(page.Keyed))
	c.Other += int64(page.Other)
	c.Declared += int64(page.Declared)
	for _, row := range page.Rows {
		if row.Defect != "" {
			c.Defects++
			continue
		}
		c.ByKEK[row.KEK]++
		deks[string(row.WrappedDEK)]++
	}
	for _, row := range page.Keyed {
		named[row.DEKID]++
	}
}

// EstimateRows returns the approximate number of rows of all sources, for progress: the sum of
// the places' own counts. It reads no rows.
func (d *Deployment) EstimateRows(ctx context.Context) (int64, error) {
	defs, err := d.Sources(ctx)
	errs := []error{err}
	var total int64
	for _, def := range defs {
		size, err := d.sizeOf(ctx, def)
		if err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", def.Name, err))
		}
		total += size.Items
	}
	return total, errors.Join(errs...)
}

// sizeOf returns the size of a place; zero if its driver cannot tell.
func (d *Deployment) sizeOf(ctx context.Context, def kek.Source) (source.Size, error) {
	src, err := d.Steps.OpenSource(def)
	if err != nil {
		return source.Size{}, err
	}
	sizer, ok := src.(source.Sizer)
	if !ok {
		return source.Size{}, nil
	}
	return sizer.Size(ctx)
}

// ControlBytes returns the size of the control table as DynamoDB tells it, some hours late.
func (d *Deployment) ControlBytes(ctx context.Context) (float64, error) {
	out, err := dynamodb.NewFromConfig(d.AWS).DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &d.Config.ControlTable})
	if err != nil {
		return 0, fmt.Errorf("describe the control table: %w", err)
	}
	return float64(aws.ToInt64(out.Table.TableSizeBytes)), nil
}
