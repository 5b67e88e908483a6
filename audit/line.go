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

// line is what the objects of one kind come to: those of the chain, by number, and those
// that generations have left behind, by generation.
type line struct {
	path    []Begun
	objects map[int64]ObjectVersion
	behind  map[string]map[int64]ObjectVersion
	unknown map[string]map[int64]ObjectVersion // of generations that are not on the path
}

// lineOf splits the objects of all generations along a path. Those of a generation that
// is not on it are no part of the chain, nor are those with a number before their
// generation's first.
func (v *verifier) lineOf(path []Begun, all map[string]map[int64]ObjectVersion) line {
	l := line{path: path, objects: map[int64]ObjectVersion{}, behind: map[string]map[int64]ObjectVersion{}, unknown: map[string]map[int64]ObjectVersion{}}
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
				v.find(StrayObject, o.Key, "generation %s begins at number %d", id, steps[i].From)
			case i+1 == len(steps) || n < steps[i+1].From:
				l.objects[n] = o
			default:
				l.behind[id][n] = o
			}
		}
	}
	return l
}

// pathOf is the way of the records through the generations. The control table says it,
// if its head was given; else the bucket's own records do, where there is but one way.
func (v *verifier) pathOf(ctx context.Context, all map[string]map[int64]ObjectVersion) ([]Begun, error) {
	begun, err := v.begun(ctx, all)
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
			v.find(SplitChain, recordKey(v.Chain, next[1].ID, next[1].From), "generations %s and %s both follow %q: compare with the control table",
				next[0].ID, next[1].ID, last.ID)
		}
		last = next[0]
		path = append(path, last)
	}
}

// begun reads the beginnings of generations of records, by id. In each generation it reads
// the records up to that of its own beginning, which comes after those that were waiting
// for the bucket.
func (v *verifier) begun(ctx context.Context, all map[string]map[int64]ObjectVersion) (map[string]Begun, error) {
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

// explain says of what generations have left behind whether a record of the chain names
// it. forgotten makes for each what says of the objects, from its first number on, whether
// they are the chain's own that the control table has forgotten.
func (v *verifier) explain(ctx context.Context, of string, l line, forgotten func() func(n int64, o Object) bool) error {
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
					v.find(NamedOther, at.Key, "record %d says that its SHA-256 is %s", b.Seq, b.Taken.SHA256)
				}
			case !own:
				v.find(StrayObject, at.Key, "generation %s goes on in its place, and no record names it", b.ID)
			}
		}
		if !named && b.Seq > 0 { // else no record says that it begins
			v.find(NamedOther, b.Taken.Key, "record %d names it as the object in the way of generation %s, and it is not there", b.Seq, b.ID)
		}
		v.report.Generations = append(v.report.Generations, r)
	}
	return nil
}

// forgottenRecords reports whether a record follows the chain, from where a generation
// begins, or the one that it was asked of before.
func (v *verifier) forgottenRecords() func(n int64, o Object) bool {
	var head Head
	return func(n int64, o Object) bool {
		if head.Hash == "" {
			head = Genesis(v.Chain)
			if n > 1 {
				before, ok := v.record(n - 1)
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

// forgottenAnchor reports whether an object is an anchor of this chain, signed by a key
// that is pinned.
func (v *verifier) forgottenAnchor(n int64, o Object) bool {
	a, at, err := readAnchor(o.Bytes)
	s := a.Signed.Statement
	_, pinned := v.Trust.pinned(a.Signed.Key, at)
	if err != nil || s.N != n || s.Chain != v.Chain || a.Signed.Verify() != nil || !pinned {
		return false
	}
	digest, err := s.Digest()
	v.forgottenAnchors[Known{n, digest}] = true
	return err == nil
}

// checkGenerations compares what the records of the chain say of generations with the
// path that was taken.
func (v *verifier) checkGenerations(path []Begun) {
	for i, b := range path {
		key := recordKey(v.Chain, b.ID, b.From)
		if i >= len(v.begins[OfRecords]) || v.begins[OfRecords][i].Generation != b.Generation {
			v.find(NamedOther, key, "no record of the chain says that generation %s begins here", b.ID)
			return
		}
		if v.Head == nil && b.Seq > v.report.Anchored {
			v.find(GenerationUnproven, key, "no anchor covers record %d, which says that generation %s begins here", b.Seq, b.ID)
		}
	}
	if n := len(v.begins[OfRecords]); n > len(path) {
		b := v.begins[OfRecords][n-1]
		v.find(NamedOther, recordKey(v.Chain, b.ID, b.From), "record %d says that generation %s begins here, and the chain does not go on in it", b.Seq, b.ID)
	}
}
