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

func newMan() *cobra.Command {
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
	manPage(f, name, cmd)
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

// manPage writes one page in the man macros. It has no date: it is the same
// whenever it is made.
func manPage(w io.Writer, name string, cmd *cobra.Command) {
	fmt.Fprintf(w, ".TH %s 1 \"\" matter \"KEK rotation\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(roff(name)), roff(name), roff(cmd.Short))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n", roff(cmd.UseLine()))
	if cmd.Long != "" {
		fmt.Fprint(w, ".SH DESCRIPTION\n")
		for i, p := range strings.Split(cmd.Long, "\n\n") {
			if i > 0 {
				fmt.Fprint(w, ".PP\n")
			}
			fmt.Fprintln(w, roff(p))
		}
	}
	cmd.InitDefaultHelpFlag()
	fmt.Fprint(w, ".SH OPTIONS\n")
	cmd.Flags().VisitAll(func(f *pflag.Flag) { manFlag(w, f) })
	if cmd.Example != "" {
		fmt.Fprintf(w, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, pageOf(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			also = append(also, pageOf(sub))
		}
	}
	if len(also) > 0 {
		fmt.Fprintf(w, ".SH SEE ALSO\n%s\n", strings.Join(also, ",\n"))
	}
}

func pageOf(cmd *cobra.Command) string {
	return fmt.Sprintf("\\fB%s\\fR(1)", roff(strings.ReplaceAll(cmd.CommandPath(), " ", "-")))
}

func manFlag(w io.Writer, f *pflag.Flag) {
	fmt.Fprint(w, ".TP\n\\fB")
	if f.Shorthand != "" {
		fmt.Fprintf(w, "\\-%s, ", f.Shorthand)
	}
	fmt.Fprintf(w, "\\-\\-%s\\fR", roff(f.Name))
	if f.Value.Type() != "bool" {
		fmt.Fprintf(w, " \\fI%s\\fR", roff(f.Value.Type()))
	}
	fmt.Fprintf(w, "\n%s", roff(f.Usage))
	if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
		fmt.Fprintf(w, " (default %s)", roff(f.DefValue))
	}
	fmt.Fprintln(w)
}

// roff escapes text: backslashes, hyphens that a shell must see, and lines that
// would be taken for requests.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
