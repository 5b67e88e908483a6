package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

func newLease() *cobra.Command {
	cmd := console.Group(&cobra.Command{
		Use:   "lease",
		Short: "Show who may write under which KEK, and take a lease back",
		Long: `Every process that uses package envelope holds a lease on the pointer's KEK. After
the switch a rotation waits until none is left on the old one, or until they run out.`,
		Example: "  matter ops lease list",
	})
	cmd.AddCommand(newLeaseList(), newLeaseRevoke())
	return cmd
}

func newLeaseList() *cobra.Command {
	return newOp(&cobra.Command{
		Use:     "list",
		Short:   "Show every lease: KEK, holder, host, process, references in flight, and when it runs out",
		Example: "  matter ops lease list -o json",
	}, func(ctx context.Context, o *operator) error { return o.listLeases(ctx) })
}

func newLeaseRevoke() *cobra.Command {
	var id, holder, reason string
	var confirmed bool
	cmd := &cobra.Command{
		Use:   "revoke --kek-id KEK --holder HOLDER --reason WHY --confirm",
		Short: "Take back the lease of a process that is gone",
		Long: `For a process that died and whose lease still holds up a drain. A process that lives
after all loses nothing: its next write under that KEK is refused, and it seals the row
again under the pointer's KEK. The lease on the pointer's own KEK is not taken back.`,
		Example: `  matter ops lease revoke --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --holder web-1-42 --reason "host is gone" --confirm`,
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the KEK that it is a lease on")
	cmd.Flags().StringVar(&holder, "holder", "", "its holder, as matter ops lease list shows it")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit chain")
	cmd.Flags().BoolVar(&confirmed, "confirm", false, "do it")
	return newOp(cmd, func(ctx context.Context, o *operator) error {
		if !confirmed {
			return o.would(fmt.Sprintf("take back the lease of %s on KEK %s", holder, id),
				fmt.Sprintf("matter ops lease revoke --kek-id %s --holder %s --reason %q", id, holder, reason))
		}
		l, err := o.Steps.RevokeLease(ctx, o.Table, kek.ID(id), holder, reason)
		if err != nil {
			return err
		}
		return o.Result(leaseOf(l), fmt.Sprintf("the lease of %s on KEK %s is revoked", l.Holder, l.KEK))
	}, "kek-id", "holder", "reason")
}

// lease is a lease as it is shown.
type lease struct {
	KEK     kek.ID `json:"kek_id"`
	Holder  string `json:"holder"`
	Host    string `json:"host"`
	PID     int    `json:"pid"`
	Refs    int64  `json:"in_flight"`
	Expires string `json:"expires_at"`
}

func leaseOf(l rotation.Lease) lease {
	return lease{l.KEK, l.Holder, l.Host, l.PID, l.Refs, stamp(l.Expires)}
}

func (o *operator) listLeases(ctx context.Context) error {
	keks, err := o.Table.KEKs(ctx)
	if err != nil {
		return err
	}
	out := []lease{}
	var text strings.Builder
	for _, k := range keks {
		held, err := o.Table.Leases(ctx, k.ID)
		if err != nil {
			return err
		}
		for _, l := range held {
			out = append(out, leaseOf(l))
			fmt.Fprintf(&text, "KEK %s (%s): %s on host %s, pid %d, %d in flight, until %s\n", l.KEK, k.State, l.Holder, l.Host, l.PID, l.Refs, stamp(l.Expires))
		}
	}
	if len(out) == 0 {
		text.WriteString("no leases: nobody writes")
	}
	return o.Result(out, strings.TrimSuffix(text.String(), "\n"))
}
