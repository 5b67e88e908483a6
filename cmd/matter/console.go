package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// console is where a command says what it did: the result on standard output,
// progress and refusals on standard error.
type console struct {
	out, err io.Writer
	json     bool
}

// operator is one command at work on a deployment.
type operator struct {
	*app.Deployment
	console
}

// newOp completes a command of matter ops: output format, strict arguments, flags
// that must be given, and the deployment wired before act runs.
func newOp(cmd *cobra.Command, act func(context.Context, *operator) error, required ...string) *cobra.Command {
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	complete(cmd)
	cmd.Args = noArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return usageError{fmt.Errorf("-o %q: use text or json", output)}
		}
		for _, name := range required {
			if cmd.Flag(name).Value.String() == "" {
				return usageError{fmt.Errorf("--%s is required: %s; see %s --help", name, cmd.Flag(name).Usage, cmd.CommandPath())}
			}
		}
		d, err := app.Deployed(cmd.Context())
		if err != nil {
			return err
		}
		return act(cmd.Context(), &operator{d, console{cmd.OutOrStdout(), cmd.ErrOrStderr(), output == "json"}})
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

// noArgs refuses arguments as a mistake on the command line.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%q is not expected; see %s --help", args[0], cmd.CommandPath())}
}

// group is what a command does that only has subcommands.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return usageError{fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, ", "))}
		}
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	}
	return cmd
}

// result prints v as JSON, or else lines; an empty line is left out.
func (c console) result(v any, lines ...string) error {
	if c.json {
		e := json.NewEncoder(c.out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	for _, l := range lines {
		if l == "" {
			continue
		}
		if _, err := fmt.Fprintln(c.out, l); err != nil {
			return err
		}
	}
	return nil
}

// progress is where progress is shown that is no result.
func (c console) progress() io.Writer {
	if c.json {
		return c.err
	}
	return c.out
}

// isTerminal reports whether w is a terminal that may be drawn on.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// The colours of a verdict.
const (
	green  = "32"
	red    = "31"
	yellow = "33"
)

// paint colours text on a terminal, unless NO_COLOR is set (no-color.org).
func paint(w io.Writer, color, text string) string {
	if os.Getenv("NO_COLOR") != "" || !isTerminal(w) {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
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
	var usage usageError
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

// short is a duration as a person says it.
func short(d time.Duration) string {
	switch {
	case d > 0 && d < time.Second:
		return "less than 1 s"
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
}

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
