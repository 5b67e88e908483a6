package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newVerifyCommand returns the command matter ops verify-kms-rotation, the last command of
// the runbook.
func newVerifyCommand() *cobra.Command {
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
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.verifyRotation(ctx, kek.ID(id)) }, "new-kek-id")
}

// expectation is one sentence that the runbook expects to be true, with what was seen.
type expectation struct {
	Text    string `json:"expected"`
	Verdict string `json:"verdict"` // true, false or unproven
	Seen    string `json:"seen"`

	verdict rotation.Verdict
}

// verdictWords are the verdicts as a program reads them.
var verdictWords = map[rotation.Verdict]string{
	rotation.Fulfilled: "true", rotation.Unproven: "unproven", rotation.Violated: "false", rotation.Orphaned: "false",
}

// verdictExits are the exit codes of the verdicts.
var verdictExits = map[rotation.Verdict]int{
	rotation.Fulfilled: console.ExitDone, rotation.Unproven: console.ExitUnproven,
	rotation.Violated: console.ExitFailed, rotation.Orphaned: console.ExitOrphans,
}

// newExpectation is an expectation with its verdict in the words of the output.
func newExpectation(v rotation.Verdict, text, seen string) expectation {
	return expectation{Text: text, Verdict: verdictWords[v], Seen: seen, verdict: v}
}

// verifiedRotation is what the command prints.
type verifiedRotation struct {
	RotationID string        `json:"rotation_id"`
	Phase      kek.Phase     `json:"phase"`
	OldKEK     kek.ID        `json:"old_kek_id"`
	NewKEK     kek.ID        `json:"new_kek_id"`
	Expected   []expectation `json:"expected"`
	Missing    string        `json:"rows_missing,omitempty"` // sources that lost many rows while the rotation ran
	Next       string        `json:"next"`
	ExitCode   int           `json:"exit_code"`
}

// afterVerify is what to do about the worst that verification found.
var afterVerify = map[int]string{
	console.ExitDone:     "nothing; matter ops report --rotation %s --out FILE writes the evidence",
	console.ExitOrphans:  "find out in CloudTrail who disabled the key of the KEK that the rows name, aws kms enable-key --key-id KEK, then matter ops restore-rows brings the rows under the pointer's KEK; matter ops census shows them all",
	console.ExitFailed:   "matter ops doctor, and matter ops audit verify, say more about what is FALSE",
	console.ExitUnproven: "matter ops audit anchor, then repeat this command",
}

// verifyRotation closes a rotation that has retired its old KEKs, and prints what an
// inspection of it finds.
func (o *operator) verifyRotation(ctx context.Context, id kek.ID) error {
	r, err := o.rotationOfNew(ctx, flagNewKEK, id)
	if err != nil {
		return err
	}
	if !r.Phase.Final() { // one that has ended may be looked at again at any time
		if err := o.checkPhase(ctx, flagNewKEK, r, kek.KEKRetired); err != nil {
			return err
		}
	}
	if r.Phase == kek.KEKRetired {
		if r, err = o.closeRotation(ctx, r); err != nil {
			return err
		}
	}
	line := console.NewStatusLine(o.console.Err)
	found, err := o.stack.Steps.InspectRotation(ctx, r, func(n int64) { line.ShowItems("", n) })
	line.End()
	if err != nil {
		return err
	}
	return o.printInspection(r, found)
}

// unproven is an outcome that nothing contradicts and no public log proves.
type unproven struct{ error }

func (u unproven) Unwrap() error { return u.error }

// closeRotation anchors what was recorded so far, as the state machine does before this
// step, and runs the step verify to its end. A chain that could not be anchored is unproven,
// not false.
func (o *operator) closeRotation(ctx context.Context, r kek.Rotation) (kek.Rotation, error) {
	_, refusal := o.stack.Steps.Anchor.AnchorChain(ctx, anchor.Input{RotationID: r.ID}) // without a log it does nothing
	err := o.showPass(ctx, r, "verify", func(ctx context.Context) error {
		for {
			out, err := o.stack.Steps.Verify(ctx, rotation.VerifyInput{RotationID: r.ID})
			if err == nil && out.Paused {
				err = o.pausedError(ctx, r)
			}
			if err != nil || out.Done {
				return err
			}
		}
	})
	if ctx.Err() != nil {
		return r, o.endDetached(&console.StatusLine{Out: o.console.Err}, fmt.Sprintf("matter ops verify-kms-rotation --new-kek-id %s", r.NewKEK))
	}
	if err == nil {
		return o.reloadRotation(ctx, r.ID)
	}
	if err = o.adviseByHand(ctx, err, r); refusal != nil && lambdastep.ErrorKind(err) == journal.Unverified {
		return r, unproven{fmt.Errorf("%w; it could not be anchored: %w", err, refusal)}
	}
	return r, err
}

// printInspection prints the expectations. The worst verdict is the exit code.
func (o *operator) printInspection(r kek.Rotation, found rotation.Inspection) error {
	out := verifiedRotation{RotationID: r.ID, Phase: r.Phase, OldKEK: r.OldKEK, NewKEK: r.NewKEK, Expected: describeInspection(r.ID, found), Missing: found.Missing}
	out.ExitCode = worstExitCode(out.Expected)
	out.Next = strings.ReplaceAll(afterVerify[out.ExitCode], "%s", r.ID)
	marks := map[string]string{
		"true":     console.PaintText(o.console.Out, console.Green, "ok      "),
		"false":    console.PaintText(o.console.Out, console.Red, "FALSE   "),
		"unproven": console.PaintText(o.console.Out, console.Yellow, "unproven"),
	}
	lines := []string{fmt.Sprintf("rotation %s is %s", r.ID, r.Phase)}
	for _, e := range out.Expected {
		lines = append(lines, fmt.Sprintf("%s  %s\n          %s", marks[e.Verdict], e.Text, e.Seen))
	}
	if found.Missing != "" {
		lines = append(lines, fmt.Sprintf("%s  rows were deleted while the rotation ran; ask the owner of the table whether on purpose\n          %s",
			console.PaintText(o.console.Out, console.Yellow, "missing "), found.Missing))
	}
	if err := o.console.PrintResult(out, append(lines, nextLine(out.Next))...); err != nil {
		return err
	}
	if out.ExitCode != console.ExitDone {
		return console.Exit(out.ExitCode)
	}
	return nil
}

// worstExitCode is the exit code of the worst verdict: orphans before anything false before
// unproven.
func worstExitCode(all []expectation) int {
	worst := rotation.Fulfilled
	for _, e := range all {
		worst = max(worst, e.verdict)
	}
	return verdictExits[worst]
}

// describeInspection puts an inspection into the sentences of the runbook.
func describeInspection(id string, found rotation.Inspection) []expectation {
	out := []expectation{describeRows(found.Rows), describeOldKEKs(found.OldKEKs), describeChain(id, found.Chain)}
	if found.Anchor != nil {
		out = append(out, describeCoverage(*found.Anchor))
	}
	return out
}

// describeRows is the expectation of the rows.
func describeRows(r rotation.RowInspection) expectation {
	text := "every row's KEK id resolves to the new KEK"
	if r.Pointer == "" {
		return newExpectation(r.Verdict(), text, "there is no pointer")
	}
	if r.Later {
		text = fmt.Sprintf("every row's KEK id resolves to an active KEK (a later rotation has moved the pointer to %s)", r.Pointer)
	}
	first := ""
	if len(r.Tally.Poison) > 0 {
		first = nameFirst(r.Tally.Poison[0])
	}
	keyed := ""
	if r.Tally.Keyed > 0 {
		keyed = fmt.Sprintf(", %d of them keyed", r.Tally.Keyed)
	}
	return newExpectation(r.Verdict(), text, fmt.Sprintf(
		"every item of %d sources was classified: %d rows%s, %d of them under another KEK, %d orphaned, %d unaccounted%s; %d other items; %s",
		r.Sources, r.Tally.Scanned, keyed, r.Elsewhere, r.Orphaned, r.Unaccounted, first, r.Tally.Other+r.Tally.Declared, describeProof(r.Proof)))
}

// nameFirst names the first of several rows, to end a phrase.
func nameFirst(row string) string { return " (first: " + row + ")" }

// describeProof says which data keys were unwrapped. That a row names a KEK proves nothing.
func describeProof(p rotation.RowProof) string {
	text := fmt.Sprintf("a sample of %d data keys was unwrapped", p.Unwrapped)
	if p.Deep {
		text = fmt.Sprintf("every distinct data key, %d, was unwrapped", p.Unwrapped)
	}
	if p.Wrong > 0 {
		text += fmt.Sprintf(", but %d rows are not under the KEK that they name%s", p.Wrong, nameFirst(p.First))
	}
	return text
}

// describeOldKEKs is the expectation of the old KEKs. Of several, each is named, and the
// worst decides.
func describeOldKEKs(all []rotation.OldKEK) expectation {
	text, verdict := "the old KEK is inactive", rotation.Fulfilled
	if len(all) > 1 {
		text = fmt.Sprintf("the %d old KEKs are inactive", len(all))
	}
	var seen []string
	for _, old := range all {
		said := describeOldKEK(old)
		if len(all) > 1 {
			said = string(old.ID) + ": " + said
		}
		seen = append(seen, said)
		verdict = max(verdict, old.Verdict())
	}
	return newExpectation(verdict, text, strings.Join(seen, "; "))
}

// describeOldKEK says what the registry and KMS know of an old KEK, and what KMS answers to a
// data key that was wrapped under it.
func describeOldKEK(old rotation.OldKEK) string {
	answer := "a data key wrapped under it does not unwrap any more"
	switch {
	case old.Failure != nil:
		answer = "its answer to Decrypt: " + old.Failure.Error()
	case !old.Tried:
		answer = "Decrypt was not tried, because the emergency could wrap no data key under it"
	case old.Unwraps:
		answer = "a data key wrapped under it still unwraps"
	}
	return fmt.Sprintf("registry %s; KMS %s; %s", cmp.Or(old.Registered, "has no entry"), old.Key.State, answer)
}

// describeChain is the expectation of the audit chain.
func describeChain(id string, c rotation.ChainInspection) expectation {
	var seen string
	switch {
	case c.Tampered != nil:
		seen = advice.Explain(c.Tampered)
	case c.Completion.Seq == 0:
		seen = fmt.Sprintf("chain %s verifies, but none of its %d records is that of rotation %s", c.Chain, c.Records, id)
	default:
		seen = fmt.Sprintf("record %d of %d of chain %s, at %s; the chain in the locked bucket verifies", c.Completion.Seq, c.Records, c.Chain, c.Completion.Time)
	}
	return newExpectation(c.Verdict(), "the audit chain is extended with kms_rotation_completed", seen)
}

// describeCoverage says which records a public log proves.
func describeCoverage(a rotation.AnchorInspection) expectation {
	var seen string
	switch {
	case a.NoLog:
		seen = "this deployment has no transparency log; see docs/audit.md"
	case a.Verdict() == rotation.Unproven:
		seen = fmt.Sprintf("records %d to %d are in no public log yet", a.Report.Anchored+1, a.Report.Records)
		if a.Failure != nil {
			seen += ": " + a.Failure.Error()
		}
		seen += "; next: matter ops audit verify"
	default:
		seen = strings.TrimSpace(fmt.Sprintf("records up to %d are at log index %d of %s, anchored %s",
			a.Report.Anchored, a.Report.LogIndex, a.Report.Log, a.Report.AnchorAt.UTC().Format(time.RFC3339)))
	}
	return newExpectation(a.Verdict(), "the anchor cron processed the rotation event", seen)
}
