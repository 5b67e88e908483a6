package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/internal/corpus"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// SourceCount is how many rows a source has.
type SourceCount struct {
	Source   string           `json:"source"`
	Rows     int64            `json:"rows"`
	Exact    bool             `json:"exact"`        // every row was looked at
	Seen     int64            `json:"rows_seen"`    // rows looked at
	Skipped  int64            `json:"skipped_seen"` // items among them that are no envelopes
	Defects  int64            `json:"defects_seen"`
	DEKs     int64            `json:"deks_seen"` // distinct wrapped DEKs among the rows seen
	ByKEK    map[kek.ID]int64 `json:"by_kek_seen"`
	RowBytes int64            `json:"row_bytes"` // on average; 0 if unknown
}

// About is what DynamoDB says of a table, up to six hours old.
type About struct{ Items, Bytes int64 }

// About describes the table of a source; false for a source that is no table.
func (d *Deployment) About(ctx context.Context, source string) (About, bool, error) {
	for _, c := range d.Config.Sources {
		if c.SourceName() != source {
			continue
		}
		out, err := dynamodb.NewFromConfig(d.AWS).DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: aws.String(c.Table)})
		if err != nil {
			return About{}, true, fmt.Errorf("describe table %s: %w", c.Table, err)
		}
		return About{Items: aws.ToInt64(out.Table.ItemCount), Bytes: aws.ToInt64(out.Table.TableSizeBytes)}, true, nil
	}
	return About{}, false, nil
}

// Count reads a source until it has looked at limit items, and estimates the rest
// from the table's own count; see says how many it has read. A limit of 0 reads
// all.
func (d *Deployment) Count(ctx context.Context, src rotation.Source, limit int64, see func(int64)) (SourceCount, error) {
	out := SourceCount{Source: src.Name(), ByKEK: map[kek.ID]int64{}}
	deks := map[string]bool{}
	cursor := ""
	for {
		page, err := src.Scan(ctx, rotation.ScanRequest{Total: 1, Cursor: cursor, Limit: pageOf(limit, out.Seen+out.Skipped)})
		if err != nil {
			return out, fmt.Errorf("read source %s: %w", src.Name(), err)
		}
		out.add(page, deks)
		see(out.Seen + out.Skipped)
		if cursor = page.Next; cursor == "" {
			out.Exact = true
			break
		}
		if limit > 0 && out.Seen+out.Skipped >= limit {
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
	if seen := out.Seen + out.Skipped; !out.Exact && about.Items > seen {
		out.Rows = int64(float64(about.Items) * float64(out.Seen) / float64(seen))
	}
	return out, nil
}

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
	c.Skipped += int64(page.Skipped)
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
// the tables and S3 lists of the corpus, without reading any.
func (d *Deployment) RowsAbout(ctx context.Context) (int64, error) {
	total, err := d.known(ctx)
	errs := []error{err}
	for _, src := range d.Steps.Sources {
		about, _, err := d.About(ctx, src.Name())
		errs = append(errs, err)
		total += about.Items
	}
	return total, errors.Join(errs...)
}

// known counts the objects of the corpus, at most ten thousand of them.
func (d *Deployment) known(ctx context.Context) (int64, error) {
	if d.Config.Corpus == "" {
		return 0, nil
	}
	bucket, prefix, err := corpus.ParseURL(d.Config.Corpus)
	if err != nil {
		return 0, err
	}
	pages := s3.NewListObjectsV2Paginator(s3.NewFromConfig(d.AWS), &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix})
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
