package rotation

import (
	"context"
	"errors"

	"github.com/matter-ops/kms-rotation/audit"
)

// proveConsistency gets from the log the proof that the tree of checkpoint c holds that
// of the last anchor's checkpoint, and verifies it. The proof is empty for the first
// anchor of a chain and where the last anchor is in another log: nothing can be proven
// between two logs. A log that cannot prove it has shown a fork; that is no outage, and
// the anchor stays open.
func (s *Steps) proveConsistency(ctx context.Context, log audit.Log, st AnchorState, c audit.Checkpoint) ([][]byte, error) {
	hashes := [][]byte{}
	if st.Last.N == 0 || st.Last.Log != c.Origin {
		return hashes, nil
	}
	earlier, err := s.loadLast(ctx, st)
	if err != nil {
		return nil, err
	}
	if c.Size > earlier.Size {
		hashes, err = s.Anchoring.Log.Consistency(ctx, log, earlier, c)
	}
	if err == nil {
		err = c.VerifyConsistency(earlier, hashes)
	}
	if errors.Is(err, audit.ErrConsistency) {
		return nil, &Error{
			Kind: Unverified, Field: log.URL, Msg: "the transparency log does not show the tree that holds the last anchor: a fork", Err: err,
			Next: "treat it as an incident of the log: keep both checkpoints, ask who runs it, and name another log in the stack's parameter TransparencyLogs; the anchor stays open",
		}
	}
	if err != nil {
		return nil, unavailable("transparency log "+log.URL, err)
	}
	return hashes, nil
}

// isSound reports whether an anchor of the intent verifies that another call has stored,
// its consistency proof too. An error leaves it open.
func (s *Steps) isSound(ctx context.Context, a audit.Anchor, st AnchorState) (bool, error) {
	c, err := a.Proof.Verify(a.Signed, s.Anchoring.Trust)
	switch {
	case err != nil:
		return false, nil //nolint:nilerr // that is the answer
	case a.V == 1:
		return true, nil
	case a.Proof.Consistency == nil:
		return false, nil
	case st.Last.N == 0 || st.Last.Log != c.Origin:
		return len(a.Proof.Consistency) == 0, nil
	}
	earlier, err := s.loadLast(ctx, st)
	if err != nil {
		return false, err
	}
	return c.VerifyConsistency(earlier, a.Proof.Consistency) == nil, nil
}

// loadLast returns the checkpoint of the last anchor.
func (s *Steps) loadLast(ctx context.Context, st AnchorState) (audit.Checkpoint, error) {
	return s.loadAnchor(ctx, st.Places.AnchorKeyIn(st.Intent.Statement.Chain, st.Last.N), st.Last.Digest)
}

// loadAnchor reads an anchor, whose statement has the given digest, from the bucket and
// returns its checkpoint, verified.
func (s *Steps) loadAnchor(ctx context.Context, key, digest string) (audit.Checkpoint, error) {
	b, err := s.Anchoring.Vault.GetAnchor(ctx, key)
	if err != nil {
		return audit.Checkpoint{}, unavailable("audit bucket", err)
	}
	c, err := s.verifyAnchor(b, digest)
	if err != nil {
		return c, &Error{
			Kind: AuditTampered, Field: key, Msg: "the last anchor does not verify", Err: err,
			Next: "treat it as an incident: matter ops audit verify",
		}
	}
	return c, nil
}

func (s *Steps) verifyAnchor(b []byte, digest string) (audit.Checkpoint, error) {
	a, err := audit.ParseAnchor(b)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	if err := a.Signed.Verify(); err != nil {
		return audit.Checkpoint{}, err
	}
	is, err := a.Signed.Statement.Digest()
	if err == nil && is != digest {
		err = errors.New("the control table remembers another statement")
	}
	if err != nil {
		return audit.Checkpoint{}, err
	}
	return a.Proof.Verify(a.Signed, s.Anchoring.Trust)
}
