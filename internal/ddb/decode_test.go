package ddb

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

var decoded = time.Date(2026, 4, 1, 2, 0, 0, 123e6, time.UTC)

// TestDamagedItems gives each attribute of each item another type, and text that is
// none of its format: that is an error that names the item and the attribute, never a
// value that was guessed. A rotation would take an empty list of old KEKs or sources
// for one that has nothing to do.
func TestDamagedItems(t *testing.T) {
	r := kek.Rotation{
		ID: "r1", Mode: kek.Normal, Phase: kek.Drained, Label: "l", Reason: "r", OldKEK: "kek-0", Olds: []kek.ID{"kek-0", "kek-p"}, NewKEK: "kek-1",
		Attempt: 2, Epoch: 3, Probes: map[kek.ID][]byte{"kek-0": []byte("probe")}, Segments: 4, Settings: kek.Settings{MaxMints: 3, DrainMaxWait: time.Hour},
		Sources: []kek.Source{{Name: "orders", Kind: rowschema.Kind, Definition: `{"a":"é"}`, Place: "t", Generation: 2}, {Name: "people"}},
		Counted: true, Rehearsed: "kek-1", Rev: 9, Execution: "arn", Actor: "a", Requester: "b", Drill: "d", Approval: true,
		StartedAt: decoded, UpdatedAt: decoded, SwitchedAt: decoded, SealedAt: decoded, ResumedAt: decoded, Err: "e",
	}
	src := kek.Source{Name: "orders", Kind: rowschema.Kind, Definition: "{}", Place: "t", Generation: 2, AddedAt: decoded, AddedBy: "alice"}
	cp := rotation.Checkpoint{
		RotationID: "r1", Source: "orders~2", Pass: "census", Segment: 3, Rev: 4, Cursor: "c", Done: true, SavedAt: decoded,
		Tally: rotation.Tally{
			Scanned: 1, Rewrapped: 2, Other: 3, Declared: 4, Quarantined: 5, Unwrapped: 6, Poison: []string{"x: y"},
			ByKEK: map[string]int64{"kek-0": 7}, ByKind: map[string]int64{"no_kek_id": 8},
		},
	}
	k := kek.KEK{ID: "kek-0", ARN: "arn", State: kek.Sealed, Label: "l", RotationID: "r", FenceShards: 2, CreatedAt: decoded, SwitchedAt: decoded, RetiredAt: decoded, Reason: "r", NotBeforeDelete: decoded}
	p := kek.Pointer{KEKID: "kek-0", KeyARN: "arn", Epoch: 4, RotationID: "r", SwitchedAt: decoded}
	saved := cp
	saved.Rev++ // an item is that of the next revision
	for _, tc := range []struct {
		name   string // how an error names the item
		item   item
		want   any
		decode func(item) (any, error)
	}{
		{"ROTATION#r1", encodeRotation(r), r, func(i item) (any, error) { return decodeRotation(i) }},
		{"SOURCE/orders", encodeSource(src), src, func(i item) (any, error) { return decodeSource(i) }},
		{"KEK#kek-0", controltable.EncodeKEK(k), k, func(i item) (any, error) { return decodeKEK(i) }},
		{"POINTER", controltable.EncodePointer(p), p, func(i item) (any, error) { return decodePointer(i) }},
		{"CHECKPOINT#r1#orders~2#census", encodeCheckpoint(cp), saved, func(i item) (any, error) {
			return decodeCheckpoint(i, rotation.Checkpoint{RotationID: "r1", Source: "orders~2", Pass: "census", Segment: 3})
		}},
	} {
		got, err := tc.decode(tc.item)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s does not come back as it was (-want +got):\n%s", tc.name, diff)
		}
		refused := func(attribute, what string, v types.AttributeValue) {
			t.Helper()
			i := maps.Clone(tc.item)
			i[attribute] = v
			if got, err := tc.decode(i); err == nil || !strings.Contains(err.Error(), tc.name) || !strings.Contains(err.Error(), attribute) {
				t.Errorf("%s, %s is %s: %+v, %v", tc.name, attribute, what, got, err)
			}
		}
		for attribute, v := range tc.item {
			if attribute == "pk" || attribute == "sk" {
				continue
			}
			refused(attribute, "a null", &types.AttributeValueMemberNULL{Value: true})
			switch v := v.(type) {
			case *types.AttributeValueMemberN:
				refused(attribute, "no whole number", &types.AttributeValueMemberN{Value: "1.5"})
				refused(attribute, "too large", &types.AttributeValueMemberN{Value: "99999999999999999999"})
			case *types.AttributeValueMemberS:
				if strings.HasSuffix(attribute, "_at") || attribute == "not_before_delete" {
					refused(attribute, "no time", attr.Str("yesterday"))
				}
				if attribute == "sources" || attribute == "settings" {
					refused(attribute, "no JSON", attr.Str(v.Value[:len(v.Value)-1]))
				}
			case *types.AttributeValueMemberL:
				refused(attribute, "a list of numbers", &types.AttributeValueMemberL{Value: []types.AttributeValue{attr.Num(1)}})
			case *types.AttributeValueMemberM:
				refused(attribute, "a map of nulls", &types.AttributeValueMemberM{Value: item{"kek-0": &types.AttributeValueMemberNULL{Value: true}}})
			}
		}
	}
}

// TestMarkThatCannotBeRead: a writer of another version may leave one; it still names
// its table.
func TestMarkThatCannotBeRead(t *testing.T) {
	i := attr.Set(controltable.Key(pkMark, "orders"), "holder", "a", "seen_at", decoded)
	want := kek.Mark{Table: "orders", Holder: "a", SeenAt: decoded}
	if m, err := decodeMark(i); err != nil || m != want {
		t.Errorf("%+v, %v", m, err)
	}
	i["seen_at"], i["holder"] = attr.Num(5), attr.Bool(true)
	if m, err := decodeMark(i); err != nil || m.Table != "orders" {
		t.Errorf("%+v, %v", m, err)
	}
	i["sk"] = attr.Num(5)
	if m, err := decodeMark(i); err == nil {
		t.Errorf("a mark without a table was read as %+v", m)
	}
}

// TestDamagedLock: a lock of another type holds nobody out in silence.
func TestDamagedLock(t *testing.T) {
	if _, err := decodeView([]item{{"pk": attr.Str(pkLock), "rotation_id": attr.Num(1)}}); err == nil || !strings.Contains(err.Error(), "rotation_id") {
		t.Errorf("a lock of a number: %v", err)
	}
	if v, err := decodeView([]item{{"pk": attr.Str(pkLock), "rotation_id": attr.Str("r1")}}); err != nil || v.Lock != "r1" {
		t.Errorf("%+v, %v", v, err)
	}
}
