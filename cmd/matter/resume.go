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

type resumeFlags struct {
	rotation string
	watch    bool
	every    time.Duration
}

func newResume() *cobra.Command {
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
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.resume(ctx, f) })
}

func (o *operator) resume(ctx context.Context, f resumeFlags) error {
	if f.every <= 0 {
		return console.UsageError{Err: errors.New("--poll must be a duration such as 2s")}
	}
	r, err := o.halted(ctx, f.rotation)
	if err != nil {
		return err
	}
	m, err := o.Machine(r.Mode)
	if err != nil {
		return err
	}
	if err := o.idle(ctx, r); err != nil {
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
	return o.started(ctx, e, f.watch, f.every, how)
}

// halted finds the rotation to continue.
func (o *operator) halted(ctx context.Context, id string) (kek.Rotation, error) {
	if id == "" {
		v, err := o.Table.Load(ctx, "")
		if err != nil {
			return kek.Rotation{}, err
		}
		if id = v.Lock; id == "" {
			return kek.Rotation{}, refused("LOCK", "no rotation is under way", "matter ops kms-status")
		}
	}
	r, err := o.reload(ctx, id)
	if err != nil {
		return r, err
	}
	if r.Phase.Final() {
		return r, refused("--rotation", fmt.Sprintf("rotation %s is %s: there is nothing to continue", r.ID, r.Phase), o.nextCommand(r))
	}
	return r, nil
}
