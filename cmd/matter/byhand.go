package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/executions"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// A rotation done by hand is the same steps, one command each. The commands find
// the rotation by a KEK's id, as the runbook has it.

// The flags that name a KEK, as refusals say them.
const (
	flagKEK    = "--kek-id"
	flagOldKEK = "--old-kek-id"
	flagNewKEK = "--new-kek-id"
)

// rotationOfNew finds the rotation whose new KEK this is. flag is the one that named it.
func (o *operator) rotationOfNew(ctx context.Context, flag string, id kek.ID) (kek.Rotation, error) {
	k, err := o.registeredKEK(ctx, flag, id)
	if err != nil {
		return kek.Rotation{}, err
	}
	if k.RotationID == "" {
		return kek.Rotation{}, refusedError(flag, fmt.Sprintf("KEK %s is the first KEK: no rotation minted it", id), "matter ops kms-status")
	}
	v, err := o.stack.Table.Load(ctx, k.RotationID)
	if err != nil {
		return kek.Rotation{}, err
	}
	if v.Rotation == nil {
		return kek.Rotation{}, refusedError(flag, fmt.Sprintf("rotation %s, which minted KEK %s, has no record", k.RotationID, id), "matter ops kms-status")
	}
	if v.Rotation.NewKEK != id {
		return kek.Rotation{}, refusedError(flag,
			fmt.Sprintf("KEK %s was given up by rotation %s, which is %s", id, v.Rotation.ID, v.Rotation.Phase), o.nextCommand(ctx, *v.Rotation))
	}
	return *v.Rotation, nil
}

// rotationOfOld finds the rotation that leaves this KEK, or has left it.
func (o *operator) rotationOfOld(ctx context.Context, flag string, id kek.ID) (kek.Rotation, error) {
	k, err := o.registeredKEK(ctx, flag, id)
	if err != nil {
		return kek.Rotation{}, err
	}
	all, err := o.stack.Table.Rotations(ctx)
	if err != nil {
		return kek.Rotation{}, err
	}
	slices.Reverse(all)
	for _, r := range all {
		if (r.OldKEK == id || slices.Contains(r.Olds, id)) && r.Phase != kek.RolledBack && r.Phase != kek.Superseded {
			return r, nil
		}
	}
	msg := fmt.Sprintf("no rotation leaves KEK %s, which is %s", id, k.State)
	if k.RotationID == "" {
		return kek.Rotation{}, refusedError(flag, msg, `matter ops kms-mint-kek --label "<label>"`)
	}
	r, err := o.reloadRotation(ctx, k.RotationID)
	if err != nil {
		return kek.Rotation{}, err
	}
	return kek.Rotation{}, refusedError(flag, fmt.Sprintf("%s: rotation %s, which minted it, is %s", msg, r.ID, r.Phase), o.nextCommand(ctx, r))
}

// registeredKEK reads a KEK from the registry, and refuses one that the registry does not
// know: most often an id with a typing error.
func (o *operator) registeredKEK(ctx context.Context, flag string, id kek.ID) (kek.KEK, error) {
	all, err := o.stack.Table.KEKs(ctx)
	if err != nil {
		return kek.KEK{}, err
	}
	for _, k := range all {
		if k.ID == id {
			return k, nil
		}
	}
	return kek.KEK{}, refusedError(flag, fmt.Sprintf("KEK %s is not in the registry", id), "matter ops kms-status lists the KEKs")
}

// refusedError is the refusal of a command: what is refused, why, and the command that comes
// next.
func refusedError(field, msg, next string) error {
	return &journal.Error{Kind: journal.Refused, Field: field, Msg: msg, Next: journal.Next{Say: next}}
}

// nextCommand is what comes next for a rotation done by hand.
func (o *operator) nextCommand(ctx context.Context, r kek.Rotation) string {
	command := "matter ops " + cmp.Or(flow.CommandAt(r.Phase), "kms-status")
	switch r.Phase {
	case kek.Started:
		command += fmt.Sprintf(" --label %q", r.Label)
		if r.Mode == kek.Emergency {
			command += fmt.Sprintf(" --emergency --reason %q", r.Reason)
		}
	case kek.Minted:
		command += fmt.Sprintf(" --kek-id %s", r.NewKEK)
		if known := corporaOf(o.stack.Steps.OpenSource, r); len(known) > 0 {
			command += " --corpus s3://" + known[0] + "/"
		}
	case kek.Tested:
		if plan, err := o.stack.Steps.Gates.FindWaitingPlan(ctx, r); err == nil && plan != "" { // else the switch says what is missing
			return approveCommand(r.ID, plan)
		}
		command += fmt.Sprintf(" --kek-id %s --confirm", r.NewKEK)
	case kek.Switched:
		command += fmt.Sprintf(" --old-kek-id %s --max-wait 30m", r.OldKEK)
	case kek.Drained:
		command += fmt.Sprintf(" --kek-id %s", r.NewKEK)
	case kek.Rewrapped:
		command += fmt.Sprintf(" --kek-id %s --confirm", r.OldKEK)
	case kek.KEKRetired:
		command += fmt.Sprintf(" --new-kek-id %s", r.NewKEK)
	case kek.Completed:
		return "nothing; " + command + " shows the pointer and the KEKs"
	case kek.Superseded:
		return "nothing: emergency " + r.EndedBy + " has ended it; " + command
	case kek.RolledBack:
		return fmt.Sprintf("fix the cause, then: matter ops %s --label %q", flow.CommandAt(kek.Started), r.Label)
	}
	return command
}

// approveCommand is how a second person agrees to the plan that waits.
func approveCommand(rotation, plan string) string {
	return fmt.Sprintf("matter ops approve --rotation %s --plan %s  # by a person who did not ask for it", rotation, plan)
}

// checkPhase refuses a step that must not run at the rotation's phase, one that an execution of the
// state machine is at work on, and one of a rotation that is over while another is under way.
func (o *operator) checkPhase(ctx context.Context, flag string, r kek.Rotation, from kek.Phase) error {
	if !r.Phase.Reached(from) {
		return refusedError("phase", fmt.Sprintf("rotation %s is %s; this step needs it %s", r.ID, r.Phase, from), o.nextCommand(ctx, r))
	}
	if r.Phase.Final() {
		return o.checkMeant(ctx, flag, r)
	}
	return o.checkNoExecution(ctx, r)
}

// checkMeant refuses a step of a rotation that has ended while another one is under way: the KEK
// that was given is most likely not the one that was meant.
func (o *operator) checkMeant(ctx context.Context, flag string, ended kek.Rotation) error {
	v, err := o.stack.Table.Load(ctx, "")
	if err != nil || v.Lock == "" {
		return err
	}
	r, err := o.reloadRotation(ctx, v.Lock)
	if err != nil {
		return err
	}
	return refusedError(flag, fmt.Sprintf("this KEK is of rotation %s, which is %s; rotation %s is under way", ended.ID, ended.Phase, r.ID), o.continueCommand(ctx, r))
}

// stillRunning is an outcome that is not known yet.
type stillRunning struct{ error }

func (s stillRunning) Unwrap() error { return s.error }

// checkNoExecution refuses to work on a rotation by hand while an execution does.
func (o *operator) checkNoExecution(ctx context.Context, r kek.Rotation) error {
	if r.Phase.Final() {
		return nil
	}
	e, ok, err := o.findExecution(ctx, r.ID)
	if err != nil { // by hand is what is left when Step Functions does not answer
		fmt.Fprintf(o.console.Err, "warning: no answer whether an execution is at work on rotation %s; the step is safe either way: %s\n", r.ID, advice.Explain(err))
		return nil
	}
	if !ok {
		return nil
	}
	return stillRunning{&journal.Error{
		Kind: journal.RotationInProgress, Field: "execution", Msg: fmt.Sprintf("execution %s is at work on rotation %s", e.Name, r.ID),
		Next: journal.Next{Say: "matter ops kms-rotate --watch --execution " + e.Name},
	}}
}

// findExecution finds the execution that works on a rotation.
func (o *operator) findExecution(ctx context.Context, id string) (executions.Execution, bool, error) {
	all, err := o.stack.ListRunning(ctx)
	if err != nil {
		return executions.Execution{}, false, err
	}
	for _, e := range all {
		if e.RotationID == id {
			return e, true, nil
		}
	}
	return executions.Execution{}, false, nil
}

// adviseByHand gives a failed step the command that comes next for a person, where the
// step itself speaks of the state machine.
func (o *operator) adviseByHand(ctx context.Context, err error, r kek.Rotation) error {
	var typed *journal.Error
	if err == nil || !errors.As(err, &typed) {
		return err
	}
	e := *typed
	switch e.Kind {
	case journal.CanaryFailed, journal.CorpusCorrupted, journal.KeyUnusable:
		if r.Phase.PreSwitch() {
			e.Next = journal.Next{Say: giveUpCommand(r, preSwitchFailure) + " --confirm"}
		}
	case journal.RehearsalFailed: // a definition is corrected when no rotation holds it
		e.Next = journal.Next{Say: strings.TrimPrefix(advice.Command(e.Next)+"; first give the rotation up: ", "; ") + giveUpCommand(r, preSwitchFailure) + " --confirm"}
	case journal.RowsQuarantined:
		e.Next = journal.Next{Say: "correct or delete these rows, then: " + o.nextCommand(ctx, r)}
	case journal.OrphansFound:
		e.Next = journal.Next{Say: "enable the old KMS key, restore these rows under the current KEK (matter ops restore-rows), then: " + o.nextCommand(ctx, r)}
	case journal.KeyInUse:
		e.Next = journal.Next{Say: "move its other users to the new KEK, revoke their grants (aws kms revoke-grant), then: " + o.nextCommand(ctx, r)}
	case journal.Transient:
		e.Next = journal.Next{Say: "repeat the command; nothing is lost"}
	case journal.Refused, journal.Unverified:
		if e.Next.Do != journal.ContinueRotation { // the pause has to end first
			e.Next = journal.Next{Say: o.nextCommand(ctx, r)}
		}
	case journal.MintsExhausted:
		e.Next = journal.Next{Say: "find out why dual unwrap fails, then: matter ops kms-dual-unwrap --kek-id " + string(r.NewKEK)}
	default: // it speaks for itself
	}
	return &e
}

// giveUpCommand is PreSwitchFailure as a command.
func giveUpCommand(r kek.Rotation, reason string) string {
	which := "--kek-id " + string(r.NewKEK)
	if r.NewKEK == "" {
		which = "--rotation " + r.ID
	}
	return fmt.Sprintf("matter ops kms-retire-kek %s --reason %q", which, reason)
}

// preSwitchFailure is the reason that the runbook gives.
const preSwitchFailure = "pre-switch failure"

// reloadRotation reads a rotation's record as it is now.
func (o *operator) reloadRotation(ctx context.Context, id string) (kek.Rotation, error) {
	v, err := o.stack.Table.Load(ctx, id)
	if err != nil {
		return kek.Rotation{}, err
	}
	if v.Rotation == nil {
		return kek.Rotation{}, refusedError("rotation", fmt.Sprintf("rotation %s has no record", id), "matter ops kms-status")
	}
	return *v.Rotation, nil
}

// stepResult is the outcome of one step done by hand.
type stepResult struct {
	RotationID string    `json:"rotation_id"`
	Phase      kek.Phase `json:"phase"`
	OldKEK     kek.ID    `json:"old_kek_id"`
	NewKEK     kek.ID    `json:"new_kek_id"`
	Already    bool      `json:"already_done"` // this call found it done
	Next       string    `json:"next"`
	Output     any       `json:"output,omitempty"`
}

// reportStep reloads the rotation and says how it stands after a step. before is the
// phase that the command found.
func (o *operator) reportStep(ctx context.Context, id string, before kek.Phase, output any, lines ...string) error {
	r, err := o.reloadRotation(ctx, id)
	if err != nil {
		return err
	}
	res := stepResult{
		RotationID: r.ID, Phase: r.Phase, OldKEK: r.OldKEK, NewKEK: r.NewKEK,
		Already: before == r.Phase, Next: o.nextCommand(ctx, r), Output: output,
	}
	head := fmt.Sprintf("rotation %s is %s", r.ID, r.Phase)
	if res.Already {
		head += "; this step was done before"
	}
	return o.console.PrintResult(res, append(append([]string{head}, lines...), nextLine(res.Next))...)
}

// refuseUnconfirmed says what a destructive command was not told to do, and the command that
// does it.
func (o *operator) refuseUnconfirmed(does, command string) error {
	command += " --confirm"
	if err := o.console.PrintResult(map[string]string{"would": does, "next": command}, "would "+does); err != nil {
		return err
	}
	return console.UsageError{Err: fmt.Errorf("nothing was done without --confirm (next: %s)", command)}
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9_-]`)

// nameRotation derives a rotation's id from its label. A rotation that was rolled back
// keeps its name, so the next try has a number; one under way is found again.
func (o *operator) nameRotation(ctx context.Context, label string) (string, *kek.Rotation, error) {
	if err := kek.CheckLabel(label); err != nil {
		return "", nil, &journal.Error{Kind: journal.InvalidInput, Field: "--label", Msg: err.Error(), Next: journal.Next{Say: "choose another label"}}
	}
	base := notInID.ReplaceAllString(label, "-")
	for i := 1; i < 100; i++ {
		id := base
		if i > 1 {
			id = executions.AppendSuffix(base, fmt.Sprintf("-%d", i))
		}
		v, err := o.stack.Table.Load(ctx, id)
		switch {
		case err != nil:
			return "", nil, err
		case v.Rotation == nil:
			return id, nil, nil
		case v.Rotation.Phase == kek.Completed:
			return "", nil, refusedError("--label", fmt.Sprintf("rotation %s was completed at %s", id, formatTime(v.Rotation.UpdatedAt)), "choose another --label")
		case !v.Rotation.Phase.Final():
			return id, v.Rotation, nil
		}
	}
	return "", nil, refusedError("--label", fmt.Sprintf("99 rotations labelled %q were rolled back or superseded", label), "choose another --label")
}
