package audit

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"
)

// logSeen is what earlier anchors showed of a log.
type logSeen struct {
	index int64             // of the last entry
	roots map[uint64][]byte // of its trees, by size
}

// anchors reads the anchors from the first to the last. Only an anchor that is
// right in everything covers records.
func (v *verifier) anchors(ctx context.Context, objects map[int64]ObjectVersion) error {
	v.digests, v.logs = map[int64]string{}, map[string]*logSeen{}
	v.keysUsed, v.logsUsed = used{}, used{}
	prev := AnchorGenesis(v.Chain)
	linked := true // prev is the anchor right before
	return v.walk(ctx, objects, MissingAnchor, v.anchorAt, func(n int64, o Object, afterGap bool) {
		key := v.anchorAt(n)
		linked = linked && !afterGap
		a, at, err := readAnchor(o.Bytes)
		if err != nil {
			v.find(UnreadableAnchor, key, "%v", err)
			linked = false
			return
		}
		stored := objects[n].Modified
		v.checkLock(key, o, at, stored)
		s := a.Signed.Statement
		digest, err := s.Digest()
		if err != nil {
			v.find(UnreadableAnchor, key, "%v", err)
			return
		}
		faults := len(v.report.Findings) + v.report.More
		switch {
		case s.N != n || s.Chain != v.Chain:
			v.find(MisplacedAnchor, key, "it is anchor %d of chain %q", s.N, s.Chain)
		case linked && s.Prev != prev:
			v.find(UnlinkedAnchor, key, "it does not commit to anchor %d", n-1)
		}
		prev, linked = digest, true
		v.digests[n] = digest
		p := v.checkAnchor(key, a, at, stored)
		if len(v.report.Findings)+v.report.More == faults {
			v.accept(a, digest, at, p)
		}
	})
}

func readAnchor(b []byte) (Anchor, time.Time, error) {
	a, err := ParseAnchor(b)
	if err != nil {
		return a, time.Time{}, err
	}
	at, err := time.Parse(timeFormat, a.Signed.Statement.Time)
	return a, at, err
}

// pins are the entries of the trust list that an anchor rests on.
type pins struct {
	key PinnedKey
	log Log
}

// checkAnchor checks one anchor by itself and against the records. stored is when S3
// stored it; zero: unknown.
func (v *verifier) checkAnchor(key string, a Anchor, at, stored time.Time) (p pins) {
	s := a.Signed.Statement
	if err := a.Signed.Verify(); err != nil {
		v.find(WrongSignature, key, "%v", err)
	} else {
		v.checkAnchorTime(key, s, at, stored)
	}
	var pinned bool
	if p.key, pinned = v.Trust.pinned(a.Signed.Key, at); !pinned {
		v.find(AnchorKeyUnknown, key, "the key that signed it was no anchor key on %s", s.Time)
	}
	v.checkEnd(key, "key", validity{p.key.From, p.key.To}, stored)
	log, checkpoint, err := a.Proof.verify(a.Signed, v.Trust)
	switch {
	case errors.Is(err, ErrLogUnknown):
		v.find(LogUnknown, key, "%v", err)
	case errors.Is(err, ErrCheckpoint):
		v.find(WrongCheckpoint, key, "%v", err)
	case errors.Is(err, ErrInclusion):
		v.find(WrongInclusion, key, "%s", oneLine(err))
	case err != nil:
		v.find(WrongEntry, key, "%v", err)
	case later(at, stored).Before(log.From.Add(-clockSkew)):
		v.find(LogUnknown, key, "log %q is trusted from %s on", log.Origin, stamp(log.From))
	default:
		p.log = log
		v.checkEnd(key, "log", validity{log.From, log.To}, stored)
		if v.checkLog(key, checkpoint, a.Proof.Index) {
			v.checkConsistency(key, a, checkpoint)
		}
	}
	switch l, ok := v.record(s.Seq); {
	case v.forgotten[Head{s.Seq, s.Head}]: // of what the control table has forgotten
	case s.Seq > v.report.Records:
		v.find(MissingRecord, v.recordAt(s.Seq), "anchor %d covers record %d, the bucket ends at record %d", s.N, s.Seq, v.report.Records)
	case s.Seq < v.report.Anchored:
		v.find(UnlinkedAnchor, key, "it covers record %d, an earlier one covers record %d", s.Seq, v.report.Anchored)
	case ok && l.hash != s.Head:
		v.find(AnchoredOther, key, "record %d has hash %s, the anchor says %s", s.Seq, l.hash, s.Head)
	}
	return p
}

// oneLine is the text of an error that has several lines.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// later is the later of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// checkLog compares what one anchor shows of its log with what earlier ones showed. It
// reports whether nothing contradicts them.
func (v *verifier) checkLog(key string, c Checkpoint, index int64) bool {
	seen := v.logs[c.Origin]
	if seen == nil {
		seen = &logSeen{index: -1, roots: map[uint64][]byte{}}
		v.logs[c.Origin] = seen
	}
	sound := true
	if index <= seen.index {
		v.find(ReusedEntry, key, "its log entry is number %d, that of an earlier anchor number %d", index, seen.index)
		sound = false
	}
	if root, ok := seen.roots[c.Size]; ok && !bytes.Equal(root, c.Root) {
		v.find(SplitLog, key, "log %q signed two trees of size %d", c.Origin, c.Size)
		sound = false
	}
	seen.index, seen.roots[c.Size] = max(index, seen.index), c.Root
	return sound
}

// accept takes what a valid anchor proves.
func (v *verifier) accept(a Anchor, digest string, at time.Time, p pins) {
	s := a.Signed.Statement
	v.keysUsed.add(s.N, validity{p.key.From, p.key.To})
	v.logsUsed.add(s.N, validity{p.log.From, p.log.To})
	v.report.Anchors++
	v.covered = append(v.covered, s.Seq)
	if !v.forgotten[Head{s.Seq, s.Head}] {
		v.report.Anchored, v.report.AnchorAt = s.Seq, at
	}
	v.report.Last = &Known{N: s.N, Digest: digest}
	v.report.LogIndex = a.Proof.Index
	v.report.Log = a.Proof.Origin()
}
