package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// A key of the bucket may be occupied before the chain needs it: a person or a compromised
// function has put an object there, or the steps have, before the control table was set
// back to an earlier time. Object Lock keeps the object. The chain then continues in a new
// generation: the same numbers and the same links, under keys that nobody could know
// before, beginning with the record whose key is occupied. A record of type
// [EventGeneration] names the object, so that verification can explain it.
//
//	v1/prod/records/000000000012.json
//	v1/prod/records/000000000013.json                       an object in the way
//	v1/prod/records/g1-0123456789abcdef/000000000013.json   the chain continues here

// EventGeneration is the type of the record of a generation's beginning.
const EventGeneration = "audit_generation_begun"

// The bodies' names in a record of type [EventGeneration].
const (
	bodyOf         = "of"         // what the generation is of: records or anchors
	bodyGeneration = "generation" // its id
	bodyBefore     = "before"     // id of the one before; absent for the first
	bodyFrom       = "from"       // first number under its keys
	bodyObject     = "object"     // key of the object in the way
	bodyVersion    = "object_version"
	bodySHA256     = "object_sha256"
)

// Records and anchors have generations of their own.
const (
	OfRecords = "records"
	OfAnchors = "anchors"
)

// Generation says under which keys the chain's records, or its anchors, are stored from a
// number on.
type Generation struct {
	ID   string // directory of its keys; "" for the first
	From int64  // first number under its keys
}

// Generations are the generations after the first, in order, as the control table stores
// them: "13=g1-0123456789abcdef,27=g2-…", each the first number and the id; "" if there
// are none.
type Generations string

var generationID = regexp.MustCompile(`^g[1-9][0-9]{0,5}-[0-9a-f]{16}$`)

// ParseGenerations checks the text of generations: the numbers must not fall, and each id
// must be one that a key can contain.
func ParseGenerations(s string) (Generations, error) {
	var last int64
	for _, g := range Generations(s).All() {
		if !generationID.MatchString(g.ID) || g.From < max(last, 1) {
			return "", fmt.Errorf("generations %q: want number=id, in order", s)
		}
		last = g.From
	}
	return Generations(s), nil
}

// All returns the generations in order.
func (g Generations) All() []Generation {
	if g == "" {
		return nil
	}
	var out []Generation
	for part := range strings.SplitSeq(string(g), ",") {
		from, id, _ := strings.Cut(part, "=")
		n, _ := strconv.ParseInt(from, 10, 64) // 0 is refused by ParseGenerations
		out = append(out, Generation{ID: id, From: n})
	}
	return out
}

// Of returns the id of the generation that holds a number; "" for the first generation.
func (g Generations) Of(n int64) string {
	id := ""
	for _, one := range g.All() {
		if one.From <= n {
			id = one.ID
		}
	}
	return id
}

// Last returns the generation that holds new numbers.
func (g Generations) Last() Generation {
	if all := g.All(); len(all) > 0 {
		return all[len(all)-1]
	}
	return Generation{From: 1}
}

// With returns g with one more generation at its end.
func (g Generations) With(one Generation) Generations {
	s := fmt.Sprintf("%d=%s", one.From, one.ID)
	if g != "" {
		s = string(g) + "," + s
	}
	return Generations(s)
}

// Next returns the generation that follows g. It begins at the number whose key the object
// o occupies. The id is a digest that includes salt, so only a person who knows the salt
// could have occupied the new keys too.
func (g Generations) Next(from int64, o Taken, salt string) Generation {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%d\x00%s\x00%s\x00%s", g, from, o.Key, o.SHA256, salt)
	return Generation{ID: fmt.Sprintf("g%d-%s", len(g.All())+1, hex.EncodeToString(h.Sum(nil)[:8])), From: from}
}

// Line is a chain and the generations of its records.
type Line struct {
	Chain       string
	Generations Generations
}

// RecordKey returns the key of a record in the bucket.
func (l Line) RecordKey(seq int64) string { return recordKey(l.Chain, l.Generations.Of(seq), seq) }

// recordKey returns the key of a record in a generation; "" is the first generation.
func recordKey(chain, generation string, seq int64) string {
	return inGeneration(ObjectKey(chain, seq), generation)
}

// anchorKey returns the key of an anchor in a generation; "" is the first generation.
func anchorKey(chain, generation string, n int64) string {
	return inGeneration(AnchorKey(chain, n), generation)
}

// AnchorKeyIn returns the key of an anchor. g are the generations of the chain's anchors.
func (g Generations) AnchorKeyIn(chain string, n int64) string { return anchorKey(chain, g.Of(n), n) }

// PlaceOf returns the generation and the number that the key of a record names; ok is
// false for any other key.
func PlaceOf(chain, key string) (generation string, seq int64, ok bool) {
	generation, seq = placeIn(key)
	return generation, seq, seq > 0 && key == recordKey(chain, generation, seq)
}

// placeIn returns the generation and the number in a key. The caller must check that the
// key of that number is this key: for a key that belongs to neither a record nor an anchor
// the result has no meaning.
func placeIn(key string) (generation string, n int64) {
	dir, name := path.Split(key)
	n, _ = strconv.ParseInt(strings.TrimSuffix(name, ".json"), 10, 64)
	if generation = path.Base(dir); !generationID.MatchString(generation) {
		generation = ""
	}
	return generation, n
}

// inGeneration puts the last part of a key into a directory: v1/c/records/1.json becomes
// v1/c/records/g1-…/1.json.
func inGeneration(key, generation string) string {
	if generation == "" {
		return key
	}
	i := strings.LastIndexByte(key, '/') + 1
	return key[:i] + generation + "/" + key[i:]
}

// Taken is the error that another object occupies the key of a record or an anchor: its
// key, the id of its oldest version and the hex SHA-256 of its bytes.
type Taken struct{ Key, Version, SHA256 string }

// ErrTaken is wrapped by every [*Taken].
var ErrTaken = errors.New("another object is in its place")

// Error names the object.
func (t *Taken) Error() string {
	return Visible(fmt.Sprintf("%s, version %s: %v (SHA-256 %s)", t.Key, t.Version, ErrTaken, t.SHA256))
}

// Unwrap returns [ErrTaken].
func (t *Taken) Unwrap() error { return ErrTaken }

// TakenBy returns the [Taken] for an object with these bytes.
func TakenBy(key, version string, b []byte) *Taken {
	sum := sha256.Sum256(b)
	return &Taken{Key: key, Version: version, SHA256: hex.EncodeToString(sum[:])}
}

// Event returns the event that records the beginning of a generation. of is [OfRecords] or
// [OfAnchors], g are the generations before it, and o is the object in the way.
func (one Generation) Event(of string, g Generations, o Taken) Event {
	body := map[string]string{
		bodyOf: of, bodyGeneration: one.ID, bodyFrom: strconv.FormatInt(one.From, 10), bodyObject: o.Key, bodySHA256: o.SHA256,
	}
	for k, v := range map[string]string{bodyBefore: g.Last().ID, bodyVersion: o.Version} {
		if v != "" {
			body[k] = v
		}
	}
	return Event{ID: EventGeneration + "/" + one.ID, Type: EventGeneration, Step: "publish", Body: body}
}

// Begun is the content of a record of type [EventGeneration].
type Begun struct {
	Generation
	Of     string // records or anchors
	Before string // id of the generation before
	Seq    int64  // of the record
	Taken  Taken
}

// ParseBegun decodes a record of type [EventGeneration]. ok is false for a record of
// another type, and for one with an invalid body.
func ParseBegun(r Record) (Begun, bool) {
	from, err := strconv.ParseInt(r.Body[bodyFrom], 10, 64)
	b := Begun{
		Generation: Generation{ID: r.Body[bodyGeneration], From: from}, Of: r.Body[bodyOf], Before: r.Body[bodyBefore], Seq: r.Seq,
		Taken: Taken{Key: r.Body[bodyObject], Version: r.Body[bodyVersion], SHA256: r.Body[bodySHA256]},
	}
	ok := r.Type == EventGeneration && err == nil && from >= 1 && generationID.MatchString(b.ID) &&
		(b.Before == "" || generationID.MatchString(b.Before)) && (b.Of == OfRecords || b.Of == OfAnchors)
	return b, ok
}
