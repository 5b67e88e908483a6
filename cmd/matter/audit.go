package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newAuditCommand returns the group matter ops audit.
func newAuditCommand() *cobra.Command {
	cmd := console.CompleteGroup(&cobra.Command{
		Use: "audit", Short: "Verify, show, export and anchor the audit chain",
		Example: "  matter ops audit verify\n  matter ops audit export --to copy",
	})
	cmd.AddCommand(newAuditVerify(), newAuditShow(), newAuditExport(), newAuditTrust(), newAuditAnchor())
	return cmd
}

// newAuditVerify returns the command matter ops audit verify: exit code 0 green, 1 tampered,
// 5 unproven. The program matter-audit-verify does the same offline.
func newAuditVerify() *cobra.Command {
	var known []string
	maxTail := time.Duration(-1)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify every record and every anchor in the bucket, and the head in the control table",
		Long: `Looks at versions, delete markers, locks, gaps, encoding, links, log entries, and
the head in the control table; docs/audit.md lists what it finds. A green report
names the last anchor: keep it where the people who run the account cannot reach it, and
give it to the next verification.

Exit code: 0 green, 1 tampered, 5 unproven.`,
		Example: `  matter ops audit verify
  matter ops audit verify --known-anchor 12:37e95f59e4357b926f5c912608a005fb9b0feaee7617024da31ab3342b263f29`,
	}
	cmd.Flags().StringArrayVar(&known, "known-anchor", nil, "anchor seen before, n:digest; may be repeated")
	cmd.Flags().DurationVar(&maxTail, "max-tail", -1, "how long a record may wait for its anchor; default: the deployment's choice")
	cmd.Flag("max-tail").DefValue = "" // not -1ns
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error {
		var opts anchor.AuditOptions
		for _, s := range known {
			k, err := audit.ParseKnown(s)
			if err != nil {
				return console.UsageError{Err: err}
			}
			opts.Known = append(opts.Known, k)
		}
		if maxTail >= 0 {
			opts.MaxTail = &maxTail
		}
		return o.auditVerify(ctx, opts)
	})
}

// auditVerify prints the report of a verification and maps its result to the exit code.
func (o *operator) auditVerify(ctx context.Context, opts anchor.AuditOptions) error {
	r, err := o.stack.Steps.Anchor.VerifyAudit(ctx, opts)
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := r.Print(&text); err != nil {
		return err
	}
	if err := o.console.PrintResult(r, strings.TrimSuffix(text.String(), "\n")); err != nil {
		return err
	}
	switch r.Result {
	case audit.Green:
		return nil
	case audit.Unproven:
		return console.Exit(console.ExitUnproven)
	default:
		return console.Exit(console.ExitFailed)
	}
}

// newAuditShow returns the command matter ops audit show. It reads the bucket, not the
// control table, because the bucket is what an auditor gets.
func newAuditShow() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "List the records of the chain, as the bucket holds them",
		Example: "  matter ops audit show --rotation Q2-2026-rotation",
	}
	cmd.Flags().StringVar(&id, "rotation", "", "of this rotation alone")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error {
		records, err := o.readRecords(ctx, id)
		if err != nil {
			return err
		}
		if id != "" && len(records) == 0 {
			return refusedError("--rotation", fmt.Sprintf("no record in the bucket is of rotation %q", id), "matter ops kms-status lists the rotations")
		}
		return o.console.PrintResult(records, recordTable(records))
	})
}

// readRecords reads the chain from the bucket. One that is not there is left out: audit
// verify says why.
func (o *operator) readRecords(ctx context.Context, rotationID string) ([]audit.Record, error) {
	at, head, err := o.stack.Steps.Journal.Outbox.Head(ctx)
	if err != nil {
		return nil, err
	}
	out := []audit.Record{}
	for seq := int64(1); seq <= head.Seq; seq++ {
		b, err := o.stack.Steps.Journal.AuditBucket.Get(ctx, at.RecordKey(seq))
		if errors.Is(err, journal.ErrNoRecord) {
			continue
		}
		if err != nil {
			return nil, err
		}
		e, err := audit.Parse(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; matter ops audit verify says more", at.RecordKey(seq), err)
		}
		if rotationID == "" || e.Record.Rotation == rotationID {
			out = append(out, e.Record)
		}
	}
	return out, nil
}

// recordTable is a table of records, without their bodies: -o json has these.
func recordTable(records []audit.Record) string {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SEQ\tTIME\tTYPE\tROTATION\tACTOR")
	for _, r := range records {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", r.Seq, r.Time, r.Type, r.Rotation, r.Actor)
	}
	_ = t.Flush() // to memory
	return strings.TrimSuffix(b.String(), "\n")
}

// anchoring is what anchors the chain; the error names what is missing.
func (o *operator) anchoring() (*anchor.Anchor, error) {
	if a := o.stack.Steps.Anchor; a != nil {
		return a, nil
	}
	return nil, &journal.Error{
		Kind: journal.Misconfigured, Field: "MATTER_TRUST", Msg: "this deployment has no transparency log",
		Next: journal.Next{Say: "set the stack's parameter TransparencyLogs, see docs/audit.md"},
	}
}

// newAuditExport returns the command matter ops audit export. Versions, delete markers and
// locks are copied too, since tampering shows in them.
func newAuditExport() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:     "export",
		Short:   "Copy the whole bucket with versions, delete markers and locks, for matter-audit-verify",
		Example: "  matter ops audit export --to copy && matter-audit-verify --trust trust.json --chain $MATTER_STACK copy",
	}
	cmd.Flags().StringVar(&to, "to", "", "directory that is empty or not there")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error {
		a, err := o.anchoring()
		if err != nil {
			return err
		}
		if err := audit.Copy(ctx, a.Bucket, to); err != nil {
			return err
		}
		return o.console.PrintResult(map[string]string{"directory": to}, "copied to "+to)
	}, "to")
}

// newAuditTrust returns the command matter ops audit trust. It prints a trust list and
// changes nothing: a new list takes effect by a deployment.
func newAuditTrust() *cobra.Command {
	var signing, root string
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Print the trust list of this deployment, for an auditor to compare with sources of his own",
		Long: `Prints the trust list of this deployment, for an auditor to compare with sources of his
own.

With --signing-config and --trusted-root it adds the Rekor v2 logs that Sigstore names and
the list does not: deploy the stack with the result as TransparencyLogs before the log of
today is frozen. Take both files, signing_config_rekor_v2.v0.2.json and trusted_root.json,
from the Sigstore TUF repository with a client that verifies it, such as cosign initialize.`,
		Example: `  matter ops audit trust
  matter ops audit trust --signing-config signing_config_rekor_v2.v0.2.json --trusted-root trusted_root.json`,
	}
	cmd.Flags().StringVar(&signing, "signing-config", "", "Sigstore signing config that names Rekor v2 logs")
	cmd.Flags().StringVar(&root, "trusted-root", "", "Sigstore trusted root with their keys")
	cmd.MarkFlagsRequiredTogether("signing-config", "trusted-root")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error {
		a, err := o.anchoring()
		if err != nil {
			return err
		}
		key, err := a.Signer.PublicKey(ctx)
		if err != nil {
			return err
		}
		t := a.Trust
		if signing != "" {
			if t, err = withSigstore(t, signing, root); err != nil {
				return err
			}
		}
		t.AnchorKeys = append(t.AnchorKeys[:len(t.AnchorKeys):len(t.AnchorKeys)], audit.PinnedKey{Key: key})
		text, err := json.MarshalIndent(t, "", "  ")
		if err != nil {
			return err
		}
		return o.console.PrintResult(t, string(text))
	})
}

// withSigstore adds the logs that Sigstore's files name.
func withSigstore(t audit.Trust, signing, root string) (audit.Trust, error) {
	var text [2][]byte
	for i, name := range []string{signing, root} {
		var err error
		if text[i], err = os.ReadFile(name); err != nil {
			return t, refusedError([]string{"--signing-config", "--trusted-root"}[i], err.Error(), "matter ops audit trust --help")
		}
	}
	logs, err := audit.LogsOf(text[0], text[1])
	if err != nil {
		return t, refusedError("--signing-config", err.Error(), "matter ops audit trust --help")
	}
	t, _ = t.With(logs)
	return t, nil
}

// newAuditAnchor returns the command matter ops audit anchor, which does at once what the
// hourly schedule does.
func newAuditAnchor() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "anchor",
		Short:   "State the head of the chain in the transparency log now",
		Example: "  matter ops audit anchor",
	}
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error {
		if _, err := o.anchoring(); err != nil {
			return err
		}
		out, err := o.stack.Steps.Anchor.AnchorChain(ctx, anchor.Input{})
		if err != nil {
			return err
		}
		return o.console.PrintResult(out, fmt.Sprintf("%d records, anchor %d at log index %d of %s", out.Records, out.Anchor, out.LogIndex, out.Log))
	})
}
