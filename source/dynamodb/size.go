package dynamodb

import (
	"context"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/source"
)

// Size implements [source.Sizer] by DescribeTable, whose counts DynamoDB updates about every
// six hours (API reference, TableDescription).
func (t *Table) Size(ctx context.Context) (source.Size, error) {
	d, err := t.describeTable(ctx)
	if err != nil {
		return source.Size{}, err
	}
	s := source.Size{Items: aws.ToInt64(d.ItemCount), Bytes: aws.ToInt64(d.TableSizeBytes), Copies: t.listCopies(d)}
	s.WritesPerSecond, s.ReadsPerSecond = throughputOf(d)
	if d.StreamSpecification != nil && aws.ToBool(d.StreamSpecification.StreamEnabled) {
		s.Readers = append(s.Readers, "DynamoDB stream "+aws.ToString(d.LatestStreamLabel))
	}
	return s, nil
}

// throughputOf returns the units a second that a table takes without throttling: what is
// provisioned, or else its warm throughput (DynamoDB developer guide, "Understanding DynamoDB
// warm throughput"). An on-demand table grows beyond it, but not at once.
func throughputOf(d *types.TableDescription) (writes, reads float64) {
	if p := d.ProvisionedThroughput; p != nil && aws.ToInt64(p.WriteCapacityUnits) > 0 {
		return float64(aws.ToInt64(p.WriteCapacityUnits)), float64(aws.ToInt64(p.ReadCapacityUnits))
	}
	if w := d.WarmThroughput; w != nil {
		return float64(aws.ToInt64(w.WriteUnitsPerSecond)), float64(aws.ToInt64(w.ReadUnitsPerSecond))
	}
	return 0, 0
}

// listCopies lists the indexes that a rewrap changes, and the replicas. An index is charged one
// write if a projected attribute changes, and two if an attribute of its key does (DynamoDB
// developer guide, "Using Global Secondary Indexes in DynamoDB", write capacity units).
func (t *Table) listCopies(d *types.TableDescription) []source.Copy {
	var out []source.Copy
	add := func(name *string, keys []types.KeySchemaElement, p *types.Projection) {
		c := source.Copy{Name: "index " + aws.ToString(name)}
		switch {
		case slices.ContainsFunc(keys, func(k types.KeySchemaElement) bool { return t.rewraps(aws.ToString(k.AttributeName)) }):
			c.Times = 2
		case p == nil || p.ProjectionType == types.ProjectionTypeAll:
			c.Times = 1
		case slices.ContainsFunc(p.NonKeyAttributes, t.rewraps):
			c.Times, c.Units = 1, 1
		}
		if c.Times > 0 {
			out = append(out, c)
		}
	}
	for _, i := range d.GlobalSecondaryIndexes {
		add(i.IndexName, i.KeySchema, i.Projection)
	}
	for _, i := range d.LocalSecondaryIndexes {
		add(i.IndexName, i.KeySchema, i.Projection)
	}
	for _, r := range d.Replicas {
		out = append(out, source.Copy{Name: "replica in " + aws.ToString(r.RegionName), Times: 1})
	}
	return out
}

// rewraps reports whether a rewrap changes an attribute: that of the KEK, the wrapped data key,
// the epoch or the version. In a table of format tink it changes the ciphertext too.
func (t *Table) rewraps(name string) bool {
	changed := []string{t.cfg.KEKID, t.cfg.WrappedDEK, t.cfg.Epoch, t.cfg.Version}
	if t.cfg.Format != "" && t.cfg.Format != rowschema.FormatMatter || t.cfg.WrappedDEK == "" {
		changed = append(changed, t.cfg.Ciphertext)
	}
	return name != "" && slices.Contains(changed, name)
}
