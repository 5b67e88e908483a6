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
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
)

// maxTries is how often a transaction is built and sent that is cancelled only because the
// audit head moved, or because other requests held an item. The pauses between the tries
// double from firstWait up to maxWait.
const (
	maxTries  = 10
	firstWait = 10 * time.Millisecond
	maxWait   = time.Second
)

// action is one item of a transaction.
type action struct {
	what  string // the item, for messages
	write types.TransactWriteItem
	audit bool // part of the outbox: if only such conditions fail, the change still holds and is sent again
}

// Apply implements [journal.Registry]: the change and its audit record are one
// TransactWriteItems. It returns [kek.ErrConflict], which names the item, if a condition of
// the change failed. If only the head of the audit chain moved, the record is made again
// on the new head and the transaction is sent again.
func (s *Store) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {
	actions, err := s.buildActions(c)
	if err != nil {
		return fmt.Errorf("apply %s: %w", c.Event, err)
	}
	if err := s.commitWithRecord(ctx, actions, ev, nil); err != nil {
		return fmt.Errorf("apply %s: %w", c.Event, err)
	}
	return nil
}

// Record appends ev to the outbox and changes nothing else. It appends once per
// call that succeeds; a call that failed may have appended.
func (s *Store) Record(ctx context.Context, ev audit.Event) error {
	if err := s.commitWithRecord(ctx, nil, ev, nil); err != nil {
		return fmt.Errorf("record %s: %w", ev.Type, err)
	}
	return nil
}

// commitWithRecord writes the actions and the audit record in one transaction. If b is not
// nil, a generation of records begins with this record.
//
// The head is read before each try, because the record commits to the hash of the one
// before it. If every try fails although the head never moved, the reason cannot be another
// writer: the outbox has an item where the next record belongs, so AUDIT_HEAD is damaged.
func (s *Store) commitWithRecord(ctx context.Context, actions []action, ev audit.Event, b *beginning) error {
	var last error
	var head audit.Head
	moved := false // another process has appended a record
	for try := range maxTries {
		if err := remote.WaitForTry(ctx, try, firstWait, maxWait); err != nil {
			return errors.Join(err, last)
		}
		h, err := s.loadHead(ctx)
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
		again, err := s.sendTransaction(ctx, append(actions[:len(actions):len(actions)], s.appendRecord(h.Head, entry, b)...))
		if !again {
			return err
		}
		last = err
	}
	var cancelled *types.TransactionCanceledException
	if !moved && errors.As(last, &cancelled) && !isContended(cancelled) { // a record is stored after the head
		return errDamaged(pkAuditHead, fmt.Errorf("it says record %d, and there is another after that: %w", head.Seq, last))
	}
	return fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// sendTransaction sends one transaction. again means that nothing was written and that the
// caller should build the transaction from a new read and send it again.
func (s *Store) sendTransaction(ctx context.Context, actions []action) (again bool, err error) {
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
		return explainCancellation(actions, cancelled)
	default:
		var busy *types.TransactionConflictException
		return errors.As(err, &busy), wrapError("TransactWriteItems", err)
	}
}

// explainCancellation judges why a transaction was cancelled, item by item (DynamoDB API
// reference, TransactionCanceledException). A failed condition of the change decides: the
// caller must load the state and compute the change again. Otherwise the audit head that
// was read is stale, or another request held an item, and the same change may succeed. In
// every case nothing was written.
func explainCancellation(actions []action, e *types.TransactionCanceledException) (again bool, err error) {
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

// isContended reports whether a transaction was cancelled only because other requests held
// an item or used the throughput. Nothing was written, and the same request may succeed.
func isContended(e *types.TransactionCanceledException) bool {
	return !slices.ContainsFunc(controltable.Reasons(e), func(r controltable.Reason) bool { return r != controltable.Innocent && !r.Busy() })
}

// buildActions translates a change into the items of its transaction, without the audit
// record. Each condition of the change becomes the condition of a write, or a
// ConditionCheck on an item that the change only relies on. DynamoDB allows one action for
// each item in a transaction, so an item is either written or checked, never both.
func (s *Store) buildActions(c kek.Change) ([]action, error) {
	var out []action
	if m := c.Rotation; m != nil {
		a := s.putItem(controltable.RotationPK(m.After.ID), encodeRotation(m.After), ifAbsent())
		if m.Before != nil {
			a = s.putItem(controltable.RotationPK(m.After.ID), encodeRotation(m.After), ifRotationUnchanged(*m.Before))
		}
		out = append(out, a)
	}
	lock, err := s.lockActions(c)
	if err != nil {
		return nil, err
	}
	out = append(out, lock...)
	switch {
	case c.Pointer != nil && c.Pointer.Before != nil:
		out = append(out, s.putItem(pkPointer, controltable.EncodePointer(c.Pointer.After), ifPointerUnchanged(*c.Pointer.Before)))
	case c.Pointer != nil:
		out = append(out, s.putItem(pkPointer, controltable.EncodePointer(c.Pointer.After), ifAbsent()))
	case c.Keeps != nil:
		out = append(out, s.checkItem(pkPointer, controltable.Key(pkPointer, noSK), ifPointerUnchanged(*c.Keeps)))
	}
	for _, m := range c.KEKs {
		cond := ifAbsent()
		if m.Before != nil {
			cond = condition{"#state = :state", values{"state": attr.Str(string(m.Before.State))}}
		}
		out = append(out, s.putItem(controltable.KEKPK(m.After.ID), controltable.EncodeKEK(m.After), cond))
	}
	out = append(out, s.registryActions(c)...)
	return append(out, s.fenceActions(c)...), nil
}

// lockActions returns what a change does to the item LOCK, which exists while a rotation
// runs and names it:
//
//	LOCK  -  rotation_id S
func (s *Store) lockActions(c kek.Change) ([]action, error) {
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
		return []action{s.checkItem(pkLock, controltable.Key(pkLock, noSK), ifAbsent())}, nil
	case kek.LockHold:
		return []action{s.checkItem(pkLock, controltable.Key(pkLock, noSK), ours)}, nil
	case kek.LockTake:
		free := condition{"attribute_not_exists(#pk) OR " + ours.expr, ours.values}
		return []action{s.putItem(pkLock, attr.Set(controltable.Key(pkLock, noSK), "rotation_id", id), free)}, nil
	case kek.LockRelease:
		return []action{s.removeItem(pkLock, controltable.Key(pkLock, noSK), ours)}, nil
	case kek.LockTakeOver:
		held := condition{ours.expr, values{"rotation_id": attr.Str(c.From)}}
		return []action{s.putItem(pkLock, attr.Set(controltable.Key(pkLock, noSK), "rotation_id", id), held), s.endRotation(c)}, nil
	}
	return nil, fmt.Errorf("unknown lock operation %d", c.Lock)
}

// endRotation writes the record of the rotation that an emergency takes over from, or checks
// that there is still no such record.
func (s *Store) endRotation(c kek.Change) action {
	what := controltable.RotationPK(c.From)
	if c.Ends == nil {
		return s.checkItem(what, controltable.Key(what, noSK), ifAbsent())
	}
	return s.putItem(what, encodeRotation(c.Ends.After), ifRotationUnchanged(*c.Ends.Before))
}

// ifRotationUnchanged is the condition that a rotation's record is what was read. The
// revision grows with every change of the record, so it stands for all attributes.
func ifRotationUnchanged(r kek.Rotation) condition {
	return condition{"#phase = :phase AND #rev = :rev", values{"phase": attr.Str(string(r.Phase)), "rev": attr.Num(r.Rev)}}
}

// fences are the beginnings of the partition keys of a KEK's two fences.
var fences = []string{pkFence, pkKeyFence}

// fenceActions opens the fences of a new KEK, or checks that those of an old KEK are
// sealed. A shard is opened only if it does not exist, so a sealed shard is never
// opened again: a writer that still holds the old KEK could insert behind the seal.
func (s *Store) fenceActions(c kek.Change) []action {
	var out []action
	opens := map[string]kek.ID{pkFence: c.Opens, pkKeyFence: c.OpensRecords}
	for _, pk := range fences {
		for i := range c.Shards {
			sk := controltable.FenceSK(i)
			if id := opens[pk]; id != "" {
				out = append(out, s.putItem(pk+string(id)+"/"+sk, controltable.EncodeFence(pk, id, i, controltable.Open), ifAbsent()))
			}
			if c.Shuts != "" {
				out = append(out, s.putItem(pk+string(c.Shuts)+"/"+sk, controltable.EncodeFence(pk, c.Shuts, i, controltable.Sealed), ifAbsent()))
			}
			if c.Sealed != "" {
				sealed := condition{"#state = :state", values{"state": attr.Str(controltable.Sealed)}}
				out = append(out, s.checkItem(pk+string(c.Sealed)+"/"+sk, controltable.Key(pk+string(c.Sealed), sk), sealed))
			}
		}
	}
	return out
}

// appendRecord returns the two writes that append a record to the outbox: it puts the record
// behind head and moves AUDIT_HEAD to it, on condition that AUDIT_HEAD still names head.
// Two processes cannot append behind the same record, so the chain never forks.
func (s *Store) appendRecord(head audit.Head, e audit.Entry, b *beginning) []action {
	record := attr.Set(controltable.Key(pkAudit, auditSK(e.Record.Seq)), "record", e.Bytes, "hash", e.Hash)
	put := s.putItem(pkAudit+"/"+auditSK(e.Record.Seq), record, ifAbsent())
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

// condition is what must hold of a stored item. The zero value means that another
// write of the same transaction has a condition that covers this item too.
type condition struct {
	expr   string // a condition expression in which every attribute is written #name
	values values
}

// ifAbsent is the condition that the item does not exist: every item has the attribute pk.
func ifAbsent() condition { return condition{expr: "attribute_not_exists(#pk)"} }

// ifPointerUnchanged is the condition that the pointer is what was read. The epoch grows
// with every switch, so a pointer that left the KEK and came back does not match.
func ifPointerUnchanged(p kek.Pointer) condition {
	return condition{"#kek_id = :kek_id AND #epoch = :epoch", values{"kek_id": attr.Str(string(p.KEKID)), "epoch": attr.Num(p.Epoch)}}
}

// putItem returns the write of a whole item: attributes that it does not have are removed.
func (s *Store) putItem(what string, i item, c condition) action {
	if c.expr == "" { // the registry's revision is the condition
		return action{what: what, write: types.TransactWriteItem{Put: &types.Put{TableName: &s.table, Item: i}}}
	}
	names, vals := controltable.Expression(c.expr, c.values)
	return action{what: what, write: types.TransactWriteItem{Put: &types.Put{
		TableName: &s.table, Item: i, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}

// checkItem returns a condition on an item that the transaction does not write.
func (s *Store) checkItem(what string, k item, c condition) action {
	names, vals := controltable.Expression(c.expr, c.values)
	return action{what: what, write: types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName: &s.table, Key: k, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}

// removeItem returns the deletion of an item.
func (s *Store) removeItem(what string, k item, c condition) action {
	if c.expr == "" { // the registry's revision is the condition
		return action{what: what, write: types.TransactWriteItem{Delete: &types.Delete{TableName: &s.table, Key: k}}}
	}
	names, vals := controltable.Expression(c.expr, c.values)
	return action{what: what, write: types.TransactWriteItem{Delete: &types.Delete{
		TableName: &s.table, Key: k, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}
