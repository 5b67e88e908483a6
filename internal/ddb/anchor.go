package ddb

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// pkAnchor is the item of the anchor state.
const pkAnchor = "ANCHOR"

var (
	_ rotation.AnchorStore = (*Store)(nil)
	_ rotation.Ledger      = (*Store)(nil)
)

// LoadAnchor implements [rotation.AnchorStore].
func (s *Store) LoadAnchor(ctx context.Context) (rotation.AnchorState, error) {
	i, err := getItem(ctx, s.client, s.table, pkAnchor, noSK)
	if err != nil {
		return rotation.AnchorState{}, err
	}
	return decodeAnchor(i)
}

// SaveAnchor implements [rotation.AnchorStore]. A save whose answer the SDK lost
// and repeated is a [kek.ErrConflict]: what is then loaded is this save or a later
// one.
func (s *Store) SaveAnchor(ctx context.Context, st rotation.AnchorState) error {
	saved, err := s.putAtRev(ctx, encodeAnchor(st), st.Rev)
	if err == nil && !saved {
		err = fmt.Errorf("save the anchor state at revision %d: %w", st.Rev, kek.ErrConflict)
	}
	return err
}

// encodeAnchor is the item of st's next revision.
func encodeAnchor(st rotation.AnchorState) item {
	l := st.Last
	i := attr.Set(controltable.Key(pkAnchor, noSK), "rev", st.Rev+1, "n", l.N, "digest", l.Digest, "seq", l.Head.Seq, "hash", l.Head.Hash,
		"log", l.Log, "log_index", l.Index, "anchored_at", l.At, "generations", string(st.Places))
	if st.Intent != nil {
		i["intent"] = attr.Str(encodeJSON(st.Intent))
	}
	return i
}

func decodeAnchor(i item) (rotation.AnchorState, error) {
	r := attr.Reader{Item: i}
	st := rotation.AnchorState{Rev: r.Num("rev"), Last: rotation.Anchored{
		N: r.Num("n"), Digest: r.Str("digest"), Head: audit.Head{Seq: r.Num("seq"), Hash: r.Str("hash")},
		Log: r.Str("log"), Index: r.Num("log_index"), At: r.Time("anchored_at"),
	}}
	places, err := audit.ParseGenerations(r.Str("generations"))
	if err != nil {
		return st, damaged(pkAnchor, err)
	}
	st.Places = places
	if intent := r.Str("intent"); intent != "" {
		st.Intent = new(audit.Signed)
		if err := json.Unmarshal([]byte(intent), st.Intent); err != nil {
			st.Intent = nil
			return st, damaged(pkAnchor, fmt.Errorf("intent: %w", err))
		}
	}
	return st, damagedIf(r.Err, pkAnchor)
}
