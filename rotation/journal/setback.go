package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/audit"
)

// GetRecord returns nil if there is none, or something else.
func (j *Journal) GetRecord(ctx context.Context, at audit.Line, seq int64) (*audit.Entry, error) {
	b, err := j.AuditBucket.Get(ctx, at.RecordKey(seq))
	if errors.Is(err, ErrNoRecord) {
		return nil, nil
	}
	if err != nil {
		return nil, WrapUnavailable("audit bucket", err)
	}
	e, err := audit.Parse(b)
	if err != nil || e.Record.Seq != seq || e.Record.Chain != at.Chain {
		return nil, nil
	}
	return &e, nil
}

// FollowChain reads the records after from out of the bucket, each of which must follow the
// one before, up to the head that the control table names. A record that is not there must
// be one that a later record says is lost.
func (j *Journal) FollowChain(ctx context.Context, at audit.Line, from, to audit.Head) error {
	head := from
	var gaps audit.Gaps
	for head.Seq < to.Seq {
		seq := head.Seq + 1
		key := at.RecordKey(seq)
		b, err := j.AuditBucket.Get(ctx, key)
		if errors.Is(err, ErrNoRecord) {
			gaps.Miss(seq)
			head = audit.Head{Seq: seq}
			continue
		}
		if err != nil {
			return WrapUnavailable("audit bucket", err)
		}
		e, err := audit.Parse(b)
		if err != nil {
			return reportTampered(key, err)
		}
		if head.Hash == "" { // after a gap
			head.Hash = e.Record.Prev
		}
		if head, err = e.Follow(at.Chain, head); err != nil {
			return reportTampered(key, err)
		}
		gaps.Meet(e.Record)
	}
	if _, others := gaps.Explain(); len(others) > 0 {
		return reportTampered(at.RecordKey(others[0]), ErrNoRecord)
	}
	if head != to {
		return reportTampered(at.RecordKey(to.Seq), errors.New("the bucket's last record is not the control table's head"))
	}
	return nil
}

func reportTampered(key string, err error) error {
	return &Error{
		Kind: AuditTampered, Field: key, Msg: "the audit chain does not verify", Err: err,
		Next: Next{Do: VerifyAudit},
	}
}

// CheckSetBack fails if the bucket holds a record that follows the control table's last
// one: the table has been set back to an earlier time, as a restore does, and what it says
// of KEKs is no longer so. Whatever gives a KEK up asks it twice: before the registry is
// written, and before the key is disabled. If the table was set back in between, the record
// of the first has met a forgotten one in the bucket, which the second sees. A transaction
// whose record was not in the bucket yet leaves nothing there to see.
func (j *Journal) CheckSetBack(ctx context.Context) error {
	for range MaxTries {
		at, head, err := j.Outbox.Head(ctx)
		if err != nil {
			return WrapUnavailable("audit head", err)
		}
		key := at.RecordKey(head.Seq + 1)
		b, err := j.AuditBucket.Get(ctx, key)
		if errors.Is(err, ErrNoRecord) {
			return j.checkForgotten(ctx, at, head.Seq)
		}
		if err != nil {
			return WrapUnavailable("audit bucket", err)
		}
		e, err := audit.Parse(b)
		if err == nil {
			_, err = e.Follow(at.Chain, head)
		}
		if err != nil { // not of the chain, which goes on past it
			return j.checkForgotten(ctx, at, head.Seq)
		}
		_, now, err := j.Outbox.Head(ctx)
		if err != nil {
			return WrapUnavailable("audit head", err)
		}
		if now == head {
			return &Error{
				Kind: AuditTampered, Field: "AUDIT_HEAD",
				Msg:  fmt.Sprintf("%s follows the control table's last record, %d: the table was set back to an earlier time", key, head.Seq),
				Next: Next{Do: RunDoctor},
			}
		}
	}
	return WrapUnavailable("audit head", fmt.Errorf("it has moved %d times", MaxTries))
}

// checkForgotten fails if the chain has gone on past records of its own, as it does within
// the hour after a table was set back, and matter ops doctor has not recorded since what was
// forgotten.
func (j *Journal) checkForgotten(ctx context.Context, at audit.Line, last int64) error {
	before := audit.Line{Chain: at.Chain}
	for _, g := range at.Generations.All() {
		own, err := j.GetRecord(ctx, before, g.From)
		if err != nil {
			return err
		}
		prev := audit.Genesis(at.Chain).Hash
		if g.From > 1 && own != nil {
			if prev, err = j.hashBefore(ctx, at, g.From); err != nil {
				return err
			}
		}
		before.Generations = before.Generations.With(g)
		repaired := own == nil || own.Record.Prev != prev // an object of others is not of the chain
		for seq := g.From; seq <= last && !repaired; seq++ {
			e, err := j.GetRecord(ctx, at, seq)
			if err != nil {
				return err
			}
			repaired = e != nil && e.Record.Type == audit.EventRepaired && e.Record.Body[audit.BodyForgotten] != ""
		}
		if !repaired {
			return &Error{
				Kind: AuditTampered, Field: "AUDIT_HEAD",
				Msg:  fmt.Sprintf("generation %s goes on past record %d of the chain itself: the table was set back to an earlier time", g.ID, g.From),
				Next: Next{Do: RunDoctor},
			}
		}
	}
	return nil
}

// hashBefore is the hash of the record before one, as the bucket has it or as the one
// itself says, so that a delete marker on the former hides nothing; "" if neither is there.
func (j *Journal) hashBefore(ctx context.Context, at audit.Line, seq int64) (string, error) {
	before, err := j.GetRecord(ctx, at, seq-1)
	if err != nil {
		return "", err
	}
	if before != nil {
		return before.Hash, nil
	}
	e, err := j.GetRecord(ctx, at, seq)
	if e == nil {
		return "", err
	}
	return e.Record.Prev, nil
}
