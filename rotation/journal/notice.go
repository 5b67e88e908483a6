package journal

import (
	"context"
	"encoding/json"
	"fmt"
)

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

// Notice is the input of notify. For a halt the function returns the error
// [Halted], which fails the execution in a Task state; when the execution is
// redriven (its redrive count has grown since it halted) it returns success and
// the rotation goes on.
type Notice struct {
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

// TellPeople gives an event to the notifier.
func (j *Journal) TellPeople(ctx context.Context, in Notice) error {
	switch {
	case in.NextStep().IsZero():
		return RejectInput("event", fmt.Sprintf("%q is unknown", in.Event), "use one of events/notify*.json")
	case in.Missing != "" && in.Event != NotifyCompleted:
		return RejectInput("rows_missing", "it is of a completed rotation", "leave it out")
	case j.Notifier == nil:
		return nil
	}
	if err := j.Notifier.TellPeople(ctx, in); err != nil {
		return WrapUnavailable("notification", err)
	}
	return nil
}

// NextStep is what a person who is told of the event should do; zero for an event that
// nobody is told of.
func (in Notice) NextStep() Next {
	switch in.Event {
	case NotifyCompleted:
		if in.Missing != "" {
			return Next{Do: FindMissingRows, Rotation: in.RotationID}
		}
		return Next{Do: ShowPointer, Rotation: in.RotationID}
	case NotifyStarted:
		return Next{Do: FollowExecution, Execution: in.Execution.Name}
	case NotifyHalted:
		return Next{Do: ResumeRotation, Rotation: in.RotationID, Execution: in.Execution.ID}
	case NotifyRolledBack:
		return Next{Do: RotateAgain}
	case NotifyRefused:
		return Next{Do: ShowChecks}
	case NotifyApproval:
		return Next{Do: JudgePlan, Rotation: in.RotationID, Plan: in.Plan}
	case NotifyDrilled:
		return Next{Do: ShowDrill}
	case NotifyAnnounced:
		return Next{Do: PrepareWindow}
	case NotifyGeneration:
		return Next{Do: FindForeignObject}
	case NotifyHealthRed:
		return Next{Do: FindCanaryFault}
	default:
		return Next{}
	}
}
