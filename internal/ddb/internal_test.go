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

	"github.com/matter-ops/kms-rotation/audit"
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
		again, err := explainCancellation(actions, e)
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

// TestGivesUp: a chain that is too busy ends in an error that is not a conflict, after
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
