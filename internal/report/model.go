// Package report presents one rotation as evidence: what happened when, who did it, what
// was checked, which rows are under which KEK, and how far the audit chain proves it. A
// report is a model of plain data, which encodes to JSON, and one HTML file that loads
// nothing.
//
//	control table ─┐
//	audit bucket ──┤
//	KMS ───────────┼─ Collect ─ Report ─┬─ WriteJSON
//	executions ────┘                    └─ WriteHTML
//
// Invariants: [Collect] reads and never writes. A report states only what was read: what
// could not be read is a note, what is not known is absent. A rotation that failed, halted
// or still runs has a report as truthful as a completed one. Text that is not this
// package's own is escaped.
package report

import (
	"encoding/json"
	"io"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/kek"
)

// Version is the version of the JSON. Within a version, fields are only added.
const Version = 1

// Report is everything that is known about one rotation. Times are UTC; an absent time is
// not known or has not come yet.
type Report struct {
	V            int          `json:"v"`
	GeneratedAt  time.Time    `json:"generated_at"`
	GeneratedBy  string       `json:"generated_by"` // identity of the caller
	Stack        string       `json:"stack"`        // and name of the audit chain
	Rotation     Rotation     `json:"rotation"`
	Outcome      Outcome      `json:"outcome"`
	Timeline     []Span       `json:"timeline"`
	KEKs         []KEK        `json:"keks"` // the old one first, then one per mint attempt
	Cryptoperiod Cryptoperiod `json:"old_kek_cryptoperiod"`
	Rows         []SourceRows `json:"rows"`
	Registry     []Change     `json:"registry"` // sources, historic KEKs, adopted and converted rows since the rotation before
	Drain        []DrainPoll  `json:"drain"`    // empty: no execution history shows it
	Rewrap       []Progress   `json:"rewrap"`   // empty: no execution history shows it
	Checks       []Check      `json:"checks"`
	Executions   []Execution  `json:"executions"`
	Audit        Audit        `json:"audit"`
	Claims       []Claim      `json:"claims"`
	Notes        []string     `json:"notes"` // what this report does not show, and why
}

// Rotation is the rotation's record.
type Rotation struct {
	ID         string    `json:"rotation_id"`
	Mode       kek.Mode  `json:"mode"`
	Phase      kek.Phase `json:"phase"`
	Label      string    `json:"label"`
	Reason     string    `json:"reason,omitempty"`
	OldKEK     kek.ID    `json:"old_kek_id"`
	NewKEK     kek.ID    `json:"new_kek_id,omitempty"`
	Attempt    int       `json:"attempt"` // of the mint
	Epoch      int64     `json:"epoch,omitempty"`
	Actor      string    `json:"actor"` // who started it
	Execution  string    `json:"execution_arn,omitempty"`
	StartedAt  time.Time `json:"started_at"`
	SwitchedAt time.Time `json:"switched_at,omitzero"`
	EndedAt    time.Time `json:"ended_at,omitzero"` // only of a rotation that is over
	Error      string    `json:"error,omitempty"`
}

// State is the state of a rotation, from its phase and its executions.
type State string

// The states of a rotation. Open is a rotation that has not ended and that no execution
// works on.
const (
	Completed  State = "completed"
	RolledBack State = "rolledback"
	Superseded State = "superseded" // an emergency has ended it
	Halted     State = "halted"
	Running    State = "running"
	Open       State = "open"
)

// Outcome is the answer to "what happened, and what is safe?".
type Outcome struct {
	State State  `json:"state"`
	Title string `json:"title"`
	Safe  string `json:"safe"` // under which KEKs rows open
	Next  string `json:"next,omitempty"`
	Error string `json:"error,omitempty"` // why it failed or halted
}

// Span is one transition and the time that led to it.
type Span struct {
	Title   string    `json:"title"`
	Event   string    `json:"event"` // type of the audit record; "" for a transition under way
	Step    string    `json:"step,omitempty"`
	Actor   string    `json:"actor,omitempty"`
	Seq     int64     `json:"seq,omitempty"` // of the audit record
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Millis  int64     `json:"duration_ms"`
	Open    bool      `json:"open,omitempty"`    // under way when the report was made
	Instant bool      `json:"instant,omitempty"` // a record that ends no phase
}

// KEK is one key of the rotation, in the registry and in KMS.
type KEK struct {
	ID              kek.ID    `json:"kek_id"`
	Role            string    `json:"role"` // old, historic, new or failed attempt
	ARN             string    `json:"key_arn"`
	Label           string    `json:"label"`
	State           kek.State `json:"state"`
	KMSState        string    `json:"kms_state"` // when the report was made; "unknown" if KMS did not say
	Enabled         bool      `json:"kms_enabled"`
	CreatedAt       time.Time `json:"created_at"`
	SwitchedAt      time.Time `json:"switched_at,omitzero"` // when the pointer moved to it
	RetiredAt       time.Time `json:"retired_at,omitzero"`
	Reason          string    `json:"reason,omitempty"`
	NotBeforeDelete time.Time `json:"not_before_delete,omitzero"`
}

// Cryptoperiod is how long the old KEK was used: to wrap (the originator-usage
// period of NIST SP 800-57) and to unwrap (its recipient-usage period). A period without
// an end continues.
type Cryptoperiod struct {
	KEK         kek.ID    `json:"kek_id"`
	Genesis     bool      `json:"genesis"` // in use before it was registered: the periods are longer than shown
	CreatedAt   time.Time `json:"created_at"`
	WrapFrom    time.Time `json:"wrap_from"`
	WrapTo      time.Time `json:"wrap_to,omitzero"`   // the pointer moved off it
	SealedAt    time.Time `json:"sealed_at,omitzero"` // no row can be inserted under it any more
	UnwrapTo    time.Time `json:"unwrap_to,omitzero"` // retired, then disabled in KMS
	WrapMillis  int64     `json:"wrap_ms"`            // to the seal, or to the report
	TotalMillis int64     `json:"total_ms"`           // to the retirement, or to the report
}

// SourceRows counts the rows of one source by the KEK that they name.
type SourceRows struct {
	Source   string     `json:"source"`
	Before   []KeyCount `json:"before"` // by the census, or by the rewrap if there was none; empty: neither is done
	BeforeBy string     `json:"before_by,omitempty"`
	After    []KeyCount `json:"after"` // by the last scan that is done; empty: none is
	By       string     `json:"after_by,omitempty"`
	Passes   []Pass     `json:"passes"`
}

// Change is one audit record that decides which rows a rotation moves.
type Change struct {
	Seq    int64             `json:"seq"`
	Time   time.Time         `json:"time"`
	Type   string            `json:"type"`
	Actor  string            `json:"actor"`
	Body   map[string]string `json:"body"`
	Object string            `json:"object"` // key in the audit bucket
}

// KeyCount counts the rows under one KEK.
type KeyCount struct {
	KEK  kek.ID `json:"kek_id,omitempty"` // "" for keyed rows, and for rows under none of them, or unreadable
	Role string `json:"role"`             // old, historic, new, keyed or neither
	Rows int64  `json:"rows"`
}

// Pass is one pass over a source, the sum of its segments' checkpoints.
type Pass struct {
	Pass        string   `json:"pass"` // census, rewrap, confirm or verify
	Segments    int      `json:"segments"`
	Done        int      `json:"segments_done"`
	Unproven    int      `json:"segments_unproven,omitempty"` // their checkpoints are not proven, so nothing of them is counted
	Scanned     int64    `json:"scanned"`
	Keyed       int64    `json:"keyed,omitempty"` // of the scanned rows, those that name a data key of the key table
	Rewrapped   int64    `json:"rewrapped"`
	Skipped     int64    `json:"skipped"`  // other and declared together
	Other       int64    `json:"other"`    // items that have none of the envelope's attributes
	Declared    int64    `json:"declared"` // items that the source's definition declares to be something else
	Quarantined int64    `json:"quarantined"`
	Unwrapped   int64    `json:"unwrapped"` // data keys that were unwrapped under the new KEK
	Poison      []string `json:"quarantine,omitempty"`

	byKEK map[kek.ID]int64 // of a census
}

// DrainPoll is one read of the leases on the old KEK.
type DrainPoll struct {
	At     time.Time `json:"at"`
	Leases int       `json:"leases"`
	Refs   int64     `json:"refs"` // in-flight references
	Sealed bool      `json:"sealed"`
}

// Progress is how many rows had been rewrapped at a time, summed over all sources.
type Progress struct {
	At        time.Time `json:"at"`
	Scanned   int64     `json:"scanned"`
	Rewrapped int64     `json:"rewrapped"`
}

// Check is one check and its result.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Source string `json:"source"` // where the result was read
}

// Execution is one execution of the state machine that worked on the rotation.
type Execution struct {
	ARN       string    `json:"execution_arn"`
	Status    string    `json:"status"`
	StartedAt time.Time `json:"started_at"`
	StoppedAt time.Time `json:"stopped_at,omitzero"`
	Redrives  int       `json:"redrives"`
	Error     string    `json:"error,omitempty"`
	Cause     string    `json:"cause,omitempty"`
	Visits    []Visit   `json:"visits"`
}

// Visit is one stay in a state of the state machine.
type Visit struct {
	State   string    `json:"state"`
	Entered time.Time `json:"entered"`
	Exited  time.Time `json:"exited,omitzero"`

	input    []byte    // of the state
	answer   []byte    // the function's payload; nil if it did not answer
	answered time.Time // when it did
}

// Audit is the rotation's part of the audit chain, and the verification of the whole
// chain.
type Audit struct {
	Chain        string       `json:"chain"`
	Records      []Record     `json:"records"`
	Anchors      []Anchor     `json:"anchors"` // those that first cover a record of the rotation
	Verification Verification `json:"verification"`
}

// Record is one audit record of the rotation.
type Record struct {
	Seq       int64             `json:"seq"`
	Hash      string            `json:"hash"`
	Time      time.Time         `json:"time"`
	Type      string            `json:"type"`
	Step      string            `json:"step"`
	Actor     string            `json:"actor"`
	Body      map[string]string `json:"body"`
	Object    string            `json:"object"`           // key in the audit bucket
	Bucket    string            `json:"bucket"`           // what the bucket holds there: same, missing, different or unread
	Anchor    int64             `json:"anchor,omitempty"` // the first anchor that covers it; 0: none yet
	Canonical string            `json:"canonical"`        // the exact bytes whose hash is Hash
}

// Anchor is one statement in a public transparency log.
type Anchor struct {
	N      int64     `json:"n"`
	Seq    int64     `json:"seq"` // last record it covers
	Head   string    `json:"head"`
	Digest string    `json:"digest"` // of the statement: what the log holds
	Log    string    `json:"log"`
	Index  int64     `json:"log_index"`
	Time   time.Time `json:"time"` // the signer's claim
	Object string    `json:"object"`
}

// Verification is the result of verifying the whole chain when the report was made.
type Verification struct {
	Result    audit.Result    `json:"result,omitempty"` // "" if the chain could not be verified
	Error     string          `json:"error,omitempty"`  // why not
	Summary   string          `json:"summary"`
	Records   int64           `json:"records"`
	HeadHash  string          `json:"head_hash"`
	Anchored  int64           `json:"anchored_seq"`
	Findings  []audit.Finding `json:"findings"`
	More      int             `json:"more_findings,omitempty"`
	Unchecked []string        `json:"unchecked,omitempty"`

	Model *replay.Report `json:"model,omitempty"` // the records held to the specification; nil if they could not be read
	Again []string       `json:"again,omitempty"` // command lines that verify a copy of the bucket without the account
}

// Status says how far the evidence supports a claim.
type Status string

// The statuses of a claim.
const (
	Shown      Status = "shown"
	Partly     Status = "partly shown"
	NotShown   Status = "not shown"
	NotCovered Status = "not covered" // no rotation can show it
)

// Claim is a requirement of a framework, and the evidence that this rotation gives for it.
type Claim struct {
	Framework string     `json:"framework"`
	Ref       string     `json:"ref"`
	Asks      string     `json:"asks"`
	Status    Status     `json:"status"`
	Text      string     `json:"text"`
	Evidence  []Evidence `json:"evidence"`
}

// Evidence is one fact and where to find it.
type Evidence struct {
	What  string `json:"what"`
	Where string `json:"where"`
}

// WriteJSON writes the report as indented JSON.
func (r Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
