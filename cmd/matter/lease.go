package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/kek"
)

// newLeaseCommand returns the group matter ops lease.
func newLeaseCommand() *cobra.Command {
	cmd := console.CompleteGroup(&cobra.Command{
		Use:   "lease",
		Short: "Show who may write under which KEK, and revoke a lease",
		Long: `Every process that uses package envelope holds a lease on the pointer's KEK. After
the switch a rotation waits until none is left on the old one, or until they run out.`,
		Example: "  matter ops lease list",
	})
	cmd.AddCommand(newLeaseList(), newLeaseRevoke())
	return cmd
}

// newLeaseList returns the command matter ops lease list.
func newLeaseList() *cobra.Command {
	return newOpsCommand(&cobra.Command{
		Use:     "list",
		Short:   "Show every lease: KEK, holder, host, process, references in flight, and when it runs out",
		Example: "  matter ops lease list -o json",
	}, func(ctx context.Context, o *operator) error { return o.listLeases(ctx) })
}

// newLeaseRevoke returns the command matter ops lease revoke. [rotation.Steps.RevokeLease]
// refuses the pointer's own KEK.
func newLeaseRevoke() *cobra.Command {
	var id, holder, reason string
	var confirmed bool
	cmd := &cobra.Command{
		Use:   "revoke --kek-id KEK --holder HOLDER --reason WHY --confirm",
		Short: "Revoke the lease of a process that is gone",
		Long: `For a process that died and whose lease still holds up a drain. A process that lives
after all loses nothing: its next write under that KEK is refused, and it seals the row
again under the pointer's KEK. A lease on the pointer's own KEK is not revoked.`,
		Example: `  matter ops lease revoke --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --holder web-1-42 --reason "host is gone" --confirm`,
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the KEK that it is a lease on")
	cmd.Flags().StringVar(&holder, "holder", "", "its holder, as matter ops lease list shows it")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit chain")
	cmd.Flags().BoolVar(&confirmed, "confirm", false, "do it")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error {
		if !confirmed {
			return o.refuseUnconfirmed(fmt.Sprintf("revoke the lease of %s on KEK %s", holder, id),
				fmt.Sprintf("matter ops lease revoke --kek-id %s --holder %s --reason %q", id, holder, reason))
		}
		l, err := o.stack.Steps.RevokeLease(ctx, o.stack.Table, kek.ID(id), holder, reason)
		if err != nil {
			return err
		}
		return o.console.PrintResult(operate.Holder(l), fmt.Sprintf("the lease of %s on KEK %s is revoked", l.Holder, l.KEK))
	}, "kek-id", "holder", "reason")
}

// describeHolder says who holds a lease, and until when.
func describeHolder(h operate.Holder) string {
	return fmt.Sprintf("%s on host %s, pid %d, %d in flight, until %s", h.Holder, h.Host, h.PID, h.Refs, formatTime(h.Expires))
}

// listLeases prints the leases on every KEK, those on KEKs that the pointer has left too:
// these hold up a drain.
func (o *operator) listLeases(ctx context.Context) error {
	keks, err := o.stack.Table.KEKs(ctx)
	if err != nil {
		return err
	}
	out := []operate.Holder{}
	var text strings.Builder
	for _, k := range keks {
		held, err := o.stack.Table.Leases(ctx, k.ID)
		if err != nil {
			return err
		}
		for _, l := range held {
			out = append(out, operate.Holder(l))
			fmt.Fprintf(&text, "KEK %s (%s): %s\n", l.KEK, k.State, describeHolder(operate.Holder(l)))
		}
	}
	if len(out) == 0 {
		text.WriteString("no leases: nobody writes")
	}
	return o.console.PrintResult(out, strings.TrimSuffix(text.String(), "\n"))
}
