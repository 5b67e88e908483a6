package rotation_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// body is what the last record of a type says.
func (s *site) body(event string) map[string]string {
	s.t.Helper()
	entries := must(s.store.AuditEntries(s.t.Context(), 1))
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].Record.Type == event {
			return entries[i].Record.Body
		}
	}
	s.t.Fatalf("there is no record %s", event)
	return nil
}

// unaccountedItems are items that no rotation can place, by how a refusal names them.
// Each begins as the sound row o2.
var unaccountedItems = map[string]struct {
	spoil func(r *memstore.Record)
	says  string
}{
	"raw KMS ciphertext": {func(r *memstore.Record) {
		r.Kind, r.Defect, r.KEK, r.WrappedDEK = source.CipherAlone, "a payload alone", "", nil
	}, "ciphertext_only 1"},
	"no KEK id":      {func(r *memstore.Record) { r.Kind = source.NoKEK }, "no_kek_id 1"},
	"an alias":       {func(r *memstore.Record) { r.Kind, r.Defect = source.UnknownForm, `its KEK is "alias/prod"` }, "kek_id_form 1"},
	"a base64 DEK":   {func(r *memstore.Record) { r.Kind, r.Defect = source.WrongType, "its DEK is a string" }, "wrong_type 1"},
	"no data key":    {func(r *memstore.Record) { r.Kind, r.WrappedDEK = source.NoWrappedDEK, nil }, "no_wrapped_dek 1"},
	"an epoch alone": {func(r *memstore.Record) { r.Kind, r.WrappedDEK = source.EpochAlone, nil }, "epoch_only 1"},
	"no context":     {func(r *memstore.Record) { r.Kind = source.NoContext }, "no_context 1"},
	"damaged":        {func(r *memstore.Record) { r.Defect = "its format cannot be read" }, "damaged 1"},
	"an unknown KEK": {func(r *memstore.Record) { r.KEK = "kek-9999" }, "unknown_kek 1"},
	"the ARN of another account's key": {func(r *memstore.Record) {
		r.KeyARN = "arn:aws:kms:eu-central-1:999999999999:key/" + string(r.KEK)
	}, "unknown_kek 1"},
	"a KEK retired long ago": {func(r *memstore.Record) { r.KEK = "kek-0001" }, "retired_kek 1"},
}

// TestCensusRefuses: an item that the rotation cannot place ends it before a key is
// minted, under its kind and its name, with nothing changed; once it is sound the next
// rotation goes through.
func TestCensusRefuses(t *testing.T) {
	items := map[string]func(r *memstore.Record){"no room": func(r *memstore.Record) { r.Kind = source.NoRoom }}
	says := map[string]string{"no room": "no_room 1"}
	for name, item := range unaccountedItems {
		items[name], says[name] = item.spoil, item.says
	}
	for name, spoil := range items {
		t.Run(name, func(t *testing.T) {
			d, w := watched(t)
			d.complete(spring, rotation.ExecutionInput{}) // so that there is a retired KEK
			w.rows("before")
			sound := d.rows()[place{d.orders, "o2"}]
			bad := sound
			spoil(&bad)
			d.world.SetHook(nil)
			d.orders.Plant("o2", bad)
			before, keys := d.pointer(), len(d.keys())
			e := d.machine.Start(summer, rotation.ExecutionInput{})
			if e.Final != "RolledBack" || e.Failure.Name != string(journal.RowsUnaccounted) ||
				!strings.Contains(e.Failure.Cause, "("+says[name]+"): 1 of orders (") || strings.Contains(e.Failure.Cause, "o2") {
				t.Fatalf("ended in %s: %v", e.Final, e.Failure)
			}
			if r := d.record(summer); r.Phase != kek.RolledBack || r.NewKEK != "" || r.Counted || d.pointer() != before || len(d.keys()) != keys {
				t.Errorf("pointer %+v, %d keys, record %+v", d.pointer(), len(d.keys()), r)
			}
			if now := d.rows()[place{d.orders, "o2"}]; !cmp.Equal(now, bad, wholeBytes) {
				t.Errorf("the row changed: %+v", now)
			}
			wantEvents(t, d.site, append(wholeRotation, "rotation_started", "rolled_back")...)
			d.orders.Plant("o2", sound)
			d.complete("after", rotation.ExecutionInput{})
			d.settled()
		})
	}
}

// wholeRotation is the audit chain of a normal rotation.
var wholeRotation = []string{
	"rotation_started", "rows_counted", "kek_minted", "rows_rehearsed", "dual_unwrap_passed", "pointer_switched", "old_kek_sealed",
	"rows_rewrapped", "old_kek_retired", "kms_rotation_completed",
}

// TestEmergencyLeavesUnaccounted: an emergency does not wait for such an item. The
// pointer leaves the KEK, every other row is moved, and the item, by name, keeps the
// old KEK from being retired.
func TestEmergencyLeavesUnaccounted(t *testing.T) {
	items := map[string]func(r *memstore.Record){
		"no room":    func(r *memstore.Record) { r.Kind = source.NoRoom },
		"no payload": func(r *memstore.Record) { r.Ciphertext = nil },
	}
	for name, item := range unaccountedItems {
		if name != "a KEK retired long ago" {
			items[name] = item.spoil
		}
	}
	for name, spoil := range items {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			d := newDriver(s)
			sound := s.rows()[place{s.orders, "o2"}]
			bad := sound
			spoil(&bad)
			s.orders.Plant("o2", bad)
			e := d.machine.Start(spring, emergency)
			if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "RowsQuarantined") || !strings.Contains(e.Failure.Cause, "1 of orders (") || strings.Contains(e.Failure.Cause, "o2") {
				t.Fatalf("ended in %s: %v", e.Final, e.Failure)
			}
			r := s.record(spring)
			if r.Phase != kek.Drained || s.pointer().KEKID != r.NewKEK || r.Counted || s.state(s.first) != kek.Sealed || !s.enabled(s.first) {
				t.Errorf("the old KEK is %s, record %+v", s.state(s.first), r)
			}
			for p, row := range s.rows() {
				if p.id != "o2" && row.KEK != r.NewKEK {
					t.Errorf("row %s is under %s", p.id, row.KEK)
				}
			}
			s.orders.Plant("o2", sound)
			e.Redrive()
			if e.Status != "SUCCEEDED" {
				t.Fatalf("made sound and redriven: %s: %v", e.Final, e.Failure)
			}
			s.settled()
		})
	}
}

// TestCensusAccounts: declared items, items without any of the envelope's attributes,
// and rows that name their KEK by its ARN are accounted for, and the record counts
// them. The rotation writes the plain id.
func TestCensusAccounts(t *testing.T) {
	d, _ := watched(t)
	past := d.past("before 2024")
	k := must(d.kms.Describe(t.Context(), d.first))
	row := d.rows()[place{d.orders, "o1"}]
	row.KeyARN = k.ARN
	d.orders.Plant("o1", row)
	d.orders.Plant("note-1", memstore.Record{Declared: true})
	d.orders.Plant("note-2", memstore.Record{Declared: true})
	d.people.Plant("note", memstore.Record{Other: true})
	d.complete(spring, rotation.ExecutionInput{})
	d.settled()
	want := map[string]string{
		"source.orders": fmt.Sprintf("5 envelopes (%s 4, %s 1) under about 5 data keys, 3 other items", d.first, past),
		"source.people": fmt.Sprintf("4 envelopes (%s 4) under about 4 data keys, 1 other items", d.first),
		"source.corpus": fmt.Sprintf("2 envelopes (%s 2) under about 2 data keys, 0 other items", d.first),
	}
	got := d.body("rows_counted")
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: %q, want %q", name, got[name], text)
		}
	}
	if now := d.rows()[place{d.orders, "o1"}]; now.KeyARN != "" || now.KEK != d.pointer().KEKID {
		t.Errorf("the row names its KEK by %q, %q", now.KEK, now.KeyARN)
	}
}

// nothingSealed makes a table whose items are all something else, as a source with a
// wrong attribute name sees them.
func (s *site) nothingSealed(name string) *memstore.Table {
	table := s.newTable(name, "")
	for i := range 3 {
		table.Plant(fmt.Sprint("item ", i), memstore.Record{Other: true})
	}
	return table
}

// TestSourceOfNoEnvelope: a source of which no item is an envelope is refused by the
// census. An emergency and a source that joins after the switch meet no census: there it
// blocks the retirement, for its rows would be orphaned in silence.
func TestSourceOfNoEnvelope(t *testing.T) {
	s := newSite(t)
	s.add(s.nothingSealed("drafts"))
	d := newDriver(s)
	keys := len(s.keys())
	e := d.machine.Start(spring, rotation.ExecutionInput{})
	if e.Final != "RolledBack" || e.Failure.Name != string(journal.SourceMisconfigured) || !strings.Contains(e.Failure.Cause, "sources[drafts]") || len(s.keys()) != keys {
		t.Fatalf("ended in %s with %d keys: %v", e.Final, len(s.keys()), e.Failure)
	}
	for name, in := range map[string]rotation.ExecutionInput{"emergency": emergency, "joined": {}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			drafts := s.nothingSealed("drafts")
			d := newDriver(s)
			if name == "emergency" {
				s.add(drafts)
			}
			d.before = func(c call) {
				if c.state == "Drain" && name == "joined" {
					s.add(drafts)
				}
			}
			e := d.machine.Start(spring, in)
			if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "SourceMisconfigured: sources[drafts]: none of its 3 items") {
				t.Fatalf("ended in %s: %v", e.Final, e.Failure)
			}
			if s.phase(spring, kek.Rewrapped); s.state(s.first) != kek.Sealed || !s.enabled(s.first) {
				t.Errorf("the old KEK is %s", s.state(s.first))
			}
			for i := range 3 { // the definition now says what they are
				drafts.Plant(fmt.Sprint("item ", i), memstore.Record{Declared: true})
			}
			def := drafts.Source()
			def.Definition = `{"other":{"attribute":"kind","values":["draft"]}}`
			must(s.AddSource(t.Context(), def))
			e.Redrive()
			if e.Status != "SUCCEEDED" {
				t.Fatalf("declared and redriven: %s: %v", e.Final, e.Failure)
			}
			s.settled()
		})
	}
}

// TestAllEnvelopesGone: a source whose rows were all deleted since they were seen is not a
// such source.
func TestAllEnvelopesGone(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		s, _ := at(t, in, kek.Rewrapped)
		for i := range 4 {
			s.remove(s.orders, fmt.Sprintf("o%d", i))
		}
		s.advance(spring, in, kek.Completed)
		if s.settled(); t.Failed() {
			t.Error(name)
		}
	}
}

// TestCensusInParts: a census that runs out of time continues from its checkpoints, and
// concludes only when all is counted.
func TestCensusInParts(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	many(s, 300)
	s.advance(spring, rotation.ExecutionInput{}, kek.Started)
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Table.Scan" {
			s.clock.pass(30 * time.Second)
		}
		return true, nil
	})
	calls := 0
	for {
		calls++
		out, err := s.Verify(until{t.Context(), s.clock.now().Add(100 * time.Second)}, rotation.VerifyInput{RotationID: spring, Census: true})
		if err != nil {
			t.Fatal(err)
		}
		if s.record(spring).Counted != out.Done {
			t.Fatalf("call %d: done %t, counted %t", calls, out.Done, s.record(spring).Counted)
		}
		if out.Done {
			if out.Tally.Scanned != 310 || out.Tally.ByKEK[string(s.first)] != 310 || out.Tally.Other != 1 {
				t.Errorf("tally %+v", out.Tally)
			}
			break
		}
	}
	if calls < 2 {
		t.Errorf("%d calls: it was not interrupted", calls)
	}
}

// TestTakeCensus looks at the registered sources without a rotation: it classifies as
// one would and writes nothing.
func TestTakeCensus(t *testing.T) {
	s := newSite(t)
	row := s.rows()[place{s.orders, "o2"}]
	row.Kind = source.NoKEK
	s.orders.Plant("o2", row)
	row = s.rows()[place{s.orders, "o3"}]
	row.Kind = source.NoRoom
	s.orders.Plant("o3", row)
	s.mark("forgotten")
	before := s.snapshot()
	seen := int64(0)
	c := must(s.TakeCensus(t.Context(), "", func(n int64) { seen = n }))
	if o := c.Sources["orders"]; o.Scanned != 4 || o.Quarantined != 2 || o.ByKind["no_kek_id"] != 1 || o.ByKind["no_room"] != 1 || o.ByKEK[string(s.first)] != 2 || o.Other != 1 {
		t.Errorf("orders: %+v", o)
	}
	if len(c.Sources) != 3 || seen != 11 || len(c.Forgotten) != 1 || c.Forgotten[0].Table != "forgotten" ||
		!strings.Contains(c.Problem, "2 items cannot be accounted for") || !strings.Contains(c.Problem, "forgotten") {
		t.Errorf("seen %d: %+v", seen, c)
	}
	only := must(s.TakeCensus(t.Context(), "people", nil))
	if len(only.Sources) != 1 || only.Sources["people"].Scanned != 4 {
		t.Errorf("of one source: %+v", only)
	}
	_, err := s.TakeCensus(t.Context(), "peoples", nil)
	wantKind(t, err, journal.InvalidInput)
	if diff := s.diff(before); diff != "" {
		t.Errorf("a census changed the world (-was +is):\n%s", diff)
	}
}

// TestTakeCensusDuringARotation classifies as the rotation that runs does: rows under
// its new KEK are accounted for.
func TestTakeCensusDuringARotation(t *testing.T) {
	for _, phase := range []kek.Phase{kek.Minted, kek.Switched, kek.Rewrapped, kek.KEKRetired} {
		s, _ := at(t, rotation.ExecutionInput{}, phase)
		if c := must(s.TakeCensus(t.Context(), "", nil)); c.Problem != "" || c.Sources["orders"].Scanned != 4 {
			t.Errorf("at %s: %+v", phase, c)
		}
	}
	s := newSite(t)
	old := s.rows()[place{s.orders, "o1"}]
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.orders.Plant("o1", old) // restored from a backup
	if c := must(s.TakeCensus(t.Context(), "", nil)); c.Sources["orders"].ByKind["retired_kek"] != 1 {
		t.Errorf("%+v", c)
	}
}
