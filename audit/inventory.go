package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"
)

// inventory is what the bucket holds: of each record and each anchor the oldest
// version, by generation and number.
type inventory struct {
	records, anchors map[string]map[int64]ObjectVersion
}

// takeInventory lists the bucket and finds whatever is there that should not be.
func (v *verifier) takeInventory(ctx context.Context) (inventory, error) {
	inv := inventory{map[string]map[int64]ObjectVersion{}, map[string]map[int64]ObjectVersion{}}
	versions, err := v.bucket.Versions(ctx)
	if err != nil {
		return inv, err
	}
	unversioned := false
	for len(versions) > 0 {
		n := 1
		for n < len(versions) && versions[n].Key == versions[0].Key {
			n++
		}
		v.oneKey(inv, versions[:n])
		unversioned = unversioned || versions[0].ID == ""
		versions = versions[n:]
	}
	if unversioned {
		v.report.Unchecked = append(v.report.Unchecked, "versions, delete markers and S3's times: the copy does not record them")
	}
	return inv, nil
}

// oneKey looks at the versions of one key, oldest first.
func (v *verifier) oneKey(inv inventory, versions []ObjectVersion) {
	key := versions[0].Key
	place, n, ok := v.place(inv, key)
	if !ok {
		v.find(StrayObject, key, "it is neither a record nor an anchor of chain %q", v.Chain)
		return
	}
	live := 0
	for _, o := range versions {
		if o.DeleteMarker {
			v.find(DeleteMarker, key, "the key was deleted: delete marker %s%s", o.ID, on(o.Modified))
			continue
		}
		if live++; live == 1 {
			place[n] = o
			continue
		}
		v.find(ExtraVersion, key, "the key was written again: version %s%s", o.ID, on(o.Modified))
	}
}

func on(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " of " + stamp(t)
}

// stamp is a time in a finding.
func stamp(t time.Time) string { return t.UTC().Format(timeFormat) }

// place is where an object belongs and its number there.
func (v *verifier) place(inv inventory, key string) (map[int64]ObjectVersion, int64, bool) {
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

// link is a record as the anchors and the head see it.
type link struct {
	seq  int64
	hash string
	at   time.Time // as far as it can be believed
}

// record returns the link of a record that is there and can be read.
func (v *verifier) record(seq int64) (link, bool) {
	i, ok := slices.BinarySearchFunc(v.links, seq, func(l link, seq int64) int { return cmp.Compare(l.seq, seq) })
	if !ok {
		return link{}, false
	}
	return v.links[i], true
}

// records reads the chain from its first record to its last. After a fault it goes
// on from what it met, so that one fault is one finding.
func (v *verifier) records(ctx context.Context, objects map[int64]ObjectVersion) error {
	head := Genesis(v.Chain)
	linked := true // head is the record right before
	return v.walk(ctx, objects, MissingRecord, v.recordAt, func(seq int64, o Object, afterGap bool) {
		v.report.Records, v.report.HeadHash = seq, ""
		linked = linked && !afterGap
		key := v.recordAt(seq)
		e, at, err := readRecord(o.Bytes)
		if err != nil {
			v.find(UnreadableRecord, key, "%v", err)
			linked = false
			return
		}
		stored := objects[seq].Modified
		v.checkLock(key, o, at, stored)
		switch _, err := e.Follow(v.Chain, head); {
		case e.Record.Seq != seq:
			v.find(MisplacedRecord, key, "it is record %d", e.Record.Seq)
		case linked && err != nil:
			v.find(UnlinkedRecord, key, "%v", err)
		}
		v.links = append(v.links, link{seq, e.Hash, v.checkRecordTime(key, seq, at, stored)})
		v.gaps.Meet(e.Record)
		v.hearForgotten(e.Record)
		if b, ok := ParseBegun(e.Record); ok && !slices.ContainsFunc(v.begins[b.Of], func(o Begun) bool { return o.ID == b.ID }) {
			v.begins[b.Of] = append(v.begins[b.Of], b)
		}
		v.report.HeadHash = e.Hash
		head, linked = Head{Seq: seq, Hash: e.Hash}, true
	})
}

func readRecord(b []byte) (Entry, time.Time, error) {
	e, err := Parse(b)
	if err != nil {
		return e, time.Time{}, err
	}
	at, err := time.Parse(timeFormat, e.Record.Time)
	return e, at, err
}

// checkLock demands a compliance lock that lasts for the policy's retention: from when
// S3 stored the object, or else from the object's own time.
func (v *verifier) checkLock(key string, o Object, at, stored time.Time) {
	if !stored.IsZero() {
		at = stored
	}
	switch {
	case o.Lock == nil:
		v.noLocks = true
	case o.Lock.Mode != Compliance:
		v.find(ShortRetention, key, "its Object Lock has mode %q, not %s", o.Lock.Mode, Compliance)
	case o.Lock.Until.Before(at.Add(v.Retention - clockSkew)):
		v.find(ShortRetention, key, "it is locked until %s, less than %s after %s",
			stamp(o.Lock.Until), v.Retention, stamp(at))
	}
}

// walk visits the objects in order. A gap before one, from number 1 on, is one
// finding.
func (v *verifier) walk(ctx context.Context, objects map[int64]ObjectVersion, missing Kind,
	key func(n int64) string, visit func(n int64, o Object, afterGap bool),
) error {
	next := int64(1)
	gone := false
	return v.readAll(ctx, objects, func(n int64, o Object, err error) error {
		if n > next {
			if missing == MissingRecord {
				v.miss(next, n-1)
			}
			v.find(missing, key(next), "%s", gap(next, n-1))
			gone = true
		}
		next = n + 1
		if errors.Is(err, fs.ErrNotExist) {
			v.find(missing, key(n), "it is listed and not there")
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

func gap(from, to int64) string {
	if from == to {
		return fmt.Sprintf("number %d is not there", from)
	}
	return fmt.Sprintf("numbers %d to %d are not there", from, to)
}

// readers is how many objects are read at once.
const readers = 16

// readAll reads the objects a few at a time and visits them in order.
func (v *verifier) readAll(ctx context.Context, objects map[int64]ObjectVersion,
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
				obj, err := v.bucket.Read(ctx, o)
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
