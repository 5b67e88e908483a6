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
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

const (
	pageSize      = 100  // objects per page when the caller does not say
	maxPage       = 1000 // what S3 lists at most
	readsInFlight = 8
	cursorMark    = "after:" // a cursor is this and the last key listed
)

// handle is an object's place in a corpus, and how its entry names its KEK.
type handle struct {
	key string
	kek kek.ID
}

// list returns the keys of one page, and whether it was the last. A page without keys
// that is not the last is passed over: a cursor holds a key, and it has none.
func (s *Source) list(ctx context.Context, after string, limit int) (keys []string, last bool, err error) {
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(int32(min(limit, maxPage)))} //nolint:gosec // small
	if after != "" {
		in.StartAfter = &after
	}
	for {
		out, err := s.client.ListObjectsV2(ctx, in)
		if err != nil {
			return nil, false, awserr.Wrap("s3 ListObjectsV2 "+s.bucket+"/"+s.prefix, err)
		}
		for _, o := range out.Contents {
			keys = append(keys, aws.ToString(o.Key))
		}
		if last = !aws.ToBool(out.IsTruncated); last || len(keys) > 0 {
			return keys, last, nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// Scan implements [rotation.Source]. Limit counts objects, whatever they are. A
// cursor holds a key, not S3's token, and so is valid for as long as a rotation may
// halt. An object whose name ends in .json is a row, with a defect if it is not an
// entry; every other object counts as Other.
func (s *Source) Scan(ctx context.Context, req rotation.ScanRequest) (rotation.Page, error) {
	if req.Segment != 0 || req.Total != 1 {
		return rotation.Page{}, fmt.Errorf("scan %s: segment %d of %d; it has one", s.name, req.Segment, req.Total)
	}
	after, ok := strings.CutPrefix(req.Cursor, cursorMark)
	if req.Cursor != "" && (!ok || !strings.HasPrefix(after, s.prefix)) {
		return rotation.Page{}, fmt.Errorf("scan %s: the cursor is not one of this corpus", s.name)
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
			page.Other++
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
			if ok {
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
		ID: key, Handle: handle{key, o.entry.KEK}, Epoch: o.entry.Epoch, WrappedDEK: o.entry.WrappedDEK,
		PlainSHA: o.entry.PlaintextSHA256, Context: o.entry.Context, Bound: o.entry.Context, Defect: o.defect,
	}
	var ok bool
	if r.KEK, r.KeyARN, ok = kek.ParseKeyRef(string(o.entry.KEK)); !ok && o.defect == "" {
		r.Kind, r.Defect = rotation.UnknownForm, fmt.Sprintf(`field "kek_id" is %.100q, which is neither a key id nor a key ARN`, o.entry.KEK)
	}
	if o.defect != "" {
		r.Kind = rotation.Damaged
	}
	if payload {
		r.Ciphertext = o.entry.Ciphertext
	}
	return r
}

// handleOf returns the handle of a row of this source.
func (s *Source) handleOf(what string, row rotation.Row) (handle, error) {
	h, ok := row.Handle.(handle)
	if !ok || !strings.HasPrefix(h.key, s.prefix) {
		return h, fmt.Errorf("%s %s: the row is not of source %s", what, row.ID, s.name)
	}
	return h, nil
}

// Replace implements [rotation.Source]. It reads the object, compares, and writes
// on the condition that the object is the one just read: S3 cannot condition on
// fields. Metadata stays; tags of an object, if there are any, do not.
func (s *Source) Replace(ctx context.Context, old rotation.Row, with rotation.Rewrapped) (bool, error) {
	h, err := s.handleOf("replace", old)
	switch {
	case err != nil:
		return false, err
	case old.Defect != "":
		return false, fmt.Errorf("replace %s: it is not a sound entry: %s", old.ID, old.Defect)
	case with.Ciphertext != nil && old.Ciphertext == nil:
		return false, fmt.Errorf("replace %s: a payload cannot be replaced that was not read", old.ID)
	}
	o, ok, err := s.get(ctx, h.key)
	if err != nil {
		return false, err
	}
	e := o.entry
	if !ok || o.defect != "" || e.KEK != h.kek || !bytes.Equal(e.WrappedDEK, old.WrappedDEK) ||
		with.Ciphertext != nil && !bytes.Equal(e.Ciphertext, old.Ciphertext) {
		return false, nil
	}
	e.KEK = with.KEK
	e.Epoch = with.Epoch
	e.WrappedDEK = with.WrappedDEK
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

// noETag is the ETag of no object: those of S3 are hashes (API reference, Object).
const noETag = `"00000000000000000000000000000000"`

// Rehearse implements [rotation.Source]. It sends the object as it is, on condition of
// an ETag that no object has. AWS decides whether a request is allowed from the request
// alone, before the service carries it out (IAM user guide, "Policy evaluation logic"),
// so a failed condition shows the permission to put. What the bucket's own KMS key
// allows is not shown: S3 uses it only when it stores an object.
func (s *Source) Rehearse(ctx context.Context, old rotation.Row) error {
	h, err := s.handleOf("rehearse", old)
	if err != nil {
		return err
	}
	o, ok, err := s.get(ctx, h.key)
	if !ok {
		return err
	}
	if o.defect != "" {
		return fmt.Errorf("rehearse %s: it is not a sound entry: %s", old.ID, o.defect)
	}
	err = s.put(ctx, h.key, noETag, o.entry, o.metadata)
	if err == nil {
		return fmt.Errorf("rehearse %s: a write whose condition cannot hold was made", old.ID)
	}
	if errors.Is(err, errChanged) {
		return nil
	}
	return err
}

// EncryptedBy implements [rotation.Source]: the KMS key that encrypts the entries at
// rest, by the first of them that names one. It reads the first page of the corpus.
func (s *Source) EncryptedBy(ctx context.Context) (string, error) {
	keys, _, err := s.list(ctx, "", pageSize)
	for _, k := range keys {
		if err != nil || !strings.HasSuffix(k, suffix) {
			continue
		}
		var o stored
		if o, _, err = s.get(ctx, k); o.encryptedBy != "" {
			return o.encryptedBy, nil
		}
	}
	return "", err
}

// Reread implements [rotation.Source].
func (s *Source) Reread(ctx context.Context, old rotation.Row, payload bool) (rotation.Row, bool, error) {
	h, err := s.handleOf("reread", old)
	if err != nil {
		return rotation.Row{}, false, err
	}
	o, ok, err := s.get(ctx, h.key)
	if !ok {
		return rotation.Row{}, false, err
	}
	return o.row(h.key, payload), true, nil
}
