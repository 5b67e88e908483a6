// Package membucket is an S3 bucket in memory, as far as the copies of records need one:
// conditional puts, reads and listings. Nothing can be removed from it, as from a bucket with
// Object Lock.
package membucket

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// Bucket is a bucket. It is safe for concurrent use.
type Bucket struct {
	// Page is how many keys one answer to a listing has; 0 for 1,000. The first answer to a
	// listing has none, as S3 may answer.
	Page int

	mu      sync.Mutex
	objects map[string][]byte
	fail    error
}

// New returns an empty bucket.
func New() *Bucket { return &Bucket{objects: map[string][]byte{}} }

// Fail makes every call fail with err; nil ends that.
func (b *Bucket) Fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

// Plant puts an object past all conditions.
func (b *Bucket) Plant(key string, body []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects[key] = body
}

// Keys lists the keys that begin with a prefix.
func (b *Bucket) Keys(prefix string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keys(prefix)
}

func (b *Bucket) keys(prefix string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(b.objects)), func(key string) bool { return !strings.HasPrefix(key, prefix) })
}

// PutObject puts an object on condition that there is none of its key; a put without that
// condition is refused, as by the bucket's policy.
func (b *Bucket) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch _, there := b.objects[*in.Key]; {
	case b.fail != nil:
		return nil, b.fail
	case aws.ToString(in.Bucket) == "":
		return nil, &smithy.GenericAPIError{Code: "NoSuchBucket"}
	case aws.ToString(in.IfNoneMatch) != "*":
		return nil, &smithy.GenericAPIError{Code: "AccessDenied"}
	case there:
		return nil, &smithy.GenericAPIError{Code: "PreconditionFailed"}
	}
	b.objects[*in.Key] = body
	return &s3.PutObjectOutput{}, nil
}

// GetObject reads an object.
func (b *Bucket) GetObject(_ context.Context, in *s3.GetObjectInput, _ ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	body, there := b.objects[*in.Key]
	switch {
	case b.fail != nil:
		return nil, b.fail
	case aws.ToString(in.Bucket) == "":
		return nil, &smithy.GenericAPIError{Code: "NoSuchBucket"}
	case !there:
		return nil, &types.NoSuchKey{}
	}
	return &s3.GetObjectOutput{Body: io.NopCloser(bytes.NewReader(body))}, nil
}

// firstToken continues a listing after its first page, which is empty.
const firstToken = "first"

// ListObjectsV2 lists keys in order.
func (b *Bucket) ListObjectsV2(_ context.Context, in *s3.ListObjectsV2Input, _ ...func(*s3.Options)) (*s3.ListObjectsV2Output, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.fail != nil:
		return nil, b.fail
	case aws.ToString(in.Bucket) == "":
		return nil, &smithy.GenericAPIError{Code: "NoSuchBucket"}
	}
	if in.ContinuationToken == nil {
		return &s3.ListObjectsV2Output{IsTruncated: aws.Bool(true), NextContinuationToken: aws.String(firstToken)}, nil
	}
	page := 1000
	if b.Page > 0 {
		page = b.Page
	}
	if in.MaxKeys != nil {
		page = min(page, int(*in.MaxKeys))
	}
	out := &s3.ListObjectsV2Output{}
	after := aws.ToString(in.StartAfter)
	if token := *in.ContinuationToken; token != firstToken {
		after = token
	}
	for _, key := range b.keys(aws.ToString(in.Prefix)) {
		if key <= after {
			continue
		}
		if n := len(out.Contents); n == page {
			out.IsTruncated, out.NextContinuationToken = aws.Bool(true), out.Contents[n-1].Key
			break
		}
		out.Contents = append(out.Contents, types.Object{Key: aws.String(key)})
	}
	return out, nil
}
