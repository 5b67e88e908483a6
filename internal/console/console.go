// Package console is what the commands have in common: exit codes, mistakes on the
// command line, a result as text or JSON, and progress on a terminal.
package console

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// The exit codes.
const (
	ExitDone       = 0 // done, green
	ExitFailed     = 1 // failed, or tampered with
	ExitUsage      = 2
	ExitRolledBack = 3
	ExitOrphans    = 4
	ExitUnproven   = 5
	ExitRunning    = 6 // still running
)

// Exit is an outcome that was already printed and only sets the exit code.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// UsageError is a mistake on the command line.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e UsageError) Unwrap() error { return e.Err }

// Console is where a command prints what it did: the result on Out, progress and
// refusals on Err.
type Console struct {
	Out, Err io.Writer
	JSON     bool
}

// Result prints v as JSON, or else lines; an empty line is left out.
func (c Console) Result(v any, lines ...string) error {
	if c.JSON {
		e := json.NewEncoder(c.Out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	for _, l := range lines {
		if l == "" {
			continue
		}
		if _, err := fmt.Fprintln(c.Out, l); err != nil {
			return err
		}
	}
	return nil
}

// Progress is where progress is printed that is not the result.
func (c Console) Progress() io.Writer {
	if c.JSON {
		return c.Err
	}
	return c.Out
}

// NoArgs refuses arguments as a mistake on the command line.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return UsageError{Err: fmt.Errorf("%q is not expected; see %s --help", args[0], cmd.CommandPath())}
}

// Group completes a command that only has subcommands.
func Group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return UsageError{Err: fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, ", "))}
		}
		return UsageError{Err: fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	}
	return cmd
}

// Root completes the root of a command: errors are printed by the program, and a wrong
// flag is a mistake on the command line.
func Root(cmd *cobra.Command) *cobra.Command {
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return UsageError{Err: fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	return Group(cmd)
}

// IsTerminal reports whether w is a terminal that may be drawn on.
func IsTerminal(w io.Writer) bool {
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
	Green  = "32"
	Red    = "31"
	Yellow = "33"
)

// Paint colours text on a terminal, unless NO_COLOR is set (no-color.org).
func Paint(w io.Writer, color, text string) string {
	if os.Getenv("NO_COLOR") != "" || !IsTerminal(w) {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// ShortDuration is a duration as a person says it.
func ShortDuration(d time.Duration) string {
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
