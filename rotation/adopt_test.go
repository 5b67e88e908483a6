package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// legacy is a site with a table of rows that were written without this project, one of
// each kind, registered as a source.
func legacy(t *testing.T) (s *site, table *memstore.Table) {
	t.Helper()
	s = newSite(t)
	past := s.past("before")
	dead := must(s.kms.Create(t.Context(), "", 0, "dead", keyring.Key{}))
	stranger := must(s.kms.Create(t.Context(), "", 0, "stranger", keyring.Key{}))
	table = s.newTable("legacy", "")
	plant := func(id string, under kek.ID, edit func(r *memstore.Record)) {
		r := s.seal(table, id, under, 0, "secret of "+id)
		edit(&r)
		table.Plant(id, r)
		s.expect(table, id, "secret of "+id)
	}
	plant("sound", s.first, func(*memstore.Record) {})
	plant("unlabelled", s.first, func(r *memstore.Record) { r.Kind = source.NoKEK })
	plant("unlabelled of before", past, func(r *memstore.Record) { r.Kind = source.NoKEK })
	plant("by alias", s.first, func(r *memstore.Record) { r.Kind, r.Defect = source.UnknownForm, `its KEK is "alias/prod"` })
	plant("by ARN", past, func(r *memstore.Record) { r.KeyARN = must(s.kms.Describe(t.Context(), past)).ARN })
	plant("under a stranger", stranger.ID, func(r *memstore.Record) { r.Kind = source.NoKEK })
	plant("labelled as a stranger's", stranger.ID, func(*memstore.Record) {})
	plant("under a dead key", dead.ID, func(r *memstore.Record) { r.Kind = source.NoKEK })
	plant("of another context", s.first, func(r *memstore.Record) { r.Kind, r.Context = source.NoKEK, map[string]string{"id": "other"} })
	plant("without a data key", s.first, func(r *memstore.Record) {
		r.Kind, r.Defect, r.WrappedDEK = source.CipherAlone, "a payload alone", nil
	})
	plant("in base64", s.first, func(r *memstore.Record) { r.Kind, r.Defect = source.WrongType, "its data key is a string" })
	s.must(s.kms.Disable(t.Context(), dead.ID))
	table.Plant("note", memstore.Record{Other: true})
	table.Plant("draft", memstore.Record{Declared: true})
	s.add(table)
	return s, table
}

// TestAdopt: of each kind of row that was written without this project, dry first, which
// writes nothing, then for real: what KMS can identify gets the id of its KEK, and
// nothing else of it changes; what it cannot is named with the reason; keys that the
// registry does not know are listed. A second run finds nothing to do.
func TestAdopt(t *testing.T) {
	s, table := legacy(t)
	past := s.view(looking).KEKs["kek-0002"].ID
	before := s.snapshot()
	seen := int64(0)
	dry := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Seen: func(n int64) { seen = n }}))
	if diff := s.diff(before); diff != "" {
		t.Fatalf("a dry run changed the world (-was +is):\n%s", diff)
	}
	want := rotation.Adoption{
		Source: "legacy", Sound: 1, Other: 2,
		Found: map[string]int64{
			fmt.Sprintf("no_kek_id under %s", s.first): 1, fmt.Sprintf("no_kek_id under %s", past): 1,
			fmt.Sprintf("kek_id_form under %s", s.first): 1, fmt.Sprintf("kek_id_arn under %s", past): 1,
		},
		Left: map[string]int64{
			"ciphertext_only": 1, "wrong_type": 1, "KMS does not unwrap it with the context of the source's definition": 1,
			"its key cannot be used: KMS key kek-0003: the KMS key is disabled":        1,
			`it is under KEK "kek-0004", which the registry does not know`:             1,
			"KEK arn:aws:kms:eu-central-1:000000000000:key/kek-0004 is not registered": 1,
		},
		First: dry.First, Unknown: []kek.ID{"kek-0004"},
	}
	if diff := cmp.Diff(want, dry); diff != "" {
		t.Errorf("dry (-want +got):\n%s", diff)
	}
	if seen != 13 || len(dry.First) != 6 || !strings.Contains(strings.Join(dry.First, "\n"), "without a data key: a payload alone") {
		t.Errorf("seen %d, first %q", seen, dry.First)
	}

	wet := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Write: true}))
	want.Written = 4
	if diff := cmp.Diff(want, wet); diff != "" {
		t.Errorf("for real (-want +got):\n%s", diff)
	}
	for id, under := range map[string]kek.ID{"unlabelled": s.first, "unlabelled of before": past, "by alias": s.first, "by ARN": past} {
		was, now := before.Rows["legacy/"+id], s.rows()[place{table, id}]
		was.KEK, was.KeyARN, was.Kind, was.Defect = under, "", "", ""
		if diff := cmp.Diff(was, now, wholeBytes); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id, diff)
		}
	}
	if body := s.body(rotation.EventAdopted); body["source"] != "legacy" || body["rows"] != "4" || body["state"] != "done" || !strings.Contains(body["found"], "no_kek_id under kek-0002 1") {
		t.Errorf("the record says %v", body)
	}

	before = s.snapshot()
	again := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Write: true}))
	if diff := s.diff(before); diff != "" || again.Sound != 5 || len(again.Found) > 0 || again.Written != 0 {
		t.Errorf("again: %+v; the world (-was +is):\n%s", again, diff)
	}

	for _, id := range []string{"under a stranger", "labelled as a stranger's", "under a dead key", "of another context", "without a data key", "in base64"} {
		s.remove(table, id)
	}
	newDriver(s).complete(spring, rotation.ExecutionInput{})
	s.must(s.kms.Disable(t.Context(), "kek-0004")) // not ours
	s.settled()
}

// TestAdoptAfterRegistration: once its key is registered, a stranger's rows are adopted,
// those that name it are sound, and the rotation moves them.
func TestAdoptAfterRegistration(t *testing.T) {
	s, table := legacy(t)
	s.must(s.RegisterKEK(t.Context(), "kek-0004", "of a stranger"))
	out := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Write: true}))
	if out.Found["no_kek_id under kek-0004"] != 1 || out.Sound != 2 || len(out.Unknown) > 0 {
		t.Errorf("%+v", out)
	}
	for _, id := range []string{"under a dead key", "of another context", "without a data key", "in base64"} {
		s.remove(table, id)
	}
	newDriver(s).complete(spring, rotation.ExecutionInput{})
	s.settled()
}

// TestAdoptLeavesRetiredKEKs: a row under a KEK that was retired is not labelled, and
// nobody is told to register that KEK.
func TestAdoptLeavesRetiredKEKs(t *testing.T) {
	s := newSite(t)
	old := s.rows()[place{s.orders, "o1"}]
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	for _, enabled := range []bool{false, true} {
		if enabled {
			s.kms.Enable(s.first)
		}
		for _, kind := range []source.Defect{source.NoKEK, ""} {
			row := old
			row.Kind = kind
			s.orders.Plant("o1", row)
			before := s.snapshot()
			out := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "orders", Write: true}))
			if diff := s.diff(before); diff != "" || len(out.Left) != 1 || len(out.First) != 1 || len(out.Unknown) > 0 || out.Sound != 3 {
				t.Errorf("enabled %t, kind %q: %+v; the world (-was +is):\n%s", enabled, kind, out, diff)
			}
			for reason := range out.Left {
				if strings.Contains(reason, "register") || (enabled || kind == "") && !strings.Contains(reason, "retired") {
					t.Errorf("enabled %t, kind %q: %q", enabled, kind, reason)
				}
			}
		}
	}
}

// TestAdoptLosesToWriters: a row that an application writes between the look and the
// label keeps what the application wrote; what it is now is looked at again.
func TestAdoptLosesToWriters(t *testing.T) {
	s := newSite(t)
	table := s.newTable("legacy", "")
	other := must(s.kms.Create(t.Context(), "", 0, "other", keyring.Key{}))
	unlabelled := func(id string, under kek.ID) memstore.Record {
		r := s.seal(table, id, under, 0, "secret of "+id)
		r.Kind = source.NoKEK
		return r
	}
	for _, id := range []string{"deleted", "labelled", "replaced", "restless"} {
		table.Plant(id, unlabelled(id, s.first))
	}
	s.add(table)
	s.must(s.RegisterKEK(t.Context(), other.ID, "other"))
	labelled := s.seal(table, "labelled", s.first, 1, "by its writer")
	tries := map[string]int{}
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op != "Table.Label" {
			return true, nil
		}
		id := args[1].(source.Row).ID
		tries[id]++
		switch {
		case id == "deleted":
			s.must(table.Delete(t.Context(), id))
		case id == "labelled" && tries[id] == 1:
			table.Plant(id, labelled)
		case id == "replaced" && tries[id] == 1: // under another KEK
			table.Plant(id, unlabelled(id, other.ID))
		case id == "restless":
			table.Plant(id, unlabelled(id, s.first))
		}
		return true, nil
	})
	out := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Write: true}))
	s.world.SetHook(nil)
	if out.Written != 1 || out.Sound != 1 || out.Changed != 1 || len(out.Left) > 0 || out.Found["no_kek_id under "+string(other.ID)] != 1 || len(out.Found) != 1 {
		t.Errorf("%+v", out)
	}
	if r := s.rows()[place{table, "replaced"}]; r.KEK != other.ID || r.Kind != "" {
		t.Errorf("the replaced row: %+v", r)
	}
	if r := s.rows()[place{table, "labelled"}]; !cmp.Equal(r, labelled, wholeBytes) {
		t.Errorf("the labelled row: %+v", r)
	}
	if r := s.rows()[place{table, "restless"}]; r.Kind != source.NoKEK {
		t.Errorf("the restless row: %+v", r)
	}
	if _, ok := s.rows()[place{table, "deleted"}]; ok {
		t.Error("a deleted row came back")
	}
}

// dropping is a recorder that fails.
type dropping struct{}

func (dropping) Record(context.Context, audit.Event) error { return errors.New("no answer") }

// TestAdoptRecordsFirst: no row is labelled before a record says so, and a run that ends
// early has recorded what it did.
func TestAdoptRecordsFirst(t *testing.T) {
	s, _ := legacy(t)
	before := s.snapshot()
	_, err := s.Adopt(t.Context(), dropping{}, rotation.AdoptInput{Source: "legacy", Write: true})
	wantKind(t, err, journal.Transient)
	if diff := s.diff(before); diff != "" {
		t.Errorf("without a record (-was +is):\n%s", diff)
	}
	labels := 0
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Table.Label" {
			if body := s.body(rotation.EventAdopted); body["state"] != "begun" {
				t.Errorf("the last record says %v", body)
			}
			if labels++; labels == 3 {
				return false, errors.New("no answer")
			}
		}
		return true, nil
	})
	out, err := s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Write: true})
	wantKind(t, err, journal.Transient)
	s.world.SetHook(nil)
	if body := s.body(rotation.EventAdopted); out.Written != 2 || body["state"] != "done" || body["rows"] != "2" {
		t.Errorf("%d written, the record says %v", out.Written, body)
	}
	if again := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Write: true})); again.Written != 2 || again.Sound != 3 {
		t.Errorf("again: %+v", again)
	}
}

// attentive is a recorder that, as AWS, writes nothing for who was interrupted.
type attentive struct{ journal.Recorder }

func (r attentive) Record(ctx context.Context, ev audit.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.Recorder.Record(ctx, ev)
}

// TestAdoptInterrupted: what was labelled before an interruption is recorded.
func TestAdoptInterrupted(t *testing.T) {
	s, _ := legacy(t)
	ctx, interrupt := context.WithCancel(t.Context())
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Table.Label" {
			interrupt()
		}
		return true, nil
	})
	out, _ := s.Adopt(ctx, attentive{s.store}, rotation.AdoptInput{Source: "legacy", Write: true})
	s.world.SetHook(nil)
	if body := s.body(rotation.EventAdopted); out.Written == 0 || body["state"] != "done" || body["rows"] != fmt.Sprint(out.Written) {
		t.Errorf("%d written, the record says %v", out.Written, body)
	}
}

// TestAdoptPages: a page without a row and with a cursor is not the end, and one row that
// AWS refuses to write is left by name.
func TestAdoptPages(t *testing.T) {
	s := newSite(t)
	table := s.newTable("legacy", "")
	for i := range 250 {
		id := fmt.Sprintf("row-%03d", i)
		r := s.seal(table, id, s.first, 0, id)
		r.Kind = source.NoKEK
		table.Plant(id, r)
	}
	table.SetEmptyPages(true)
	s.add(table)
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Table.Label" && args[1].(source.Row).ID == "row-007" {
			return false, journal.ErrDenied
		}
		return true, nil
	})
	out := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "legacy", Write: true}))
	if out.Written != 249 || len(out.First) != 1 || !strings.HasPrefix(out.First[0], "row-007: ") {
		t.Errorf("%+v", out)
	}
}

// TestAdoptRefuses: what is not a registered table is not adopted.
func TestAdoptRefuses(t *testing.T) {
	s := newSite(t)
	_, err := s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "order"})
	wantKind(t, err, journal.InvalidInput)
	open := s.OpenSource
	s.OpenSource = func(def kek.Source) (source.Driver, error) {
		src, err := open(def)
		return struct{ source.Driver }{src}, err // it cannot be labelled
	}
	_, err = s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "corpus"})
	wantKind(t, err, journal.InvalidInput)
	if !strings.Contains(err.Error(), "corpus cannot be adopted") {
		t.Error(err)
	}
}

// TestAdoptTries: a row that changes eleven times while it is labelled is labelled the
// twelfth time.
func TestAdoptTries(t *testing.T) {
	s := newSite(t)
	unlabel(s, "o1")
	tries := 0
	s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return lagging{src, src.(source.Labeler), &tries} })
	out := must(s.Adopt(t.Context(), s.store, rotation.AdoptInput{Source: "orders", Write: true}))
	if out.Written != 1 || out.Changed != 0 || tries != 12 {
		t.Errorf("after %d tries: %+v", tries, out)
	}
}

// lagging is a source whose row is what was read at the twelfth try.
type lagging struct {
	source.Driver
	to    source.Labeler
	tries *int
}

func (l lagging) Label(ctx context.Context, old source.Row, id kek.ID) (bool, error) {
	if *l.tries++; *l.tries < 12 {
		return false, nil
	}
	return l.to.Label(ctx, old, id)
}
