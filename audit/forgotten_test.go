package audit_test

import (
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// repaired is the record of a repair that names forgotten generations by their last records.
func repaired(tips ...string) audit.Event {
	return audit.Event{ID: "repair", Type: audit.EventRepaired, Body: map[string]string{audit.BodyForgotten: strings.Join(tips, ",")}}
}

// inGeneration is the key of a first generation's object under another's.
func inGeneration(key string, g audit.Generation) string {
	i := strings.LastIndex(key, "/") + 1
	return key[:i] + g.ID + "/" + key[i:]
}

// restored is a world whose control table was set back to before generations of records
// and of anchors began, g and a. The chain continues past the objects in its way in others
// and names the last record of g in record 13, if it is told to.
func restored(t *testing.T, named bool) (w *audittest.World, g, a audit.Generation) {
	t.Helper()
	w = audittest.New(t)
	o, p := w.Plant(record(11), "foreign"), w.Plant(anchor(4), "foreign too")
	g = w.Generation(11, o, 0, false)
	a = w.AnchorGeneration(p)
	w.Anchor()
	last := w.Append(audit.Event{ID: "the last"})
	w.Anchor()
	w.Policy.Known = []audit.Known{audittest.Known(t, w.Anchors[3]), audittest.Known(t, w.Anchors[4])}
	w.Restore(10, 3)
	w.Generation(11, o, 0, false)
	if named {
		w.Append(repaired(last.Hash))
	}
	w.AnchorGeneration(p)
	w.Anchor()
	return w, g, a
}

// TestForgottenGenerations: what a control table that was set back has forgotten is of the
// chain, once a record of the chain names it.
func TestForgottenGenerations(t *testing.T) {
	w, g, a := restored(t, true)
	r := verified(t, w, true)
	now, anchors := w.Line().Generations.Last(), w.Anchors[3].Signed.Statement
	want := []audit.GenerationReport{
		{Of: audit.OfRecords, ID: g.ID, From: 11, Seq: 13, Forgotten: 4},
		{Of: audit.OfRecords, ID: now.ID, From: 11, Seq: 11, Object: record(11), SHA256: audit.TakenBy("", "", []byte("foreign")).SHA256},
		{Of: audit.OfAnchors, ID: a.ID, From: 4, Seq: 13, Forgotten: 2},
		{Of: audit.OfAnchors, ID: r.Generations[3].ID, From: 4, Seq: 14, Object: anchor(4), SHA256: audit.TakenBy("", "", []byte("foreign too")).SHA256},
	}
	if d := cmp.Diff(want, r.Generations); d != "" {
		t.Error(d)
	}
	if r.Result != audit.Green || r.Records != 14 || r.Anchors != 4 || r.Anchored != anchors.Seq || r.Anchored != 14 {
		t.Errorf("%s %v", r, r.Findings)
	}
}

// TestForgottenNotNamed: without that record all of it are strays, also the chain's own
// anchors, and an anchor that was seen is gone.
func TestForgottenNotNamed(t *testing.T) {
	for name, ev := range map[string]*audit.Event{
		"nothing":                     nil,
		"a repair that names nothing": {ID: "repair", Type: audit.EventRepaired},
		"another event with its name": {ID: "other", Type: "other", Body: map[string]string{audit.BodyForgotten: strings.Repeat("0f", 32)}},
	} {
		w, g, a := restored(t, false)
		if ev != nil {
			w.Append(*ev)
			w.Anchor()
		}
		r := verified(t, w, true)
		var strays []string
		for seq := int64(11); seq <= 14; seq++ {
			strays = append(strays, inGeneration(record(seq), g))
		}
		strays = append(strays, inGeneration(anchor(4), a), inGeneration(anchor(5), a))
		var found []string
		for _, f := range r.Findings {
			if f.Kind == audit.StrayObject {
				found = append(found, f.Object)
			} else if f.Kind != audit.Rollback {
				t.Errorf("%s: %s", name, f)
			}
		}
		if d := cmp.Diff(strays, found); d != "" || r.Strays != 6 || len(r.Generations) != 2 || r.Result != audit.Tampered {
			t.Errorf("%s: %s %v%s", name, r, r.Generations, d)
		}
		for _, k := range w.Policy.Known {
			audittest.MustFind(t, r, audit.Rollback, inGeneration(anchor(k.N), audit.Generation{ID: r.Generations[1].ID}))
		}
	}
}

// TestForgottenRecord: a generation of a single record is of the chain too.
func TestForgottenRecord(t *testing.T) {
	w := audittest.New(t)
	o := w.Plant(record(11), "foreign")
	g := w.Line().Generations.Next(11, o, "another salt")
	w.Know(g)
	e := w.Append(g.Event(audit.OfRecords, "", o))
	w.Restore(10, 3)
	w.Generation(11, o, 0, false)
	w.Append(repaired(e.Hash))
	w.Anchor()
	if r := verified(t, w, true); r.Result != audit.Green || r.Generations[0] != (audit.GenerationReport{Of: audit.OfRecords, ID: g.ID, From: 11, Seq: 13, Forgotten: 1}) {
		t.Errorf("%s %v %v", r, r.Generations, r.Findings)
	}
}

// TestForgottenInTwoGenerations: a control table that is set back again forgets records of
// the generation after the first time. They follow that one's records, not those forgotten
// the first time, though these end at the same number.
func TestForgottenInTwoGenerations(t *testing.T) {
	w := audittest.New(t)
	w.Generation(9, *audit.TakenBy(record(9), "", w.Bucket.Bytes(record(9))), 0, true)
	w.Append(audit.Event{ID: "forgotten"})
	w.Append(audit.Event{ID: "forgotten too"})
	key := w.Line().RecordKey(11)
	w.Generation(11, *audit.TakenBy(key, "", w.Bucket.Bytes(key)), 1, true)
	for _, table := range []bool{false, true} {
		r := verified(t, w, table)
		if len(r.Generations) != 2 || r.Generations[0].Forgotten != 2 || r.Generations[1].Forgotten != 2 || r.Result != audit.Green {
			t.Errorf("%s %v %v", r, r.Generations, r.Findings)
		}
	}
}

// TestLitterByForgottenAnchors: what is put beside forgotten anchors and is none is a stray.
func TestLitterByForgottenAnchors(t *testing.T) {
	w, _, a := restored(t, true)
	w.Plant(inGeneration(anchor(6), a), "litter")
	r := verified(t, w, true)
	if len(r.Findings) != 1 || r.Generations[2].Forgotten != 2 {
		t.Errorf("%v %v", r.Generations, r.Findings)
	}
	audittest.MustFind(t, r, audit.StrayObject, inGeneration(anchor(6), a))
}

// TestForgottenTwice: each of two generations is named, by the last record that names it,
// and its records that come after the named one are not the chain's.
func TestForgottenTwice(t *testing.T) {
	w := audittest.New(t)
	o := w.Plant(record(11), "foreign")
	first := w.Generation(11, o, 0, true)
	one := w.Head.Hash
	w.Append(audit.Event{ID: "not named"})
	w.Restore(10, 4) // anchor 4 covers record 12 of the first
	second := w.Generation(11, w.Plant(record(12), "other"), 1, false)
	two := w.Head.Hash
	w.Restore(10, 4)
	w.Generation(11, o, 0, false)
	w.Append(repaired("the tip of nothing", one))
	w.Append(repaired(two, "the tip of nothing else"))
	w.Append(repaired(two))
	w.Anchor()
	w.Bucket.Remove(record(12))
	r := verified(t, w, true)
	got := map[string]audit.GenerationReport{}
	for _, g := range r.Generations {
		got[g.ID] = g
	}
	for id, want := range map[string]audit.GenerationReport{
		first.ID:  {Of: audit.OfRecords, ID: first.ID, From: 11, Seq: 13, Forgotten: 2},
		second.ID: {Of: audit.OfRecords, ID: second.ID, From: 11, Seq: 15, Forgotten: 3},
	} {
		if d := cmp.Diff(want, got[id]); d != "" {
			t.Error(d)
		}
	}
	want := []audit.Finding{{Kind: audit.StrayObject, Object: inGeneration(record(13), first), Detail: "no record of the chain begins its generation"}}
	if d := cmp.Diff(want, r.Findings); d != "" {
		t.Error(d)
	}
}

// TestForgottenAndForged: what is put beside forgotten records and is none is a stray, even
// if the chain names its hash.
func TestForgottenAndForged(t *testing.T) {
	next := func(w *audittest.World, head audit.Head) audit.Entry {
		e, err := audit.Next(audittest.Chain, head, w.Policy.Now, audit.Event{ID: "forged"})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for name, forge := range map[string]func(w *audittest.World, g audit.Generation, head audit.Head) (hash, key string){
		"no record": func(w *audittest.World, g audit.Generation, _ audit.Head) (hash, key string) {
			key = inGeneration(record(13), g)
			w.Plant(key, "{}")
			return "", key
		},
		"a record under another number": func(w *audittest.World, g audit.Generation, head audit.Head) (hash, key string) {
			e := next(w, head)
			key = inGeneration(record(14), g)
			w.Plant(key, string(e.Bytes))
			return e.Hash, key
		},
		"a record that does not link": func(w *audittest.World, g audit.Generation, head audit.Head) (hash, key string) {
			e := next(w, audit.Head{Seq: head.Seq, Hash: audit.Genesis("other").Hash})
			key = inGeneration(record(13), g)
			w.Plant(key, string(e.Bytes))
			return e.Hash, key
		},
	} {
		w := audittest.New(t)
		o := w.Plant(record(11), "foreign")
		g := w.Generation(11, o, 0, true)
		tip := w.Head
		hash, key := forge(w, g, tip)
		w.Restore(10, 4)
		w.Generation(11, o, 0, false)
		w.Append(repaired(tip.Hash, hash))
		w.Anchor()
		r := verified(t, w, true)
		if len(r.Findings) != 1 || r.Generations[0].Forgotten != 2 {
			t.Errorf("%s: %v %v", name, r.Generations, r.Findings)
		}
		audittest.MustFind(t, r, audit.StrayObject, key)
	}
}

// TestForgottenAnchors: an object in an anchor's place is a forgotten anchor if it is this
// chain's, under its own number and signed by a key that is pinned.
func TestForgottenAnchors(t *testing.T) {
	for name, c := range map[string]struct {
		object    func(w *audittest.World, own audit.Anchor) audit.Anchor
		forgotten int64
	}{
		"its own": {func(_ *audittest.World, own audit.Anchor) audit.Anchor { return own }, 1},
		"another number": {func(w *audittest.World, own audit.Anchor) audit.Anchor {
			own.Signed.Statement.N = 5
			return audit.Anchor{V: own.V, Signed: w.Key.Statement(t, own.Signed.Statement), Proof: own.Proof}
		}, 0},
		"another chain": {func(w *audittest.World, own audit.Anchor) audit.Anchor {
			own.Signed.Statement.Chain = "other"
			return audit.Anchor{V: own.V, Signed: w.Key.Statement(t, own.Signed.Statement), Proof: own.Proof}
		}, 0},
		"no time": {func(w *audittest.World, own audit.Anchor) audit.Anchor {
			own.Signed.Statement.Time = "yesterday"
			return audit.Anchor{V: own.V, Signed: w.Key.Statement(t, own.Signed.Statement), Proof: own.Proof}
		}, 0},
		"edited": {func(_ *audittest.World, own audit.Anchor) audit.Anchor {
			own.Signed.Statement.Head = audit.Genesis("other").Hash
			return own
		}, 0},
		"a key that is not pinned": {func(_ *audittest.World, own audit.Anchor) audit.Anchor {
			return audit.Anchor{V: own.V, Signed: rekortest.NewKey(t).Statement(t, own.Signed.Statement), Proof: own.Proof}
		}, 0},
	} {
		w := audittest.New(t)
		w.Policy.Trust.AnchorKeys[0].From = time.Time{} // as the deployment knows its own key
		w.Anchor()
		b, err := c.object(w, w.Anchors[3]).Encode()
		if err != nil {
			t.Fatal(err)
		}
		w.Bucket.Replace(anchor(4), b)
		w.Restore(10, 3)
		w.AnchorGeneration(*audit.TakenBy(anchor(4), "", b))
		w.Anchor()
		r := verified(t, w, true)
		if len(r.Generations) != 1 || r.Generations[0].Forgotten != c.forgotten || r.Result != audit.Green {
			t.Errorf("%s: %v %v", name, r.Generations, r.Findings)
		}
	}
}

// TestEveryReadMatters: a read that fails is an error, whichever it is, and an object that
// is gone is a finding.
func TestEveryReadMatters(t *testing.T) {
	w, _, _ := restored(t, true)
	p := w.Policy
	p.Head, p.Generations = &w.Head, w.Line().Generations
	var reads atomic.Int64
	count := func(string) error { reads.Add(1); return nil }
	if r := verify(t, faulty{Bucket: w.Bucket, read: count}, p); r.Result != audit.Green {
		t.Fatal(r.Findings)
	}
	broken := errors.New("the network is down")
	for n := reads.Load(); n > 0; n-- {
		var now atomic.Int64
		_, err := audit.Verify(t.Context(), faulty{Bucket: w.Bucket, read: func(string) error {
			if now.Add(1) == n {
				return broken
			}
			return nil
		}}, p)
		if !errors.Is(err, broken) {
			t.Errorf("read %d: %v", n, err)
		}
	}
	for _, o := range w.Bucket.Stored() {
		if r := verify(t, faulty{Bucket: w.Bucket, read: failAt(o.Key, fs.ErrNotExist)}, p); r.Result != audit.Tampered {
			t.Errorf("without %s: %s", o.Key, r)
		}
	}
}
