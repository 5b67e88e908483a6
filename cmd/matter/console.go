package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// operator is one command at work on a deployment.
type operator struct {
	stack   *operate.Deployment // what it works on: steps, control table, configuration
	console console.Console     // where it prints
}

// newOpsCommand completes a command of matter ops: output format, strict arguments, flags
// that must be given, and the deployment wired before act runs.
func newOpsCommand(cmd *cobra.Command, act func(context.Context, *operator) error, required ...string) *cobra.Command {
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	completeFlags(cmd, "text", "json")
	cmd.Args = console.RefuseArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return console.UsageError{Err: fmt.Errorf("-o %q: use text or json", output)}
		}
		for _, name := range required {
			if cmd.Flag(name).Value.String() == "" {
				return console.UsageError{Err: fmt.Errorf("--%s is required: %s; see %s --help", name, cmd.Flag(name).Usage, cmd.CommandPath())}
			}
		}
		d, err := deployment(cmd)
		if err != nil {
			return err
		}
		return act(cmd.Context(), &operator{stack: d, console: console.Console{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), JSON: output == "json"}})
	}
	return cmd
}

// newStepCommand is newOpsCommand for a command that changes the deployment: it is refused in a shell
// whose settings are not those that the functions have.
func newStepCommand(cmd *cobra.Command, act func(context.Context, *operator) error, required ...string) *cobra.Command {
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error {
		if err := o.checkShell(ctx); err != nil {
			return err
		}
		return act(ctx, o)
	}, required...)
}

// newAdvisedCommand is newOpsCommand for a command that changes nothing and says what the functions
// would do: in a shell whose settings are not theirs its answer may be wrong, so it says which those are.
func newAdvisedCommand(cmd *cobra.Command, act func(context.Context, *operator) error) *cobra.Command {
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error {
		if err := o.checkShell(ctx); err != nil {
			fmt.Fprintln(o.console.Err, "warning:", advice.Explain(err))
		}
		return act(ctx, o)
	})
}

// nextLine is the last line of most results.
func nextLine(command string) string {
	if command == "" {
		return ""
	}
	return "next: " + command
}

// printError prints an error for a person, or as JSON for a program.
func printError(w io.Writer, asJSON bool, err error, code int) {
	if !asJSON {
		fmt.Fprintln(w, "matter:", advice.Explain(err))
		if typed := (*journal.Error)(nil); errors.As(err, &typed) {
			for _, row := range typed.Rows {
				fmt.Fprintln(w, "  row", audit.Visible(row))
			}
		}
		return
	}
	out := map[string]any{"kind": lambdastep.ErrorKind(err), "message": advice.Explain(err), "exit_code": code}
	var typed *journal.Error
	var usage console.UsageError
	switch {
	case errors.As(err, &usage):
		out["kind"] = journal.InvalidInput
	case errors.As(err, &typed):
		out["field"], out["next"] = typed.Field, advice.Command(typed.Next)
		if len(typed.Rows) > 0 {
			out["rows"] = typed.Rows
		}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(map[string]any{"error": out}) // there is nobody left to tell
}

// formatTime is a time as every command prints it: in UTC, to the second.
func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// openSources opens definitions by their drivers.
func (o *operator) openSources(defs []kek.Source) ([]source.Driver, error) {
	out := make([]source.Driver, 0, len(defs))
	for _, def := range defs {
		src, err := o.stack.Steps.OpenSource(def)
		if err != nil {
			return nil, &journal.Error{
				Kind: journal.SourceMisconfigured, Field: "sources[" + def.Name + "]", Msg: "its definition cannot be used", Err: err, Next: journal.Next{Say: "matter ops source list"},
			}
		}
		out = append(out, src)
	}
	return out, nil
}
