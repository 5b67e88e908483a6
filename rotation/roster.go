package rotation

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/matter-ops/kms-rotation/kek"
)

// roster knows the KEKs that a rotation's rows may name.
type roster struct {
	rotation kek.Rotation
	keks     map[kek.ID]kek.KEK
	whole    bool // keks has the whole registry, not only what the rotation names
}

// unaccounted is why an item is not a row that the rotation can move.
type unaccounted struct {
	kind Defect
	msg  string
}

func (e *unaccounted) Error() string { return e.msg }

// judge returns an error if the row is unaccounted: it has a defect, or names a KEK
// that is neither the new one nor one that the rotation leaves.
func (t roster) judge(row Row) error {
	if row.Defect != "" {
		return &unaccounted{row.Kind, row.Defect}
	}
	k, ok := t.keks[row.KEK]
	switch {
	case !ok && t.whole:
		return &unaccounted{UnknownKEK, fmt.Sprintf("it is under KEK %q, which the registry does not know", row.KEK)}
	case !ok:
		return &unaccounted{UnknownKEK, fmt.Sprintf("it is under KEK %q, which this rotation does not move", row.KEK)}
	case row.KeyARN != "" && row.KeyARN != k.ARN:
		return &unaccounted{UnknownKEK, fmt.Sprintf("it is under key %s, but the registry's KEK of that id is %s", row.KeyARN, k.ARN)}
	case row.KEK == t.rotation.NewKEK:
		return nil
	}
	for _, old := range t.rotation.Olds {
		if row.KEK == old {
			return nil
		}
	}
	return &unaccounted{RetiredKEK, fmt.Sprintf("it is under KEK %q, which is %s and which this rotation does not move", row.KEK, k.State)}
}

// rosterOf is the roster of a rotation as the registry, just read, has it.
func rosterOf(v kek.View, r kek.Rotation) roster {
	return roster{rotation: r, keks: v.KEKs, whole: v.Registry > 0}
}

// proofSample is how many distinct data keys of a segment a worker unwraps where the
// deployment does not ask for all of them.
const proofSample = 20

// prover shows that rows which name the new KEK are under it: a label is no proof. It
// unwraps each distinct data key once, all of them if deep, else the first
// [proofSample] that it meets.
type prover struct {
	steps *Steps
	to    kek.ID
	deep  bool

	mu   sync.Mutex
	seen map[[32]byte]bool
}

func (s *Steps) newProver(r kek.Rotation) *prover {
	return &prover{steps: s, to: r.NewKEK, deep: r.Settings.Deep, seen: map[[32]byte]bool{}}
}

// maxProofs bounds the memory of a prover; a full one is emptied and unwraps some data
// keys twice.
const maxProofs = 1 << 18

// prove unwraps the row's data key under the new KEK unless that was done. It reports
// whether it did. [ErrUnwrap]: the row is not under the KEK that it names.
//
// It has KMS rewrap the data key under the same KEK and throws the answer away: KMS must
// unwrap it for that, and the data key never leaves KMS. So a function that only proves
// needs no permission to decrypt rows.
func (p *prover) prove(ctx context.Context, row Row) (bool, error) {
	key := dedupeKey(row)
	p.mu.Lock()
	done := p.seen[key] || !p.deep && len(p.seen) >= proofSample
	if !done {
		if len(p.seen) >= maxProofs {
			clear(p.seen)
		}
		p.seen[key] = true
	}
	p.mu.Unlock()
	if done {
		return false, nil
	}
	_, err := p.steps.KMS.ReEncrypt(ctx, p.to, p.to, row.WrappedDEK, row.Context)
	if err != nil { // the next row with this data key tries again
		p.mu.Lock()
		delete(p.seen, key)
		p.mu.Unlock()
	}
	if errors.Is(err, ErrUnwrap) {
		return false, fmt.Errorf("it names KEK %s but does not unwrap under it: %w", p.to, err)
	}
	if err != nil {
		return false, p.steps.keyError(p.to, err)
	}
	return true, nil
}
