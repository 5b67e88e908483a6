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
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// operator is one command at work on a deployment.
type operator struct {
	*app.Deployment
	console.Console
}

// newOp completes a command of matter ops: output format, strict arguments, flags
// that must be given, and the deployment wired before act runs.
func newOp(cmd *cobra.Command, act func(context.Context, *operator) error, required ...string) *cobra.Command {
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	complete(cmd)
	cmd.Args = console.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return console.UsageError{Err: fmt.Errorf("-o %q: use text or json", output)}
		}
		for _, name := range required {
			if cmd.Flag(name).Value.String() == "" {
				return console.UsageError{Err: fmt.Errorf("--%s is required: %s; see %s --help", name, cmd.Flag(name).Usage, cmd.CommandPath())}
			}
		}
		d, err := app.Deployed(cmd.Context())
		if err != nil {
			return err
		}
		return act(cmd.Context(), &operator{d, console.Console{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), JSON: output == "json"}})
	}
	return cmd
}

// newStep is newOp for a command that changes the deployment: it is refused in a shell
// whose settings are not those that the functions have.
func newStep(cmd *cobra.Command, act func(context.Context, *operator) error, required ...string) *cobra.Command {
	return newOp(cmd, func(ctx context.Context, o *operator) error {
		if err := o.checkShell(ctx); err != nil {
			return err
		}
		return act(ctx, o)
	}, required...)
}

// next is the last line of most results.
func next(command string) string {
	if command == "" {
		return ""
	}
	return "next: " + command
}

// sayError prints an error for a person, or as JSON for a program.
func sayError(w io.Writer, asJSON bool, err error, code int) {
	if !asJSON {
		fmt.Fprintln(w, "matter:", err)
		if typed := (*rotation.Error)(nil); errors.As(err, &typed) {
			for _, row := range typed.Rows {
				fmt.Fprintln(w, "  row", audit.Visible(row))
			}
		}
		return
	}
	out := map[string]any{"kind": lambdastep.Kind(err), "message": err.Error(), "exit_code": code}
	var typed *rotation.Error
	var usage console.UsageError
	switch {
	case errors.As(err, &usage):
		out["kind"] = rotation.InvalidInput
	case errors.As(err, &typed):
		out["field"], out["next"] = typed.Field, typed.Next
		if len(typed.Rows) > 0 {
			out["rows"] = typed.Rows
		}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(map[string]any{"error": out}) // there is nobody left to tell
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// open opens definitions by their drivers.
func (o *operator) open(defs []kek.Source) ([]rotation.Source, error) {
	out := make([]rotation.Source, 0, len(defs))
	for _, def := range defs {
		src, err := o.Steps.OpenSource(def)
		if err != nil {
			return nil, &rotation.Error{
				Kind: rotation.SourceMisconfigured, Field: "sources[" + def.Name + "]", Msg: "its definition cannot be used", Err: err, Next: "matter ops source list",
			}
		}
		out = append(out, src)
	}
	return out, nil
}
