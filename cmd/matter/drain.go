package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newDrainCommand returns the command matter ops kms-watch-drain, step 4.
func newDrainCommand() *cobra.Command {
	var id string
	var wait, every time.Duration
	cmd := &cobra.Command{
		Use:   "kms-watch-drain --old-kek-id OLD --max-wait 30m",
		Short: "Step 4: watch the in-flight references to the old KEK, and seal it at zero",
		Long: `Shows how many processes hold a lease on the old KEK and how many references they
have in flight. When the last is gone it seals the KEK: no row can be inserted
under it any more, and what was written still unwraps. A lease that has run out is
revoked, never assumed dead. In an emergency all leases are revoked at once.

It gives up after --max-wait and says who holds the old KEK. Nothing is lost then,
nor after Ctrl-C: run it again.`,
		Example: "  matter ops kms-watch-drain --old-kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --max-wait 30m",
	}
	cmd.Flags().StringVar(&id, "old-kek-id", "", "the KEK that the pointer has left")
	cmd.Flags().DurationVar(&wait, "max-wait", 30*time.Minute, "how long to wait, from now")
	cmd.Flags().DurationVar(&every, "poll", 2*time.Second, "pause between two looks")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error {
		if wait < 0 || every <= 0 {
			return console.UsageError{Err: errors.New("--max-wait and --poll must be durations such as 30m and 2s")}
		}
		return o.drainKEK(ctx, kek.ID(id), wait, every)
	}, "old-kek-id")
}

// drainKEK repeats the step drain until the old KEK is sealed or --max-wait is over. The
// limit of the rotation itself does not apply, since a person watches; an interrupt exits
// with 6, because nothing is lost.
func (o *operator) drainKEK(ctx context.Context, id kek.ID, wait, every time.Duration) error {
	r, err := o.rotationOfOld(ctx, flagOldKEK, id)
	if err != nil {
		return err
	}
	if err := o.checkPhase(ctx, flagOldKEK, r, kek.Switched); err != nil {
		return err
	}
	line := console.NewStatusLine(o.console.ProgressWriter())
	defer line.End()
	start := time.Now()
	for {
		out, err := o.stack.Steps.DrainWithin(ctx, rotation.StepInput{RotationID: r.ID}, rotation.WithoutLimit) // this command limits the wait
		switch {
		case ctx.Err() != nil:
			return o.endDetached(line, "matter ops kms-watch-drain --old-kek-id "+string(id))
		case err != nil:
			return o.adviseByHand(ctx, err, r)
		case out.Done:
			line.End()
			return o.reportStep(ctx, r.ID, phaseFoundLater(r.Phase, kek.Switched), out, fmt.Sprintf("KEK %s is sealed: no row can be inserted under it, what was written still unwraps", id))
		}
		waited := time.Since(start)
		line.Show(fmt.Sprintf("%d in flight, %d leases", out.Refs, out.Leases), fmt.Sprintf("  %s of %s", console.FormatDuration(waited), console.FormatDuration(wait)))
		if waited >= wait {
			line.End()
			return o.checkHolders(ctx, id, wait)
		}
		select {
		case <-time.After(min(every, wait-waited)):
		case <-ctx.Done():
		}
	}
}

// checkHolders says who holds the old KEK.
func (o *operator) checkHolders(ctx context.Context, id kek.ID, wait time.Duration) error {
	leases, err := o.stack.Steps.Drainage.Leases(ctx, id)
	if err != nil {
		return err
	}
	var holders []string
	for _, l := range leases {
		holders = append(holders, fmt.Sprintf("%s (host %s, pid %d, %d in flight, lease until %s)", l.Holder, l.Host, l.PID, l.Refs, formatTime(l.Expires)))
	}
	return &journal.Error{
		Kind: journal.DrainTimeout, Field: "LEASE#" + string(id),
		Msg:  fmt.Sprintf("after %s the old KEK is still held by %s", wait, strings.Join(holders, "; ")),
		Next: journal.Next{Say: "stop or restart these processes, then: matter ops kms-watch-drain --old-kek-id " + string(id) + " --max-wait 30m"},
	}
}

// endDetached ends a command that was interrupted while something still runs.
func (o *operator) endDetached(line *console.StatusLine, again string) error {
	line.End()
	fmt.Fprintln(o.console.Err, "interrupted; nothing is lost. Again:", again)
	return console.Exit(console.ExitRunning)
}
