package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// rewrapsAtOnce is how many segments are rewrapped at once by hand. The KMS rate
// is shared by them.
const rewrapsAtOnce = 4

// newRewrapCommand returns the command matter ops kms-rewrap, step 4b.
func newRewrapCommand() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "kms-rewrap --kek-id NEW",
		Short: "Step 4b: move every row from the old KEKs to the new one",
		Long: `Rewraps the data key of every row of every source that the rotation has frozen, the
known-cipher corpus among them: without it retiring the old KEK would orphan every old
row. It continues from its checkpoints, so it may be interrupted and repeated, and it
takes its share of MATTER_KMS_RATE and MATTER_WRITE_RATE, or of what CloudWatch shows to
be free. In an emergency every payload is encrypted again under a fresh data key; where a
payload is declared opaque, only its data key is rewrapped.`,
		Example: "  matter ops kms-rewrap --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab",
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the new KEK")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.rewrapRows(ctx, kek.ID(id)) }, "kek-id")
}

// rewrapRows rewraps every segment and completes the step. An interrupt exits with 6: the
// checkpoints keep what is done.
func (o *operator) rewrapRows(ctx context.Context, id kek.ID) error {
	r, err := o.rotationOfNew(ctx, flagKEK, id)
	if err != nil {
		return err
	}
	if err := o.checkPhase(ctx, flagKEK, r, kek.Drained); err != nil {
		return err
	}
	var out rotation.SweepOutput
	err = o.showPass(ctx, r, rotation.PassRewrap, func(ctx context.Context) error {
		if err := o.rewrapAll(ctx, r); err != nil {
			return err
		}
		for err == nil && !out.Done {
			out, err = o.stack.Steps.Rewrap(ctx, rotation.RewrapInput{RotationID: r.ID, Complete: true})
		}
		return err
	})
	if ctx.Err() != nil {
		return o.endDetached(&console.StatusLine{Out: o.console.Err}, "matter ops kms-rewrap --kek-id "+string(id))
	}
	if err != nil {
		return o.adviseByHand(ctx, err, r)
	}
	return o.reportStep(ctx, r.ID, phaseFoundLater(r.Phase, kek.Drained), out,
		fmt.Sprintf("%d rows looked at in %d sources, none names an old KEK any more", out.Tally.Scanned, len(r.Sources)))
}

// rewrapAll rewraps a few segments at a time, as the map state of the state machine does. A
// segment that has no time left is called again.
func (o *operator) rewrapAll(ctx context.Context, r kek.Rotation) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(rewrapsAtOnce)
	sources, err := o.openSources(r.Sources)
	if err != nil {
		return err
	}
	for _, src := range sources {
		for segment := range src.Segments(r.Segments) {
			g.Go(func() error {
				for {
					out, err := o.stack.Steps.Rewrap(ctx, rotation.RewrapInput{RotationID: r.ID, Source: src.Name(), Segment: segment})
					if err == nil && out.Paused {
						err = o.pausedError(ctx, r)
					}
					if err != nil || out.Done {
						return err
					}
				}
			})
		}
	}
	return g.Wait()
}
