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

func newRewrap() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "kms-rewrap --kek-id NEW",
		Short: "Step 4b: move every row from the old KEKs to the new one",
		Long: `Rewraps the data key of every row of every source that the rotation has frozen, the
known-cipher corpus among them: without it retiring the old KEK would orphan every old
row. It continues from its checkpoints, so it may be interrupted and repeated, and it
makes at most MATTER_KMS_RATE KMS requests per second. In an emergency every payload is
encrypted again under a fresh data key; where a payload is declared opaque, only its
data key is rewrapped.`,
		Example: "  matter ops kms-rewrap --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab",
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the new KEK")
	return newStep(cmd, func(ctx context.Context, o *operator) error { return o.rewrap(ctx, kek.ID(id)) }, "kek-id")
}

func (o *operator) rewrap(ctx context.Context, id kek.ID) error {
	r, err := o.rotationOfNew(ctx, id)
	if err != nil {
		return err
	}
	if err := o.ready(ctx, r, kek.Drained); err != nil {
		return err
	}
	var out rotation.SweepOutput
	err = o.pass(ctx, r, rotation.PassRewrap, func(ctx context.Context) error {
		if err := o.rewrapAll(ctx, r); err != nil {
			return err
		}
		out, err = o.Steps.Rewrap(ctx, rotation.RewrapInput{RotationID: r.ID, Complete: true})
		return err
	})
	if ctx.Err() != nil {
		return o.detached(&console.StatusLine{Out: o.Err}, "matter ops kms-rewrap --kek-id "+string(id))
	}
	if err != nil {
		return o.advise(err, r)
	}
	return o.done(ctx, r.ID, later(r.Phase, kek.Drained), out,
		fmt.Sprintf("%d rows looked at in %d sources, none names an old KEK any more", out.Tally.Scanned, len(r.Sources)))
}

func (o *operator) rewrapAll(ctx context.Context, r kek.Rotation) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(rewrapsAtOnce)
	sources, err := o.open(r.Sources)
	if err != nil {
		return err
	}
	for _, src := range sources {
		for segment := range src.Segments(r.Segments) {
			g.Go(func() error {
				for {
					out, err := o.Steps.Rewrap(ctx, rotation.RewrapInput{RotationID: r.ID, Source: src.Name(), Segment: segment})
					if err != nil || out.Done {
						return err
					}
				}
			})
		}
	}
	return g.Wait()
}
