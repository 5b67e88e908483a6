package rotation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// roster holds the KEKs that a rotation's rows may name.
type roster struct {
	rotation kek.Rotation
	keks     map[kek.ID]kek.KEK
	whole    bool // keks has the whole registry, not only what the rotation names
}

// unaccountedItem is the error that an item is not a row which the rotation can move.
type unaccountedItem struct {
	kind source.Defect
	msg  string
}

func (e *unaccountedItem) Error() string { return e.msg }

// checkRow returns an error if the row is unaccounted: it has a defect, or names a KEK
// that is neither the new one nor one that the rotation leaves.
func (t roster) checkRow(row source.Row) error {
	if row.Defect != "" {
		return &unaccountedItem{row.Kind, row.Defect}
	}
	if row.DEKID != "" { // its record says which KEK
		return nil
	}
	k, ok := t.keks[row.KEK]
	switch {
	case !ok && t.whole:
		return &unaccountedItem{source.UnknownKEK, fmt.Sprintf("it is under KEK %q, which the registry does not know", row.KEK)}
	case !ok:
		return &unaccountedItem{source.UnknownKEK, fmt.Sprintf("it is under KEK %q, which this rotation does not move", row.KEK)}
	case row.KeyARN != "" && row.KeyARN != k.ARN:
		return &unaccountedItem{source.UnknownKEK, fmt.Sprintf("it is under key %s, but the registry's KEK of that id is %s", row.KeyARN, k.ARN)}
	case row.KEK == t.rotation.NewKEK:
		return nil
	}
	for _, old := range t.rotation.Olds {
		if row.KEK == old {
			return nil
		}
	}
	return &unaccountedItem{source.RetiredKEK, fmt.Sprintf("it is under KEK %q, which is %s and which this rotation does not move", row.KEK, k.State)}
}

// rosterOf returns the roster of a rotation, by the registry that was just read.
func rosterOf(v kek.View, r kek.Rotation) roster {
	return roster{rotation: r, keks: v.KEKs, whole: v.Registry > 0}
}

// proofSample is how many distinct data keys of a segment a worker unwraps if the deployment
// does not ask for all of them.
const proofSample = 20

// prover shows that rows are under the KEK that they name: a label proves nothing.
// It unwraps each distinct data key once in a process and pass: all of them if deep, else the
// first [proofSample] that it meets.
type prover struct {
	steps  *Steps
	source string
	scope  string  // what a proof is valid for: rows are proved again by another pass, and by one that begins again
	to     kek.ID  // what the memory is asked for
	memory *Memory // of a deep proof; nil: a sample

	mu   sync.Mutex
	seen map[rewrapKey]bool // of a sample
}

// newProver returns the prover of a pass over a source. Every conclusion and every new start of
// a pass raises the rotation's revision, so what was proved before does not count after it.
func (s *Steps) newProver(r kek.Rotation, source string) *prover {
	p := &prover{steps: s, source: source, scope: fmt.Sprintf("%s %d", r.ID, r.Rev), to: r.NewKEK, seen: map[rewrapKey]bool{}}
	if r.Settings.Deep {
		p.memory = s.sharedMemory()
	}
	return p
}

// proveKey unwraps the row's data key under the row's KEK, unless that was done before. It
// reports whether this row is the one for which it was done, so that each data key counts once
// in each process, also if the row is read again because its page was not saved.
// [journal.ErrUnwrap] means that the row is not under the KEK that it names.
func (p *prover) proveKey(ctx context.Context, row source.Row) (bool, error) {
	if p.memory == nil {
		return p.proveSample(ctx, row)
	}
	owner := sha256.Sum256([]byte(p.source + "\x00" + row.ID))
	by, err := p.memory.recallResult(ctx, p.to, resultKey("proved "+p.scope, row), func() ([]byte, error) {
		return owner[:ownerBytes], p.unwrapKey(ctx, row)
	})
	return err == nil && bytes.Equal(by, owner[:ownerBytes]), err
}

// ownerBytes is the length of what the memory keeps of a proof: a part of the hash of the row.
const ownerBytes = 16

// proveSample is proveKey of a prover that is not deep.
func (p *prover) proveSample(ctx context.Context, row source.Row) (bool, error) {
	key := resultKey("proved", row)
	p.mu.Lock()
	done := p.seen[key] || len(p.seen) >= proofSample
	if !done {
		p.seen[key] = true
	}
	p.mu.Unlock()
	if done {
		return false, nil
	}
	err := p.unwrapKey(ctx, row)
	if err != nil { // the next row with this data key tries again
		p.mu.Lock()
		delete(p.seen, key)
		p.mu.Unlock()
	}
	return err == nil, err
}

// unwrapKey asks KMS to rewrap the row's data key under the same KEK (ReEncrypt) and discards
// the answer. KMS must unwrap the key for that, and the data key never leaves KMS. So a function
// that only proves needs no permission to decrypt rows.
func (p *prover) unwrapKey(ctx context.Context, row source.Row) error {
	_, err := p.steps.Keys.Wrapper.ReEncrypt(ctx, row.KEK, row.KEK, row.WrappedDEK, row.Context)
	if errors.Is(err, journal.ErrUnwrap) {
		return fmt.Errorf("it names KEK %s but does not unwrap under it: %w", row.KEK, err)
	}
	if err != nil {
		return p.steps.Keys.ExplainError(row.KEK, err)
	}
	return nil
}
