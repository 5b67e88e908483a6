package ddb

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// chainHead is the item AUDIT_HEAD, which every transaction that appends a record writes:
//
//	chain          S  name of the chain: the stack
//	seq            N  number of the last record, from 1
//	hash           S  its SHA-256, in hex
//	published_seq  N  the records up to this one are in the audit bucket
//	generations    S  where records have other object keys, "number=id,number=id"
//
// published_seq never decreases and never passes seq (spec/outbox.tla).
type chainHead struct {
	audit.Head
	audit.Line
	published int64
}

// loadHead reads the chain's head. If nothing was ever recorded it returns the head before
// the first record.
func (s *Store) loadHead(ctx context.Context) (chainHead, error) {
	i, err := getItem(ctx, s.client, s.table, pkAuditHead, noSK)
	if err != nil {
		return chainHead{}, err
	}
	if i == nil {
		return chainHead{Head: audit.Genesis(s.chain), Line: audit.Line{Chain: s.chain}}, nil
	}
	return s.decodeHead(i)
}

// decodeHead refuses the head of another chain: a wrong configuration must not append this
// deployment's records to it.
func (s *Store) decodeHead(i item) (chainHead, error) {
	r := attr.Reader{Item: i}
	h := chainHead{Head: audit.Head{Seq: r.Num("seq"), Hash: r.Str("hash")}, Line: audit.Line{Chain: s.chain}, published: r.Num("published_seq")}
	chain, text := r.Str("chain"), r.Str("generations")
	if err := damagedIf(r.Err, pkAuditHead); err != nil {
		return h, err
	}
	generations, err := audit.ParseGenerations(text)
	if err != nil {
		return h, errDamaged(pkAuditHead, err)
	}
	h.Generations = generations
	if chain == "" {
		return h, errDamaged(pkAuditHead, errors.New("it names no chain"))
	}
	if chain != s.chain {
		return h, &journal.Error{
			Kind: journal.Misconfigured, Field: pkAuditHead + ".chain",
			Msg:  fmt.Sprintf("the control table holds audit chain %q, the configuration says %q", chain, s.chain),
			Next: journal.Next{Say: "correct the configured chain name; a chain is never renamed"},
		}
	}
	return h, nil
}

// Unpublished implements [journal.Outbox].
func (s *Store) Unpublished(ctx context.Context) ([]audit.Entry, audit.Line, error) {
	h, err := s.loadHead(ctx)
	if err != nil {
		return nil, audit.Line{}, err
	}
	if h.published >= h.Seq {
		return nil, h.Line, nil
	}
	entries, err := s.AuditEntries(ctx, h.published+1)
	if err != nil {
		return nil, audit.Line{}, err
	}
	return entries, h.Line, nil
}

// Begin implements [journal.Outbox]. The record of the beginning moves the chain's head, so
// the condition of the append also excludes a second beginning at the same place.
func (s *Store) Begin(ctx context.Context, at audit.Line, head audit.Head, g audit.Generation, ev audit.Event) error {
	if err := s.commitWithRecord(ctx, nil, ev, &beginning{at, head, g}); err != nil {
		return fmt.Errorf("record %s: %w", ev.Type, err)
	}
	return nil
}

// beginning is a generation of records that begins now: after the generations of at, in a
// chain that ends with head. Neither may have changed since the caller read them.
type beginning struct {
	at   audit.Line
	head audit.Head
	g    audit.Generation
}

// AuditEntries returns the records of the outbox from fromSeq on, in order. Each
// is checked to be canonical and to have the hash that is stored with it.
func (s *Store) AuditEntries(ctx context.Context, fromSeq int64) ([]audit.Entry, error) {
	items, err := s.queryItems(ctx, pkAudit, auditSK(fromSeq))
	if err != nil {
		return nil, err
	}
	entries := make([]audit.Entry, 0, len(items))
	for _, i := range items {
		e, err := decodeEntry(i)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// decodeEntry decodes a record of the outbox and compares it with its stored hash and its
// number. A difference is an incident, not damage: somebody wrote into the outbox by hand.
func decodeEntry(i item) (audit.Entry, error) {
	r := attr.Reader{Item: i}
	sk, hash := r.Str("sk"), r.Str("hash")
	e, err := audit.Parse(r.Bytes("record"))
	switch {
	case r.Err != nil:
		err = r.Err
	case err != nil:
	case e.Hash != hash || auditSK(e.Record.Seq) != sk:
		err = errors.New("it is not the record that was appended")
	default:
		return e, nil
	}
	return audit.Entry{}, &journal.Error{
		Kind: journal.AuditTampered, Field: pkAudit + "/" + sk, Msg: "the outbox holds a damaged record", Err: err,
		Next: journal.Next{Say: "treat it as an incident: matter ops doctor says what can be rebuilt"},
	}
}

// MarkPublished implements [journal.Outbox]. It refuses a seq past the head.
func (s *Store) MarkPublished(ctx context.Context, seq int64) error {
	update := "SET #published_seq = :seq"
	cond := "#seq >= :seq AND (attribute_not_exists(#published_seq) OR #published_seq < :seq)"
	names, vals := controltable.Expression(update+cond, values{"seq": attr.Num(seq)})
	_, err := s.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &s.table, Key: controltable.Key(pkAuditHead, noSK), UpdateExpression: aws.String(update), ConditionExpression: aws.String(cond),
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	var failed *types.ConditionalCheckFailedException
	if errors.As(err, &failed) {
		r := attr.Reader{Item: failed.Item}
		if r.Num("published_seq") >= seq {
			return nil // marked already, as far or farther
		}
		return fmt.Errorf("mark published %d: the chain ends at %d", seq, r.Num("seq"))
	}
	if err != nil {
		return wrapError("UpdateItem "+pkAuditHead, err)
	}
	return nil
}
