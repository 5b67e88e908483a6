package rotation

import (
	"context"
	"strings"

	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Notify tells people what happened, what is safe and what to do next, and moves an
// announced window to its stage. A halt is told and then returned as the error
// [journal.Halted], so that the execution fails in this task. A redrive enters the same task
// again; then Notify returns success and the rotation continues. A status page that cannot
// be reached stops nothing.
func (s *Steps) Notify(ctx context.Context, in journal.Notice) (NotifyOutput, error) {
	if in.Event == journal.NotifyHalted && in.HaltedIn != nil && in.Execution.RedriveCount > in.HaltedIn.RedriveCount {
		return NotifyOutput{}, nil
	}
	if in.Event != journal.NotifyVerifying {
		if err := s.Journal.TellPeople(ctx, in); err != nil {
			return NotifyOutput{}, err
		}
	}
	out := NotifyOutput{Sent: s.Journal.Notifier != nil && in.Event != journal.NotifyVerifying}
	if stage := stages[in.Event]; stage != "" && in.Label != "" && in.Drill == "" {
		out.Untold = s.Gates.MoveWindow(ctx, in.Label, stage)
	}
	if in.Event == journal.NotifyHalted {
		h := &journal.Halt{Rotation: in.RotationID, Kind: journal.Kind(in.Error), Cause: journal.ReadFunctionMessage(in.Cause)}
		return out, &journal.Error{Kind: journal.Halted, Field: h.Rotation, Msg: strings.TrimSuffix(in.Error+": "+strings.TrimPrefix(h.Cause, in.Error+": "), ": "), Next: in.NextStep(), Halt: h}
	}
	return out, nil
}

// stages is the stage of an announced window after an event. For customers, a rotation that
// was rolled back is completed as well.
var stages = map[string]gates.Stage{
	journal.NotifyStarted: gates.StageInProgress, journal.NotifyVerifying: gates.StageVerifying, journal.NotifyCompleted: gates.StageCompleted, journal.NotifyRolledBack: gates.StageCompleted,
}
