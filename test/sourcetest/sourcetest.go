// Package sourcetest is the conformance suite of the drivers of sources. Every driver of this
// project runs it, and so should every other: what it holds a driver to is what a rotation
// relies on, see package source and docs/adding-a-source.md.
//
//	func TestSource(t *testing.T) {
//		sourcetest.TestSource(t, func(t *testing.T) sourcetest.Harness {
//			place := newPlace(t) // fresh and empty
//			return sourcetest.Harness{Driver: place.driver, Put: place.put, Get: place.get, Delete: place.delete}
//		})
//	}
//
// The suite holds a driver to this: a scan sees every item once, in any number of segments
// and any size of page, whatever is written meanwhile; what cannot be rewrapped is reported
// and never left out; a row is replaced only if it still is what was read, of racing writers
// exactly one wins, and a row that is gone stays gone; a fence that was sealed stays shut.
package sourcetest

import (
	"fmt"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
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
	Defect     source.Defect // what is wrong with an envelope; "" if nothing is
}

// Class is what an item is.
type Class int

// The classes of items.
const (
	Row      Class = iota // an envelope, perhaps with a defect
	Other                 // it has none of the envelope's attributes
	Declared              // the definition says that it is something else
)

// Harness is a fresh, empty source.
type Harness struct {
	Driver source.Driver
	// Put writes an item past all conditions; the KMS encryption context of an envelope
	// must be {"table": "orders", "id": id}.
	Put    func(t *testing.T, id string, e Envelope)
	Delete func(t *testing.T, id string)
	// Get reads a row; false if there is none. Class and Defect need not be set.
	Get func(t *testing.T, id string) (Envelope, bool)
	// Records says that the source holds records of data keys ([source.Traits].DataKeys): every
	// item is one, and none has a payload or a version. Context returns what their encryption
	// context has beside the table's; nil for nothing.
	Records bool
	Context func(id string) map[string]string
	// PlainSHA is the hash that Put gives to every row; "" if rows have none.
	PlainSHA string
	// Bind is what the row's payload is bound to beside the context; nil if nothing is.
	Bind func(id string) map[string]string
	// Defects are those that Put can make, and how the source reports each.
	Defects map[source.Defect]source.Defect
	// Declares says that Put can make a declared item.
	Declares bool
	// Insert writes a new row as an application does, behind one shard of the fence of its
	// KEK; false if the fence refuses it. Only a driver with a fence of its own needs it. It
	// is called by several goroutines at once.
	Insert func(t *testing.T, id string, e Envelope, shard int) bool
}

// TestSource runs the suite of [source.Driver] and, where the source is one, of
// [source.Labeler].
func TestSource(t *testing.T, newHarness func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"PutBack": testPutBack,
		"Empty":   testEmpty, "Scan": testScan, "ScanOthers": testScanOthers,
		"ScanWhileWritten": testScanWhileWritten(false), "ScanSpreadWhileWritten": testScanWhileWritten(true),
		"Rows": testRows, "Defects": testDefects, "BadCursor": testBadCursor,
		"Replace": testReplace, "ReplacePayload": testReplacePayload, "ReplaceGone": testReplaceGone, "ReplaceARN": testReplaceARN,
		"ReplaceDefect": testReplaceDefect, "Reread": testReread, "ForeignRow": testForeignRow, "RaceReplace": testRaceReplace,
		"Rehearse": testRehearse, "Label": testLabel, "LabelChanged": testLabelChanged,
		"Traits": testTraits, "Fence": testFence, "RaceSeal": testRaceSeal,
	} {
		t.Run(name, func(t *testing.T) { test(t, newHarness(t).asRecords()) })
	}
}

// asRecords returns a harness of records whose envelopes are written and expected without
// what records have not.
func (h Harness) asRecords() Harness {
	if !h.Records {
		return h
	}
	put := h.Put
	h.Put = func(t *testing.T, id string, e Envelope) {
		t.Helper()
		put(t, id, h.bare(e))
	}
	return h
}

// bare returns the envelope as the source holds it.
func (h Harness) bare(e Envelope) Envelope {
	if h.Records {
		e.Version, e.Ciphertext = 0, nil
	}
	return e
}

// needsPayloads skips a test of what records have not.
func (h Harness) needsPayloads(t *testing.T) {
	t.Helper()
	if h.Records {
		t.Skip("records have no payload, no version and one form, and there is nothing beside them")
	}
}

func sound(id string) Envelope {
	return Envelope{KEK: "kek-0", Epoch: 1, Version: 7, WrappedDEK: []byte("dek of " + id), Ciphertext: []byte("payload of " + id)}
}

// scan reads every page of every segment and counts how often each row was seen.
func (h Harness) scan(t *testing.T, total, limit int, page func(source.Page)) map[string]int {
	t.Helper()
	return h.scanAll(t, source.ScanRequest{Total: total, Limit: limit, Payload: true}, page)
}

// scanAll reads every page of every segment as req says.
func (h Harness) scanAll(t *testing.T, req source.ScanRequest, page func(source.Page)) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for req.Segment = range req.Total {
		for {
			p, err := h.Driver.Scan(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(p.Rows) + p.Other + p.Declared; req.Limit > 0 && n > req.Limit {
				t.Fatalf("a page has %d items, the limit is %d", n, req.Limit)
			}
			for _, r := range p.Rows {
				seen[r.Context["id"]]++
			}
			if page != nil {
				page(p)
			}
			if req.Cursor = p.Next; req.Cursor == "" {
				break
			}
		}
	}
	return seen
}

// testTraits: what the registry refuses a driver for, and rows that say they are known
// ciphers.
func testTraits(t *testing.T, h Harness) {
	kinds := source.NewRegistry(source.Kind{Name: "kind", Open: func(kek.Source) (source.Driver, error) { return h.Driver, nil }})
	if _, err := kinds.Open(kek.Source{Name: "any", Kind: "kind"}); err != nil {
		t.Error(err)
	}
	traits := h.Driver.Traits()
	if traits.Noun == "" {
		t.Error("it does not say what a person calls such a place")
	}
	if traits.KnownPlaintexts && h.PlainSHA == "" {
		t.Error("its rows are known ciphers, but have no hash")
	}
}

func testEmpty(t *testing.T, h Harness) {
	if h.Driver.Name() == "" {
		t.Error("the source has no name")
	}
	if notes, err := h.Driver.Check(t.Context()); err != nil || len(notes) != 0 {
		t.Errorf("an empty source is in order: %q, %v", notes, err)
	}
	if arn, err := h.Driver.EncryptedBy(t.Context()); err != nil || arn != "" {
		t.Errorf("it is encrypted by no key of the account: %q, %v", arn, err)
	}
	total := h.Driver.Segments(4)
	if total < 1 || total > 4 {
		t.Fatalf("4 segments wished for, got %d", total)
	}
	same(t, "rows", h.scan(t, total, 0, nil), map[string]int{})
}

// testScan checks that every row is seen exactly once, in any number of segments
// and any size of page, and every other item counted once.
func testScan(t *testing.T, h Harness) {
	want := map[string]int{}
	for i := range 61 {
		id := fmt.Sprintf("row-%03d", i)
		h.Put(t, id, sound(id))
		want[id] = 1
	}
	beside := 0
	if !h.Records {
		h.Put(t, "other", Envelope{Class: Other})
		beside = 1
	}
	declared := 0
	if h.Declares {
		h.Put(t, "declared", Envelope{Class: Declared})
		declared = 1
	}
	if _, err := h.Driver.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, wish := range []int{1, 3, 8} {
		for _, limit := range []int{0, 1, 7, 1000} {
			var others, said int
			seen := h.scan(t, h.Driver.Segments(wish), limit, func(p source.Page) { others, said = others+p.Other, said+p.Declared })
			same(t, fmt.Sprintf("%d segments, limit %d", wish, limit), seen, want)
			same(t, "other and declared items", []int{others, said}, []int{beside, declared})
		}
		var others, said int
		req := source.ScanRequest{Total: h.Driver.Segments(wish), Payload: true, Spread: true}
		seen := h.scanAll(t, req, func(p source.Page) { others, said = others+p.Other, said+p.Declared })
		same(t, fmt.Sprintf("%d segments, spread", wish), seen, want)
		same(t, "other and declared items", []int{others, said}, []int{beside, declared})
	}
}

// testScanOthers: pages without any row do not end a scan.
func testScanOthers(t *testing.T, h Harness) {
	h.needsPayloads(t)
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
		same(t, "rows", h.scan(t, 1, limit, func(p source.Page) { others += p.Other }), want)
		same(t, "other items", others, 38)
	}
}

// testScanWhileWritten: what is there all the time is seen exactly once, whatever
// is rewrapped, added and deleted between the pages.
func testScanWhileWritten(spread bool) func(*testing.T, Harness) {
	return func(t *testing.T, h Harness) { scanWhileWritten(t, h, spread) }
}

func scanWhileWritten(t *testing.T, h Harness, spread bool) {
	t.Helper()
	for i := range 40 {
		id := fmt.Sprintf("stays-%02d", i)
		h.Put(t, id, sound(id))
		id = fmt.Sprintf("goes-%02d", i)
		h.Put(t, id, sound(id))
	}
	n := 0
	seen := h.scanAll(t, source.ScanRequest{Total: h.Driver.Segments(2), Limit: 8, Payload: true, Spread: spread}, func(p source.Page) {
		for _, r := range p.Rows {
			if _, err := h.Driver.Replace(t.Context(), r, source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}); err != nil {
				t.Fatal(err)
			}
		}
		if !spread { // dynoxide ends a scan that continues after a deleted item, which DynamoDB does not
			h.Delete(t, fmt.Sprintf("goes-%02d", n))
		}
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

func testRows(t *testing.T, h Harness) {
	e := h.bare(sound("a"))
	h.Put(t, "a", e)
	for _, payload := range []bool{false, true} {
		p, err := h.Driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: payload})
		if err != nil || len(p.Rows) != 1 {
			t.Fatalf("%v, %v", p, err)
		}
		r := p.Rows[0]
		if r.ID == "" || r.Handle == nil {
			t.Error("the row has no id or no handle")
		}
		want := source.Row{
			ID: r.ID, Handle: nil, KEK: e.KEK, Epoch: e.Epoch, WrappedDEK: e.WrappedDEK,
			Context: map[string]string{"table": "orders", "id": "a"}, PlainSHA: h.PlainSHA, Whole: h.Records,
		}
		if h.Context != nil {
			maps.Copy(want.Context, h.Context("a"))
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
func testDefects(t *testing.T, h Harness) {
	h.Put(t, "good", sound("good"))
	want := map[source.Defect]int{"": 1}
	for kind, reported := range h.Defects {
		e := sound(string(kind))
		e.Defect = kind
		h.Put(t, string(kind), e)
		want[reported]++
	}
	for _, whole := range []bool{true, false} {
		got := map[source.Defect]int{}
		cursor := ""
		for {
			p, err := h.Driver.Scan(t.Context(), source.ScanRequest{Total: 1, Whole: whole, Cursor: cursor})
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
		if !whole && h.Defects[source.NoRoom] != "" {
			want[source.NoRoom]--
			want[""]++
			got[source.NoRoom] += 0
		}
		same(t, fmt.Sprintf("rows by defect, whole items %v", whole), got, want)
	}
}

func testBadCursor(t *testing.T, h Harness) {
	h.Put(t, "a", sound("a"))
	for _, c := range []string{"x", "?", "e30", "eyJhIjp7IlMiOiJiIn19", "bnVsbA"} {
		if _, err := h.Driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: c}); err == nil {
			t.Errorf("cursor %q was accepted", c)
		}
	}
}

// same fails the test unless got equals want.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}
