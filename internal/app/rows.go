package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/internal/corpus"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// SourceCount is how many rows a source has.
type SourceCount struct {
	Source   string           `json:"source"`
	Rows     int64            `json:"rows"`
	Exact    bool             `json:"exact"`         // every row was looked at
	Seen     int64            `json:"rows_seen"`     // rows looked at, those with a defect among them
	Other    int64            `json:"other_seen"`    // items that have none of the envelope's attributes
	Declared int64            `json:"declared_seen"` // items that the definition declares to be something else
	Defects  int64            `json:"defects_seen"`
	DEKs     int64            `json:"deks_seen"` // distinct wrapped DEKs among the rows seen
	ByKEK    map[kek.ID]int64 `json:"by_kek_seen"`
	RowBytes int64            `json:"row_bytes"` // on average; 0 if unknown
}

// About is what DynamoDB says of a table, up to six hours old.
type About struct{ Items, Bytes int64 }

// About describes the table of a registered source; false for a source that is no table.
func (d *Deployment) About(ctx context.Context, source string) (About, bool, error) {
	defs, err := d.Sources(ctx)
	if err != nil {
		return About{}, false, err
	}
	for _, def := range defs {
		if def.Name == source && def.Kind == kek.KindDynamoDB {
			about, err := d.describe(ctx, def)
			return about, true, err
		}
	}
	return About{}, false, nil
}

// describe asks DynamoDB about the table of a source.
func (d *Deployment) describe(ctx context.Context, def kek.Source) (About, error) {
	c, err := rowschema.Parse([]byte(def.Definition))
	if err != nil {
		return About{}, fmt.Errorf("source %s: %w", def.Name, err)
	}
	out, err := dynamodb.NewFromConfig(d.AWS).DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &c.Table})
	if err != nil {
		return About{}, fmt.Errorf("describe table %s: %w", c.Table, err)
	}
	return About{Items: aws.ToInt64(out.Table.ItemCount), Bytes: aws.ToInt64(out.Table.TableSizeBytes)}, nil
}

// Count reads a source until it has looked at limit items, and estimates the rest
// from the table's own count; see says how many it has read. A limit of 0 reads
// all.
func (d *Deployment) Count(ctx context.Context, src rotation.Source, limit int64, see func(int64)) (SourceCount, error) {
	out := SourceCount{Source: src.Name(), ByKEK: map[kek.ID]int64{}}
	deks := map[string]bool{}
	cursor := ""
	for {
		page, err := src.Scan(ctx, rotation.ScanRequest{Total: 1, Cursor: cursor, Limit: pageOf(limit, out.Items())})
		if err != nil {
			return out, fmt.Errorf("read source %s: %w", src.Name(), err)
		}
		out.add(page, deks)
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
	about, isTable, err := d.About(ctx, src.Name())
	if err != nil || !isTable {
		return out, err
	}
	if about.Items > 0 {
		out.RowBytes = about.Bytes / about.Items
	}
	if seen := out.Items(); !out.Exact && about.Items > seen {
		out.Rows = int64(float64(about.Items) * float64(out.Seen) / float64(seen))
	}
	return out, nil
}

// Items is how many items were looked at.
func (c SourceCount) Items() int64 { return c.Seen + c.Other + c.Declared }

// pageOf is how many items to ask for, 0 for the source's choice.
func pageOf(limit, seen int64) int {
	const page = 1000
	if limit <= 0 {
		return 0
	}
	return int(min(limit-seen, page))
}

func (c *SourceCount) add(page rotation.Page, deks map[string]bool) {
	c.Seen += int64(len(page.Rows))
	c.Other += int64(page.Other)
	c.Declared += int64(page.Declared)
	for _, row := range page.Rows {
		if row.Defect != "" {
			c.Defects++
			continue
		}
		c.ByKEK[row.KEK]++
		deks[string(row.WrappedDEK)] = true
	}
}

// RowsAbout is about how many rows there are, for progress: what DynamoDB says of
// the tables and S3 lists of the corpora, without reading any.
func (d *Deployment) RowsAbout(ctx context.Context) (int64, error) {
	defs, err := d.Sources(ctx)
	errs := []error{err}
	var total int64
	for _, def := range defs {
		var n int64
		switch def.Kind {
		case kek.KindDynamoDB:
			var about About
			about, err = d.describe(ctx, def)
			n = about.Items
		case kek.KindCorpus:
			n, err = d.countKnown(ctx, def)
		}
		errs = append(errs, err)
		total += n
	}
	return total, errors.Join(errs...)
}

// countKnown counts the objects of a corpus, at most ten thousand of them.
func (d *Deployment) countKnown(ctx context.Context, def kek.Source) (int64, error) {
	c, err := corpus.ParseSource([]byte(def.Definition))
	if err != nil {
		return 0, fmt.Errorf("source %s: %w", def.Name, err)
	}
	pages := s3.NewListObjectsV2Paginator(s3.NewFromConfig(d.AWS), &s3.ListObjectsV2Input{Bucket: &c.Bucket, Prefix: &c.Prefix})
	var n int64
	for range 10 {
		if !pages.HasMorePages() {
			break
		}
		page, err := pages.NextPage(ctx)
		if err != nil {
			return n, fmt.Errorf("list the corpus: %w", err)
		}
		n += int64(len(page.Contents))
	}
	return n, nil
}
