package deks_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/deks"
	"github.com/matter-ops/kms-rotation/test/membucket"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
)

var errFault = errors.New("no answer")

// faulty is a DynamoDB of which one operation fails, and which remembers what it was asked.
type faulty struct {
	dynamo
	fails    string
	blind    bool // an update reports success and does nothing
	scanned  *dynamodb.ScanInput
	got      *dynamodb.GetItemInput
	describe func(*types.TableDescription)
}

func (f *faulty) fault(operation string) error {
	if f.fails == operation {
		return errFault
	}
	return nil
}

func (f *faulty) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if f.scanned = in; f.fault("Scan") != nil {
		return nil, errFault
	}
	return f.dynamo.Scan(ctx, in, o...)
}

func (f *faulty) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if f.got = in; f.fault("GetItem") != nil {
		return nil, errFault
	}
	return f.dynamo.GetItem(ctx, in, o...)
}

func (f *faulty) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	if f.blind {
		return &dynamodb.UpdateItemOutput{}, nil
	}
	if err := f.fault("UpdateItem"); err != nil {
		return nil, err
	}
	return f.dynamo.UpdateItem(ctx, in, o...)
}

func (f *faulty) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if err := f.fault("TransactWriteItems"); err != nil {
		return nil, err
	}
	return f.dynamo.TransactWriteItems(ctx, in, o...)
}

func (f *faulty) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if err := f.fault("DescribeTable"); err != nil {
		return nil, err
	}
	out, err := f.dynamo.DescribeTable(ctx, in, o...)
	if err == nil && f.describe != nil {
		f.describe(out.Table)
	}
	return out, err
}

func newFaulty(t *testing.T) (*place, *faulty) {
	t.Helper()
	f := &faulty{dynamo: memddb.New()}
	return newPlace(t, f), f
}

// missingCopy leaves the copy of a record in the bucket that the table does not have.
func (p *place) missingCopy(id string) keyrecord.Record {
	r := recordOf(id, sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek of " + id)})
	p.bucket.Plant(keyrecord.CopyKey(r), keyrecord.EncodeCopy(r))
	return r
}

var newWrapping = source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}

// TestFaults: whatever does not answer, the caller gets its error and never a conclusion.
func TestFaults(t *testing.T) {
	p, f := newFaulty(t)
	p.put(t, "a", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("old")})
	row := p.only(t)
	p.missingCopy("gone")
	done := func(ok bool, err error) error {
		if ok {
			return errors.New("it says that it is done")
		}
		return err
	}
	calls := map[string]func(context.Context) error{
		"Scan": func(ctx context.Context) error {
			page, err := p.driver.Scan(ctx, source.ScanRequest{Total: 1})
			return done(len(page.Rows) > 0 || page.Next != "", err)
		},
		"scan of copies": func(ctx context.Context) error {
			page, err := p.driver.Scan(ctx, source.ScanRequest{Total: 1, Cursor: "copy:", Missing: true})
			return done(len(page.Rows) > 0, err)
		},
		"ListCopies": func(ctx context.Context) error {
			rows, err := p.driver.ListCopies(ctx, p.driver.NewKey(source.DataKey{ID: idBytes("gone"), KEK: "kek-0", Epoch: 1, Made: time.Now()}))
			return done(len(rows) > 0, err)
		},
		"Check":       func(ctx context.Context) error { _, err := p.driver.Check(ctx); return err },
		"Size":        func(ctx context.Context) error { _, err := p.driver.Size(ctx); return err },
		"EncryptedBy": func(ctx context.Context) error { _, err := p.driver.EncryptedBy(ctx); return err },
		"Reread":      func(ctx context.Context) error { _, ok, err := p.driver.Reread(ctx, row, false); return done(ok, err) },
		"FindKey": func(ctx context.Context) error {
			_, _, ok, err := p.driver.FindKey(ctx, idOf("a"))
			return done(ok, err)
		},
		"Replace":  func(ctx context.Context) error { return done(p.driver.Replace(ctx, row, newWrapping)) },
		"Rehearse": func(ctx context.Context) error { return p.driver.Rehearse(ctx, row) },
		"PutBack":  func(ctx context.Context) error { return done(p.driver.PutBack(ctx, row, row, newWrapping)) },
	}
	for operation, whose := range map[string][]string{
		"Scan": {"Scan", "Check"}, "DescribeTable": {"Check", "Size", "EncryptedBy"}, "GetItem": {"Reread", "FindKey", "scan of copies"},
		"UpdateItem": {"Replace", "Rehearse"}, "TransactWriteItems": {"PutBack"},
	} {
		f.fails = operation
		for _, name := range whose {
			if err := calls[name](t.Context()); !errors.Is(err, errFault) {
				t.Errorf("%s without %s: %v", name, operation, err)
			}
		}
	}
	f.fails = ""
	p.bucket.Fail(errFault)
	for _, name := range []string{"scan of copies", "ListCopies", "Replace", "Rehearse", "PutBack"} {
		if err := calls[name](t.Context()); !errors.Is(err, errFault) {
			t.Errorf("%s without the bucket: %v", name, err)
		}
	}
	if e, _ := p.get(t, "a"); e.KEK != "kek-0" {
		t.Errorf("the record was changed: %+v", e)
	}
}

func idBytes(name string) (b [16]byte) {
	sum := sha256.Sum256([]byte(name))
	copy(b[:], sum[:])
	return b
}

// unread is a bucket whose objects cannot be read, or not to their end.
type unread struct {
	*membucket.Bucket
	torn   bool
	listed []*s3.ListObjectsV2Input
}

func (u *unread) GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	if u.torn {
		return &s3.GetObjectOutput{Body: io.NopCloser(iotest.ErrReader(errFault))}, nil
	}
	return nil, errFault
}

func (u *unread) ListObjectsV2(ctx context.Context, in *s3.ListObjectsV2Input, o ...func(*s3.Options)) (*s3.ListObjectsV2Output, error) {
	c := *in
	u.listed = append(u.listed, &c)
	return u.Bucket.ListObjectsV2(ctx, in, o...)
}

// TestCopiesThatCannotBeRead: a copy that is not read is not taken for an object of others, which is left out.
func TestCopiesThatCannotBeRead(t *testing.T) {
	p, f := newFaulty(t)
	p.missingCopy("gone")
	u := &unread{Bucket: p.bucket}
	driver, err := deks.Open(f, u, deks.Places{Bucket: "audit"}, deks.Config{Table: p.table}.Source())
	if err != nil {
		t.Fatal(err)
	}
	row := driver.NewKey(source.DataKey{ID: idBytes("gone"), KEK: "kek-0", Epoch: 1, Made: time.Now()})
	for _, u.torn = range []bool{false, true} {
		if page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:"}); !errors.Is(err, errFault) || page.Other > 0 {
			t.Errorf("scan: %+v, %v", page, err)
		}
		if rows, err := driver.ListCopies(t.Context(), row); !errors.Is(err, errFault) || rows != nil {
			t.Errorf("list: %+v, %v", rows, err)
		}
	}
}

// TestListedCopies: what is asked of S3, by the rows that a caller wants at most.
func TestListedCopies(t *testing.T) {
	p, f := newFaulty(t)
	u := &unread{Bucket: p.bucket}
	driver, err := deks.Open(f, u, deks.Places{Bucket: "audit"}, deks.Config{Table: p.table}.Source())
	if err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int]int32{0: 1000, 1: 1, 2: 2, 999: 999, 1000: 1000, 1001: 1000} {
		u.listed = nil
		if page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:", Limit: limit}); err != nil || page.Next != "" {
			t.Errorf("%+v, %v", page, err)
		}
		in := u.listed[0]
		if *in.MaxKeys != want || *in.Prefix != "deks/" || *in.Bucket != "audit" || in.StartAfter != nil {
			t.Errorf("limit %d: %d of %s after %v", limit, *in.MaxKeys, *in.Prefix, in.StartAfter)
		}
	}
	u.listed = nil
	p.missingCopy("gone")
	p.bucket.Plant("deks/zzz", nil)
	u.torn = true
	if page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:deks/y", Limit: 1}); err != nil || page.Other != 1 || page.Next != "" {
		t.Errorf("%+v, %v", page, err)
	}
	p.bucket.Plant("deks/zzzz", nil)
	if page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:deks/y", Limit: 1}); err != nil || page.Other != 1 || page.Next != "copy:deks/zzz" {
		t.Errorf("%+v, %v", page, err)
	}
	u.listed = nil
	if _, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:deks/zzzzz"}); err != nil || *u.listed[0].StartAfter != "deks/zzzzz" {
		t.Errorf("%v, after %v", err, u.listed[0].StartAfter)
	}
}

// TestListCopies: every copy of one record and of no other is listed, whatever the listing's pages.
func TestListCopies(t *testing.T) {
	p, _ := newFaulty(t)
	p.missingCopy("another")
	var want []string
	for epoch := range int64(5) {
		r := recordOf("a", sourcetest.Envelope{KEK: "kek-0", Epoch: epoch + 1, WrappedDEK: []byte{byte(epoch)}})
		p.bucket.Plant(keyrecord.CopyKey(r), keyrecord.EncodeCopy(r))
		want = append(want, string(r.WrappedDEK))
	}
	p.bucket.Plant(keyrecord.CopiesOf(idOf("a"))+"note.txt", nil)
	p.put(t, "a", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek")})
	rows, err := p.driver.ListCopies(t.Context(), p.only(t))
	var got []string
	for _, row := range rows {
		if got = append(got, string(row.WrappedDEK)); !row.Missing || row.ID != idOf("a") {
			t.Errorf("%+v", row)
		}
	}
	if err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := p.driver.ListCopies(t.Context(), source.Row{ID: "x"}); err == nil || !strings.Contains(err.Error(), "not of source keys") {
		t.Errorf("a row of another source: %v", err)
	}
}

// TestLongCopies: a copy is read up to 64 KiB.
func TestLongCopies(t *testing.T) {
	p, _ := newFaulty(t)
	r := recordOf("long", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek")})
	r.Context["pad"] = "x"
	r.Context["pad"] = strings.Repeat("x", 1<<16-len(keyrecord.EncodeCopy(r))+1)
	p.bucket.Plant(keyrecord.CopyKey(r), keyrecord.EncodeCopy(r))
	page, err := p.driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:"})
	if err != nil || len(page.Rows) != 1 || page.Other != 0 {
		t.Errorf("%d bytes: %d rows, %d others, %v", len(keyrecord.EncodeCopy(r)), len(page.Rows), page.Other, err)
	}
	r.Context["pad"] += "x"
	p.bucket.Plant(keyrecord.CopyKey(r), keyrecord.EncodeCopy(r))
	if page, err = p.driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:"}); err != nil || len(page.Rows) != 0 || page.Other != 1 {
		t.Errorf("%d bytes: %d rows, %d others, %v", len(keyrecord.EncodeCopy(r)), len(page.Rows), page.Other, err)
	}
}

// slow is a DynamoDB without records that takes a second for an answer.
type slow struct {
	deks.API
	mu               sync.Mutex
	reads, now, most int
}

func (s *slow) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	s.mu.Lock()
	s.reads++
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	time.Sleep(time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
	return &dynamodb.GetItemOutput{}, nil
}

// TestReadsInFlight: eight records are looked for at once, each once however many copies it has.
func TestReadsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &place{bucket: membucket.New()}
		for i := range 20 {
			r := p.missingCopy(string(rune('a' + i)))
			r.WrappedDEK = []byte("an older one")
			p.bucket.Plant(keyrecord.CopyKey(r), keyrecord.EncodeCopy(r))
		}
		s := &slow{}
		driver, err := deks.Open(s, p.bucket, deks.Places{Bucket: "audit"}, deks.Config{Table: "keys"}.Source())
		if err != nil {
			t.Fatal(err)
		}
		page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "copy:"})
		if err != nil || len(page.Rows) != 40 || s.reads != 20 || s.most != 8 {
			t.Errorf("%d rows, %v, %d reads, %d at once", len(page.Rows), err, s.reads, s.most)
		}
	})
}

// later is the record of the same data key, made in the next epoch.
func later(p *place, r keyrecord.Record) source.Row {
	return p.driver.NewKey(source.DataKey{ID: idBytes("gone"), KEK: "kek-0", Epoch: 2, Made: r.CreatedAt, Context: r.Context})
}

// TestPutBack: a record gets the wrapping of a copy of its own, while the KEK's fence is open.
func TestPutBack(t *testing.T) {
	p, _ := newFaulty(t)
	says := func(what, text string, ok bool, err error) {
		t.Helper()
		if ok || err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, %v, want an error with %q", what, ok, err, text)
		}
	}
	keys := len(p.bucket.Keys("deks/"))
	gone := p.missingCopy("gone")
	row := p.driver.NewKey(source.DataKey{ID: idBytes("gone"), KEK: "kek-0", Epoch: 1, Made: gone.CreatedAt, Context: gone.Context})
	row.Missing = true
	another := p.driver.NewKey(source.DataKey{ID: idBytes("another"), KEK: "kek-0", Epoch: 1, Made: gone.CreatedAt})
	ok, err := p.driver.PutBack(t.Context(), row, another, newWrapping)
	says("the copy of another", "it is a copy of "+idOf("another"), ok, err)
	ok, err = p.driver.PutBack(t.Context(), source.Row{}, row, newWrapping)
	says("a row of another source", "not of source keys", ok, err)
	ok, err = p.driver.PutBack(t.Context(), row, source.Row{}, newWrapping)
	says("a copy of another source", "not of source keys", ok, err)
	if n := len(p.bucket.Keys("deks/")); n != keys+1 {
		t.Errorf("a refused put-back wrote a copy: %d", n)
	}
	sealed := newWrapping
	sealed.KEK = "kek-9"
	ok, err = p.driver.PutBack(t.Context(), row, row, sealed)
	says("without a fence", "fence of records of KEK kek-9: the fence is not open", ok, err)
	if ok, err := p.driver.PutBack(t.Context(), row, row, newWrapping); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := p.driver.PutBack(t.Context(), row, row, newWrapping); ok || err != nil {
		t.Errorf("a record that is there again: %v, %v", ok, err)
	}
	payload := source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new"), Ciphertext: []byte("x")}
	ok, err = p.driver.PutBack(t.Context(), row, another, payload)
	says("the copy of another with a payload", "no payload", ok, err)
	stored := p.only(t)
	ok, err = p.driver.PutBack(t.Context(), stored, later(p, gone), payload)
	says("the copy of another epoch with a payload", "no payload", ok, err)
	anew := later(p, gone)
	anew.Missing = true
	if ok, err := p.driver.PutBack(t.Context(), anew, row, newWrapping); ok || err != nil { // of a missing record no epoch is known
		t.Errorf("a record that is there again, of another epoch: %v, %v", ok, err)
	}
	ok, err = p.driver.PutBack(t.Context(), stored, later(p, gone), newWrapping)
	says("a copy of another epoch", "of epoch 2, the record of one of epoch 1", ok, err)
	again := source.Rewrapped{KEK: "kek-2", Epoch: 3, WrappedDEK: []byte("again")}
	if ok, err := p.driver.PutBack(t.Context(), stored, row, again); !ok || err != nil {
		t.Errorf("over a record: %v, %v", ok, err)
	}
	if ok, err := p.driver.PutBack(t.Context(), stored, row, again); ok || err != nil {
		t.Errorf("over a record that has changed: %v, %v", ok, err)
	}
	ok, err = p.driver.PutBack(t.Context(), p.only(t), row, sealed)
	says("over a record, without a fence", "fence of records of KEK kek-9: the fence is not open", ok, err)
}

// TestRefusedWrappings: what is not a wrapping changes nothing; a rewrap asks no fence.
func TestRefusedWrappings(t *testing.T) {
	p, f := newFaulty(t)
	p.put(t, "a", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("old")})
	row := p.only(t)
	odd := row
	odd.Defect = "odd"
	hidden := source.Row{ID: "x"}
	p.put(t, "b", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("old"), Defect: source.Damaged})
	page, err := p.driver.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range page.Rows {
		if r.Defect != "" {
			hidden = r
			if again, ok, err := p.driver.Reread(t.Context(), r, false); !ok || err != nil || again.Defect != r.Defect {
				t.Errorf("%+v, %v, %v", again, ok, err)
			}
		}
	}
	hidden.Defect = "" // its handle knows
	for name, c := range map[string]struct {
		row  source.Row
		with source.Rewrapped
		says string
	}{
		"a data key's name": {row, source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new"), DEKID: idOf("b")}, "no payload"},
		"a payload":         {row, source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new"), Ciphertext: []byte("x")}, "no payload"},
		"no wrapping":       {row, source.Rewrapped{KEK: "kek-1", Epoch: 2}, "wrapped_dek"},
		"a defect":          {odd, newWrapping, "not a sound record"},
		"not a record":      {hidden, newWrapping, "not a sound record"},
		"another source":    {source.Row{ID: "a"}, newWrapping, "not of source keys"},
	} {
		if ok, err := p.driver.Replace(t.Context(), c.row, c.with); ok || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	if n := len(p.bucket.Keys("deks/")); n > 0 {
		t.Errorf("%d copies", n)
	}
	if ok, err := p.driver.Replace(t.Context(), row, source.Rewrapped{KEK: "kek-9", Epoch: 2, WrappedDEK: []byte("new")}); !ok || err != nil {
		t.Errorf("under a KEK without a fence: %v, %v", ok, err)
	}
	if ok, err := p.driver.Replace(t.Context(), row, newWrapping); ok || err != nil {
		t.Errorf("a record that has changed: %v, %v", ok, err)
	}
	f.blind = true
	if err := p.driver.Rehearse(t.Context(), row); err == nil || !strings.Contains(err.Error(), "cannot hold was made") {
		t.Errorf("a rehearsal that wrote: %v", err)
	}
}

// TestKeys: a new data key's record is stored once, with its epoch, context and time, and found.
func TestKeys(t *testing.T) {
	p, f := newFaulty(t)
	key := source.DataKey{ID: idBytes("new"), KEK: "kek-1", Epoch: 4, Context: map[string]string{"table": "orders"}, Made: time.Date(2026, 4, 1, 2, 3, 4, 5, time.UTC)}
	if _, _, ok, err := p.driver.FindKey(t.Context(), idOf("new")); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	row := p.driver.NewKey(key)
	if ok, err := p.driver.CreateKey(t.Context(), row, []byte("wrapped")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := p.driver.CreateKey(t.Context(), row, []byte("wrapped")); ok || err != nil {
		t.Errorf("twice: %v, %v", ok, err)
	}
	out, err := f.dynamo.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: &p.table, Key: keyrecord.Key(idOf("new"))})
	if err != nil {
		t.Fatal(err)
	}
	r, err := keyrecord.Decode(out.Item)
	if err != nil || r.KEKID != "kek-1" || r.KEKEpoch != 4 || r.BornEpoch != 4 || r.Context["table"] != "orders" || !r.CreatedAt.Equal(key.Made.Truncate(time.Second)) || string(r.WrappedDEK) != "wrapped" {
		t.Errorf("%+v, %v", r, err)
	}
	found, born, ok, err := p.driver.FindKey(t.Context(), idOf("new"))
	if err != nil || !ok || born != 4 || found.ID != idOf("new") || found.Missing || !aws.ToBool(f.got.ConsistentRead) {
		t.Errorf("%+v, %d, %v, %v", found, born, ok, err)
	}
}

// TestDescribed: what the driver says of itself, and what DynamoDB says of the table.
func TestDescribed(t *testing.T) {
	p, f := newFaulty(t)
	traits := p.driver.Traits()
	if traits.Billing != source.DynamoDBByUnit || traits.PageItems != 500 || traits.PageBytes != 1<<20 || deks.Kind(nil, nil, deks.Places{}).Name != "deks" {
		t.Errorf("%+v", traits)
	}
	for n, want := range map[int]int{0: 1, 1: 1, 2: 2, 7: 7} {
		if got := p.driver.Segments(n); got != want {
			t.Errorf("%d segments, want %d", got, want)
		}
	}
	if page, err := p.driver.Scan(t.Context(), source.ScanRequest{Total: 1}); err != nil || page.Next != "" || *f.scanned.Limit != 500 || !aws.ToBool(f.scanned.ConsistentRead) {
		t.Errorf("%+v, %v, limit %d", page, err, *f.scanned.Limit)
	}
	if by, err := p.driver.EncryptedBy(t.Context()); by != "" || err != nil {
		t.Errorf("%q, %v", by, err)
	}
	f.describe = func(d *types.TableDescription) {
		d.ItemCount, d.TableSizeBytes = aws.Int64(12), aws.Int64(3456)
		d.SSEDescription = &types.SSEDescription{KMSMasterKeyArn: aws.String("arn")}
	}
	if s, err := p.driver.Size(t.Context()); err != nil || s.Items != 12 || s.Bytes != 3456 {
		t.Errorf("%+v, %v", s, err)
	}
	if by, err := p.driver.EncryptedBy(t.Context()); by != "arn" || err != nil {
		t.Errorf("%q, %v", by, err)
	}
}

// TestCheckDescription: which tables are refused for what DynamoDB says of them.
func TestCheckDescription(t *testing.T) {
	p, f := newFaulty(t)
	for name, c := range map[string]struct {
		change func(*types.TableDescription)
		says   string
	}{
		"updating": {func(d *types.TableDescription) { d.TableStatus = types.TableStatusUpdating }, ""},
		"creating": {func(d *types.TableDescription) { d.TableStatus = types.TableStatusCreating }, "is CREATING"},
		"replica":  {func(d *types.TableDescription) { d.Replicas = make([]types.ReplicaDescription, 1) }, "global table"},
		"global":   {func(d *types.TableDescription) { d.GlobalTableVersion = aws.String("2019.11.21") }, "global table"},
		"second definition": {func(d *types.TableDescription) {
			d.AttributeDefinitions = []types.AttributeDefinition{{AttributeName: aws.String("sk"), AttributeType: "B"}, {AttributeName: aws.String("pk"), AttributeType: "B"}}
		}, "not a key table"},
		"of an index": {func(d *types.TableDescription) {
			d.AttributeDefinitions = []types.AttributeDefinition{{AttributeName: aws.String("pk"), AttributeType: "S"}, {AttributeName: aws.String("other"), AttributeType: "N"}}
		}, ""},
	} {
		f.describe = c.change
		_, err := p.driver.Check(t.Context())
		var found *source.Error
		if c.says == "" && err != nil || c.says != "" && (!errors.As(err, &found) || !strings.Contains(err.Error(), c.says) || found.Field != "table") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// paged is a key table of pages of so many records; the pages after them have an item that is none.
type paged struct {
	faulty
	pages []int
	reads int
}

func (p *paged) Scan(_ context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if at := attr.Text(in.ExclusiveStartKey["pk"]); (p.reads == 0) != (at == "") {
		return nil, errFault
	}
	out := &dynamodb.ScanOutput{LastEvaluatedKey: attr.Item{"pk": attr.Str("DEK#x")}}
	if p.reads >= len(p.pages) {
		out.Items = []attr.Item{{"pk": attr.Str("odd")}}
	} else {
		for range p.pages[p.reads] {
			out.Items = append(out.Items, keyrecord.Encode(recordOf("a", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek")})))
		}
	}
	p.reads++
	return out, nil
}

// TestCheckSample: a check looks at 1,000 items.
func TestCheckSample(t *testing.T) {
	for _, c := range []struct {
		pages []int
		found bool
	}{{[]int{999}, true}, {[]int{999, 1}, false}, {[]int{1000}, false}, {[]int{500, 499}, true}} {
		p := &paged{faulty: faulty{dynamo: memddb.New()}, pages: c.pages}
		_, err := newPlace(t, p).driver.Check(t.Context())
		var found *source.Error
		if errors.As(err, &found) != c.found || !c.found && err != nil || c.found && (found.Field != "table" || len(found.Rows) != 1) {
			t.Errorf("%v: %v", c.pages, err)
		}
	}
}
