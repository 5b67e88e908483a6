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
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// A rotation done by hand is the same steps, one command each. The commands find
// the rotation by a KEK's id, as the runbook has it.

// rotationOfNew finds the rotation whose new KEK this is.
func (o *operator) rotationOfNew(ctx context.Context, id kek.ID) (kek.Rotation, error) {
	k, err := o.registered(ctx, id)
	if err != nil {
		return kek.Rotation{}, err
	}
	if k.RotationID == "" {
		return kek.Rotation{}, refused("--kek-id", fmt.Sprintf("KEK %s is the first KEK: no rotation minted it", id), "matter ops kms-status")
	}
	v, err := o.Table.Load(ctx, k.RotationID)
	if err != nil {
		return kek.Rotation{}, err
	}
	if v.Rotation == nil {
		return kek.Rotation{}, refused("--kek-id", fmt.Sprintf("rotation %s, which minted KEK %s, has no record", k.RotationID, id), "matter ops kms-status")
	}
	if v.Rotation.NewKEK != id {
		return kek.Rotation{}, refused("--kek-id",
			fmt.Sprintf("KEK %s was given up by rotation %s, which is %s", id, v.Rotation.ID, v.Rotation.Phase), o.nextCommand(*v.Rotation))
	}
	return *v.Rotation, nil
}

// rotationOfOld finds the rotation that leaves this KEK, or has left it.
func (o *operator) rotationOfOld(ctx context.Context, id kek.ID) (kek.Rotation, error) {
	k, err := o.registered(ctx, id)
	if err != nil {
		return kek.Rotation{}, err
	}
	all, err := o.Table.Rotations(ctx)
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
		return kek.Rotation{}, refused("--kek-id", msg, `matter ops kms-mint-kek --label "<label>"`)
	}
	r, err := o.reload(ctx, k.RotationID)
	if err != nil {
		return kek.Rotation{}, err
	}
	return kek.Rotation{}, refused("--kek-id", fmt.Sprintf("%s: rotation %s, which minted it, is %s", msg, r.ID, r.Phase), o.nextCommand(r))
}

func (o *operator) registered(ctx context.Context, id kek.ID) (kek.KEK, error) {
	all, err := o.Table.KEKs(ctx)
	if err != nil {
		return kek.KEK{}, err
	}
	for _, k := range all {
		if k.ID == id {
			return k, nil
		}
	}
	return kek.KEK{}, refused("--kek-id", fmt.Sprintf("KEK %s is not in the registry", id), "matter ops kms-status lists the KEKs")
}

func refused(field, msg, next string) error {
	return &rotation.Error{Kind: rotation.Refused, Field: field, Msg: msg, Next: next}
}

// nextCommand is what comes next for a rotation done by hand.
func (o *operator) nextCommand(r kek.Rotation) string {
	command := "matter ops " + cmp.Or(flow.CommandAt(r.Phase), "kms-status")
	switch r.Phase {
	case kek.Started:
		command += fmt.Sprintf(" --label %q", r.Label)
		if r.Mode == kek.Emergency {
			command += fmt.Sprintf(" --emergency --reason %q", r.Reason)
		}
	case kek.Minted:
		command += fmt.Sprintf(" --kek-id %s", r.NewKEK)
		if known := corporaOf(r); len(known) > 0 {
			command += " --corpus s3://" + known[0] + "/"
		}
	case kek.Tested:
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

// ready refuses a step that must not run at the rotation's phase, and one that an
// execution of the state machine is at work on.
func (o *operator) ready(ctx context.Context, r kek.Rotation, from kek.Phase) error {
	if !r.Phase.Reached(from) {
		return refused("phase", fmt.Sprintf("rotation %s is %s; this step needs it %s", r.ID, r.Phase, from), o.nextCommand(r))
	}
	return o.idle(ctx, r)
}

// stillRunning is an outcome that is not known yet.
type stillRunning struct{ error }

// idle refuses to work on a rotation by hand while an execution does.
func (o *operator) idle(ctx context.Context, r kek.Rotation) error {
	if r.Phase.Final() {
		return nil
	}
	e, ok, err := o.running(ctx, r.ID)
	if err != nil { // by hand is what is left when Step Functions does not answer
		fmt.Fprintf(o.Err, "warning: no answer whether an execution is at work on rotation %s; the step is safe either way: %v\n", r.ID, err)
		return nil
	}
	if !ok {
		return nil
	}
	return stillRunning{&rotation.Error{
		Kind: rotation.RotationInProgress, Field: "execution", Msg: fmt.Sprintf("execution %s is at work on rotation %s", e.Name, r.ID),
		Next: "matter ops kms-rotate --watch --execution " + e.Name,
	}}
}

// running finds the execution that works on a rotation.
func (o *operator) running(ctx context.Context, id string) (app.Execution, bool, error) {
	all, err := o.Running(ctx)
	if err != nil {
		return app.Execution{}, false, err
	}
	for _, e := range all {
		if e.RotationID == id {
			return e, true, nil
		}
	}
	return app.Execution{}, false, nil
}

// advise gives a failed step the command that comes next for a person, where the
// step itself speaks of the state machine.
func (o *operator) advise(err error, r kek.Rotation) error {
	var typed *rotation.Error
	if err == nil || !errors.As(err, &typed) {
		return err
	}
	e := *typed
	switch e.Kind {
	case rotation.CanaryFailed, rotation.CorpusCorrupted, rotation.KeyUnusable:
		if r.Phase.PreSwitch() {
			e.Next = giveUpCommand(r, preSwitchFailure) + " --confirm"
		}
	case rotation.RehearsalFailed: // a definition is corrected when no rotation holds it
		e.Next = strings.TrimPrefix(e.Next+"; first give the rotation up: ", "; ") + giveUpCommand(r, preSwitchFailure) + " --confirm"
	case rotation.RowsQuarantined:
		e.Next = "correct or delete these rows, then: " + o.nextCommand(r)
	case rotation.OrphansFound:
		e.Next = "enable the old KMS key, restore these rows under the current KEK (matter ops restore-rows), then: " + o.nextCommand(r)
	case rotation.KeyInUse:
		e.Next = "move its other users to the new KEK, revoke their grants (aws kms revoke-grant), then: " + o.nextCommand(r)
	case rotation.Transient:
		e.Next = "repeat the command; nothing is lost"
	case rotation.Refused, rotation.Unverified:
		e.Next = o.nextCommand(r)
	case rotation.MintsExhausted:
		e.Next = "find out why dual unwrap fails, then: matter ops kms-dual-unwrap --kek-id " + string(r.NewKEK)
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

// reload reads a rotation's record as it is now.
func (o *operator) reload(ctx context.Context, id string) (kek.Rotation, error) {
	v, err := o.Table.Load(ctx, id)
	if err != nil {
		return kek.Rotation{}, err
	}
	if v.Rotation == nil {
		return kek.Rotation{}, refused("rotation", fmt.Sprintf("rotation %s has no record", id), "matter ops kms-status")
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

// done reloads the rotation and says how it stands after a step. before is the
// phase that the command found.
func (o *operator) done(ctx context.Context, id string, before kek.Phase, output any, lines ...string) error {
	r, err := o.reload(ctx, id)
	if err != nil {
		return err
	}
	res := stepResult{
		RotationID: r.ID, Phase: r.Phase, OldKEK: r.OldKEK, NewKEK: r.NewKEK,
		Already: before == r.Phase, Next: o.nextCommand(r), Output: output,
	}
	head := fmt.Sprintf("rotation %s is %s", r.ID, r.Phase)
	if res.Already {
		head += "; this step was done before"
	}
	return o.Result(res, append(append([]string{head}, lines...), next(res.Next))...)
}

// would says what a destructive command was not told to do, and the command that
// does it.
func (o *operator) would(does, command string) error {
	command += " --confirm"
	if err := o.Result(map[string]string{"would": does, "next": command}, "would "+does); err != nil {
		return err
	}
	return console.UsageError{Err: fmt.Errorf("nothing was done without --confirm (next: %s)", command)}
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9_-]`)

// name derives a rotation's id from its label. A rotation that was rolled back
// keeps its name, so the next try has a number; one under way is found again.
func (o *operator) name(ctx context.Context, label string) (string, *kek.Rotation, error) {
	if err := kek.CheckLabel(label); err != nil {
		return "", nil, &rotation.Error{Kind: rotation.InvalidInput, Field: "--label", Msg: err.Error(), Next: "choose another label"}
	}
	base := notInID.ReplaceAllString(label, "-")
	for i := 1; i < 100; i++ {
		id := base
		if i > 1 {
			id = app.Suffixed(base, fmt.Sprintf("-%d", i))
		}
		v, err := o.Table.Load(ctx, id)
		switch {
		case err != nil:
			return "", nil, err
		case v.Rotation == nil:
			return id, nil, nil
		case v.Rotation.Phase == kek.Completed:
			return "", nil, refused("--label", fmt.Sprintf("rotation %s was completed at %s", id, stamp(v.Rotation.UpdatedAt)), "choose another --label")
		case !v.Rotation.Phase.Final():
			return id, v.Rotation, nil
		}
	}
	return "", nil, refused("--label", fmt.Sprintf("99 rotations labelled %q were rolled back or superseded", label), "choose another --label")
}
