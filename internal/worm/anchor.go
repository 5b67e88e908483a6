package worm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/rotation"
)

var (
	_ rotation.AnchorVault = (*Vault)(nil)
	_ audit.Bucket         = (*Vault)(nil)
)

// PutAnchor implements [rotation.AnchorVault].
func (v *Vault) PutAnchor(ctx context.Context, key string, b []byte) ([]byte, error) {
	var last error
	for try := range maxTries {
		if err := backoff.Pause(ctx, try, firstWait, maxWait); err != nil {
			return nil, errors.Join(err, last)
		}
		_, err := v.put(ctx, key, b)
		switch awserr.Code(err) {
		case "ConditionalRequestConflict", "OperationAborted":
			last = err
			continue
		case "PreconditionFailed":
			err = nil
		}
		if err != nil {
			return nil, awserr.Wrap("s3 PutObject "+key, err)
		}
		return v.GetAnchor(ctx, key) // the oldest version, whoever put it
	}
	return nil, fmt.Errorf("s3 PutObject %s: gave up after %d tries: %w", key, maxTries, last)
}

// GetAnchor implements [rotation.AnchorVault].
func (v *Vault) GetAnchor(ctx context.Context, key string) ([]byte, error) { return v.first(ctx, key) }

// Versions implements [audit.Bucket]: everything that the bucket holds.
func (v *Vault) Versions(ctx context.Context) ([]audit.ObjectVersion, error) {
	var out []audit.ObjectVersion
	pages := s3.NewListObjectVersionsPaginator(v.client, &s3.ListObjectVersionsInput{Bucket: &v.bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, awserr.Wrap("s3 ListObjectVersions "+v.bucket, err)
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
	slices.Reverse(out) // S3 lists the versions of a key newest first; times are in whole seconds
	slices.SortStableFunc(out, func(a, b audit.ObjectVersion) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

// Read implements [audit.Bucket].
func (v *Vault) Read(ctx context.Context, o audit.ObjectVersion) (audit.Object, error) {
	b, l, err := v.read(ctx, o.Key, o.ID)
	switch awserr.Code(err) {
	case "NoSuchKey", "NoSuchVersion":
		return audit.Object{}, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return audit.Object{}, err
	}
	return audit.Object{Bytes: b, Lock: &audit.Lock{Mode: string(l.mode), Until: l.until}}, nil
}
