// Package worm keeps the audit chain in an S3 bucket with Object Lock: records are
// written once and stay for the retention, whoever asks.
//
// Invariants: a record's bytes are those of the oldest version of its key. A PUT is
// conditional on there being none, but S3 lets one through over a delete marker,
// and nothing can stop a person from putting another version on top; neither
// changes the oldest, which compliance retention protects. So a Put is done when
// the oldest version is what it put, and a Get reads the oldest version.
//
// Retries and timeouts are those of the client passed in; a PUT that is repeated
// because its answer was lost finds its own record there.
package worm

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
	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/rotation"
)

// API is what [Vault] uses of the S3 client.
type API interface {
	BucketAPI
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectVersions(context.Context, *s3.ListObjectVersionsInput, ...func(*s3.Options)) (*s3.ListObjectVersionsOutput, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

const (
	maxTries  = 8
	firstWait = 25 * time.Millisecond
	maxWait   = 2 * time.Second
	maxRecord = 1 << 20 // far more than any record has
)

var _ rotation.Vault = (*Vault)(nil)

// Vault is the audit bucket. It is safe for concurrent use.
type Vault struct {
	client    API
	bucket    string
	retention time.Duration
	now       func() time.Time
}

// New returns the vault in a bucket. Records are retained that long after they are
// put.
func New(client API, bucket string, retention time.Duration, now func() time.Time) *Vault {
	return &Vault{client: client, bucket: bucket, retention: retention, now: now}
}

// Put implements [rotation.Vault]. S3 answers 409 when two conditional PUTs meet;
// then neither may have been made, and it is repeated.
func (v *Vault) Put(ctx context.Context, key string, e audit.Entry) error {
	var last error
	for try := range maxTries {
		if err := backoff.Pause(ctx, try, firstWait, maxWait); err != nil {
			return errors.Join(err, last)
		}
		made, err := v.put(ctx, key, e.Bytes)
		switch awserr.Code(err) {
		case "ConditionalRequestConflict", "OperationAborted":
			last = err
			continue
		case "PreconditionFailed":
			return v.settle(ctx, key, "", e)
		}
		if err != nil {
			return awserr.Wrap("s3 PutObject "+key, err)
		}
		return v.settle(ctx, key, made, e)
	}
	return fmt.Errorf("s3 PutObject %s: gave up after %d tries: %w", key, maxTries, last)
}

// margin keeps the remaining retention above the policy's whole days for as long as
// the request is under way: the bucket's policy refuses a record that is locked for
// a moment less.
const margin = time.Hour

// put makes one version and returns its id.
func (v *Vault) put(ctx context.Context, key string, record []byte) (version string, err error) {
	sum := sha256.Sum256(record)
	out, err := v.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &v.bucket, Key: &key, Body: bytes.NewReader(record), ContentType: aws.String("application/json"),
		IfNoneMatch:       aws.String("*"),
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256, ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
		ObjectLockMode: types.ObjectLockModeCompliance, ObjectLockRetainUntilDate: aws.Time(v.now().Add(v.retention + margin).Truncate(time.Second)),
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.VersionId), nil
}

// settle decides whether the record is in the bucket. made is the version that this
// call made, if it did.
func (v *Vault) settle(ctx context.Context, key, made string, e audit.Entry) error {
	oldest, err := v.oldest(ctx, key)
	if err != nil {
		return err
	}
	if oldest == "" {
		return fmt.Errorf("s3 PutObject %s: it is refused because of a version that is not listed", key)
	}
	if oldest == made {
		return nil
	}
	stored, lock, err := v.read(ctx, key, oldest)
	if err != nil {
		return err
	}
	if !bytes.Equal(stored, e.Bytes) {
		return fmt.Errorf("s3: %w", audit.TakenBy(key, oldest, stored))
	}
	return v.checkLock(key, oldest, lock, e)
}

// oldest returns the id of a key's oldest version; "" if there is none. S3 lists
// the versions of a key newest first, delete markers apart.
func (v *Vault) oldest(ctx context.Context, key string) (string, error) {
	pages := s3.NewListObjectVersionsPaginator(v.client, &s3.ListObjectVersionsInput{Bucket: &v.bucket, Prefix: &key})
	var id string
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return "", awserr.Wrap("s3 ListObjectVersions "+key, err)
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

// read returns the bytes of one version and its lock, which S3 shows only to who
// has s3:GetObjectRetention. Of an object longer than any record it returns the
// beginning, which is no record.
func (v *Vault) read(ctx context.Context, key, version string) ([]byte, lock, error) {
	out, err := v.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: &v.bucket, Key: &key, VersionId: &version, ChecksumMode: types.ChecksumModeEnabled,
	})
	if err != nil {
		return nil, lock{}, awserr.Wrap("s3 GetObject "+key, err)
	}
	b, err := io.ReadAll(io.LimitReader(out.Body, maxRecord+1))
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return nil, lock{}, awserr.Wrap("s3 GetObject "+key, err)
	}
	return b, lock{out.ObjectLockMode, aws.ToTime(out.ObjectLockRetainUntilDate)}, nil
}

// Get implements [rotation.Vault].
func (v *Vault) Get(ctx context.Context, key string) ([]byte, error) { return v.first(ctx, key) }

// first returns the bytes of the oldest version of a key, whatever came over it.
func (v *Vault) first(ctx context.Context, key string) ([]byte, error) {
	oldest, err := v.oldest(ctx, key)
	if err != nil {
		return nil, err
	}
	if oldest == "" {
		return nil, fmt.Errorf("s3 object %s: %w", key, rotation.ErrNoRecord)
	}
	b, _, err := v.read(ctx, key, oldest)
	return b, err
}
