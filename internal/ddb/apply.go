package ddb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// How often a transaction that was refused for the audit head alone, or for
// contention, is built and sent again, and how long to wait before.
const (
	maxTries  = 10
	firstWait = 10 * time.Millisecond
	maxWait   = time.Second
)

// action is one item of a transaction.
type action struct {
	what  string // the item, for messages
	write types.TransactWriteItem
	audit bool // part of the outbox: losing this race alone means try again
}

// Apply implements [rotation.Registry]. It returns [kek.ErrConflict], naming the
// item, if a condition failed. Losing the race for the audit chain's head alone
// is retried inside: the record is made again on the new head.
func (s *Store) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {
	actions, err := s.changes(c)
	if err != nil {
		return fmt.Errorf("apply %s: %w", c.Event, err)
	}
	if err := s.commit(ctx, actions, ev, nil); err != nil {
		return fmt.Errorf("apply %s: %w", c.Event, err)
	}
	return nil
}

// Record appends ev to the outbox and changes nothing else. It appends once per
// call that succeeds; a call that failed may have appended.
func (s *Store) Record(ctx context.Context, ev audit.Event) error {
	if err := s.commit(ctx, nil, ev, nil); err != nil {
		return fmt.Errorf("record %s: %w", ev.Type, err)
	}
	return nil
}

// commit writes the actions and the audit record in one transaction, with what begins
// there, if anything does.
func (s *Store) commit(ctx context.Context, actions []action, ev audit.Event, b *beginning) error {
	var last error
	var head audit.Head
	moved := false // somebody else has appended
	for try := range maxTries {
		if err := backoff.Pause(ctx, try, firstWait, maxWait); err != nil {
			return errors.Join(err, last)
		}
		h, err := s.head(ctx)
		if err != nil {
			return err
		}
		moved, head = moved || try > 0 && h.Head != head, h.Head
		if b != nil && (b.at != h.Line || b.head != h.Head) {
			return fmt.Errorf("%s: %w", pkAuditHead, kek.ErrConflict)
		}
		entry, err := audit.Next(s.chain, h.Head, s.now(), ev)
		if err != nil {
			return err
		}
		again, err := s.transact(ctx, append(actions[:len(actions):len(actions)], s.appends(h.Head, entry, b)...))
		if !again {
			return err
		}
		last = err
	}
	var cancelled *types.TransactionCanceledException
	if !moved && errors.As(last, &cancelled) && !contended(cancelled) { // no race: there is a record after the head
		return damaged(pkAuditHead, fmt.Errorf("it says record %d, and there is another after that: %w", head.Seq, last))
	}
	return fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// transact sends one transaction. again says that nothing was written and that a
// fresh try may succeed.
func (s *Store) transact(ctx context.Context, actions []action) (again bool, err error) {
	in := &dynamodb.TransactWriteItemsInput{TransactItems: make([]types.TransactWriteItem, len(actions))}
	for i, a := range actions {
		in.TransactItems[i] = a.write
	}
	_, err = s.client.TransactWriteItems(ctx, in)
	var cancelled *types.TransactionCanceledException
	switch {
	case err == nil:
		return false, nil
	case errors.As(err, &cancelled):
		return cancellation(actions, cancelled)
	default:
		var busy *types.TransactionConflictException
		return errors.As(err, &busy), wrap("TransactWriteItems", err)
	}
}

// cancellation judges why a transaction was cancelled, item by item. A failed
// condition outside the outbox decides: the change must be computed anew. Else
// what was read of the audit head is stale, or another transaction or throttling
// was in the way, and nothing was written.
func cancellation(actions []action, e *types.TransactionCanceledException) (again bool, err error) {
	var why []string
	for i, r := range e.CancellationReasons {
		reason := controltable.ReasonOf(r)
		what := "item"
		outbox := false
		if reason == controltable.Innocent {
			continue
		}
		if i < len(actions) {
			what, outbox = actions[i].what, actions[i].audit
		}
		if reason == controltable.Condition && !outbox {
			return false, fmt.Errorf("%s: %w", what, kek.ErrConflict)
		}
		again = (again || len(why) == 0) && (reason == controltable.Condition || reason.Busy())
		why = append(why, what+": "+aws.ToString(r.Code))
	}
	return again, fmt.Errorf("dynamodb TransactWriteItems (%s): %w", strings.Join(why, ", "), e)
}

// contended reports whether a transaction was cancelled for contention alone:
// nothing was done, and the same again may succeed.
func contended(e *types.TransactionCanceledException) bool {
	return !slices.ContainsFunc(controltable.Reasons(e), func(r controltable.Reason) bool { return r != controltable.Innocent && !r.Busy() })
}

// changes is the transaction of a change without its audit record.
func (s *Store) changes(c kek.Change) ([]action, error) {
	var out []action
	if m := c.Rotation; m != nil {
		a := s.put(controltable.RotationPK(m.After.ID), encodeRotation(m.After), unless())
		if m.Before != nil {
			a = s.put(controltable.RotationPK(m.After.ID), encodeRotation(m.After), standsAt(*m.Before))
		}
		out = append(out, a)
	}
	lock, err := s.lock(c)
	if err != nil {
		return nil, err
	}
	out = append(out, lock...)
	switch {
	case c.Pointer != nil && c.Pointer.Before != nil:
		out = append(out, s.put(pkPointer, controltable.EncodePointer(c.Pointer.After), pointsAt(*c.Pointer.Before)))
	case c.Pointer != nil:
		out = append(out, s.put(pkPointer, controltable.EncodePointer(c.Pointer.After), unless()))
	case c.Keeps != nil:
		out = append(out, s.check(pkPointer, controltable.Key(pkPointer, noSK), pointsAt(*c.Keeps)))
	}
	for _, m := range c.KEKs {
		cond := unless()
		if m.Before != nil {
			cond = condition{"#state = :state", values{"state": attr.Str(string(m.Before.State))}}
		}
		out = append(out, s.put(controltable.KEKPK(m.After.ID), controltable.EncodeKEK(m.After), cond))
	}
	out = append(out, s.registry(c)...)
	return append(out, s.fences(c)...), nil
}

func (s *Store) lock(c kek.Change) ([]action, error) {
	var id string
	if c.Rotation != nil {
		id = c.Rotation.After.ID
	} else if c.Lock != kek.LockIgnore && c.Lock != kek.LockFree {
		return nil, errors.New("a change to the lock names no rotation")
	}
	ours := condition{"#rotation_id = :rotation_id", values{"rotation_id": attr.Str(id)}}
	switch c.Lock {
	case kek.LockIgnore:
		return nil, nil
	case kek.LockFree:
		return []action{s.check(pkLock, controltable.Key(pkLock, noSK), unless())}, nil
	case kek.LockHold:
		return []action{s.check(pkLock, controltable.Key(pkLock, noSK), ours)}, nil
	case kek.LockTake:
		free := condition{"attribute_not_exists(#pk) OR " + ours.expr, ours.values}
		return []action{s.put(pkLock, attr.Set(controltable.Key(pkLock, noSK), "rotation_id", id), free)}, nil
	case kek.LockRelease:
		return []action{s.remove(pkLock, controltable.Key(pkLock, noSK), ours)}, nil
	case kek.LockTakeOver:
		held := condition{ours.expr, values{"rotation_id": attr.Str(c.From)}}
		return []action{s.put(pkLock, attr.Set(controltable.Key(pkLock, noSK), "rotation_id", id), held), s.ended(c)}, nil
	}
	return nil, fmt.Errorf("unknown lock operation %d", c.Lock)
}

// ended writes the record of the rotation that an emergency takes over from, or checks
// that it has none.
func (s *Store) ended(c kek.Change) action {
	what := controltable.RotationPK(c.From)
	if c.Ends == nil {
		return s.check(what, controltable.Key(what, noSK), unless())
	}
	return s.put(what, encodeRotation(c.Ends.After), standsAt(*c.Ends.Before))
}

// standsAt holds if a rotation's record is what was read.
func standsAt(r kek.Rotation) condition {
	return condition{"#phase = :phase AND #rev = :rev", values{"phase": attr.Str(string(r.Phase)), "rev": attr.Num(r.Rev)}}
}

// fences opens a new KEK's shards, none of which may exist, so that a sealed one
// is never opened again; or checks that an old KEK's are all sealed.
func (s *Store) fences(c kek.Change) []action {
	var out []action
	for i := range c.Shards {
		if c.Opens != "" {
			shard := controltable.EncodeFence(c.Opens, i, controltable.Open)
			out = append(out, s.put(controltable.FencePK(c.Opens)+"/"+controltable.FenceSK(i), shard, unless()))
		}
		if c.Sealed != "" {
			sealed := condition{"#state = :state", values{"state": attr.Str(controltable.Sealed)}}
			out = append(out, s.check(controltable.FencePK(c.Sealed)+"/"+controltable.FenceSK(i), controltable.Key(controltable.FencePK(c.Sealed), controltable.FenceSK(i)), sealed))
		}
	}
	return out
}

// appends puts the record after head and moves the head on, if head still is the
// chain's.
func (s *Store) appends(head audit.Head, e audit.Entry, b *beginning) []action {
	record := attr.Set(controltable.Key(pkAudit, auditSK(e.Record.Seq)), "record", e.Bytes, "hash", e.Hash)
	put := s.put(pkAudit+"/"+auditSK(e.Record.Seq), record, unless())
	cond, vals := "attribute_not_exists(#pk)", values{}
	if head.Seq > 0 {
		cond, vals = "#seq = :was AND #hash = :washash", values{"was": attr.Num(head.Seq), "washash": attr.Str(head.Hash)}
	}
	vals["chain"] = attr.Str(s.chain)
	vals["seq"] = attr.Num(e.Record.Seq)
	vals["hash"] = attr.Str(e.Hash)
	update := "SET #chain = :chain, #seq = :seq, #hash = :hash"
	if b != nil {
		update += ", #generations = :generations"
		vals["generations"] = attr.Str(string(b.at.Generations.With(b.g)))
	}
	names, params := controltable.Expression(update+cond, vals)
	move := action{what: pkAuditHead, write: types.TransactWriteItem{Update: &types.Update{
		TableName: &s.table, Key: controltable.Key(pkAuditHead, noSK), UpdateExpression: &update, ConditionExpression: &cond,
		ExpressionAttributeNames: names, ExpressionAttributeValues: params,
	}}}
	put.audit, move.audit = true, true
	return []action{put, move}
}

// condition is what must hold of a stored item.
type condition struct {
	expr   string
	values values
}

// unless holds if there is no such item.
func unless() condition { return condition{expr: "attribute_not_exists(#pk)"} }

func pointsAt(p kek.Pointer) condition {
	return condition{"#kek_id = :kek_id AND #epoch = :epoch", values{"kek_id": attr.Str(string(p.KEKID)), "epoch": attr.Num(p.Epoch)}}
}

func (s *Store) put(what string, i item, c condition) action {
	if c.expr == "" { // the registry's revision is the condition
		return action{what: what, write: types.TransactWriteItem{Put: &types.Put{TableName: &s.table, Item: i}}}
	}
	names, vals := controltable.Expression(c.expr, c.values)
	return action{what: what, write: types.TransactWriteItem{Put: &types.Put{
		TableName: &s.table, Item: i, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}

func (s *Store) check(what string, k item, c condition) action {
	names, vals := controltable.Expression(c.expr, c.values)
	return action{what: what, write: types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName: &s.table, Key: k, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}

func (s *Store) remove(what string, k item, c condition) action {
	if c.expr == "" { // as above
		return action{what: what, write: types.TransactWriteItem{Delete: &types.Delete{TableName: &s.table, Key: k}}}
	}
	names, vals := controltable.Expression(c.expr, c.values)
	return action{what: what, write: types.TransactWriteItem{Delete: &types.Delete{
		TableName: &s.table, Key: k, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}
