package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/kek"
)

// completions are the flags whose values the deployment knows: for each value a line with a tab
// and what it is.
var completions = map[string]func(context.Context, *operate.Deployment) ([]string, error){
	"kek-id":     listKEKs,
	"old-kek-id": listKEKs,
	"new-kek-id": listKEKs,
	"rotation":   listRotations,
	"execution":  listExecutions,
	"source":     listSources,
	"name":       listSources,
	"holder":     listHolders,
}

// completeFlags makes shells complete the flags of a command whose output has these formats.
// Completion that cannot look says nothing.
func completeFlags(cmd *cobra.Command, formats ...string) {
	for flag, list := range completions {
		if cmd.Flag(flag) == nil {
			continue
		}
		_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
			var out []string
			if d, err := deployment(cmd); err == nil {
				values, _ := list(cmd.Context(), d)
				for _, v := range values {
					if strings.HasPrefix(v, prefix) {
						out = append(out, v)
					}
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		})
	}
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}

func listKEKs(ctx context.Context, d *operate.Deployment) (out []string, err error) {
	all, err := d.Table.KEKs(ctx)
	for _, k := range all {
		out = append(out, string(k.ID)+"\t"+string(k.State)+" "+k.Label)
	}
	return out, err
}

func listRotations(ctx context.Context, d *operate.Deployment) (out []string, err error) {
	all, err := d.Table.Rotations(ctx)
	for _, r := range all {
		out = append(out, r.ID+"\t"+string(r.Phase))
	}
	return out, err
}

func listExecutions(ctx context.Context, d *operate.Deployment) (out []string, err error) {
	all, err := d.ListRunning(ctx)
	for _, e := range all {
		out = append(out, e.Name+"\trotation "+e.RotationID)
	}
	return out, err
}

func listSources(ctx context.Context, d *operate.Deployment) (out []string, err error) {
	all, err := d.Sources(ctx)
	for _, s := range all {
		out = append(out, s.Name+"\t"+s.Kind)
	}
	return out, err
}

// listHolders are the holders of leases on the KEKs that may have some.
func listHolders(ctx context.Context, d *operate.Deployment) (out []string, err error) {
	all, err := d.Table.KEKs(ctx)
	for _, k := range all {
		if k.State == kek.Retired {
			continue
		}
		held, err := d.Table.Leases(ctx, k.ID)
		if err != nil {
			return nil, err
		}
		for _, l := range held {
			out = append(out, l.Holder+"\t"+string(k.ID))
		}
	}
	return out, err
}
