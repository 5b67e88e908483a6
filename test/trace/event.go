// Package trace checks recorded runs of the code against the model in
// spec/rotation.tla.
//
// A run is a sequence of effects in the one order in which they happened, one
// [Event] each, kept as NDJSON. A [Recorder] makes one of a run in memory, package
// wiretrace of one of real processes. [Check] turns runs into TLA+ and has TLC
// explain every event by actions of the model: it accepts a run, or names the
// first event that no action explains or that breaks an invariant.
package trace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Event is one effect on one external system. Which fields are set depends on
// Effect; ids are as the code has them, times in milliseconds.
type Event struct {
	N        int64  `json:"n"`                  // place in the run, from 1
	Caller   string `json:"caller,omitempty"`   // who made the call: see [Application] and [Person]; never empty
	Actor    string `json:"actor,omitempty"`    // step of a change, holder of a lease
	Effect   string `json:"effect"`             // the port's method, as Store.Apply
	Event    string `json:"event,omitempty"`    // Store.Apply: what happened, as pointer_switched
	Rotation string `json:"rotation,omitempty"` // rotation id
	Mode     string `json:"mode,omitempty"`     // of the rotation
	Attempt  int    `json:"attempt,omitempty"`  // mint attempt
	Old      string `json:"old_kek,omitempty"`  // the KEK that is left
	KEK      string `json:"kek,omitempty"`      // the KEK that it is about
	Epoch    int64  `json:"epoch,omitempty"`    // of the pointer or the row
	Seq      int64  `json:"seq,omitempty"`      // of the audit record; after Store.Apply, the chain's head
	Shard    int    `json:"shard,omitempty"`    // fence shard
	Shards   int    `json:"shards,omitempty"`   // how many a KEK has
	Expires  int64  `json:"expires,omitempty"`  // of a lease
	Source   string `json:"source,omitempty"`   // of rows
	Row      string `json:"row,omitempty"`      // row id
	Refused  bool   `json:"refused,omitempty"`  // Table.Insert: the fence was shut, or the row was there
	Was      string `json:"was,omitempty"`      // digest of the wrapped DEK that was read
	WasBody  string `json:"was_body,omitempty"` // digest of the payload that was read
	Blob     string `json:"blob,omitempty"`     // digest of the wrapped DEK; KMS.Decrypt: that was opened
	Body     string `json:"body,omitempty"`     // digest of the payload, "" if it is untouched
	Sweep    string `json:"sweep,omitempty"`    // rewrap, confirm or verify
	Segment  int    `json:"segment,omitempty"`  // of the sweep
	Done     bool   `json:"done,omitempty"`     // the segment is

	// DEK is a digest of the plaintext DEK, keyed by a secret of the run: of
	// KMS.GenerateDataKey (KEK, Blob), KMS.ReEncrypt (Old and Was to KEK and Blob)
	// and KMS.Decrypt (KEK, Blob).
	DEK string `json:"dek,omitempty"`
	// BodyDEK is the same digest of the DEK that the payload of a written row really
	// opens under; "" only where the payload was not written.
	BodyDEK string `json:"body_dek,omitempty"`
	// Text is a keyed digest of what the payload of a written row opens to, so that a
	// rewrap is seen to keep it; "" is not known.
	Text string `json:"text,omitempty"`

	// Table.Scan, one page of Segment of Source.
	Total      int    `json:"segments_total,omitempty"` // how many segments the table was divided into
	From       string `json:"from,omitempty"`           // digest of the cursor that the page began at; "" is the beginning
	To         string `json:"to,omitempty"`             // digest of the cursor that it ended at; "" is the end
	Consistent bool   `json:"consistent,omitempty"`     // a consistent read
	Filtered   bool   `json:"filtered,omitempty"`       // some rows may have been left out
	Page       []Seen `json:"page,omitempty"`           // the rows that it showed

	Stored   int64          `json:"stored,omitempty"`   // Snapshot: how many records are known to be in the bucket
	Segments map[string]int `json:"segments,omitempty"` // rotation_started: segments per source

	// Store.Apply: what else the transaction wrote.
	Phase  string            `json:"phase,omitempty"`  // of the rotation
	States map[string]string `json:"states,omitempty"` // of registry entries
	Moved  bool              `json:"moved,omitempty"`  // the pointer, to KEK and Epoch
	Opened []int             `json:"opened,omitempty"` // fence shards of KEK
	Lock   string            `json:"lock,omitempty"`   // [LockTaken] or [LockReleased]

	// emergency_took_over: the rotation that it ended.
	Ended      string `json:"ended,omitempty"`
	EndedPhase string `json:"ended_phase,omitempty"`
}

// Seen is a row as a page of a scan showed it.
type Seen struct {
	Row  string `json:"row"`
	KEK  string `json:"kek,omitempty"`  // on its label; "" if it has none
	Blob string `json:"blob,omitempty"` // digest of the wrapped DEK
}

// Callers that are no function of ours. A function is named as it is deployed, as
// in "mint" or "rewrap".
const (
	Application = "application" // the library, in whatever process
	Person      = "person"      // a person, or another program
)

// What a transaction does to the lock.
const (
	LockTaken    = "taken"
	LockReleased = "released"
)

// Effects beside those that are called after a method of a port: what was there
// when the recording began, a row that somebody wrote past the library, a page of
// rows that was read, and calls on DEKs. Label says of a row, if Was is its wrapped DEK
// and Old is on its label, that it is under KEK. Which KEK wraps which DEK in a wrapped DEK
// is known from the calls on it alone: a recording has a Decrypt by [Person] of
// whatever was wrapped before it began, before the row that it stands in.
const (
	Snapshot        = "snapshot"
	Plant           = "Table.Plant"
	Label           = "Table.Label"
	Scan            = "Table.Scan"
	GenerateDataKey = "KMS.GenerateDataKey"
	ReEncrypt       = "KMS.ReEncrypt"
	Decrypt         = "KMS.Decrypt"
)

// UnknownDEK is the BodyDEK of a payload that opens under no DEK of the run.
const UnknownDEK = "unknown"

// Unfenced is the Shard of an insert that checked none. It is open at no time.
const Unfenced = -1

// The Event of a Store.Apply that came without its audit record, or that did not
// condition on what it rests on. No action explains them.
const (
	Unrecorded    = "unrecorded"
	Unconditional = "unconditional"
)

// Write writes a run as NDJSON.
func Write(w io.Writer, events []Event) error {
	b := bufio.NewWriter(w)
	enc := json.NewEncoder(b)
	for _, e := range events {
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("trace: %w", err)
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	return nil
}

// Read reads a run. An unknown field is refused: a misspelt one would hide what it
// says.
func Read(r io.Reader) ([]Event, error) {
	var events []Event
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var e Event
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("trace line %d: %w", len(events)+1, err)
		}
		if e.Effect == "" {
			return nil, fmt.Errorf("trace line %d: %w", len(events)+1, errors.New("no effect"))
		}
		events = append(events, e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	return events, nil
}
