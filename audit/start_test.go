package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
)

const year = 365 * 24 * time.Hour

// counting counts the calls to a bucket.
type counting struct {
	*audittest.Bucket
	whole, lists int
	reads        atomic.Int64 // objects are read at the same time
}

func (c *counting) Versions(ctx context.Context) ([]audit.ObjectVersion, error) {
	c.whole++
	return c.Bucket.Versions(ctx) //nolint:wrapcheck // as it is
}

func (c *counting) VersionsAfter(ctx context.Context, prefix, after string) ([]audit.ObjectVersion, error) {
	c.lists++
	return c.Bucket.VersionsAfter(ctx, prefix, after) //nolint:wrapcheck // as it is
}

func (c *counting) Read(ctx context.Context, v audit.ObjectVersion) (audit.Object, error) {
	c.reads.Add(1)
	return c.Bucket.Read(ctx, v) //nolint:wrapcheck // as it is
}

func since(tb testing.TB, b audit.Bucket, p audit.Policy) audit.Report {
	tb.Helper()
	r, err := audit.VerifySince(tb.Context(), b, p, year)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// withHead is the policy of a verifier that has the control table's head.
func withHead(w *audittest.World) audit.Policy {
	p := w.Policy
	p.Head = &w.Head
	return p
}

// TestVerifySince: a verification begins at the anchor that a record states, reads what came
// after it, and says what it did not read.
func TestVerifySince(t *testing.T) {
	w := audittest.NewStated(t)
	r := since(t, w.Bucket, withHead(w))
	if r.Result != audit.Green || r.Start == nil || r.Start.Seq != 3 || r.Start.Stated != 4 || r.Records != 10 || r.Anchored != 9 || r.Anchors != 3 {
		t.Fatalf("%+v", r)
	}
	want := "records before 3 and anchors before 1 were not read now, and other objects not listed: anchor 1, signed 2026-04-01T02:03:00.000Z, covers the records, " +
		"as record 4 states; the chain was verified whole up to record 3 on 2026-04-01T02:03:00.000Z by somebody"
	if !strings.Contains(strings.Join(r.Unchecked, "\n"), want) {
		t.Errorf("it does not say what it has not read: %q", r.Unchecked)
	}
	if !strings.Contains(r.String(), "read from record 3 on") {
		t.Errorf("%s", r)
	}
	next, ok := r.NextStart(w.Policy.Now, "another")
	if !ok || next.Seq != 9 || next.Anchor.N != 3 || next.Whole != r.Start.Whole {
		t.Errorf("the next one begins at %+v, %v", next, ok)
	}
}

// TestVerifySinceOlder: objects before the start are neither read nor listed.
func TestVerifySinceOlder(t *testing.T) {
	w := audittest.NewStated(t)
	w.Bucket.Remove(audit.ObjectKey(audittest.Chain, 1), audit.ObjectKey(audittest.Chain, 2))
	b := &counting{Bucket: w.Bucket}
	if r := since(t, b, withHead(w)); r.Result != audit.Green || b.whole != 0 {
		t.Errorf("%d whole lists, %v", b.whole, r)
	}
	if r := verify(t, w.Bucket, withHead(w)); r.Result != audit.Tampered {
		t.Errorf("a whole verification finds nothing: %v", r)
	}
}

// TestVerifySinceWhole: without a statement that can be used, or if something is found, the
// chain is read whole.
func TestVerifySinceWhole(t *testing.T) {
	for name, change := range map[string]func(w *audittest.World, p *audit.Policy){
		"no statement":   func(w *audittest.World, p *audit.Policy) { *w = *audittest.New(w.T.(*testing.T)); *p = withHead(w) },
		"no head":        func(_ *audittest.World, p *audit.Policy) { p.Head = nil },
		"whole long ago": func(_ *audittest.World, p *audit.Policy) { p.Now = p.Now.Add(year); p.MaxTail = 2 * year },
		"whole in time to come": func(w *audittest.World, p *audit.Policy) {
			*w = *audittest.NewStatedAt(w.T.(*testing.T), p.Now.Add(year/2))
			*p = withHead(w)
		},
		"an older known anchor": func(_ *audittest.World, p *audit.Policy) {
			p.Known = []audit.Known{{N: 0, Digest: strings.Repeat("0", 64)}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := audittest.NewStated(t)
			p := withHead(w)
			change(w, &p)
			b := &counting{Bucket: w.Bucket}
			r := since(t, b, p)
			if r.Start != nil || b.whole != 1 {
				t.Errorf("%d whole lists, began at %+v", b.whole, r.Start)
			}
			if int64(w.Bucket.Count()) != b.reads.Load() {
				t.Errorf("%d objects, %d reads: each is read once", w.Bucket.Count(), b.reads.Load())
			}
		})
	}
}

// TestStartIsProved: what a record states is where to look. An anchor that is not signed,
// logged and locked as every other begins nothing.
func TestStartIsProved(t *testing.T) {
	const anchor = "v1/" + audittest.Chain + "/anchors/000000000001.json"
	for name, forge := range map[string]func(w *audittest.World){
		"other signature": func(w *audittest.World) {
			b := string(w.Bucket.Bytes(anchor))
			i := strings.Index(b, `"signature":"`) + len(`"signature":"`) + 20
			w.Bucket.Replace(anchor, []byte(b[:i]+flip(b[i])+b[i+1:]))
		},
		"other statement": func(w *audittest.World) {
			w.Bucket.Replace(anchor, []byte(strings.Replace(string(w.Bucket.Bytes(anchor)), `"seq":3`, `"seq":2`, 1)))
		},
		"no lock":       func(w *audittest.World) { w.Bucket.Relock(anchor, audit.Lock{}) },
		"not there":     func(w *audittest.World) { w.Bucket.Remove(anchor) },
		"untrusted key": func(w *audittest.World) { w.Policy.Trust.AnchorKeys = nil },
		"untrusted log": func(w *audittest.World) { w.Policy.Trust.Logs = nil },
		"other record":  func(w *audittest.World) { w.Bucket.Replace(audit.ObjectKey(audittest.Chain, 3), w.Entries[1].Bytes) },
	} {
		t.Run(name, func(t *testing.T) {
			w := audittest.NewStated(t)
			start, ok := audit.ParseStart(w.Entries[3].Record)
			if !ok {
				t.Fatal("no statement")
			}
			forge(w)
			p := withHead(w)
			p.Start = &start
			r := verify(t, w.Bucket, p)
			if r.Result == audit.Green {
				t.Errorf("it began there: %v", r)
			}
			if next, ok := r.NextStart(p.Now, "somebody"); ok {
				t.Errorf("and another may begin at %+v", next)
			}
		})
	}
}

// TestStartOfAnotherAnchor: the anchor must be the one that the record names, not only a true
// one.
func TestStartOfAnotherAnchor(t *testing.T) {
	w := audittest.NewStated(t)
	start, _ := audit.ParseStart(w.Entries[3].Record)
	start.Anchor.Digest = strings.Repeat("0", 64)
	p := withHead(w)
	p.Start = &start
	if r := verify(t, w.Bucket, p); r.Result == audit.Green {
		t.Errorf("it began there: %v", r)
	}
}

// flip returns another letter of base64.
func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

// TestStartInAnotherGeneration: a chain that has continued in another generation is read whole.
func TestStartInAnotherGeneration(t *testing.T) {
	w := audittest.NewStated(t)
	start, _ := audit.ParseStart(w.Entries[3].Record)
	p := withHead(w)
	p.Start = &start
	p.Generations = audit.Generations("").With(audit.Generation{ID: "g1-0123456789abcdef", From: 9})
	if _, err := audit.Verify(t.Context(), w.Bucket, p); !errors.Is(err, audit.ErrStart) {
		t.Errorf("got %v", err)
	}
}

// TestTamperedSince: whatever is forged where a verification looks, it finds as a whole one
// does; what it cannot see lies before its start.
func TestTamperedSince(t *testing.T) {
	unseen := 0
	for _, c := range audittest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			w := audittest.NewStated(t)
			c.Tamper(w)
			p := withHead(w)
			if c.Memory != nil {
				c.Memory(w, &p)
			}
			whole := verify(t, w.Bucket, p)
			r := since(t, w.Bucket, p)
			switch {
			case r.Result == whole.Result:
			case r.Start != nil && !isAfter(c.Object):
				unseen++
			default:
				t.Errorf("since an anchor %v, whole %v", r, whole)
			}
		})
	}
	if unseen > 10 {
		t.Errorf("%d cases are not seen: too many to show anything", unseen)
	}
}

// isAfter reports whether an object is one that a verification from record 3 and anchor 1 on
// looks at.
func isAfter(key string) bool {
	var n int
	if _, err := fmt.Sscanf(key[strings.LastIndex(key, "/")+1:], "%d.json", &n); err != nil {
		return false
	}
	return strings.HasPrefix(key, "v1/"+audittest.Chain+"/records/") && n >= 3 || strings.HasPrefix(key, "v1/"+audittest.Chain+"/anchors/")
}

// TestStartText: what is stated is read back, and nothing else is.
func TestStartText(t *testing.T) {
	w := audittest.NewStated(t)
	good := w.Entries[3].Record
	if _, ok := audit.ParseStart(good); !ok {
		t.Fatal("it is not read back")
	}
	for name, v := range map[string]string{
		"verified_anchor": "1", "verified_seq": "4", "verified_whole_records": "", "verified_whole_at": "yesterday", "verified_generations": "13", "verified_anchor_generations": "x",
	} {
		bad := good
		bad.Body = map[string]string{}
		for k, v := range good.Body {
			bad.Body[k] = v
		}
		bad.Body[name] = v
		if s, ok := audit.ParseStart(bad); ok {
			t.Errorf("%s %q: read as %+v", name, v, s)
		}
	}
}
