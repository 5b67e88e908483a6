package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/app"
)

// complete makes shells complete the flags whose values the deployment knows.
// Completion that cannot look says nothing.
func complete(cmd *cobra.Command) {
	register := func(flag string, values func(app.Status) []string) {
		if cmd.Flag(flag) == nil {
			return
		}
		_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
			d, err := app.Deployed(cmd.Context())
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			s, err := d.Status(cmd.Context())
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var out []string
			for _, v := range values(s) {
				if strings.HasPrefix(v, prefix) {
					out = append(out, v)
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		})
	}
	keks := func(s app.Status) []string {
		var out []string
		for _, k := range s.KEKs {
			out = append(out, string(k.ID)+"\t"+string(k.State)+" "+k.Label)
		}
		return out
	}
	register("kek-id", keks)
	register("old-kek-id", keks)
	register("new-kek-id", keks)
	register("rotation", func(s app.Status) []string {
		var out []string
		for _, r := range s.Rotations {
			out = append(out, r.ID+"\t"+string(r.Phase))
		}
		return out
	})
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}
