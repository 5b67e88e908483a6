package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

func newVerify() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "verify-kms-rotation --new-kek-id NEW",
		Short: "Validate: every item, the dead old KEKs, the audit chain and its anchor",
		Long: `Closes a rotation that has retired its old KEKs, and shows what the runbook expects:
every item of every registered source is classified, and every row among them (not only
recent ones) names the new KEK; data keys unwrap under it, every distinct one or a
sample as the deployment chooses (MATTER_VERIFY_DATA_KEYS), and the sentence says which;
the old KEKs are retired, disabled and refuse to unwrap; the audit chain holds
kms_rotation_completed, and a public log anchors it. It may be repeated at any time; all
that it writes then is an anchor.

Exit code 0: all of it is true. 4: rows are orphaned. 5: nothing is wrong, but the
anchor is not there to prove the chain. 1: something else is not true.`,
		Example: "  matter ops verify-kms-rotation --new-kek-id 1234abcd-12ab-34cd-56ef-1234567890ab",
	}
	cmd.Flags().StringVar(&id, "new-kek-id", "", "the KEK that the rotation minted")
	return newStep(cmd, func(ctx context.Context, o *operator) error { return o.verify(ctx, kek.ID(id)) }, "new-kek-id")
}

// expectation is one thing that verify looks at.
type expectation struct {
	Text    string `json:"expected"`
	Verdict string `json:"verdict"` // true, false or unproven
	Seen    string `json:"seen"`
	exit    int
}

func expect(text, seen string, holds bool) expectation {
	if holds {
		return expectation{Text: text, Verdict: "true", Seen: seen}
	}
	return expectation{Text: text, Verdict: "false", Seen: seen, exit: console.ExitFailed}
}

type verdict struct {
	RotationID string        `json:"rotation_id"`
	Phase      kek.Phase     `json:"phase"`
	OldKEK     kek.ID        `json:"old_kek_id"`
	NewKEK     kek.ID        `json:"new_kek_id"`
	Expected   []expectation `json:"expected"`
	Missing    string        `json:"rows_missing,omitempty"` // sources that lost many rows while the rotation ran
	ExitCode   int           `json:"exit_code"`
}

func (o *operator) verify(ctx context.Context, id kek.ID) error {
	r, err := o.rotationOfNew(ctx, id)
	if err != nil {
		return err
	}
	if err := o.ready(ctx, r, kek.KEKRetired); err != nil {
		return err
	}
	if r.Phase == kek.KEKRetired {
		if r, err = o.closeRotation(ctx, r); err != nil {
			return err
		}
	}
	v := verdict{RotationID: r.ID, Phase: r.Phase, OldKEK: r.OldKEK, NewKEK: r.NewKEK}
	if v.Missing, err = o.Steps.RowsMissing(ctx, r); err != nil {
		return err
	}
	for _, look := range []func(context.Context, kek.Rotation) (expectation, error){o.expectRows, o.expectDead} {
		e, err := look(ctx, r)
		if err != nil {
			return err
		}
		v.Expected = append(v.Expected, e)
	}
	chain, err := o.expectChain(ctx, r)
	if err != nil {
		return err
	}
	v.Expected = append(v.Expected, chain...)
	return o.judge(v)
}

// unproven is an outcome that nothing contradicts and no public log proves.
type unproven struct{ error }

// closeRotation anchors what was recorded so far, as the state machine does before
// this step, and runs the step verify to its end.
func (o *operator) closeRotation(ctx context.Context, r kek.Rotation) (kek.Rotation, error) {
	_, refusal := o.Steps.Anchor(ctx, rotation.AnchorInput{RotationID: r.ID}) // without a log it does nothing
	err := o.pass(ctx, r, "verify", func(ctx context.Context) error {
		for {
			out, err := o.Steps.Verify(ctx, rotation.VerifyInput{RotationID: r.ID})
			if err != nil || out.Done {
				return err
			}
		}
	})
	if ctx.Err() != nil {
		return r, o.detached(&console.StatusLine{Out: o.Err}, fmt.Sprintf("matter ops verify-kms-rotation --new-kek-id %s", r.NewKEK))
	}
	if err == nil {
		return o.reload(ctx, r.ID)
	}
	if err = o.advise(err, r); refusal != nil && lambdastep.Kind(err) == rotation.Unverified {
		return r, unproven{fmt.Errorf("%w; it could not be anchored: %w", err, refusal)}
	}
	return r, err
}

// judge prints the expectations; the worst of them is the exit code.
func (o *operator) judge(v verdict) error {
	lines := []string{fmt.Sprintf("rotation %s is %s", v.RotationID, v.Phase)}
	for _, e := range v.Expected {
		if worse(e.exit, v.ExitCode) {
			v.ExitCode = e.exit
		}
		mark := map[string]string{"true": console.Paint(o.Out, console.Green, "ok      "), "false": console.Paint(o.Out, console.Red, "FALSE   "), "unproven": console.Paint(o.Out, console.Yellow, "unproven")}[e.Verdict]
		lines = append(lines, fmt.Sprintf("%s  %s\n          %s", mark, e.Text, e.Seen))
	}
	if v.Missing != "" {
		lines = append(lines, fmt.Sprintf("%s  rows were deleted while the rotation ran; ask the owner of the table whether on purpose\n          %s", console.Paint(o.Out, console.Yellow, "missing "), v.Missing))
	}
	if err := o.Result(v, lines...); err != nil {
		return err
	}
	if v.ExitCode != console.ExitDone {
		return console.Exit(v.ExitCode)
	}
	return nil
}

// worse orders exit codes: orphans before anything false before unproven.
func worse(a, b int) bool {
	rank := []int{console.ExitDone, console.ExitUnproven, console.ExitFailed, console.ExitOrphans}
	return slices.Index(rank, a) > slices.Index(rank, b)
}

// expectRows reads every item of every registered source, and unwraps data keys.
func (o *operator) expectRows(ctx context.Context, r kek.Rotation) (expectation, error) {
	v, err := o.Table.LoadAll(ctx, "")
	if err != nil {
		return expectation{}, err
	}
	text := "every row's KEK id resolves to the new KEK"
	if v.Pointer == nil {
		return expect(text, "there is no pointer", false), nil
	}
	last := v.Pointer.KEKID == r.NewKEK
	if !last {
		text = fmt.Sprintf("every row's KEK id resolves to an active KEK (a later rotation has moved the pointer to %s)", v.Pointer.KEKID)
	}
	rows, proof, err := o.countProven(ctx, v)
	if err != nil {
		return expectation{}, err
	}
	orphans := rows.ByKind[string(rotation.UnknownKEK)] + rows.ByKind[string(rotation.RetiredKEK)]
	unaccounted := rows.Quarantined - orphans
	var elsewhere int64
	for _, id := range slices.Sorted(maps.Keys(rows.ByKEK)) {
		k, err := o.Steps.Keys.Describe(ctx, kek.ID(id))
		if err != nil && !errors.Is(err, rotation.ErrNoKey) {
			return expectation{}, fmt.Errorf("describe KEK %s: %w", id, err)
		}
		if !k.Enabled {
			orphans += rows.ByKEK[id]
		}
		if last && kek.ID(id) != r.NewKEK {
			elsewhere += rows.ByKEK[id]
		}
	}
	seen := fmt.Sprintf("every item of %d sources was classified: %d rows, %d of them under another KEK, %d orphaned, %d unaccounted%s; %d other items; %s",
		len(v.Sources), rows.Scanned, elsewhere, orphans, unaccounted, first(rows.Poison), rows.Other+rows.Declared, proof)
	e := expect(text, seen, elsewhere == 0 && orphans == 0 && unaccounted == 0 && len(proof.wrong) == 0)
	if orphans > 0 || len(proof.wrong) > 0 {
		e.exit = console.ExitOrphans
	}
	return e, nil
}

// first names the first of a list, to end a phrase.
func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return " (first: " + list[0] + ")"
}

// countProven classifies every item of the registered sources, as a census does, and
// unwraps the data keys of the rows that it comes by under the KEKs that they name.
func (o *operator) countProven(ctx context.Context, v kek.View) (rotation.Tally, *dekProof, error) {
	proof := &dekProof{kms: o.Steps.KMS, keks: v.KEKs, deep: o.Config.Deep, seen: map[string]bool{}}
	steps := *o.Steps
	steps.OpenSource = func(def kek.Source) (rotation.Source, error) {
		src, err := o.Steps.OpenSource(def)
		return provenSource{src, proof}, err
	}
	line := console.NewStatusLine(o.Err)
	c, err := steps.TakeCensus(ctx, "", func(n int64) {
		if line.Live {
			line.Show(fmt.Sprintf("%d items read", n), "")
		}
	})
	line.End()
	total := rotation.Tally{ByKEK: map[string]int64{}, ByKind: map[string]int64{}}
	for _, name := range slices.Sorted(maps.Keys(c.Sources)) {
		t := c.Sources[name]
		total.Scanned += t.Scanned
		total.Other += t.Other
		total.Declared += t.Declared
		total.Quarantined += t.Quarantined
		total.Poison = append(total.Poison, t.Poison...)
		addCounts(total.ByKEK, t.ByKEK)
		addCounts(total.ByKind, t.ByKind)
	}
	return total, proof, err
}

func addCounts(to, from map[string]int64) {
	for k, n := range from {
		to[k] += n
	}
}

// expectDead looks at the old KEKs: in the registry, in KMS, and by trying them.
func (o *operator) expectDead(ctx context.Context, r kek.Rotation) (expectation, error) {
	olds := slices.Concat(r.Olds, r.Leftover)
	if len(r.Olds) == 0 { // a rotation of an earlier release
		olds = []kek.ID{r.OldKEK}
	}
	text := "the old KEK is inactive"
	dead := true
	seen := []string{}
	if len(olds) > 1 {
		text = fmt.Sprintf("the %d old KEKs are inactive", len(olds))
	}
	for _, id := range olds {
		said, ok, err := o.lookDead(ctx, r, id)
		if err != nil {
			return expectation{}, err
		}
		if len(olds) > 1 {
			said = string(id) + ": " + said
		}
		seen, dead = append(seen, said), dead && ok
	}
	return expect(text, strings.Join(seen, "; "), dead), nil
}

// lookDead looks at one old KEK.
func (o *operator) lookDead(ctx context.Context, r kek.Rotation, id kek.ID) (seen string, dead bool, err error) {
	old, err := o.registered(ctx, id)
	if err != nil {
		return "", false, err
	}
	k, err := o.Steps.Keys.Describe(ctx, id)
	if err != nil && !errors.Is(err, rotation.ErrNoKey) {
		return "", false, fmt.Errorf("describe KEK %s: %w", id, err)
	}
	unwraps, tried, err := o.Steps.OldKEKUnwraps(ctx, r, id)
	answer := "a data key wrapped under it does not unwrap any more"
	switch {
	case err != nil:
		answer = "its answer to Decrypt: " + err.Error()
	case !tried:
		answer = "Decrypt was not tried, because the emergency could wrap no data key under it"
	case unwraps:
		answer = "a data key wrapped under it still unwraps"
	}
	return fmt.Sprintf("registry %s; KMS %s; %s", old.State, k.State, answer), old.State == kek.Retired && !k.Enabled && err == nil && !unwraps, nil
}

// expectChain anchors the chain (by hand there is no cron), verifies it in the
// bucket, finds the record of the completed rotation, and looks for the anchor that
// covers it.
func (o *operator) expectChain(ctx context.Context, r kek.Rotation) ([]expectation, error) {
	const text = "the audit chain is extended with kms_rotation_completed"
	_, refusal := o.Steps.Anchor(ctx, rotation.AnchorInput{RotationID: r.ID})
	err := o.Steps.VerifyChain(ctx)
	switch kind := lambdastep.Kind(err); {
	case err == nil || kind == rotation.Unverified: // what is not anchored is said below
	case kind == rotation.AuditTampered:
		return []expectation{expect(text, err.Error(), false)}, nil
	default:
		return nil, err
	}
	line, head, err := o.Table.Head(ctx)
	if err != nil {
		return nil, err
	}
	seq, at, err := o.completedRecord(ctx, line, head.Seq, r.ID)
	if err != nil {
		return nil, err
	}
	if seq == 0 {
		return []expectation{expect(text, fmt.Sprintf("chain %s verifies, but none of its %d records is that of rotation %s", line.Chain, head.Seq, r.ID), false)}, nil
	}
	done := expect(text, fmt.Sprintf("record %d of %d of chain %s, at %s; the chain in the locked bucket verifies", seq, head.Seq, line.Chain, at), true)
	anchor, err := o.expectAnchor(ctx, seq, refusal)
	return []expectation{done, anchor}, err
}

// completedRecord finds the record in the bucket, the youngest first.
func (o *operator) completedRecord(ctx context.Context, line audit.Line, last int64, id string) (seq int64, at string, err error) {
	for seq := last; seq > 0; seq-- {
		b, err := o.Steps.Vault.Get(ctx, line.RecordKey(seq))
		if err != nil {
			return 0, "", fmt.Errorf("audit record %d: %w", seq, err)
		}
		e, err := audit.Parse(b)
		if err != nil {
			return 0, "", fmt.Errorf("audit record %d: %w", seq, err)
		}
		if e.Record.Rotation == id && e.Record.Type == kek.EventRotationCompleted {
			return seq, e.Record.Time, nil
		}
	}
	return 0, "", nil
}

// expectAnchor looks whether a public log covers the record of that number.
// refusal is why it could not be anchored just now.
func (o *operator) expectAnchor(ctx context.Context, seq int64, refusal error) (expectation, error) {
	const text = "the anchor cron processed the rotation event"
	missing := func(seen string) expectation {
		return expectation{Text: text, Verdict: "unproven", Seen: seen, exit: console.ExitUnproven}
	}
	if o.Steps.Anchoring == nil {
		return missing("this deployment has no transparency log; see docs/audit.md"), nil
	}
	report, err := o.Steps.VerifyAudit(ctx, rotation.AuditOptions{})
	if err != nil {
		return expectation{}, err
	}
	switch {
	case report.Result == audit.Tampered:
		return expect(text, rotation.AuditVerdict(report).Error(), false), nil
	case report.Anchored < seq || report.Result == audit.Unproven:
		seen := fmt.Sprintf("records %d to %d are in no public log yet", report.Anchored+1, report.Records)
		if refusal != nil {
			seen += ": " + refusal.Error()
		}
		return missing(seen + "; next: matter ops audit verify"), nil
	default:
		return expect(text, strings.TrimSpace(fmt.Sprintf("records up to %d are at log index %d of %s, anchored %s",
			report.Anchored, report.LogIndex, report.Log, report.AnchorAt.UTC().Format(time.RFC3339))), true), nil
	}
}
