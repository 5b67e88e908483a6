// Package auditbucket keeps the audit chain in an S3 bucket with Object Lock. Records
// and anchors are written once, in compliance mode: nobody, not even the root user, can
// delete or change them before their retention ends (Amazon S3 User Guide, "Locking
// objects with Object Lock").
//
// The objects of a chain:
//
//	v1/<chain>/records/<seq, 12 digits>.json   one record, see package audit
//	v1/<chain>/anchors/<n, 12 digits>.json     one anchor, see package audit
//
// Invariants: a record's bytes are those of the oldest version of its key. A PUT is
// conditional on the key having no version, but S3 accepts it over a delete marker, and a
// person can put another version on top. Neither changes the oldest version, which its
// retention protects. So a Put is done when the oldest version is what it put, and a Get
// reads the oldest version.
//
// Retries and timeouts are those of the client passed in. A PUT that the client repeats
// because its answer was lost finds its own record in the bucket.
package auditbucket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// API is the part of the S3 client that [Bucket] uses.
type API interface {
	SettingsAPI
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectVersions(context.Context, *s3.ListObjectVersionsInput, ...func(*s3.Options)) (*s3.ListObjectVersionsOutput, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

const (
	maxTries  = 8
	firstWait = 25 * time.Millisecond
	maxWait   = 2 * time.Second
	maxRecord = 1 << 20 // bytes, far more than any record has
)

var _ journal.AuditBucket = (*Bucket)(nil)

// Bucket is the audit bucket. It is safe for concurrent use.
type Bucket struct {
	client    API
	name      string
	retention time.Duration
	now       func() time.Time
}

// New returns the audit bucket with this name. A record is retained for the given time
// after its PUT.
func New(client API, name string, retention time.Duration, now func() time.Time) *Bucket {
	return &Bucket{client: client, name: name, retention: retention, now: now}
}

// Put implements [journal.AuditBucket].
func (b *Bucket) Put(ctx context.Context, key string, e audit.Entry) error {
	made, err := b.putIfAbsent(ctx, key, e.Bytes)
	if err != nil {
		return err
	}
	return b.confirmRecord(ctx, key, made, e)
}

// putIfAbsent puts an object unless its key has a version. It returns the id of the
// version that it made; "" if the key has one already. S3 answers 409 when two
// conditional PUTs of a key meet; neither may have succeeded, so the PUT is repeated
// (S3 User Guide, "How to prevent object overwrites with conditional writes").
func (b *Bucket) putIfAbsent(ctx context.Context, key string, body []byte) (version string, err error) {
	var last error
	for try := range maxTries {
		if err := remote.WaitForTry(ctx, try, firstWait, maxWait); err != nil {
			return "", errors.Join(err, last)
		}
		made, err := b.putLocked(ctx, key, body)
		switch remote.ErrorCode(err) {
		case "ConditionalRequestConflict", "OperationAborted":
			last = err
			continue
		case "PreconditionFailed":
			return "", nil
		}
		if err != nil {
			return "", remote.WrapError("s3 PutObject "+key, err)
		}
		return made, nil
	}
	return "", fmt.Errorf("s3 PutObject %s: gave up after %d tries: %w", key, maxTries, last)
}

// lockMargin keeps the remaining retention above the whole days that the bucket's policy
// demands while the request is under way: S3 would refuse a record that is locked for a
// moment less.
const lockMargin = time.Hour

// putLocked makes one version under compliance retention and returns its id.
func (b *Bucket) putLocked(ctx context.Context, key string, body []byte) (version string, err error) {
	sum := sha256.Sum256(body)
	out, err := b.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.name, Key: &key, Body: bytes.NewReader(body), ContentType: aws.String("application/json"),
		IfNoneMatch:       aws.String("*"),
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256, ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
		ObjectLockMode: types.ObjectLockModeCompliance, ObjectLockRetainUntilDate: aws.Time(b.now().Add(b.retention + lockMargin).Truncate(time.Second)),
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.VersionId), nil
}

// confirmRecord makes sure that the record is in the bucket. made is the version that
// this call made, "" if it made none. A version that another call made counts if it has
// the same bytes and is locked as it should be.
func (b *Bucket) confirmRecord(ctx context.Context, key, made string, e audit.Entry) error {
	oldest, err := b.findOldest(ctx, key)
	if err != nil {
		return err
	}
	if oldest == "" {
		return fmt.Errorf("s3 PutObject %s: refused because of a version that is not listed", key)
	}
	if oldest == made {
		return nil
	}
	stored, lock, err := b.readVersion(ctx, key, oldest)
	if err != nil {
		return err
	}
	if !bytes.Equal(stored, e.Bytes) {
		return fmt.Errorf("s3: %w", audit.TakenBy(key, oldest, stored))
	}
	return b.checkRetention(key, oldest, lock, e)
}

// findOldest returns the id of a key's oldest version; "" if there is none. S3 lists
// the versions of a key newest first, and delete markers apart from them.
func (b *Bucket) findOldest(ctx context.Context, key string) (string, error) {
	pages := s3.NewListObjectVersionsPaginator(b.client, &s3.ListObjectVersionsInput{Bucket: &b.name, Prefix: &key})
	var id string
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return "", remote.WrapError("s3 ListObjectVersions "+key, err)
		}
		for _, o := range page.Versions {
			if aws.ToString(o.Key) == key {
				id = aws.ToString(o.VersionId)
			}
		}
	}
	return id, nil
}

// lock is the retention of one version.
type lock struct {
	mode  types.ObjectLockMode
	until time.Time
}

// readVersion returns the bytes of one version and its lock, which S3 shows only to a
// caller with s3:GetObjectRetention. Of an object longer than any record it returns the
// first maxRecord+1 bytes, which cannot be a record.
func (b *Bucket) readVersion(ctx context.Context, key, version string) ([]byte, lock, error) {
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: &b.name, Key: &key, VersionId: &version, ChecksumMode: types.ChecksumModeEnabled,
	})
	if err != nil {
		return nil, lock{}, remote.WrapError("s3 GetObject "+key, err)
	}
	body, err := io.ReadAll(io.LimitReader(out.Body, maxRecord+1))
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return nil, lock{}, remote.WrapError("s3 GetObject "+key, err)
	}
	return body, lock{out.ObjectLockMode, aws.ToTime(out.ObjectLockRetainUntilDate)}, nil
}

// Get implements [journal.AuditBucket].
func (b *Bucket) Get(ctx context.Context, key string) ([]byte, error) { return b.readOldest(ctx, key) }

// readOldest returns the bytes of the oldest version of a key, also under a delete
// marker; [journal.ErrNoRecord] if there is none.
func (b *Bucket) readOldest(ctx context.Context, key string) ([]byte, error) {
	oldest, err := b.findOldest(ctx, key)
	if err != nil {
		return nil, err
	}
	if oldest == "" {
		return nil, fmt.Errorf("s3 object %s: %w", key, journal.ErrNoRecord)
	}
	body, _, err := b.readVersion(ctx, key, oldest)
	return body, err
}
