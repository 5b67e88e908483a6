package storetest

import (
	"fmt"
	"maps"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Envelope is one item of a source, as the data plane wrote it.
type Envelope struct {
	KEK        kek.ID
	KeyARN     string // the item names its KEK by this; "" for the id
	Epoch      int64
	Version    int64
	WrappedDEK []byte
	Ciphertext []byte
	Class      Class
	Defect     rotation.Defect // what is wrong with an envelope; "" if nothing is
}

// Class is what an item is.
type Class int

// The classes of items.
const (
	Row      Class = iota // an envelope, perhaps with a defect
	Other                 // it has none of the envelope's attributes
	Declared              // the definition says that it is something else
)

// SourceHarness is a fresh, empty source.
type SourceHarness struct {
	Source rotation.Source
	// Put writes an item past all conditions; the KMS encryption context of an envelope
	// must be {"table": "orders", "id": id}.
	Put    func(t *testing.T, id string, e Envelope)
	Delete func(t *testing.T, id string)
	// Get reads a row; false if there is none. Class and Defect need not be set.
	Get func(t *testing.T, id string) (Envelope, bool)
	// PlainSHA is the hash that Put gives to every row; "" if rows have none.
	PlainSHA string
	// Bind is what the row's payload is bound to beside the context; nil if nothing is.
	Bind func(id string) map[string]string
	// Defects are those that Put can make, and how the source reports each.
	Defects map[rotation.Defect]rotation.Defect
	// Declares says that Put can make a declared item.
	Declares bool
}

// TestSource runs the suite of [rotation.Source] and, where the source is one, of
// [rotation.Labeler].
func TestSource(t *testing.T, newSource func(t *testing.T) SourceHarness) {
	for name, test := range map[string]func(*testing.T, SourceHarness){
		"Empty": testEmptySource, "Scan": testScan, "ScanOthers": testScanOthers, "ScanWhileWritten": testScanWhileWritten,
		"Rows": testRows, "Defects": testDefects, "BadCursor": testBadCursor,
		"Replace": testReplace, "ReplacePayload": testReplacePayload, "ReplaceGone": testReplaceGone, "ReplaceARN": testReplaceARN,
		"ReplaceDefect": testReplaceDefect, "Reread": testReread, "ForeignRow": testForeignRow, "RaceReplace": testRaceReplace,
		"Rehearse": testRehearse, "Label": testLabel, "LabelChanged": testLabelChanged,
	} {
		t.Run(name, func(t *testing.T) { test(t, newSource(t)) })
	}
}

func sound(id string) Envelope {
	return Envelope{KEK: "kek-0", Epoch: 1, Version: 7, WrappedDEK: []byte("dek of " + id), Ciphertext: []byte("payload of " + id)}
}

// scan reads every page of every segment and counts how often each row was seen.
func (h SourceHarness) scan(t *testing.T, total, limit int, page func(rotation.Page)) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for segment := range total {
		cursor := ""
		for {
			p, err := h.Source.Scan(t.Context(), rotation.ScanRequest{Segment: segment, Total: total, Cursor: cursor, Limit: limit, Payload: true})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(p.Rows) + p.Other + p.Declared; limit > 0 && n > limit {
				t.Fatalf("a page has %d items, the limit is %d", n, limit)
			}
			for _, r := range p.Rows {
				seen[r.Context["id"]]++
			}
			if page != nil {
				page(p)
			}
			if cursor = p.Next; cursor == "" {
				break
			}
		}
	}
	return seen
}

func testEmptySource(t *testing.T, h SourceHarness) {
	if h.Source.Name() == "" {
		t.Error("the source has no name")
	}
	if notes, err := h.Source.Check(t.Context()); err != nil || len(notes) != 0 {
		t.Errorf("an empty source is in order: %q, %v", notes, err)
	}
	if arn, err := h.Source.EncryptedBy(t.Context()); err != nil || arn != "" {
		t.Errorf("it is encrypted by no key of the account: %q, %v", arn, err)
	}
	total := h.Source.Segments(4)
	if total < 1 || total > 4 {
		t.Fatalf("4 segments wished for, got %d", total)
	}
	same(t, "rows", h.scan(t, total, 0, nil), map[string]int{})
}

// testScan checks that every row is seen exactly once, in any number of segments
// and any size of page, and every other item counted once.
func testScan(t *testing.T, h SourceHarness) {
	want := map[string]int{}
	for i := range 61 {
		id := fmt.Sprintf("row-%03d", i)
		h.Put(t, id, sound(id))
		want[id] = 1
	}
	h.Put(t, "other", Envelope{Class: Other})
	declared := 0
	if h.Declares {
		h.Put(t, "declared", Envelope{Class: Declared})
		declared = 1
	}
	if _, err := h.Source.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, wish := range []int{1, 3, 8} {
		for _, limit := range []int{0, 1, 7, 1000} {
			var others, said int
			seen := h.scan(t, h.Source.Segments(wish), limit, func(p rotation.Page) { others, said = others+p.Other, said+p.Declared })
			same(t, fmt.Sprintf("%d segments, limit %d", wish, limit), seen, want)
			same(t, "other and declared items", []int{others, said}, []int{1, declared})
		}
	}
}

// testScanOthers: pages without any row do not end a scan.
func testScanOthers(t *testing.T, h SourceHarness) {
	want := map[string]int{}
	for i := range 40 {
		if id := fmt.Sprintf("item-%02d", i); i%20 == 13 {
			h.Put(t, id, sound(id))
			want[id] = 1
		} else {
			h.Put(t, id, Envelope{Class: Other})
		}
	}
	for _, limit := range []int{1, 3} {
		others := 0
		same(t, "rows", h.scan(t, 1, limit, func(p rotation.Page) { others += p.Other }), want)
		same(t, "other items", others, 38)
	}
}

// testScanWhileWritten: what is there all the time is seen exactly once, whatever
// is rewrapped, added and deleted between the pages.
func testScanWhileWritten(t *testing.T, h SourceHarness) {
	for i := range 40 {
		id := fmt.Sprintf("stays-%02d", i)
		h.Put(t, id, sound(id))
		id = fmt.Sprintf("goes-%02d", i)
		h.Put(t, id, sound(id))
	}
	n := 0
	seen := h.scan(t, h.Source.Segments(2), 5, func(p rotation.Page) {
		for _, r := range p.Rows {
			if _, err := h.Source.Replace(t.Context(), r, rotation.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}); err != nil {
				t.Fatal(err)
			}
		}
		h.Delete(t, fmt.Sprintf("goes-%02d", n))
		id := fmt.Sprintf("comes-%02d", n)
		h.Put(t, id, sound(id))
		n++
	})
	for i := range 40 {
		id := fmt.Sprintf("stays-%02d", i)
		if seen[id] != 1 {
			t.Errorf("%s was seen %d times", id, seen[id])
		}
		if e, ok := h.Get(t, id); !ok || e.KEK != "kek-1" {
			t.Errorf("%s was not rewrapped: %v %v", id, e, ok)
		}
	}
}

func testRows(t *testing.T, h SourceHarness) {
	e := sound("a")
	h.Put(t, "a", e)
	for _, payload := range []bool{false, true} {
		p, err := h.Source.Scan(t.Context(), rotation.ScanRequest{Total: 1, Payload: payload})
		if err != nil || len(p.Rows) != 1 {
			t.Fatalf("%v, %v", p, err)
		}
		r := p.Rows[0]
		if r.ID == "" || r.Handle == nil {
			t.Error("the row has no id or no handle")
		}
		want := rotation.Row{
			ID: r.ID, Handle: nil, KEK: e.KEK, Epoch: e.Epoch, WrappedDEK: e.WrappedDEK,
			Context: map[string]string{"table": "orders", "id": "a"}, PlainSHA: h.PlainSHA,
		}
		want.Bound = maps.Clone(want.Context)
		if h.Bind != nil {
			maps.Copy(want.Bound, h.Bind("a"))
		}
		if payload {
			want.Ciphertext = e.Ciphertext
		}
		r.Handle = nil
		same(t, fmt.Sprintf("row, payload %v", payload), r, want)
	}
}

// testDefects: each item that is not a sound envelope is reported with its kind, beside
// others. One without room is seen by who reads whole items.
func testDefects(t *testing.T, h SourceHarness) {
	h.Put(t, "good", sound("good"))
	want := map[rotation.Defect]int{"": 1}
	for kind, reported := range h.Defects {
		e := sound(string(kind))
		e.Defect = kind
		h.Put(t, string(kind), e)
		want[reported]++
	}
	for _, whole := range []bool{true, false} {
		got := map[rotation.Defect]int{}
		cursor := ""
		for {
			p, err := h.Source.Scan(t.Context(), rotation.ScanRequest{Total: 1, Whole: whole, Cursor: cursor})
			if err != nil {
				t.Fatal(err)
			}
			same(t, "items other than rows", p.Other+p.Declared, 0)
			for _, r := range p.Rows {
				got[r.Kind]++
				if r.ID == "" || (r.Kind == "") != (r.Defect == "") {
					t.Errorf("a row with kind %q, id %q, defect %q", r.Kind, r.ID, r.Defect)
				}
			}
			if cursor = p.Next; cursor == "" {
				break
			}
		}
		if !whole && h.Defects[rotation.NoRoom] != "" {
			want[rotation.NoRoom]--
			want[""]++
			got[rotation.NoRoom] += 0
		}
		same(t, fmt.Sprintf("rows by defect, whole items %v", whole), got, want)
	}
}

func testBadCursor(t *testing.T, h SourceHarness) {
	h.Put(t, "a", sound("a"))
	for _, c := range []string{"x", "?", "e30", "eyJhIjp7IlMiOiJiIn19", "bnVsbA"} {
		if _, err := h.Source.Scan(t.Context(), rotation.ScanRequest{Total: 1, Cursor: c}); err == nil {
			t.Errorf("cursor %q was accepted", c)
		}
	}
}
