package audit

import (
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// ErrConsistency reports two checkpoints of a log that do not belong to one growing tree:
// the log has forked.
var ErrConsistency = errors.New("the log's checkpoints are not of one tree")

// VerifyConsistency checks that the tree of c contains the tree of an earlier checkpoint
// of the same log unchanged. hashes is the consistency proof between the two (RFC 6962,
// section 2.1.2). Its error is [ErrConsistency].
func (c Checkpoint) VerifyConsistency(earlier Checkpoint, hashes [][]byte) error {
	if c.Origin != earlier.Origin {
		return fmt.Errorf("%w: they are of %q and %q", ErrConsistency, earlier.Origin, c.Origin)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, earlier.Size, c.Size, hashes, earlier.Root, c.Root); err != nil {
		return fmt.Errorf("%w: sizes %d and %d: %w", ErrConsistency, earlier.Size, c.Size, err)
	}
	return nil
}

// shownCheckpoint is the checkpoint of an anchor that verifies; n is 0 for none.
type shownCheckpoint struct {
	n          int64
	checkpoint Checkpoint
}

// unprovenRun is a run of anchors between whose checkpoints no consistency was checked.
type unprovenRun struct {
	from, to int64
	why      string
}

// checkConsistency checks that the checkpoint c of an anchor, which verifies, extends the
// checkpoint of the anchor before.
func (v *verifier) checkConsistency(key string, a Anchor, c Checkpoint) {
	n := a.Signed.Statement.N
	before := v.shown
	hashes := a.Proof.Consistency
	v.mustProve = v.mustProve || a.V >= AnchorVersion
	v.shown = shownCheckpoint{n, c}
	alone := before.n == n-1 && before.checkpoint.Origin != c.Origin // also for anchor 1
	switch {
	case hashes == nil && v.mustProve:
		v.addFinding(MissingConsistency, key, "it holds no consistency proof")
		v.shown = shownCheckpoint{}
	case alone && len(hashes) > 0:
		v.addFinding(WrongConsistency, key, "it is the first anchor in a row in log %q, and holds a consistency proof", c.Origin)
		v.shown = shownCheckpoint{}
	case n == v.firstAnchor():
	case before.n != n-1:
		v.noteUnproven(n, fmt.Sprintf("the checkpoint of anchor %d does not verify", n-1))
	case alone:
		v.noteUnproven(n, fmt.Sprintf("they are in two logs, %q and %q", before.checkpoint.Origin, c.Origin))
	case hashes == nil:
		v.noteUnproven(n, "they hold no proof, which anchors did not before version 2")
	default:
		if err := c.VerifyConsistency(before.checkpoint, hashes); err != nil {
			v.addFinding(WrongConsistency, key, "%s", joinLines(err))
			v.shown = shownCheckpoint{}
		}
	}
}

// noteUnproven notes that nothing was checked between the checkpoints of anchors n-1 and
// n. Successive pairs with the same reason are joined.
func (v *verifier) noteUnproven(n int64, why string) {
	if last := len(v.unproven) - 1; last >= 0 && v.unproven[last].why == why {
		v.unproven[last].to = n
		return
	}
	v.unproven = append(v.unproven, unprovenRun{n - 1, n, why})
}

// reportUnproven adds to the report between which anchors no consistency was checked.
func (v *verifier) reportUnproven() {
	for _, u := range v.unproven {
		between := "and"
		if u.to-u.from > 1 {
			between = "to"
		}
		v.report.Unchecked = append(v.report.Unchecked,
			fmt.Sprintf("consistency between the checkpoints of anchors %d %s %d: %s", u.from, between, u.to, u.why))
	}
}
