package storetest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Envelope is one row of a source, as the data plane wrote it.
type Envelope struct {
	KEK        kek.ID
	Epoch      int64
	Version    int64
	WrappedDEK []byte
	Ciphertext []byte
	Kind       EnvelopeKind
}

// EnvelopeKind says what is the matter with a row.
type EnvelopeKind int

// The kinds of rows.
const (
	Sound     EnvelopeKind = iota // an envelope
	Stranger                      // no envelope at all
	NoKEK                         // an envelope without its KEK id
	NoContext                     // an envelope whose encryption context cannot be made
)

// SourceHarness is a fresh, empty source.
type SourceHarness struct {
	Source rotation.Source
	// Put writes a row past all conditions; the row's encryption context must be
	// {"table": "orders", "id": id}.
	Put    func(t *testing.T, id string, e Envelope)
	Delete func(t *testing.T, id string)
	// Get reads a row; false if there is none. Kind need not be set.
	Get func(t *testing.T, id string) (Envelope, bool)
	// PlainSHA is the hash that Put gives to every row; "" if rows have none.
	PlainSHA string
}

// TestSource runs the suite of [rotation.Source].
func TestSource(t *testing.T, newSource func(t *testing.T) SourceHarness) {
	t.Run("Empty", func(t *testing.T) { testEmptySource(t, newSource(t)) })
	t.Run("Scan", func(t *testing.T) { testScan(t, newSource(t)) })
	t.Run("ScanWhileWritten", func(t *testing.T) { testScanWhileWritten(t, newSource(t)) })
	t.Run("Rows", func(t *testing.T) { testRows(t, newSource(t)) })
	t.Run("Defects", func(t *testing.T) { testDefects(t, newSource(t)) })
	t.Run("BadCursor", func(t *testing.T) { testBadCursor(t, newSource(t)) })
	t.Run("Replace", func(t *testing.T) { testReplace(t, newSource(t)) })
	t.Run("ReplacePayload", func(t *testing.T) { testReplacePayload(t, newSource(t)) })
	t.Run("ReplaceGone", func(t *testing.T) { testReplaceGone(t, newSource(t)) })
	t.Run("Reread", func(t *testing.T) { testReread(t, newSource(t)) })
	t.Run("ForeignRow", func(t *testing.T) { testForeignRow(t, newSource(t)) })
	t.Run("RaceReplace", func(t *testing.T) { testRaceReplace(t, newSource(t)) })
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
			if limit > 0 && len(p.Rows)+p.Skipped > limit {
				t.Fatalf("a page has %d rows and %d skipped, the limit is %d", len(p.Rows), p.Skipped, limit)
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
	if err := h.Source.Check(t.Context()); err != nil {
		t.Errorf("an empty source is in order: %v", err)
	}
	total := h.Source.Segments(4)
	if total < 1 || total > 4 {
		t.Fatalf("4 segments wished for, got %d", total)
	}
	same(t, "rows", h.scan(t, total, 0, nil), map[string]int{})
}

// testScan checks that every row is seen exactly once, in any number of segments
// and any size of page.
func testScan(t *testing.T, h SourceHarness) {
	want := map[string]int{}
	for i := range 61 {
		id := fmt.Sprintf("row-%03d", i)
		h.Put(t, id, sound(id))
		want[id] = 1
	}
	h.Put(t, "stranger", Envelope{Kind: Stranger})
	if err := h.Source.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, wish := range []int{1, 3, 8} {
		for _, limit := range []int{0, 1, 7, 1000} {
			skipped := 0
			seen := h.scan(t, h.Source.Segments(wish), limit, func(p rotation.Page) { skipped += p.Skipped })
			same(t, fmt.Sprintf("%d segments, limit %d", wish, limit), seen, want)
			same(t, "skipped", skipped, 1)
		}
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
		if payload {
			want.Ciphertext = e.Ciphertext
		}
		r.Handle = nil
		same(t, fmt.Sprintf("row, payload %v", payload), r, want)
	}
}

// testDefects: what is no envelope is skipped, a broken envelope is reported.
func testDefects(t *testing.T, h SourceHarness) {
	h.Put(t, "good", sound("good"))
	h.Put(t, "stranger", Envelope{Kind: Stranger})
	for id, kind := range map[string]EnvelopeKind{"no-kek": NoKEK, "no-context": NoContext} {
		e := sound(id)
		e.Kind = kind
		h.Put(t, id, e)
	}
	p, err := h.Source.Scan(t.Context(), rotation.ScanRequest{Total: 1})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "skipped", p.Skipped, 1)
	same(t, "rows", len(p.Rows), 3)
	broken := slices.DeleteFunc(p.Rows, func(r rotation.Row) bool { return r.Defect == "" })
	same(t, "broken rows", len(broken), 2)
	for _, r := range broken {
		if r.ID == "" {
			t.Errorf("a broken row has no id: %v", r)
		}
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
