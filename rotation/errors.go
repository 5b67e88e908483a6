package rotation

import (
	"errors"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
)

// Kind is the stable name of a failure: what the state machine's Retry and Catch
// match on, and what the CLI maps to an exit code.
type Kind string

// The kinds. Those up to WindowClosed are refusals of preflight: nothing was
// changed.
const (
	InvalidInput        Kind = "InvalidInput"
	Misconfigured       Kind = "Misconfigured"       // environment of the function
	ControlTableMissing Kind = "ControlTableMissing" // the control table is not there
	PointerInvalid      Kind = "PointerInvalid"      // the pointer names no usable KEK
	RotationInProgress  Kind = "RotationInProgress"  // another rotation holds the lock
	SourceMisconfigured Kind = "SourceMisconfigured" // a cipher source or the corpus
	AuditUnlocked       Kind = "AuditUnlocked"       // the audit bucket is not write-once
	AnnouncementMissing Kind = "AnnouncementMissing" // customers were not told of this window
	AnnouncementYoung   Kind = "AnnouncementYoung"   // they were told too late
	DrillStale          Kind = "DrillStale"          // the failure drill never passed, or long ago
	HealthRed           Kind = "HealthRed"           // the hourly canary under the pointer's KEK
	SourceForgotten     Kind = "SourceForgotten"     // envelopes are written into a table that is no source
	KeyInUse            Kind = "KeyInUse"            // others use a KEK that would be disabled
	QuarterRotated      Kind = "QuarterRotated"      // the schedule asks for a quarter whose rotation has completed
	RowsUnaccounted     Kind = "RowsUnaccounted"     // items that the rotation cannot place; of the census too
	WindowClosed        Kind = "WindowClosed"        // outside the off-peak window

	ControlTableDamaged Kind = "ControlTableDamaged" // an item of it cannot be read
	RehearsalFailed     Kind = "RehearsalFailed"     // a real row cannot be rewrapped, or not be written
	KeyUnusable         Kind = "KeyUnusable"         // a KEK's KMS key cannot wrap and unwrap
	CanaryFailed        Kind = "CanaryFailed"        // the known-plaintext roundtrip
	CorpusCorrupted     Kind = "CorpusCorrupted"     // a known cipher does not open
	MintsExhausted      Kind = "MintsExhausted"      // emergency: no attempt left
	Refused             Kind = "Refused"             // an illegal transition
	Superseded          Kind = "Superseded"          // an emergency has ended this rotation; nobody is paged for it
	Approved            Kind = "Approved"            // no failure: the wait for approval need not begin
	ApprovalMissing     Kind = "ApprovalMissing"     // nobody but the requester has agreed to the switch
	ApprovalRejected    Kind = "ApprovalRejected"    // a person said no
	ApprovalExpired     Kind = "ApprovalExpired"     // nobody said anything in time
	DrainTimeout        Kind = "DrainTimeout"        // leases outlive max-wait
	RowsQuarantined     Kind = "RowsQuarantined"     // rows that cannot be rewrapped
	OrphansFound        Kind = "OrphansFound"        // rows whose KEK does not resolve
	Unverified          Kind = "Unverified"          // verify found something untrue
	AuditTampered       Kind = "AuditTampered"       // the chain or the bucket was changed
	AccessDenied        Kind = "AccessDenied"        // AWS refused a call for lack of permission
	Rejected            Kind = "Rejected"            // AWS refused a request for good
	Halted              Kind = "Halted"              // stopped after the switch, to be redriven
	Transient           Kind = "Transient"           // worth another try
	Internal            Kind = "Internal"            // a defect of this program
)

// Error is a failure a person can act on. Field names what is wrong (an input
// field, an environment variable, an attribute), Next what to do about it.
type Error struct {
	Kind  Kind
	Field string // "" if no single field is to blame
	Msg   string
	Next  string // the next step or command; "" if there is none
	Err   error  // cause; may be nil

	// Rows are the first few rows to blame, as their place names them, with the reason.
	// They are no part of the text: a row's key may be personal data, and the text goes
	// to logs, notifications, the execution's history and the audit chain. A person's
	// terminal shows them.
	Rows []string

	// Halt is what an execution halted on: of kind [Halted], else nil.
	Halt *Halt
}

// Halt is the cause of a halted execution, as the state machine's history has it: JSON
// in the error message of the function that halts. A program reads the kind from it.
type Halt struct {
	Rotation string `json:"rotation"`
	Kind     Kind   `json:"kind"`  // of the error that the execution halted on; a States.… error has that name
	Cause    string `json:"cause"` // that error in words; "" if the state machine gave none
	Next     string `json:"next"`  // what to do
}

func (e *Error) Error() string {
	s := string(e.Kind) + ": "
	if e.Field != "" {
		s += e.Field + ": "
	}
	s += e.Msg
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Next != "" {
		s += fmt.Sprintf(" (next: %s)", e.Next)
	}
	return audit.Visible(strings.ReplaceAll(s, "\n", "; ")) // rows, keys and reasons in it are others' words
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// What adapters report, for the steps to branch on.
var (
	ErrDenied         = errors.New("AWS denied the call")
	ErrRejected       = errors.New("AWS rejected the request")
	ErrNoControlTable = errors.New("the control table does not exist")
	ErrNoRecord       = errors.New("no such audit record")
	ErrNoKey          = errors.New("no such KMS key")
	ErrKeyDisabled    = errors.New("the KMS key is disabled")
	ErrUnwrap         = errors.New("KMS refused to unwrap: wrong key, wrong encryption context or no ciphertext")
)
