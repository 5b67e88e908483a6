package ddb

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestContended: a snapshot is taken again when others were in the way, and for no other
// reason; not forever, and not past the end of its context.
func TestContended(t *testing.T) {
	for name, c := range map[string]struct {
		codes []string
		want  bool
	}{
		"none":              {nil, true},
		"without reasons":   {[]string{"", "None"}, true},
		"conflict":          {[]string{"None", "TransactionConflict"}, true},
		"throttled":         {[]string{"ThrottlingError"}, true},
		"too much":          {[]string{"ProvisionedThroughputExceeded"}, true},
		"condition":         {[]string{"ConditionalCheckFailed"}, false},
		"invalid":           {[]string{"TransactionConflict", "ValidationError"}, false},
		"invalid, conflict": {[]string{"ValidationError", "TransactionConflict"}, false},
	} {
		e := &types.TransactionCanceledException{}
		for _, code := range c.codes {
			e.CancellationReasons = append(e.CancellationReasons, types.CancellationReason{Code: aws.String(code)})
		}
		if isContended(e) != c.want {
			t.Errorf("%s: contended %t", name, !c.want)
		}
		synctest.Test(t, func(t *testing.T) {
			api := &refusing{err: e}
			_, err := New(api, "t", "c", time.Now).Load(t.Context(), "")
			tries := 1
			if c.want {
				tries = 10
			}
			if !errors.Is(err, e) || api.gets != tries || strings.Contains(err.Error(), "gave up after 10 tries") != c.want {
				t.Errorf("%s: %v after %d tries, want %d", name, err, api.gets, tries)
			}
			if !c.want {
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Millisecond)
			defer cancel()
			if _, err := New(api, "t", "c", time.Now).Load(ctx, ""); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, e) {
				t.Errorf("%s: %v, want the deadline and what went before", name, err)
			}
		})
	}
}

// refusing answers every transaction with one error.
type refusing struct {
	API
	err    error
	gets   int
	writes []*dynamodb.TransactWriteItemsInput
}

func (r *refusing) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{}, nil
}

func (r *refusing) TransactGetItems(context.Context, *dynamodb.TransactGetItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	r.gets++
	return nil, r.err
}

func (r *refusing) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	r.writes = append(r.writes, in)
	return nil, r.err
}

// TestTransactionRefused: a transaction that is in another's way is sent again, another
// refusal is not, and neither is a conflict.
func TestTransactionRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := errors.New("other")
		for name, c := range map[string]struct {
			err   error
			tries int
		}{
			"busy": {&types.TransactionConflictException{}, 10}, "other": {other, 1}, "made": {nil, 1},
		} {
			api := &refusing{err: c.err}
			err := New(api, "t", "c", time.Now).Record(t.Context(), audit.Event{ID: "e", Type: "e"})
			if !errors.Is(err, c.err) || len(api.writes) != c.tries || err != nil && !strings.Contains(err.Error(), "dynamodb TransactWriteItems") {
				t.Errorf("%s: %v after %d tries", name, err, len(api.writes))
			}
		}
	})
	more := &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{
		{}, {Code: aws.String("ConditionalCheckFailed")},
	}}
	if again, err := explainCancellation([]action{{what: "A"}}, more); again || !errors.Is(err, kek.ErrConflict) || !strings.Contains(err.Error(), "item") {
		t.Errorf("more reasons than items: %t, %v", again, err)
	}
	for _, code := range []string{"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"} {
		e := &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{{Code: aws.String(code)}}}
		if again, err := explainCancellation([]action{{what: "A"}}, e); !again || errors.Is(err, kek.ErrConflict) {
			t.Errorf("%s: %t, %v", code, again, err)
		}
	}
}

// TestLocks: what each operation on the lock asks and writes.
func TestLocks(t *testing.T) {
	s := New(nil, "t", "c", time.Now)
	r := &kek.RotationMove{After: kek.Rotation{ID: "r"}}
	show := func(actions []action) string {
		if len(actions) == 0 {
			return ""
		}
		a := actions[0]
		switch w := a.write; {
		case w.Put != nil:
			return a.what + " put " + *w.Put.ConditionExpression + " " + attr.Text(w.Put.Item["rotation_id"]) + attr.Text(w.Put.Item["pk"])
		case w.Delete != nil:
			return a.what + " delete " + *w.Delete.ConditionExpression + " " + attr.Text(w.Delete.ExpressionAttributeValues[":rotation_id"]) + attr.Text(w.Delete.Key["pk"])
		default:
			return a.what + " check " + *w.ConditionCheck.ConditionExpression + " " + attr.Text(w.ConditionCheck.ExpressionAttributeValues[":rotation_id"]) + attr.Text(w.ConditionCheck.Key["pk"])
		}
	}
	for op, c := range map[kek.LockOp]struct {
		want string
		bare bool // needs no rotation
	}{
		kek.LockIgnore:  {"", true},
		kek.LockFree:    {"LOCK check attribute_not_exists(#pk) LOCK", true},
		kek.LockHold:    {"LOCK check #rotation_id = :rotation_id rLOCK", false},
		kek.LockTake:    {"LOCK put attribute_not_exists(#pk) OR #rotation_id = :rotation_id rLOCK", false},
		kek.LockRelease: {"LOCK delete #rotation_id = :rotation_id rLOCK", false},
	} {
		got, err := s.lockActions(kek.Change{Lock: op, Rotation: r})
		if err != nil || show(got) != c.want || len(got) > 1 {
			t.Errorf("%v: %q, %v, want %q", op, show(got), err, c.want)
		}
		got, err = s.lockActions(kek.Change{Lock: op})
		if (err == nil) != c.bare || !c.bare && (got != nil || !strings.Contains(err.Error(), "names no rotation")) {
			t.Errorf("%v without a rotation: %q, %v", op, show(got), err)
		}
		if _, err := s.buildActions(kek.Change{Lock: op}); (err == nil) != c.bare {
			t.Errorf("%v without a rotation: %v", op, err)
		}
		if c.bare {
			continue
		}
		if err := s.Apply(t.Context(), kek.Change{Lock: op, Event: "x"}, audit.Event{}); err == nil || !strings.Contains(err.Error(), "apply x") {
			t.Errorf("%v without a rotation: %v", op, err)
		}
	}
	if got, err := s.lockActions(kek.Change{Lock: 99, Rotation: r}); err == nil || got != nil || !strings.Contains(err.Error(), "unknown lock operation 99") {
		t.Errorf("%q, %v", show(got), err)
	}
}

// TestAttributes: what is empty is not stored, and what is read of a damaged item is the
// first fault.
func TestAttributes(t *testing.T) {
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.FixedZone("", 3600))
	i := attr.Set(item{}, "empty", "", "text", "t", "never", time.Time{}, "at", at, "zero", int64(0), "none", []byte(nil), "bytes", []byte("b"))
	want := map[string]string{"text": "S t", "at": "S 2026-04-01T01:00:00.000Z", "zero": "N 0", "bytes": `B "b"`}
	if d := cmp.Diff(want, texts(i)); d != "" {
		t.Errorf("item (-want +got):\n%s", d)
	}
	r := attr.Reader{Item: item{"a": attr.Num(1), "b": attr.Num(2), "c": attr.Str("x"), "d": &types.AttributeValueMemberN{Value: "x"}}}
	_, _, _ = r.Str("a"), r.Str("b"), r.Num("c")
	if _ = r.Num("d"); r.Err == nil || !strings.HasPrefix(r.Err.Error(), "attribute a ") {
		t.Errorf("%v, want the first fault", r.Err)
	}
	r = attr.Reader{Item: item{"d": &types.AttributeValueMemberN{Value: "x"}, "t": attr.Str("yesterday"), "j": attr.Str("{")}}
	var into any
	_ = r.Num("d")
	_ = r.Time("t")
	r.JSON("j", &into)
	if r.Err == nil || !strings.HasPrefix(r.Err.Error(), "attribute d:") {
		t.Errorf("%v, want the first fault", r.Err)
	}
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	if compareByTime(early, late, "b", "a") >= 0 || compareByTime(late, early, "a", "b") <= 0 || compareByTime(early, early, "a", "b") >= 0 || compareByTime(early, early, "b", "a") <= 0 || compareByTime(early, early, "a", "a") != 0 {
		t.Error("later")
	}
	minimal := map[string][]string{
		"rotation":   {"pk", "sk", "attempt", "epoch", "segments", "rev"},
		"checkpoint": {"pk", "sk", "rev", "scanned", "rewrapped", "other", "declared", "unwrapped", "quarantined", "done"},
	}
	for name, i := range map[string]item{"rotation": encodeRotation(kek.Rotation{ID: "r"}), "checkpoint": encodeCheckpoint(rotation.Checkpoint{})} {
		for _, a := range minimal[name] {
			if i[a] == nil {
				t.Errorf("%s lacks %s", name, a)
			}
		}
		if len(i) != len(minimal[name]) {
			t.Errorf("an empty %s has %v", name, texts(i))
		}
	}
}

// TestNamed: the KEKs that a view names, each once, in order.
func TestNamed(t *testing.T) {
	for _, c := range []struct {
		v    kek.View
		want []kek.ID
	}{
		{kek.View{}, nil},
		{kek.View{Pointer: &kek.Pointer{KEKID: "p"}}, []kek.ID{"p"}},
		{kek.View{Rotation: &kek.Rotation{OldKEK: "o", NewKEK: "n", Olds: []kek.ID{"o", "x"}}}, []kek.ID{"o", "n", "x"}},
		{kek.View{Pointer: &kek.Pointer{KEKID: "n"}, Rotation: &kek.Rotation{OldKEK: "o", NewKEK: "n"}}, []kek.ID{"n", "o"}},
		{kek.View{Pointer: &kek.Pointer{}, Rotation: &kek.Rotation{OldKEK: "o"}}, []kek.ID{"o"}},
	} {
		if d := cmp.Diff(c.want, listNamedKEKs(c.v)); d != "" {
			t.Errorf("%+v (-want +got):\n%s", c.v, d)
		}
	}
	damaged := &types.AttributeValueMemberNULL{Value: true}
	for pk, attribute := range map[string]string{pkPointer: "epoch", pkLock: "rotation_id", pkRotation + "r": "rev", pkKEK + "k": "state"} {
		if _, err := decodeView([]item{{"pk": attr.Str(pk), attribute: damaged}}); err == nil || !strings.Contains(err.Error(), attribute) {
			t.Errorf("%s with a damaged %s: %v", pk, attribute, err)
		}
	}
	if v, err := decodeView([]item{{"pk": attr.Str("MARK"), "state": damaged}}); err != nil || len(v.KEKs) > 0 {
		t.Errorf("another item: %+v, %v", v, err)
	}
}

// TestAnchorIntent: an intent that cannot be read is told, and names its item.
func TestAnchorIntent(t *testing.T) {
	i := attr.Set(controltable.Key(pkAnchor, noSK), "rev", int64(1), "intent", "{")
	if st, err := decodeAnchor(i); err == nil || !strings.Contains(err.Error(), "ANCHOR: it is damaged: intent") || st.Intent != nil {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestDamagedRecords: a record of the outbox that is not what was appended is an
// incident that says which and why.
func TestDamagedRecords(t *testing.T) {
	e, err := audit.Next("c", audit.Genesis("c"), time.Unix(0, 0), audit.Event{ID: "e", Type: "e"})
	if err != nil {
		t.Fatal(err)
	}
	good := attr.Set(controltable.Key(pkAudit, auditSK(1)), "record", e.Bytes, "hash", e.Hash)
	if got, err := decodeEntry(good); err != nil || got.Hash != e.Hash {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		attribute string
		v         types.AttributeValue
		why       string
	}{
		"another hash":  {"hash", attr.Str("x"), "not the record that was appended"},
		"another place": {"sk", attr.Str(auditSK(2)), "not the record that was appended"},
		"no record":     {"record", nil, ""},
		"a text":        {"record", attr.Str("x"), "attribute record is"},
		"a number":      {"hash", attr.Num(1), "attribute hash is"},
		"no JSON":       {"record", attr.Blob([]byte("{")), ""},
	} {
		i := maps.Clone(good)
		if i[c.attribute] = c.v; c.v == nil {
			delete(i, c.attribute)
		}
		got, err := decodeEntry(i)
		var typed *journal.Error
		if !errors.As(err, &typed) || typed.Kind != journal.AuditTampered || !strings.HasPrefix(typed.Field, "AUDIT/0000") || typed.Err == nil || typed.Next.IsZero() ||
			typed.Msg != "the outbox holds a damaged record" || !strings.Contains(typed.Err.Error(), c.why) || got.Hash != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// fixed answers every read of an item with one, and counts queries.
type fixed struct {
	API
	item    item
	items   []item
	queries int
}

func (f *fixed) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{Item: f.item}, nil
}

func (f *fixed) Query(context.Context, *dynamodb.QueryInput, ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	f.queries++
	return &dynamodb.QueryOutput{Items: f.items}, nil
}

// TestOutboxHead: a chain of another name is an error of the configuration; where all is
// published nothing is asked for.
func TestOutboxHead(t *testing.T) {
	api := &fixed{item: item{"chain": attr.Str("theirs"), "seq": attr.Num(3), "hash": attr.Str("h"), "published_seq": attr.Num(3)}}
	_, _, err := New(api, "t", "ours", time.Now).Head(t.Context())
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.Misconfigured || typed.Field != "AUDIT_HEAD.chain" || !strings.Contains(typed.Msg, `"theirs"`) || typed.Next.IsZero() {
		t.Errorf("%v", err)
	}
	s := New(api, "t", "theirs", time.Now)
	for published, queries := range map[int64]int{2: 1, 3: 0, 4: 0} {
		api.queries, api.item["published_seq"] = 0, attr.Num(published)
		if entries, _, err := s.Unpublished(t.Context()); err != nil || len(entries) > 0 || api.queries != queries {
			t.Errorf("%d of 3 are published: %v, %v after %d queries", published, entries, err, api.queries)
		}
	}
	api.item = nil
	if chain, h, err := s.Head(t.Context()); err != nil || chain.Chain != "theirs" || h != audit.Genesis("theirs") {
		t.Errorf("nothing recorded: %v, %+v, %v", chain, h, err)
	}
}

// TestAbsent: what is not there is what was never saved.
func TestAbsent(t *testing.T) {
	s := New(&fixed{}, "t", "c", time.Now)
	for name, load := range map[string]func() (got, want any, err error){
		"announcement": func() (any, any, error) {
			v, err := s.LoadAnnouncement(t.Context(), "l")
			return v, gates.Announcement{Label: "l"}, err
		},
		"drill": func() (any, any, error) {
			v, err := s.LoadDrill(t.Context(), "d")
			return v, gates.Drill{Name: "d"}, err
		},
		"approval": func() (any, any, error) {
			v, err := s.LoadApproval(t.Context(), "r")
			return v, gates.Approval{Rotation: "r"}, err
		},
		"anchor":   func() (any, any, error) { v, err := s.LoadAnchor(t.Context()); return v, anchor.State{}, err },
		"registry": func() (any, any, error) { v, err := s.registryRev(t.Context()); return v, int64(0), err },
		"health": func() (any, any, error) {
			v, err := s.ListHealth(t.Context(), []string{"d"})
			return v, []gates.HealthDay(nil), err
		},
		"checkpoint": func() (any, any, error) {
			v, err := s.LoadCheckpoint(t.Context(), "r", "s", "p", 3)
			return v, rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "p", Segment: 3}, err
		},
	} {
		got, want, err := load()
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
	listed, err := New(&fixed{items: []item{{"sk": attr.Str("007")}}}, "t", "c", time.Now).ListCheckpoints(t.Context(), "r", "s", "p")
	if err != nil || len(listed) != 1 || listed[0].Segment != 7 || listed[0].Pass != "p" {
		t.Errorf("%+v, %v", listed, err)
	}
	for _, sk := range []string{"x", "p#007", ""} {
		got, err := New(&fixed{items: []item{{"sk": attr.Str(sk)}}}, "t", "c", time.Now).ListCheckpoints(t.Context(), "r", "s", "p")
		if err == nil || got != nil || !strings.Contains(err.Error(), "checkpoint "+sk) {
			t.Errorf("a checkpoint of no segment: %+v, %v", got, err)
		}
	}
}

// TestActionsNamed: every write of a change says what it is of.
func TestActionsNamed(t *testing.T) {
	rev := int64(3)
	for _, c := range []kek.Change{
		{
			Lock: kek.LockTake, Rotation: &kek.RotationMove{After: kek.Rotation{ID: "r"}}, Pointer: &kek.PointerMove{After: kek.Pointer{KEKID: "k"}},
			KEKs:     []kek.KEKMove{{After: kek.KEK{ID: "k"}}},
			Registry: &kek.RegistryMove{Put: []kek.Source{{Name: "s"}}, Remove: "t", Forget: "m"}, Shards: 2, Opens: "k", Shuts: "o", Sealed: "p",
		},
		{Lock: kek.LockRelease, Rotation: &kek.RotationMove{After: kek.Rotation{ID: "r"}}, Keeps: &kek.Pointer{KEKID: "k"}, AtRegistry: &rev},
	} {
		actions, err := New(nil, "t", "c", time.Now).buildActions(c)
		if err != nil {
			t.Fatal(err)
		}
		for n, a := range actions {
			if a.what == "" {
				t.Errorf("write %d, %+v, has no name", n, a.write)
			}
		}
	}
}

// moving is a control table whose pointer names another KEK at every look.
type moving struct {
	API
	looks int
}

func (m *moving) TransactGetItems(context.Context, *dynamodb.TransactGetItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	m.looks++
	return &dynamodb.TransactGetItemsOutput{Responses: []types.ItemResponse{{}, {Item: controltable.EncodePointer(kek.Pointer{KEKID: kek.ID(fmt.Sprint(m.looks)), Epoch: 1})}}}, nil
}

// TestLoadMoving: a pointer that moves at every look ends in an error, and no view.
func TestLoadMoving(t *testing.T) {
	m := &moving{}
	v, err := New(m, "t", "c", time.Now).Load(t.Context(), "")
	if err == nil || !strings.Contains(err.Error(), "changed 10 times") || m.looks != 10 || v.Pointer != nil {
		t.Errorf("%+v, %v after %d looks", v, err, m.looks)
	}
}

// counting answers an update with attributes.
type counting struct {
	API
	item item
	put  *dynamodb.TransactWriteItemsInput
}

func (c *counting) UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return &dynamodb.UpdateItemOutput{Attributes: c.item}, nil
}

func (c *counting) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{}, nil
}

func (c *counting) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	c.put = in
	return &dynamodb.TransactWriteItemsOutput{}, nil
}

// TestGateItems: a day's counts that cannot be read are told; nobody told is stored as
// nothing.
func TestGateItems(t *testing.T) {
	c := &counting{item: item{"green": attr.Str("x")}}
	s := New(c, "t", "c", time.Now)
	if d, err := s.CountHealth(t.Context(), "2026-04-01", true); err == nil || !strings.Contains(err.Error(), "HEALTH#2026-04-01") {
		t.Errorf("%+v, %v", d, err)
	}
	for _, told := range [][]string{nil, {"a"}} {
		if err := s.SaveAnnouncement(t.Context(), gates.Announcement{Label: "l", Told: told}, audit.Event{ID: "e"}); err != nil {
			t.Fatal(err)
		}
		if i := c.put.TransactItems[0].Put.Item; (i["told"] != nil) != (told != nil) {
			t.Errorf("told %v: %v", told, i)
		}
	}
	r := encodeRotation(kek.Rotation{ID: "r", Probes: map[kek.ID][]byte{"k": []byte("p")}})
	r["rev"] = attr.Str("x")
	r["probes"] = &types.AttributeValueMemberM{Value: item{"k": attr.Num(1)}}
	if _, err := decodeRotation(r); err == nil || !strings.Contains(err.Error(), "attribute rev") {
		t.Errorf("%v, want the first fault", err)
	}
}

// texts is an item for a comparison.
func texts(i item) map[string]string {
	out := map[string]string{}
	for name, v := range i {
		switch v := v.(type) {
		case *types.AttributeValueMemberB:
			out[name] = fmt.Sprintf("B %q", v.Value)
		case *types.AttributeValueMemberN:
			out[name] = "N " + v.Value
		default:
			out[name] = strings.TrimPrefix(fmt.Sprintf("%T", v), "*types.AttributeValueMember") + " " + attr.Text(v)
		}
	}
	return out
}
