package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Verify shows that the rotation did what it says and closes it (spec: Complete):
// every row of every source names the new KEK and every distinct data key, or a stated
// sample, unwraps under it; the old KMS keys refuse to unwrap; the audit chain in the
// bucket is whole and ends where the control table says, and a public log has it, which an
// emergency does not wait for. Its record is kms_rotation_completed, which says how many
// rows each pass has scanned: rows that are gone stop nothing, but are told. With Census it
// is the first look at the rows instead.
func (s *Steps) Verify(ctx context.Context, in VerifyInput) (_ SweepOutput, err error) {
	defer func() { err = s.ended(ctx, in.RotationID, err) }()
	if in.Census {
		return s.census(ctx, in.RotationID)
	}
	v, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return SweepOutput{}, err
	}
	if !r.Phase.Reached(kek.KEKRetired) { // nor may what this call has not inspected be completed
		return SweepOutput{}, early(r, kek.Completed)
	}
	var out SweepOutput
	if r.Phase == kek.KEKRetired {
		if out, err = s.inspect(ctx, v, r); err != nil {
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
	body := map[string]string{"verified_rows": fmt.Sprint(out.Tally.Scanned), "unwrapped": out.proof()}
	put(body, "audit_litter", out.litter, "audit_open", out.open)
	out.Missing = tellCounts(body, counts)
	_, err = s.transition(ctx, "verify", r.ID, func(v kek.View) (kek.Change, error) {
		c, err := v.Complete(r.Rev, s.Now())
		if err == nil {
			err = s.checkAge(out.read)
		}
		return c, err
	}, body)
	if err != nil {
		return SweepOutput{}, err
	}
	for _, id := range append([]string{r.ID}, r.TookOver...) {
		if err := s.reapLosers(ctx, id); err != nil {
			return SweepOutput{}, err
		}
	}
	out.Done, out.Note = true, out.open
	return out, nil
}

// inspect looks, and writes nothing but its own checkpoints.
func (s *Steps) inspect(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	if v.Pointer == nil || v.Pointer.KEKID != r.NewKEK {
		return SweepOutput{}, untrue("POINTER.kek_id", "the pointer does not name the new KEK")
	}
	out, err := s.runAll(ctx, r, pass{name: passVerify, visit: s.inspector(rosterOf(v, r))})
	if err != nil || !out.Done {
		return out, err
	}
	if out.Tally.Quarantined > 0 {
		return out, &Error{
			Kind: OrphansFound, Field: "rows", Msg: fmt.Sprintf("%d rows are not under the new KEK: %s", out.Tally.Quarantined, out.quarantine()),
			Rows: out.Tally.Poison,
			Next: fmt.Sprintf("matter ops report --rotation %s names them; enable the old KMS key, restore these rows under the current KEK (matter ops restore-rows), then resume: matter ops resume --rotation %[1]s", r.ID),
		}
	}
	if err := s.verifyDead(ctx, r); err != nil {
		return out, err
	}
	if s.Anchoring == nil {
		return out, s.VerifyChain(ctx)
	}
	report, err := s.VerifyAnchored(ctx)
	out.litter = litter(report)
	var open *Error
	if r.Mode == kek.Emergency && untampered(report) && errors.As(err, &open) {
		out.open, err = audit.Visible(open.Msg), nil // what was found, and no more
	}
	return out, err
}

// untampered reports whether nothing speaks against the chain, though not all of it may be
// proven. A log that is down, frozen or forked is no reason to keep an emergency open, whose
// rows are moved and whose old keys are dead: its record says what is not proven, and the
// hourly anchor proves it once a log takes it.
func untampered(r audit.Report) bool {
	result := withoutLitter(r).Result
	return result == audit.Green || result == audit.Unproven
}

// forgetHalted begins the last pass from the start if the rotation halts on err: when it
// is redriven, what was seen before counts for nothing, however short the pause was.
func (s *Steps) forgetHalted(ctx context.Context, r kek.Rotation, err error) error {
	var typed *Error
	if errors.As(err, &typed) && typed.Kind == Transient {
		return nil // repeated at once
	}
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return err
	}
	made, _, err := s.progress(ctx, r.ID, sources, passVerify)
	if err != nil || len(made) == 0 {
		return err
	}
	return s.restart(ctx, r, passVerify, made)
}

// inspector is the read-only visit: the row names the new KEK, and its data key, or a
// sample, unwraps under it.
func (s *Steps) inspector(t roster) visitor {
	return func(frozen) visit {
		proof := s.newProver(t.rotation)
		return func(ctx context.Context, row Row) (outcome, error) {
			if err := t.judge(row); err != nil {
				return quarantined, err
			}
			if row.KEK != t.rotation.NewKEK {
				return quarantined, fmt.Errorf("it is under KEK %q", row.KEK)
			}
			did, err := proof.keep(ctx, row)
			return s.perhapsYoung(t, did, err)
		}
	}
}

// verifyDead shows that each old KMS key is disabled by what KMS says and by a
// Decrypt that it refuses.
func (s *Steps) verifyDead(ctx context.Context, r kek.Rotation) error {
	for _, old := range slices.Concat(r.Olds, r.Leftover) {
		if err := s.verifyKeyDead(ctx, r, old); err != nil {
			return err
		}
	}
	return nil
}

func (s *Steps) verifyKeyDead(ctx context.Context, r kek.Rotation, old kek.ID) error {
	k, err := s.Keys.Describe(ctx, old)
	if err != nil && !errors.Is(err, ErrNoKey) {
		return unavailable("KMS DescribeKey", err)
	}
	if k.Enabled { // KMS is eventually consistent: a while after DisableKey it says so
		return &Error{
			Kind: Transient, Field: string(old), Msg: "KMS says that the old key is still enabled",
			Next: "it is looked at again; if it stays so, find out who enabled it (CloudTrail)",
		}
	}
	if unwraps, _, err := s.OldKEKUnwraps(ctx, r, old); err != nil {
		return err
	} else if unwraps { // KMS is eventually consistent: a while later it refuses
		return &Error{Kind: Transient, Field: string(old), Msg: "the old KMS key still unwraps", Next: "it is looked at again"}
	}
	return nil
}

// OldKEKUnwraps asks KMS to unwrap, under an old KEK of a rotation, the data key that the
// rotation wrapped under it before the switch. Where an emergency could wrap none, nothing
// was tried.
func (s *Steps) OldKEKUnwraps(ctx context.Context, r kek.Rotation, old kek.ID) (unwraps, tried bool, err error) {
	if r.Mode == kek.Emergency && len(r.Probes[old]) == 0 {
		return false, false, nil
	}
	dek, err := s.KMS.Decrypt(ctx, old, r.Probes[old], probeContext(r.ID))
	clear(dek)
	switch {
	case err == nil:
		return true, true, nil
	case errors.Is(err, ErrKeyDisabled), errors.Is(err, ErrNoKey):
		return false, true, nil
	default:
		return false, true, unavailable("KMS Decrypt", err)
	}
}

// VerifyChain reads the audit chain from the bucket, first record to last, and
// compares its end with the head in the control table.
func (s *Steps) VerifyChain(ctx context.Context) error {
	if s.Anchoring != nil {
		r, err := s.VerifyAudit(ctx, AuditOptions{})
		if err != nil {
			return err
		}
		return AuditVerdict(r)
	}
	at, want, err := s.published(ctx)
	if err != nil {
		return err
	}
	return s.follow(ctx, at, audit.Genesis(at.Chain), want)
}

// follow reads the records after from out of the bucket, each of which must follow the
// one before, up to the head that the control table names. A record that is not there must
// be one that a later record says is lost.
func (s *Steps) follow(ctx context.Context, at audit.Line, from, to audit.Head) error {
	head := from
	var gaps audit.Gaps
	for head.Seq < to.Seq {
		seq := head.Seq + 1
		key := at.RecordKey(seq)
		b, err := s.Vault.Get(ctx, key)
		if errors.Is(err, ErrNoRecord) {
			gaps.Miss(seq)
			head = audit.Head{Seq: seq}
			continue
		}
		if err != nil {
			return unavailable("audit bucket", err)
		}
		e, err := audit.Parse(b)
		if err != nil {
			return tampered(key, err)
		}
		if head.Hash == "" { // after a gap
			head.Hash = e.Record.Prev
		}
		if head, err = e.Follow(at.Chain, head); err != nil {
			return tampered(key, err)
		}
		gaps.Meet(e.Record)
	}
	if _, others := gaps.Explain(); len(others) > 0 {
		return tampered(at.RecordKey(others[0]), ErrNoRecord)
	}
	if head != to {
		return tampered(at.RecordKey(to.Seq), errors.New("the bucket's last record is not the control table's head"))
	}
	return nil
}

func tampered(key string, err error) error {
	return &Error{
		Kind: AuditTampered, Field: key, Msg: "the audit chain does not verify", Err: err,
		Next: "treat it as an incident: matter ops audit verify",
	}
}

func untrue(field, msg string) error {
	return &Error{Kind: Unverified, Field: field, Msg: msg, Next: "matter ops kms-status, then redrive the execution"}
}
