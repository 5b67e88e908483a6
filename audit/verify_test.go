package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
)

func record(seq int64) string { return audit.ObjectKey(audittest.Chain, seq) }
func anchor(n int64) string   { return audit.AnchorKey(audittest.Chain, n) }

// faulty is a bucket whose reads can fail.
type faulty struct {
	audit.Bucket
	list error
	read func(key string) error
}

// Versions implements [audit.Bucket].
func (b faulty) Versions(ctx context.Context) ([]audit.ObjectVersion, error) {
	v, err := b.Bucket.Versions(ctx)
	return v, errors.Join(err, b.list)
}

// Read implements [audit.Bucket].
func (b faulty) Read(ctx context.Context, v audit.ObjectVersion) (audit.Object, error) {
	if b.read != nil {
		if err := b.read(v.Key); err != nil {
			return audit.Object{}, err
		}
	}
	return b.Bucket.Read(ctx, v)
}

func failAt(key string, err error) func(string) error {
	return func(k string) error {
		if k == key {
			return err
		}
		return nil
	}
}

// TestCannotLook: what cannot be read is an error, not a finding and not a verdict.
func TestCannotLook(t *testing.T) {
	w := audittest.New(t)
	broken := errors.New("the network is down")
	for name, b := range map[string]faulty{
		"the listing": {Bucket: w.Bucket, list: broken},
		"a record":    {Bucket: w.Bucket, read: failAt(record(5), broken)},
		"an anchor":   {Bucket: w.Bucket, read: failAt(anchor(2), broken)},
	} {
		r, err := audit.Verify(t.Context(), b, w.Policy)
		if !errors.Is(err, broken) || r.Result != "" || r.Chain != audittest.Chain || r.LogIndex > 1 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	for name, change := range map[string]func(*audit.Policy){
		"no chain": func(p *audit.Policy) { p.Chain = "" }, "no time": func(p *audit.Policy) { p.Now = time.Time{} },
	} {
		p := w.Policy
		change(&p)
		if _, err := audit.Verify(t.Context(), w.Bucket, p); err == nil || !strings.Contains(err.Error(), "no chain or no time") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestListedAndGone: an object that vanishes while the bucket is verified is one
// finding.
func TestListedAndGone(t *testing.T) {
	w := audittest.New(t)
	r := verify(t, faulty{Bucket: w.Bucket, read: failAt(record(5), fs.ErrNotExist)}, w.Policy)
	want := []audit.Finding{{Kind: audit.MissingRecord, Object: record(5), Detail: "it is listed and not there"}}
	if d := cmp.Diff(want, r.Findings); d != "" {
		t.Error(d)
	}
}

// TestLinkedAgain: after a gap, or what could not be read, the chain is held to its
// links again.
func TestLinkedAgain(t *testing.T) {
	for name, tamper := range map[string]func(w *audittest.World){
		"a gap":        func(w *audittest.World) { w.Bucket.Remove(record(2)) },
		"an unlinked":  func(w *audittest.World) { change(w, record(2), `"value"`, `"other"`) },
		"unreadable":   func(w *audittest.World) { w.Bucket.Replace(record(2), []byte("{}")) },
		"two in a row": func(w *audittest.World) { w.Bucket.Remove(record(2)); w.Bucket.Replace(record(3), []byte("{}")) },
	} {
		w := audittest.New(t)
		tamper(w)
		change(w, record(5), `"value"`, `"other"`)
		audittest.MustFind(t, verify(t, w.Bucket, w.Policy), audit.UnlinkedRecord, record(6))
		if name == "a gap" {
			w.Bucket.Remove(anchor(1))
			w.Bucket.Replace(anchor(2), []byte("{}"))
			audittest.MustFind(t, verify(t, w.Bucket, w.Policy), audit.UnreadableAnchor, anchor(2))
		}
	}
}

// change replaces a text in an object.
func change(w *audittest.World, key, old, with string) {
	w.T.Helper()
	b := w.Bucket.Bytes(key)
	if bytes.Count(b, []byte(old)) != 1 {
		w.T.Fatalf("%s is not once in %s", old, b)
	}
	w.Bucket.Replace(key, bytes.Replace(b, []byte(old), []byte(with), 1))
}

// TestWhatIsUnreadable is compared with nothing: neither an anchor nor the head in
// the control table contradicts it.
func TestWhatIsUnreadable(t *testing.T) {
	for _, seq := range []int64{9, 10} { // the one that anchor 3 covers, and the head
		w := audittest.New(t)
		w.Bucket.Replace(record(seq), append(w.Bucket.Bytes(record(seq)), ' '))
		p := w.Policy
		p.Head = &w.Head
		r := verify(t, w.Bucket, p)
		if len(r.Findings) != 1 || r.Findings[0].Kind != audit.UnreadableRecord || r.Findings[0].Object != record(seq) {
			t.Errorf("record %d: %v", seq, r.Findings)
		}
		if head := w.Head.Hash; (seq == 10) != (r.HeadHash == "") || r.HeadHash != "" && r.HeadHash != head {
			t.Errorf("record %d: the head is %q", seq, r.HeadHash)
		}
	}
}

// TestHead compares the chain with the head in the control table.
func TestHead(t *testing.T) {
	genesis := audit.Genesis(audittest.Chain)
	for name, c := range map[string]struct {
		head audit.Head
		want string
	}{
		"read before the first record":   {genesis, ""},
		"of another chain without one":   {audit.Genesis("other"), "the head of an empty chain is"},
		"read before the last record":    {audit.Head{Seq: 9}, ""},
		"with another hash":              {audit.Head{Seq: 9, Hash: genesis.Hash}, "record 9 has hash"},
		"of a record that is not there":  {audit.Head{Seq: 11, Hash: genesis.Hash}, "the control table's head is record 11"},
		"of the last record, as it says": {audit.Head{Seq: 10}, ""},
	} {
		w := audittest.New(t)
		if c.head.Hash == "" {
			c.head = w.Entries[c.head.Seq-1].Head()
		}
		p := w.Policy
		p.Head = &c.head
		r := verify(t, w.Bucket, p)
		switch {
		case c.want == "" && r.Result != audit.Green:
			t.Errorf("%s: %v", name, r.Findings)
		case c.want != "" && (len(r.Findings) != 1 || r.Findings[0].Kind != audit.WrongHead || !strings.Contains(r.Findings[0].Detail, c.want)):
			t.Errorf("%s: %v, want %s", name, r.Findings, c.want)
		}
	}
}

// TestTail: the age of the tail is that of its oldest record, and it may be as old as
// the policy says.
func TestTail(t *testing.T) {
	w := audittest.New(t)
	last := w.Policy.Now.Add(-time.Minute) // when record 10 was made
	for name, c := range map[string]struct {
		now  time.Time
		age  time.Duration
		kind audit.Kind
	}{
		"young":                    {w.Policy.Now, time.Minute, ""},
		"as old as it may be":      {last.Add(w.Policy.MaxTail), w.Policy.MaxTail, ""},
		"older":                    {last.Add(w.Policy.MaxTail + 1), w.Policy.MaxTail + 1, audit.TailTooOld},
		"by a clock that is ahead": {last.Add(-time.Second), 0, ""},
	} {
		p := w.Policy
		p.Now = c.now
		r := verify(t, w.Bucket, p)
		if r.TailAge != c.age || (c.kind == "") != (r.Result == audit.Green) {
			t.Errorf("%s: %s, %s, %v", name, r.TailAge, r.Result, r.Findings)
		}
	}
	w.Bucket.Remove(record(10))
	p := w.Policy
	p.Now = last.Add(365 * 24 * time.Hour)
	if r := verify(t, w.Bucket, p); r.TailAge != 0 || r.Result != audit.Green {
		t.Errorf("without a tail: %s, %v", r.TailAge, r.Findings)
	}
}

// TestKnown: every anchor that is remembered must be there.
func TestKnown(t *testing.T) {
	w := audittest.New(t)
	p := w.Policy
	for n := range w.Anchors {
		p.Known = append(p.Known, audittest.Known(t, w.Anchors[n]))
	}
	p.Known[1].Digest = p.Known[0].Digest
	p.Known[2].N = 4
	r := verify(t, w.Bucket, p)
	if len(r.Findings) != 2 {
		t.Errorf("%v", r.Findings)
	}
	for n, want := range map[int64]string{2: "was seen before with digest", 4: "was seen before and is not there"} {
		audittest.MustFind(t, r, audit.Rollback, anchor(n))
		if !strings.Contains(fmt.Sprint(r.Findings), fmt.Sprintf("anchor %d %s", n, want)) {
			t.Errorf("%v, want anchor %d %s", r.Findings, n, want)
		}
	}
}

func TestParseKnown(t *testing.T) {
	digest := strings.Repeat("0f", 32)
	for _, k := range []audit.Known{{N: 1, Digest: digest}, {N: 9223372036854775807, Digest: digest}} {
		if got, err := audit.ParseKnown(k.String()); err != nil || got != k {
			t.Errorf("%s: %+v, %v", k, got, err)
		}
	}
	for _, s := range []string{
		"", "1", "1:", ":" + digest, "0:" + digest, "-1:" + digest, "x:" + digest, "9223372036854775808:" + digest,
		"1:" + digest[1:], "1:" + digest + "0", "1:" + strings.ToUpper(digest), "1:" + digest[:63] + "g", "1:g" + digest[1:],
	} {
		if got, err := audit.ParseKnown(s); err == nil || got != (audit.Known{}) {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
}

// TestRetention: clocks may disagree by five minutes.
func TestRetention(t *testing.T) {
	for short, green := range map[time.Duration]bool{0: true, 5 * time.Minute: true, 5*time.Minute + time.Millisecond: false} {
		w := audittest.New(t)
		made, err := time.Parse(time.RFC3339, w.Entries[4].Record.Time)
		if err != nil {
			t.Fatal(err)
		}
		lock := audittest.Lock(made)
		lock.Until = lock.Until.Add(-short)
		w.Bucket.Relock(record(5), lock)
		if r := verify(t, w.Bucket, w.Policy); (r.Result == audit.Green) != green {
			t.Errorf("%s too short: %v", short, r.Findings)
		}
	}
}

// undated is a bucket that does not know when a version was written, as a copy's manifest
// may not.
type undated struct{ audit.Bucket }

// Versions implements [audit.Bucket].
func (b undated) Versions(ctx context.Context) ([]audit.ObjectVersion, error) {
	versions, err := b.Bucket.Versions(ctx)
	for i := range versions {
		versions[i].Modified = time.Time{}
	}
	return versions, err
}

// TestUndatedRetention: without S3's time a lock lasts from the record's own.
func TestUndatedRetention(t *testing.T) {
	w := audittest.New(t)
	if r := verify(t, undated{w.Bucket}, w.Policy); r.Result != audit.Green {
		t.Errorf("%v", r.Findings)
	}
	w.Bucket.Relock(record(5), audit.Lock{Mode: audit.Compliance, Until: w.Policy.Now.Add(time.Hour)})
	audittest.MustFind(t, verify(t, undated{w.Bucket}, w.Policy), audit.ShortRetention, record(5))
}

// put signs, logs and stores one more anchor. proof is its proof, if not a new one.
func put(w *audittest.World, head audit.Head, proof func(audit.Signed) audit.Proof) {
	w.T.Helper()
	n := int64(len(w.Anchors)) + 1
	prev := audit.AnchorGenesis(audittest.Chain)
	if n > 1 {
		prev = audittest.Known(w.T, w.Anchors[n-2]).Digest
	}
	at, err := time.Parse(time.RFC3339, w.Entries[head.Seq-1].Record.Time)
	if err != nil {
		w.T.Fatal(err)
	}
	signed := w.Key.Statement(w.T, audit.NewStatement(audittest.Chain, n, prev, head, at))
	if proof == nil {
		proof = func(s audit.Signed) audit.Proof { return w.Log.Submit(w.T, s) }
	}
	a := w.Prove(signed, proof(signed))
	b, err := a.Encode()
	if err != nil {
		w.T.Fatal(err)
	}
	w.Anchors = append(w.Anchors, a)
	w.Bucket.Put(anchor(n), b, audittest.Lock(at))
}

// TestSameRecordAgain: an anchor may cover the record that the one before covers.
func TestSameRecordAgain(t *testing.T) {
	w := audittest.New(t)
	put(w, w.Entries[8].Head(), nil)
	if r := verify(t, w.Bucket, w.Policy); r.Result != audit.Green || r.Anchors != 4 || r.Anchored != 9 {
		t.Errorf("%s: %v", r, r.Findings)
	}
}

// TestSameTree: two anchors may show one tree.
func TestSameTree(t *testing.T) {
	w := audittest.New(t)
	var fourth int64
	put(w, w.Entries[8].Head(), func(s audit.Signed) audit.Proof {
		fourth = w.Log.Submit(t, s).Index
		return w.Log.Prove(fourth)
	})
	put(w, w.Entries[9].Head(), nil)
	w.Anchors[3] = w.Prove(w.Anchors[3].Signed, w.Log.Prove(fourth)) // in the tree of the fifth
	w.Anchors[4] = w.Prove(w.Anchors[4].Signed, w.Anchors[4].Proof)
	for n, a := range w.Anchors[3:] {
		b, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		w.Bucket.Replace(anchor(int64(n)+4), b)
	}
	a := w.Anchors[3]
	if r := verify(t, w.Bucket, w.Policy); r.Result != audit.Green || r.Anchors != 5 || a.Proof.Checkpoint != w.Anchors[4].Proof.Checkpoint {
		t.Errorf("%s: %v", r, r.Findings)
	}
}

// TestLogOrder: the entries of anchors are in their order, each against all before.
func TestLogOrder(t *testing.T) {
	w := audittest.New(t)
	var early []int64
	forFourth := func(s audit.Signed) audit.Proof { return w.Log.Submit(t, s) }
	put(w, w.Entries[8].Head(), forFourth) // anchor 4 will be logged again, later
	put(w, w.Entries[8].Head(), forFourth)
	put(w, w.Entries[9].Head(), forFourth)
	for _, a := range w.Anchors {
		early = append(early, a.Proof.Index)
	}
	signed := w.Key.Statement(t, w.Anchors[3].Signed.Statement)
	a := w.Prove(signed, w.Log.Submit(t, signed))
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.Bucket.Replace(anchor(4), b)
	r := verify(t, w.Bucket, w.Policy)
	if a.Proof.Index <= early[5] || len(r.Findings) != 2 {
		t.Errorf("entry %d after %v: %v", a.Proof.Index, early, r.Findings)
	}
	audittest.MustFind(t, r, audit.ReusedEntry, anchor(5))
	audittest.MustFind(t, r, audit.ReusedEntry, anchor(6)) // it comes after that of anchor 5
}

// TestManyFindings: 200 are listed, the others counted, and what is found beyond
// still has its effect.
func TestManyFindings(t *testing.T) {
	for _, n := range []int{199, 200, 201, 205} {
		w := audittest.New(t)
		for i := range n {
			w.Bucket.Put(fmt.Sprintf("stray-%03d", i), nil, audit.Lock{})
		}
		r := verify(t, w.Bucket, w.Policy)
		if len(r.Findings) != min(n, 200) || r.More != max(0, n-200) || r.Result != audit.Tampered {
			t.Errorf("%d strays: %d findings and %d more, %s", n, len(r.Findings), r.More, r.Result)
		}
		if want := fmt.Sprintf("TAMPERED: %d findings", n); !strings.HasSuffix(r.String(), want) {
			t.Errorf("%s, want %s", r, want)
		}
		if r.Anchors != 3 || r.Anchored != 9 {
			t.Errorf("%d strays: %s", n, r)
		}
		w.Bucket.Replace(anchor(3), bytes.Replace(w.Bucket.Bytes(anchor(3)), []byte(`"index":3`), []byte(`"index":2`), 1))
		if r := verify(t, w.Bucket, w.Policy); r.Anchors != 2 || r.Anchored != 6 || r.LogIndex != 2 {
			t.Errorf("%d strays and a wrong anchor: %s", n, r)
		}
	}
}

// TestReadsAhead: sixteen objects are read at once, and no more.
func TestReadsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := audittest.New(t)
		head := w.Head
		for head.Seq < 40 {
			e, err := audit.Next(audittest.Chain, head, w.Policy.Now, audit.Event{ID: "e"})
			if err != nil {
				t.Fatal(err)
			}
			w.Bucket.Put(record(e.Record.Seq), e.Bytes, audittest.Lock(w.Policy.Now))
			head = e.Head()
		}
		var now, most, records atomic.Int64
		b := faulty{Bucket: w.Bucket, read: func(key string) error {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(time.Second)
			now.Add(-1)
			if strings.Contains(key, "records") {
				records.Add(1)
			}
			return nil
		}}
		began := time.Now()
		r := verify(t, b, w.Policy)
		if took := time.Since(began); r.Records != 40 || records.Load() != 40 || most.Load() != 16 || took != 4*time.Second {
			t.Errorf("%d records, %d read, %d at once, in %s: %v", r.Records, records.Load(), most.Load(), took, r.Findings)
		}
	})
}

// TestReport: what is printed for a person.
func TestReport(t *testing.T) {
	anchored := audit.Report{Result: audit.Green, Records: 7, Last: &audit.Known{N: 2, Digest: "ab"}, Anchored: 6, LogIndex: 4, Log: "log.test"}
	bare := audit.Report{Result: audit.Unproven, Records: 7, LogIndex: -1, Unchecked: []string{"this", "that"}}
	tampered := audit.Report{
		Result: audit.Tampered, More: 1, LogIndex: -1,
		Findings: []audit.Finding{{Kind: audit.Rollback, Object: "o", Detail: "d"}, {Kind: audit.NoRecords, Object: "p", Detail: "e"}},
	}
	lost := audit.Report{Result: audit.Green, Records: 7, LogIndex: -1, Lost: []audit.Lost{{Seq: 3, Hash: "cd", By: 5}, {Seq: 4, By: 6}}}
	for _, c := range []struct {
		report audit.Report
		want   string
	}{
		{lost, "record 3 was lost before it was in the bucket, as record 5 says; its hash is cd\n" +
			"record 4 was lost before it was in the bucket, as record 6 says; its hash is \naudit: 7 records, not anchored, 2 lost before they were in the bucket, verified\n"},
		{anchored, "remember: --known-anchor 2:ab\naudit: 7 records, 6 anchored at log index 4 of log.test, verified\n"},
		{bare, "not checked: this\nnot checked: that\naudit: 7 records, not anchored, unproven\n"},
		{tampered, "o: rollback: d\np: no_records: e\nand 1 more\naudit: 0 records, not anchored, TAMPERED: 3 findings\n"},
	} {
		var b strings.Builder
		if err := c.report.Print(&b); err != nil || b.String() != c.want {
			t.Errorf("%v, printed:\n%swant:\n%s", err, b.String(), c.want)
		}
	}
	if err := anchored.Print(brokenPipe{}); !errors.Is(err, errPipe) {
		t.Errorf("into a broken pipe: %v", err)
	}
}

var errPipe = errors.New("broken pipe")

type brokenPipe struct{}

// Write implements [io.Writer].
func (brokenPipe) Write([]byte) (int, error) { return 0, errPipe }
