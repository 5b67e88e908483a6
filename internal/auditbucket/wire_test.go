package auditbucket_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/auditbucket"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// answer is what a scripted S3 says.
type answer struct {
	status int
	body   string
	header map[string]string
	read   error // of the body, after it
	close  error // of the body
}

func refuse(status int, code string) answer {
	return answer{status: status, body: "<Error><Code>" + code + "</Code><Message>no</Message></Error>"}
}

// body is that of an answer.
type body struct {
	io.Reader
	err error
}

// Close implements [io.Closer].
func (b body) Close() error { return b.err }

// script is an S3 that answers each kind of request in one way, and counts them.
type script struct {
	answers map[string]func(n int, r *http.Request) answer
	count   map[string]int
}

// kind is the operation of a request.
func kind(r *http.Request) string {
	for _, q := range []string{"versions", "versioning", "object-lock"} {
		if r.URL.Query().Has(q) {
			return q
		}
	}
	return r.Method
}

// Do implements [s3.HTTPClient].
func (s *script) Do(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	k := kind(r)
	f, ok := s.answers[k]
	if !ok {
		return nil, fmt.Errorf("no answer to %s %s", k, r.URL)
	}
	s.count[k]++
	a := f(s.count[k], r)
	if a.status == 0 {
		a.status = http.StatusOK
	}
	resp := &http.Response{StatusCode: a.status, Header: http.Header{}, ContentLength: -1, Request: r}
	for k, v := range a.header {
		resp.Header.Set(k, v)
	}
	read := io.Reader(strings.NewReader(a.body))
	if a.read != nil {
		read = io.MultiReader(read, iotest.ErrReader(a.read))
	}
	resp.Body = body{read, a.close}
	return resp, nil
}

func always(a answer) func(int, *http.Request) answer {
	return func(int, *http.Request) answer { return a }
}

// scripted is an audit bucket that answers from a script, reached as on AWS, over TLS.
func scripted(answers map[string]func(n int, r *http.Request) answer) (*auditbucket.Bucket, *script) {
	s := &script{answers: answers, count: map[string]int{}}
	c := s3.New(s3.Options{
		Region: "eu-central-1", Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""), HTTPClient: s, Retryer: aws.NopRetryer{},
	})
	return auditbucket.New(c, "bucket", retention, storetest.Clock()), s
}

// listed is a listing of one key with these versions, the newest first.
func listed(key string, versions ...string) answer {
	var b strings.Builder
	for _, v := range versions {
		fmt.Fprintf(&b, "<Version><Key>%s</Key><VersionId>%s</VersionId></Version>", key, v)
	}
	return answer{body: "<ListVersionsResult>" + b.String() + "</ListVersionsResult>"}
}

// writers put a record, or an anchor of the same bytes.
var writers = map[string]struct {
	key string
	put func(ctx context.Context, v *auditbucket.Bucket, e audit.Entry) error
}{
	"record": {key, func(ctx context.Context, v *auditbucket.Bucket, e audit.Entry) error { return v.Put(ctx, key, e) }},
	"anchor": {audit.AnchorKey("c", 1), func(ctx context.Context, v *auditbucket.Bucket, e audit.Entry) error {
		b, err := v.PutAnchor(ctx, audit.AnchorKey("c", 1), e.Bytes)
		if (err == nil) != (string(b) == string(e.Bytes)) {
			return fmt.Errorf("it returns %q, %w", b, err)
		}
		return err
	}},
}

// stored answers reads with the bytes of e, under its lock.
func stored(e audit.Entry) func(int, *http.Request) answer {
	return always(answer{body: string(e.Bytes), header: map[string]string{
		"X-Amz-Object-Lock-Mode": "COMPLIANCE", "X-Amz-Object-Lock-Retain-Until-Date": "2100-01-01T00:00:00Z",
	}})
}

// TestRepeated: a PUT that meets another is tried eight times, and then the error
// names what S3 said.
func TestRepeated(t *testing.T) {
	e := entry(t, "alice")
	for name, w := range writers {
		for _, code := range []string{"ConditionalRequestConflict", "OperationAborted"} {
			for _, conflicts := range []int{0, 1, 7, 8} {
				synctest.Test(t, func(t *testing.T) {
					v, s := scripted(map[string]func(int, *http.Request) answer{
						"PUT": func(n int, _ *http.Request) answer {
							if n <= conflicts {
								return refuse(http.StatusConflict, code)
							}
							return answer{header: map[string]string{"X-Amz-Version-Id": "made"}}
						},
						"versions": always(listed(w.key, "made")), "GET": stored(e),
					})
					err := w.put(t.Context(), v, e)
					if s.count["PUT"] != min(conflicts+1, 8) {
						t.Errorf("%s, %d times %s: tried %d times", name, conflicts, code, s.count["PUT"])
					}
					if conflicts < 8 {
						if err != nil {
							t.Errorf("%s, %d times %s: %v", name, conflicts, code, err)
						}
					} else if remote.ErrorCode(err) != code || !strings.Contains(err.Error(), "gave up after 8 tries") {
						t.Errorf("%s: %v, want %s after 8 tries", name, err, code)
					}
				})
			}
		}
	}
}

// TestTimeIsUp: a caller without time for another try is told why the try was needed.
func TestTimeIsUp(t *testing.T) {
	for name, w := range writers {
		synctest.Test(t, func(t *testing.T) {
			v, s := scripted(map[string]func(int, *http.Request) answer{"PUT": always(refuse(http.StatusConflict, "OperationAborted"))})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond) // less than the first pause
			defer cancel()
			err := w.put(ctx, v, entry(t, "alice"))
			if !errors.Is(err, context.DeadlineExceeded) || remote.ErrorCode(err) != "OperationAborted" || s.count["PUT"] != 1 {
				t.Errorf("%s: after %d tries: %v", name, s.count["PUT"], err)
			}
		})
	}
}

// TestRefused: a PUT that S3 refuses is not done, whatever lies in the bucket.
func TestRefused(t *testing.T) {
	e := entry(t, "alice")
	for name, w := range writers {
		v, _ := scripted(map[string]func(int, *http.Request) answer{
			"PUT": always(refuse(http.StatusForbidden, "AccessDenied")), "versions": always(listed(w.key, "v")), "GET": stored(e),
		})
		if err := w.put(t.Context(), v, e); !errors.Is(err, journal.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", name, err)
		}
	}
}

// TestUnsettled: what cannot be listed or read after a PUT is neither done nor
// tampered with.
func TestUnsettled(t *testing.T) {
	e := entry(t, "alice")
	denied := always(refuse(http.StatusForbidden, "AccessDenied"))
	exists := always(refuse(http.StatusPreconditionFailed, "PreconditionFailed"))
	for name, c := range map[string]struct {
		answers map[string]func(int, *http.Request) answer
		denied  bool
		want    string
	}{
		"not listed":  {map[string]func(int, *http.Request) answer{"PUT": exists, "versions": denied}, true, "ListObjectVersions"},
		"not read":    {map[string]func(int, *http.Request) answer{"PUT": exists, "versions": always(listed(key, "v")), "GET": denied}, true, "GetObject"},
		"not there":   {map[string]func(int, *http.Request) answer{"PUT": exists, "versions": always(listed(key))}, false, "a version that is not listed"},
		"another key": {map[string]func(int, *http.Request) answer{"PUT": exists, "versions": always(listed(key+"x", "v"))}, false, "a version that is not listed"},
	} {
		v, _ := scripted(c.answers)
		err := v.Put(t.Context(), key, e)
		if err == nil || errors.Is(err, journal.ErrDenied) != c.denied || errors.Is(err, audit.ErrTaken) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	v, _ := scripted(map[string]func(int, *http.Request) answer{"PUT": exists, "versions": denied})
	if b, err := v.PutAnchor(t.Context(), audit.AnchorKey("c", 1), e.Bytes); !errors.Is(err, journal.ErrDenied) || b != nil {
		t.Errorf("an anchor that is not listed: %q, %v", b, err)
	}
}

// TestMadeIsNotRead: a PUT that made the oldest version is done without reading it,
// and the listing is of this key only.
func TestMadeIsNotRead(t *testing.T) {
	var put, list *http.Request
	v, s := scripted(map[string]func(int, *http.Request) answer{
		"PUT": func(_ int, r *http.Request) answer {
			put = r
			return answer{header: map[string]string{"X-Amz-Version-Id": "made"}}
		},
		"versions": func(_ int, r *http.Request) answer {
			list = r
			return listed(key, "later", "made")
		},
		"GET": always(refuse(http.StatusForbidden, "AccessDenied")),
	})
	e := entry(t, "alice")
	if err := v.Put(t.Context(), key, e); err != nil || s.count["GET"] != 0 || s.count["versions"] != 1 {
		t.Fatalf("%v, %v", err, s.count)
	}
	if got := list.URL.Query().Get("prefix"); got != key {
		t.Errorf("listed are keys that begin with %q", got)
	}
	sum := sha256.Sum256(e.Bytes) // over TLS the SDK would send it after the body, if it were not given
	if got := put.Header.Get("X-Amz-Checksum-Sha256"); got != base64.StdEncoding.EncodeToString(sum[:]) || put.Header.Get("X-Amz-Trailer") != "" {
		t.Errorf("checksum %q, trailer %q", got, put.Header.Get("X-Amz-Trailer"))
	}
}

// TestRecordLength: of an object with more than a mebibyte, which no record has, the
// beginning is read, with one byte more than a record may have.
func TestRecordLength(t *testing.T) {
	for n, want := range map[int]int{0: 0, 1 << 20: 1 << 20, 1<<20 + 1: 1<<20 + 1, 1<<20 + 2: 1<<20 + 1} {
		v, _ := scripted(map[string]func(int, *http.Request) answer{
			"versions": always(listed(key, "v")), "GET": always(answer{body: strings.Repeat("r", n)}),
		})
		b, err := v.Get(t.Context(), key)
		if err != nil || len(b) != want {
			t.Errorf("%d bytes: %d, %v", n, len(b), err)
		}
	}
}

// TestBrokenBody: a body that breaks off is not the record, even if what came of it
// looks like one.
func TestBrokenBody(t *testing.T) {
	broken := errors.New("connection reset")
	for name, a := range map[string]answer{"read": {body: "record", read: broken}, "close": {body: "record", close: broken}} {
		var asked *http.Request
		v, _ := scripted(map[string]func(int, *http.Request) answer{
			"versions": always(listed(key, "v")),
			"GET": func(_ int, r *http.Request) answer {
				asked = r
				return a
			},
		})
		if b, err := v.Get(t.Context(), key); !errors.Is(err, broken) || !strings.Contains(err.Error(), "s3 GetObject "+key) || b != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if asked.Header.Get("X-Amz-Checksum-Mode") != "ENABLED" || asked.URL.Query().Get("versionId") != "v" {
			t.Errorf("%s: the checksum is not asked for, or another version: %s %v", name, asked.URL, asked.Header)
		}
	}
}

// TestVersions: every page is listed, versions of a key and its delete markers the
// oldest first, keys in order.
func TestVersions(t *testing.T) {
	version := func(kind, key, id, second string) string {
		return fmt.Sprintf("<%s><Key>%s</Key><VersionId>%s</VersionId><LastModified>2026-04-01T00:00:%sZ</LastModified></%s>", kind, key, id, second, kind)
	}
	pages := []string{
		"<IsTruncated>true</IsTruncated><NextKeyMarker>b</NextKeyMarker><NextVersionIdMarker>b3</NextVersionIdMarker>" +
			version("Version", "a", "a1", "01") + version("Version", "b", "b3", "05"),
		version("Version", "b", "b1", "02") + version("Version", "c", "c1", "04") +
			version("DeleteMarker", "c", "c3", "07") + version("DeleteMarker", "c", "c2", "06"),
	}
	v, _ := scripted(map[string]func(int, *http.Request) answer{"versions": func(n int, _ *http.Request) answer {
		return answer{body: "<ListVersionsResult>" + pages[n-1] + "</ListVersionsResult>"}
	}})
	got, err := v.Versions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := func(second int) time.Time { return time.Date(2026, 4, 1, 0, 0, second, 0, time.UTC) }
	want := []audit.ObjectVersion{
		{Key: "a", ID: "a1", Modified: at(1)},
		{Key: "b", ID: "b1", Modified: at(2)},
		{Key: "b", ID: "b3", Modified: at(5)},
		{Key: "c", ID: "c2", Modified: at(6), DeleteMarker: true},
		{Key: "c", ID: "c3", Modified: at(7), DeleteMarker: true},
		{Key: "c", ID: "c1", Modified: at(4)},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("versions (-want +got):\n%s", d)
	}
	v, _ = scripted(map[string]func(int, *http.Request) answer{"versions": always(refuse(http.StatusForbidden, "AccessDenied"))})
	if got, err := v.Versions(t.Context()); !errors.Is(err, journal.ErrDenied) || got != nil {
		t.Errorf("denied: %v, %v", got, err)
	}
}

// TestRead: what is gone is told from what cannot be read.
func TestRead(t *testing.T) {
	for code, gone := range map[string]bool{"NoSuchKey": true, "NoSuchVersion": true, "AccessDenied": false, "SlowDown": false} {
		v, _ := scripted(map[string]func(int, *http.Request) answer{"GET": always(refuse(http.StatusNotFound, code))})
		o, err := v.Read(t.Context(), audit.ObjectVersion{Key: key, ID: "v"})
		if errors.Is(err, fs.ErrNotExist) != gone || remote.ErrorCode(err) != code || o.Bytes != nil || o.Lock != nil {
			t.Errorf("%s: %+v, %v", code, o, err)
		}
	}
}

// TestCheckAnswers: what the bucket's settings say, or do not say.
func TestCheckAnswers(t *testing.T) {
	enabled := always(answer{body: "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"})
	for name, c := range map[string]struct {
		lock     answer
		kind     journal.Kind
		denied   bool
		code     string
		mentions string
	}{
		"enabled":      {lock: answer{body: "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"}},
		"not enabled":  {lock: answer{body: "<ObjectLockConfiguration></ObjectLockConfiguration>"}, kind: journal.AuditUnlocked, mentions: "has no Object Lock"},
		"an empty one": {lock: answer{}, kind: journal.AuditUnlocked, mentions: "has no Object Lock"},
		"none": {
			lock: refuse(http.StatusNotFound, "ObjectLockConfigurationNotFoundError"), kind: journal.AuditUnlocked, mentions: "has no Object Lock",
		},
		"denied":         {lock: refuse(http.StatusForbidden, "AccessDenied"), denied: true, code: "AccessDenied", mentions: "GetObjectLockConfiguration"},
		"gone meanwhile": {lock: refuse(http.StatusNotFound, "NoSuchBucket"), kind: journal.AuditUnlocked, code: "NoSuchBucket", mentions: "does not exist"},
	} {
		v, _ := scripted(map[string]func(int, *http.Request) answer{"versioning": enabled, "object-lock": always(c.lock)})
		err := v.Check(t.Context())
		var typed *journal.Error
		if errors.As(err, &typed) != (c.kind != "") || typed != nil && typed.Kind != c.kind || errors.Is(err, journal.ErrDenied) != c.denied ||
			remote.ErrorCode(err) != c.code || (err == nil) != (c.mentions == "") || err != nil && !strings.Contains(err.Error(), c.mentions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnlockedSaysWhy: the message names the lock that a record has.
func TestUnlockedSaysWhy(t *testing.T) {
	e := entry(t, "alice")
	untimed := e
	untimed.Record.Time = "yesterday"
	for name, c := range map[string]struct {
		entry  audit.Entry
		header map[string]string
		want   string
	}{
		"none": {e, nil, "version v of this record is not locked, or s3:GetObjectRetention is missing"},
		"governance": {
			e,
			map[string]string{"X-Amz-Object-Lock-Mode": "GOVERNANCE", "X-Amz-Object-Lock-Retain-Until-Date": "2100-01-01T00:00:00Z"},
			"version v of this record is locked in mode GOVERNANCE until 2100-01-01T00:00:00Z only",
		},
		"a record without a time": {untimed, nil, "time of record 1"},
	} {
		v, _ := scripted(map[string]func(int, *http.Request) answer{
			"PUT": always(refuse(http.StatusPreconditionFailed, "PreconditionFailed")), "versions": always(listed(key, "v")),
			"GET": always(answer{body: string(e.Bytes), header: c.header}),
		})
		if err := v.Put(t.Context(), key, c.entry); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}
