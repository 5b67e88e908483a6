package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// restless is a control table whose head is another each time that it is asked for. The
// last answer stays.
type restless struct {
	Items
	journal.Outbox
	items    []Item
	chain    string
	heads    []audit.Head
	errs     []error // beside heads
	asked    int
	examined int
}

func (r *restless) Head(context.Context) (audit.Line, audit.Head, error) {
	i := min(r.asked, len(r.heads)-1)
	r.asked++
	var err error
	if i < len(r.errs) {
		err = r.errs[i]
	}
	return audit.Line{Chain: r.chain}, r.heads[i], err
}

func (r *restless) Examine(context.Context) ([]Item, error) {
	r.examined++
	return r.items, nil
}

// TestReadItemsOfOneMoment: what was read counts if the head was the same before and after,
// or cannot be read at all.
func TestReadItemsOfOneMoment(t *testing.T) {
	head := func(seq int64) audit.Head { return audit.Head{Seq: seq, Hash: fmt.Sprint(seq)} }
	many := make([]audit.Head, 2*journal.MaxTries)
	for i := range many {
		many[i] = head(int64(i))
	}
	tampered := &journal.Error{Kind: journal.AuditTampered, Field: "AUDIT_HEAD"}
	for _, tc := range []struct {
		name                 string
		heads                []audit.Head
		errs                 []error
		asked, examined      int
		kind                 journal.Kind
		field                string
		chain, theConfigured string
	}{
		{name: "quiet", heads: []audit.Head{head(1)}, asked: 2, examined: 1},
		{name: "it moves once", heads: []audit.Head{head(1), head(2), head(2)}, asked: 4, examined: 2},
		{name: "it moves until the last try", heads: many[:2*journal.MaxTries-1], asked: 2 * journal.MaxTries, examined: journal.MaxTries},
		{name: "it moves each time", heads: many, asked: 2 * journal.MaxTries, examined: journal.MaxTries, kind: journal.Transient, field: "control table"},
		{name: "the head cannot be read", heads: []audit.Head{{}}, errs: []error{tampered}, asked: 1, examined: 1},
		{name: "it cannot be read the first time", heads: []audit.Head{{}, head(1)}, errs: []error{tampered}, asked: 1, examined: 1},
		{name: "it cannot be read the second time", heads: []audit.Head{head(1), {}}, errs: []error{nil, tampered}, asked: 2, examined: 1},
		{name: "it is another deployment's", heads: []audit.Head{{}}, errs: []error{&journal.Error{Kind: journal.Misconfigured, Field: "AUDIT_HEAD"}}, asked: 1, kind: journal.Misconfigured, field: "AUDIT_HEAD"},
		{name: "no table", heads: []audit.Head{{}}, errs: []error{errShelf}, theConfigured: "-", asked: 1, kind: journal.Transient, field: "audit head"},
	} {
		table := &restless{chain: line, heads: tc.heads, errs: tc.errs, items: []Item{{Key: ItemKey{"A", "1"}}, {Key: ItemKey{"A", "2"}}}}
		if tc.theConfigured != "" {
			table.chain = ""
		}
		var e exam
		s := Doctor{Journal: &journal.Journal{Outbox: table}, Items: table}
		chain, err := s.readItems(t.Context(), &e)
		if table.asked != tc.asked || table.examined != tc.examined {
			t.Errorf("%s: the head was asked for %d times and the table examined %d, want %d and %d", tc.name, table.asked, table.examined, tc.asked, tc.examined)
		}
		if tc.kind != "" {
			isError(t, tc.name, err, tc.kind, tc.field)
			continue
		}
		if err != nil || chain != line || len(e.items) != 2 || e.by[ItemKey{"A", "2"}] != &e.items[1] || e.by[ItemKey{"A", "1"}] != &e.items[0] {
			t.Errorf("%s: %q, %v, %v", tc.name, chain, e.by, err)
		}
	}
}

// TestReadBothAgain: records that the bucket alone holds are forgotten ones only if the
// table's head is what it was before the bucket was read.
func TestReadBothAgain(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2")
	item := func(h audit.Head) Item {
		return Item{Key: ItemKey{"AUDIT_HEAD", noSortKey}, Kind: ItemHead, Value: HeadItem{Head: h, Published: h.Seq}}
	}
	one, two := own[0].Head(), own[1].Head()
	var each []audit.Head // after each look at the bucket it is another
	for range journal.MaxTries {
		each = append(each, one, one, two)
	}
	for _, tc := range []struct {
		name     string
		without  bool // a head among the items
		heads    []audit.Head
		errs     []error
		examined int
		branches int
		kind     journal.Kind
		field    string
	}{
		{name: "set back", heads: []audit.Head{one}, examined: 1, branches: 1},
		{name: "a record was made meanwhile", heads: []audit.Head{one, one, two, one}, examined: 2, branches: 1},
		{name: "each time but the last", heads: each[:len(each)-1], examined: journal.MaxTries, branches: 1},
		{name: "each time", heads: each, examined: journal.MaxTries, kind: journal.Transient, field: "control table"},
		{name: "without a head", without: true, heads: []audit.Head{one, one, two}, examined: 1, branches: 1},
		{name: "the head cannot be read again", heads: []audit.Head{one, one, {}}, errs: []error{nil, nil, errShelf}, examined: 1, kind: journal.Transient, field: "audit head"},
	} {
		var bucket shelf
		bucket.keep("", own...)
		table := &restless{chain: line, heads: tc.heads, errs: tc.errs, items: itemsOf(own[0])}
		if !tc.without {
			table.items = append(table.items, item(one))
		}
		var e exam
		s := Doctor{Journal: &journal.Journal{Outbox: table, AuditBucket: &bucket}, Items: table}
		err := s.readBoth(t.Context(), &e)
		if table.examined != tc.examined {
			t.Errorf("%s: the table was examined %d times, want %d", tc.name, table.examined, tc.examined)
		}
		if tc.kind != "" {
			isError(t, tc.name, err, tc.kind, tc.field)
		} else if err != nil || len(e.chain.branches) != tc.branches {
			t.Errorf("%s: %+v, %v", tc.name, e.chain.branches, err)
		}
	}
}

// examOf is a look at these items, of a chain without a record.
func examOf(items ...Item) *exam {
	e := &exam{
		now: at(30), shards: 2, hold: time.Hour, items: items, by: map[ItemKey]*Item{}, replayed: newReplayedState(),
		chain: &chainRead{at: audit.Line{Chain: line}, table: map[int64]audit.Entry{}},
		keys:  keys{known: map[kek.ID]keyring.Key{}, ours: map[kek.ID]bool{}},
	}
	for i := range e.items {
		e.by[e.items[i].Key] = &e.items[i]
	}
	return e
}

func itemOf(kind ItemKind, id string, v any) Item {
	pk := string(kind)
	if id != "" {
		pk += "#" + id
	}
	return Item{Key: ItemKey{pk, noSortKey}, Kind: kind, ID: id, Value: v}
}

// broken is an item that cannot be read.
func broken(i Item) Item {
	i.Err = errors.New("odd")
	return i
}

// single is the one finding of a look.
func (e *exam) single(t *testing.T, name string) Finding {
	t.Helper()
	if len(e.findings) != 1 {
		t.Fatalf("%s: findings %+v", name, e.findings)
	}
	return e.findings[0]
}

// changed compares the changes of a finding.
func changed(t *testing.T, name string, f Finding, want ...ItemChange) {
	t.Helper()
	if d := cmp.Diff(want, f.changes, cmp.Comparer(func(a, b error) bool { return errors.Is(a, b) })); d != "" {
		t.Errorf("%s: changes (-want +got):\n%s", name, d)
	}
}

// TestExamineLostRecord: a record that is declared lost may be missing, not damaged.
func TestExamineLostRecord(t *testing.T) {
	lost := itemOf(ItemRecord, "", audit.Entry{})
	lost.Key = ItemKey{"AUDIT", "000000000001"}
	for _, tc := range []struct {
		name     string
		items    []Item
		declared bool
		want     bool
	}{
		{"missing", nil, false, true},
		{"missing and declared", nil, true, false},
		{"damaged", []Item{broken(lost)}, false, true},
		{"damaged and declared", []Item{broken(lost)}, true, true},
	} {
		e := examOf(tc.items...)
		e.chain.last, e.chain.gaps, e.replayed.lost[1] = 1, map[int64]string{1: "hash"}, tc.declared
		e.examineRecords()
		if !tc.want {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		if f.event != EventRecordLost || f.body["seq"] != "1" || f.body["hash"] != "hash" {
			t.Errorf("%s: %+v", tc.name, f)
		}
		was := e.by[lost.Key]
		changed(t, tc.name, f, ItemChange{Key: lost.Key, Was: was, Keep: was == nil})
	}
}

// TestRunningRotations: of several that could continue the chain's own does, and the others
// end; the lock's may be one that has no record.
func TestRunningRotations(t *testing.T) {
	running := func(id string) Item {
		return itemOf(ItemRotation, id, kek.Rotation{ID: id, Mode: kek.Normal, Phase: kek.Started, Rev: 1, Attempt: 1, OldKEK: "a"})
	}
	for _, tc := range []struct {
		name  string
		items []Item
		said  map[string]kek.Phase
		runs  string
		kept  string
		ended []string
	}{
		{"none", nil, nil, "", "", nil},
		{"one", []Item{running("a")}, nil, "", "a", nil},
		{"two, and the chain says neither", []Item{running("a"), running("b")}, nil, "", "", []string{"a", "b"}},
		{"two, and the chain says the first", []Item{running("a"), running("b")}, nil, "a", "a", []string{"b"}},
		{"two, and the chain says the second", []Item{running("a"), running("b")}, nil, "b", "b", []string{"a"}},
		{"one that the chain alone knows", nil, map[string]kek.Phase{"c": kek.Minted}, "c", "", []string{"c"}},
		{"one that the lock alone knows", []Item{itemOf(ItemLock, "", LockItem{"d"})}, nil, "", "", []string{"d"}},
		{"a damaged lock's", []Item{broken(itemOf(ItemLock, "", LockItem{"d"}))}, nil, "", "", nil},
		{"one that the chain calls over", []Item{running("a")}, map[string]kek.Phase{"a": kek.Completed}, "", "", []string{"a"}},
	} {
		e := examOf(tc.items...)
		for id, p := range tc.said {
			e.replayed.rotations[id] = kek.Rotation{ID: id, Phase: p}
		}
		e.replayed.running = tc.runs
		kept := e.examineRotations()
		var ended []string
		for _, f := range e.findings {
			ended = append(ended, strings.TrimPrefix(f.Item, "ROTATION#"))
		}
		if d := cmp.Diff(tc.ended, ended); d != "" || kept != tc.kept {
			t.Errorf("%s: %q is kept, want %q; ended (-want +got):\n%s", tc.name, kept, tc.kept, d)
		}
	}
}

// TestEndRotation: what a rotation ends as, and what its record is then.
func TestEndRotation(t *testing.T) {
	here := kek.Rotation{ID: "r", Mode: kek.Normal, Phase: kek.Minted, Rev: 3, Attempt: 1, OldKEK: "a", NewKEK: "b"}
	for _, tc := range []struct {
		name  string
		said  *kek.Rotation
		phase kek.Phase
		from  string
	}{
		{"the chain does not know it", nil, kek.Superseded, fromTable},
		{"the chain says that it runs", &kek.Rotation{ID: "r", Phase: kek.Tested}, kek.Superseded, fromChain},
		{"the chain says that it was rolled back", &kek.Rotation{ID: "r", Phase: kek.RolledBack}, kek.RolledBack, fromChain},
		{"the chain says that it completed", &kek.Rotation{ID: "r", Phase: kek.Completed}, kek.Completed, fromChain},
	} {
		i := itemOf(ItemRotation, "r", here)
		e := examOf(i)
		if tc.said != nil {
			e.replayed.rotations["r"] = *tc.said
		}
		e.endRotation("r", &e.items[0], here, "why")
		f := e.single(t, tc.name)
		after := here
		after.Phase, after.Err, after.Rev, after.UpdatedAt = tc.phase, "ended by doctor: why", 4, at(30)
		changed(t, tc.name, f, ItemChange{Key: i.Key, Was: &e.items[0], Put: after})
		if f.From != tc.from || f.body["rotation.r"] != string(tc.phase) || strings.Contains(f.Repair, "the next rotation") != (tc.phase == kek.Superseded) {
			t.Errorf("%s: %+v", tc.name, f)
		}
	}
}

// TestFaultOfARotation: what is wrong with the record itself is said, not that the table
// was set back.
func TestFaultOfARotation(t *testing.T) {
	here := kek.Rotation{ID: "r", Mode: kek.Normal, Phase: kek.Minted, Rev: 1, Attempt: 1, OldKEK: "a", NewKEK: "b"}
	over := here
	over.Phase = kek.Completed
	for _, tc := range []struct {
		name    string
		item    Item
		setBack bool
		said    kek.Phase // "" unknown
		goesOn  bool
		want    string
	}{
		{"sound", itemOf(ItemRotation, "r", here), false, kek.Minted, true, ""},
		{"sound and unknown", itemOf(ItemRotation, "r", here), false, "", true, ""},
		{"sound, and the chain says that it is over", itemOf(ItemRotation, "r", here), false, kek.Completed, false, "it is minted here and completed in the audit chain"},
		{"set back", itemOf(ItemRotation, "r", here), true, kek.Minted, false, "the control table was set back while it ran"},
		{"set back and unknown", itemOf(ItemRotation, "r", here), true, "", false, "it is minted here and unknown in"},
		{"set back, of another phase", itemOf(ItemRotation, "r", here), true, kek.Tested, false, "it is minted here and tested in"},
		{"damaged", broken(itemOf(ItemRotation, "r", here)), false, kek.Minted, false, "it is damaged: odd"},
		{"damaged and over", broken(itemOf(ItemRotation, "r", here)), false, kek.Completed, false, "it is damaged: odd"},
		{"damaged, over and said to be over", broken(itemOf(ItemRotation, "r", over)), false, kek.Completed, false, "it is damaged: odd"},
		{"over", itemOf(ItemRotation, "r", over), true, kek.Minted, false, ""},
		{"damaged and set back", broken(itemOf(ItemRotation, "r", here)), true, kek.Minted, false, "it is damaged: odd"},
		{"damaged, set back and unknown", broken(itemOf(ItemRotation, "r", here)), true, "", false, "it is damaged: odd"},
	} {
		e := examOf(tc.item)
		if e.setBack = tc.setBack; tc.said != "" {
			e.replayed.rotations["r"] = kek.Rotation{ID: "r", Phase: tc.said}
		}
		if got := e.examineRotation("r"); got != tc.goesOn {
			t.Errorf("%s: it continues: %t", tc.name, got)
		}
		if tc.want == "" {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		if f := e.single(t, tc.name); !strings.HasPrefix(f.Fault, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, f.Fault, tc.want)
		}
	}
}

// TestFill: of a rotation's record what can be read stays, and the chain fills the rest.
func TestFill(t *testing.T) {
	here := kek.Rotation{
		Mode: kek.Normal, Label: "l", Reason: "w", OldKEK: "a", NewKEK: "b", Olds: []kek.ID{"a"}, Execution: "e", Actor: "p", Requester: "q",
		Drill: "d", EndedBy: "x", Epoch: 7, Rev: 8, Attempt: 2, StartedAt: at(1), SwitchedAt: at(2),
	}
	said := kek.Rotation{
		Mode: kek.Emergency, Label: "l2", Reason: "w2", OldKEK: "a2", NewKEK: "b2", Olds: []kek.ID{"a2", "z"}, Execution: "e2", Actor: "p2", Requester: "q2",
		Drill: "d2", EndedBy: "x2", Epoch: 5, Rev: 6, Attempt: 1, StartedAt: at(3), SwitchedAt: at(4),
	}
	if d := cmp.Diff(here, fillRecord(here, said)); d != "" {
		t.Errorf("all can be read (-want +got):\n%s", d)
	}
	if d := cmp.Diff(said, fillRecord(kek.Rotation{Mode: "odd"}, said)); d != "" {
		t.Errorf("nothing can be read (-want +got):\n%s", d)
	}
	want := kek.Rotation{Mode: kek.Normal, OldKEK: "unknown", Rev: 1, Attempt: 1}
	if d := cmp.Diff(want, fillRecord(kek.Rotation{}, kek.Rotation{})); d != "" {
		t.Errorf("nothing is known (-want +got):\n%s", d)
	}
	if got := fillRecord(kek.Rotation{Mode: kek.Emergency}, kek.Rotation{Mode: kek.Normal}).Mode; got != kek.Emergency {
		t.Errorf("an emergency becomes %s", got)
	}
}

// TestRebuiltShards: a KEK has as many fence shards as its entry or its fence says, or as
// the deployment makes.
func TestRebuiltShards(t *testing.T) {
	for _, tc := range []struct {
		name          string
		entry, shards int
		there         bool
		said          int
		want          int
	}{
		{name: "neither", want: 2},
		{name: "the fence", shards: 5, want: 5},
		{name: "one shard", shards: 1, want: 1},
		{name: "the entry", there: true, entry: 4, shards: 1, want: 4},
		{name: "the fence has more than the entry", there: true, entry: 1, shards: 3, want: 3},
		{name: "one", there: true, entry: 1, shards: 1, want: 1},
	} {
		var items []Item
		if tc.there {
			items = append(items, itemOf(ItemKEK, "a", kek.KEK{ID: "a", State: "odd", ARN: "arn", FenceShards: tc.entry}))
		}
		e := examOf(items...)
		if got := e.examineKEK("a", tc.shards, "").FenceShards; got != tc.want {
			t.Errorf("%s: %d shards, want %d", tc.name, got, tc.want)
		}
	}
}

// TestRebuiltKEK: an entry is made of what can be read of it, the chain and KMS.
func TestRebuiltKEK(t *testing.T) {
	said := kek.KEK{ID: "a", State: kek.Retired, Label: "said", RotationID: "s", CreatedAt: at(1), SwitchedAt: at(2), RetiredAt: at(3), Reason: "rotated"}
	found := kek.KEK{ID: "a", State: "odd", ARN: "arn", Label: "found", RotationID: "f", FenceShards: 3, CreatedAt: at(4), SwitchedAt: at(5), RetiredAt: at(6), Reason: "own", NotBeforeDelete: at(7)}
	for _, tc := range []struct {
		name  string
		found *kek.KEK
		said  kek.State
		key   keyring.Key
		want  kek.KEK
	}{
		{"lost", nil, kek.Retired, keyring.Key{ARN: "kms"}, kek.KEK{
			ID: "a", State: kek.Retired, ARN: "kms", Label: "said", RotationID: "s", FenceShards: 2, CreatedAt: at(1), SwitchedAt: at(2),
			RetiredAt: at(3), Reason: "rotated", NotBeforeDelete: at(63),
		}},
		{"lost, and its key is enabled", nil, kek.Retired, keyring.Key{ARN: "kms", Enabled: true}, kek.KEK{
			ID: "a", State: kek.Sealed, ARN: "kms", Label: "said", RotationID: "s", FenceShards: 2, CreatedAt: at(1), SwitchedAt: at(2),
		}},
		{"damaged", &found, kek.Retired, keyring.Key{}, kek.KEK{
			ID: "a", State: kek.Retired, ARN: "arn", Label: "found", RotationID: "f", FenceShards: 3, CreatedAt: at(4), SwitchedAt: at(5),
			RetiredAt: at(3), Reason: "own", NotBeforeDelete: at(63),
		}},
		{"damaged, and it drains", &found, kek.Draining, keyring.Key{ARN: "kms"}, kek.KEK{
			ID: "a", State: kek.Draining, ARN: "kms", Label: "found", RotationID: "f", FenceShards: 3, CreatedAt: at(4), SwitchedAt: at(5),
		}},
		{"lost, and KMS does not know it", nil, kek.Draining, keyring.Key{}, kek.KEK{
			ID: "a", State: kek.Draining, ARN: "unknown", Label: "said", RotationID: "s", FenceShards: 2, CreatedAt: at(1), SwitchedAt: at(2),
		}},
	} {
		var items []Item
		if tc.found != nil {
			items = append(items, itemOf(ItemKEK, "a", *tc.found))
		}
		e := examOf(items...)
		s := said
		s.State = tc.said
		e.replayed.keks["a"], e.keys.known["a"] = s, tc.key
		got := e.examineKEK("a", 0, "")
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
		f := e.single(t, tc.name)
		changed(t, tc.name, f, ItemChange{Key: ItemKey{"KEK#a", noSortKey}, Was: e.by[ItemKey{"KEK#a", noSortKey}], Put: tc.want})
		if f.body["kek.a"] != string(tc.want.State) {
			t.Errorf("%s: its record says %v", tc.name, f.body)
		}
	}
}

// TestAbandonedKEK: a pending KEK is its rotation's while that runs, and sealed after it.
func TestAbandonedKEK(t *testing.T) {
	entry := itemOf(ItemKEK, "b", kek.KEK{ID: "b", State: kek.Pending, ARN: "arn", FenceShards: 2})
	own := itemOf(ItemRotation, "r", kek.Rotation{ID: "r", Mode: kek.Normal, Phase: kek.Minted, Rev: 1, Attempt: 1, OldKEK: "a", NewKEK: "b"})
	other := itemOf(ItemRotation, "r", kek.Rotation{ID: "r", Mode: kek.Normal, Phase: kek.Minted, Rev: 1, Attempt: 1, OldKEK: "a", NewKEK: "c"})
	for _, tc := range []struct {
		name    string
		items   []Item
		running string
		want    kek.State
	}{
		{"its rotation runs", []Item{entry, own}, "r", kek.Pending},
		{"another runs", []Item{entry, other}, "r", kek.Sealed},
		{"none runs", []Item{entry, own}, "", kek.Sealed},
	} {
		e := examOf(tc.items...)
		e.replayed.keks["b"], e.keys.known["b"] = kek.KEK{ID: "b", State: kek.Pending}, keyring.Key{Enabled: true}
		if got := e.examineKEK("b", 2, tc.running).State; got != tc.want || len(e.findings) != btoi(tc.want == kek.Sealed) {
			t.Errorf("%s: %s, want %s; %+v", tc.name, got, tc.want, e.findings)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestRebuiltFence: what a shard is made, on the condition of its KEK's entry.
func TestRebuiltFence(t *testing.T) {
	fence := func(shard int, open bool) Item {
		return Item{Key: ItemKey{"FENCE#a", fmt.Sprintf("%02d", shard)}, Kind: ItemFence, ID: "a", Value: FenceItem{KEK: "a", Shard: shard, Open: open}}
	}
	for _, tc := range []struct {
		name   string
		state  kek.State
		items  []Item
		fenced bool
		want   []FenceItem // by the shards that are found
	}{
		{"active and whole", kek.Active, []Item{fence(0, true), fence(1, true)}, true, nil},
		{"active without one", kek.Active, []Item{fence(0, true)}, true, []FenceItem{{KEK: "a", Shard: 1, Open: true}}},
		{"active, and one is damaged", kek.Active, []Item{fence(0, true), broken(fence(1, true))}, true, []FenceItem{{KEK: "a", Shard: 1, Open: true}}},
		{"it drains", kek.Draining, []Item{fence(0, true), fence(1, false)}, true, nil},
		{"it drains without one", kek.Draining, []Item{fence(0, true)}, true, []FenceItem{{KEK: "a", Shard: 1}}},
		{"sealed, and one is open", kek.Sealed, []Item{fence(0, true), fence(1, false)}, true, []FenceItem{{KEK: "a"}}},
		{"retired without a fence", kek.Retired, nil, false, nil},
		{"retired without its fence", kek.Retired, nil, true, []FenceItem{{KEK: "a"}, {KEK: "a", Shard: 1}}},
		{"pending without a fence", kek.Pending, nil, false, nil},
		{"one beyond the others", kek.Sealed, []Item{fence(0, false), fence(1, false), fence(3, true)}, true, []FenceItem{{KEK: "a", Shard: 3}}},
	} {
		entry := itemOf(ItemKEK, "a", kek.KEK{ID: "a", State: tc.state, FenceShards: 2})
		e := examOf(append(tc.items, entry)...)
		e.replayed.fenced["a"] = tc.fenced
		e.examineFence(entry.Value.(kek.KEK), false)
		if len(e.findings) != len(tc.want) {
			t.Errorf("%s: %+v", tc.name, e.findings)
			continue
		}
		for i, w := range tc.want {
			key := ItemKey{"FENCE#a", fmt.Sprintf("%02d", w.Shard)}
			changed(t, tc.name, e.findings[i], ItemChange{Key: key, Was: e.by[key], Put: w}, ItemChange{Key: entry.Key, Was: e.by[entry.Key], Keep: true})
		}
	}
	e := examOf(fence(0, false), fence(1, true))
	e.examineFence(kek.KEK{ID: "a", State: kek.Active, FenceShards: 2}, false)
	if f := e.single(t, "a sealed shard of the active KEK"); f.Repair != "" || f.Item != "FENCE#a/00" || len(f.changes) > 0 {
		t.Errorf("%+v", f)
	}
}

// TestRecordsOnlyFence: the fence of rows of a KEK that takes records alone is not made, and a
// shard of it that is open is sealed.
func TestRecordsOnlyFence(t *testing.T) {
	shard := func(open bool) Item {
		return Item{Key: ItemKey{"FENCE#a", "00"}, Kind: ItemFence, ID: "a", Value: FenceItem{KEK: "a", Open: open}}
	}
	for state, fixed := range map[kek.State]bool{kek.Active: true, kek.Draining: true, kek.Sealed: true, kek.Retired: true} {
		k := kek.KEK{ID: "a", State: state, FenceShards: 1, RecordsOnly: true}
		for name, items := range map[string][]Item{"no fence": nil, "a sealed one": {shard(false)}} {
			e := examOf(append(items, itemOf(ItemKEK, "a", k))...)
			e.replayed.fenced["a"] = true
			if e.examineFence(k, false); len(e.findings) > 0 {
				t.Errorf("%s, %s: %+v", state, name, e.findings)
			}
		}
		e := examOf(shard(true), itemOf(ItemKEK, "a", k))
		e.examineFence(k, false)
		if f := e.single(t, string(state)); (f.Repair == "seal it") != fixed {
			t.Errorf("%s: %+v", state, f)
		}
	}
}

// TestRebuiltKeyFence: of the fence of records, only that of the active KEK is made where it is
// missing: a KEK from before the key table has none, and a missing shard refuses.
func TestRebuiltKeyFence(t *testing.T) {
	fence := func(shard int, open bool) Item {
		return Item{Key: ItemKey{"DEKFENCE#a", fmt.Sprintf("%02d", shard)}, Kind: ItemKeyFence, ID: "a", Value: FenceItem{KEK: "a", Shard: shard, Open: open, Records: true}}
	}
	rows := Item{Key: ItemKey{"FENCE#a", "05"}, Kind: ItemFence, ID: "a", Value: FenceItem{KEK: "a", Shard: 5, Open: true}}
	for _, tc := range []struct {
		name  string
		state kek.State
		items []Item
		want  []FenceItem
	}{
		{"active and whole", kek.Active, []Item{fence(0, true), fence(1, true)}, nil},
		{"active, from before the key table", kek.Active, nil, []FenceItem{{KEK: "a", Open: true, Records: true}, {KEK: "a", Shard: 1, Open: true, Records: true}}},
		{"active without one", kek.Active, []Item{fence(0, true)}, []FenceItem{{KEK: "a", Shard: 1, Open: true, Records: true}}},
		{"it drains, from before the key table", kek.Draining, nil, nil},
		{"sealed, from before the key table", kek.Sealed, nil, nil},
		{"retired, from before the key table", kek.Retired, nil, nil},
		{"sealed, and one is open", kek.Sealed, []Item{fence(0, true), fence(1, false)}, []FenceItem{{KEK: "a", Records: true}}},
		{"retired, and one is damaged", kek.Retired, []Item{broken(fence(0, true))}, []FenceItem{{KEK: "a", Records: true}}},
	} {
		entry := itemOf(ItemKEK, "a", kek.KEK{ID: "a", State: tc.state, FenceShards: 2})
		e := examOf(append(tc.items, entry, rows)...)
		e.replayed.fenced["a"] = true
		e.examineFence(entry.Value.(kek.KEK), true)
		if len(e.findings) != len(tc.want) {
			t.Errorf("%s: %+v", tc.name, e.findings)
			continue
		}
		for i, w := range tc.want {
			key := ItemKey{"DEKFENCE#a", fmt.Sprintf("%02d", w.Shard)}
			changed(t, tc.name, e.findings[i], ItemChange{Key: key, Was: e.by[key], Put: w}, ItemChange{Key: entry.Key, Was: e.by[entry.Key], Keep: true})
		}
	}
}

// TestRebuiltPointer: the KEK that the chain says, or the registry's only active one; the
// epoch never goes back, and a table that was set back has the next one.
func TestRebuiltPointer(t *testing.T) {
	key := ItemKey{"POINTER", noSortKey}
	pointer := func(id kek.ID, epoch int64) Item {
		return itemOf(ItemPointer, "", kek.Pointer{KEKID: id, Epoch: epoch})
	}
	said := &kek.Pointer{KEKID: "b", Epoch: 5, RotationID: "r", SwitchedAt: at(2)}
	usable := keyring.Key{ARN: "arn-b", Enabled: true, Usable: true}
	for _, tc := range []struct {
		name    string
		items   []Item
		said    *kek.Pointer
		setBack bool
		key     keyring.Key
		epoch   int64 // of the pointer that it is made; 0: none is
		fault   string
		open    bool // nothing is repaired
	}{
		{name: "as it should be", items: []Item{pointer("b", 5)}, said: said, key: usable},
		{name: "later than the chain", items: []Item{pointer("b", 6)}, said: said, key: usable},
		{name: "set back, though the same", items: []Item{pointer("b", 5)}, said: said, key: usable, setBack: true, epoch: 6, fault: "its epoch, 5, may have been"},
		{name: "set back, and later", items: []Item{pointer("b", 8)}, said: said, key: usable, setBack: true, epoch: 9, fault: "its epoch, 8, may have been"},
		{name: "an earlier epoch", items: []Item{pointer("b", 4)}, said: said, key: usable, epoch: 5, fault: "it names KEK b at epoch 4;"},
		{name: "another KEK", items: []Item{pointer("a", 7)}, said: said, key: usable, epoch: 7, fault: "it names KEK a at epoch 7;"},
		{name: "damaged", items: []Item{broken(pointer("a", 9))}, said: said, key: usable, epoch: 9, fault: "it is damaged: odd"},
		{name: "damaged, though it names the KEK", items: []Item{broken(pointer("b", 7))}, said: said, key: usable, epoch: 7, fault: "it is damaged: odd"},
		{name: "missing", said: said, key: usable, epoch: 5, fault: "it is missing"},
		{name: "its key is disabled", items: []Item{pointer("b", 5)}, said: said, key: keyring.Key{Usable: true}, fault: "KEK b is in KMS state", open: true},
		{name: "its key cannot be used", items: []Item{pointer("b", 5)}, said: said, key: keyring.Key{Enabled: true}, fault: "KEK b is in KMS state", open: true},
		{name: "missing, and the key is disabled", said: said, key: keyring.Key{}, fault: "it is missing; KEK b is in KMS state", open: true},
		{name: "the registry says", items: []Item{
			itemOf(ItemKEK, "b", kek.KEK{ID: "b", State: kek.Active, ARN: "arn", RotationID: "r", SwitchedAt: at(2)}), itemOf(ItemKEK, "c", kek.KEK{ID: "c", State: kek.Sealed}),
			itemOf(ItemRotation, "r", kek.Rotation{Epoch: 3}), itemOf(ItemRotation, "q", kek.Rotation{Epoch: 2}),
		}, key: usable, epoch: 3, fault: "it is missing"},
		{name: "the registry says, without a rotation", items: []Item{
			itemOf(ItemKEK, "b", kek.KEK{ID: "b", State: kek.Active, ARN: "arn", RotationID: "r", SwitchedAt: at(2)}),
		}, key: usable, epoch: 1, fault: "it is missing"},
		{name: "the registry says two", items: []Item{
			itemOf(ItemKEK, "b", kek.KEK{ID: "b", State: kek.Active}), itemOf(ItemKEK, "c", kek.KEK{ID: "c", State: kek.Active}),
		}, key: usable, fault: "it is missing; neither", open: true},
		{name: "the registry's is damaged", items: []Item{broken(itemOf(ItemKEK, "b", kek.KEK{ID: "b", State: kek.Active}))}, key: usable, fault: "it is missing; neither", open: true},
		{name: "before genesis"},
		{name: "nothing else says which", items: []Item{pointer("b", 5)}, key: usable},
		{name: "damaged before genesis", items: []Item{broken(pointer("", 0))}, fault: "it is damaged: odd; neither", open: true},
	} {
		e := examOf(tc.items...)
		e.replayed.pointer, e.setBack, e.keys.known["b"] = tc.said, tc.setBack, tc.key
		e.examinePointer()
		if tc.fault == "" {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		if !strings.HasPrefix(f.Fault, tc.fault) || (f.Repair == "") != tc.open {
			t.Errorf("%s: %+v", tc.name, f)
		}
		if tc.open {
			continue
		}
		want := kek.Pointer{KEKID: "b", KeyARN: "arn-b", Epoch: tc.epoch, RotationID: "r", SwitchedAt: at(2)}
		k := ItemKey{"KEK#b", noSortKey}
		changed(t, tc.name, f, ItemChange{Key: key, Was: e.by[key], Put: want}, ItemChange{Key: k, Was: e.by[k], Keep: true})
		if d := cmp.Diff(map[string]string{"pointer": "b", "epoch": fmt.Sprint(tc.epoch), "kek.b": "active"}, f.body); d != "" {
			t.Errorf("%s: its record (-want +got):\n%s", tc.name, d)
		}
	}
}

// TestRebuiltSource: a source is what the chain says, or what the newest rotation that can
// be read has frozen; else nobody knows.
func TestRebuiltSource(t *testing.T) {
	key := ItemKey{"SOURCE", "s"}
	source := func(definition string, generation int) kek.Source {
		return kek.Source{Name: "s", Kind: "k", Place: "p", Definition: definition, Generation: generation}
	}
	item := func(src kek.Source) Item { return Item{Key: key, Kind: ItemSource, ID: "s", Value: src} }
	said := replayedSource{source("{1}", 1), true}
	said.AddedAt, said.AddedBy = at(1), "who"
	later := said
	later.Generation = 3
	part := replayedSource{kek.Source{Name: "s", Definition: "{1}", AddedAt: at(1), AddedBy: "who"}, false} // as records before it say
	nothing := replayedSource{kek.Source{Name: "s", AddedAt: at(1), AddedBy: "who"}, false}
	froze := func(id string, minute int, src kek.Source) Item {
		return itemOf(ItemRotation, id, kek.Rotation{ID: id, StartedAt: at(minute), Sources: []kek.Source{{Name: "other"}, src}})
	}
	added := func(src kek.Source) *kek.Source { src.AddedAt, src.AddedBy = at(1), "who"; return &src }
	for _, tc := range []struct {
		name    string
		items   []Item
		said    *replayedSource
		setBack bool
		want    *kek.Source
		from    string
		open    bool
	}{
		{name: "as it should be", items: []Item{item(source("{1}", 1))}, said: &said},
		{name: "of another definition", items: []Item{item(source("{2}", 1))}, said: &said},
		{name: "set back, as it should be", items: []Item{item(source("{1}", 1))}, said: &said, setBack: true},
		{name: "set back, of another definition", items: []Item{item(source("{2}", 4))}, said: &said, setBack: true, want: added(source("{1}", 5)), from: fromChain},
		{name: "set back, of another definition and long ago", items: []Item{item(source("{2}", 0))}, said: &said, setBack: true, want: added(source("{1}", 1)), from: fromChain},
		{name: "set back, of another definition, and the chain is later", items: []Item{item(source("{2}", 0))}, said: &later, setBack: true, want: added(source("{1}", 3)), from: fromChain},
		{name: "set back, and the chain does not know it", items: []Item{item(source("{2}", 1))}, setBack: true},
		{name: "set back, and the chain knows half", items: []Item{item(source("{2}", 1))}, said: &part, setBack: true},
		{name: "missing", said: &said, want: added(source("{1}", 1)), from: fromChain},
		{name: "damaged", items: []Item{broken(item(source("", 0)))}, said: &said, want: added(source("{1}", 1)), from: fromChain},
		{name: "damaged and unknown", items: []Item{broken(item(source("", 0)))}, open: true},
		{name: "missing, and half known", said: &part, open: true},
		{name: "missing, and frozen", items: []Item{froze("r", 2, source("{1}", 3))}, said: &part, want: added(source("{1}", 3)), from: "the record of the last rotation that froze it"},
		{name: "missing, and frozen with another definition", items: []Item{froze("r", 2, source("{2}", 3))}, said: &part, open: true},
		{name: "missing without a definition, and frozen", items: []Item{froze("r", 2, source("{2}", 3))}, said: &nothing, want: added(source("{2}", 3)), from: "the record of the last rotation that froze it"},
		{name: "the newest counts", items: []Item{froze("q", 3, source("{1}", 4)), froze("r", 2, source("{1}", 3))}, said: &part, want: added(source("{1}", 4)), from: "the record of the last rotation that froze it"},
		{name: "the newest counts, in another order", items: []Item{froze("q", 2, source("{1}", 4)), froze("r", 3, source("{1}", 3))}, said: &part, want: added(source("{1}", 3)), from: "the record of the last rotation that froze it"},
		{name: "a damaged record does not", items: []Item{froze("q", 2, source("{1}", 4)), broken(froze("r", 3, source("{1}", 3)))}, said: &part, want: added(source("{1}", 4)), from: "the record of the last rotation that froze it"},
	} {
		e := examOf(tc.items...)
		e.setBack = tc.setBack
		if tc.said != nil {
			e.replayed.sources["s"] = *tc.said
		}
		bump := ItemChange{Key: ItemKey{"REGISTRY", noSortKey}, Put: RegistryItem{2}}
		e.examineSource("s", bump, map[string]string{"registry": "2"})
		if tc.want == nil && !tc.open {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		if f.From != tc.from || (f.Repair == "") != tc.open || tc.open && f.Next != (journal.Next{Do: journal.AddOrRemoveSource, Name: "s"}) {
			t.Errorf("%s: %+v", tc.name, f)
		}
		if tc.want != nil {
			changed(t, tc.name, f, ItemChange{Key: key, Was: e.by[key], Put: *tc.want}, bump)
		}
	}
}

// TestRebuiltRegistry: the revision is beyond every change that is counted.
func TestRebuiltRegistry(t *testing.T) {
	key := ItemKey{"REGISTRY", noSortKey}
	rev := func(n int64) Item { return itemOf(ItemRegistry, "", RegistryItem{n}) }
	for _, tc := range []struct {
		name  string
		items []Item
		told  int64
		want  int64 // 0: nothing is found
	}{
		{"as counted", []Item{rev(3)}, 3, 0},
		{"more than is counted", []Item{rev(4)}, 3, 0},
		{"less than is counted", []Item{rev(2)}, 3, 4},
		{"damaged", []Item{broken(rev(6))}, 3, 7},
		{"missing", []Item{itemOf(ItemKEK, "a", kek.KEK{})}, 3, 4},
		{"missing before genesis", nil, 3, 0},
	} {
		e := examOf(tc.items...)
		e.replayed.registry = tc.told
		e.examineRegistry()
		if tc.want == 0 {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		changed(t, tc.name, f, ItemChange{Key: key, Was: e.by[key], Put: RegistryItem{tc.want}})
		if f.body["registry"] != fmt.Sprint(tc.want) {
			t.Errorf("%s: its record says %v", tc.name, f.body)
		}
	}
}

// TestRebuiltLock: it is the running rotation's, on the condition of its record, or free.
func TestRebuiltLock(t *testing.T) {
	lock := func(id string) Item { return itemOf(ItemLock, "", LockItem{id}) }
	record := itemOf(ItemRotation, "r", kek.Rotation{ID: "r"})
	for _, tc := range []struct {
		name    string
		items   []Item
		running string
		want    string // what is done
	}{
		{"free", nil, "", ""},
		{"held by the running one", []Item{lock("r"), record}, "r", ""},
		{"held by nobody", []Item{lock("q")}, "", "free"},
		{"damaged, and none runs", []Item{broken(lock(""))}, "", "free"},
		{"missing", []Item{record}, "r", "give"},
		{"held by another", []Item{lock("q"), record}, "r", "give"},
		{"damaged", []Item{broken(lock("r")), record}, "r", "give"},
	} {
		e := examOf(tc.items...)
		e.examineLock(tc.running)
		if tc.want == "" {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f, key := e.single(t, tc.name), ItemKey{"LOCK", noSortKey}
		if tc.want == "free" {
			changed(t, tc.name, f, ItemChange{Key: key, Was: e.by[key]})
		} else {
			changed(t, tc.name, f, ItemChange{Key: key, Was: e.by[key], Put: LockItem{"r"}}, ItemChange{Key: record.Key, Was: e.by[record.Key], Keep: true})
		}
	}
}

// TestAccount: that a table was set back is recorded once, with the last record of each
// branch, on the condition of the pointer.
func TestAccount(t *testing.T) {
	p := itemOf(ItemPointer, "", kek.Pointer{KEKID: "a", Epoch: 1})
	e := examOf(p)
	if e.recordSetBack(); len(e.findings) > 0 {
		t.Errorf("%+v", e.findings)
	}
	one, two := chained(t, audit.Genesis(line), 0, "a=1", "a=2"), chained(t, audit.Genesis(line), 5, "b=1")
	e.setBack, e.chain.branches = true, []branch{{records: one}, {records: two}}
	e.recordSetBack()
	f := e.single(t, "set back")
	changed(t, "set back", f, ItemChange{Key: p.Key, Was: &e.items[0], Keep: true})
	if want := one[1].Hash + "," + two[0].Hash; f.body[audit.BodyForgotten] != want {
		t.Errorf("its record says %v, want %s", f.body, want)
	}
}

// TestRebuiltAnchorState: the state is that of the last anchor in the bucket, unless it is
// later or that anchor is under way.
func TestRebuiltAnchorState(t *testing.T) {
	key := ItemKey{"ANCHOR", noSortKey}
	last := anchor.Anchored{N: 4, Digest: "d", Head: audit.Head{Seq: 9, Hash: "h"}}
	state := func(rev, n, intent int64) Item {
		st := anchor.State{Rev: rev, Last: anchor.Anchored{N: n, Digest: "x"}}
		if intent > 0 {
			st.Intent = &audit.Signed{Statement: audit.Statement{N: intent}}
		}
		return itemOf(ItemAnchor, "", st)
	}
	for _, tc := range []struct {
		name  string
		items []Item
		none  bool  // no anchor is in the bucket
		want  int64 // revision that it is given; 0: nothing is found
	}{
		{"the same", []Item{state(1, 4, 0)}, false, 0},
		{"a later one", []Item{state(1, 5, 0)}, false, 0},
		{"an earlier one", []Item{state(9, 3, 0)}, false, 9},
		{"an earlier one of a small revision", []Item{state(1, 3, 0)}, false, 4},
		{"the last is under way", []Item{state(1, 3, 4)}, false, 0},
		{"another is under way", []Item{state(1, 3, 5)}, false, 4},
		{"the last is under way after an earlier one", []Item{state(1, 2, 4)}, false, 4},
		{"missing", nil, false, 4},
		{"damaged, though the last is under way", []Item{broken(state(1, 3, 4))}, false, 4},
		{"missing, and no anchor", nil, true, 0},
	} {
		e := examOf(tc.items...)
		e.anchors.places = audit.Generations("").With(audit.Generation{ID: generation(1), From: 2})
		if !tc.none {
			e.anchors.last = &last
		}
		e.examineAnchor()
		if tc.want == 0 {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		changed(t, tc.name, f, ItemChange{Key: key, Was: e.by[key], Put: anchor.State{Rev: tc.want, Last: last, Places: e.anchors.places}})
		if f.body["anchor"] != "4" || f.stage != stageAnchor {
			t.Errorf("%s: %+v", tc.name, f)
		}
	}
}

// TestStrayFence: a shard without a number, or of a KEK that neither the table nor the
// chain knows.
func TestStrayFence(t *testing.T) {
	fence := func(id string, shard int) Item {
		return Item{Key: ItemKey{"FENCE#" + id, "x"}, Kind: ItemFence, ID: id, Value: FenceItem{KEK: kek.ID(id), Shard: shard}}
	}
	e := examOf(itemOf(ItemKEK, "a", kek.KEK{ID: "a"}), fence("a", 0), fence("a", -1), fence("b", 0), fence("c", 0))
	e.replayed.keks["b"] = kek.KEK{ID: "b"}
	for i, want := range map[int]bool{1: false, 2: true, 3: false, 4: true} {
		if got := e.isStrayFence(&e.items[i]); got != want {
			t.Errorf("%+v: %t, want %t", e.items[i].Value, got, want)
		}
	}
}

// TestNotedKeys: what KMS says of a KEK that the table has right is a note, never a
// finding, and not while its rotation is about to disable it.
func TestNotedKeys(t *testing.T) {
	for _, tc := range []struct {
		state   kek.State
		enabled bool
		phase   kek.Phase // of a rotation; "" none
		olds    []kek.ID
		newKEK  kek.ID
		want    journal.Action
	}{
		{kek.Active, true, "", nil, "", ""},
		{kek.Active, false, "", nil, "", ""},
		{kek.Draining, true, "", nil, "", ""},
		{kek.Draining, false, "", nil, "", journal.EnableKey},
		{kek.Sealed, false, "", nil, "", journal.EnableKey},
		{kek.Pending, false, "", nil, "", journal.EnableKey},
		{kek.Retired, false, "", nil, "", ""},
		{kek.Retired, true, "", nil, "", journal.DisableKey},
		{kek.Retired, true, kek.KEKRetired, []kek.ID{"x", "a"}, "b", ""},
		{kek.Retired, true, kek.Minted, []kek.ID{"x"}, "a", ""},
		{kek.Retired, true, kek.KEKRetired, []kek.ID{"x"}, "b", journal.DisableKey},
		{kek.Retired, true, kek.Completed, []kek.ID{"a"}, "b", journal.DisableKey},
		{kek.Retired, true, kek.RolledBack, []kek.ID{"x"}, "a", journal.DisableKey},
	} {
		e := examOf()
		if tc.phase != "" {
			e.replayed.rotations["r"] = kek.Rotation{ID: "r", Phase: tc.phase, Olds: tc.olds, NewKEK: tc.newKEK}
		}
		e.compareWithKMS(ItemKey{"KEK#a", noSortKey}, kek.KEK{ID: "a", State: tc.state}, keyring.Key{Enabled: tc.enabled})
		var want []journal.Next
		if tc.want != "" {
			want = []journal.Next{{Do: tc.want, KEK: "a"}}
		}
		var got []journal.Next
		for _, n := range e.notes {
			got = append(got, n.Next)
		}
		if !slices.Equal(got, want) || len(e.findings) > 0 {
			t.Errorf("%+v: notes %q", tc, e.notes)
		}
	}
}

// TestRemovedOthers: a damaged item that another is made in place of is removed, and what
// that costs is said; a sound one stays, and of other kinds nothing is removed.
func TestRemovedOthers(t *testing.T) {
	for _, kind := range []ItemKind{ItemMark, ItemLease, ItemCheckpoint, ItemAnnouncement, ItemDrill, ItemApproval, ItemHealth} {
		i := itemOf(kind, "x", nil)
		e := examOf(i)
		if e.examineOthers(); len(e.findings)+len(e.notes) > 0 {
			t.Errorf("%s: %+v, %q", kind, e.findings, e.notes)
		}
		e = examOf(broken(i))
		e.examineOthers()
		f := e.single(t, string(kind))
		changed(t, string(kind), f, ItemChange{Key: i.Key, Was: &e.items[0]})
		if f.Repair != "remove it; "+removals[kind] || removals[kind] == "" || f.stage != stageRemoval || len(e.notes) > 0 {
			t.Errorf("%s: %+v, %q", kind, f, e.notes)
		}
	}
	for _, kind := range []ItemKind{ItemPointer, ItemLock, ItemKEK, ItemRotation, ItemRegistry, ItemSource, ItemHead, ItemAnchor} {
		e := examOf(broken(itemOf(kind, "x", nil)))
		if e.examineOthers(); len(e.findings)+len(e.notes) > 0 {
			t.Errorf("%s: %+v, %q", kind, e.findings, e.notes)
		}
	}
}

// TestExamineOtherRecord: a sound record that does not follow is replaced by the bucket's,
// which does.
func TestExamineOtherRecord(t *testing.T) {
	own, apart := chained(t, audit.Genesis(line), 0, "a=1")[0], chained(t, audit.Head{Hash: strings.Repeat("a", 64)}, 0, "b=1")[0]
	const other = "it does not follow the record before it; the bucket's does"
	for _, tc := range []struct {
		name   string
		table  audit.Entry
		broken bool
		line   []audit.Entry
		want   string // the fault; "" none
	}{
		{"the same", own, false, []audit.Entry{own}, ""},
		{"another", apart, false, []audit.Entry{own}, other},
		{"in no line", apart, false, nil, ""},
		{"another, which is damaged", apart, true, []audit.Entry{own}, "it is damaged: odd"},
	} {
		i := itemsOf(tc.table)[0]
		if tc.broken {
			i = broken(i)
		}
		e := examOf(i)
		e.chain.last, e.chain.table[1], e.chain.line, e.chain.gaps = 1, tc.table, tc.line, map[int64]string{}
		e.examineRecords()
		if tc.want == "" {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		if f.Fault != tc.want || f.From != "the bucket" || f.event != "" {
			t.Errorf("%s: %+v", tc.name, f)
		}
		changed(t, tc.name, f, ItemChange{Key: i.Key, Was: e.by[i.Key], Put: own})
	}
}

// TestRebuiltHead: the head is that of the last record, published as far as the bucket
// holds the chain, and never made where its hash is not known.
func TestRebuiltHead(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2")
	key := ItemKey{"AUDIT_HEAD", noSortKey}
	head := func(h audit.Head, published int64) Item {
		return itemOf(ItemHead, "", HeadItem{Head: h, Published: published})
	}
	for _, tc := range []struct {
		name  string
		items []Item
		line  []audit.Entry
		fault string // "" none
		open  bool
	}{
		{name: "as it should be", items: []Item{head(own[1].Head(), 1)}, line: own},
		{name: "behind with what is published", items: []Item{head(own[1].Head(), 0)}, line: own},
		{name: "ahead with what is published", items: []Item{head(own[1].Head(), 2)}, line: own, fault: "it says that the bucket holds the records up to 2; it holds them up to 1"},
		{name: "of an earlier record", items: []Item{head(own[0].Head(), 1)}, line: own, fault: "it says record 1 with hash " + own[0].Hash},
		{name: "damaged", items: []Item{broken(head(own[1].Head(), 1))}, line: own, fault: "it is damaged: odd"},
		{name: "missing", line: own, fault: "it is missing"},
		{name: "missing with the last record", line: own[:1], fault: "it is missing; the last record cannot be read either", open: true},
		{name: "before the first record"},
	} {
		e := examOf(tc.items...)
		e.chain.line, e.chain.bucket, e.chain.gaps = tc.line, map[int64]audit.Entry{1: own[0]}, map[int64]string{}
		if tc.line != nil {
			e.chain.last = 2
		}
		e.examineHead()
		if tc.fault == "" {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		if !strings.HasPrefix(f.Fault, tc.fault) || (f.Repair == "") != tc.open {
			t.Errorf("%s: %+v", tc.name, f)
		}
		if !tc.open {
			changed(t, tc.name, f, ItemChange{Key: key, Was: e.by[key], Put: HeadItem{Head: own[1].Head(), Published: 1}})
		}
	}
}

// TestShardsOfALostKEK: a KEK whose entry is lost has as many shards as its fence, in
// whatever order they are read.
func TestShardsOfALostKEK(t *testing.T) {
	var items []Item
	for _, n := range []int{2, 0, 1} {
		items = append(items, Item{Key: ItemKey{"FENCE#a", fmt.Sprintf("%02d", n)}, Kind: ItemFence, ID: "a", Value: FenceItem{KEK: "a", Shard: n}})
	}
	e := examOf(items...)
	e.replayed.keks["a"], e.keys.ours["a"] = kek.KEK{ID: "a", State: kek.Sealed}, true
	e.examineKEKs("")
	if k, ok := e.single(t, "lost").changes[0].Put.(kek.KEK); !ok || k.FenceShards != 3 {
		t.Errorf("%+v", e.findings)
	}
}

// TestExamineUsed: a KEK that rows may be under is named if KMS knows its key and the key
// is not enabled. Of the pointer's KEK the pointer's finding says so.
func TestExamineUsed(t *testing.T) {
	for _, tc := range []struct {
		name    string
		used    bool
		key     *keyring.Key // nil: KMS does not know it
		pointer kek.ID
		want    bool
	}{
		{"disabled", true, &keyring.Key{State: "Disabled"}, "b", true},
		{"disabled, and no pointer is told", true, &keyring.Key{State: "Disabled"}, "", true},
		{"disabled, and the pointer names it", true, &keyring.Key{State: "Disabled"}, "a", false},
		{"enabled", true, &keyring.Key{Enabled: true}, "b", false},
		{"not known to KMS", true, nil, "b", false},
		{"not in use", false, &keyring.Key{State: "Disabled"}, "b", false},
	} {
		e := examOf()
		e.inUse = map[kek.ID]bool{"a": tc.used}
		if tc.key != nil {
			e.keys.known["a"] = *tc.key
		}
		if tc.pointer != "" {
			e.replayed.pointer = &kek.Pointer{KEKID: tc.pointer}
		}
		e.examineUsed("a")
		if !tc.want {
			if len(e.findings) > 0 {
				t.Errorf("%s: %+v", tc.name, e.findings)
			}
			continue
		}
		if f := e.single(t, tc.name); f.Item != "KEK#a" || !strings.Contains(f.Fault, `in state "Disabled"`) || f.Next != (journal.Next{Do: journal.EnableUsedKey, KEK: "a"}) || f.Repair != "" {
			t.Errorf("%s: %+v", tc.name, f)
		}
	}
}

// TestWrongedKEK: a KEK that was retired as if it had never been in use, and that forgotten
// records call active, becomes readable, unless KMS does not know its key or the pointer
// names it. An entry counts as it is if the chain says the same of it, and only then.
func TestWrongedKEK(t *testing.T) {
	const sealed = "make it sealed: the next rotation moves what is under it and disables it"
	entry := func(state kek.State) Item {
		return itemOf(ItemKEK, "a", kek.KEK{ID: "a", State: state, ARN: "arn", FenceShards: 2, CreatedAt: at(1)})
	}
	for _, tc := range []struct {
		name    string
		item    Item
		said    kek.State
		unused  bool
		unknown bool // to KMS
		enabled bool
		pointer kek.ID
		want    kek.State // "" nothing is found
		fault   string
		repair  string
	}{
		{
			name: "retired", item: entry(kek.Retired), said: kek.Retired, want: kek.Sealed,
			fault: "it is retired as if it had never been in use, and records that the control table had forgotten say that it was", repair: sealed,
		},
		{name: "retired, and never in use", item: entry(kek.Retired), said: kek.Retired, unused: true},
		{name: "retired, never in use, and enabled", item: entry(kek.Retired), said: kek.Retired, unused: true, enabled: true},
		{name: "retired, and not known to KMS", item: entry(kek.Retired), said: kek.Retired, unknown: true},
		{name: "sealed already", item: entry(kek.Sealed), said: kek.Retired},
		{name: "damaged", item: broken(entry(kek.Retired)), said: kek.Retired, want: kek.Sealed, fault: "it is damaged: odd", repair: sealed},
		{
			name: "damaged and never in use", item: broken(entry(kek.Retired)), said: kek.Retired, unused: true, enabled: true, want: kek.Sealed, fault: "it is damaged: odd",
			repair: "make it sealed, for its KMS key is enabled: the next rotation moves what is under it and disables it",
		},
		{
			name: "retired, and the pointer names it", item: entry(kek.Retired), said: kek.Retired, pointer: "a", want: kek.Active,
			fault: "it is retired as if", repair: "make it active",
		},
		{
			name: "active, and the pointer names another", item: entry(kek.Active), said: kek.Active, pointer: "b", want: kek.Draining,
			fault: "it is active here; the audit chain says active", repair: "make it draining",
		},
	} {
		e := examOf(tc.item)
		e.replayed.keks["a"], e.inUse = kek.KEK{ID: "a", State: tc.said}, map[kek.ID]bool{"a": !tc.unused}
		if tc.pointer != "" {
			e.replayed.pointer = &kek.Pointer{KEKID: tc.pointer}
		}
		if !tc.unknown {
			e.keys.known["a"] = keyring.Key{Enabled: tc.enabled}
		}
		got := e.examineKEK("a", 2, "")
		if tc.want == "" {
			if found := tc.item.Value.(kek.KEK); got != found || len(e.findings) > 0 {
				t.Errorf("%s: %+v, %+v", tc.name, got, e.findings)
			}
			continue
		}
		f := e.single(t, tc.name)
		if got.State != tc.want || !strings.HasPrefix(f.Fault, tc.fault) || f.Repair != tc.repair {
			t.Errorf("%s: %s, %+v", tc.name, got.State, f)
		}
	}
}
