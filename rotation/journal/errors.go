package journal

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
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

// Error is a failure a person can act on. Field names what is wrong: an input field, a
// setting, an attribute.
type Error struct {
	Kind  Kind
	Field string // "" if no single field is to blame
	Msg   string
	Next  Next  // what to do about it; no part of the text, for each edge has its own words
	Err   error // cause; may be nil

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
	Next     string `json:"next"`  // what to do; the edge that encodes a halt writes it, in its own words
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
	return audit.Visible(strings.ReplaceAll(s, "\n", "; ")) // rows, keys and reasons in it are others' words
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// What adapters report, for the steps to branch on.
var (
	ErrDenied         = source.ErrDenied
	ErrRejected       = source.ErrRejected
	ErrNoControlTable = errors.New("the control table does not exist")
	ErrNoRecord       = errors.New("no such audit record")
	ErrNoKey          = errors.New("no such KMS key")
	ErrKeyDisabled    = errors.New("the KMS key is disabled")
	ErrUnwrap         = errors.New("KMS refused to unwrap: wrong key, wrong encryption context or no ciphertext")
)

// RejectInput refuses an input field, and says what it should be.
func RejectInput(field, msg, say string) error {
	return &Error{Kind: InvalidInput, Field: field, Msg: msg, Next: Next{Say: say}}
}

// ExplainRefusal maps what package kek says to the error a person sees.
func ExplainRefusal(err error) error {
	var typed *Error
	switch {
	case errors.As(err, &typed):
		return err
	case errors.Is(err, kek.ErrLocked):
		return &Error{Kind: RotationInProgress, Field: "LOCK", Msg: err.Error(), Next: Next{Do: ShowStatus}}
	case errors.Is(err, kek.ErrEmergencyRuns):
		return &Error{
			Kind: RotationInProgress, Field: "LOCK", Msg: err.Error(),
			Next: Next{Do: EndEmergency},
		}
	case errors.Is(err, kek.ErrSuperseded):
		return &Error{Kind: Superseded, Field: "rotation_id", Msg: err.Error(), Next: Next{Do: AwaitEmergency}}
	case errors.Is(err, kek.ErrNoPointer):
		return &Error{
			Kind: PointerInvalid, Field: "POINTER", Msg: err.Error(),
			Next: Next{Do: MakePointer},
		}
	case errors.Is(err, kek.ErrForgotten):
		return &Error{
			Kind: SourceForgotten, Field: "sources", Msg: err.Error(),
			Next: Next{Do: RegisterTable},
		}
	case errors.Is(err, kek.ErrPointerLost):
		return &Error{
			Kind: PointerInvalid, Field: "POINTER", Msg: err.Error() + "; another genesis would set the epoch back to 1 and orphan rows",
			Next: Next{Do: RunDoctor},
		}
	case errors.Is(err, kek.ErrChanged):
		return &Error{Kind: Transient, Field: "rotation", Msg: err.Error(), Next: Next{Say: "the rows are looked at again"}}
	case errors.Is(err, kek.ErrMintsExhausted):
		return &Error{Kind: MintsExhausted, Msg: err.Error(), Next: Next{Say: "find out why dual unwrap fails, then redrive the execution"}}
	case errors.Is(err, kek.ErrNoRotation):
		return &Error{Kind: Refused, Field: "rotation_id", Msg: err.Error(), Next: Next{Do: ShowStatus}}
	default:
		return &Error{Kind: Refused, Msg: err.Error(), Next: Next{Do: ShowStatus}}
	}
}

// WrapUnavailable marks a failure as worth another try: the outcome is unknown or the
// service did not answer. A missing permission and a request that AWS rejects are
// not: repeating changes neither. A typed error below keeps its own kind.
func WrapUnavailable(what string, err error) error {
	var typed *Error
	switch {
	case errors.As(err, &typed):
		return err
	case errors.Is(err, ErrDenied):
		return &Error{
			Kind: AccessDenied, Field: what, Msg: "a permission is missing", Err: err,
			Next: Next{Do: ComparePolicies},
		}
	case errors.Is(err, ErrRejected):
		return &Error{Kind: Rejected, Field: what, Msg: "repeating it would not help", Err: err, Next: Next{Say: "fix what AWS names, then continue"}}
	}
	next := Next{Say: "it is retried; nothing is lost"}
	if errors.Is(err, kek.ErrConflict) {
		next = Next{Do: RetryThenRunDoctor}
	}
	return &Error{Kind: Transient, Field: what, Msg: "no usable answer", Err: err, Next: next}
}

// ReadFunctionMessage is the error of a function in words. Lambda gives it to a state machine as
// JSON (Lambda developer guide, "Function errors in Step Functions"); another cause is
// returned as it is.
func ReadFunctionMessage(cause string) string {
	var function struct {
		Message string `json:"errorMessage"`
	}
	if json.Unmarshal([]byte(cause), &function) == nil && function.Message != "" {
		return function.Message
	}
	return cause
}

// ReadFailure reads what an execution failed with, by the error name and cause that Step
// Functions has of it: the kind of the step's error, and its text. For a halt they are
// those of the error that it halted on. Anyone who may fail a task has written the cause:
// both are in one line, without what a terminal would act on.
func ReadFailure(name, cause string) (kind Kind, text string) {
	kind, text = Kind(name), ReadFunctionMessage(cause)
	var h Halt
	if kind == Halted && json.Unmarshal([]byte(text), &h) == nil && h.Kind != "" {
		kind, text = h.Kind, h.Cause
	}
	kind = Kind(audit.Visible(string(kind)))
	text = audit.Visible(strings.ReplaceAll(text, "\n", "; "))
	return kind, strings.TrimPrefix(text, string(kind)+": ")
}

// CutText shortens a text to what a record should hold.
func CutText(text string) string {
	const most = 900
	if len(text) > most {
		text = text[:most]
	}
	return string(slices.DeleteFunc([]rune(text), func(r rune) bool { return r == '\uFFFD' }))
}

// LambdaActor begins the actor of a step that a function runs: it is nobody's
// identity.
const LambdaActor = "lambda/"
