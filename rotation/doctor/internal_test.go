package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// TestBatch: the repairs of each stage before those of the next, one by one, but those of
// the registry together, as many as one transaction changes.
func TestBatch(t *testing.T) {
	finding := func(name string, st stage, changes int) Finding {
		return Finding{Item: name, Repair: "do it", stage: st, changes: make([]ItemChange, changes)}
	}
	for _, tc := range []struct {
		all  []Finding
		want string
	}{
		{nil, ""},
		{[]Finding{{Item: "open", stage: stageRegistry}}, ""},
		{[]Finding{
			finding("lease", stageRemoval, 1), finding("anchor", stageAnchor, 1), finding("pointer", stageRegistry, 2), finding("head", stageAudit, 1),
			finding("record", stageAudit, 1), finding("kek", stageRegistry, 1),
			{Item: "open", stage: stageAudit},
			finding("drill", stageRemoval, 1),
		}, "head|record|pointer kek|anchor|lease|drill"},
		{[]Finding{finding("a", stageRegistry, 89), finding("b", stageRegistry, 1), finding("c", stageRegistry, 1)}, "a b|c"},
		{[]Finding{finding("a", stageRegistry, 90), finding("b", stageRegistry, 1)}, "a|b"},
		{[]Finding{finding("a", stageRegistry, 2), finding("b", stageRegistry, 89), finding("c", stageRegistry, 1)}, "a|b c"},
		{[]Finding{finding("a", stageRegistry, 99), finding("b", stageRegistry, 99)}, "a|b"},
	} {
		var got []string
		for _, b := range batchRepairs(tc.all) {
			var names []string
			for _, f := range b {
				names = append(names, f.Item)
			}
			got = append(got, strings.Join(names, " "))
		}
		if s := strings.Join(got, "|"); s != tc.want {
			t.Errorf("%s, want %s", s, tc.want)
		}
	}
}

// TestTreatmentChanges: of two findings about one item the change counts, not the
// condition, and of two changes the first.
func TestTreatmentChanges(t *testing.T) {
	key := func(pk string) ItemKey { return ItemKey{PK: pk, SK: noSortKey} }
	put := func(pk string, v int64) ItemChange { return ItemChange{Key: key(pk), Put: RegistryItem{v}} }
	keep := func(pk string) ItemChange { return ItemChange{Key: key(pk), Keep: true} }
	got := treatment{
		{changes: []ItemChange{keep("a"), put("b", 1), keep("c")}},
		{changes: []ItemChange{put("a", 2), put("b", 3), keep("b"), keep("c"), put("d", 4)}},
	}.listChanges()
	want := []ItemChange{put("a", 2), put("b", 1), keep("c"), put("d", 4)}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
}

// TestRepairEvent: one record tells of all that a transaction repairs.
func TestRepairEvent(t *testing.T) {
	s := Doctor{Journal: &journal.Journal{Actor: "me"}}
	got := s.repairEvent(treatment{
		{Item: "A", Fault: "lost", Repair: "make it", From: "there", body: map[string]string{"k": "v"}},
		{Item: "B", Fault: "bad", Repair: "drop it"},
		{Item: "C", Fault: "bad", Repair: "mend it", From: "there", body: map[string]string{"l": "w"}},
	}, 7)
	want := audit.Event{ID: "control_repaired/A/7", Type: EventRepaired, Step: "doctor", Actor: "me", Body: map[string]string{
		"item": "A, B, C", "why": "A: lost; make it | B: bad; drop it | C: bad; mend it", "from": "there", "k": "v", "l": "w",
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the record (-want +got):\n%s", d)
	}
	if ev := s.repairEvent(treatment{{Item: "A", event: EventRecordLost}}, 1); ev.Type != EventRecordLost || ev.ID != "audit_record_lost/A/1" {
		t.Errorf("%+v", ev)
	}
}

// record is one of the chain at a minute of the hour.
func record(minute int, event, rotation string, body ...string) audit.Record {
	r := audit.Record{
		Type: event, ID: event, Rotation: rotation, Actor: fmt.Sprint("actor", minute), Body: map[string]string{},
		Time: midnight.Add(time.Duration(minute) * time.Minute).Format(time.RFC3339Nano),
	}
	for i := 0; i < len(body); i += 2 {
		r.Body[body[i]] = body[i+1]
	}
	return r
}

// heard is what records tell.
func heard(records ...audit.Record) *replayedState {
	t := newReplayedState()
	for _, r := range records {
		t.replayRecord(r)
	}
	return t
}

// TestHearKEKs: states, times, labels and the pointer.
func TestHearKEKs(t *testing.T) {
	got := heard(
		record(1, "kek_genesis", "", "label", "first", "kek.a", "active", "pointer", "a", "epoch", "1"),
		record(2, "kek_minted", "r", "label", "second", "kek.b", "pending", "phase", "minted"),
		record(3, "pointer_switched", "r", "label", "third", "kek.b", "active", "kek.a", "draining", "pointer", "b", "epoch", "2", "phase", "switched"),
		record(4, "old_kek_sealed", "r", "kek.a", "sealed", "phase", "drained"),
		record(5, "old_kek_retired", "r", "kek.a", "retired", "phase", "retired"),
		record(6, "kek_registered", "", "kek.h", "sealed", "label", "old"),
		record(7, "kek_minted", "s", "label", "fourth", "kek.c", "pending", "phase", "minted"),
		record(8, "odd", "", "pointer", "c", "epoch", "many"),
		record(9, "odd", "", "epoch", "9"),
	)
	keks := map[kek.ID]kek.KEK{
		"a": {ID: "a", State: kek.Retired, Label: "first", CreatedAt: at(1), SwitchedAt: at(1), RetiredAt: at(5), Reason: "rotated by r"},
		"b": {ID: "b", State: kek.Active, Label: "second", RotationID: "r", CreatedAt: at(2), SwitchedAt: at(3)},
		"c": {ID: "c", State: kek.Pending, Label: "fourth", RotationID: "s", CreatedAt: at(7)},
		"h": {ID: "h", State: kek.Sealed, Label: "old", CreatedAt: at(6)},
	}
	if d := cmp.Diff(keks, got.keks); d != "" {
		t.Errorf("KEKs (-want +got):\n%s", d)
	}
	if d := cmp.Diff(&kek.Pointer{KEKID: "b", Epoch: 2, RotationID: "r", SwitchedAt: at(3)}, got.pointer); d != "" {
		t.Errorf("the pointer (-want +got):\n%s", d)
	}
	if want := []kek.ID{"a", "b", "h", "c"}; !slices.Equal(got.order, want) {
		t.Errorf("order %v, want %v", got.order, want)
	}
	if want := map[kek.ID]bool{"a": true, "b": true, "h": true, "c": false}; !cmp.Equal(got.fenced, want) {
		t.Errorf("fenced %v, want %v", got.fenced, want)
	}
	for _, tc := range []struct {
		id      kek.ID
		enabled []kek.ID
		want    bool
	}{
		{"b", []kek.ID{"a", "b"}, true},
		{"a", []kek.ID{"a", "b"}, false},
		{"a", []kek.ID{"a"}, true},
		{"a", []kek.ID{"a", "h"}, false},
		{"b", []kek.ID{"c"}, true},
		{"b", []kek.ID{"h"}, false},
		{"x", nil, false},
		{"c", []kek.ID{"a", "b", "h"}, true},
	} {
		keys := map[kek.ID]keyring.Key{}
		for _, id := range tc.enabled {
			keys[id] = keyring.Key{Enabled: true}
		}
		if got.isNewest(tc.id, keys) != tc.want {
			t.Errorf("newest %s with %v: want %t", tc.id, tc.enabled, tc.want)
		}
	}
}

// TestHearRepairs: a repair that says again what a KEK is, or where the pointer is, leaves
// when and by which rotation it became so. The schedule takes a pointer without a rotation
// for that of genesis.
func TestHearRepairs(t *testing.T) {
	got := heard(
		record(1, "kek_genesis", "", "label", "first", "kek.a", "active", "pointer", "a", "epoch", "1"),
		record(2, "kek_minted", "r", "label", "second", "kek.b", "pending", "phase", "minted"),
		record(3, "pointer_switched", "r", "kek.b", "active", "kek.a", "draining", "pointer", "b", "epoch", "2", "phase", "switched"),
		record(4, "old_kek_retired", "r", "kek.a", "retired", "phase", "retired"),
		record(5, EventRepaired, "", "kek.a", "retired", "kek.b", "active", "pointer", "b", "epoch", "3"),
		record(6, EventRepaired, "", "kek.c", "retired"),
		record(7, "pointer_switched", "s", "kek.d", "active", "kek.b", "draining"), // the record of its mint is lost
	)
	if d := cmp.Diff(&kek.Pointer{KEKID: "b", Epoch: 3, RotationID: "r", SwitchedAt: at(3)}, got.pointer); d != "" {
		t.Errorf("the pointer (-want +got):\n%s", d)
	}
	want := map[kek.ID]kek.KEK{
		"a": {ID: "a", State: kek.Retired, Label: "first", CreatedAt: at(1), SwitchedAt: at(1), RetiredAt: at(4), Reason: "rotated by r"},
		"b": {ID: "b", State: kek.Draining, Label: "second", RotationID: "r", CreatedAt: at(2), SwitchedAt: at(3)},
		"c": {ID: "c", State: kek.Retired, CreatedAt: at(6), RetiredAt: at(6), Reason: "rotated by a rotation that is not known"},
		"d": {ID: "d", State: kek.Active, RotationID: "s", CreatedAt: at(7), SwitchedAt: at(7)},
	}
	if d := cmp.Diff(want, got.keks); d != "" {
		t.Errorf("KEKs (-want +got):\n%s", d)
	}
}

// TestHearRotations: what the records of a rotation say of it, and which one runs.
func TestHearRotations(t *testing.T) {
	all := []string{
		"mode", "emergency", "label", "l", "reason", "why", "old_kek_id", "a", "new_kek_id", "b", "execution", "arn", "error", "e", "requested_by", "q", "drill", "d",
	}
	got := heard(
		record(1, "rotation_started", "r", append([]string{"phase", "started"}, all...)...),
		record(2, "pointer_switched", "r", append([]string{"phase", "switched", "epoch", "4"}, all...)...),
		record(3, "old_kek_sealed", "r", append([]string{"phase", "switched", "kek.z", "sealed", "kek.a", "sealed"}, all...)...),
		record(4, "old_kek_retired", "r", append([]string{"phase", "retired", "kek.c", "retired"}, all...)...),
	)
	want := kek.Rotation{
		ID: "r", Mode: kek.Emergency, Phase: kek.KEKRetired, Label: "l", Reason: "why", OldKEK: "a", NewKEK: "b", Olds: []kek.ID{"a", "c", "z"},
		Execution: "arn", Err: "e", Requester: "q", Drill: "d", Actor: "actor4", Attempt: 1, Rev: 5, Epoch: 4, StartedAt: at(1), SwitchedAt: at(2), UpdatedAt: at(4),
	}
	if d := cmp.Diff(want, got.rotations["r"]); d != "" {
		t.Errorf("the rotation (-want +got):\n%s", d)
	}
	if got := heard(record(1, "x", "r", "phase", "minted")).rotations["r"]; got.Olds != nil {
		t.Errorf("a rotation of no old KEK leaves %q", got.Olds)
	}
	for _, tc := range []struct {
		name    string
		records []audit.Record
		running string
		want    map[string]kek.Rotation // phase and who ended it
	}{
		{"it runs", []audit.Record{record(1, "x", "r", "phase", "minted")}, "r", map[string]kek.Rotation{"r": {Phase: kek.Minted}}},
		{"it has no name", []audit.Record{record(1, "x", "", "phase", "minted")}, "", map[string]kek.Rotation{}},
		{"it has no phase", []audit.Record{record(1, "x", "r")}, "", map[string]kek.Rotation{}},
		{"it is over", []audit.Record{record(1, "x", "r", "phase", "minted"), record(2, "x", "r", "phase", "completed")}, "", map[string]kek.Rotation{"r": {Phase: kek.Completed}}},
		{"an earlier one is over", []audit.Record{
			record(1, "x", "r", "phase", "minted"), record(2, "x", "s", "phase", "minted"), record(3, "x", "r", "phase", "superseded"),
		}, "s", map[string]kek.Rotation{"r": {Phase: kek.Superseded}, "s": {Phase: kek.Minted}}},
		{"an emergency ends it", []audit.Record{
			record(1, "x", "r", "phase", "minted"), record(2, "x", "s", "phase", "started", "ended", "r", "ended_as", string(kek.RolledBack)),
		}, "s", map[string]kek.Rotation{"r": {Phase: kek.RolledBack, EndedBy: "s"}, "s": {Phase: kek.Started}}},
		{
			"an emergency ends a lost one",
			[]audit.Record{record(2, "x", "s", "phase", "started", "ended", "r")},
			"s",
			map[string]kek.Rotation{"r": {Phase: kek.Superseded, EndedBy: "s"}, "s": {Phase: kek.Started}},
		},
		{
			"doctor ends it",
			[]audit.Record{record(1, "x", "r", "phase", "minted"), record(2, EventRepaired, "", "rotation.r", "superseded")},
			"",
			map[string]kek.Rotation{"r": {Phase: kek.Superseded}},
		},
	} {
		got := heard(tc.records...)
		short := map[string]kek.Rotation{}
		for id, r := range got.rotations {
			if r.ID != id {
				t.Errorf("%s: rotation %q is %q", tc.name, id, r.ID)
			}
			short[id] = kek.Rotation{Phase: r.Phase, EndedBy: r.EndedBy}
		}
		if d := cmp.Diff(tc.want, short); d != "" || got.running != tc.running {
			t.Errorf("%s: %q runs, want %q (-want +got):\n%s", tc.name, got.running, tc.running, d)
		}
	}
}

// TestHearSources: the sources, the registry's revision and the records that are lost.
func TestHearSources(t *testing.T) {
	numbered := func(r audit.Record, id string) audit.Record { r.ID = id; return r }
	genesis := record(1, "kek_genesis", "", "source.o", "{1}", "kind.o", "dynamodb", "place.o", "orders", "source.early", "{2}")
	added := record(2, "source_added", "", "source", "c", "kind", "s3", "place", "carts", "definition", "{3}")
	again := record(3, "source_added", "", "source", "c", "kind", "s3", "place", "carts", "definition", "{4}")
	same := record(4, "source_added", "", "source", "c", "kind", "s3", "place", "elsewhere", "definition", "{4}")
	source := func(name, kind, place, definition string, generation int64, minute int) replayedSource {
		return replayedSource{kek.Source{
			Name: name, Kind: kind, Place: place, Definition: definition, AddedAt: at(minute), AddedBy: fmt.Sprint("actor", minute), Generation: int(generation),
		}, kind != ""}
	}
	first := map[string]replayedSource{"o": source("o", "dynamodb", "orders", "{1}", 0, 1), "early": source("early", "", "", "{2}", 0, 1)}
	for _, tc := range []struct {
		name     string
		records  []audit.Record
		registry int64
		want     map[string]replayedSource
	}{
		{"genesis", []audit.Record{genesis}, 1, first},
		{"added", []audit.Record{added}, 1, map[string]replayedSource{"c": source("c", "s3", "carts", "{3}", 0, 2)}},
		{"added again", []audit.Record{added, again}, 2, map[string]replayedSource{"c": source("c", "s3", "carts", "{4}", 1, 3)}},
		{"added a third time", []audit.Record{added, again, record(5, "source_added", "", "source", "c", "kind", "s3", "place", "carts", "definition", "{5}")}, 3, map[string]replayedSource{"c": source("c", "s3", "carts", "{5}", 2, 5)}},
		{"added twice with one definition", []audit.Record{again, same}, 2, map[string]replayedSource{"c": source("c", "s3", "elsewhere", "{4}", 0, 4)}},
		{"removed", []audit.Record{added, record(3, "source_removed", "", "source", "c")}, 2, map[string]replayedSource{}},
		{"a mark", []audit.Record{genesis, record(3, "mark_removed", "")}, 2, first},
		{"a KEK", []audit.Record{genesis, record(3, "kek_registered", "")}, 2, first},
		{"numbered", []audit.Record{genesis, numbered(record(3, "kek_registered", ""), "kek_registered/9")}, 9, first},
		{"numbered, of long ago", []audit.Record{genesis, numbered(record(3, "kek_registered", ""), "kek_registered/1")}, 2, first},
		{"something else", []audit.Record{genesis, numbered(record(3, "other", ""), "other/9")}, 1, first},
		{"repaired", []audit.Record{genesis, record(3, EventRepaired, "", "registry", "7")}, 7, first},
		{"repaired with less", []audit.Record{genesis, record(3, EventRepaired, "", "registry", "0")}, 1, first},
		{"repaired with more than a number holds", []audit.Record{genesis, record(3, EventRepaired, "", "registry", "99999999999999999999")}, 1, first},
		{"another repair", []audit.Record{genesis, numbered(record(3, EventRepaired, "", "registry", "x"), "control_repaired/X/9")}, 1, first},
	} {
		got := heard(tc.records...)
		if d := cmp.Diff(tc.want, got.sources, cmp.AllowUnexported(replayedSource{})); d != "" || got.registry != tc.registry {
			t.Errorf("%s: registry %d, want %d (-want +got):\n%s", tc.name, got.registry, tc.registry, d)
		}
	}
	lost := heard(record(1, EventRecordLost, "", "seq", "4"), record(2, EventRecordLost, "", "seq", "x"), record(3, "other", "", "seq", "5")).lost
	if want := map[int64]bool{4: true}; !cmp.Equal(lost, want) {
		t.Errorf("lost %v, want %v", lost, want)
	}
}

// TestFaultOf: what is wrong with an item in itself, at each boundary.
func TestFaultOf(t *testing.T) {
	source := kek.Source{Kind: "k", Place: "p", Definition: "d"}
	without := func(change func(*kek.Source)) kek.Source { s := source; change(&s); return s }
	for _, tc := range []struct {
		value any
		err   error
		want  string
	}{
		{value: nil},
		{value: LockItem{"r"}},
		{value: LockItem{}, want: `it is damaged: it names rotation ""`},
		{value: RegistryItem{1}},
		{value: RegistryItem{}, want: "it is damaged: its revision is 0"},
		{value: source},
		{value: without(func(s *kek.Source) { s.Kind = "" }), want: "it is damaged: it has no kind, place or definition"},
		{value: without(func(s *kek.Source) { s.Place = "" }), want: "it is damaged: it has no kind, place or definition"},
		{value: without(func(s *kek.Source) { s.Definition = "" }), want: "it is damaged: it has no kind, place or definition"},
		{value: HeadItem{Head: audit.Head{Seq: 1, Hash: "h"}, Published: 1}},
		{value: HeadItem{Head: audit.Head{Seq: 1, Hash: "h"}, Published: 2}, want: `it is damaged: it says record 1, hash "h", published 2`},
		{value: HeadItem{Head: audit.Head{Seq: 0, Hash: "h"}}, want: `it is damaged: it says record 0, hash "h", published 0`},
		{value: HeadItem{Head: audit.Head{Seq: 1}}, want: `it is damaged: it says record 1, hash "", published 0`},
		{value: anchor.State{Rev: 1}},
		{value: anchor.State{Rev: 1, Last: anchor.Anchored{N: 1, Digest: "d"}}},
		{value: anchor.State{Rev: 1, Last: anchor.Anchored{N: 1}}, want: "it is damaged: it says revision 1, anchor 1"},
		{value: anchor.State{Rev: 1, Last: anchor.Anchored{N: -1, Digest: "d"}}, want: "it is damaged: it says revision 1, anchor -1"},
		{value: anchor.State{}, want: "it is damaged: it says revision 0, anchor 0"},
		{value: rotation.Lease{Holder: "h"}},
		{value: rotation.Lease{}, want: "it is damaged: it names no holder"},
		{value: rotation.Checkpoint{Rev: 1}},
		{value: rotation.Checkpoint{}, want: "it is damaged: its revision is 0"},
		{value: rotation.Checkpoint{Rev: 1}, err: errors.New("odd\x00"), want: `it is damaged: odd\x00`},
		{err: &journal.Error{Kind: journal.ControlTableDamaged, Err: errors.New("odd")}, want: "it is damaged: odd"},
		{err: &journal.Error{Kind: journal.AuditTampered, Msg: "odd"}, want: "it is damaged: " + (&journal.Error{Kind: journal.AuditTampered, Msg: "odd"}).Error()},
	} {
		if got := faultOf(&Item{Value: tc.value, Err: tc.err}); got != tc.want {
			t.Errorf("%+v, %v: %q, want %q", tc.value, tc.err, got, tc.want)
		}
	}
	if got := faultOf(nil); got != "it is missing" {
		t.Error(got)
	}
}

// TestItemKeyString: a key as people write it, without a sort key that says nothing.
func TestItemKeyString(t *testing.T) {
	for want, k := range map[string]ItemKey{"POINTER": {"POINTER", noSortKey}, "LOCK": {PK: "LOCK"}, "SOURCE/orders": {"SOURCE", "orders"}} {
		if got := k.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestInspectRegistry: a pointer is missed as soon as anything was registered.
func TestInspectRegistry(t *testing.T) {
	for _, tc := range []struct {
		name  string
		items []Item
		want  []string
	}{
		{"nothing", nil, nil},
		{"a revision alone", []Item{itemOf(ItemRegistry, "", RegistryItem{1})}, []string{"POINTER"}},
		{"a KEK alone", []Item{itemOf(ItemKEK, "a", kek.KEK{ID: "a", State: kek.Sealed, ARN: "arn", FenceShards: 1})}, []string{"POINTER", "REGISTRY"}},
	} {
		var got []string
		for _, f := range Inspect(tc.items) {
			got = append(got, f.Item)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

func TestRecordSeq(t *testing.T) {
	for sk, want := range map[string]int64{"000000000012": 12, "12": 0, "0000000000012": 0, "x": 0, "": 0, "00000000001x": 0, "1000000000000": 1e12, "-00000000001": 0, "000000000000": 0} {
		if got := recordSeq(ItemKey{"AUDIT", sk}); got != want {
			t.Errorf("%q: %d, want %d", sk, got, want)
		}
	}
}

func TestOpenFindings(t *testing.T) {
	d := Diagnosis{Findings: []Finding{{Item: "a", Repair: "r"}, {Item: "b"}, {Item: "c"}}}
	if open := d.Open(); len(open) != 2 || open[0].Item != "b" || open[1].Item != "c" {
		t.Errorf("%+v", open)
	}
}

// TestDoctorUnwired: without the port that examines the table there is no diagnosis.
func TestDoctorUnwired(t *testing.T) {
	var typed *journal.Error
	if _, seq, err := (&Doctor{}).diagnoseTable(t.Context()); !errors.As(err, &typed) || typed.Kind != journal.Internal || typed.Field != "control table" || typed.Msg != "nothing is wired that examines it" || seq != 0 {
		t.Error(seq, err)
	}
}

// TestMaxShard: the largest number of a KEK's own shards.
func TestMaxShard(t *testing.T) {
	e := exam{items: []Item{
		{Value: FenceItem{KEK: "a", Shard: 2}}, {Value: FenceItem{KEK: "a", Shard: 1}}, {Value: FenceItem{KEK: "b", Shard: 7}}, {Value: LockItem{}},
	}}
	for id, want := range map[kek.ID]int{"a": 2, "b": 7, "c": -1} {
		if got := e.maxShard(id, false); got != want {
			t.Errorf("%s: %d, want %d", id, got, want)
		}
	}
}

// TestMisplaced: kinds with one sort key, and ids.
func TestMisplaced(t *testing.T) {
	for _, k := range []ItemKind{ItemPointer, ItemLock, ItemRegistry, ItemHead, ItemAnchor, ItemAnnouncement, ItemDrill, ItemApproval, ItemHealth, ItemKEK, ItemRotation} {
		for sk, want := range map[string]bool{noSortKey: false, "": true, "--": true, "00": true} {
			if got := (Item{Key: ItemKey{string(k), sk}, Kind: k, ID: "x"}).isMisplaced(); got != want {
				t.Errorf("%s/%s: %t, want %t", k, sk, got, want)
			}
		}
		want := k == ItemKEK || k == ItemRotation
		if got := (Item{Key: ItemKey{string(k), noSortKey}, Kind: k}).isMisplaced(); got != want {
			t.Errorf("%s without an id: %t, want %t", k, got, want)
		}
	}
	for sk, want := range map[string]bool{"000000000001": false, "000000000000": true, "-00000000001": true, "1": true} {
		if got := (Item{Key: ItemKey{"AUDIT", sk}, Kind: ItemRecord}).isMisplaced(); got != want {
			t.Errorf("AUDIT/%s: %t, want %t", sk, got, want)
		}
	}
	for _, k := range []ItemKind{ItemFence, ItemSource, ItemMark, ItemLease, ItemCheckpoint, ""} {
		if (Item{Key: ItemKey{string(k), "00"}, Kind: k}).isMisplaced() {
			t.Errorf("%s has a sort key of its own", k)
		}
	}
}

// TestOfKind: of an item under a key that is none of its kind its key is left, and what a
// repair of that key conditions on.
func TestOfKind(t *testing.T) {
	well, odd := itemOf(ItemLock, "", LockItem{"r"}), itemOf(ItemLock, "", LockItem{"r"})
	well.Raw, odd.Raw, odd.Key.SK = "well", "odd", "copy"
	items := []Item{well, odd}
	if d := cmp.Diff([]Item{well, {Key: odd.Key, Raw: "odd"}}, dropMisplaced(items)); d != "" {
		t.Errorf("items (-want +got):\n%s", d)
	}
	if d := cmp.Diff(odd, items[1]); d != "" {
		t.Errorf("what was given has changed (-want +got):\n%s", d)
	}
}
