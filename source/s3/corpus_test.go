package s3_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
	"github.com/matter-ops/kms-rotation/test/mototest"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
)

func TestMain(m *testing.M) { mototest.Main(m) }

const prefix = "corpus/known/"

var buckets atomic.Int64

func client(t *testing.T, wires ...mototest.Wire) *s3.Client {
	t.Helper()
	return s3.NewFromConfig(mototest.Config(t, wires...), func(o *s3.Options) { o.UsePathStyle = true })
}

func newBucket(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("corpus-%d", buckets.Add(1))
	if _, err := client(t).CreateBucket(t.Context(), &s3.CreateBucketInput{
		Bucket: &name, CreateBucketConfiguration: &types.CreateBucketConfiguration{LocationConstraint: mototest.Region},
	}); err != nil {
		t.Fatal(err)
	}
	return name
}

// bench is a corpus and a way past its conditions.
type bench struct {
	*s3source.Corpus
	bucket string
}

func newBench(t *testing.T, wires ...mototest.Wire) bench {
	t.Helper()
	b := newBucket(t)
	return bench{s3source.New(client(t, wires...), b, prefix), b}
}

// plant writes an object, whatever it is.
func (b bench) plant(t *testing.T, key, body string) {
	t.Helper()
	if _, err := client(t).PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &b.bucket, Key: &key, Body: strings.NewReader(body), Metadata: map[string]string{"made-by": "test"},
	}); err != nil {
		t.Fatal(err)
	}
}

func (b bench) object(t *testing.T, key string) (*s3.GetObjectOutput, []byte) {
	t.Helper()
	out, err := client(t).GetObject(t.Context(), &s3.GetObjectInput{Bucket: &b.bucket, Key: &key})
	var gone *types.NoSuchKey
	if errors.As(err, &gone) {
		return nil, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(out.Body)
	if err := errors.Join(err, out.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return out, body
}

func (b bench) remove(t *testing.T, key string) {
	t.Helper()
	if _, err := client(t).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b.bucket, Key: &key}); err != nil {
		t.Fatal(err)
	}
}

// put writes a row of the conformance suite.
func (b bench) put(t *testing.T, id string, e sourcetest.Envelope) {
	t.Helper()
	fields := map[string]any{
		"v": 1, "kek_id": e.KEK, "kek_epoch": e.Epoch, "version": e.Version, "wrapped_dek": e.WrappedDEK, "ciphertext": e.Ciphertext,
		"context": map[string]string{"table": "orders", "id": id}, "plaintext_sha256": sum,
	}
	key := prefix + id + ".json"
	if e.Class == sourcetest.Other {
		key = prefix + id + ".txt"
	}
	if e.KeyARN != "" {
		fields["kek_id"] = e.KeyARN
	}
	switch e.Defect {
	case source.NoKEK:
		delete(fields, "kek_id")
	case source.NoContext:
		delete(fields, "context")
	case source.WrongType:
		fields["wrapped_dek"] = 7
	case source.UnknownForm:
		fields["kek_id"] = "alias/orders"
	default:
	}
	body, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	if e.Defect == source.Damaged {
		body = body[:len(body)-1]
	}
	b.plant(t, key, string(body))
}

func (b bench) get(t *testing.T, id string) (sourcetest.Envelope, bool) {
	t.Helper()
	out, body := b.object(t, prefix+id+".json")
	if out == nil {
		return sourcetest.Envelope{}, false
	}
	e, err := s3source.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	if e.Context["id"] != id || e.PlaintextSHA256 != sum || out.Metadata["made-by"] != "test" {
		t.Errorf("context %v, plaintext %q, metadata %v", e.Context, e.PlaintextSHA256, out.Metadata)
	}
	row := sourcetest.Envelope{Epoch: e.Epoch, Version: e.Version, WrappedDEK: e.WrappedDEK, Ciphertext: e.Ciphertext}
	row.KEK, row.KeyARN, _ = kek.ParseKeyRef(string(e.KEK))
	return row, true
}

func TestSource(t *testing.T) {
	sourcetest.TestSource(t, func(t *testing.T) sourcetest.Harness {
		b := newBench(t)
		b.plant(t, "corpus/known-not.json", "a neighbour's object")
		return sourcetest.Harness{
			Driver: b, Put: b.put, Get: b.get, PlainSHA: sum,
			Defects: map[source.Defect]source.Defect{
				source.NoKEK: source.Damaged, source.NoContext: source.Damaged, source.WrongType: source.Damaged,
				source.Damaged: source.Damaged, source.UnknownForm: source.UnknownForm,
			},
			Delete: func(t *testing.T, id string) { b.remove(t, prefix+id+".json") },
		}
	})
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string][2]string{"s3://b/p/": {"b", "p/"}, "s3://my-bucket/a/b/": {"my-bucket", "a/b/"}} {
		bucket, prefix, err := s3source.ParseURL(in)
		if err != nil || bucket != want[0] || prefix != want[1] {
			t.Errorf("%s: %q, %q, %v", in, bucket, prefix, err)
		}
	}
	for _, in := range []string{"", "b/p/", "https://b/p/", "s3:/b/p/", "s3://", "s3:///p/", "s3://b", "s3://b/", "s3://b/p", "s3://b/p/?x", "s3://b/*/", "s3://b/a b/"} {
		bucket, prefix, err := s3source.ParseURL(in)
		if err == nil || bucket != "" || prefix != "" || !strings.Contains(err.Error(), "s3://bucket/prefix/") {
			t.Errorf("%s: %q, %q, %v", in, bucket, prefix, err)
		}
	}
}

func entry() s3source.Entry {
	return s3source.Entry{
		V: 1, KEK: "kek-0", Epoch: 1, Version: 1, WrappedDEK: []byte("dek"), Ciphertext: []byte("ct"),
		Context: map[string]string{"id": "a"}, PlaintextSHA256: sum,
	}
}

// TestPut: seeding adds and never replaces.
func TestPut(t *testing.T) {
	b := newBench(t)
	if err := b.Put(t.Context(), "a.json", entry()); err != nil {
		t.Fatal(err)
	}
	other := entry()
	other.KEK = "kek-9"
	if err := b.Put(t.Context(), "a.json", other); !errors.Is(err, s3source.ErrExists) {
		t.Errorf("again: %v, want ErrExists", err)
	}
	out, body := b.object(t, prefix+"a.json")
	got, err := s3source.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(entry(), got); d != "" || aws.ToString(out.ContentType) != "application/json" {
		t.Errorf("content type %q, entry (-want +got):\n%s", aws.ToString(out.ContentType), d)
	}
	for _, name := range []string{"", "a", "a.txt", "a/b.json", "a b.json"} {
		if err := b.Put(t.Context(), name, entry()); err == nil || errors.Is(err, s3source.ErrExists) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	bad := entry()
	bad.Context = nil
	if err := b.Put(t.Context(), "bad.json", bad); err == nil {
		t.Error("an entry without a context was put")
	}
}

// TestCheck names what is the matter with a corpus.
func TestCheck(t *testing.T) {
	const broken = `{"v":1}`
	text := func(body string, keys ...string) func(*testing.T) *s3source.Corpus {
		return func(t *testing.T) *s3source.Corpus {
			b := newBench(t)
			for _, k := range keys {
				b.plant(t, k, body)
			}
			return b.Corpus
		}
	}
	denied := func(t *testing.T) *s3source.Corpus {
		return newBench(t, func(r *http.Request, _ func(*http.Request) (*http.Response, error)) (*http.Response, error) {
			body := `<Error><Code>AccessDenied</Code><Message>no</Message></Error>`
			return &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		}).Corpus
	}
	for name, c := range map[string]struct {
		source  func(*testing.T) *s3source.Corpus
		mention string // "" if it is in order
	}{
		"empty":                 {text(good), ""},
		"a folder":              {text("", prefix), ""},
		"one good, one broken":  {func(t *testing.T) *s3source.Corpus { return mixed(t, broken) }, ""},
		"no such bucket":        {func(t *testing.T) *s3source.Corpus { return s3source.New(client(t), "no-such-bucket", prefix) }, `no bucket "no-such-bucket"`},
		"all broken":            {text(broken, prefix+"a.json", prefix+"b.json"), `field "kek_id" is missing`},
		"objects of other sort": {text(good, prefix+"a.txt", prefix+"b"), "none of the 2 objects"},
		"denied":                {denied, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.source(t).Check(t.Context())
			if c.mention == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var typed *source.Error
			if !errors.As(err, &typed) || typed.Problem != source.Misconfigured || typed.Field != "" ||
				!strings.Contains(typed.Msg, c.mention) || typed.Next == "" {
				t.Errorf("%v, want SourceMisconfigured with %q", err, c.mention)
			}
			if (name == "denied") != errors.Is(err, source.ErrDenied) {
				t.Errorf("%v", err)
			}
		})
	}
}

func mixed(t *testing.T, broken string) *s3source.Corpus {
	t.Helper()
	b := newBench(t)
	b.plant(t, prefix+"a.json", broken)
	b.plant(t, prefix+"b.json", good)
	return b.Corpus
}

func puts(r *http.Request) bool { return r.Method == http.MethodPut }

func only(t *testing.T, b bench) source.Row {
	t.Helper()
	page, err := b.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
	if err != nil || len(page.Rows) != 1 {
		t.Fatalf("%v, %v", page, err)
	}
	return page.Rows[0]
}

func rewrapped() source.Rewrapped {
	return source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}
}

// TestReplaceOnABrokenWire: a PUT that the SDK repeats after a lost answer fails its
// own condition; who reads again finds the effect made, once.
func TestReplaceOnABrokenWire(t *testing.T) {
	for _, sent := range []bool{false, true} {
		b := newBench(t, mototest.Break(puts, sent))
		b.plant(t, prefix+"a.json", good)
		row := only(t, b)
		if ok, err := b.Replace(t.Context(), row, rewrapped()); err != nil || ok == sent {
			t.Fatalf("sent %v: %v, %v", sent, ok, err)
		}
		again, ok, err := b.Reread(t.Context(), row, true)
		if err != nil || !ok || again.KEK != "kek-1" || !bytes.Equal(again.Ciphertext, row.Ciphertext) {
			t.Errorf("sent %v: %v, %v, %v: the entry must have been rewrapped", sent, again, ok, err)
		}
		_, body := b.object(t, prefix+"a.json")
		if e, err := s3source.Decode(body); err != nil || e.Version != 3 {
			t.Errorf("sent %v: version %d, %v, want 3", sent, e.Version, err)
		}
	}
}

// TestReplaceCondition: between the read and the write of a Replace somebody writes,
// deletes, or meets the PUT; nothing is lost and nothing comes back.
func TestReplaceCondition(t *testing.T) {
	other := strings.Replace(good, "Y3Q=", "b3RoZXI=", 1)
	for name, c := range map[string]struct {
		between  func(t *testing.T, b bench)
		conflict bool
		want     string // what is there afterwards
	}{
		"written":  {func(t *testing.T, b bench) { b.plant(t, prefix+"a.json", other) }, false, other},
		"deleted":  {func(t *testing.T, b bench) { b.remove(t, prefix+"a.json") }, false, ""},
		"conflict": {func(*testing.T, bench) {}, true, good},
	} {
		t.Run(name, func(t *testing.T) {
			var b bench
			b = newBench(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
				if !puts(r) {
					return next(r)
				}
				if m := r.Header.Get("If-Match"); len(m) < 3 || r.Header.Get("If-None-Match") != "" {
					t.Errorf("If-Match %q, If-None-Match %q", m, r.Header.Get("If-None-Match"))
				}
				if c.conflict {
					body := `<Error><Code>ConditionalRequestConflict</Code><Message>no</Message></Error>`
					return &http.Response{StatusCode: http.StatusConflict, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
				}
				c.between(t, b)
				return next(r)
			})
			b.plant(t, prefix+"a.json", good)
			if ok, err := b.Replace(t.Context(), only(t, b), rewrapped()); err != nil || ok {
				t.Errorf("%v, %v, want false", ok, err)
			}
			if _, body := b.object(t, prefix+"a.json"); string(body) != c.want {
				t.Errorf("the object is %q, want %q", body, c.want)
			}
		})
	}
}

// TestDefects: an object that is not an entry is reported with its key and why, and an
// archived one too; none stops the scan.
func TestDefects(t *testing.T) {
	b := newBench(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "archived.json") {
			body := `<Error><Code>InvalidObjectState</Code><Message>no</Message></Error>`
			return &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		}
		return next(r)
	})
	for name, body := range map[string]string{
		"good": good, "archived": good, "empty": "", "unknown": strings.Replace(good, `"v":1`, `"v":1,"x":1`, 1),
		"huge": good + strings.Repeat(" ", 2<<20), "text": "hello",
	} {
		b.plant(t, prefix+name+".json", body)
	}
	page, err := b.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(page.Rows) != 6 || page.Other != 0 || page.Next != "" {
		t.Fatalf("%v, %v", page, err)
	}
	for _, r := range page.Rows {
		if sound := r.ID == prefix+"good.json"; sound != (r.Defect == "") || sound && r.KEK != "k" {
			t.Errorf("%s: defect %q, KEK %q", r.ID, r.Defect, r.KEK)
		}
	}
}

// TestSegments: it has one part, and refuses to scan another.
func TestSegments(t *testing.T) {
	b := newBench(t)
	if n := b.Segments(8); n != 1 {
		t.Errorf("%d segments", n)
	}
	for _, req := range []source.ScanRequest{{Segment: 1, Total: 2}, {Segment: 0, Total: 2}, {Segment: 1, Total: 1}, {}} {
		if _, err := b.Scan(t.Context(), req); err == nil {
			t.Errorf("%+v was scanned", req)
		}
	}
}

// TestOpen: a corpus is opened from what the registry keeps of it, under its name.
func TestOpen(t *testing.T) {
	c, err := s3source.ParseConfig([]byte(`{"prefix":"known/", "bucket":"b"}`))
	if err != nil {
		t.Fatal(err)
	}
	def := c.Source()
	want := kek.Source{Name: "corpus", Kind: s3source.KindName, Definition: `{"bucket":"b","prefix":"known/"}`, Place: "s3://b/known/"}
	if d := cmp.Diff(want, def); d != "" {
		t.Error(d)
	}
	def.Name = "known"
	if driver, err := s3source.Open(nil, def); err != nil || driver.Name() != "known" {
		t.Errorf("%v, %v", driver, err)
	}
	for _, in := range []string{
		`{}`, `{"bucket":"b"}`, `{"prefix":"p/"}`, `{"bucket":"b","prefix":"p"}`, `{"bucket":"b/c","prefix":"p/"}`, `{"bucket":"b","prefix":"p/","x":1}`,
		`{"Bucket":"b","prefix":"p/"}`, `{"bucket":"b","prefix":"p*/"}`,
	} {
		if _, err := s3source.ParseConfig([]byte(in)); err == nil {
			t.Errorf("%s is a definition", in)
		}
		if _, err := s3source.Open(nil, kek.Source{Name: "known", Definition: in}); err == nil {
			t.Errorf("%s was opened", in)
		}
	}
}

// TestEmptyPage: a page without keys that is not the last does not end the scan.
func TestEmptyPage(t *testing.T) {
	empty := false
	b := newBench(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		if !r.URL.Query().Has("list-type") || r.URL.Query().Has("continuation-token") {
			return next(r)
		}
		empty = true
		q := r.URL.Query()
		q.Set("max-keys", "1") // so that moto makes a token; the answer is replaced
		r.URL.RawQuery = q.Encode()
		resp, err := next(r)
		if err != nil {
			return resp, err
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		body = contents.ReplaceAll(body, nil)
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return resp, nil
	})
	for _, name := range []string{"0", "a", "b"} {
		b.plant(t, prefix+name+".json", good)
	}
	page, err := b.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || !empty || len(page.Rows) != 2 || page.Next != "" { // the first went with the empty page
		t.Errorf("%d rows, next %q, %v", len(page.Rows), page.Next, err)
	}
}

var contents = regexp.MustCompile(`(?s)<Contents>.*</Contents>`)

// TestRehearse: what AWS denies is told, and a bucket that does not know conditions.
func TestRehearse(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		code   string
		passes bool
	}{
		"denied":     {http.StatusForbidden, "AccessDenied", false},
		"failed":     {http.StatusPreconditionFailed, "PreconditionFailed", true},
		"conflict":   {http.StatusConflict, "ConditionalRequestConflict", true},
		"gone":       {http.StatusNotFound, "NoSuchKey", true},
		"it is made": {http.StatusOK, "", false},
	} {
		b := newBench(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
			if !puts(r) {
				return next(r)
			}
			body := fmt.Sprintf("<Error><Code>%s</Code><Message>no</Message></Error>", c.code)
			return &http.Response{StatusCode: c.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		})
		b.plant(t, prefix+"a.json", good)
		err := b.Rehearse(t.Context(), only(t, b))
		if (err == nil) != c.passes || errors.Is(err, source.ErrDenied) != (name == "denied") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEncryptedBy: the entries themselves say which key encrypts them.
func TestEncryptedBy(t *testing.T) {
	const key = "arn:aws:kms:eu-central-1:123456789012:key/k"
	b := newBench(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		resp, err := next(r)
		if err == nil && strings.HasSuffix(r.URL.Path, "b.json") {
			resp.Header.Set("x-amz-server-side-encryption-aws-kms-key-id", key)
		}
		return resp, err
	})
	b.plant(t, prefix+"a.json", good)
	b.plant(t, prefix+"a.txt", "")
	if got, err := b.EncryptedBy(t.Context()); err != nil || got != "" {
		t.Errorf("%q, %v", got, err)
	}
	b.plant(t, prefix+"b.json", good)
	if got, err := b.EncryptedBy(t.Context()); err != nil || got != key {
		t.Errorf("%q, %v", got, err)
	}
	missing := s3source.New(client(t), "no-such-bucket", prefix)
	if got, err := missing.EncryptedBy(t.Context()); err == nil {
		t.Errorf("no bucket: %q", got)
	}
}
