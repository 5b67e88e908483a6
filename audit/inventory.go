package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"time"
)

// inventory is what the bucket holds: of each record and each anchor the oldest
// version, by generation and number.
type inventory struct {
	records, anchors map[string]map[int64]ObjectVersion
}

// takeInventory lists the bucket. Objects that are neither records nor anchors, delete
// markers and second versions of a key are findings.
func (v *verifier) takeInventory(ctx context.Context) (inventory, error) {
	inv := inventory{map[string]map[int64]ObjectVersion{}, map[string]map[int64]ObjectVersion{}}
	versions, err := v.listVersions(ctx)
	if err != nil {
		return inv, err
	}
	unversioned := false
	for len(versions) > 0 {
		n := 1
		for n < len(versions) && versions[n].Key == versions[0].Key {
			n++
		}
		v.checkVersions(inv, versions[:n])
		unversioned = unversioned || versions[0].ID == ""
		versions = versions[n:]
	}
	if unversioned {
		v.report.Unchecked = append(v.report.Unchecked, "versions, delete markers and S3's times: the copy does not record them")
	}
	return inv, nil
}

// checkVersions checks the versions of one key, oldest first. The oldest version counts:
// Object Lock protects it, while anyone who can write may add another version on top.
func (v *verifier) checkVersions(inv inventory, versions []ObjectVersion) {
	key := versions[0].Key
	if isKeyCopy(key) {
		v.checkKeyCopy(versions)
		return
	}
	place, n, ok := v.findPlace(inv, key)
	if !ok {
		v.addFinding(StrayObject, key, "it is neither a record nor an anchor of chain %q", v.Chain)
		return
	}
	live := 0
	for _, o := range versions {
		if o.DeleteMarker {
			v.addFinding(DeleteMarker, key, "the key was deleted: delete marker %s%s", o.ID, describeDate(o.Modified))
			continue
		}
		if live++; live == 1 {
			place[n] = o
			continue
		}
		v.addFinding(ExtraVersion, key, "the key was written again: version %s%s", o.ID, describeDate(o.Modified))
	}
}

// keyCopy is the key of a copy of a data key's record, which the bucket keeps beside the chain:
// its id, and the epoch, the KEK and a digest of its wrapping.
var keyCopy = regexp.MustCompile(`^deks/[a-z2-7]{26}/[0-9]{12}-[A-Za-z0-9-]{1,128}-[0-9a-f]{16}\.json$`)

func isKeyCopy(key string) bool { return keyCopy.MatchString(key) }

// checkKeyCopy counts a copy of a data key's record. What it says is not part of the chain; that
// it was deleted or written again is a finding all the same.
func (v *verifier) checkKeyCopy(versions []ObjectVersion) {
	v.report.KeyCopies++
	live := 0
	for _, o := range versions {
		switch {
		case o.DeleteMarker:
			v.addFinding(DeleteMarker, o.Key, "the copy of a data key was deleted: delete marker %s%s", o.ID, describeDate(o.Modified))
		case live > 0:
			v.addFinding(ExtraVersion, o.Key, "the copy of a data key was written again: version %s%s", o.ID, describeDate(o.Modified))
		default:
			live++
		}
	}
}

func describeDate(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " of " + formatTime(t)
}

// formatTime formats a time for a finding.
func formatTime(t time.Time) string { return t.UTC().Format(timeFormat) }

// findPlace returns where in the inventory a key belongs, and its number there.
func (v *verifier) findPlace(inv inventory, key string) (map[int64]ObjectVersion, int64, bool) {
	id, n := placeIn(key)
	if n < 1 {
		return nil, 0, false
	}
	all := inv.records
	switch key {
	case recordKey(v.Chain, id, n):
	case anchorKey(v.Chain, id, n):
		all = inv.anchors
	default:
		return nil, 0, false
	}
	if all[id] == nil {
		all[id] = map[int64]ObjectVersion{}
	}
	return all[id], n, true
}

// recordLink is what the anchors and the head are compared with.
type recordLink struct {
	seq  int64
	hash string
	at   time.Time // as far as it can be believed
}

// findLink returns the link of a record that is there and can be read.
func (v *verifier) findLink(seq int64) (recordLink, bool) {
	i, ok := slices.BinarySearchFunc(v.links, seq, func(l recordLink, seq int64) int { return cmp.Compare(l.seq, seq) })
	if !ok {
		return recordLink{}, false
	}
	return v.links[i], true
}

// verifyRecords verifies the records from the first to the last. After a fault it
// continues with the record that it found, so that one fault is one finding.
func (v *verifier) verifyRecords(ctx context.Context, objects map[int64]ObjectVersion) error {
	head := Genesis(v.Chain)
	linked := v.Start == nil // head belongs to the record right before
	return v.walkObjects(ctx, objects, v.firstRecord(), MissingRecord, v.recordAt, func(seq int64, o Object, afterGap bool) {
		v.report.Records, v.report.HeadHash = seq, ""
		linked = linked && !afterGap
		key := v.recordAt(seq)
		e, at, err := readRecord(o.Bytes)
		if err != nil {
			v.addFinding(UnreadableRecord, key, "%v", err)
			linked = false
			return
		}
		stored := objects[seq].Modified
		v.checkLock(key, o, at, stored)
		switch _, err := e.Follow(v.Chain, head); {
		case e.Record.Seq != seq:
			v.addFinding(MisplacedRecord, key, "it is record %d", e.Record.Seq)
		case linked && err != nil:
			v.addFinding(UnlinkedRecord, key, "%v", err)
		}
		v.links = append(v.links, recordLink{seq, e.Hash, v.checkRecordTime(key, seq, at, stored)})
		v.gaps.Meet(e.Record)
		v.noteForgotten(e.Record)
		if b, ok := ParseBegun(e.Record); ok && !slices.ContainsFunc(v.beginnings[b.Of], func(o Begun) bool { return o.ID == b.ID }) {
			v.beginnings[b.Of] = append(v.beginnings[b.Of], b)
		}
		if v.Replay != nil && e.Record.Seq == seq {
			v.Replay(e)
		}
		v.report.HeadHash = e.Hash
		head, linked = Head{Seq: seq, Hash: e.Hash}, true
	})
}

// readRecord decodes a record and its time.
func readRecord(b []byte) (Entry, time.Time, error) {
	e, err := Parse(b)
	if err != nil {
		return e, time.Time{}, err
	}
	at, err := time.Parse(timeFormat, e.Record.Time)
	return e, at, err
}

// checkLock requires a compliance lock for the policy's retention, counted from the time
// at which S3 stored the object, or from the object's own time if that is not known.
func (v *verifier) checkLock(key string, o Object, at, stored time.Time) {
	if !stored.IsZero() {
		at = stored
	}
	switch {
	case o.Lock == nil:
		v.noLocks = true
	case o.Lock.Mode != Compliance:
		v.addFinding(ShortRetention, key, "its Object Lock has mode %q, not %s", o.Lock.Mode, Compliance)
	case o.Lock.Until.Before(at.Add(v.Retention - clockSkew)):
		v.addFinding(ShortRetention, key, "it is locked until %s, less than %s after %s",
			formatTime(o.Lock.Until), v.Retention, formatTime(at))
	}
}

// walkObjects visits the objects in order, from number next on. A gap before an object is one
// finding, of kind missing.
func (v *verifier) walkObjects(ctx context.Context, objects map[int64]ObjectVersion, next int64, missing Kind,
	key func(n int64) string, visit func(n int64, o Object, afterGap bool),
) error {
	gone := false
	return readObjects(ctx, v.bucket, objects, func(n int64, o Object, err error) error {
		if n > next {
			if missing == MissingRecord {
				v.noteGap(next, n-1)
			}
			v.addFinding(missing, key(next), "%s", describeGap(next, n-1))
			gone = true
		}
		next = n + 1
		if errors.Is(err, fs.ErrNotExist) {
			v.addFinding(missing, key(n), "it is listed and not there")
			gone = true
			return nil
		}
		if err != nil {
			return err
		}
		visit(n, o, gone)
		gone = false
		return nil
	})
}

// describeGap names the missing numbers, for a finding.
func describeGap(from, to int64) string {
	if from == to {
		return fmt.Sprintf("number %d is not there", from)
	}
	return fmt.Sprintf("numbers %d to %d are not there", from, to)
}

// readers is how many objects are read at the same time: a chain has thousands, and each
// read from S3 takes tens of milliseconds.
const readers = 16

// readObjects reads the objects, several at a time, and visits them in order.
func readObjects(ctx context.Context, b Bucket, objects map[int64]ObjectVersion,
	visit func(n int64, o Object, err error) error,
) error {
	numbers := slices.Sorted(maps.Keys(objects))
	type answer struct {
		o   Object
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var ahead []chan answer
	started := 0
	for i, n := range numbers {
		for ; started < len(numbers) && started < i+readers; started++ {
			c, o := make(chan answer, 1), objects[numbers[started]]
			ahead = append(ahead, c)
			go func() {
				obj, err := b.Read(ctx, o)
				c <- answer{obj, err}
			}()
		}
		a := <-ahead[i]
		ahead[i] = nil
		if err := visit(n, a.o, a.err); err != nil {
			return err
		}
	}
	return nil
}
