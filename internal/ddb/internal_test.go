package ddb

import (
	"context"
	"errors"
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
	"github.com/matter-ops/kms-rotation/kek"
)

// TestCancellation: what each mix of reasons means.
func TestCancellation(t *testing.T) {
	actions := []action{{what: "LOCK"}, {what: "POINTER"}, {what: "AUDIT/1", audit: true}, {what: "AUDIT_HEAD", audit: true}}
	const (
		none, failed, conflict = "None", "ConditionalCheckFailed", "TransactionConflict"
		throttled, invalid     = "ThrottlingError", "ValidationError"
	)
	for _, c := range []struct {
		reasons  []string
		again    bool
		conflict bool
		mention  string
	}{
		{[]string{none, none, none, failed}, true, false, "AUDIT_HEAD"},
		{[]string{none, none, failed, failed}, true, false, "AUDIT_HEAD"},
		{[]string{none, failed, none, none}, false, true, "POINTER"},
		{[]string{failed, none, failed, failed}, false, true, "LOCK"},
		{[]string{conflict, failed, none, failed}, false, true, "POINTER"},
		{[]string{conflict, none, none, none}, true, false, "LOCK"},
		{[]string{none, none, none, throttled}, true, false, throttled},
		{[]string{none, none, none, invalid}, false, false, invalid},
		{[]string{invalid, none, none, failed}, false, false, invalid},
		{[]string{none, none, none, none}, false, false, ""},
		{nil, false, false, ""},
	} {
		e := &types.TransactionCanceledException{}
		for _, r := range c.reasons {
			e.CancellationReasons = append(e.CancellationReasons, types.CancellationReason{Code: aws.String(r)})
		}
		again, err := cancellation(actions, e)
		if again != c.again || errors.Is(err, kek.ErrConflict) != c.conflict || err == nil || !strings.Contains(err.Error(), c.mention) {
			t.Errorf("%v: again %v, %v", c.reasons, again, err)
		}
	}
}

// losing is a table whose audit head is always won by somebody else.
type losing struct {
	API
	tries int
}

func (l *losing) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{}, nil
}

func (l *losing) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	l.tries++
	e := &types.TransactionCanceledException{CancellationReasons: make([]types.CancellationReason, len(in.TransactItems))}
	e.CancellationReasons[len(in.TransactItems)-1].Code = aws.String("ConditionalCheckFailed")
	return nil, e
}

// TestGivesUp: a chain that is too busy ends in an error that is no conflict, after
// a bounded number of tries and a bounded time; a context that ends sooner is heeded.
func TestGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &losing{}
		s := New(api, "t", "c", time.Now)
		began := time.Now()
		err := s.Record(t.Context(), audit.Event{ID: "a"})
		if err == nil || errors.Is(err, kek.ErrConflict) || api.tries != maxTries {
			t.Errorf("%v after %d tries", err, api.tries)
		}
		if took := time.Since(began); took > maxTries*maxWait {
			t.Errorf("gave up after %s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if err := s.Record(ctx, audit.Event{ID: "a"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), pkAuditHead) {
			t.Errorf("%v, want the deadline and what went before", err)
		}
	})
}

var cursorKeys = [][]keyAttribute{
	{{"id", types.ScalarAttributeTypeS}},
	{{"id", types.ScalarAttributeTypeB}, {"n", types.ScalarAttributeTypeN}},
}

func TestCursor(t *testing.T) {
	for _, c := range []struct {
		keys []keyAttribute
		last item
	}{
		{cursorKeys[0], item{"id": attr.Str("<é\x00>")}},
		{cursorKeys[1], item{"id": attr.Blob([]byte{0, 255}), "n": &types.AttributeValueMemberN{Value: "-1.5E+10"}}},
	} {
		cursor, err := encodeCursor(c.last, c.keys)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeCursor(cursor, c.keys)
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range c.last {
			if !equal(v, got[name]) {
				t.Errorf("%s: %v, want %v", name, got[name], v)
			}
		}
		for _, other := range cursorKeys {
			if _, err := decodeCursor(cursor, other); (err == nil) != (len(other) == len(c.keys)) {
				t.Errorf("cursor of another key: %v", err)
			}
		}
	}
	if _, err := encodeCursor(item{"id": attr.Num(1), "n": attr.Bool(true)}, cursorKeys[1]); err == nil {
		t.Error("a key of another type was encoded")
	}
}

func equal(a, b types.AttributeValue) bool {
	switch a := a.(type) {
	case *types.AttributeValueMemberS:
		return cmp.Equal(a.Value, b.(*types.AttributeValueMemberS).Value)
	case *types.AttributeValueMemberN:
		return cmp.Equal(a.Value, b.(*types.AttributeValueMemberN).Value)
	case *types.AttributeValueMemberB:
		return cmp.Equal(a.Value, b.(*types.AttributeValueMemberB).Value)
	}
	return false
}

// FuzzCursor: what decodes is a key of the table and encodes to a cursor that
// decodes to the same.
func FuzzCursor(f *testing.F) {
	for _, c := range []string{"", "e30", "bnVsbA", "eyJpZCI6eyJTIjoiYSJ9fQ", "eyJpZCI6eyJCIjoiQUE9PSJ9LCJuIjp7Ik4iOiIxIn19"} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		for _, keys := range cursorKeys {
			key, err := decodeCursor(cursor, keys)
			if err != nil || cursor == "" {
				continue
			}
			again, err := encodeCursor(key, keys)
			if err != nil {
				t.Fatal(err)
			}
			got, err := decodeCursor(again, keys)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if !equal(key[k.name], got[k.name]) {
					t.Fatalf("%s: %v, then %v", k.name, key[k.name], got[k.name])
				}
			}
		}
	})
}

func TestRowID(t *testing.T) {
	keys := []keyAttribute{{"pk", types.ScalarAttributeTypeS}, {"sk", types.ScalarAttributeTypeN}}
	for want, i := range map[string]item{
		"pk=order 1,sk=7":  {"pk": attr.Str("order 1"), "sk": attr.Num(7)},
		`pk="a\nb",sk=1`:   {"pk": attr.Str("a\nb"), "sk": attr.Num(1)},
		"pk=AP8=,sk=00":    {"pk": attr.Blob([]byte{0, 255}), "sk": attr.Str("00")},
		`pk="\x1b[2J",sk=`: {"pk": attr.Str("\x1b[2J")},
	} {
		if got := rowID(i, keys); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
