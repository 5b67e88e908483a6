package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// Verify shows that the rotation did what its records say, and completes it (spec:
// Complete). It checks that
//
//   - every row of every source names the new KEK, and every distinct data key, or a stated
//     sample of them, unwraps under it;
//   - the old KMS keys refuse to unwrap;
//   - the audit chain in the bucket, from where the verification before it ended, has no gap
//     and ends where the control table says;
//   - a public log has the chain, for which an emergency does not wait.
//
// Its record, kms_rotation_completed, says how many rows each pass has scanned. Rows that
// disappeared do not stop it, but people are told. With Census it is the first pass over the
// rows instead, and with Source it works on one segment and concludes nothing.
func (s *Steps) Verify(ctx context.Context, in VerifyInput) (_ SweepOutput, err error) {
	defer func() { err = s.Journal.ExplainEnded(ctx, in.RotationID, err) }()
	if in.Census {
		return s.runCensus(ctx, in)
	}
	v, r, err := s.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return SweepOutput{}, err
	}
	if !r.Phase.Reached(kek.KEKRetired) {
		return SweepOutput{}, errTooEarly(r, kek.Completed)
	}
	if in.Source != "" && r.Phase != kek.KEKRetired { // completed meanwhile
		return SweepOutput{Done: true}, nil
	}
	if in.Source != "" {
		return s.runOne(ctx, r, Segment{Source: in.Source, Segment: in.Segment}, s.verifyPass(v, r))
	}
	var out SweepOutput
	if r.Phase == kek.KEKRetired {
		if out, err = s.inspectRotation(ctx, v, r); err != nil {
			return out, errors.Join(err, s.forgetHalted(ctx, r, err))
		}
		if !out.Done {
			return out, nil
		}
	}
	counts, err := s.countPasses(ctx, r)
	if err != nil {
		return out, err
	}
	body := map[string]string{"verified_rows": fmt.Sprint(out.Tally.Scanned), "unwrapped": out.describeProof()}
	if r.Mode == kek.Emergency && out.Tally.Keyed > 0 {
		body["exposed_rows"] = fmt.Sprintf("%d of %d keyed rows: inserted since the switch by writers that had loaded the pointer before it", out.Tally.Exposed, out.Tally.Keyed)
	}
	journal.AddPairs(body, "audit_litter", out.litter, "audit_open", out.open)
	if out.verified != nil {
		out.verified.State(body)
	}
	out.Missing = recordCounts(body, counts)
	if err := s.recordUnread(r, body); err != nil {
		return out, err
	}
	_, err = s.Journal.Transition(ctx, "verify", r.ID, func(v kek.View) (kek.Change, error) {
		c, err := v.Complete(r.Rev, s.Journal.Now())
		if err == nil {
			err = s.checkAge(out.read)
		}
		return c, err
	}, body)
	if err != nil {
		return SweepOutput{}, err
	}
	for _, id := range append([]string{r.ID}, r.TookOver...) {
		if err := s.disableLoserKeys(ctx, id); err != nil {
			return SweepOutput{}, err
		}
	}
	out.Done = true
	archived, err := s.archiveFinished(ctx, r)
	notes := []string{out.open, archived.note()}
	if err != nil { // the rotation is completed all the same, and the next one tries again
		notes = append(notes, "items of earlier rotations stay in the control table: "+err.Error())
	}
	out.Note = strings.Join(slices.DeleteFunc(notes, func(n string) bool { return n == "" }), "; ")
	if !archived.tried {
		return out, nil
	}
	return out, s.Journal.Publish(ctx) // what a step has done is in the bucket when it returns (spec: DoneIsStored)
}

// inspectRotation makes the checks of Verify. It writes only its own checkpoints.
func (s *Steps) inspectRotation(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	if v.Pointer == nil || v.Pointer.KEKID != r.NewKEK {
		return SweepOutput{}, errUnverified("POINTER.kek_id", "the pointer does not name the new KEK")
	}
	out, err := s.runAll(ctx, r, s.verifyPass(v, r))
	if err != nil || !out.Done {
		return out, err
	}
	if out.Tally.Quarantined > 0 {
		return out, &journal.Error{
			Kind: journal.OrphansFound, Field: "rows", Msg: fmt.Sprintf("%d rows are not under the new KEK: %s", out.Tally.Quarantined, out.describeQuarantine()),
			Rows: out.Tally.Poison,
			Next: journal.Next{Do: journal.RestoreOrphans, Rotation: r.ID},
		}
	}
	if err := s.verifyDead(ctx, r); err != nil {
		return out, err
	}
	if s.Anchor == nil {
		return out, s.VerifyChain(ctx)
	}
	report, err := s.Anchor.VerifyAnchored(ctx)
	out.litter = anchor.NameLitter(report)
	if next, ok := report.NextStart(s.Journal.Now(), s.Journal.Actor); ok {
		out.verified = &next
	}
	var open *journal.Error
	if r.Mode == kek.Emergency && anchor.IsUntampered(report) && errors.As(err, &open) {
		out.open, err = audit.Visible(open.Msg), nil // the finding, without what to do about it
	}
	return out, err
}

// forgetHalted resets the last pass if the rotation halts on err. When it is redriven, the
// pass begins from the start, however short the halt was.
func (s *Steps) forgetHalted(ctx context.Context, r kek.Rotation, err error) error {
	var typed *journal.Error
	if errors.As(err, &typed) && typed.Kind == journal.Transient {
		return nil // the state machine retries it without a halt
	}
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return err
	}
	made, _, err := s.readProgress(ctx, r.ID, sources, passVerify)
	if err != nil || len(made) == 0 {
		return err
	}
	return s.restartPass(ctx, r, passVerify, made)
}

// verifyPass is the last, read-only pass.
func (s *Steps) verifyPass(v kek.View, r kek.Rotation) pass {
	return pass{name: passVerify, keyed: r.Mode == kek.Emergency, visit: s.verifyRow(rosterOf(v, r))}
}

// verifyRow returns the visit of the last pass, which only reads: the row names the new KEK,
// and its data key, if it is in the sample, unwraps under it.
func (s *Steps) verifyRow(t roster) visitor {
	return func(src frozenSource) visit {
		proof := s.newProver(t.rotation, src.Name())
		return func(ctx context.Context, row source.Row) (outcome, error) {
			if err := t.checkRow(row); err != nil {
				return quarantined, err
			}
			if row.DEKID != "" {
				return s.countExposed(ctx, t.rotation, row)
			}
			if row.KEK != t.rotation.NewKEK {
				return quarantined, fmt.Errorf("it is under KEK %q", row.KEK)
			}
			did, err := proof.keepProved(ctx, row)
			return s.quarantineUnlessYoung(t, did, err)
		}
	}
}

// verifyDead shows that each old KMS key is disabled: DescribeKey says so, and KMS refuses to
// decrypt with it.
func (s *Steps) verifyDead(ctx context.Context, r kek.Rotation) error {
	for _, old := range listLeftKEKs(r) {
		if err := s.verifyKeyDead(ctx, r, old); err != nil {
			return err
		}
	}
	return nil
}

// listLeftKEKs lists every KEK that a rotation has left and that must be dead at its end.
func listLeftKEKs(r kek.Rotation) []kek.ID { return slices.Concat(r.Olds, r.Leftover) }

// describeKEK describes the KMS key of a KEK. A key that KMS does not know is not enabled.
func (s *Steps) describeKEK(ctx context.Context, id kek.ID) (keyring.Key, error) {
	k, err := s.Keys.Admin.Describe(ctx, id)
	if err != nil && !errors.Is(err, journal.ErrNoKey) {
		return k, journal.WrapUnavailable("KMS DescribeKey", err)
	}
	return k, nil
}

func (s *Steps) verifyKeyDead(ctx context.Context, r kek.Rotation, old kek.ID) error {
	k, err := s.describeKEK(ctx, old)
	if err != nil {
		return err
	}
	if k.Enabled {
		return &journal.Error{
			Kind: journal.Transient, Field: string(old), Msg: "KMS says that the old key is still enabled",
			Next: journal.Next{Say: "it is looked at again; if it stays so, find out who enabled it (CloudTrail)"},
		}
	}
	if unwraps, _, err := s.OldKEKUnwraps(ctx, r, old); err != nil {
		return err
	} else if unwraps {
		return &journal.Error{Kind: journal.Transient, Field: string(old), Msg: "the old KMS key still unwraps", Next: journal.Next{Say: "it is looked at again"}}
	}
	return nil
}

// OldKEKUnwraps asks KMS to unwrap, under an old KEK of a rotation, the data key that the
// rotation wrapped under it before the switch. tried is false if an emergency could not
// wrap one then.
func (s *Steps) OldKEKUnwraps(ctx context.Context, r kek.Rotation, old kek.ID) (unwraps, tried bool, err error) {
	if r.Mode == kek.Emergency && len(r.Probes[old]) == 0 {
		return false, false, nil
	}
	dek, err := s.Keys.Wrapper.Decrypt(ctx, old, r.Probes[old], probeContext(r.ID))
	clear(dek)
	switch {
	case err == nil:
		return true, true, nil
	case errors.Is(err, journal.ErrKeyDisabled), errors.Is(err, journal.ErrNoKey):
		return false, true, nil
	default:
		return false, true, journal.WrapUnavailable("KMS Decrypt", err)
	}
}

// VerifyChain reads the audit chain from the bucket, from the first record to the last, and
// compares its end with the head in the control table. With anchoring it also checks that
// the public logs have it.
func (s *Steps) VerifyChain(ctx context.Context) error {
	_, err := s.verifyChain(ctx)
	return err
}

// verifyChain is VerifyChain with the report of the verification, which is empty without a
// public log.
func (s *Steps) verifyChain(ctx context.Context) (audit.Report, error) {
	if s.Anchor != nil {
		r, err := s.Anchor.VerifyAudit(ctx, anchor.AuditOptions{})
		if err != nil {
			return r, err
		}
		return r, anchor.AuditVerdict(r)
	}
	at, want, err := s.Journal.PublishHead(ctx)
	if err != nil {
		return audit.Report{}, err
	}
	return audit.Report{}, s.Journal.FollowChain(ctx, at, audit.Genesis(at.Chain), want)
}

// errUnverified reports a check of Verify that failed.
func errUnverified(field, msg string) error {
	return &journal.Error{Kind: journal.Unverified, Field: field, Msg: msg, Next: journal.Next{Do: journal.CheckThenRedrive}}
}
