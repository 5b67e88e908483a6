// Package audit is the hash-chained audit log of a rotation: what a record is,
// its one canonical encoding, how each record commits to the one before, and how
// a chain and its anchors in public transparency logs are verified offline. Third
// parties import it to check a copied bucket, so it depends on nothing but the
// standard library, transparency-dev/merkle and x/mod/sumdb/note.
//
// Invariants (spec/rotation.tla): AuditLinear, one record per sequence number;
// AuditOnceInOrder, every transition is recorded once and in the order in which
// it happened.
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
	// ErrNotCanonical reports bytes that parse but are not the one encoding of
	// what they say.
	ErrNotCanonical = errors.New("audit record is not in canonical form")
	// ErrBroken reports a chain whose records do not follow one another.
	ErrBroken = errors.New("audit chain is broken")
)

// Event is what an actor wants recorded. ID makes the record idempotent: it is
// the same for every attempt at the same step of the same rotation.
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

// Head is the last link of a chain: all that the next record needs to know.
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

// Genesis is the head of an empty chain.
func Genesis(chain string) Head {
	return Head{Hash: digest(genesisDomain, []byte(chain))}
}

// Next makes the record of ev that follows head at the given time.
func Next(chain string, head Head, at time.Time, ev Event) (Entry, error) {
	body := make(map[string]string, len(ev.Body))
	for k, v := range ev.Body {
		body[text(k)] = text(v)
	}
	r := Record{
		V: Version, Chain: chain, Seq: head.Seq + 1, ID: text(ev.ID), Prev: head.Hash,
		Time: at.UTC().Format(timeFormat), Type: text(ev.Type), Rotation: text(ev.Rotation),
		Step: text(ev.Step), Actor: text(ev.Actor), Body: body,
	}
	b, err := r.encode()
	if err != nil {
		return Entry{}, err
	}
	return Entry{Record: r, Bytes: b, Hash: digest(recordDomain, b)}, nil
}

// text replaces what is no UTF-8, which has no canonical encoding: a record that
// cannot be read again would break the chain for ever.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Parse decodes one stored record and refuses any other encoding of it: unknown
// fields, another order, white space, escapes.
func Parse(b []byte) (Entry, error) {
	r, ok := plain(b)
	if !ok {
		var err error
		if r, err = decode(b); err != nil {
			return Entry{}, err
		}
	}
	if r.V != Version {
		return Entry{}, fmt.Errorf("audit record %d has version %d, this program knows %d", r.Seq, r.V, Version)
	}
	return Entry{Record: r, Bytes: b, Hash: digest(recordDomain, b)}, nil
}

// decode is the record of which b is the encoding.
func decode(b []byte) (Record, error) {
	var r Record
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("audit record: %w", err)
	}
	canonical, err := r.encode()
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(canonical, b) || r.Body == nil { // null is another way to write {}
		return Record{}, ErrNotCanonical
	}
	return r, nil
}

// Follow checks that e is the record that comes right after head, and returns
// the new head.
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

// Head is the chain's head once e is its last record.
func (e Entry) Head() Head { return Head{Seq: e.Record.Seq, Hash: e.Hash} }

// ObjectKey is where a record is stored in the bucket, so that a listing is in
// order: v1/<chain>/records/<12 digits>.json.
func ObjectKey(chain string, seq int64) string {
	return fmt.Sprintf("v1/%s/records/%012d.json", chain, seq)
}

func digest(domain string, b []byte) string {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write([]byte{0})
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}
