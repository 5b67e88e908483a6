package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matter-ops/kms-rotation/internal/console"
)

// newManCommand returns the command matter man.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write a manual page for every command into a directory",
		Example: "  matter man /usr/local/share/man/man1 && man matter-ops-kms-rotate",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return console.UsageError{Err: errors.New("name one directory; see matter man --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil { //nolint:gosec // manual pages are for everybody
				return err
			}
			n, err := writeMan(args[0], cmd.Root())
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%d manual pages in %s\n", n, args[0])
			}
			return err
		},
	}
}

// writeMan writes the page of a command and of all below it.
func writeMan(dir string, cmd *cobra.Command) (n int, err error) {
	if cmd.Hidden || cmd.Name() == "help" {
		return 0, nil
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	f, err := os.Create(filepath.Join(dir, name+".1"))
	if err != nil {
		return 0, err
	}
	writeManPage(f, name, cmd)
	if err := f.Close(); err != nil {
		return 0, err
	}
	n = 1
	for _, sub := range cmd.Commands() {
		m, err := writeMan(dir, sub)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// writeManPage writes one page in the man macros. It has no date: it is the same
// whenever it is made.
func writeManPage(w io.Writer, name string, cmd *cobra.Command) {
	fmt.Fprintf(w, ".TH %s 1 \"\" matter \"KEK rotation\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(escapeRoff(name)), escapeRoff(name), escapeRoff(cmd.Short))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n", escapeRoff(cmd.UseLine()))
	if cmd.Long != "" {
		fmt.Fprint(w, ".SH DESCRIPTION\n")
		for i, p := range strings.Split(cmd.Long, "\n\n") {
			if i > 0 {
				fmt.Fprint(w, ".PP\n")
			}
			fmt.Fprintln(w, escapeRoff(p))
		}
	}
	cmd.InitDefaultHelpFlag()
	fmt.Fprint(w, ".SH OPTIONS\n")
	cmd.InheritedFlags() // adds them to Flags
	cmd.Flags().VisitAll(func(f *pflag.Flag) { writeManFlag(w, f) })
	writeManSections(w, cmd)
	if cmd.Example != "" {
		fmt.Fprintf(w, ".SH EXAMPLES\n.nf\n%s\n.fi\n", escapeRoff(cmd.Example))
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, manPageName(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			also = append(also, manPageName(sub))
		}
	}
	if len(also) > 0 {
		fmt.Fprintf(w, ".SH SEE ALSO\n%s\n", strings.Join(also, ",\n"))
	}
}

// exitStatus is what every command of matter ops may exit with, unless its description says more.
var exitStatus = []struct {
	code int
	says string
}{
	{console.ExitDone, "It is done, or everything that was looked at is right."},
	{console.ExitFailed, "It failed or was refused, or the audit chain was tampered with. The message names the next command."},
	{console.ExitUsage, "The command line or the environment is wrong. Nothing was done."},
	{console.ExitRolledBack, "The rotation was rolled back before the switch."},
	{console.ExitOrphans, "Rows are left under a KEK that does not open them."},
	{console.ExitUnproven, "Nothing wrong was found, but something could not be checked."},
	{console.ExitRunning, "It still runs, or was interrupted. Repeat the command."},
}

// environment is what matter ops reads from the environment.
var environment = []struct{ name, says string }{
	{"MATTER_*", `The settings of the deployment, as its functions have them. matter ops env prints them; \-\-stack reads them instead.`},
	{"AWS_PROFILE, AWS_REGION and others", "The account, the Region and the credentials, as the AWS CLI reads them."},
	{"NO_COLOR", "If set, no output is coloured."},
	{"TERM", "If it is dumb, progress is written in lines and never redrawn."},
}

// writeManSections writes the sections that the pages of all operator's commands share.
func writeManSections(w io.Writer, cmd *cobra.Command) {
	if !strings.HasPrefix(cmd.CommandPath(), "matter ops") || cmd.HasSubCommands() {
		return
	}
	fmt.Fprint(w, ".SH EXIT STATUS\n")
	for _, s := range exitStatus {
		fmt.Fprintf(w, ".TP\n%d\n%s\n", s.code, s.says)
	}
	fmt.Fprint(w, ".SH ENVIRONMENT\n")
	for _, e := range environment {
		fmt.Fprintf(w, ".TP\n%s\n%s\n", e.name, e.says)
	}
}

// manPageName is the reference to the page of a command.
func manPageName(cmd *cobra.Command) string {
	return fmt.Sprintf("\\fB%s\\fR(1)", escapeRoff(strings.ReplaceAll(cmd.CommandPath(), " ", "-")))
}

// writeManFlag writes one flag as the man macros have it. A default that says nothing is
// left out.
func writeManFlag(w io.Writer, f *pflag.Flag) {
	fmt.Fprint(w, ".TP\n\\fB")
	if f.Shorthand != "" {
		fmt.Fprintf(w, "\\-%s, ", f.Shorthand)
	}
	fmt.Fprintf(w, "\\-\\-%s\\fR", escapeRoff(f.Name))
	if f.Value.Type() != "bool" {
		fmt.Fprintf(w, " \\fI%s\\fR", escapeRoff(f.Value.Type()))
	}
	fmt.Fprintf(w, "\n%s", escapeRoff(f.Usage))
	if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
		fmt.Fprintf(w, " (default %s)", escapeRoff(f.DefValue))
	}
	fmt.Fprintln(w)
}

// escapeRoff escapes text: backslashes, hyphens that a shell must see, and lines that
// would be taken for requests.
func escapeRoff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
