// Package audit is the hash-chained audit log of a rotation: what a record is,
// its one canonical encoding, how each record commits to the one before, and how
// a chain and its anchors in public transparency logs are verified offline. Third
// parties import it to check a copied bucket, so it depends on nothing but the
// standard library, transparency-dev/merkle and x/mod/sumdb/note.
//
// # Stored formats
//
// A record is one JSON object, its fields sorted by name, without white space (shown here
// on several lines):
//
//	v1/<chain>/records/<seq, 12 digits>.json
//	{"actor":"…","body":{"name":"text",…},"chain":"<chain>","id":"<rotation>/<event>",
//	 "prev":"<hex>","rotation":"<id>","seq":1,"step":"switch",
//	 "time":"2026-04-01T02:00:00.000Z","type":"pointer_switched","v":1}
//
// The hash of a record is over its exact bytes. Records are a chain: prev is the hash of
// the record before, and of the first record the hash of the chain's name.
//
//	hash(record) = hex SHA-256("matter-ops/kms-rotation audit record v1" ‖ 0x00 ‖ bytes)
//	hash(name)   = hex SHA-256("matter-ops/kms-rotation audit chain v1" ‖ 0x00 ‖ name)
//
//	name ← record 1 ← record 2 ← record 3 ← …
//	          ↑                     ↑
//	       anchor 1   ←──────    anchor 2 ← …
//
// An anchor is a signed statement "record seq has hash head" with the proof that a public
// transparency log holds it. Anchors are a chain of their own: prev is the digest of the
// statement before.
//
//	v1/<chain>/anchors/<n, 12 digits>.json
//	{"proof":{"body":…,"checkpoint":…,"consistency":[…],"hashes":[…],"index":7},
//	 "signed":{"key":…,"signature":…,"statement":
//	   {"chain":"<chain>","head":"<hex>","n":1,"prev":"<hex>","seq":3,"time":"…","v":2}},
//	 "v":2}
//
// If another object occupies a key, the chain continues in a new generation, under keys
// with one more directory; see [Generation].
//
// # Invariants
//
// From spec/rotation.tla: AuditLinear, one record per sequence number; AuditOnceInOrder,
// every transition is recorded once and in the order in which it happened. A record never
// holds a secret. A record or an anchor has exactly one encoding: [Parse] and
// [ParseAnchor] refuse every other one, so equal content means equal bytes and hash.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Version is the version of the record format that this package writes.
const Version = 1

const (
	recordDomain  = "matter-ops/kms-rotation audit record v1"
	genesisDomain = "matter-ops/kms-rotation audit chain v1"
	timeFormat    = "2006-01-02T15:04:05.000Z"
)

var (
	// ErrNotCanonical reports bytes that can be decoded but are not the canonical
	// encoding of the result.
	ErrNotCanonical = errors.New("audit record is not in canonical form")
	// ErrBroken reports a chain whose records do not follow one another.
	ErrBroken = errors.New("audit chain is broken")
)

// Event is what an actor wants to record. ID makes the record idempotent: every attempt
// at the same step of the same rotation has the same ID.
type Event struct {
	ID       string            // rotation/event, plus the attempt where a step may recur
	Type     string            // e.g. pointer_switched
	Rotation string            // rotation id; "" for none
	Step     string            // the function or command, e.g. switch
	Actor    string            // caller identity
	Body     map[string]string // details; never a secret
}

// Record is one link of the chain. Its fields are declared in the order of their
// JSON names, which makes the encoding canonical: sorted keys, no floats.
type Record struct {
	Actor    string            `json:"actor"`
	Body     map[string]string `json:"body"`
	Chain    string            `json:"chain"`
	ID       string            `json:"id"`
	Prev     string            `json:"prev"` // hex SHA-256 of the record before
	Rotation string            `json:"rotation"`
	Seq      int64             `json:"seq"` // from 1
	Step     string            `json:"step"`
	Time     string            `json:"time"` // UTC, RFC 3339, milliseconds
	Type     string            `json:"type"`
	V        int               `json:"v"`
}

// Head is the end of a chain. The next record commits to it.
type Head struct {
	Seq  int64  // 0 before the first record
	Hash string // hex; before the first record, the hash of the chain's name
}

// Entry is a record as it is stored: the exact bytes and their hash.
type Entry struct {
	Record Record
	Bytes  []byte // canonical encoding
	Hash   string // hex SHA-256 of domain ‖ 0 ‖ Bytes
}

// Genesis returns the head of an empty chain.
func Genesis(chain string) Head {
	return Head{Hash: hashInDomain(genesisDomain, []byte(chain))}
}

// Next returns the record of ev that follows head. at is its time, stored in milliseconds.
// Text that is not UTF-8 is changed, see toValidText.
func Next(chain string, head Head, at time.Time, ev Event) (Entry, error) {
	body := make(map[string]string, len(ev.Body))
	for k, v := range ev.Body {
		body[toValidText(k)] = toValidText(v)
	}
	r := Record{
		V: Version, Chain: chain, Seq: head.Seq + 1, ID: toValidText(ev.ID), Prev: head.Hash,
		Time: at.UTC().Format(timeFormat), Type: toValidText(ev.Type), Rotation: toValidText(ev.Rotation),
		Step: toValidText(ev.Step), Actor: toValidText(ev.Actor), Body: body,
	}
	b, err := r.canonicalBytes()
	if err != nil {
		return Entry{}, err
	}
	return Entry{Record: r, Bytes: b, Hash: hashInDomain(recordDomain, b)}, nil
}

// toValidText replaces bytes that are not UTF-8, which have no canonical JSON encoding: a
// record that cannot be read again would break the chain permanently.
func toValidText(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Parse decodes one stored record and refuses any other encoding of it: unknown
// fields, another order, white space, escapes.
func Parse(b []byte) (Entry, error) {
	r, ok := parsePlain(b)
	if !ok {
		var err error
		if r, err = decodeRecord(b); err != nil {
			return Entry{}, err
		}
	}
	if r.V != Version {
		return Entry{}, fmt.Errorf("audit record %d has version %d, this program knows %d", r.Seq, r.V, Version)
	}
	return Entry{Record: r, Bytes: b, Hash: hashInDomain(recordDomain, b)}, nil
}

// decodeRecord decodes a record and refuses bytes that are not its canonical encoding.
func decodeRecord(b []byte) (Record, error) {
	var r Record
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("audit record: %w", err)
	}
	canonical, err := r.canonicalBytes()
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(canonical, b) || r.Body == nil { // null is another way to write {}
		return Record{}, ErrNotCanonical
	}
	return r, nil
}

// Follow checks that e is the record that comes right after head, and returns the new
// head. Its error is [ErrBroken].
func (e Entry) Follow(chain string, head Head) (Head, error) {
	r := e.Record
	switch {
	case r.Chain != chain:
		return head, fmt.Errorf("%w: record %d belongs to chain %q, not %q", ErrBroken, r.Seq, r.Chain, chain)
	case r.Seq != head.Seq+1:
		return head, fmt.Errorf("%w: record %d follows record %d", ErrBroken, r.Seq, head.Seq)
	case r.Prev != head.Hash:
		return head, fmt.Errorf("%w: record %d does not commit to record %d", ErrBroken, r.Seq, head.Seq)
	}
	return e.Head(), nil
}

// Head returns the head of a chain whose last record is e.
func (e Entry) Head() Head { return Head{Seq: e.Record.Seq, Hash: e.Hash} }

// ObjectKey returns the key of a record in the bucket: v1/<chain>/records/<12 digits>.json.
// The digits have leading zeros, so S3 lists records in order.
func ObjectKey(chain string, seq int64) string {
	return fmt.Sprintf("v1/%s/records/%012d.json", chain, seq)
}

// hashInDomain returns the hex SHA-256 of domain ‖ 0 ‖ b. The domain keeps a record, a
// statement and a name apart: bytes of one kind never have the hash of another kind.
func hashInDomain(domain string, b []byte) string {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write([]byte{0})
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}
