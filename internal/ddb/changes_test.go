package ddb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// told is an action in one line: the item, what is done, the condition with its names
// and values in it, and what is written beside the key.
func told(a action) string {
	in := func(expr *string, names map[string]string, vals item) string {
		text := aws.ToString(expr)
		for _, p := range slices.Backward(slices.Sorted(maps.Keys(names))) { // the longer of two that begin alike first
			text = strings.ReplaceAll(text, p, names[p])
		}
		for _, p := range slices.Backward(slices.Sorted(maps.Keys(vals))) {
			text = strings.ReplaceAll(text, p, attr.Text(vals[p])+number(vals[p]))
		}
		return text
	}
	line := func(op, table, cond string, k item, attributes ...string) string {
		text := a.what + ": " + op + " " + table + " " + attr.Text(k["pk"]) + "/" + attr.Text(k["sk"])
		for _, name := range attributes {
			if v := k[name]; v != nil {
				text += " " + name + "=" + attr.Text(v) + number(v)
			}
		}
		if cond != "" {
			text += " if " + cond
		}
		return text
	}
	switch w := a.write; {
	case w.Put != nil:
		return line("put", *w.Put.TableName, in(w.Put.ConditionExpression, w.Put.ExpressionAttributeNames, w.Put.ExpressionAttributeValues),
			w.Put.Item, "state", "phase", "rotation_id", "kek_id", "rev", "kind")
	case w.Delete != nil:
		return line("delete", *w.Delete.TableName, in(w.Delete.ConditionExpression, w.Delete.ExpressionAttributeNames, w.Delete.ExpressionAttributeValues), w.Delete.Key)
	case w.ConditionCheck != nil:
		return line("check", *w.ConditionCheck.TableName, in(w.ConditionCheck.ConditionExpression, w.ConditionCheck.ExpressionAttributeNames, w.ConditionCheck.ExpressionAttributeValues), w.ConditionCheck.Key)
	default:
		u := w.Update
		return line("update", *u.TableName, in(u.ConditionExpression, u.ExpressionAttributeNames, u.ExpressionAttributeValues), u.Key) +
			" with " + in(u.UpdateExpression, u.ExpressionAttributeNames, u.ExpressionAttributeValues)
	}
}

func number(v types.AttributeValue) string {
	if n, ok := v.(*types.AttributeValueMemberN); ok {
		return n.Value
	}
	return ""
}

// TestChangesWritten: each part of a change is the writes and conditions that it is made
// of, every shard and every source of it.
func TestChangesWritten(t *testing.T) {
	rev, none := int64(3), int64(0)
	before := kek.Rotation{ID: "r", Phase: kek.Started, Rev: 5}
	after := kek.Rotation{ID: "r", Phase: kek.Minted, Rev: 6}
	ended := kek.Rotation{ID: "old", Phase: kek.RolledBack, Rev: 9}
	for name, c := range map[string]struct {
		change kek.Change
		want   []string
	}{
		"a rotation begins": {
			kek.Change{Rotation: &kek.RotationMove{After: after}, Lock: kek.LockTake},
			[]string{
				"ROTATION#r: put t ROTATION#r/- phase=minted rev=6 if attribute_not_exists(pk)",
				"LOCK: put t LOCK/- rotation_id=r if attribute_not_exists(pk) OR rotation_id = r",
			},
		},
		"it continues": {
			kek.Change{Rotation: &kek.RotationMove{Before: &before, After: after}, Lock: kek.LockHold},
			[]string{
				"ROTATION#r: put t ROTATION#r/- phase=minted rev=6 if phase = started AND rev = 5",
				"LOCK: check t LOCK/- if rotation_id = r",
			},
		},
		"it ends": {
			kek.Change{Rotation: &kek.RotationMove{Before: &before, After: after}, Lock: kek.LockRelease},
			[]string{
				"ROTATION#r: put t ROTATION#r/- phase=minted rev=6 if phase = started AND rev = 5",
				"LOCK: delete t LOCK/- if rotation_id = r",
			},
		},
		"it takes over": {
			kek.Change{Rotation: &kek.RotationMove{After: after}, Lock: kek.LockTakeOver, From: "old", Ends: &kek.RotationMove{Before: &before, After: ended}},
			[]string{
				"ROTATION#r: put t ROTATION#r/- phase=minted rev=6 if attribute_not_exists(pk)",
				"LOCK: put t LOCK/- rotation_id=r if rotation_id = old",
				"ROTATION#old: put t ROTATION#old/- phase=rolledback rev=9 if phase = started AND rev = 5",
			},
		},
		"it takes over from none": {
			kek.Change{Rotation: &kek.RotationMove{After: after}, Lock: kek.LockTakeOver, From: "old"},
			[]string{
				"ROTATION#r: put t ROTATION#r/- phase=minted rev=6 if attribute_not_exists(pk)",
				"LOCK: put t LOCK/- rotation_id=r if rotation_id = old",
				"ROTATION#old: check t ROTATION#old/- if attribute_not_exists(pk)",
			},
		},
		"the first pointer": {
			kek.Change{Lock: kek.LockFree, Pointer: &kek.PointerMove{After: kek.Pointer{KEKID: "k", Epoch: 1}}},
			[]string{
				"LOCK: check t LOCK/- if attribute_not_exists(pk)",
				"POINTER: put t POINTER/- kek_id=k if attribute_not_exists(pk)",
			},
		},
		"it moves": {
			kek.Change{Lock: kek.LockIgnore, Pointer: &kek.PointerMove{Before: &kek.Pointer{KEKID: "k", Epoch: 1}, After: kek.Pointer{KEKID: "l", Epoch: 2}}},
			[]string{"POINTER: put t POINTER/- kek_id=l if kek_id = k AND epoch = 1"},
		},
		"it stays": {
			kek.Change{Lock: kek.LockIgnore, Keeps: &kek.Pointer{KEKID: "k", Epoch: 4}},
			[]string{"POINTER: check t POINTER/- if kek_id = k AND epoch = 4"},
		},
		"KEKs": {
			kek.Change{Lock: kek.LockIgnore, KEKs: []kek.KEKMove{{After: kek.KEK{ID: "k", State: kek.Active}}, {Before: &kek.KEK{State: kek.Active}, After: kek.KEK{ID: "l", State: kek.Draining}}}},
			[]string{
				"KEK#k: put t KEK#k/- state=active if attribute_not_exists(pk)",
				"KEK#l: put t KEK#l/- state=draining if state = active",
			},
		},
		"the registry": {
			kek.Change{
				Lock: kek.LockIgnore, AtRegistry: &rev,
				Registry: &kek.RegistryMove{Before: 2, Put: []kek.Source{{Name: "s", Kind: "x"}, {Name: "u", Kind: "y"}}, Remove: "gone", Absent: "a", Forget: "f"},
			},
			[]string{
				"REGISTRY: put t REGISTRY/- rev=3 if rev = 2",
				"SOURCE/s: put t SOURCE/s kind=x",
				"SOURCE/u: put t SOURCE/u kind=y",
				"SOURCE/gone: delete t SOURCE/gone",
				"MARK/a: check t MARK/a if attribute_not_exists(pk)",
				"MARK/f: delete t MARK/f",
			},
		},
		"the first of the registry": {
			kek.Change{Lock: kek.LockIgnore, Registry: &kek.RegistryMove{}},
			[]string{"REGISTRY: put t REGISTRY/- rev=1 if attribute_not_exists(pk)"},
		},
		"the registry is as it was":  {kek.Change{Lock: kek.LockIgnore, AtRegistry: &rev}, []string{"REGISTRY: check t REGISTRY/- if rev = 3"}},
		"there still is no registry": {kek.Change{Lock: kek.LockIgnore, AtRegistry: &none}, []string{"REGISTRY: check t REGISTRY/- if attribute_not_exists(pk)"}},
		"fences": {
			kek.Change{Lock: kek.LockIgnore, Opens: "n", OpensRecords: "m", Sealed: "o", Shuts: "h", Shards: 2},
			[]string{
				"FENCE#n/00: put t FENCE#n/00 state=open if attribute_not_exists(pk)",
				"FENCE#h/00: put t FENCE#h/00 state=sealed if attribute_not_exists(pk)",
				"FENCE#o/00: check t FENCE#o/00 if state = sealed",
				"FENCE#n/01: put t FENCE#n/01 state=open if attribute_not_exists(pk)",
				"FENCE#h/01: put t FENCE#h/01 state=sealed if attribute_not_exists(pk)",
				"FENCE#o/01: check t FENCE#o/01 if state = sealed",
				"DEKFENCE#m/00: put t DEKFENCE#m/00 state=open if attribute_not_exists(pk)",
				"DEKFENCE#h/00: put t DEKFENCE#h/00 state=sealed if attribute_not_exists(pk)",
				"DEKFENCE#o/00: check t DEKFENCE#o/00 if state = sealed",
				"DEKFENCE#m/01: put t DEKFENCE#m/01 state=open if attribute_not_exists(pk)",
				"DEKFENCE#h/01: put t DEKFENCE#h/01 state=sealed if attribute_not_exists(pk)",
				"DEKFENCE#o/01: check t DEKFENCE#o/01 if state = sealed",
			},
		},
	} {
		actions, err := New(nil, "t", "c", time.Now).buildActions(c.change)
		var got []string
		for _, a := range actions {
			if got = append(got, told(a)); a.audit {
				t.Errorf("%s: %s is taken for a part of the outbox", name, a.what)
			}
		}
		if d := cmp.Diff(c.want, got); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
}

// TestAppendWritten: a record goes behind the head that was read, which moves on; the
// first makes it. A beginning adds its generation.
func TestAppendWritten(t *testing.T) {
	s := New(nil, "t", "c", time.Now)
	at := audit.Head{Seq: 4, Hash: "h"}
	e := audit.Entry{Hash: "new", Bytes: []byte("{}")}
	e.Record.Seq = 5
	first := e
	first.Record.Seq = 1
	for name, c := range map[string]struct {
		actions []action
		want    []string
	}{
		"the first": {s.appendRecord(audit.Head{}, first, nil), []string{
			"AUDIT/000000000001: put t AUDIT/000000000001 if attribute_not_exists(pk)",
			"AUDIT_HEAD: update t AUDIT_HEAD/- if attribute_not_exists(pk) with SET chain = c, seq = 1, hash = new",
		}},
		"the next": {s.appendRecord(at, e, nil), []string{
			"AUDIT/000000000005: put t AUDIT/000000000005 if attribute_not_exists(pk)",
			"AUDIT_HEAD: update t AUDIT_HEAD/- if seq = 4 AND hash = h with SET chain = c, seq = 5, hash = new",
		}},
	} {
		var got []string
		for _, a := range c.actions {
			if got = append(got, told(a)); !a.audit {
				t.Errorf("%s: %s is not part of the outbox", name, a.what)
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// heads is a table of an audit chain that others append to: a head for each read, the
// last of them for every one after it; no transaction gets through.
type heads struct {
	API
	at   []int64
	code string // why
}

func (h *heads) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	seq := h.at[0]
	h.at = h.at[min(1, len(h.at)-1):]
	return &dynamodb.GetItemOutput{Item: item{"chain": attr.Str("c"), "seq": attr.Num(seq), "hash": attr.Str(fmt.Sprint(seq))}}, nil
}

func (h *heads) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	e := &types.TransactionCanceledException{CancellationReasons: make([]types.CancellationReason, len(in.TransactItems))}
	e.CancellationReasons[0].Code = &h.code
	return nil, e
}

// TestHeadBehindItsRecords: a head that never moves, with a record behind it, is damaged;
// one that somebody has moved, once and at any time, or that others are in the way of, is
// not.
func TestHeadBehindItsRecords(t *testing.T) {
	for name, c := range map[string]struct {
		heads   heads
		damaged bool
	}{
		"it never moves":     {heads{at: []int64{7}, code: "ConditionalCheckFailed"}, true},
		"it moves at first":  {heads{at: []int64{7, 8}, code: "ConditionalCheckFailed"}, false},
		"it moves later":     {heads{at: []int64{7, 7, 7, 8}, code: "ConditionalCheckFailed"}, false},
		"it moves at last":   {heads{at: []int64{7, 7, 7, 7, 7, 7, 7, 7, 7, 8}, code: "ConditionalCheckFailed"}, false},
		"it is in the way":   {heads{at: []int64{7}, code: "TransactionConflict"}, false},
		"others are as well": {heads{at: []int64{7, 8}, code: "TransactionConflict"}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			err := New(&c.heads, "t", "c", time.Now).Record(t.Context(), audit.Event{ID: "e", Type: "e"})
			var typed *journal.Error
			damaged := errors.As(err, &typed) && typed.Kind == journal.ControlTableDamaged && strings.Contains(typed.Field, pkAuditHead) && strings.Contains(err.Error(), "it says record 7")
			var cancelled *types.TransactionCanceledException
			if damaged != c.damaged || !errors.As(err, &cancelled) || strings.Contains(err.Error(), "gave up after 10 tries") == c.damaged {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestDamagedHeads: a head that names no chain, or generations that are none, is damaged,
// and not another chain's. So is an anchor's item.
func TestDamagedHeads(t *testing.T) {
	for name, c := range map[string]struct {
		item item
		why  string
	}{
		"no chain":        {item{"seq": attr.Num(3), "hash": attr.Str("h")}, "it names no chain"},
		"no generations":  {item{"chain": attr.Str("c"), "seq": attr.Num(3), "generations": attr.Str("x")}, "generations"},
		"not their order": {item{"chain": attr.Str("c"), "seq": attr.Num(3), "generations": attr.Str("9=g1-0123456789abcdef,8=g2-0123456789abcdef")}, "generations"},
	} {
		s := New(&fixed{item: c.item}, "t", "c", time.Now)
		_, _, err := s.Head(t.Context())
		var typed *journal.Error
		if !errors.As(err, &typed) || typed.Kind != journal.ControlTableDamaged || !strings.Contains(err.Error(), c.why) || !strings.Contains(typed.Field, pkAuditHead) {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := s.LoadAnchor(t.Context()); c.item["generations"] != nil && (!errors.As(err, &typed) || typed.Kind != journal.ControlTableDamaged || !strings.Contains(typed.Field, pkAnchor) || st.Places != "") {
			t.Errorf("%s: an anchor %+v, %v", name, st, err)
		}
	}
}

// TestKinds: each item of the control table is of the kind that its key says, whole or by
// how it begins.
func TestKinds(t *testing.T) {
	s := New(nil, "t", "c", time.Now)
	for _, c := range []struct {
		pk, sk string
		kind   doctor.ItemKind
		id     string
	}{
		{"POINTER", "-", doctor.ItemPointer, ""},
		{"LOCK", "-", doctor.ItemLock, ""},
		{"REGISTRY", "-", doctor.ItemRegistry, ""},
		{"AUDIT_HEAD", "-", doctor.ItemHead, ""},
		{"ANCHOR", "-", doctor.ItemAnchor, ""},
		{"KEK#k", "-", doctor.ItemKEK, "k"},
		{"FENCE#k", "01", doctor.ItemFence, "k"},
		{"DEKFENCE#k", "01", doctor.ItemKeyFence, "k"},
		{"ROTATION#r", "-", doctor.ItemRotation, "r"},
		{"SOURCE", "orders", doctor.ItemSource, "orders"},
		{"MARK", "orders", doctor.ItemMark, "orders"},
		{"AUDIT", "000000000001", doctor.ItemRecord, "000000000001"},
		{"LEASE#k", "a", doctor.ItemLease, "k"},
		{"CHECKPOINT#r#s#p", "003", doctor.ItemCheckpoint, "r#s#p"},
		{"ANNOUNCEMENT#l", "-", doctor.ItemAnnouncement, "l"},
		{"DRILL#d", "-", doctor.ItemDrill, "d"},
		{"APPROVAL#r", "-", doctor.ItemApproval, "r"},
		{"HEALTH#d", "-", doctor.ItemHealth, "d"},
		{"PAUSE#r", "-", doctor.ItemPause, "r"},
		{"POINTERS", "-", "", ""},
		{"LOCK#r", "-", "", ""},
		{"REGISTRY#", "-", "", ""},
		{"AUDIT_HEADS", "-", "", ""},
		{"ANCHORS", "-", "", ""},
		{"SOURCES", "orders", "", ""},
		{"MARKS", "orders", "", ""},
		{"AUDITS", "1", "", ""},
		{"KEK", "-", "", ""},
		{"OTHER", "-", "", ""},
	} {
		i := controltable.Key(c.pk, c.sk)
		got := s.decodeItem(i)
		if got.Kind != c.kind || got.ID != c.id || got.Key != (doctor.ItemKey{PK: c.pk, SK: c.sk}) || (got.Value == nil) != (c.kind == "") || got.Raw == nil {
			t.Errorf("%s/%s: %+v", c.pk, c.sk, got)
		}
	}
	for pk, want := range map[string]rotation.Checkpoint{
		"CHECKPOINT#r#s#p":   {RotationID: "r", Source: "s", Pass: "p", Segment: 3},
		"CHECKPOINT#r#s#p#q": {RotationID: "r", Source: "s", Pass: "p#q", Segment: 3},
		"CHECKPOINT#r#s":     {RotationID: "r", Segment: 3},
	} {
		if d := cmp.Diff(any(want), s.decodeItem(controltable.Key(pk, "003")).Value); d != "" {
			t.Errorf("%s (-want +got):\n%s", pk, d)
		}
	}
	for kind, c := range map[doctor.ItemKind]struct {
		item item
		want any
	}{
		doctor.ItemAnnouncement: {item{"pk": attr.Str("ANNOUNCEMENT#l"), "actor": attr.Str("a")}, gates.Announcement{Label: "l", Actor: "a"}},
		doctor.ItemDrill:        {item{"pk": attr.Str("DRILL#d"), "actor": attr.Str("a")}, gates.Drill{Name: "d", Actor: "a"}},
		doctor.ItemApproval:     {item{"pk": attr.Str("APPROVAL#r"), "plan": attr.Str("p")}, gates.Approval{Rotation: "r", Plan: "p"}},
		doctor.ItemPause:        {item{"pk": attr.Str("PAUSE#r"), "by": attr.Str("a")}, gates.Pause{Rotation: "r", By: "a"}},
		doctor.ItemHealth:       {item{"pk": attr.Str("HEALTH#d"), "red": attr.Num(2)}, gates.HealthDay{Day: "d", Red: 2}},
		doctor.ItemMark:         {item{"pk": attr.Str("MARK"), "sk": attr.Str("orders"), "holder": attr.Str("a")}, kek.Mark{Table: "orders", Holder: "a"}},
		doctor.ItemHead: {
			item{"pk": attr.Str("AUDIT_HEAD"), "chain": attr.Str("c"), "seq": attr.Num(3), "hash": attr.Str("h"), "published_seq": attr.Num(2), "generations": attr.Str("2=g1-0123456789abcdef")},
			doctor.HeadItem{Head: audit.Head{Seq: 3, Hash: "h"}, Published: 2, Generations: "2=g1-0123456789abcdef"},
		},
	} {
		got := s.decodeItem(c.item)
		if d := cmp.Diff(c.want, got.Value); d != "" || got.Kind != kind || got.Err != nil {
			t.Errorf("%s, %v (-want +got):\n%s", kind, got.Err, d)
		}
	}
	for pk, attribute := range map[string]string{"ANNOUNCEMENT#l": "actor", "DRILL#d": "actor", "APPROVAL#r": "plan", "PAUSE#r": "by", "HEALTH#d": "red"} {
		if got := s.decodeItem(item{"pk": attr.Str(pk), attribute: attr.Bool(true)}); got.Err == nil || !strings.Contains(got.Err.Error(), pk) {
			t.Errorf("a damaged item: %+v", got)
		}
	}
	if got := s.decodeItem(item{"pk": attr.Str("AUDIT"), "sk": attr.Str("1"), "hash": attr.Str("h")}); got.Err == nil || got.Value.(audit.Entry).Hash != "h" {
		t.Errorf("a damaged record: %+v", got)
	}
}

// TestFenceItems: a shard of a fence is open or sealed, and its key has two digits.
func TestFenceItems(t *testing.T) {
	for name, c := range map[string]struct {
		sk, state string
		shard     int
		ok        bool
	}{
		"open":        {"07", "open", 7, true},
		"sealed":      {"00", "sealed", 0, true},
		"large":       {"12", "open", 12, true},
		"one digit":   {"7", "open", -1, false},
		"three":       {"007", "open", -1, false},
		"none":        {"x", "open", -1, false},
		"negative":    {"-1", "open", -1, false},
		"other state": {"07", "ajar", 7, false},
		"no state":    {"07", "", 7, false},
	} {
		f, err := decodeFence(attr.Set(controltable.Key("FENCE#k", c.sk), "state", c.state))
		if f.KEK != "k" || f.Shard != c.shard || f.Open != (c.state == "open") || (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
		var typed *journal.Error
		if err != nil && (!errors.As(err, &typed) || typed.Kind != journal.ControlTableDamaged || !strings.Contains(typed.Field, "FENCE#k/"+c.sk)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := decodeFence(attr.Set(controltable.Key("DEKFENCE#k", "07"), "state", "open"))
	if want := (doctor.FenceItem{KEK: "k", Shard: 7, Open: true, Records: true}); f != want || err != nil {
		t.Errorf("a shard for records: %+v, %v", f, err)
	}
	if _, err := decodeFence(item{"pk": attr.Str("FENCE#k"), "sk": attr.Str("07"), "state": attr.Num(1)}); err == nil || !strings.Contains(err.Error(), "attribute state is") {
		t.Errorf("a state that is not text: %v", err)
	}
}

// TestRepairsWritten: a repair writes each kind of item over what was read, attribute by
// attribute, or where there was nothing.
func TestRepairsWritten(t *testing.T) {
	was := &doctor.Item{Raw: item{"pk": attr.Str("p"), "sk": attr.Str("-"), "n": attr.Num(7)}}
	at := func(pk, sk string) doctor.ItemKey { return doctor.ItemKey{PK: pk, SK: sk} }
	none, read := " if attribute_not_exists(pk)", " if n = 7 AND pk = p AND sk = -"
	s := New(nil, "t", "c", time.Now)
	for _, c := range []struct {
		change doctor.ItemChange
		want   string
	}{
		{doctor.ItemChange{Key: at("FENCE#k", "01"), Put: doctor.FenceItem{Open: true}}, "FENCE#k/01: put t FENCE#k/01 state=open" + none},
		{doctor.ItemChange{Key: at("FENCE#k", "01"), Was: was, Put: doctor.FenceItem{}}, "FENCE#k/01: put t FENCE#k/01 state=sealed" + read},
		{doctor.ItemChange{Key: at("LOCK", "-"), Was: was, Put: doctor.LockItem{RotationID: "r"}}, "LOCK: put t LOCK/- rotation_id=r" + read},
		{doctor.ItemChange{Key: at("REGISTRY", "-"), Put: doctor.RegistryItem{Rev: 3}}, "REGISTRY: put t REGISTRY/- rev=3" + none},
		{doctor.ItemChange{Key: at("POINTER", "-"), Was: was, Put: kek.Pointer{KEKID: "k"}}, "POINTER: put t POINTER/- kek_id=k" + read},
		{doctor.ItemChange{Key: at("KEK#k", "-"), Was: was, Put: kek.KEK{ID: "k", State: kek.Active}}, "KEK#k: put t KEK#k/- state=active" + read},
		{doctor.ItemChange{Key: at("ROTATION#r", "-"), Was: was, Put: kek.Rotation{ID: "r", Phase: kek.Minted}}, "ROTATION#r: put t ROTATION#r/- phase=minted rev=0" + read},
		{doctor.ItemChange{Key: at("SOURCE", "s"), Was: was, Put: kek.Source{Name: "s", Kind: "x"}}, "SOURCE/s: put t SOURCE/s kind=x" + read},
		{doctor.ItemChange{Key: at("AUDIT", "1"), Was: was, Put: audit.Entry{}}, "AUDIT/1: put t AUDIT/1" + read},
		{doctor.ItemChange{Key: at("ANCHOR", "-"), Was: was, Put: anchor.State{Rev: 4}}, "ANCHOR: put t ANCHOR/- rev=5" + read},
		{doctor.ItemChange{Key: at("LOCK", "-"), Was: was}, "LOCK: delete t LOCK/-" + read},
		{doctor.ItemChange{Key: at("LOCK", "-"), Was: was, Keep: true}, "LOCK: check t LOCK/-" + read},
		{doctor.ItemChange{Key: at("LOCK", "-"), Keep: true}, "LOCK: check t LOCK/-" + none},
	} {
		a, err := s.repairAction(c.change)
		if err != nil {
			t.Fatal(err)
		}
		if got := told(a); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	if _, err := s.repairAction(doctor.ItemChange{Put: 7}); err == nil || !strings.Contains(err.Error(), "no item is made of int") {
		t.Error(err)
	}
	for _, v := range []any{7, doctor.HeadItem{}} {
		api := &refusing{err: errNoAnswer}
		err := New(api, "t", "c", time.Now).Repair(t.Context(), []doctor.ItemChange{{Key: at("LOCK", "-"), Put: v}}, audit.Event{ID: "e"})
		if _, made := v.(doctor.HeadItem); err == nil || !strings.HasPrefix(err.Error(), "repair LOCK: ") || errors.Is(err, errNoAnswer) != made || (len(api.writes) == 1) != made {
			t.Errorf("%T: %v after %d writes", v, err, len(api.writes))
		}
	}
}

// TestBeginningWritten: where a generation begins, the head names it behind those before.
func TestBeginningWritten(t *testing.T) {
	e := audit.Entry{Hash: "new"}
	e.Record.Seq = 5
	b := &beginning{at: audit.Line{Generations: "2=a"}, g: audit.Generation{ID: "b", From: 5}}
	got := told(New(nil, "t", "c", time.Now).appendRecord(audit.Head{Seq: 4, Hash: "h"}, e, b)[1])
	want := "AUDIT_HEAD: update t AUDIT_HEAD/- if seq = 4 AND hash = h with SET chain = c, seq = 5, hash = new, generations = 2=a,5=b"
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// moved is a control table in which a KEK moves on between a snapshot and a scan.
type moved struct{ fixed }

func (*moved) TransactGetItems(context.Context, *dynamodb.TransactGetItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	return &dynamodb.TransactGetItemsOutput{Responses: []types.ItemResponse{
		{Item: controltable.EncodePointer(kek.Pointer{KEKID: "k", Epoch: 1})}, {Item: controltable.EncodeKEK(kek.KEK{ID: "k", State: kek.Active})},
	}}, nil
}

func (*moved) Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	return &dynamodb.ScanOutput{Items: []item{
		controltable.EncodeKEK(kek.KEK{ID: "k", State: kek.Draining}), controltable.EncodeKEK(kek.KEK{ID: "l", State: kek.Retired}), controltable.EncodeKEK(kek.KEK{ID: "m", State: kek.Sealed}),
	}}, nil
}

// TestSnapshotStands: of a KEK that the snapshot has, what a later scan says does not
// count: the states of a view are of one moment. The others are added.
func TestSnapshotStands(t *testing.T) {
	v, err := New(&moved{}, "t", "c", time.Now).LoadAll(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := map[kek.ID]kek.KEK{"k": {ID: "k", State: kek.Active}, "l": {ID: "l", State: kek.Retired}, "m": {ID: "m", State: kek.Sealed}}
	if d := cmp.Diff(want, v.KEKs); d != "" {
		t.Errorf("KEKs (-want +got):\n%s", d)
	}
}

var errNoAnswer = errors.New("no answer")
