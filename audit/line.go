package audit

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
)

// GenerationReport is one generation after the first and what it left behind.
type GenerationReport struct {
	Of        string `json:"of"` // records or anchors
	ID        string `json:"generation"`
	From      int64  `json:"from"`          // first number under its keys
	Seq       int64  `json:"seq"`           // record that says so
	Object    string `json:"object"`        // the object that was in the way
	SHA256    string `json:"object_sha256"` // of its bytes
	Forgotten int64  `json:"forgotten"`     // records of the chain itself that the control table forgot, or anchors
}

// objectSet are the records, or the anchors, in the bucket.
type objectSet struct {
	path    []Begun                            // the generations of the chain after the first
	objects map[int64]ObjectVersion            // the chain's own, by number
	behind  map[string]map[int64]ObjectVersion // of a generation on the path, after the next one began
	unknown map[string]map[int64]ObjectVersion // of a generation that is not on the path
}

// splitObjects splits the objects of all generations along a path. An object does not
// belong to the chain if its generation is not on the path, or if its number is below the
// first one of its generation.
func (v *verifier) splitObjects(path []Begun, all map[string]map[int64]ObjectVersion) objectSet {
	l := objectSet{path: path, objects: map[int64]ObjectVersion{}, behind: map[string]map[int64]ObjectVersion{}, unknown: map[string]map[int64]ObjectVersion{}}
	steps := append([]Begun{{}}, path...)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		objects := all[id]
		i := slices.IndexFunc(steps, func(b Begun) bool { return b.ID == id })
		if i < 0 {
			l.unknown[id] = objects
			continue
		}
		l.behind[id] = map[int64]ObjectVersion{}
		for _, n := range slices.Sorted(maps.Keys(objects)) {
			switch o := objects[n]; {
			case n < steps[i].From:
				v.addFinding(StrayObject, o.Key, "generation %s begins at number %d", id, steps[i].From)
			case i+1 == len(steps) || n < steps[i+1].From:
				l.objects[n] = o
			default:
				l.behind[id][n] = o
			}
		}
	}
	return l
}

// findPath returns the generations of the chain in order. If the control table's head was
// given, the control table decides. Otherwise the records in the bucket decide; if two
// generations follow the same one, that is a finding.
func (v *verifier) findPath(ctx context.Context, all map[string]map[int64]ObjectVersion) ([]Begun, error) {
	begun, err := v.readBeginnings(ctx, all)
	if err != nil {
		return nil, err
	}
	var path []Begun
	if v.Head != nil {
		for _, g := range v.Generations.All() {
			b := begun[g.ID]
			b.Generation = g
			path = append(path, b)
		}
		return path, nil
	}
	var last Begun
	for {
		var next []Begun
		for _, id := range slices.Sorted(maps.Keys(begun)) {
			if b := begun[id]; b.Before == last.ID && b.From >= last.From {
				next = append(next, b)
			}
		}
		if len(next) == 0 {
			return path, nil
		}
		if len(next) > 1 {
			v.addFinding(SplitChain, recordKey(v.Chain, next[1].ID, next[1].From), "generations %s and %s both follow %q: compare with the control table",
				next[0].ID, next[1].ID, last.ID)
		}
		last = next[0]
		path = append(path, last)
	}
}

// readBeginnings returns the beginnings of generations of records, by id. In each
// generation it reads the records up to the one that states its own beginning. The records
// before that one were in the outbox when the generation began.
func (v *verifier) readBeginnings(ctx context.Context, all map[string]map[int64]ObjectVersion) (map[string]Begun, error) {
	out := map[string]Begun{}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if id == "" {
			continue
		}
		for _, n := range slices.Sorted(maps.Keys(all[id])) {
			o, err := v.bucket.Read(ctx, all[id][n])
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			e, err := Parse(o.Bytes)
			if err != nil {
				continue // the walk along the chain names it
			}
			b, ok := ParseBegun(e.Record)
			if !ok || b.Of != OfRecords || e.Record.Chain != v.Chain || n != e.Record.Seq {
				continue
			}
			if _, twice := out[b.ID]; !twice {
				out[b.ID] = b
			}
			if b.ID == id {
				break
			}
		}
	}
	return out, nil
}

// explainLeftBehind explains the objects that generations left behind. A record of the
// chain must name the object that was in the way. forgotten returns a function that
// reports, for the objects from a generation's first number on, whether they are the
// chain's own and the control table has forgotten them. Any other object is a finding.
func (v *verifier) explainLeftBehind(ctx context.Context, of string, l objectSet, forgotten func() func(n int64, o Object) bool) error {
	for i, b := range l.path {
		r := GenerationReport{Of: of, ID: b.ID, From: b.From, Seq: b.Seq, Object: b.Taken.Key, SHA256: b.Taken.SHA256}
		before := ""
		if i > 0 {
			before = l.path[i-1].ID
		}
		named, follows := false, forgotten()
		for _, n := range slices.Sorted(maps.Keys(l.behind[before])) {
			at := l.behind[before][n]
			o, err := v.bucket.Read(ctx, at)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			own := n == b.From+r.Forgotten && follows(n, o) // what is not there has no bytes
			if own {
				r.Forgotten++
			}
			switch {
			case at.Key == b.Taken.Key && err == nil:
				named = true
				if TakenBy(at.Key, at.ID, o.Bytes).SHA256 != b.Taken.SHA256 {
					v.addFinding(NamedOther, at.Key, "record %d says that its SHA-256 is %s", b.Seq, b.Taken.SHA256)
				}
			case !own:
				v.addFinding(StrayObject, at.Key, "generation %s continues in its place, and no record names it", b.ID)
			}
		}
		if !named && b.Seq > 0 { // else no record says that it begins
			v.addFinding(NamedOther, b.Taken.Key, "record %d names it as the object in the way of generation %s, and it is not there", b.Seq, b.ID)
		}
		v.report.Generations = append(v.report.Generations, r)
	}
	return nil
}

// matchForgotten returns a function for the objects of one generation, in order. It
// reports whether an object is a record that follows the chain, or the record of the call
// before.
func (v *verifier) matchForgotten() func(n int64, o Object) bool {
	var head Head
	return func(n int64, o Object) bool {
		if head.Hash == "" {
			head = Genesis(v.Chain)
			if n > 1 {
				before, ok := v.findLink(n - 1)
				if !ok {
					return false
				}
				head = Head{Seq: n - 1, Hash: before.hash}
			}
		}
		e, err := Parse(o.Bytes)
		if err != nil {
			return false
		}
		next, err := e.Follow(v.Chain, head)
		if err != nil {
			return false
		}
		head = next
		v.forgotten[next] = true
		return true
	}
}

// isForgottenAnchor reports whether an object is an anchor of this chain, signed under a
// pinned key.
func (v *verifier) isForgottenAnchor(n int64, o Object) bool {
	a, at, err := readAnchor(o.Bytes)
	s := a.Signed.Statement
	_, pinned := v.Trust.findPinnedKey(a.Signed.Key, at)
	if err != nil || s.N != n || s.Chain != v.Chain || a.Signed.Verify() != nil || !pinned {
		return false
	}
	digest, err := s.Digest()
	v.forgottenAnchors[Known{n, digest}] = true
	return err == nil
}

// checkGenerations compares the generations that the records of the chain state with the
// path of the verification.
func (v *verifier) checkGenerations(path []Begun) {
	for i, b := range path {
		key := recordKey(v.Chain, b.ID, b.From)
		if i >= len(v.beginnings[OfRecords]) || v.beginnings[OfRecords][i].Generation != b.Generation {
			v.addFinding(NamedOther, key, "no record of the chain says that generation %s begins here", b.ID)
			return
		}
		if v.Head == nil && b.Seq > v.report.Anchored {
			v.addFinding(GenerationUnproven, key, "no anchor covers record %d, which says that generation %s begins here", b.Seq, b.ID)
		}
	}
	if n := len(v.beginnings[OfRecords]); n > len(path) {
		b := v.beginnings[OfRecords][n-1]
		v.addFinding(NamedOther, recordKey(v.Chain, b.ID, b.From), "record %d says that generation %s begins here, and the chain does not continue in it", b.Seq, b.ID)
	}
}
