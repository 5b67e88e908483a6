package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/app"
)

func newStatus() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "kms-status",
		Short: "Show the pointer, the KEKs, the leases and the rotations",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("-o %q: use text or json", output)}
			}
			d, err := app.Deployed(cmd.Context())
			if err != nil {
				return err
			}
			s, err := d.Status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func printStatus(w io.Writer, s app.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if s.Pointer == nil {
		fmt.Fprintln(t, "pointer\tnone: matter ops kms-genesis makes it")
	} else {
		fmt.Fprintf(t, "pointer\t%s\tepoch %d\tsince %s\n", s.Pointer.KEK, s.Pointer.Epoch, stamp(s.Pointer.SwitchedAt))
	}
	if s.Lock == "" {
		fmt.Fprintln(t, "lock\tfree")
	} else {
		fmt.Fprintf(t, "lock\theld by rotation %s\n", s.Lock)
	}
	for _, k := range s.KEKs {
		fmt.Fprintf(t, "KEK\t%s\t%s\t%d leases, %d in flight\t%s\n", k.ID, k.State, k.Leases, k.Refs, k.Label)
	}
	for _, r := range s.Rotations {
		fmt.Fprintf(t, "rotation\t%s\t%s\t%s\t%s\n", r.ID, r.Phase, stamp(r.UpdatedAt), r.Label)
	}
	fmt.Fprintf(t, "audit chain\t%s\t%d records\t%d not in the bucket yet\n", s.Audit.Chain, s.Audit.Records, s.Audit.Unpublished)
	return t.Flush()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
