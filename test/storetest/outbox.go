package storetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// TestOutbox runs the suite of [journal.Outbox].
func TestOutbox(t *testing.T, newStore func(t *testing.T) RegistryHarness) {
	t.Run("MarkPublished", func(t *testing.T) { testMarkPublished(t, newFixture(newStore(t))) })
	t.Run("Large", func(t *testing.T) { testLargeOutbox(t, newFixture(newStore(t))) })
	t.Run("Begin", func(t *testing.T) { testBegin(t, newFixture(newStore(t))) })
	t.Run("RaceBegin", func(t *testing.T) { testRaceBegin(t, newFixture(newStore(t))) })
	t.Run("RaceMarkPublished", func(t *testing.T) { testRaceMarkPublished(t, newFixture(newStore(t))) })
}

func (f *fixture) record(t *testing.T, n int, body string) {
	t.Helper()
	for i := range n {
		ev := audit.Event{ID: fmt.Sprintf("event/%d", i+1), Type: "event", Body: map[string]string{"body": body}}
		if err := f.Store.Record(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
}

// pending returns the sequence numbers that are not published.
func (f *fixture) pending(t *testing.T) []int64 {
	t.Helper()
	entries, _, err := f.Store.Unpublished(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seqs := []int64{}
	for _, e := range entries {
		seqs = append(seqs, e.Record.Seq)
	}
	return seqs
}

func testMarkPublished(t *testing.T, f *fixture) {
	same(t, "pending of an empty outbox", f.pending(t), []int64{})
	if err := f.Store.MarkPublished(t.Context(), 1); err == nil {
		t.Error("MarkPublished of a record that does not exist succeeded")
	}
	f.record(t, 5, "x")
	same(t, "pending", f.pending(t), []int64{1, 2, 3, 4, 5})
	for _, s := range []struct {
		mark int64
		fail bool
		want []int64
	}{
		{mark: 2, want: []int64{3, 4, 5}},
		{mark: 2, want: []int64{3, 4, 5}},
		{mark: 1, want: []int64{3, 4, 5}},
		{mark: 6, fail: true, want: []int64{3, 4, 5}},
		{mark: 5, want: []int64{}},
		{mark: 3, want: []int64{}},
	} {
		if err := f.Store.MarkPublished(t.Context(), s.mark); (err != nil) != s.fail {
			t.Fatalf("MarkPublished(%d): %v", s.mark, err)
		}
		same(t, fmt.Sprintf("pending after MarkPublished(%d)", s.mark), f.pending(t), s.want)
	}
	f.take(t, genesis()) // appending keeps the mark
	same(t, "pending", f.pending(t), []int64{6})
	from4, err := f.Store.AuditEntries(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "entries from 4 on", len(from4), 3)
	same(t, "entries", len(f.chain(t)), 6)
}

// testLargeOutbox has more than one page of the real table.
func testLargeOutbox(t *testing.T, f *fixture) {
	f.record(t, 5, strings.Repeat("é", 150_000))
	same(t, "pending", f.pending(t), []int64{1, 2, 3, 4, 5})
	f.chain(t)
}

// begin lets a generation begin after those of at.
func (f *fixture) begin(t *testing.T, at audit.Line, from int64) (audit.Generation, error) {
	t.Helper()
	taken := audit.TakenBy("key", "version", []byte("foreign"))
	g := at.Generations.Next(from, *taken, "salt")
	_, head, err := f.Store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return g, f.Store.Begin(t.Context(), at, head, g, g.Event(audit.OfRecords, at.Generations, *taken))
}

// testBegin: a generation begins with its record, once, and the table says so from then on.
// Whoever has read another chain, which was longer or ended with another record, begins none.
func testBegin(t *testing.T, f *fixture) {
	f.record(t, 3, "x")
	none := audit.Line{Chain: f.Chain}
	_, head, err := f.Store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g := none.Generations.Next(2, *audit.TakenBy("key", "version", nil), "salt")
	for _, other := range []audit.Head{{Seq: head.Seq + 1, Hash: head.Hash}, {Seq: head.Seq, Hash: audit.Genesis(f.Chain).Hash}} {
		if err := f.Store.Begin(t.Context(), none, other, g, audit.Event{ID: "x", Type: "x"}); !errors.Is(err, kek.ErrConflict) {
			t.Errorf("beside head %v: %v, want ErrConflict", other, err)
		}
	}
	first, err := f.begin(t, none, 2)
	if err != nil {
		t.Fatal(err)
	}
	at := audit.Line{Chain: f.Chain, Generations: audit.Generations("").With(first)}
	if _, err := f.begin(t, none, 3); !errors.Is(err, kek.ErrConflict) {
		t.Errorf("a second one after none: %v, want ErrConflict", err)
	}
	second, err := f.begin(t, at, 3)
	if err != nil {
		t.Fatal(err)
	}
	at.Generations = at.Generations.With(second)
	entries, stored, err := f.Store.Unpublished(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "line", stored, at)
	if line, _, err := f.Store.Head(t.Context()); err != nil || line != at {
		t.Errorf("%v, %v, want %v", line, err, at)
	}
	same(t, "records", len(entries), 5)
	for i, want := range []audit.Generation{first, second} {
		if b, ok := audit.ParseBegun(entries[3+i].Record); !ok || b.Generation != want {
			t.Errorf("record %d: %+v", 4+i, b)
		}
	}
	f.record(t, 1, "y") // appending keeps the generations
	same(t, "places", []string{at.RecordKey(1), at.RecordKey(2), at.RecordKey(6)},
		[]string{audit.ObjectKey(f.Chain, 1), strings.Replace(audit.ObjectKey(f.Chain, 2), "records/", "records/"+first.ID+"/", 1), strings.Replace(audit.ObjectKey(f.Chain, 6), "records/", "records/"+second.ID+"/", 1)})
	if line, _, err := f.Store.Head(t.Context()); err != nil || line != at {
		t.Errorf("%v, %v, want %v", line, err, at)
	}
	f.chain(t)
}

// testRaceBegin: of those who saw the same generations, one lets another begin.
func testRaceBegin(t *testing.T, f *fixture) {
	f.record(t, 1, "x")
	errs := race(func(int) error {
		_, err := f.begin(t, audit.Line{Chain: f.Chain}, 1)
		return err
	})
	same(t, "winners", winners(t, errs), 1)
	same(t, "records", len(f.chain(t)), 2)
}

func testRaceMarkPublished(t *testing.T, f *fixture) {
	f.record(t, racers, "x")
	for _, err := range race(func(n int) error { return f.Store.MarkPublished(t.Context(), int64(n+1)) }) {
		if err != nil {
			t.Error(err)
		}
	}
	same(t, "pending", f.pending(t), []int64{})
}
