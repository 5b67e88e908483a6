package auditbucket_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/auditbucket"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func TestAnchors(t *testing.T) {
	storetest.TestAnchorVault(t, func(t *testing.T) anchor.ObjectStore {
		t.Helper()
		v, _ := newBucket(t)
		return v
	})
}

// uploaded replays a forged bucket into one of S3, version by version.
func uploaded(t *testing.T, b audit.Bucket) audit.Bucket {
	t.Helper()
	forged, ok := b.(*audittest.Bucket)
	if !ok {
		t.Fatalf("%T is not a forged bucket", b)
	}
	name, c := bucket(t), client(t)
	for _, s := range forged.Stored() {
		if s.DeleteMarker {
			if _, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &name, Key: aws.String(s.Key)}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		in := &s3.PutObjectInput{
			Bucket: &name, Key: aws.String(s.Key), Body: bytes.NewReader(s.Bytes), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		}
		if s.Lock.Mode != "" {
			in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockMode(s.Lock.Mode), aws.Time(s.Lock.Until)
		}
		if _, err := c.PutObject(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	return dated{auditbucket.New(c, name, retention, storetest.Clock()), forged.Stored()}
}

// dated is a bucket that S3 has dated as it would have when the chain was made.
type dated struct {
	audit.Bucket
	made []audittest.Stored
}

// Versions implements [audit.Bucket].
func (b dated) Versions(ctx context.Context) ([]audit.ObjectVersion, error) {
	listed, err := b.Bucket.Versions(ctx)
	nth := map[string]int{}
	for i, v := range listed {
		var same []audittest.Stored // of this key, oldest first, as they are listed
		for _, s := range b.made {
			if s.Key == v.Key && s.DeleteMarker == v.DeleteMarker {
				same = append(same, s)
			}
		}
		kind := fmt.Sprint(v.DeleteMarker, v.Key)
		listed[i].Modified = same[nth[kind]].Modified
		nth[kind]++
	}
	return listed, err
}

// TestTampering runs the tampering suite on S3.
func TestTampering(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		w := audittest.New(t)
		r, err := audit.Verify(t.Context(), uploaded(t, w.Bucket), w.Policy)
		if err != nil || r.Result != audit.Green || len(r.Unchecked) != 2 {
			t.Fatalf("%v %s %v, unchecked %q", err, r, r.Findings, r.Unchecked)
		}
	})
	for _, c := range audittest.Cases() {
		t.Run(c.Name, func(t *testing.T) { audittest.Run(t, c, uploaded) })
	}
}
