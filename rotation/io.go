package rotation

import (
	"encoding/json"
	"time"
)

// The inputs and outputs of the functions, as JSON payloads of the state machine
// and of the CLI. They carry ids and counts, never key material, and are decoded
// strictly: an unknown field is [InvalidInput].

// ExecutionInput is what a person or the schedule starts the state machine with.
// Blank ({}) is a normal rotation labelled after the quarter.
type ExecutionInput struct {
	Mode   string `json:"mode,omitempty"`   // normal (default) or emergency
	Label  string `json:"label,omitempty"`  // default: Q<n>-<year>-rotation
	Reason string `json:"reason,omitempty"` // required in emergency mode
	Window string `json:"window,omitempty"` // HH:MM-HH:MM or any; default: the deployment's
	Resume string `json:"resume,omitempty"` // id of a halted rotation to go on with
	Again  bool   `json:"again,omitempty"`  // an emergency ends the emergency that runs, too
	Drill  string `json:"drill,omitempty"`  // name of a drill: a rotation that is made to fail before the switch

	// RequestedBy is who asks: an identity's ARN, or what the schedule calls itself.
	// Where two persons must agree, this one cannot be the second.
	RequestedBy string `json:"requested_by,omitempty"`
}

// PreflightInput starts a rotation. The rotation id is the execution's name,
// except when Input.Resume names a halted one.
type PreflightInput struct {
	ExecutionARN  string         `json:"execution_arn"`
	ExecutionName string         `json:"execution_name"`
	Input         ExecutionInput `json:"input"`
	Entrance      Entrance       `json:"entrance,omitempty"`      // of the state machine, by its definition
	CheckOnly     bool           `json:"check_only,omitempty"`    // report, start nothing
	Announce      bool           `json:"announce,omitempty"`      // with CheckOnly, days ahead: tell customers of the window
	AnnounceFrom  *time.Time     `json:"announce_from,omitempty"` // a moment in that window; default: the next one that the notice allows
}

// Entrance is which rotations a state machine may start and resume. The state machine's
// definition says it, beside the execution's input and never from it, so that whoever may
// start executions of one machine cannot ask for the other kind (docs/adr/0017-entrances.md).
type Entrance string

// The entrances. The zero value is the operator's shell and the schedule of preflight, which
// no state machine stands before: it restricts nothing.
const (
	EntranceNormal    Entrance = "normal"    // normal rotations and drills
	EntranceEmergency Entrance = "emergency" // emergencies
	EntranceAny       Entrance = "any"       // both, where the deployment says that one permission is for both
)

// Plan is preflight's output and the payload that the state machine carries.
type Plan struct {
	RotationID string    `json:"rotation_id"`
	Mode       string    `json:"mode"`
	Label      string    `json:"label"`
	OldKEK     string    `json:"old_kek_id"`
	Olds       []string  `json:"old_kek_ids"` // every KEK that it leaves and retires, old_kek_id first
	Segments   []Segment `json:"segments"`
	Checks     []Check   `json:"checks"`
	Current    Attempt   `json:"current"`
	Drill      string    `json:"drill"`    // "" for a real rotation
	Approval   bool      `json:"approval"` // before the switch the execution waits for a second person

	// What the state machine itself needs of the configuration.
	ApprovalSeconds int64 `json:"approval_seconds"`   // how long it waits for that person
	Concurrency     int   `json:"rewrap_concurrency"` // segments that it has rewrapped at once
}

// Attempt is the mint attempt that the execution is at. Remint gets the one that
// it saw fail, so that a repeated call does not count twice.
type Attempt struct {
	Attempt int `json:"attempt"`
}

// Segment is one part of one source: the unit of work of the rewrap map.
type Segment struct {
	Source  string `json:"source"`
	Segment int    `json:"segment"`
}

// Check is one thing that preflight or verify looked at.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// StepInput names the rotation a step works on; everything else is read from the
// control table, so that a stale argument cannot do harm.
type StepInput struct {
	RotationID string `json:"rotation_id"`
}

// MintOutput is the output of mint.
type MintOutput struct {
	NewKEK  string `json:"new_kek_id"`
	Attempt int    `json:"attempt"`
}

// DualUnwrapOutput is the output of dualunwrap.
type DualUnwrapOutput struct {
	Canaries int `json:"canaries"`       // roundtrips of the known plaintext
	Corpus   int `json:"corpus_entries"` // known ciphers opened under old and new
	Settle   int `json:"settle_seconds"` // until the new KEK is known everywhere
}

// SwitchOutput is the output of switch.
type SwitchOutput struct {
	KEK   string `json:"kek_id"`
	Epoch int64  `json:"epoch"`
}

// DrainOutput is the output of drain, which polls and never waits.
type DrainOutput struct {
	Done   bool  `json:"done"`   // sealed
	Leases int   `json:"leases"` // live leases on the old KEK
	Refs   int64 `json:"refs"`   // in-flight references, the sum over them
	Waited int64 `json:"waited_seconds"`
	Pause  int64 `json:"wait_seconds"` // before the next look
}

// RewrapInput asks for work on one segment, with Complete for the transition to
// rewrapped once every segment is done, or with Rehearse for the trial before the
// switch.
type RewrapInput struct {
	RotationID string `json:"rotation_id"`
	Rehearse   bool   `json:"rehearse,omitempty"`
	Source     string `json:"source,omitempty"`
	Segment    int    `json:"segment,omitempty"`
	Complete   bool   `json:"complete,omitempty"`
}

// VerifyInput asks for the last look at every row, or with Census for the first one,
// before the mint.
type VerifyInput struct {
	RotationID string `json:"rotation_id"`
	Census     bool   `json:"census,omitempty"`
}

// SweepOutput is the output of census, rewrap and verify: passes over rows that go on
// from their checkpoint until done.
type SweepOutput struct {
	Done    bool             `json:"done"`
	Deep    bool             `json:"deep"` // every distinct data key under the new KEK was unwrapped, else a sample
	Tally   Tally            `json:"tally"`
	Sources map[string]Tally `json:"-"`            // by name; of passes over all sources
	Note    string           `json:"note"`         // what the end of the rotation leaves open; "" for nothing
	Missing string           `json:"rows_missing"` // sources with far fewer rows at the end than an earlier pass scanned; "" for none

	read   time.Time // when the last page was
	litter string    // what is in the audit bucket that is no part of the chain
	open   string    // what of the chain no public log has
}

// WithoutRows is the output without the rows that it names, for logs and the execution's
// history.
func (o SweepOutput) WithoutRows() SweepOutput {
	o.Tally.Poison, o.Sources = nil, nil
	return o
}

// WithoutRows is the output without the rows that it names, for logs and the execution's
// history.
func (o RetireOutput) WithoutRows() RetireOutput {
	o.Tally.Poison = nil
	return o
}

// Actions of the retire function.
const (
	ActionRetire           = "retire"             // the old KEK, after the rewrap
	ActionPreSwitchFailure = "pre_switch_failure" // the new KEK; the rotation is rolled back
	ActionRemint           = "remint"             // the new KEK; an emergency goes on
	ActionAbandon          = "abandon"            // a preflight that failed after it took the lock
)

// RetireInput is the input of retire. Error and Cause are what the state
// machine caught, for the record.
type RetireInput struct {
	RotationID    string `json:"rotation_id"`
	Action        string `json:"action,omitempty"`         // default retire
	FailedAttempt int    `json:"failed_attempt,omitempty"` // remint: the attempt that failed
	ExecutionARN  string `json:"execution_arn,omitempty"`  // abandon: the execution whose preflight failed
	Error         string `json:"error,omitempty"`
	Cause         string `json:"cause,omitempty"`
}

// RetireOutput is the output of retire. Done false means: call again.
type RetireOutput struct {
	Done    bool   `json:"done"`
	Phase   string `json:"phase"`   // the rotation's phase now; "" if it has no record
	Attempt int    `json:"attempt"` // the mint attempt it is at
	Tally   Tally  `json:"tally"`
	Drill   string `json:"drill"` // of a drill that was rolled back: passed or failed; else ""
}

// Events that notify tells people of.
const (
	NotifyStarted    = "started"
	NotifyVerifying  = "verifying" // of no interest but to customers who follow the window
	NotifyCompleted  = "completed"
	NotifyRolledBack = "rolledback"
	NotifyRefused    = "refused"         // preflight said no; nothing changed
	NotifyHalted     = "halted"          // after the switch, or an emergency out of attempts
	NotifyDrilled    = "drilled"         // a drill failed where it should
	NotifyApproval   = "approval_wanted" // sent by approve
	NotifyAnnounced  = "announced"       // sent by preflight, seven days ahead
	NotifyHealthRed  = "health_red"      // sent by health
	NotifyGeneration = "generation"      // sent by a command in a person's shell; of a function, an alarm tells
)

// NotifyInput is the input of notify. For a halt the function returns the error
// [Halted], which fails the execution in a Task state; when the execution is
// redriven (its redrive count has grown since it halted) it returns success and
// the rotation goes on.
type NotifyInput struct {
	Event      string     `json:"event"`
	RotationID string     `json:"rotation_id,omitempty"`
	Error      string     `json:"error,omitempty"`
	Cause      string     `json:"cause,omitempty"`
	Execution  Execution  `json:"execution"`              // $$.Execution
	HaltedIn   *Execution `json:"halted_in,omitempty"`    // $$.Execution when it halted
	Label      string     `json:"label,omitempty"`        // of the rotation, by which its window was announced
	Mode       string     `json:"mode,omitempty"`         // of the rotation
	Drill      string     `json:"drill,omitempty"`        // name of the drill that the rotation is: no customer hears of it
	Plan       string     `json:"plan,omitempty"`         // hash of the plan to approve
	Detail     string     `json:"detail,omitempty"`       // one line more
	Missing    string     `json:"rows_missing,omitempty"` // of a completed rotation: sources that have lost many rows
}

// Execution is what is used of the Step Functions context object's Execution, of which
// the redrive count alone is not in every implementation. AWS writes it and has added
// fields to it before (RedriveCount and RedriveTime in 2023): others are ignored.
type Execution struct {
	ID           string `json:"Id"`
	Name         string `json:"Name"`
	RedriveCount int    `json:"RedriveCount,omitempty"`
}

// UnmarshalJSON ignores fields that are not known, however strictly the rest of the
// payload is decoded.
func (e *Execution) UnmarshalJSON(b []byte) error {
	type plain Execution
	return json.Unmarshal(b, (*plain)(e))
}

// NotifyOutput is the output of notify.
type NotifyOutput struct {
	Sent   bool     `json:"sent"`
	Untold []string `json:"untold,omitempty"` // announcers that could not be reached
}

// ApprovalInput asks for the approval of a rotation that stands before its switch.
// Token is the state machine's, which waits for it.
type ApprovalInput struct {
	RotationID string `json:"rotation_id"`
	Token      string `json:"task_token"`
}

// ApprovalOutput says what is to be approved; nobody reads it but a log.
type ApprovalOutput struct {
	Plan    string `json:"plan"`
	Expires string `json:"expires"`
}

// HealthInput is empty: there is one pointer.
type HealthInput struct{}

// HealthOutput is what one canary under the pointer's KEK has shown.
type HealthOutput struct {
	KEK    string `json:"kek_id"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Day    string `json:"day"`   // UTC
	Green  int64  `json:"green"` // checks of the day so far
	Red    int64  `json:"red"`
}
