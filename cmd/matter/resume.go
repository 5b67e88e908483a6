package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
)

// resumeFlags are the flags of resume.
type resumeFlags struct {
	rotation string
	watch    bool
	every    time.Duration
}

// newResumeCommand returns the command matter ops resume.
func newResumeCommand() *cobra.Command {
	var f resumeFlags
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Continue a halted rotation, once its cause is fixed",
		Long: `Redrives the execution that halted, if AWS still can; else it starts a new one that
finds every finished step done. Without --rotation it is the rotation that holds
the lock. A rotation begun by hand is handed to the state machine of its mode.`,
		Example: `  matter ops resume --watch
  matter ops resume --rotation Q2-2026-rotation`,
	}
	cmd.Flags().StringVar(&f.rotation, "rotation", "", "the rotation's id; default: the one that holds the lock")
	cmd.Flags().BoolVar(&f.watch, "watch", false, "follow the execution until it ends")
	cmd.Flags().DurationVar(&f.every, "poll", 2*time.Second, "with --watch: pause between two looks")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.resumeRotation(ctx, f) })
}

// resumeRotation hands a halted rotation back to the state machine of its mode, unless an
// execution works on it already.
func (o *operator) resumeRotation(ctx context.Context, f resumeFlags) error {
	if f.every <= 0 {
		return console.UsageError{Err: errors.New("--poll must be a duration such as 2s")}
	}
	r, err := o.findHalted(ctx, f.rotation)
	if err != nil {
		return err
	}
	m, err := o.stack.Machine(r.Mode)
	if err != nil {
		return err
	}
	if err := o.checkNoExecution(ctx, r); err != nil {
		return err
	}
	e, redriven, err := m.Resume(ctx, r.ID, r.Execution)
	if err != nil {
		return err
	}
	how := "continues rotation " + r.ID + ", which is " + string(r.Phase)
	if redriven {
		how = "is redriven"
	}
	return o.reportStarted(ctx, e, f.watch, f.every, how)
}

// findHalted finds the rotation to continue.
func (o *operator) findHalted(ctx context.Context, id string) (kek.Rotation, error) {
	if id == "" {
		v, err := o.stack.Table.Load(ctx, "")
		if err != nil {
			return kek.Rotation{}, err
		}
		if id = v.Lock; id == "" {
			return kek.Rotation{}, refusedError("LOCK", "no rotation is under way", "matter ops kms-status")
		}
	}
	r, err := o.reloadRotation(ctx, id)
	if err != nil {
		return r, err
	}
	if r.Phase.Final() {
		return r, refusedError("--rotation", fmt.Sprintf("rotation %s is %s: there is nothing to continue", r.ID, r.Phase), o.nextCommand(ctx, r))
	}
	return r, nil
}
