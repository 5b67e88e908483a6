package anchor

import (
	"context"
	"errors"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// proveConsistency gets from the log the proof that the tree of checkpoint c holds that
// of the last anchor's checkpoint, and verifies it. The proof is empty for the first
// anchor of a chain and where the last anchor is in another log: nothing can be proven
// between two logs. A log that cannot prove it has shown a fork; that is no outage, and
// the anchor stays open.
func (a *Anchor) proveConsistency(ctx context.Context, log audit.Log, st State, c audit.Checkpoint) ([][]byte, error) {
	hashes := [][]byte{}
	if st.Last.N == 0 || st.Last.Log != c.Origin {
		return hashes, nil
	}
	earlier, err := a.loadLast(ctx, st)
	if err != nil {
		return nil, err
	}
	if c.Size > earlier.Size {
		hashes, err = a.Log.Consistency(ctx, log, earlier, c)
	}
	if err == nil {
		err = c.VerifyConsistency(earlier, hashes)
	}
	if errors.Is(err, audit.ErrConsistency) {
		return nil, &journal.Error{
			Kind: journal.Unverified, Field: log.URL, Msg: "the transparency log does not show the tree that holds the last anchor: a fork", Err: err,
			Next: journal.Next{Do: journal.ReplaceLog},
		}
	}
	if err != nil {
		return nil, journal.WrapUnavailable("transparency log "+log.URL, err)
	}
	return hashes, nil
}

// isSound reports whether an anchor of the intent verifies that another call has stored,
// its consistency proof too. An error leaves it open.
func (a *Anchor) isSound(ctx context.Context, stored audit.Anchor, st State) (bool, error) {
	c, err := stored.Proof.Verify(stored.Signed, a.Trust)
	switch {
	case err != nil:
		return false, nil //nolint:nilerr // that is the answer
	case stored.V == 1:
		return true, nil
	case stored.Proof.Consistency == nil:
		return false, nil
	case st.Last.N == 0 || st.Last.Log != c.Origin:
		return len(stored.Proof.Consistency) == 0, nil
	}
	earlier, err := a.loadLast(ctx, st)
	if err != nil {
		return false, err
	}
	return c.VerifyConsistency(earlier, stored.Proof.Consistency) == nil, nil
}

// loadLast returns the checkpoint of the last anchor.
func (a *Anchor) loadLast(ctx context.Context, st State) (audit.Checkpoint, error) {
	return a.loadAnchor(ctx, st.Places.AnchorKeyIn(st.Intent.Statement.Chain, st.Last.N), st.Last.Digest)
}

// loadAnchor reads an anchor, whose statement has the given digest, from the bucket and
// returns its checkpoint, verified.
func (a *Anchor) loadAnchor(ctx context.Context, key, digest string) (audit.Checkpoint, error) {
	b, err := a.Objects.GetAnchor(ctx, key)
	if err != nil {
		return audit.Checkpoint{}, journal.WrapUnavailable("audit bucket", err)
	}
	c, err := a.verifyAnchor(b, digest)
	if err != nil {
		return c, &journal.Error{
			Kind: journal.AuditTampered, Field: key, Msg: "the last anchor does not verify", Err: err,
			Next: journal.Next{Do: journal.VerifyAudit},
		}
	}
	return c, nil
}

func (a *Anchor) verifyAnchor(b []byte, digest string) (audit.Checkpoint, error) {
	stored, err := audit.ParseAnchor(b)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	if err := stored.Signed.Verify(); err != nil {
		return audit.Checkpoint{}, err
	}
	is, err := stored.Signed.Statement.Digest()
	if err == nil && is != digest {
		err = errors.New("the control table remembers another statement")
	}
	if err != nil {
		return audit.Checkpoint{}, err
	}
	return stored.Proof.Verify(stored.Signed, a.Trust)
}
