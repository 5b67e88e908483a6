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
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newApproveCommand returns the command matter ops approve.
func newApproveCommand() *cobra.Command {
	var v gates.Verdict
	cmd := &cobra.Command{
		Use:   "approve --rotation ID --plan HASH",
		Short: "Agree, as a second person, that a rotation switches",
		Long: `Where the stack's parameter ApprovalRequired is true, a normal rotation waits before
the switch until a person other than the one who asked for it agrees to exactly its
plan: which rotation, from which KEK to which, over which sources. kms-status shows the
plan with its hash, and the notification has the hash. Who you are is what AWS says of
your credentials; it is kept in the audit chain.`,
		Example: "  matter ops approve --rotation Q2-2026-rotation --plan 3f5a…",
	}
	cmd.Flags().StringVar(&v.Reason, "reason", "", "a remark, for the audit chain")
	return verdictFlags(cmd, &v)
}

// newRejectCommand returns the command matter ops reject. It needs a reason, because it ends
// a rotation.
func newRejectCommand() *cobra.Command {
	v := gates.Verdict{Reject: true}
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

// verdictFlags completes approve and reject with what both need: the rotation, and the hash
// of the plan that the person has read.
func verdictFlags(cmd *cobra.Command, v *gates.Verdict, required ...string) *cobra.Command {
	cmd.Flags().StringVar(&v.RotationID, "rotation", "", "the rotation's id")
	cmd.Flags().StringVar(&v.Plan, "plan", "", "the hash of its plan")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.recordVerdict(ctx, *v) }, append([]string{"rotation", "plan"}, required...)...)
}

// recordVerdict records the answer first and then wakes the execution: what is recorded is
// what counts, and the command may be repeated.
func (o *operator) recordVerdict(ctx context.Context, v gates.Verdict) error {
	a, err := o.stack.Steps.Gates.JudgePlan(ctx, v)
	if err != nil {
		return err
	}
	waits, err := o.wakeExecution(ctx, a)
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
		r, err := o.reloadRotation(ctx, a.Rotation)
		if err != nil {
			return err
		}
		if command = o.nextCommand(ctx, r); !r.Phase.Final() {
			command = o.continueCommand(ctx, r)
		}
	}
	return o.console.PrintResult(map[string]any{
		"rotation_id": a.Rotation, "plan": a.Plan, "state": a.State, "by": a.By, "requested_by": a.Requester, "execution_told": waits, "next": command,
	}, fmt.Sprintf("rotation %s is %s by %s; it was asked for by %s", a.Rotation, a.State, a.By, a.Requester), nextLine(command))
}

// rollBackRejected rolls a rotation back that no execution does: one that is done by hand.
func (o *operator) rollBackRejected(ctx context.Context, a gates.Approval) error {
	r, err := o.reloadRotation(ctx, a.Rotation)
	if err != nil || r.Phase.Final() {
		return err
	}
	if err := o.checkNoExecution(ctx, r); err != nil {
		return err
	}
	_, err = o.stack.Steps.Retire(ctx, rotation.RetireInput{
		RotationID: r.ID, Action: rotation.ActionPreSwitchFailure, Error: string(journal.ApprovalRejected), Cause: fmt.Sprintf("rejected by %s: %s", a.By, a.Reason),
	})
	return err
}

// wakeExecution ends the task that waits for the answer; false if none does, as with a rotation
// done by hand.
func (o *operator) wakeExecution(ctx context.Context, a gates.Approval) (bool, error) {
	if a.Token == "" {
		return false, nil
	}
	client := sfn.NewFromConfig(o.stack.AWS)
	var err error
	if a.State == gates.ApprovalGiven {
		var out []byte
		if out, err = json.Marshal(map[string]string{"approved_by": a.By}); err != nil {
			return false, err
		}
		_, err = client.SendTaskSuccess(ctx, &sfn.SendTaskSuccessInput{TaskToken: &a.Token, Output: aws.String(string(out))})
	} else {
		_, err = client.SendTaskFailure(ctx, &sfn.SendTaskFailureInput{
			TaskToken: &a.Token, Error: aws.String(string(journal.ApprovalRejected)), Cause: aws.String(fmt.Sprintf("rejected by %s: %s", a.By, a.Reason)),
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
