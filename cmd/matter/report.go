package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/report"
)

// newReportCommand returns the command matter ops report. Its -o is html or json, so it does
// not share the flags of the other commands.
func newReportCommand() *cobra.Command {
	var id, out, format string
	cmd := &cobra.Command{
		Use:   "report --rotation ID [--out FILE]",
		Short: "Write the evidence of one rotation: one HTML file, or JSON",
		Long: `Collects everything there is on one rotation (its record, its audit records in the
locked bucket and their anchors, checkpoints, the KEKs in the registry and in KMS,
the execution history) and writes one self-contained HTML file, or the same as
JSON. A rotation that was rolled back, halted or still runs has a report too.
Nothing is changed by it. docs/evidence.md explains what is in it.

The exit code is 0 if the report was written, and 1 also if it was written and the
audit chain shows tampering.`,
		Example: `  matter ops report --rotation Q2-2026-rotation --out Q2-2026.html
  matter ops report --rotation Q2-2026-rotation -o json | jq .outcome`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id == "" {
				return console.UsageError{Err: errors.New("--rotation is required: matter ops kms-status lists the rotations")}
			}
			if format != "html" && format != "json" {
				return console.UsageError{Err: fmt.Errorf("-o %q: use html or json", format)}
			}
			d, err := deployment(cmd)
			if err != nil {
				return err
			}
			r, err := report.Collect(cmd.Context(), report.NewReader(d), id)
			if err != nil {
				return err
			}
			return writeReport(cmd, r, out, format)
		},
	}
	cmd.Flags().StringVar(&id, "rotation", "", "rotation id")
	cmd.Flags().StringVar(&out, "out", "", "file to write; the standard output if it is left out")
	cmd.Flags().StringVarP(&format, "output", "o", "html", "html or json")
	completeFlags(cmd, "html", "json")
	return cmd
}

// writeReport writes the report, and fails if what it reports is tampering.
func writeReport(cmd *cobra.Command, r report.Report, out, format string) error {
	write := r.WriteHTML
	if format == "json" {
		write = r.WriteJSON
	}
	if out == "" {
		if err := write(cmd.OutOrStdout()); err != nil {
			return err
		}
	} else {
		if err := replaceFile(out, write); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s; %s\nreport in %s\n", r.Rotation.ID, r.Outcome.Title, r.Audit.Verification.Summary, out)
	}
	if r.Audit.Verification.Result == audit.Tampered {
		fmt.Fprintln(cmd.ErrOrStderr(), "matter: the audit chain does not verify; treat it as an incident: matter ops audit verify")
		return console.Exit(console.ExitFailed)
	}
	return nil
}

// replaceFile writes a file as a whole or not at all: half a report proves nothing.
func replaceFile(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".report-*")
	if err != nil {
		return console.UsageError{Err: fmt.Errorf("--out %s: %w", name, errors.Unwrap(err))} // which names the temporary file
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
