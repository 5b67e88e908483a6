package audit_test

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
)

// verified verifies with or without what the control table says.
func verified(t *testing.T, w *audittest.World, table bool) audit.Report {
	t.Helper()
	p := w.Policy
	if table {
		p.Head, p.Generations = &w.Head, w.Line().Generations
	}
	r, err := audit.Verify(t.Context(), w.Bucket, p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGenerations: a chain that continued past objects in its way is whole, and the report
// names them, whether the control table is at hand or not.
func TestGenerations(t *testing.T) {
	for name, c := range map[string]struct {
		build     func(w *audittest.World) (first int64, o audit.Taken)
		records   int64
		forgotten int64
	}{
		"one object": {func(w *audittest.World) (int64, audit.Taken) {
			o := w.Plant(record(11), "foreign")
			w.Generation(11, o, 0, true)
			return 11, o
		}, 12, 0},
		"records that were waiting": {func(w *audittest.World) (int64, audit.Taken) {
			o := w.Plant(record(11), "foreign")
			w.Generation(11, o, 3, true)
			return 11, o
		}, 15, 0},
		"one in the generation too": {func(w *audittest.World) (int64, audit.Taken) {
			o := w.Plant(record(11), "foreign")
			w.Generation(11, o, 0, true)
			w.Generation(13, w.Plant(w.Line().RecordKey(13), "again"), 1, true)
			return 11, o
		}, 15, 0},
		"in the place of the generation's first record": {func(w *audittest.World) (int64, audit.Taken) {
			o := w.Plant(record(11), "foreign")
			g := w.Line().Generations.Next(11, o, "salt")
			taken := w.Plant(strings.Replace(record(11), "records/", "records/"+g.ID+"/", 1), "again")
			w.GenerationTwice(11, o, taken)
			return 11, o
		}, 13, 0},
		"a control table that was set back": {func(w *audittest.World) (int64, audit.Taken) {
			o := *audit.TakenBy(record(9), "", w.Bucket.Bytes(record(9)))
			w.Generation(9, o, 1, true)
			return 9, o
		}, 11, 2},
	} {
		for _, table := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				w := audittest.New(t)
				from, o := c.build(w)
				r := verified(t, w, table)
				if r.Result != audit.Green || r.Records != c.records || r.Anchored != c.records || r.HeadHash != w.Head.Hash {
					t.Fatalf("%s %v", r, r.Findings)
				}
				g := r.Generations[0]
				if g.Of != audit.OfRecords || g.From != from || g.Object != o.Key || g.SHA256 != o.SHA256 || g.Forgotten != c.forgotten {
					t.Errorf("%+v", g)
				}
				if !strings.Contains(r.String(), "past an object in its way") {
					t.Error(r)
				}
			})
		}
	}
}

// TestForgedGenerations: what is not as a record of the chain says, or is not said by
// any, is found.
func TestForgedGenerations(t *testing.T) {
	for _, c := range []struct {
		name   string
		tamper func(w *audittest.World) (object string)
		table  bool
		kind   audit.Kind
		result audit.Result
	}{
		{"the object was replaced", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Bucket.Replace(record(11), []byte("another"))
			return record(11)
		}, true, audit.NamedOther, audit.Tampered},
		{"the object is gone", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Bucket.Remove(record(11))
			return record(11)
		}, false, audit.NamedOther, audit.Tampered},
		{"objects that nobody names", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Plant(record(12), "more")
			return record(12)
		}, true, audit.StrayObject, audit.Tampered},
		{"a generation that the control table does not know", func(w *audittest.World) string {
			head := w.Head
			g := w.Generation(11, w.Plant(record(11), "foreign"), 0, false)
			w.Head = head
			w.Forget()
			return strings.Replace(record(11), "records/", "records/"+g.ID+"/", 1)
		}, true, audit.StrayObject, audit.Tampered},
		{"the same without the control table, not anchored", func(w *audittest.World) string {
			g := w.Generation(11, w.Plant(record(11), "foreign"), 0, false)
			return strings.Replace(record(11), "records/", "records/"+g.ID+"/", 1)
		}, false, audit.GenerationUnproven, audit.Unproven},
		{"records that were anchored are left behind as a foreign object", func(w *audittest.World) string {
			g := w.Generation(7, *audit.TakenBy(record(7), "", w.Bucket.Bytes(record(7))), 0, false)
			return strings.Replace(record(7), "records/", "records/"+g.ID+"/", 1)
		}, false, audit.GenerationUnproven, audit.Unproven},
		{"two generations after one", func(w *audittest.World) string {
			o := w.Plant(record(11), "foreign")
			w.Generation(11, o, 0, true)
			w.Forget()
			g := w.Generation(11, w.Plant(record(12), "other"), 0, false)
			return strings.Replace(record(11), "records/", "records/"+g.ID+"/", 1)
		}, false, audit.SplitChain, audit.Tampered},
		{"a generation that nothing begins", func(w *audittest.World) string {
			w.Plant("v1/matter/records/g1-0123456789abcdef/000000000011.json", "{}")
			return "v1/matter/records/g1-0123456789abcdef/000000000011.json"
		}, false, audit.StrayObject, audit.Tampered},
		{"a record before the first of its generation", func(w *audittest.World) string {
			g := w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Bucket.Put(inGeneration(record(10), g), w.Bucket.Bytes(record(10)), audittest.Lock(w.Bucket.Clock))
			return inGeneration(record(10), g)
		}, false, audit.StrayObject, audit.Tampered},
		{"a record before the first of a generation that was left", func(w *audittest.World) string {
			g := w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Generation(13, w.Plant(w.Line().RecordKey(13), "again"), 1, true)
			w.Plant(inGeneration(record(9), g), "litter")
			return inGeneration(record(9), g)
		}, true, audit.StrayObject, audit.Tampered},
		{"an anchor before the first of its generation", func(w *audittest.World) string {
			g := w.AnchorGeneration(w.Plant(anchor(4), "foreign"))
			w.Anchor()
			w.Plant(inGeneration(anchor(3), g), "litter")
			return inGeneration(anchor(3), g)
		}, true, audit.StrayObject, audit.Tampered},
		{"the control table names one that no record begins", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Know(audit.Generation{ID: "g2-0123456789abcdef", From: 13})
			return "v1/matter/records/g2-0123456789abcdef/000000000013.json"
		}, true, audit.NamedOther, audit.Tampered},
		{"the control table names it from another number on", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			g := w.Line().Generations.Last()
			w.Forget()
			w.Know(audit.Generation{ID: g.ID, From: 12})
			return inGeneration(record(12), g)
		}, true, audit.NamedOther, audit.Tampered},
		{"the control table names another than the record", func(w *audittest.World) string {
			g := audit.Generation{ID: "g1-0123456789abcdef", From: 11}
			w.Know(g)
			w.Append(audit.Generation{ID: "g1-fedcba9876543210", From: 11}.Event(audit.OfRecords, "", w.Plant(record(11), "foreign")))
			return inGeneration(record(11), g)
		}, true, audit.NamedOther, audit.Tampered},
		{"two generations after one, from other numbers on", func(w *audittest.World) string {
			one, two := audit.Generation{ID: "g1-0123456789abcdef", From: 11}, audit.Generation{ID: "g1-fedcba9876543210", From: 12}
			o := w.Plant(record(11), "foreign")
			w.Know(one)
			w.Append(one.Event(audit.OfRecords, "", o))
			w.Restore(10, 3)
			w.Append(audit.Event{ID: "carried"})
			w.Know(two)
			w.Append(two.Event(audit.OfRecords, "", o))
			return inGeneration(record(12), two)
		}, false, audit.SplitChain, audit.Tampered},
		{"the first record's object is gone", func(w *audittest.World) string {
			w.Generation(1, *audit.TakenBy(record(1), "", w.Bucket.Bytes(record(1))), 0, true)
			w.Bucket.Remove(record(1))
			return record(1)
		}, true, audit.NamedOther, audit.Tampered},
		{"an empty object is gone", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), ""), 0, true)
			w.Bucket.Remove(record(11))
			return record(11)
		}, true, audit.NamedOther, audit.Tampered},
		{"a copy of a later record", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			e := w.Append(audit.Event{ID: "copied"})
			w.Plant(record(13), string(e.Bytes))
			w.Bucket.Remove(record(11))
			return record(13)
		}, true, audit.StrayObject, audit.Tampered},
		{"a record that cannot be read", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Bucket.Replace(w.Line().RecordKey(12), []byte("{}"))
			return w.Line().RecordKey(12)
		}, true, audit.UnreadableRecord, audit.Tampered},
		{"a record of the second that cannot be read", func(w *audittest.World) string {
			w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			w.Generation(13, w.Plant(w.Line().RecordKey(13), "again"), 0, true)
			w.Bucket.Replace(w.Line().RecordKey(14), []byte("{}"))
			return w.Line().RecordKey(14)
		}, true, audit.UnreadableRecord, audit.Tampered},
		{"two that a record begins and the chain does not continue in", func(w *audittest.World) string {
			one := audit.Generation{ID: "g1-0123456789abcdef", From: 12}
			two := audit.Generation{ID: "g2-0123456789abcdef", From: 13}
			w.Append(one.Event(audit.OfRecords, "", audit.Taken{Key: record(12)}))
			w.Append(two.Event(audit.OfRecords, audit.Generations("").With(one), audit.Taken{Key: record(13)}))
			return inGeneration(record(13), two)
		}, true, audit.NamedOther, audit.Tampered},
		{"a record of another chain begins it", func(w *audittest.World) string {
			g := audit.Generation{ID: "g1-0123456789abcdef", From: 11}
			e, err := audit.Next("other", w.Head, w.Policy.Now, g.Event(audit.OfRecords, "", w.Plant(record(11), "foreign")))
			if err != nil {
				w.T.Fatal(err)
			}
			w.Plant(inGeneration(record(11), g), string(e.Bytes))
			return inGeneration(record(11), g)
		}, false, audit.StrayObject, audit.Tampered},
		{"a record that begins it stands under another number", func(w *audittest.World) string {
			g := audit.Generation{ID: "g1-0123456789abcdef", From: 11}
			e, err := audit.Next(audittest.Chain, w.Head, w.Policy.Now, g.Event(audit.OfRecords, "", audit.Taken{Key: record(11)}))
			if err != nil {
				w.T.Fatal(err)
			}
			w.Plant(inGeneration(record(12), g), string(e.Bytes))
			return inGeneration(record(12), g)
		}, false, audit.StrayObject, audit.Tampered},
		{"a record that begins one of anchors", func(w *audittest.World) string {
			g := audit.Generation{ID: "g1-0123456789abcdef", From: 11}
			e, err := audit.Next(audittest.Chain, w.Head, w.Policy.Now, g.Event(audit.OfAnchors, "", audit.Taken{Key: anchor(11)}))
			if err != nil {
				w.T.Fatal(err)
			}
			w.Plant(inGeneration(record(11), g), string(e.Bytes))
			return inGeneration(record(11), g)
		}, false, audit.StrayObject, audit.Tampered},
		{"an anchor in a generation that nothing begins", func(w *audittest.World) string {
			w.Plant("v1/matter/anchors/g1-0123456789abcdef/000000000004.json", "{}")
			return "v1/matter/anchors/g1-0123456789abcdef/000000000004.json"
		}, true, audit.StrayObject, audit.Tampered},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := audittest.New(t)
			object := c.tamper(w)
			r := verified(t, w, c.table)
			audittest.MustFind(t, r, c.kind, object)
			if r.Result != c.result {
				t.Errorf("%s %v", r, r.Findings)
			}
		})
	}
}

// TestGenerationReports: a report has every generation, with the record that says it.
func TestGenerationReports(t *testing.T) {
	w := audittest.New(t)
	o := w.Plant(record(11), "foreign")
	one := w.Generation(11, o, 2, true)
	again := w.Plant(w.Line().RecordKey(15), "again")
	two := w.Generation(15, again, 1, true)
	p := w.Plant(anchor(6), "foreign")
	three := w.AnchorGeneration(p)
	w.Append(three.Event(audit.OfAnchors, "", p)) // said twice
	w.Anchor()
	want := []audit.GenerationReport{
		{Of: audit.OfRecords, ID: one.ID, From: 11, Seq: 13, Object: o.Key, SHA256: o.SHA256},
		{Of: audit.OfRecords, ID: two.ID, From: 15, Seq: 16, Object: again.Key, SHA256: again.SHA256},
		{Of: audit.OfAnchors, ID: three.ID, From: 6, Seq: 18, Object: p.Key, SHA256: p.SHA256},
	}
	for _, table := range []bool{false, true} {
		r := verified(t, w, table)
		if d := cmp.Diff(want, r.Generations); d != "" || r.Result != audit.Green || r.Anchors != 6 {
			t.Errorf("%s %v%s", r, r.Findings, d)
		}
	}
}

// TestManyWaiting: the beginning of a generation is found after any number of records that
// were waiting for the bucket, and records that are put into the bucket elsewhere and claim
// to begin it change nothing.
func TestManyWaiting(t *testing.T) {
	w := audittest.New(t)
	g := w.Generation(11, w.Plant(record(11), "foreign"), 300, true)
	litter := audit.Generation{ID: "g9-0123456789abcdef", From: 5}
	e, err := audit.Next(audittest.Chain, w.Entries[3].Head(), w.Policy.Now, audit.Generation{ID: g.ID, From: 5}.Event(audit.OfRecords, "", audit.Taken{}))
	if err != nil {
		t.Fatal(err)
	}
	w.Plant(inGeneration(record(5), litter), string(e.Bytes))
	r := verified(t, w, false)
	if len(r.Findings) != 1 || len(r.Generations) != 1 || r.Generations[0].Seq != 311 || r.Records != 312 {
		t.Errorf("%s %v %v", r, r.Generations, r.Findings)
	}
	audittest.MustFind(t, r, audit.StrayObject, inGeneration(record(5), litter))
}

// TestOneFinding: what is wrong once is found once.
func TestOneFinding(t *testing.T) {
	g := audit.Generation{ID: "g1-0123456789abcdef", From: 11}
	for name, c := range map[string]struct {
		tamper func(w *audittest.World)
		table  bool
		kind   audit.Kind
		object string
	}{
		"two generations that no record begins": {func(w *audittest.World) {
			w.Know(g)
			w.Append(audit.Event{ID: "in the first"})
			w.Know(audit.Generation{ID: "g2-0123456789abcdef", From: 12})
			w.Append(audit.Event{ID: "in the second"})
		}, true, audit.NamedOther, inGeneration(record(11), g)},
		"one that begins before the one it follows": {func(w *audittest.World) {
			first := w.Generation(11, w.Plant(record(11), "foreign"), 0, true)
			g := audit.Generation{ID: "g2-0123456789abcdef", From: 5}
			w.Anchor()
			w.Know(g)
			w.Append(g.Event(audit.OfRecords, audit.Generations("").With(first), audit.Taken{Key: record(5)}))
		}, false, audit.StrayObject, "v1/matter/records/g2-0123456789abcdef/000000000013.json"},
	} {
		w := audittest.New(t)
		c.tamper(w)
		r := verified(t, w, c.table)
		if len(r.Findings) != 1 {
			t.Errorf("%s: %v", name, r.Findings)
		}
		audittest.MustFind(t, r, c.kind, c.object)
	}
}

// TestEmptyObjectIsGone: an empty object that is listed and not there is not taken for one
// that is there and empty.
func TestEmptyObjectIsGone(t *testing.T) {
	w := audittest.New(t)
	w.Generation(11, w.Plant(record(11), ""), 0, true)
	if r := verified(t, w, false); r.Result != audit.Green {
		t.Errorf("%v", r.Findings)
	}
	r := verify(t, faulty{Bucket: w.Bucket, read: failAt(record(11), fs.ErrNotExist)}, w.Policy)
	audittest.MustFind(t, r, audit.NamedOther, record(11))
}

// TestBeginsNothing: a record of another type begins no generation, whatever it says.
func TestBeginsNothing(t *testing.T) {
	w := audittest.New(t)
	first, second := audit.Generation{ID: "g1-0123456789abcdef", From: 11}, audit.Generation{ID: "g2-0123456789abcdef", From: 13}
	o := w.Plant(record(11), "foreign")
	w.Know(first)
	w.Append(audit.Event{ID: "other", Type: "other", Body: second.Event(audit.OfRecords, audit.Generations("").With(first), o).Body})
	w.Append(first.Event(audit.OfRecords, "", o))
	w.Anchor()
	for _, table := range []bool{false, true} {
		if r := verified(t, w, table); r.Result != audit.Green || len(r.Generations) != 1 {
			t.Errorf("%s %v %v", r, r.Generations, r.Findings)
		}
	}
}

// TestReadsOnce: of a generation only the records up to its beginning are read twice: a
// chain stays in its last generation forever.
func TestReadsOnce(t *testing.T) {
	w := audittest.New(t)
	w.Generation(11, w.Plant(record(11), "foreign"), 1, false)
	w.Append(audit.Event{ID: "another"})
	w.Anchor()
	var mu sync.Mutex
	reads := map[string]int{}
	verify(t, faulty{Bucket: w.Bucket, read: func(key string) error {
		mu.Lock()
		defer mu.Unlock()
		reads[key]++
		return nil
	}}, w.Policy)
	for seq, want := range map[int64]int{10: 1, 11: 2, 12: 2, 13: 1, 14: 1} {
		if got := reads[w.Line().RecordKey(seq)]; got != want {
			t.Errorf("record %d is read %d times, want %d", seq, got, want)
		}
	}
}

// TestGenerationAnchored: without the control table an anchor must cover the record that
// begins a generation, and need not cover more; with it, none must.
func TestGenerationAnchored(t *testing.T) {
	w := audittest.New(t)
	o := w.Plant(record(11), "foreign")
	g := w.Generation(11, o, 0, false)
	if r := verified(t, w, true); r.Result != audit.Green || r.Anchored != 9 {
		t.Errorf("with the control table: %s %v", r, r.Findings)
	}
	audittest.MustFind(t, verified(t, w, false), audit.GenerationUnproven, inGeneration(record(11), g))
	put(w, w.Entries[10].Head(), nil)
	if r := verified(t, w, false); r.Result != audit.Green || r.Anchored != 11 {
		t.Errorf("anchored up to its beginning: %s %v", r, r.Findings)
	}
}

// TestForgottenFromTheFirst: a control table may be set back to before any record.
func TestForgottenFromTheFirst(t *testing.T) {
	for _, from := range []int64{1, 2, 3} {
		w := audittest.New(t)
		w.Generation(from, *audit.TakenBy(record(from), "", w.Bucket.Bytes(record(from))), 5, true)
		r := verified(t, w, true)
		if r.Result != audit.Green || r.Generations[0].Forgotten != 11-from || r.Anchored != from+6 {
			t.Errorf("from record %d: %s %v %v", from, r, r.Generations, r.Findings)
		}
	}
}

// TestNotForgotten: what is put in the chain's way is not a forgotten record unless it links.
func TestNotForgotten(t *testing.T) {
	w := audittest.New(t)
	e, err := audit.Next(audittest.Chain, audit.Head{Seq: 10, Hash: audit.Genesis("other").Hash}, w.Policy.Now, audit.Event{ID: "forged"})
	if err != nil {
		t.Fatal(err)
	}
	w.Generation(11, w.Plant(record(11), string(e.Bytes)), 0, true)
	if r := verified(t, w, true); r.Generations[0].Forgotten != 0 || r.Result != audit.Green {
		t.Errorf("%s %v %v", r, r.Generations, r.Findings)
	}
}

// TestForgottenAfterNothing: what claims to follow a record that is not there, with no hash
// of it, is not a forgotten record of the chain.
func TestForgottenAfterNothing(t *testing.T) {
	w := audittest.New(t)
	e, err := audit.Next(audittest.Chain, audit.Head{Seq: 10}, w.Policy.Now, audit.Event{ID: "forged"})
	if err != nil {
		t.Fatal(err)
	}
	w.Generation(11, w.Plant(record(11), string(e.Bytes)), 0, true)
	w.Bucket.Remove(record(10))
	if r := verified(t, w, true); r.Generations[0].Forgotten != 0 || r.Result != audit.Tampered {
		t.Errorf("%s %v %v", r, r.Generations, r.Findings)
	}
}

// TestPlaceOf: only a key of a record has a place.
func TestPlaceOf(t *testing.T) {
	type place struct {
		generation string
		seq        int64
	}
	for key, want := range map[string]place{
		"v1/c/records/000000000001.json":                     {"", 1},
		"v1/c/records/123456789012.json":                     {"", 123456789012},
		"v1/c/records/g1-0123456789abcdef/000000000007.json": {"g1-0123456789abcdef", 7},
	} {
		if g, seq, ok := audit.PlaceOf("c", key); !ok || (place{g, seq}) != want {
			t.Errorf("%s: %q, %d, %v", key, g, seq, ok)
		}
	}
	for _, key := range []string{
		"", "1", "x", "000000000001.json", "g1-0123456789abcdef/000000000007.json", "v1/c/records/", "v1/c/records/000000000000.json", "v1/c/records/1.json",
		"v1/c/records/x.json", "v1/c/records/000000000001", "v1/d/records/000000000001.json", "v1/c/anchors/000000000001.json", "v1/c/records/-00000000001.json",
		"v1/c/records/99999999999999999999.json", "v1/c/records/g0-0123456789abcdef/000000000007.json", "v1/c/records/other/000000000007.json",
		"v1/c/records/g1-0123456789abcdef/g2-0123456789abcdef/000000000007.json", "v1/c/records/g1-0123456789abcdef/000000000000.json",
	} {
		if g, seq, ok := audit.PlaceOf("c", key); ok {
			t.Errorf("%s: %q, %d", key, g, seq)
		}
	}
}

// TestBegun: the record of a generation's beginning says what it was made of.
func TestBegun(t *testing.T) {
	one := audit.Generation{ID: "g1-0123456789abcdef", From: 1}
	two := audit.Generation{ID: "g2-0123456789abcdef", From: 7}
	taken := *audit.TakenBy("k", "version", []byte("foreign"))
	if want := (audit.Taken{Key: "k", Version: "version", SHA256: "656771905e1ef731f65cd0a0d9fb061238380a1a012e6abdf846ecc7d2ea36fd"}); taken != want {
		t.Errorf("%+v", taken)
	}
	if !errors.Is(&taken, audit.ErrTaken) || !strings.Contains(taken.Error(), "k, version version: ") || !strings.Contains(taken.Error(), taken.SHA256) {
		t.Error(taken.Error())
	}
	record := func(ev audit.Event) audit.Record {
		return audit.Record{Seq: 8, Type: ev.Type, Body: ev.Body}
	}
	for _, c := range []struct {
		ev   audit.Event
		want audit.Begun
	}{
		{one.Event(audit.OfRecords, "", taken), audit.Begun{Generation: one, Of: audit.OfRecords, Seq: 8, Taken: taken}},
		{two.Event(audit.OfAnchors, audit.Generations("").With(one), audit.Taken{Key: "k", SHA256: "ab"}), audit.Begun{Generation: two, Of: audit.OfAnchors, Before: one.ID, Seq: 8, Taken: audit.Taken{Key: "k", SHA256: "ab"}}},
	} {
		if got, ok := audit.ParseBegun(record(c.ev)); !ok || got != c.want {
			t.Errorf("%+v, %v, want %+v", got, ok, c.want)
		}
		for k, v := range c.ev.Body {
			if v == "" {
				t.Errorf("%s is empty", k)
			}
		}
		if c.ev.Step != "publish" || c.ev.ID != audit.EventGeneration+"/"+c.want.ID {
			t.Errorf("%+v", c.ev)
		}
	}
	for name, change := range map[string]func(r *audit.Record){
		"another type":              func(r *audit.Record) { r.Type = "other" },
		"no number":                 func(r *audit.Record) { r.Body["from"] = "x" },
		"a number before the first": func(r *audit.Record) { r.Body["from"] = "0" },
		"a number too large":        func(r *audit.Record) { r.Body["from"] = "9223372036854775808" },
		"no id":                     func(r *audit.Record) { delete(r.Body, "generation") },
		"before, no id":             func(r *audit.Record) { r.Body["before"] = "../x" },
		"of something else":         func(r *audit.Record) { r.Body["of"] = "others" },
	} {
		r := record(two.Event(audit.OfRecords, audit.Generations("").With(one), taken))
		change(&r)
		if b, ok := audit.ParseBegun(r); ok {
			t.Errorf("%s: %+v", name, b)
		}
	}
}

// TestGenerationsText: the text in the control table says all, and nothing else is taken
// for it.
func TestGenerationsText(t *testing.T) {
	var g audit.Generations
	if g.Last() != (audit.Generation{From: 1}) || g.Of(7) != "" {
		t.Errorf("none: %+v, %q", g.Last(), g.Of(7))
	}
	one := g.Next(13, audit.Taken{Key: "k"}, "salt")
	if again := g.Next(13, audit.Taken{Key: "k"}, "salt"); again != one || g.Next(13, audit.Taken{Key: "k"}, "other") == one {
		t.Errorf("%v and %v", one, again)
	}
	g = g.With(one)
	two := g.Next(13, audit.Taken{Key: "l"}, "salt")
	g = g.With(two)
	if !strings.HasPrefix(one.ID, "g1-") || !strings.HasPrefix(two.ID, "g2-") {
		t.Errorf("%v and %v", one, two)
	}
	if _, err := audit.ParseGenerations("1=" + one.ID); err != nil {
		t.Error(err)
	}
	g = g.With(audit.Generation{ID: "g3-0123456789abcdef", From: 20})
	if read, err := audit.ParseGenerations(string(g)); err != nil || read != g {
		t.Errorf("%v, %v", read, err)
	}
	got := []string{g.Of(12), g.Of(13), g.Of(19), g.Of(20), g.Last().ID, audit.Line{Chain: "c", Generations: g}.RecordKey(20), g.AnchorKeyIn("c", 12)}
	want := []string{"", two.ID, two.ID, "g3-0123456789abcdef", "g3-0123456789abcdef", "v1/c/records/g3-0123456789abcdef/000000000020.json", "v1/c/anchors/000000000012.json"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, s := range []string{",", "13", "13=", "x=g1-0123456789abcdef", "0=g1-0123456789abcdef", "9=g1-0123456789abcdef,8=g2-0123456789abcdef", "9=g0-0123456789abcdef", "9=g1-0123/56789abcde", "9=g1-0123456789abcdef,"} {
		if g, err := audit.ParseGenerations(s); err == nil {
			t.Errorf("%q is %q", s, g)
		}
	}
}
