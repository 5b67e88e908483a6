package audit_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/audittest"
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

// TestGenerations: a chain that went on past objects in its way is whole, and the report
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
