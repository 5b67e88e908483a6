package deks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/source"
)

// BucketAPI is what [Table] uses of the S3 client.
type BucketAPI interface {
	keyrecord.CopyAPI
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
}

const (
	maxListed     = 1000    // keys that S3 lists at most in one answer (API reference, ListObjectsV2)
	maxCopy       = 1 << 16 // bytes of a copy: a record without its item's overhead is far below
	readsInFlight = 8
)

func (t *Table) putCopy(ctx context.Context, r keyrecord.Record) error {
	if err := keyrecord.PutCopy(ctx, t.bucket, t.places.Bucket, r); err != nil {
		return remote.WrapError("copy of a record", err)
	}
	return nil
}

// scanCopies reads a page of the copies, after the key that was read last. A copy whose record
// is in the table is left out. A copy whose record is missing is a row. What is not a copy
// counts as Other: nobody can remove it from the locked bucket, so it must not stop a
// rotation.
func (t *Table) scanCopies(ctx context.Context, after string, limit int) (source.Page, error) {
	if after != "" && !strings.HasPrefix(after, keyrecord.CopyPrefix) {
		return source.Page{}, fmt.Errorf("scan %s: %w", t.name, errCursor)
	}
	if limit <= 0 {
		limit = maxListed
	}
	in := &s3.ListObjectsV2Input{
		Bucket: &t.places.Bucket, Prefix: aws.String(keyrecord.CopyPrefix), MaxKeys: aws.Int32(int32(min(limit, maxListed))),
	}
	if after != "" {
		in.StartAfter = &after
	}
	var keys []string
	for { // S3 may answer with a page without keys that is not the last
		out, err := t.bucket.ListObjectsV2(ctx, in)
		if err != nil {
			return source.Page{}, remote.WrapError("s3 ListObjectsV2 "+t.places.Bucket+"/"+keyrecord.CopyPrefix, err)
		}
		for _, o := range out.Contents {
			keys = append(keys, aws.ToString(o.Key))
		}
		more := aws.ToBool(out.IsTruncated)
		if !more || len(keys) > 0 {
			page, err := t.readMissing(ctx, keys)
			if more {
				page.Next = afterCopy + keys[len(keys)-1]
			}
			return page, err
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// readMissing returns the copies among keys whose records are missing.
func (t *Table) readMissing(ctx context.Context, keys []string) (source.Page, error) {
	var page source.Page
	byID, ids := map[string][]string{}, []string{}
	for _, key := range keys {
		n, err := keyrecord.ParseCopyKey(key)
		if err != nil {
			page.Other++
			continue
		}
		if byID[n.DEKID] == nil {
			ids = append(ids, n.DEKID)
		}
		byID[n.DEKID] = append(byID[n.DEKID], key)
	}
	rows, other := make([][]source.Row, len(ids)), make([]int, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readsInFlight)
	for i, id := range ids {
		g.Go(func() (err error) {
			rows[i], other[i], err = t.copiesIfMissing(gctx, id, byID[id])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return source.Page{}, err
	}
	for i := range ids {
		page.Rows, page.Other = append(page.Rows, rows[i]...), page.Other+other[i]
	}
	return page, nil
}

// copiesIfMissing returns the copies of a record as rows if there is no record.
func (t *Table) copiesIfMissing(ctx context.Context, id string, keys []string) (rows []source.Row, other int, err error) {
	if i, err := t.get(ctx, id); err != nil || i != nil {
		return nil, 0, err
	}
	for _, key := range keys {
		r, err := t.readCopy(ctx, key)
		if errors.Is(err, errCopy) {
			other++
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		row := rowOfRecord(r)
		row.Missing = true
		rows = append(rows, row)
	}
	return rows, other, nil
}

// ListCopies implements [source.Keeper]. The epoch in a key has leading zeros, so the newest
// copy is the last of the listing.
func (t *Table) ListCopies(ctx context.Context, old source.Row) ([]source.Row, error) {
	h, ok := old.Handle.(handle)
	if !ok {
		return nil, fmt.Errorf("copies of a record: it is not of source %s", t.name)
	}
	in := &s3.ListObjectsV2Input{Bucket: &t.places.Bucket, Prefix: aws.String(keyrecord.CopiesOf(h.record.DEKID))}
	var rows []source.Row
	for {
		out, err := t.bucket.ListObjectsV2(ctx, in)
		if err != nil {
			return nil, remote.WrapError("s3 ListObjectsV2 "+t.places.Bucket+"/"+*in.Prefix, err)
		}
		for _, o := range out.Contents {
			r, err := t.readCopy(ctx, aws.ToString(o.Key))
			if errors.Is(err, errCopy) {
				continue
			}
			if err != nil {
				return nil, err
			}
			row := rowOfRecord(r)
			row.Missing = true
			rows = append(rows, row)
		}
		if !aws.ToBool(out.IsTruncated) {
			return rows, nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

var errCopy = errors.New("it is not a copy of a record")

// readCopy reads one copy. Of an object with several versions the last is read; the key names
// the content, so a version with other bytes is refused.
func (t *Table) readCopy(ctx context.Context, key string) (keyrecord.Record, error) {
	out, err := t.bucket.GetObject(ctx, &s3.GetObjectInput{Bucket: &t.places.Bucket, Key: &key})
	if err != nil {
		return keyrecord.Record{}, remote.WrapError("s3 GetObject "+t.places.Bucket+"/"+key, err)
	}
	defer out.Body.Close() //nolint:errcheck // read to its end below
	b, err := io.ReadAll(io.LimitReader(out.Body, maxCopy))
	if err != nil {
		return keyrecord.Record{}, fmt.Errorf("s3 GetObject %s/%s: %w", t.places.Bucket, key, err)
	}
	r, err := keyrecord.DecodeCopy(key, b)
	if err != nil {
		return r, fmt.Errorf("%w: %w", errCopy, err)
	}
	return r, nil
}
