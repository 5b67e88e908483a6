// Package console is what the commands share: exit codes, mistakes on the command line, a
// result as text or JSON, and the progress of an execution of the state machine.
//
// Invariant: standard output has the result only, so that a script can read it. With
// -o json, progress and refusals go to standard error. The package decides nothing and
// writes nothing to AWS.
package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matter-ops/kms-rotation/internal/version"
)

// The exit codes of the commands. A script may rely on them; docs/runbook.md lists them.
const (
	ExitDone       = 0 // done, or verified
	ExitFailed     = 1 // failed, or tampered with
	ExitUsage      = 2 // a mistake on the command line
	ExitRolledBack = 3 // rolled back before the switch
	ExitOrphans    = 4 // rows remain under the old KEK
	ExitUnproven   = 5 // nothing wrong was found, but something was not checked
	ExitRunning    = 6 // still running
)

// Exit is the error of a command that has printed its outcome: it only sets the exit code.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// UsageError is a mistake on the command line. The program exits with [ExitUsage].
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e UsageError) Unwrap() error { return e.Err }

// Console is where a command prints: the result on Out, progress and refusals on Err.
type Console struct {
	Out, Err io.Writer
	JSON     bool
}

// PrintResult prints v as JSON if JSON was asked for, else the lines that are not empty.
func (c Console) PrintResult(v any, lines ...string) error {
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

// ProgressWriter returns where progress is printed: Out, or Err if Out has JSON.
func (c Console) ProgressWriter() io.Writer {
	if c.JSON {
		return c.Err
	}
	return c.Out
}

// RefuseArgs is the Args of a command that takes none: an argument is a [UsageError].
func RefuseArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return UsageError{Err: fmt.Errorf("%q is not expected; see %s --help", args[0], cmd.CommandPath())}
}

// CompleteGroup makes a command print its help, and answer an unknown subcommand with the
// nearest known ones. It is for a command that only has subcommands.
func CompleteGroup(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		cmd.SuggestionsMinimumDistance = 2 // cobra's own choice, which it makes elsewhere
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return UsageError{Err: fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, ", "))}
		}
		return UsageError{Err: fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	}
	return cmd
}

// CompleteRoot is [CompleteGroup] for the root command. The program, not cobra, prints
// errors, so that they are printed once; a wrong flag is a [UsageError].
func CompleteRoot(cmd *cobra.Command) *cobra.Command {
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.Version = version.Describe()
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		var unknown *pflag.NotExistError
		if errors.As(err, &unknown) {
			if near := suggestFlags(c, unknown.GetSpecifiedName()); len(near) > 0 {
				return UsageError{Err: fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, ", "))}
			}
		}
		return UsageError{Err: fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	return CompleteGroup(cmd)
}

// RefuseRepeats makes the flags of a command, and of those below it, refuse a second value that
// differs: it would silently replace the first. Lists take more than one.
func RefuseRepeats(cmd *cobra.Command) {
	wrap := func(f *pflag.Flag) {
		if _, list := f.Value.(pflag.SliceValue); !list && f.Value.Type() != "bool" {
			f.Value = &singleValue{Value: f.Value}
		}
	}
	cmd.PersistentFlags().VisitAll(wrap)
	cmd.LocalNonPersistentFlags().VisitAll(wrap)
	for _, sub := range cmd.Commands() {
		RefuseRepeats(sub)
	}
}

// singleValue is the value of a flag that may not be given two values.
type singleValue struct {
	pflag.Value
	given *string // as it was written; nil if it was not
}

// Set implements [pflag.Value].
func (v *singleValue) Set(text string) error {
	if v.given != nil && *v.given != text {
		return fmt.Errorf("it was given before, as %q", *v.given)
	}
	v.given = &text
	return v.Value.Set(text)
}

// suggestFlags returns the flags of a command that are like name, by cobra's measure for commands.
func suggestFlags(cmd *cobra.Command, name string) (near []string) {
	names := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	for _, n := range names.SuggestionsFor(name) {
		near = append(near, "--"+n)
	}
	return near
}

// IsTerminal reports whether w is a terminal on which a line can be redrawn. The null
// device is a character device too, but not a terminal.
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

// The colours of a verdict, as parameters of the ANSI escape sequence SGR.
const (
	Green  = "32"
	Red    = "31"
	Yellow = "33"
)

// PaintText colours text if w is a terminal, unless NO_COLOR is set (no-color.org).
func PaintText(w io.Writer, color, text string) string {
	if os.Getenv("NO_COLOR") != "" || !IsTerminal(w) {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// FormatDuration writes a duration in at most two units: "4 min 5 s".
func FormatDuration(d time.Duration) string {
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
