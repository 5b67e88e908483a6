package audit

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"
)

// logSeen is what earlier anchors proved about a log.
type logSeen struct {
	index int64             // of the last entry
	roots map[uint64][]byte // of its trees, by size
}

// verifyAnchors verifies the anchors from the first to the last. Only an anchor without any
// finding covers records.
func (v *verifier) verifyAnchors(ctx context.Context, objects map[int64]ObjectVersion) error {
	v.digests, v.logs = map[int64]string{}, map[string]*logSeen{}
	v.keysUsed, v.logsUsed = usedValidity{}, usedValidity{}
	prev := AnchorGenesis(v.Chain)
	linked := v.Start == nil // prev is the anchor right before
	return v.walkObjects(ctx, objects, v.firstAnchor(), MissingAnchor, v.anchorAt, func(n int64, o Object, afterGap bool) {
		key := v.anchorAt(n)
		linked = linked && !afterGap
		a, at, err := readAnchor(o.Bytes)
		if err != nil {
			v.addFinding(UnreadableAnchor, key, "%v", err)
			linked = false
			return
		}
		stored := objects[n].Modified
		v.checkLock(key, o, at, stored)
		s := a.Signed.Statement
		digest, err := s.Digest()
		if err != nil {
			v.addFinding(UnreadableAnchor, key, "%v", err)
			return
		}
		faults := len(v.report.Findings) + v.report.More
		switch {
		case s.N != n || s.Chain != v.Chain:
			v.addFinding(MisplacedAnchor, key, "it is anchor %d of chain %q", s.N, s.Chain)
		case linked && s.Prev != prev:
			v.addFinding(UnlinkedAnchor, key, "it does not commit to anchor %d", n-1)
		}
		prev, linked = digest, true
		v.digests[n] = digest
		p := v.checkAnchor(key, a, at, stored)
		if len(v.report.Findings)+v.report.More == faults {
			v.acceptAnchor(a, digest, at, p)
		}
	})
}

// readAnchor decodes an anchor and its time.
func readAnchor(b []byte) (Anchor, time.Time, error) {
	a, err := ParseAnchor(b)
	if err != nil {
		return a, time.Time{}, err
	}
	at, err := time.Parse(timeFormat, a.Signed.Statement.Time)
	return a, at, err
}

// anchorTrust are the entries of the trust list that an anchor depends on.
type anchorTrust struct {
	key PinnedKey
	log Log
}

// checkAnchor checks one anchor by itself and against the records. stored is the time at
// which S3 stored it; zero: unknown.
func (v *verifier) checkAnchor(key string, a Anchor, at, stored time.Time) (p anchorTrust) {
	s := a.Signed.Statement
	if err := a.Signed.Verify(); err != nil {
		v.addFinding(WrongSignature, key, "%v", err)
	} else {
		v.checkAnchorTime(key, s, at, stored)
	}
	var pinned bool
	if p.key, pinned = v.Trust.findPinnedKey(a.Signed.Key, at); !pinned {
		v.addFinding(AnchorKeyUnknown, key, "the key that signed it was not an anchor key on %s", s.Time)
	}
	v.checkValidityEnd(key, "key", validity{p.key.From, p.key.To}, stored)
	log, checkpoint, err := a.Proof.verifyInLog(a.Signed, v.Trust)
	switch {
	case errors.Is(err, ErrLogUnknown):
		v.addFinding(LogUnknown, key, "%v", err)
	case errors.Is(err, ErrCheckpoint):
		v.addFinding(WrongCheckpoint, key, "%v", err)
	case errors.Is(err, ErrInclusion):
		v.addFinding(WrongInclusion, key, "%s", joinLines(err))
	case err != nil:
		v.addFinding(WrongEntry, key, "%v", err)
	case laterTime(at, stored).Before(log.From.Add(-clockSkew)):
		v.addFinding(LogUnknown, key, "log %q is trusted from %s on", log.Origin, formatTime(log.From))
	default:
		p.log = log
		v.checkValidityEnd(key, "log", validity{log.From, log.To}, stored)
		if v.checkLog(key, checkpoint, a.Proof.Index) {
			v.checkConsistency(key, a, checkpoint)
		}
	}
	switch l, ok := v.findLink(s.Seq); {
	case v.forgotten[Head{s.Seq, s.Head}]: // it covers a forgotten record
	case s.Seq > v.report.Records:
		v.addFinding(MissingRecord, v.recordAt(s.Seq), "anchor %d covers record %d, the bucket ends at record %d", s.N, s.Seq, v.report.Records)
	case s.Seq < v.report.Anchored:
		v.addFinding(UnlinkedAnchor, key, "it covers record %d, an earlier one covers record %d", s.Seq, v.report.Anchored)
	case ok && l.hash != s.Head:
		v.addFinding(AnchoredOther, key, "record %d has hash %s, the anchor says %s", s.Seq, l.hash, s.Head)
	}
	return p
}

// joinLines returns the text of an error on one line.
func joinLines(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// laterTime returns the later of two times.
func laterTime(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// checkLog compares what an anchor proves about its log with what earlier anchors proved.
// It reports whether they agree.
func (v *verifier) checkLog(key string, c Checkpoint, index int64) bool {
	seen := v.logs[c.Origin]
	if seen == nil {
		seen = &logSeen{index: -1, roots: map[uint64][]byte{}}
		v.logs[c.Origin] = seen
	}
	sound := true
	if index <= seen.index {
		v.addFinding(ReusedEntry, key, "its log entry is number %d, that of an earlier anchor number %d", index, seen.index)
		sound = false
	}
	if root, ok := seen.roots[c.Size]; ok && !bytes.Equal(root, c.Root) {
		v.addFinding(SplitLog, key, "log %q signed two trees of size %d", c.Origin, c.Size)
		sound = false
	}
	seen.index, seen.roots[c.Size] = max(index, seen.index), c.Root
	return sound
}

// acceptAnchor adds what a valid anchor proves to the report.
func (v *verifier) acceptAnchor(a Anchor, digest string, at time.Time, p anchorTrust) {
	s := a.Signed.Statement
	v.keysUsed.noteFirst(s.N, validity{p.key.From, p.key.To})
	v.logsUsed.noteFirst(s.N, validity{p.log.From, p.log.To})
	v.report.Anchors++
	v.covered = append(v.covered, s.Seq)
	if !v.forgotten[Head{s.Seq, s.Head}] {
		v.report.Anchored, v.report.AnchorAt = s.Seq, at
		v.report.Next.Anchor, v.report.Next.Seq = Known{N: s.N, Digest: digest}, s.Seq
	}
	if v.Start != nil && s.N == v.Start.Anchor.N {
		v.startTime = at
	}
	v.report.Last = &Known{N: s.N, Digest: digest}
	v.report.LogIndex = a.Proof.Index
	v.report.Log = a.Proof.Origin()
}
