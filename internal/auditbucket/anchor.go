package auditbucket

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/rotation/anchor"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/remote"
)

var (
	_ anchor.ObjectStore  = (*Bucket)(nil)
	_ audit.PartialBucket = (*Bucket)(nil)
)

// PutAnchor implements [anchor.ObjectStore]. It returns the oldest version, also if
// another call made it.
func (b *Bucket) PutAnchor(ctx context.Context, key string, body []byte) ([]byte, error) {
	if _, err := b.putIfAbsent(ctx, key, body); err != nil {
		return nil, err
	}
	return b.readOldest(ctx, key)
}

// GetAnchor implements [anchor.ObjectStore].
func (b *Bucket) GetAnchor(ctx context.Context, key string) ([]byte, error) {
	return b.readOldest(ctx, key)
}

// Versions implements [audit.Bucket]. It lists every version and delete marker in the
// bucket, by key, and those of a key oldest first.
func (b *Bucket) Versions(ctx context.Context) ([]audit.ObjectVersion, error) {
	return b.listVersions(ctx, &s3.ListObjectVersionsInput{Bucket: &b.name})
}

// VersionsAfter implements [audit.PartialBucket]. S3 begins with or after the key marker ("the
// key to start with", API reference, ListObjectVersions), so that key itself is left out here.
func (b *Bucket) VersionsAfter(ctx context.Context, prefix, after string) ([]audit.ObjectVersion, error) {
	all, err := b.listVersions(ctx, &s3.ListObjectVersionsInput{Bucket: &b.name, Prefix: &prefix, KeyMarker: &after})
	return slices.DeleteFunc(all, func(v audit.ObjectVersion) bool { return v.Key <= after }), err
}

func (b *Bucket) listVersions(ctx context.Context, in *s3.ListObjectVersionsInput) ([]audit.ObjectVersion, error) {
	var out []audit.ObjectVersion
	pages := s3.NewListObjectVersionsPaginator(b.client, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, remote.WrapError("s3 ListObjectVersions "+b.name, err)
		}
		for _, o := range page.Versions {
			out = append(out, audit.ObjectVersion{Key: aws.ToString(o.Key), ID: aws.ToString(o.VersionId), Modified: aws.ToTime(o.LastModified)})
		}
		for _, d := range page.DeleteMarkers {
			out = append(out, audit.ObjectVersion{
				Key: aws.ToString(d.Key), ID: aws.ToString(d.VersionId), Modified: aws.ToTime(d.LastModified), DeleteMarker: true,
			})
		}
	}
	// S3 lists the versions of a key newest first. Their times cannot order them: they are
	// in whole seconds.
	slices.Reverse(out)
	slices.SortStableFunc(out, func(x, y audit.ObjectVersion) int { return strings.Compare(x.Key, y.Key) })
	return out, nil
}

// Read implements [audit.Bucket].
func (b *Bucket) Read(ctx context.Context, o audit.ObjectVersion) (audit.Object, error) {
	body, lock, err := b.readVersion(ctx, o.Key, o.ID)
	switch remote.ErrorCode(err) {
	case "NoSuchKey", "NoSuchVersion":
		return audit.Object{}, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return audit.Object{}, err
	}
	return audit.Object{Bytes: body, Lock: &audit.Lock{Mode: string(lock.mode), Until: lock.until}}, nil
}
