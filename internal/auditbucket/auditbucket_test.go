package auditbucket_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/auditbucket"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/mototest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func TestMain(m *testing.M) { mototest.Main(m) }

const retention = 10 * 365 * 24 * time.Hour

var buckets atomic.Int64

func client(t *testing.T, wires ...mototest.Wire) *s3.Client {
	t.Helper()
	return s3.NewFromConfig(mototest.Config(t, wires...), func(o *s3.Options) { o.UsePathStyle = true })
}

// bucket makes an empty bucket with Object Lock.
func bucket(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("audit-%d", buckets.Add(1))
	if _, err := client(t).CreateBucket(t.Context(), &s3.CreateBucketInput{
		Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(true),
		CreateBucketConfiguration: &types.CreateBucketConfiguration{LocationConstraint: mototest.Region},
	}); err != nil {
		t.Fatal(err)
	}
	return name
}

func newBucket(t *testing.T, wires ...mototest.Wire) (*auditbucket.Bucket, string) {
	t.Helper()
	b := bucket(t)
	return auditbucket.New(client(t, wires...), b, retention, storetest.Clock()), b
}

func TestRecords(t *testing.T) {
	storetest.TestVault(t, func(t *testing.T) journal.AuditBucket {
		v, _ := newBucket(t)
		return v
	})
}

// entry is the first record of a chain.
func entry(t *testing.T, actor string) audit.Entry {
	t.Helper()
	e, err := audit.Next("c", audit.Genesis("c"), storetest.Clock()(), audit.Event{ID: "a", Type: "a", Actor: actor})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const key = "v1/c/records/000000000001.json"

func puts(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, key)
}

// plant writes a version past all conditions, without retention of its own.
func plant(t *testing.T, bucket string, body []byte, change ...func(*s3.PutObjectInput)) {
	t.Helper()
	in := &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(key), Body: bytes.NewReader(body)}
	for _, f := range change {
		f(in)
	}
	if _, err := client(t).PutObject(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond) // moto orders versions by their time
}

// mark puts a delete marker on top.
func mark(t *testing.T, bucket string) {
	t.Helper()
	if _, err := client(t).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String(key)}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
}

// versions counts what was ever written under the key.
func versions(t *testing.T, bucket string) int {
	t.Helper()
	out, err := client(t).ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &bucket, Prefix: aws.String(key)})
	if err != nil {
		t.Fatal(err)
	}
	return len(out.Versions)
}

// TestHeaders: what makes a record write-once is in the request itself.
func TestHeaders(t *testing.T) {
	got := map[string]string{}
	v, _ := newBucket(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		if puts(r) {
			for name := range r.Header {
				if n := strings.ToLower(name); strings.HasPrefix(n, "x-amz-object-lock") || strings.Contains(n, "checksum") ||
					strings.HasPrefix(n, "if-") || n == "content-type" {
					got[n] = r.Header.Get(name)
				}
			}
		}
		return next(r)
	})
	e := entry(t, "alice")
	if err := v.Put(t.Context(), key, e); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(e.Bytes)
	want := map[string]string{
		"if-none-match":                       "*",
		"content-type":                        "application/json",
		"x-amz-object-lock-mode":              "COMPLIANCE",
		"x-amz-object-lock-retain-until-date": "2036-03-29T03:00:01Z", // ten years of 365 days after the clock's first second
		"x-amz-sdk-checksum-algorithm":        "SHA256",
		"x-amz-checksum-sha256":               base64.StdEncoding.EncodeToString(sum[:]),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("headers (-want +got):\n%s", d)
	}
}

// TestBrokenWire: whatever happens to a PUT, the record is there once, and the Put
// that was told nothing is done when it is repeated.
func TestBrokenWire(t *testing.T) {
	for _, sent := range []bool{false, true} {
		v, b := newBucket(t, mototest.Break(puts, sent))
		e := entry(t, "alice")
		for range 2 {
			if err := v.Put(t.Context(), key, e); err != nil {
				t.Fatalf("sent %v: %v", sent, err)
			}
		}
		if n := versions(t, b); n != 1 {
			t.Errorf("sent %v: %d versions", sent, n)
		}
		if got, err := v.Get(t.Context(), key); err != nil || !bytes.Equal(got, e.Bytes) {
			t.Errorf("sent %v: %q, %v", sent, got, err)
		}
	}
}

// TestConflict: a PUT that met another one is repeated, but not forever.
func TestConflict(t *testing.T) {
	for _, c := range []struct {
		conflicts int64
		done      bool
	}{{3, true}, {1 << 30, false}} {
		var n atomic.Int64
		v, b := newBucket(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
			if !puts(r) || n.Add(1) > c.conflicts {
				return next(r)
			}
			body := `<Error><Code>ConditionalRequestConflict</Code><Message>no</Message></Error>`
			return &http.Response{StatusCode: http.StatusConflict, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		})
		err := v.Put(t.Context(), key, entry(t, "alice"))
		if (err == nil) != c.done || errors.Is(err, audit.ErrTaken) {
			t.Errorf("%d conflicts: %v", c.conflicts, err)
		}
		if want := map[bool]int{true: 1, false: 0}[c.done]; versions(t, b) != want {
			t.Errorf("%d conflicts: %d versions", c.conflicts, versions(t, b))
		}
		if !c.done && n.Load() > 10 {
			t.Errorf("it was tried %d times", n.Load())
		}
	}
}

// TestOldest: what lies on top of a record, a delete marker or another version, does
// not change what the record is.
func TestOldest(t *testing.T) {
	ours, others := entry(t, "alice"), entry(t, "mallory")
	for name, c := range map[string]struct {
		before func(t *testing.T, bucket string)
		put    error // of ours
		get    []byte
	}{
		"nothing":                       {func(*testing.T, string) {}, nil, ours.Bytes},
		"a delete marker alone":         {mark, nil, ours.Bytes},
		"others":                        {func(t *testing.T, b string) { plant(t, b, others.Bytes) }, audit.ErrTaken, others.Bytes},
		"others under a delete marker":  {func(t *testing.T, b string) { plant(t, b, others.Bytes); mark(t, b) }, audit.ErrTaken, others.Bytes},
		"ours under others":             {func(t *testing.T, b string) { plantLocked(t, b, ours.Bytes); plant(t, b, others.Bytes) }, nil, ours.Bytes},
		"ours under a delete marker":    {func(t *testing.T, b string) { plantLocked(t, b, ours.Bytes); mark(t, b) }, nil, ours.Bytes},
		"others under ours":             {func(t *testing.T, b string) { plant(t, b, others.Bytes); plantLocked(t, b, ours.Bytes) }, audit.ErrTaken, others.Bytes},
		"something else, very long":     {func(t *testing.T, b string) { plant(t, b, make([]byte, 2<<20)) }, audit.ErrTaken, make([]byte, 1<<20+1)},
		"a longer key with another end": {func(t *testing.T, b string) { plantKey(t, b, key+"x") }, nil, ours.Bytes},
	} {
		t.Run(name, func(t *testing.T) {
			v, b := newBucket(t)
			c.before(t, b)
			for range 2 {
				if err := v.Put(t.Context(), key, ours); !errors.Is(err, c.put) {
					t.Fatalf("Put: %v, want %v", err, c.put)
				}
			}
			got, err := v.Get(t.Context(), key)
			if err != nil || !bytes.Equal(got, c.get) {
				t.Errorf("Get: %.200q, %v", got, err)
			}
		})
	}
}

func plantLocked(t *testing.T, bucket string, body []byte) {
	t.Helper()
	plant(t, bucket, body, lockedUntil(types.ObjectLockModeCompliance, retention))
}

func plantKey(t *testing.T, bucket, name string) {
	t.Helper()
	plant(t, bucket, []byte("x"), func(in *s3.PutObjectInput) { in.Key = &name })
}

func lockedUntil(mode types.ObjectLockMode, after time.Duration) func(*s3.PutObjectInput) {
	return func(in *s3.PutObjectInput) {
		in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = mode, aws.Time(storetest.Clock()().Add(after).Truncate(time.Second))
	}
}

// TestManyVersions: the oldest version is found behind pages of others.
func TestManyVersions(t *testing.T) {
	v, b := newBucket(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		if q := r.URL.Query(); q.Has("versions") { // pages of two
			q.Set("max-keys", "2")
			r.URL.RawQuery = q.Encode()
		}
		return next(r)
	})
	e := entry(t, "alice")
	if err := v.Put(t.Context(), key, e); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
	for i := range 6 {
		plant(t, b, []byte{byte(i)})
	}
	if got, err := v.Get(t.Context(), key); err != nil || !bytes.Equal(got, e.Bytes) {
		t.Errorf("%q, %v", got, err)
	}
	if err := v.Put(t.Context(), key, e); err != nil {
		t.Error(err)
	}
}

// TestRetention: a record that is there already counts only if it is locked for as
// long as it should be.
func TestRetention(t *testing.T) {
	e := entry(t, "alice")
	for name, c := range map[string]struct {
		lock func(*s3.PutObjectInput)
		ok   bool
	}{
		"none":            {func(*s3.PutObjectInput) {}, false},
		"governance":      {lockedUntil(types.ObjectLockModeGovernance, retention), false},
		"a year less":     {lockedUntil(types.ObjectLockModeCompliance, retention-365*24*time.Hour), false},
		"two days less":   {lockedUntil(types.ObjectLockModeCompliance, retention-48*time.Hour), false},
		"an hour less":    {lockedUntil(types.ObjectLockModeCompliance, retention-time.Hour), true},
		"as it should be": {lockedUntil(types.ObjectLockModeCompliance, retention), true},
		"longer":          {lockedUntil(types.ObjectLockModeCompliance, 2*retention), true},
	} {
		v, b := newBucket(t)
		plant(t, b, e.Bytes, c.lock)
		err := v.Put(t.Context(), key, e)
		if c.ok {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var typed *journal.Error
		if !errors.As(err, &typed) || typed.Kind != journal.AuditUnlocked || typed.Field != key || !strings.Contains(typed.Next.Say, "put-object-retention") {
			t.Errorf("%s: %v, want AuditUnlocked", name, err)
		}
	}
}

// TestCheck names what a bucket lacks and what to do about it.
func TestCheck(t *testing.T) {
	c := client(t)
	plain := func(t *testing.T) string {
		name := fmt.Sprintf("plain-%d", buckets.Add(1))
		if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{
			Bucket: &name, CreateBucketConfiguration: &types.CreateBucketConfiguration{LocationConstraint: mototest.Region},
		}); err != nil {
			t.Fatal(err)
		}
		return name
	}
	versioning := func(t *testing.T, name string, status types.BucketVersioningStatus) string {
		if _, err := c.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
			Bucket: &name, VersioningConfiguration: &types.VersioningConfiguration{Status: status},
		}); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for bucket, mention := range map[string]string{
		"no-such-bucket": "does not exist",
		plain(t):         "no versioning",
		versioning(t, plain(t), types.BucketVersioningStatusSuspended): "no versioning",
		versioning(t, plain(t), types.BucketVersioningStatusEnabled):   "no Object Lock",
	} {
		err := auditbucket.New(c, bucket, retention, storetest.Clock()).Check(t.Context())
		var typed *journal.Error
		if !errors.As(err, &typed) || typed.Kind != journal.AuditUnlocked || typed.Field != "MATTER_AUDIT_BUCKET" ||
			!strings.Contains(typed.Msg, mention) || !strings.Contains(typed.Msg, bucket) || typed.Next.IsZero() {
			t.Errorf("%s: %v, want AuditUnlocked with %q", bucket, err, mention)
		}
	}
}

// TestDenied: a missing permission is told from a bucket that is not in order.
func TestDenied(t *testing.T) {
	b := bucket(t)
	v := auditbucket.New(client(t, func(r *http.Request, _ func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		body := `<Error><Code>AccessDenied</Code><Message>no</Message></Error>`
		return &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}), b, retention, storetest.Clock())
	_, get := v.Get(t.Context(), key)
	for op, err := range map[string]error{"Put": v.Put(t.Context(), key, entry(t, "alice")), "Get": get, "Check": v.Check(t.Context())} {
		if !errors.Is(err, journal.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", op, err)
		}
	}
}
