package corpus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

const (
	pageSize      = 100  // objects per page when the caller does not say
	maxPage       = 1000 // what S3 lists at most
	readsInFlight = 8
	cursorMark    = "after:" // a cursor is this and the last key listed
)

// handle is an object's place in a corpus.
type handle struct{ key string }

// list returns the keys of one page, and whether it was the last.
func (s *Source) list(ctx context.Context, after string, limit int) (keys []string, last bool, err error) {
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(int32(min(limit, maxPage)))} //nolint:gosec // small
	if after != "" {
		in.StartAfter = &after
	}
	out, err := s.client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, false, awserr.Wrap("s3 ListObjectsV2 "+s.bucket+"/"+s.prefix, err)
	}
	for _, o := range out.Contents {
		keys = append(keys, aws.ToString(o.Key))
	}
	return keys, !aws.ToBool(out.IsTruncated) || len(keys) == 0, nil
}

// Scan implements [rotation.Source]. Limit counts objects, Skipped ones too. A
// cursor holds a key, not S3's token, and so is good for as long as a rotation may
// halt.
func (s *Source) Scan(ctx context.Context, req rotation.ScanRequest) (rotation.Page, error) {
	if req.Segment != 0 || req.Total != 1 {
		return rotation.Page{}, fmt.Errorf("scan %s: segment %d of %d; it has one", Name, req.Segment, req.Total)
	}
	after, ok := strings.CutPrefix(req.Cursor, cursorMark)
	if req.Cursor != "" && (!ok || !strings.HasPrefix(after, s.prefix)) {
		return rotation.Page{}, fmt.Errorf("scan %s: the cursor is not one of this corpus", Name)
	}
	limit := req.Limit
	if limit <= 0 {
		limit = pageSize
	}
	keys, last, err := s.list(ctx, after, limit)
	if err != nil {
		return rotation.Page{}, err
	}
	var page rotation.Page
	if !last {
		page.Next = cursorMark + keys[len(keys)-1]
	}
	var envelopes []string
	for _, k := range keys {
		if strings.HasSuffix(k, suffix) {
			envelopes = append(envelopes, k)
		} else {
			page.Skipped++
		}
	}
	page.Rows, err = s.rows(ctx, envelopes, req.Payload)
	return page, err
}

// rows reads objects, several at once. One that was deleted meanwhile is left out.
func (s *Source) rows(ctx context.Context, keys []string, payload bool) ([]rotation.Row, error) {
	read := make([]*rotation.Row, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsInFlight)
	for i, k := range keys {
		g.Go(func() error {
			o, ok, err := s.get(ctx, k)
			if err == nil && ok {
				r := o.row(k, payload)
				read[i] = &r
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	rows := make([]rotation.Row, 0, len(keys))
	for _, r := range read {
		if r != nil {
			rows = append(rows, *r)
		}
	}
	return rows, nil
}

func (o stored) row(key string, payload bool) rotation.Row {
	r := rotation.Row{
		ID: key, Handle: handle{key}, KEK: o.entry.KEK, Epoch: o.entry.Epoch, WrappedDEK: o.entry.WrappedDEK,
		PlainSHA: o.entry.PlaintextSHA256, Context: o.entry.Context, Defect: o.defect,
	}
	if payload {
		r.Ciphertext = o.entry.Ciphertext
	}
	return r
}

// Replace implements [rotation.Source]. It reads the object, compares, and writes
// on the condition that the object is the one just read: S3 cannot condition on
// fields. Metadata stays; tags of an object, if there are any, do not.
func (s *Source) Replace(ctx context.Context, old rotation.Row, with rotation.Rewrapped) (bool, error) {
	h, ok := old.Handle.(handle)
	if !ok || !strings.HasPrefix(h.key, s.prefix) {
		return false, fmt.Errorf("replace %s: the row is not of source %s", old.ID, Name)
	}
	if with.Ciphertext != nil && old.Ciphertext == nil {
		return false, fmt.Errorf("replace %s: a payload cannot be replaced that was not read", old.ID)
	}
	o, ok, err := s.get(ctx, h.key)
	if err != nil {
		return false, err
	}
	e := o.entry
	if !ok || o.defect != "" || e.KEK != old.KEK || !bytes.Equal(e.WrappedDEK, old.WrappedDEK) ||
		with.Ciphertext != nil && !bytes.Equal(e.Ciphertext, old.Ciphertext) {
		return false, nil
	}
	e.KEK, e.Epoch, e.WrappedDEK = with.KEK, with.Epoch, with.WrappedDEK
	if with.Ciphertext != nil {
		e.Ciphertext = with.Ciphertext
	}
	e.Version++
	err = s.put(ctx, h.key, o.etag, e, o.metadata)
	if errors.Is(err, errChanged) {
		return false, nil
	}
	return err == nil, err
}

// Reread implements [rotation.Source].
func (s *Source) Reread(ctx context.Context, old rotation.Row, payload bool) (rotation.Row, bool, error) {
	h, ok := old.Handle.(handle)
	if !ok || !strings.HasPrefix(h.key, s.prefix) {
		return rotation.Row{}, false, fmt.Errorf("reread %s: the row is not of source %s", old.ID, Name)
	}
	o, ok, err := s.get(ctx, h.key)
	if err != nil || !ok {
		return rotation.Row{}, false, err
	}
	return o.row(h.key, payload), true, nil
}
