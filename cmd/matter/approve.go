package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/rotation"
)

func newApprove() *cobra.Command {
	var v rotation.Verdict
	cmd := &cobra.Command{
		Use:   "approve --rotation ID --plan HASH",
		Short: "Agree, as a second person, that a rotation switches",
		Long: `Where the stack's parameter ApprovalRequired is true, a normal rotation waits before
the switch until a person other than the one who asked for it agrees to exactly its
plan: which rotation, from which KEK to which, over which sources. The hash of the
plan is in the notification, and in the refusal of a wrong one. Who you are is what
AWS says of your credentials; it is kept in the audit chain.`,
		Example: "  matter ops approve --rotation Q2-2026-rotation --plan 3f5a…",
	}
	cmd.Flags().StringVar(&v.Reason, "reason", "", "a remark, for the audit chain")
	return verdictFlags(cmd, &v)
}

func newReject() *cobra.Command {
	v := rotation.Verdict{Reject: true}
	cmd := &cobra.Command{
		Use:   "reject --rotation ID --plan HASH --reason WHY",
		Short: "Refuse that a rotation switches: it rolls back",
		Long: `The opposite of approve: the rotation rolls back at once, with the pointer where it
was. The person who asked for the rotation may reject it too.`,
		Example: `  matter ops reject --rotation Q2-2026-rotation --plan 3f5a… --reason "release tonight"`,
	}
	cmd.Flags().StringVar(&v.Reason, "reason", "", "why not, for the audit chain")
	return verdictFlags(cmd, &v, "reason")
}

func verdictFlags(cmd *cobra.Command, v *rotation.Verdict, required ...string) *cobra.Command {
	cmd.Flags().StringVar(&v.RotationID, "rotation", "", "the rotation's id")
	cmd.Flags().StringVar(&v.Plan, "plan", "", "the hash of its plan")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.verdict(ctx, *v) }, append([]string{"rotation", "plan"}, required...)...)
}

// verdict records the answer first and then wakes the execution: what is recorded is
// what counts, and the command may be repeated.
func (o *operator) verdict(ctx context.Context, v rotation.Verdict) error {
	a, err := o.Steps.Judge(ctx, v)
	if err != nil {
		return err
	}
	waits, err := o.wake(ctx, a)
	if err != nil {
		return fmt.Errorf("%s is recorded, but the execution was not told; repeat the command: %w", a.State, err)
	}
	if v.Reject && !waits {
		if err := o.rollBackRejected(ctx, a); err != nil {
			return err
		}
	}
	command := "matter ops kms-status"
	switch {
	case waits:
		command = "matter ops kms-rotate --watch --execution " + a.Rotation
	case !v.Reject:
		r, err := o.reload(ctx, a.Rotation)
		if err != nil {
			return err
		}
		if command = o.nextCommand(r); !r.Phase.Final() {
			command = o.goOn(ctx, r)
		}
	}
	return o.Result(map[string]any{
		"rotation_id": a.Rotation, "plan": a.Plan, "state": a.State, "by": a.By, "requested_by": a.Requester, "execution_told": waits, "next": command,
	}, fmt.Sprintf("rotation %s is %s by %s; it was asked for by %s", a.Rotation, a.State, a.By, a.Requester), next(command))
}

// rollBackRejected rolls a rotation back that no execution does: one that is done by hand.
func (o *operator) rollBackRejected(ctx context.Context, a rotation.Approval) error {
	r, err := o.reload(ctx, a.Rotation)
	if err != nil || r.Phase.Final() {
		return err
	}
	if err := o.idle(ctx, r); err != nil {
		return err
	}
	_, err = o.Steps.Retire(ctx, rotation.RetireInput{
		RotationID: r.ID, Action: rotation.ActionPreSwitchFailure, Error: string(rotation.ApprovalRejected), Cause: fmt.Sprintf("rejected by %s: %s", a.By, a.Reason),
	})
	return err
}

// wake ends the task that waits for the answer; false if none does, as with a rotation
// done by hand.
func (o *operator) wake(ctx context.Context, a rotation.Approval) (bool, error) {
	if a.Token == "" {
		return false, nil
	}
	client := sfn.NewFromConfig(o.AWS)
	var err error
	if a.State == rotation.ApprovalGiven {
		var out []byte
		if out, err = json.Marshal(map[string]string{"approved_by": a.By}); err != nil {
			return false, err
		}
		_, err = client.SendTaskSuccess(ctx, &sfn.SendTaskSuccessInput{TaskToken: &a.Token, Output: aws.String(string(out))})
	} else {
		_, err = client.SendTaskFailure(ctx, &sfn.SendTaskFailureInput{
			TaskToken: &a.Token, Error: aws.String(string(rotation.ApprovalRejected)), Cause: aws.String(fmt.Sprintf("rejected by %s: %s", a.By, a.Reason)),
		})
	}
	var over *types.TaskTimedOut
	var gone *types.TaskDoesNotExist
	var invalid *types.InvalidToken
	if errors.As(err, &over) || errors.As(err, &gone) || errors.As(err, &invalid) { // told before, or its execution has ended
		return false, nil
	}
	return err == nil, err
}
