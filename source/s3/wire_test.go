package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
)

// double is a bucket in memory that fails where it is told to: what S3 says is the
// same whichever server says it.
type double struct {
	mu      sync.Mutex
	objects map[string]string
	fail    map[string]error // by operation and key, such as "get a.json"; the prefix for a list
	gone    map[string]bool  // listed, and deleted before they are read
	body    io.ReadCloser    // instead of an object's
	lists   []s3.ListObjectsV2Input
	gets    []string
	puts    []s3.PutObjectInput
}

func (d *double) ListObjectsV2(_ context.Context, in *s3.ListObjectsV2Input, _ ...func(*s3.Options)) (*s3.ListObjectsV2Output, error) {
	d.lists = append(d.lists, *in)
	if err := d.fail["list"]; err != nil {
		return nil, err
	}
	out := &s3.ListObjectsV2Output{IsTruncated: aws.Bool(false)}
	for _, key := range slices.Sorted(maps.Keys(d.objects)) {
		if !strings.HasPrefix(key, *in.Prefix) || key <= aws.ToString(in.StartAfter) {
			continue
		}
		if len(out.Contents) == int(*in.MaxKeys) {
			out.IsTruncated = aws.Bool(true)
			break
		}
		out.Contents = append(out.Contents, types.Object{Key: &key})
	}
	return out, nil
}

func (d *double) GetObject(_ context.Context, in *s3.GetObjectInput, _ ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gets = append(d.gets, *in.Key)
	text, ok := d.objects[*in.Key]
	switch err := d.fail["get "+*in.Key]; {
	case err != nil:
		return nil, err
	case !ok || d.gone[*in.Key]:
		return nil, refused(http.StatusNotFound, "NoSuchKey")
	}
	body := d.body
	if body == nil {
		body = io.NopCloser(strings.NewReader(text))
	}
	return &s3.GetObjectOutput{Body: body, ETag: aws.String(`"etag"`), Metadata: map[string]string{"made-by": "test"}}, nil
}

func (d *double) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	d.puts = append(d.puts, *in)
	return &s3.PutObjectOutput{}, d.fail["put "+*in.Key]
}

func refused(status int, code string) error {
	return &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status}}, Err: &smithy.GenericAPIError{Code: code},
	}
}

var (
	errWire = errors.New("the wire is cut")
	denied  = refused(http.StatusForbidden, "AccessDenied")
)

// doubled is a corpus of good entries in memory.
func doubled(names ...string) (*double, *s3source.Corpus) {
	d := &double{objects: map[string]string{}, fail: map[string]error{}, gone: map[string]bool{}}
	for _, n := range names {
		d.objects[prefix+n] = good
	}
	return d, s3source.New(d, "b", prefix)
}

// TestFailures: what S3 does not answer is an error of every call that asks, which
// names the operation and the object, and no answer.
func TestFailures(t *testing.T) {
	row := func(t *testing.T) source.Row {
		t.Helper()
		_, s := doubled("a.json")
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
		if err != nil || len(page.Rows) != 1 {
			t.Fatal(page, err)
		}
		return page.Rows[0]
	}(t)
	for call, c := range map[string]struct {
		asks []string // the operations that it cannot do without
		do   func(s *s3source.Corpus) (answer, none any, err error)
	}{
		"Scan": {[]string{"list", "get"}, func(s *s3source.Corpus) (any, any, error) {
			p, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
			return len(p.Rows), 0, err
		}},
		"Check": {[]string{"list", "get"}, func(s *s3source.Corpus) (any, any, error) {
			notes, err := s.Check(t.Context())
			return len(notes), 0, err
		}},
		"EncryptedBy": {[]string{"list", "get"}, func(s *s3source.Corpus) (any, any, error) {
			key, err := s.EncryptedBy(t.Context())
			return key, "", err
		}},
		"Reread": {[]string{"get"}, func(s *s3source.Corpus) (any, any, error) {
			r, ok, err := s.Reread(t.Context(), row, true)
			return []any{r.ID, ok}, []any{"", false}, err
		}},
		"Rehearse": {[]string{"get", "put"}, func(s *s3source.Corpus) (any, any, error) { return nil, nil, s.Rehearse(t.Context(), row) }},
		"Replace": {[]string{"get", "put"}, func(s *s3source.Corpus) (any, any, error) {
			ok, err := s.Replace(t.Context(), row, rewrapped())
			return ok, false, err
		}},
		"Put": {[]string{"put"}, func(s *s3source.Corpus) (any, any, error) { return nil, nil, s.Put(t.Context(), "a.json", entry()) }},
	} {
		for _, op := range c.asks {
			for _, cause := range []error{errWire, denied, refused(http.StatusServiceUnavailable, "SlowDown")} {
				d, s := doubled("a.json")
				where, named := op, "s3 ListObjectsV2 b/"+prefix
				if op != "list" {
					where = op + " " + prefix + "a.json"
					named = map[string]string{"get": "s3 GetObject ", "put": "s3 PutObject "}[op] + prefix + "a.json"
				}
				d.fail[where] = cause
				got, none, err := c.do(s)
				if !errors.Is(err, cause) || errors.Is(err, source.ErrDenied) != errors.Is(err, denied) || !strings.Contains(err.Error(), named) {
					t.Errorf("%s, %s fails: %v, want %q", call, op, err, named)
				}
				if d := cmp.Diff(none, got); d != "" {
					t.Errorf("%s, %s fails: the answer is %v", call, op, got)
				}
				kind, refused := (&source.Error{}), errors.Is(cause, denied)
				if call == "Check" && errors.As(err, &kind) != refused {
					t.Errorf("Check, %s fails: %v", op, err)
				}
			}
		}
	}
}

// broken is a body that breaks off, or fails when it is closed.
type broken struct {
	io.Reader
	close error
}

func (b broken) Close() error { return b.close }

type cut struct{}

func (cut) Read([]byte) (int, error) { return 0, errWire }

// TestBodyBreaksOff: what has arrived of an object is not taken for all of it, nor
// its entry for a bad one.
func TestBodyBreaksOff(t *testing.T) {
	_, sound := doubled("a.json")
	page, err := sound.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(page.Rows) != 1 {
		t.Fatal(page, err)
	}
	row := page.Rows[0]
	for name, body := range map[string]func() io.ReadCloser{
		"read":  func() io.ReadCloser { return broken{io.MultiReader(strings.NewReader(good), cut{}), nil} },
		"close": func() io.ReadCloser { return broken{strings.NewReader(good), errWire} },
	} {
		d, s := doubled("a.json")
		d.body = body()
		if r, ok, err := s.Reread(t.Context(), row, true); !errors.Is(err, errWire) || ok || r.ID != "" {
			t.Errorf("%s: %v, %t, %v", name, r, ok, err)
		}
		d.body = body()
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
		if !errors.Is(err, errWire) || !strings.Contains(err.Error(), "s3 GetObject "+prefix+"a.json") || len(page.Rows) != 0 {
			t.Errorf("%s: %v, %v", name, page, err)
		}
	}
}

// TestLargeObject: an entry has up to a megabyte.
func TestLargeObject(t *testing.T) {
	for size, defect := range map[int]string{1 << 20: "", 1<<20 + 1: "the object has more than 1048576 bytes"} {
		d, s := doubled()
		d.objects[prefix+"a.json"] = good + strings.Repeat(" ", size-len(good))
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
		if err != nil || len(page.Rows) != 1 {
			t.Fatal(page, err)
		}
		r := page.Rows[0]
		if r.Defect != defect || (r.Kind == source.Damaged) != (defect != "") || (r.KEK == "k") != (defect == "") {
			t.Errorf("%d bytes: %+v", size, r)
		}
	}
}

// TestArchived: an object that S3 does not give out is a row that says why.
func TestArchived(t *testing.T) {
	d, s := doubled("a.json")
	d.fail["get "+prefix+"a.json"] = refused(http.StatusForbidden, "InvalidObjectState")
	page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(page.Rows) != 1 || page.Rows[0].ID != prefix+"a.json" || page.Rows[0].Kind != source.Damaged ||
		page.Rows[0].Defect != "the object is archived and cannot be read" {
		t.Errorf("%v, %v", page, err)
	}
}

// TestRow: a row has what its entry has, and its payload only when it is asked for.
func TestRow(t *testing.T) {
	for _, payload := range []bool{false, true} {
		d, s := doubled("a.json")
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: payload})
		if err != nil || len(page.Rows) != 1 {
			t.Fatal(page, err)
		}
		encctx := map[string]string{"id": "a"}
		want := source.Row{
			ID: prefix + "a.json", KEK: "k", Epoch: 1, WrappedDEK: []byte("dek"), Context: encctx, Bound: encctx, PlainSHA: sum,
		}
		if payload {
			want.Ciphertext = []byte("ct")
		}
		got := page.Rows[0]
		again, ok, err := s.Reread(t.Context(), got, payload)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		for _, r := range []source.Row{got, again} {
			r.Handle = nil
			if d := cmp.Diff(want, r); d != "" {
				t.Errorf("payload %t (-want +got):\n%s", payload, d)
			}
		}
		d.gone[prefix+"a.json"] = true
		if r, ok, err := s.Reread(t.Context(), got, payload); err != nil || ok || r.ID != "" {
			t.Errorf("deleted: %v, %t, %v", r, ok, err)
		}
	}
}

// TestKEKNames: what names the KEK is a key id or a key ARN, and the row has both
// where it has.
func TestKEKNames(t *testing.T) {
	const arn = "arn:aws:kms:eu-central-1:123456789012:key/k"
	for name, want := range map[string]source.Row{
		"k":       {KEK: "k"},
		arn:       {KEK: "k", KeyARN: arn},
		"alias/k": {Kind: source.UnknownForm, Defect: `field "kek_id" is "alias/k", which is neither a key id nor a key ARN`},
	} {
		d, s := doubled()
		d.objects[prefix+"a.json"] = strings.Replace(good, `"k"`, `"`+name+`"`, 1)
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
		if err != nil || len(page.Rows) != 1 {
			t.Fatal(page, err)
		}
		r := page.Rows[0]
		if d := cmp.Diff(want, source.Row{KEK: r.KEK, KeyARN: r.KeyARN, Kind: r.Kind, Defect: r.Defect}); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestPages: a page has as many objects as are asked for, a hundred without a wish and
// a thousand at most, and says where the next begins, whatever its objects are.
func TestPages(t *testing.T) {
	names := []string{"other", "other.txt"}
	for i := range 1100 {
		names = append(names, fmt.Sprintf("%04d.json", i))
	}
	d, s := doubled(names...)
	for limit, want := range map[int]int{-1: 100, 0: 100, 1: 1, 2: 2, 1000: 1000, 1001: 1000} {
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Limit: limit})
		if err != nil || len(page.Rows) != want || page.Next == "" {
			t.Errorf("limit %d: %d rows, next %q, %v", limit, len(page.Rows), page.Next, err)
		}
	}
	if d.lists[0].StartAfter != nil {
		t.Error("the first page begins after something")
	}
	seen, others, cursor := map[string]bool{}, 0, ""
	for pages := 0; ; pages++ {
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Limit: 7, Cursor: cursor})
		if err != nil || pages > 200 {
			t.Fatal(pages, err)
		}
		if n := len(page.Rows) + page.Other; n != 7 && page.Next != "" {
			t.Errorf("a page of %d", n)
		}
		for _, r := range page.Rows {
			if seen[r.ID] {
				t.Errorf("%s comes twice", r.ID)
			}
			seen[r.ID] = true
		}
		others += page.Other
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	if len(seen) != 1100 || others != 2 {
		t.Errorf("%d rows and %d others", len(seen), others)
	}
	for _, in := range d.lists {
		if *in.Bucket != "b" || *in.Prefix != prefix {
			t.Fatalf("s3://%s/%s was listed", *in.Bucket, *in.Prefix)
		}
	}
}

// TestCursors: a cursor that is none of this corpus is refused, before anything is
// read.
func TestCursors(t *testing.T) {
	for cursor, ok := range map[string]bool{
		"": true, "after:" + prefix: true, "after:" + prefix + "a.json": true,
		"after:": false, "after:another/a.json": false, prefix + "a.json": false, "x": false,
	} {
		d, s := doubled("a.json", "b.json")
		_, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: cursor})
		if (err == nil) != ok || !ok && len(d.lists) > 0 {
			t.Errorf("cursor %q: %v after %d lists", cursor, err, len(d.lists))
		}
	}
}

// TestDeletedMeanwhile: an object that is gone when it is read is left out, and the
// others are in order.
func TestDeletedMeanwhile(t *testing.T) {
	d, s := doubled("a.json", "b.json", "c.json")
	d.gone[prefix+"b.json"] = true
	page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(page.Rows) != 2 || page.Rows[0].ID != prefix+"a.json" || page.Rows[1].ID != prefix+"c.json" {
		t.Errorf("%v, %v", page.Rows, err)
	}
	d.gone[prefix+"a.json"], d.gone[prefix+"c.json"] = true, true
	if _, err := s.Check(t.Context()); err != nil {
		t.Errorf("Check of entries that are all deleted: %v", err)
	}
}

// TestCheckLooksFurther: other objects on the first page do not say that there are no
// entries on the next.
func TestCheckLooksFurther(t *testing.T) {
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("%03d.txt", i))
	}
	for more, ok := range map[string]bool{"": false, "x.json": true, "x.txt": true} {
		_, s := doubled(names...)
		if more != "" {
			_, s = doubled(append(names, more)...)
		}
		var typed *source.Error
		_, err := s.Check(t.Context())
		if ok != (err == nil) || !ok && (!errors.As(err, &typed) || typed.Problem != source.Misconfigured ||
			typed.Msg != "none of the 100 objects under s3://b/"+prefix+" ends in .json") {
			t.Errorf("100 objects and %q: %v", more, err)
		}
	}
}

// TestCheckSays: what a person must correct, and how.
func TestCheckSays(t *testing.T) {
	noBucket := refused(http.StatusNotFound, "NoSuchBucket")
	for name, c := range map[string]struct {
		change    func(d *double)
		msg, next string
		cause     error
	}{
		"no bucket": {
			func(d *double) { d.fail["list"] = noBucket },
			`there is no bucket "b"`, "correct its bucket and prefix: matter ops source add --file DEFINITION.json --confirm", noBucket,
		},
		"denied": {
			func(d *double) { d.fail["list"] = denied }, "s3://b/" + prefix + " cannot be read",
			"grant the role s3:ListBucket on the bucket and s3:GetObject and s3:PutObject on the prefix", denied,
		},
		"an object is denied": {
			func(d *double) { d.fail["get "+prefix+"b.json"] = denied }, "s3://b/" + prefix + " cannot be read",
			"grant the role s3:ListBucket on the bucket and s3:GetObject and s3:PutObject on the prefix", denied,
		},
		"no entry": {
			func(d *double) { d.objects[prefix+"a.json"], d.objects[prefix+"b.json"] = "{}", "" },
			`none of the 2 objects looked at is an entry of the corpus; s3://b/` + prefix + `a.json: field "v" is missing`,
			"correct its bucket and prefix: matter ops source add --file DEFINITION.json --confirm", nil,
		},
	} {
		d, s := doubled("a.json", "b.json")
		c.change(d)
		_, err := s.Check(t.Context())
		var typed *source.Error
		if !errors.As(err, &typed) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := source.Error{Problem: source.Misconfigured, Msg: c.msg, Next: c.next}
		got := *typed
		got.Err = nil
		if d := cmp.Diff(want, got); d != "" || c.cause != nil && !errors.Is(err, c.cause) {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
}

// TestForeignRows: a row of another source is not read, let alone written.
func TestForeignRows(t *testing.T) {
	d, s := doubled("a.json")
	theirs := s3source.New(d, "b", "elsewhere/")
	d.objects["elsewhere/a.json"] = good
	page, err := theirs.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
	if err != nil || len(page.Rows) != 1 {
		t.Fatal(page, err)
	}
	d.gets = nil
	for name, row := range map[string]source.Row{"of another corpus": page.Rows[0], "of another kind": {ID: prefix + "a.json", Handle: prefix + "a.json"}} {
		if ok, err := s.Replace(t.Context(), row, rewrapped()); err == nil || ok {
			t.Errorf("Replace of a row %s: %t, %v", name, ok, err)
		}
		if r, ok, err := s.Reread(t.Context(), row, true); err == nil || ok || r.ID != "" {
			t.Errorf("Reread of a row %s: %v, %t, %v", name, r, ok, err)
		}
		if err := s.Rehearse(t.Context(), row); err == nil {
			t.Errorf("Rehearse of a row %s passes", name)
		}
	}
	whole := s3source.New(d, "b", "") // every object is in it
	if ok, err := whole.Replace(t.Context(), source.Row{ID: "a.json", Handle: "a.json"}, rewrapped()); err == nil || ok {
		t.Errorf("Replace of a row of another kind in a whole bucket: %t, %v", ok, err)
	}
	if len(d.gets)+len(d.puts) > 0 {
		t.Errorf("objects were read %v, written %d", d.gets, len(d.puts))
	}
}

// TestReplaceRefuses: a row that is not sound, or whose payload was not read, is not
// replaced, and nothing is read for it.
func TestReplaceRefuses(t *testing.T) {
	d, s := doubled("a.json")
	page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
	if err != nil {
		t.Fatal(err)
	}
	sound := page.Rows[0]
	unsound, blind := sound, sound
	unsound.Defect, blind.Ciphertext = "damaged", nil
	whole := rewrapped()
	whole.Ciphertext = []byte("new")
	d.gets = nil
	for name, c := range map[string]struct {
		row  source.Row
		with source.Rewrapped
	}{"unsound": {unsound, rewrapped()}, "blind": {blind, whole}} {
		if ok, err := s.Replace(t.Context(), c.row, c.with); err == nil || ok || len(d.gets)+len(d.puts) > 0 {
			t.Errorf("%s: %t, %v after %v", name, ok, err, d.gets)
		}
	}
	if ok, err := s.Replace(t.Context(), blind, rewrapped()); err != nil || !ok {
		t.Errorf("only the data key, payload not read: %t, %v", ok, err)
	}
}

// TestReplaceCompares: an object that is no longer what the row was read from is left
// as it is.
func TestReplaceCompares(t *testing.T) {
	whole := rewrapped()
	whole.Ciphertext = []byte("new")
	for name, c := range map[string]struct {
		now                 string // the object, instead of the good one
		deleted             bool
		dataKeyOnly, withIt bool // whether it is replaced
	}{
		"as it was":          {good, false, true, true},
		"deleted":            {good, true, false, false},
		"another KEK":        {strings.Replace(good, `"k"`, `"l"`, 1), false, false, false},
		"another data key":   {strings.Replace(good, "ZGVr", "ZGVs", 1), false, false, false},
		"another payload":    {strings.Replace(good, "Y3Q=", "Y3U=", 1), false, true, false},
		"another context":    {strings.Replace(good, `{"id":"a"}`, `{"id":"b"}`, 1), false, true, true},
		"no longer an entry": {good + "x", false, false, false},
		"no longer sound":    {strings.Replace(good, `"version":2`, `"version":-1`, 1), false, false, false},
	} {
		for _, with := range []source.Rewrapped{rewrapped(), whole} {
			d, s := doubled("a.json")
			page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
			if err != nil {
				t.Fatal(err)
			}
			d.objects[prefix+"a.json"], d.gone[prefix+"a.json"] = c.now, c.deleted
			want := c.dataKeyOnly
			if with.Ciphertext != nil {
				want = c.withIt
			}
			ok, err := s.Replace(t.Context(), page.Rows[0], with)
			if err != nil || ok != want || len(d.puts) == 1 != want {
				t.Errorf("%s: %t, %v, %d writes, want %t", name, ok, err, len(d.puts), want)
			}
		}
	}
}

// TestReplaceWrites: what is written is the entry with another wrapping and the next
// version, on condition of what was read.
func TestReplaceWrites(t *testing.T) {
	for _, payload := range []string{"", "new ct"} {
		d, s := doubled("a.json")
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
		if err != nil {
			t.Fatal(err)
		}
		with, want := rewrapped(), s3source.Entry{
			V: 1, KEK: "kek-1", Epoch: 2, Version: 3, WrappedDEK: []byte("new"), Ciphertext: []byte("ct"),
			Context: map[string]string{"id": "a"}, PlaintextSHA256: sum,
		}
		if payload != "" {
			with.Ciphertext, want.Ciphertext = []byte(payload), []byte(payload)
		}
		if ok, err := s.Replace(t.Context(), page.Rows[0], with); err != nil || !ok || len(d.puts) != 1 {
			t.Fatal(ok, err, len(d.puts))
		}
		in := d.puts[0]
		body, err := io.ReadAll(in.Body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s3source.Decode(body)
		if d := cmp.Diff(want, got); d != "" || err != nil || !bytes.HasSuffix(body, []byte("}\n")) {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
		in.Body = nil
		type put struct{ Bucket, Key, IfMatch, IfNoneMatch, ContentType, MadeBy string }
		if d := cmp.Diff(
			put{"b", prefix + "a.json", `"etag"`, "", "application/json", "test"},
			put{*in.Bucket, *in.Key, aws.ToString(in.IfMatch), aws.ToString(in.IfNoneMatch), aws.ToString(in.ContentType), in.Metadata["made-by"]},
		); d != "" {
			t.Errorf("the request (-want +got):\n%s", d)
		}
	}
}

// TestRehearseWrites: what is rehearsed is the write of a rewrap, under a condition that
// never holds; a row that is gone or is not an entry has none.
func TestRehearseWrites(t *testing.T) {
	d, s := doubled("a.json")
	page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil {
		t.Fatal(err)
	}
	row := page.Rows[0]
	d.fail["put "+prefix+"a.json"] = refused(http.StatusPreconditionFailed, "PreconditionFailed")
	if err := s.Rehearse(t.Context(), row); err != nil || len(d.puts) != 1 {
		t.Fatal(err, len(d.puts))
	}
	in := d.puts[0]
	body, err := io.ReadAll(in.Body)
	if e, derr := s3source.Decode(body); err != nil || derr != nil || e.Version != 2 || aws.ToString(in.IfMatch) != `"00000000000000000000000000000000"` ||
		in.IfNoneMatch != nil || *in.Key != prefix+"a.json" || in.Metadata["made-by"] != "test" {
		t.Errorf("%v %v: %+v", err, derr, in)
	}
	delete(d.fail, "put "+prefix+"a.json")
	if err := s.Rehearse(t.Context(), row); err == nil || !strings.Contains(err.Error(), "a write whose condition cannot hold was made") {
		t.Errorf("a bucket that takes no notice of conditions: %v", err)
	}
	d.puts = d.puts[:1]
	d.gone[prefix+"a.json"] = true
	if err := s.Rehearse(t.Context(), row); err != nil || len(d.puts) != 1 {
		t.Errorf("deleted: %v, %d writes", err, len(d.puts))
	}
	d.gone[prefix+"a.json"], d.objects[prefix+"a.json"] = false, "{}"
	if err := s.Rehearse(t.Context(), row); err == nil || !strings.Contains(err.Error(), `field "v" is missing`) || len(d.puts) != 1 {
		t.Errorf("no entry: %v, %d writes", err, len(d.puts))
	}
}

// TestPutConditions: an entry is created where there is none, and a refusal that is
// none of the condition is not taken for one.
func TestPutConditions(t *testing.T) {
	for code, exists := range map[string]bool{
		"PreconditionFailed": true, "ConditionalRequestConflict": true, "NoSuchKey": true, "NoSuchBucket": false, "AccessDenied": false,
	} {
		d, s := doubled()
		d.fail["put "+prefix+"a.json"] = refused(http.StatusPreconditionFailed, code)
		err := s.Put(t.Context(), "a.json", entry())
		if err == nil || errors.Is(err, s3source.ErrExists) != exists || !strings.Contains(err.Error(), "s3 PutObject "+prefix+"a.json") {
			t.Errorf("%s: %v", code, err)
		}
		if in := d.puts[0]; aws.ToString(in.IfNoneMatch) != "*" || in.IfMatch != nil || *in.Bucket != "b" || in.Metadata != nil {
			t.Errorf("%s: %+v", code, in)
		}
	}
	d, s := doubled()
	bad := entry()
	bad.KEK = ""
	if err := s.Put(t.Context(), "a.json", bad); err == nil || !strings.Contains(err.Error(), prefix+"a.json") || !strings.Contains(err.Error(), "kek_id") || len(d.puts) > 0 {
		t.Errorf("a bad entry: %v, %d writes", err, len(d.puts))
	}
}

// TestEncryptedByLooks: the entries are asked one by one until one names its key, and
// a failure is told only where none has.
func TestEncryptedByLooks(t *testing.T) {
	d, s := doubled("a.json", "b.txt", "c.json")
	if key, err := s.EncryptedBy(t.Context()); err != nil || key != "" || !slices.Equal(d.gets, []string{prefix + "a.json", prefix + "c.json"}) {
		t.Errorf("%q, %v after %v", key, err, d.gets)
	}
	d.gets = nil
	d.fail["get "+prefix+"a.json"] = errWire
	if key, err := s.EncryptedBy(t.Context()); !errors.Is(err, errWire) || key != "" || len(d.gets) != 1 {
		t.Errorf("%q, %v after %v", key, err, d.gets)
	}
}

// TestEncryptedByFirstPage: a page of objects is enough to ask.
func TestEncryptedByFirstPage(t *testing.T) {
	for others, looks := range map[int]int{99: 1, 100: 0} {
		names := []string{"z.json"}
		for i := range others {
			names = append(names, fmt.Sprintf("%03d.txt", i))
		}
		d, s := doubled(names...)
		if key, err := s.EncryptedBy(t.Context()); err != nil || key != "" || len(d.gets) != looks || len(d.lists) != 1 {
			t.Errorf("%d other objects: %q, %v after %v", others, key, err, d.gets)
		}
	}
}

// crowd is a double whose reads wait for each other.
type crowd struct {
	*double
	in, most atomic.Int64
}

func (c *crowd) GetObject(ctx context.Context, in *s3.GetObjectInput, o ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	n := c.in.Add(1)
	defer c.in.Add(-1)
	c.most.Store(max(c.most.Load(), n))
	time.Sleep(time.Second)
	return c.double.GetObject(ctx, in, o...)
}

// TestReadsInFlight: objects are read eight at a time.
func TestReadsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []string
		for i := range 40 {
			names = append(names, fmt.Sprintf("%d.json", i))
		}
		d, _ := doubled(names...)
		c := &crowd{double: d}
		page, err := s3source.New(c, "b", prefix).Scan(t.Context(), source.ScanRequest{Total: 1})
		if err != nil || len(page.Rows) != 40 || c.most.Load() != 8 {
			t.Errorf("%d rows, %v, %d reads at a time", len(page.Rows), err, c.most.Load())
		}
	})
}

// TestURLsSay: what is wrong with an address.
func TestURLsSay(t *testing.T) {
	for in, why := range map[string]string{
		"b/p/": "begin with s3://", "s3:///p/": "the bucket is missing", "s3://b": "the prefix is missing", "s3://b/": "the prefix is missing",
		"s3://b/p": "end in a slash", "s3://b/*/": "patterns and queries",
	} {
		if _, _, err := s3source.ParseURL(in); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", in, err, why)
		}
	}
}

// TestNames: New gives the corpus its usual name, and a definition its own.
func TestNames(t *testing.T) {
	if _, s := doubled(); s.Name() != "corpus" {
		t.Error(s.Name())
	}
	d, _ := doubled("a.json")
	s, err := s3source.Open(d, kek.Source{Name: "known", Kind: s3source.KindName, Definition: `{"bucket":"b","prefix":"` + prefix + `"}`})
	if err != nil {
		t.Fatal(err)
	}
	page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(page.Rows) != 1 || *d.lists[0].Bucket != "b" || *d.lists[0].Prefix != prefix {
		t.Errorf("%v, %v, %+v", page, err, d.lists)
	}
	d.fail["list"] = denied
	var typed *source.Error
	if _, err := s.Check(t.Context()); !errors.As(err, &typed) || s.Name() != "known" {
		t.Errorf("%v", err)
	}
}
