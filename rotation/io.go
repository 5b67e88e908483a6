package rotation

import (
	"encoding/json"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
)

// The inputs and outputs of the functions are JSON payloads of the state machine and of the
// CLI. They carry ids and counts and never key material, because Step Functions keeps them
// in its history. They are decoded strictly: an unknown field is [journal.InvalidInput].

// ExecutionInput is what a person or the schedule starts the state machine with.
// Blank ({}) is a normal rotation labelled after the quarter.
type ExecutionInput struct {
	Mode   string `json:"mode,omitempty"`   // normal (default) or emergency
	Label  string `json:"label,omitempty"`  // default: Q<n>-<year>-rotation
	Reason string `json:"reason,omitempty"` // required in emergency mode
	Window string `json:"window,omitempty"` // HH:MM-HH:MM or any; default: the deployment's
	Resume string `json:"resume,omitempty"` // id of a halted rotation to continue
	Again  bool   `json:"again,omitempty"`  // an emergency may also end another emergency
	Drill  string `json:"drill,omitempty"`  // name of a drill: a rotation that is made to fail before the switch

	// RequestedBy says who asks: an identity's ARN, or [ScheduleRequester]. If two persons
	// must agree to a rotation, this one cannot be the second.
	RequestedBy string `json:"requested_by,omitempty"`
}

// PreflightInput starts a rotation. The rotation id is the execution's name,
// except when Input.Resume names a halted one.
type PreflightInput struct {
	ExecutionARN  string         `json:"execution_arn"`
	ExecutionName string         `json:"execution_name"`
	Input         ExecutionInput `json:"input"`
	Entrance      Entrance       `json:"entrance,omitempty"`      // set by the state machine's definition
	CheckOnly     bool           `json:"check_only,omitempty"`    // report, start nothing
	Announce      bool           `json:"announce,omitempty"`      // with CheckOnly, days ahead: tell customers of the window
	AnnounceFrom  *time.Time     `json:"announce_from,omitempty"` // a moment in that window; default: the next one that the notice allows
}

// Entrance says which rotations a state machine may start and resume. It comes from the
// state machine's definition and never from the execution's input, so that a permission to
// start executions of one machine cannot be used for the other kind of rotation
// (docs/adr/0017-entrances.md).
type Entrance string

// The entrances. The zero value restricts nothing: the operator's shell and the schedule
// call preflight without a state machine.
const (
	EntranceNormal    Entrance = "normal"    // normal rotations and drills
	EntranceEmergency Entrance = "emergency" // emergencies
	EntranceAny       Entrance = "any"       // both, in a deployment with one permission for both
)

// Plan is preflight's output and the payload that the state machine carries.
type Plan struct {
	RotationID string   `json:"rotation_id"`
	Mode       string   `json:"mode"`
	Label      string   `json:"label"`
	OldKEK     string   `json:"old_kek_id"`
	Olds       []string `json:"old_kek_ids"` // every KEK that it leaves and retires, old_kek_id first
	Rewrap     Walk     `json:"rewrap"`      // what its map begins with
	Checks     []Check  `json:"checks"`
	Current    Attempt  `json:"current"`
	Drill      string   `json:"drill"`    // "" for a real rotation
	Approval   bool     `json:"approval"` // before the switch the execution waits for a second person

	// What the state machine itself needs from the configuration.
	ApprovalSeconds int64 `json:"approval_seconds"`   // how long it waits for that person
	Concurrency     int   `json:"rewrap_concurrency"` // segments that a map works on at once
}

// Attempt is the mint attempt that the execution is at. The action remint gets the attempt
// that failed, so that a repeated call does not count twice.
type Attempt struct {
	Attempt int `json:"attempt"`
}

// Walk is what a map of the state machine works on.
type Walk struct {
	Left Segments `json:"left"` // segments that are not done
}

// Segment is one part of one source: the unit of work of the maps.
type Segment struct {
	Source  string `json:"source"`
	Segment int    `json:"segment"`
}

// Segments are the items of a map. They are an array in a payload, also if there are none:
// a map state fails on null.
type Segments []Segment

// MarshalJSON implements [json.Marshaler].
func (s Segments) MarshalJSON() ([]byte, error) { return json.Marshal(append([]Segment{}, s...)) }

// Check is one thing that preflight or verify looked at.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Err    error  `json:"-"` // why it is not OK, with what to do about it
}

// fail returns the check as one that failed with an error.
func (c Check) fail(err error) Check {
	c.OK = false
	c.Detail = err.Error()
	c.Err = err
	return c
}

// StepInput names the rotation that a step works on. Everything else is read from the
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
// before the mint. With Source it asks for work on one segment of that pass, and for no
// conclusion.
type VerifyInput struct {
	RotationID string `json:"rotation_id"`
	Census     bool   `json:"census,omitempty"`
	Source     string `json:"source,omitempty"`
	Segment    int    `json:"segment,omitempty"`
}

// SweepOutput is the output of census, rewrap and verify: passes over rows. Done false means
// that time ran out; the next call continues from the checkpoints.
type SweepOutput struct {
	Done    bool             `json:"done"`
	Paused  bool             `json:"paused"` // a person has paused the walk: call again later
	Left    Segments         `json:"left"`   // of a pass over all sources: segments that are not done
	Deep    bool             `json:"deep"`   // every distinct data key under the new KEK was unwrapped, else a sample
	Tally   Tally            `json:"tally"`
	Sources map[string]Tally `json:"-"`            // by name; of passes over all sources
	Note    string           `json:"note"`         // what the end of the rotation leaves open; "" for nothing
	Missing string           `json:"rows_missing"` // sources with far fewer rows at the end than an earlier pass scanned; "" for none

	read     time.Time      // when the last page was
	litter   string         // objects in the audit bucket that are not part of the chain
	verified *audit.Start   // where the next verification of the chain may begin; nil: no anchor is proven
	open     string         // what of the chain no public log has
	opened   []frozenSource // the sources of Sources
}

// WithoutRows is the output without the rows that it names, for logs and the execution's
// history.
func (o SweepOutput) WithoutRows() SweepOutput {
	o.Tally.Poison = nil
	o.Tally.DataKeys = nil
	o.Sources = nil
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
	ActionRemint           = "remint"             // the new KEK; an emergency mints another
	ActionAbandon          = "abandon"            // a preflight that failed after it took the lock
)

// RetireInput is the input of retire. Error and Cause are what the state
// machine caught, for the record.
type RetireInput struct {
	RotationID    string `json:"rotation_id"`
	Action        string `json:"action,omitempty"` // default retire
	Source        string `json:"source,omitempty"` // retire: work on one segment of the second scan, and retire nothing
	Segment       int    `json:"segment,omitempty"`
	FailedAttempt int    `json:"failed_attempt,omitempty"` // remint: the attempt that failed
	ExecutionARN  string `json:"execution_arn,omitempty"`  // abandon: the execution whose preflight failed
	Error         string `json:"error,omitempty"`
	Cause         string `json:"cause,omitempty"`
}

// RetireOutput is the output of retire. Done false means: call again.
type RetireOutput struct {
	Done    bool     `json:"done"`
	Paused  bool     `json:"paused"`  // see [SweepOutput]
	Left    Segments `json:"left"`    // segments of the second scan that are not done
	Phase   string   `json:"phase"`   // the rotation's phase now; "" if it has no record
	Attempt int      `json:"attempt"` // the mint attempt it is at
	Tally   Tally    `json:"tally"`
	Drill   string   `json:"drill"` // of a drill that was rolled back: passed or failed; else ""
}

// NotifyOutput is the output of notify.
type NotifyOutput struct {
	Sent   bool     `json:"sent"`
	Untold []string `json:"untold,omitempty"` // announcers that could not be reached
}

// HealthInput is empty: there is one pointer.
type HealthInput struct{}

// HealthOutput is the result of one canary under the pointer's KEK.
type HealthOutput struct {
	KEK    string `json:"kek_id"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Day    string `json:"day"`   // UTC
	Green  int64  `json:"green"` // checks of the day so far
	Red    int64  `json:"red"`
}
