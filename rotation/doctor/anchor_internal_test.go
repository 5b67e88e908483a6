package doctor

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// TestVerifiedAnchor: an anchor counts if its key is the deployment's or pinned, it is of
// this chain and number, its signature is good and a trusted log holds it.
func TestVerifiedAnchor(t *testing.T) {
	a := anchorist{t, rekortest.New(t), rekortest.NewKey(t)}
	head := audit.Head{Seq: 3, Hash: strings.Repeat("a", 64)}
	good := a.anchor(line, 2, head)
	other := rekortest.NewKey(t)
	forged := a.signed(line, 2, head)
	forged.Signature = a.signed(line, 2, audit.Head{Seq: 4, Hash: head.Hash}).Signature
	trust := audit.Trust{Logs: []audit.Log{a.log.Trust()}}
	pinned := trust
	pinned.AnchorKeys = []audit.PinnedKey{{Key: other.DER}, {Key: a.key.DER}}
	for _, tc := range []struct {
		name  string
		b     []byte
		own   []byte
		trust audit.Trust
		ok    bool
	}{
		{"its own", good, a.key.DER, trust, true},
		{"pinned", good, other.DER, pinned, true},
		{"of another key", good, other.DER, trust, false},
		{"of another chain", a.anchor("other", 2, head), a.key.DER, trust, false},
		{"of another number", a.anchor(line, 3, head), a.key.DER, trust, false},
		{"of a pinned key and another chain", a.anchor("other", 2, head), other.DER, pinned, false},
		{"of a pinned key and another number", a.anchor(line, 3, head), other.DER, pinned, false},
		{"with another's signature", a.encoded(forged), a.key.DER, trust, false},
		{"in a log that is not trusted", good, a.key.DER, audit.Trust{Logs: []audit.Log{rekortest.New(t).Trust()}}, false},
		{"in no log", good, a.key.DER, audit.Trust{}, false},
		{"none", []byte("{}"), a.key.DER, trust, false},
		{"missing", nil, a.key.DER, trust, false},
	} {
		s := Doctor{Anchor: &anchor.Anchor{Trust: tc.trust}}
		got, err := s.verifiedAnchor(tc.b, tc.own, line, 2)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %+v, %v", tc.name, got, err)
		}
		if want := (anchor.Anchored{N: 2, Digest: got.Digest, Head: head, Log: rekortest.Origin, At: at(2), Index: got.Index}); tc.ok && (got != want || got.Digest == "") {
			t.Errorf("%s: %+v, want %+v", tc.name, got, want)
		}
		if !tc.ok && got != (anchor.Anchored{}) {
			t.Errorf("%s: %+v beside an error", tc.name, got)
		}
	}
}

// TestLastAnchors: of each place the anchors are read from the last on until one covers a
// record of the chain; the last of all such counts, and each proves the record that it
// covers, be it forgotten. The first anchor is under one key in both places.
func TestLastAnchors(t *testing.T) {
	a := anchorist{t, rekortest.New(t), rekortest.NewKey(t)}
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3", "a=4")
	lost := chained(t, own[1].Head(), 10, "b=3", "b=4")
	later := audit.Generations("").With(audit.Generation{ID: generation(1), From: 2})
	for _, tc := range []struct {
		name    string
		first   []audit.Entry // what the anchors of the first place cover, from 1 on; none is an object of others
		second  []audit.Entry // and those of the next, from 2 on
		last    int64         // 0: none
		covers  int64
		proven  []audit.Entry
		unknown []audit.Entry // records that no anchor that was read covers
	}{
		{name: "none"},
		{name: "one", first: own[:1], last: 1, covers: 1, proven: own[:1]},
		{name: "the last is enough", first: own[:3], last: 3, covers: 3, proven: []audit.Entry{own[0], own[2]}, unknown: own[1:2]},
		{name: "back to one of the chain", first: append(own[:2:2], lost...), last: 2, covers: 2, proven: append(own[:2:2], lost...)},
		{name: "past one that is none", first: []audit.Entry{own[0], own[1], {}}, last: 2, covers: 2, proven: own[:2]},
		{name: "of what is forgotten alone", first: lost, proven: lost},
		{name: "the next place's is later", first: own[:1], second: own[1:3], last: 3, covers: 3, proven: []audit.Entry{own[0], own[2]}},
		{name: "the first place's is later", first: own[:3], second: own[3:], last: 3, covers: 3, proven: []audit.Entry{own[2], own[3]}},
		{name: "the first place's is as late", first: own[:2], second: own[2:3], last: 2, covers: 2, proven: own[1:3]},
	} {
		bucket := shelf{objects: map[string][]byte{}}
		put := func(places audit.Generations, from int64, covered []audit.Entry) {
			for i, e := range covered {
				key := places.AnchorKeyIn(line, from+int64(i))
				if bucket.objects[key] = []byte("{}"); e.Bytes != nil {
					bucket.objects[key] = a.anchor(line, from+int64(i), e.Head())
				}
			}
		}
		put("", 1, tc.first)
		put(later, 2, tc.second)
		s := Doctor{Anchor: &anchor.Anchor{Objects: &bucket, Signer: a.key, Trust: audit.Trust{Logs: []audit.Log{a.log.Trust()}}}}
		c := &chainRead{at: audit.Line{Chain: line}, line: own, last: 4, table: map[int64]audit.Entry{}}
		state := itemOf(ItemAnchor, "", anchor.State{Rev: 1, Last: anchor.Anchored{N: 1, Digest: "d"}, Places: later})
		other := itemOf(ItemLock, "", LockItem{"r"})
		out, err := s.readAnchors(t.Context(), c, []Item{other, state})
		if err != nil || out.places != later {
			t.Errorf("%s: %q, %v", tc.name, out.places, err)
		}
		switch {
		case tc.last == 0 && out.last != nil, tc.last > 0 && (out.last == nil || out.last.N != tc.last || out.last.Head.Seq != tc.covers):
			t.Errorf("%s: the last is %+v, want %d of record %d", tc.name, out.last, tc.last, tc.covers)
		}
		want := map[audit.Head]bool{}
		for _, e := range tc.proven {
			want[e.Head()] = true
		}
		if d := cmp.Diff(want, out.proven); d != "" {
			t.Errorf("%s: proven (-want +got):\n%s", tc.name, d)
		}
		for _, e := range tc.unknown {
			if out.proven[e.Head()] {
				t.Errorf("%s: record %d is proven", tc.name, e.Record.Seq)
			}
		}
		bucket.broken = audit.Generations("").AnchorKeyIn(line, 1)
		if _, err := s.readAnchors(t.Context(), c, []Item{state}); !errors.Is(err, errShelf) {
			t.Errorf("%s: the bucket cannot be read: %v", tc.name, err)
		}
		bucket.broken = ""
		if out, err := s.readAnchors(t.Context(), c, []Item{broken(state)}); err != nil || out.places != "" {
			t.Errorf("%s: the state is damaged: places %q, %v", tc.name, out.places, err)
		}
	}
}
