package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

const (
	pageSize      = 100      // objects per page if the caller does not say
	maxPage       = 1000     // objects that S3 lists at most in one answer (API reference, ListObjectsV2)
	readsInFlight = 8        // objects read at once
	cursorMark    = "after:" // a cursor is this and the last key listed
)

// handle is the key of an object, and the KEK as its entry named it when it was read.
type handle struct {
	key string
	kek kek.ID
}

// listKeys returns the keys of one page, and whether it was the last. S3 may answer with a
// page without keys that is not the last; it is skipped, because a cursor is made from a key.
func (s *Corpus) listKeys(ctx context.Context, after string, limit int) (keys []string, last bool, err error) {
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(int32(min(limit, maxPage)))} //nolint:gosec // small
	if after != "" {
		in.StartAfter = &after
	}
	for {
		out, err := s.client.ListObjectsV2(ctx, in)
		if err != nil {
			return nil, false, remote.WrapError("s3 ListObjectsV2 "+s.bucket+"/"+s.prefix, err)
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

// Scan implements [source.Driver]. Limit counts objects of any kind. A cursor holds a key and
// not S3's continuation token, so it stays valid while a rotation is halted. An object whose
// name ends in .json is a row, with a defect if it is not an entry; every other object counts
// as Other.
func (s *Corpus) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	if req.Segment != 0 || req.Total != 1 {
		return source.Page{}, fmt.Errorf("scan %s: segment %d of %d; it has one", s.name, req.Segment, req.Total)
	}
	after, ok := strings.CutPrefix(req.Cursor, cursorMark)
	if req.Cursor != "" && (!ok || !strings.HasPrefix(after, s.prefix)) {
		return source.Page{}, fmt.Errorf("scan %s: the cursor is not one of this corpus", s.name)
	}
	limit := req.Limit
	if limit <= 0 {
		limit = pageSize
	}
	keys, last, err := s.listKeys(ctx, after, limit)
	if err != nil {
		return source.Page{}, err
	}
	var page source.Page
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
	page.Rows, err = s.readRows(ctx, envelopes, req.Payload)
	return page, err
}

// readRows reads objects, several at once, and returns their rows in the order of the keys.
// An object that was deleted meanwhile is left out.
func (s *Corpus) readRows(ctx context.Context, keys []string, payload bool) ([]source.Row, error) {
	read := make([]*source.Row, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsInFlight)
	for i, k := range keys {
		g.Go(func() error {
			o, ok, err := s.getEntry(ctx, k)
			if ok {
				r := o.toRow(k, payload)
				read[i] = &r
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	rows := make([]source.Row, 0, len(keys))
	for _, r := range read {
		if r != nil {
			rows = append(rows, *r)
		}
	}
	return rows, nil
}

// toRow returns the row of an object. An object that is not a sound entry becomes a row with
// a defect: it must not be left out, or a rotation could retire the KEK that it is under.
func (o storedObject) toRow(key string, payload bool) source.Row {
	r := source.Row{
		ID: key, Handle: handle{key, o.entry.KEK}, Epoch: o.entry.Epoch, WrappedDEK: o.entry.WrappedDEK,
		PlainSHA: o.entry.PlaintextSHA256, Context: o.entry.Context, Bound: o.entry.Context, Defect: o.defect,
	}
	var ok bool
	if r.KEK, r.KeyARN, ok = kek.ParseKeyRef(string(o.entry.KEK)); !ok && o.defect == "" {
		r.Kind, r.Defect = source.UnknownForm, fmt.Sprintf(`field "kek_id" is %.100q, which is neither a key id nor a key ARN`, o.entry.KEK)
	}
	if o.defect != "" {
		r.Kind = source.Damaged
	}
	if payload {
		r.Ciphertext = o.entry.Ciphertext
	}
	return r
}

// handleOf returns the handle of a row. It refuses a row of another source: its key could
// exist here by chance.
func (s *Corpus) handleOf(what string, row source.Row) (handle, error) {
	h, ok := row.Handle.(handle)
	if !ok || !strings.HasPrefix(h.key, s.prefix) {
		return h, fmt.Errorf("%s %s: the row is not of source %s", what, row.ID, s.name)
	}
	return h, nil
}

// Replace implements [source.Driver]. It reads the object, compares it with the row, and
// writes it on condition that it is still the object just read, because S3 has no conditions
// on the fields of an object. Metadata is kept. Tags of an object are lost, as with every
// PutObject.
func (s *Corpus) Replace(ctx context.Context, old source.Row, with source.Rewrapped) (bool, error) {
	h, err := s.handleOf("replace", old)
	switch {
	case err != nil:
		return false, err
	case old.Defect != "":
		return false, fmt.Errorf("replace %s: it is not a sound entry: %s", old.ID, old.Defect)
	case with.Ciphertext != nil && old.Ciphertext == nil:
		return false, fmt.Errorf("replace %s: a payload cannot be replaced that was not read", old.ID)
	}
	o, ok, err := s.getEntry(ctx, h.key)
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
	err = s.putEntry(ctx, h.key, o.etag, e, o.metadata)
	if errors.Is(err, errChanged) {
		return false, nil
	}
	return err == nil, err
}

// noETag is an ETag that no object has: S3 derives ETags from hashes (API reference, Object).
const noETag = `"00000000000000000000000000000000"`

// Rehearse implements [source.Driver]. It sends the object unchanged, on condition of an ETag
// that no object has. AWS decides from the request alone whether it is allowed, before the
// service carries it out (IAM user guide, "Policy evaluation logic"). So a failed condition
// shows the permission to put. It does not show the permission for the KMS key that encrypts
// the bucket, because S3 uses that key only when it stores an object.
func (s *Corpus) Rehearse(ctx context.Context, old source.Row) error {
	h, err := s.handleOf("rehearse", old)
	if err != nil {
		return err
	}
	o, ok, err := s.getEntry(ctx, h.key)
	if !ok {
		return err
	}
	if o.defect != "" {
		return fmt.Errorf("rehearse %s: it is not a sound entry: %s", old.ID, o.defect)
	}
	err = s.putEntry(ctx, h.key, noETag, o.entry, o.metadata)
	if err == nil {
		return fmt.Errorf("rehearse %s: a write whose condition cannot hold was made", old.ID)
	}
	if errors.Is(err, errChanged) {
		return nil
	}
	return err
}

// EncryptedBy implements [source.Driver]. It reads the first page of the corpus and returns
// the KMS key of the first entry that S3 has encrypted with one (SSE-KMS).
func (s *Corpus) EncryptedBy(ctx context.Context) (string, error) {
	keys, _, err := s.listKeys(ctx, "", pageSize)
	for _, k := range keys {
		if err != nil || !strings.HasSuffix(k, suffix) {
			continue
		}
		var o storedObject
		if o, _, err = s.getEntry(ctx, k); o.encryptedBy != "" {
			return o.encryptedBy, nil
		}
	}
	return "", err
}

// Reread implements [source.Driver].
func (s *Corpus) Reread(ctx context.Context, old source.Row, payload bool) (source.Row, bool, error) {
	h, err := s.handleOf("reread", old)
	if err != nil {
		return source.Row{}, false, err
	}
	o, ok, err := s.getEntry(ctx, h.key)
	if !ok {
		return source.Row{}, false, err
	}
	return o.toRow(h.key, payload), true, nil
}

// maxCounted is how many pages of the listing Size reads at most.
const maxCounted = 10

// Size implements [source.Sizer]. It counts the objects of the corpus, up to ten thousand.
func (s *Corpus) Size(ctx context.Context) (source.Size, error) {
	size, after := source.Size{AtLeast: true}, ""
	for range maxCounted {
		keys, last, err := s.listKeys(ctx, after, maxPage)
		if err != nil {
			return size, err
		}
		size.Items += int64(len(keys))
		if last {
			break
		}
		after = keys[len(keys)-1]
	}
	return size, nil
}
