package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/rotation/gates"
)

// newAnnounceCommand returns the command matter ops announce. The window and the notice that it
// records are the deployment's, so the shell must have its settings.
func newAnnounceCommand() *cobra.Command {
	var label, from string
	cmd := &cobra.Command{
		Use:   "announce",
		Short: "Tell customers of the window in which the KEK will be rotated",
		Long: `Announces a maintenance window to the topic, the webhook and the status page that the
deployment names, and records it: a normal rotation of that label starts in this
window alone, once customers have known of it for the days that the deployment
demands. The schedule does this eight days ahead; by hand it is for a rotation that
is not the quarter's, or for another window.

What was announced already is not announced again, unless --from moves it.`,
		Example: `  matter ops announce
  matter ops announce --label "Q2-2026-rotation" --from 2026-04-12T02:00`,
	}
	cmd.Flags().StringVar(&label, "label", "", "the rotation's label; default: that of the window's quarter")
	cmd.Flags().StringVar(&from, "from", "", "a moment in the window, YYYY-MM-DDTHH:MM in the deployment's time zone; default: as soon as the notice allows")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.announceWindow(ctx, label, from) })
}

// announceWindow reads --from in the deployment's time zone, in which the window is defined,
// and prints the announced window and who was told. The rules for a window are in
// rotation/gates.
func (o *operator) announceWindow(ctx context.Context, label, from string) error {
	in := gates.AnnounceInput{Label: label}
	zone := o.stack.Config.Window.Zone
	if from != "" {
		at, err := time.ParseInLocation("2006-01-02T15:04", from, zone)
		if err != nil {
			return console.UsageError{Err: fmt.Errorf("--from %q: use YYYY-MM-DDTHH:MM, such as 2026-04-12T02:00", from)}
		}
		in.From = at
	}
	a, err := o.stack.Steps.Gates.AnnounceWindow(ctx, in)
	if err != nil {
		return err
	}
	told := "nobody but the topic of notifications: the deployment names no announcer"
	if len(a.Told) > 0 {
		told = strings.Join(a.Told, ", ")
	}
	command := fmt.Sprintf("matter ops kms-preflight --label %q", a.Label)
	return o.console.PrintResult(map[string]any{
		"label": a.Label, "from": a.From.UTC(), "to": a.To.UTC(), "announced_at": a.At.UTC(), "told": a.Told, "next": command,
	},
		fmt.Sprintf("announced %s: %s to %s", a.Label, a.From.In(zone).Format("Mon 2006-01-02 15:04"), a.To.In(zone).Format("Mon 2006-01-02 15:04 MST")),
		fmt.Sprintf("told at %s: %s", formatTime(a.At), told), nextLine(command))
}
