package ddb

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// pkAnchor is the item of the anchor state, see [anchor.State]:
//
//	rev          N  revision; every save is conditional on it
//	n            N  number of the last complete anchor, from 1
//	digest       S  hash of its statement
//	seq, hash       the record that it covers the chain up to
//	log          S  the transparency log that has it
//	log_index    N  its index in that log
//	anchored_at  S  when
//	generations  S  where the anchors' object keys begin again, "number=id,number=id"
//	intent       S  JSON of a signed statement that may already be in the log; absent if none is open
const pkAnchor = "ANCHOR"

var (
	_ anchor.Store     = (*Store)(nil)
	_ journal.Recorder = (*Store)(nil)
)

// LoadAnchor implements [anchor.Store].
func (s *Store) LoadAnchor(ctx context.Context) (anchor.State, error) {
	i, err := getItem(ctx, s.client, s.table, pkAnchor, noSK)
	if err != nil {
		return anchor.State{}, err
	}
	return decodeAnchor(i)
}

// SaveAnchor implements [anchor.Store]. If the answer to a save is lost, the SDK repeats
// the save, which fails its own condition: the caller gets [kek.ErrConflict], loads the
// state again and finds this save or a later one.
func (s *Store) SaveAnchor(ctx context.Context, st anchor.State) error {
	saved, err := s.putAtRevision(ctx, encodeAnchor(st), st.Rev)
	if err == nil && !saved {
		err = fmt.Errorf("save the anchor state at revision %d: %w", st.Rev, kek.ErrConflict)
	}
	return err
}

// encodeAnchor returns the item of st's next revision.
func encodeAnchor(st anchor.State) item {
	l := st.Last
	i := attr.Set(controltable.Key(pkAnchor, noSK), "rev", st.Rev+1, "n", l.N, "digest", l.Digest, "seq", l.Head.Seq, "hash", l.Head.Hash,
		"log", l.Log, "log_index", l.Index, "anchored_at", l.At, "generations", string(st.Places))
	if st.Intent != nil {
		i["intent"] = attr.Str(encodeJSON(st.Intent))
	}
	return i
}

func decodeAnchor(i item) (anchor.State, error) {
	r := attr.Reader{Item: i}
	st := anchor.State{Rev: r.Num("rev"), Last: anchor.Anchored{
		N: r.Num("n"), Digest: r.Str("digest"), Head: audit.Head{Seq: r.Num("seq"), Hash: r.Str("hash")},
		Log: r.Str("log"), Index: r.Num("log_index"), At: r.Time("anchored_at"),
	}}
	places, err := audit.ParseGenerations(r.Str("generations"))
	if err != nil {
		return st, errDamaged(pkAnchor, err)
	}
	st.Places = places
	if intent := r.Str("intent"); intent != "" {
		st.Intent = new(audit.Signed)
		if err := json.Unmarshal([]byte(intent), st.Intent); err != nil {
			st.Intent = nil
			return st, errDamaged(pkAnchor, fmt.Errorf("intent: %w", err))
		}
	}
	return st, damagedIf(r.Err, pkAnchor)
}
