package rotation_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// switchedPast brings a rotation to a phase before its switch, remembers the control table,
// lets the rotation switch and a row be written under the new KEK, and sets the table back.
func (c *clinic) switchedPast(in rotation.ExecutionInput, to kek.Phase) (minted kek.ID) {
	c.t.Helper()
	c.run(spring, in, to)
	old := c.db.items()
	c.onward(in, to)
	minted = must(c.table.Load(c.t.Context(), "")).Pointer.KEKID
	c.plant("late", minted)
	c.set(old)
	return minted
}

// onward brings the rotation from a phase to its switch.
func (c *clinic) onward(in rotation.ExecutionInput, from kek.Phase) {
	c.t.Helper()
	begun := false
	for _, p := range phases {
		if begun {
			if err := p.run(c, spring, in); err != nil {
				c.t.Fatalf("to %s: %v", p.to, err)
			}
		}
		if begun = begun || p.to == from; p.to == kek.Switched {
			return
		}
	}
}

func (c *clinic) enabled(id kek.ID) bool {
	c.t.Helper()
	return must(c.world.KMS().Describe(c.t.Context(), id)).Enabled
}

// refusedAsSetBack fails the test unless a step was refused because the control table was
// set back, and has disabled nothing.
func (c *clinic) refusedAsSetBack(err error, ids ...kek.ID) {
	c.t.Helper()
	wantKind(c.t, err, journal.AuditTampered)
	if e := typed(err); e.Field != "AUDIT_HEAD" || !strings.Contains(e.Msg, "set back") || e.Next.Do != journal.RunDoctor {
		c.t.Errorf("%v", err)
	}
	for _, id := range ids {
		if !c.enabled(id) {
			c.t.Errorf("%s is disabled", id)
		}
	}
}

// TestRollbackOfASetBackTable: the control table is set back to before a switch, and rows
// are under the new KEK. Whatever would then give that KEK up is refused, retires nothing and
// disables nothing; after doctor an emergency runs to its end and every row opens.
func TestRollbackOfASetBackTable(t *testing.T) {
	retire := func(action string) func(*clinic) error {
		return func(c *clinic) error {
			_, err := c.Retire(c.t.Context(), rotation.RetireInput{RotationID: spring, Action: action, FailedAttempt: 1, ExecutionARN: "arn:aws:states:execution:" + spring, Error: "E"})
			return err
		}
	}
	takeOver := func(c *clinic) error {
		_, err := c.Preflight(c.t.Context(), preflightInput(stolen, rotation.ExecutionInput{Mode: "emergency", Reason: "leaked", Again: true}))
		return err
	}
	look := func(c *clinic) error {
		in := preflightInput(stolen, rotation.ExecutionInput{Mode: "emergency", Reason: "leaked", Again: true})
		in.CheckOnly = true
		_, err := c.Preflight(c.t.Context(), in)
		return err
	}
	for _, tc := range []struct {
		name string
		in   rotation.ExecutionInput
		at   []kek.Phase
		do   func(*clinic) error
	}{
		{"rollback", rotation.ExecutionInput{}, []kek.Phase{kek.Started, kek.Minted, kek.Tested}, retire(rotation.ActionPreSwitchFailure)},
		{"abandon", rotation.ExecutionInput{}, []kek.Phase{kek.Started}, retire(rotation.ActionAbandon)},
		{"retry mint", emergency, []kek.Phase{kek.Started, kek.Minted, kek.Tested}, retire(rotation.ActionRemint)},
		{"takeover", rotation.ExecutionInput{}, []kek.Phase{kek.Started, kek.Minted, kek.Tested}, takeOver},
		{"takeover of an emergency", emergency, []kek.Phase{kek.Minted, kek.Tested}, takeOver},
		{"look at a takeover", rotation.ExecutionInput{}, []kek.Phase{kek.Tested}, look},
	} {
		for _, at := range tc.at {
			t.Run(tc.name+"/"+string(at), func(t *testing.T) {
				c := newClinic(t)
				minted := c.switchedPast(tc.in, at)
				c.refusedAsSetBack(tc.do(c), minted)
				v := must(c.table.LoadAll(t.Context(), spring))
				if k, there := v.KEKs[minted]; there && k.State != kek.Pending {
					t.Errorf("%s is %s in the registry", minted, k.State)
				}
				c.cured("control table")
			})
		}
	}
}

// TestSetBackBeforeDisable: the control table is set back when the step that gives up the new
// KEK has looked into the bucket, and has not written yet. The key stays enabled though the
// registry says that it is retired, and doctor makes rows under it readable.
func TestSetBackBeforeDisable(t *testing.T) {
	for action, in := range map[string]rotation.ExecutionInput{rotation.ActionPreSwitchFailure: {}, rotation.ActionRemint: emergency} {
		c := newClinic(t)
		c.run(spring, in, kek.Tested)
		old := c.db.items()
		line, head, err := c.table.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		minted := must(c.table.Load(t.Context(), spring)).Rotation.NewKEK
		hit := false
		c.world.SetHook(func(op string, args ...any) (bool, error) {
			if op != "Vault.Get" || args[0] != line.RecordKey(head.Seq+1) || hit {
				return true, nil
			}
			hit = true
			c.onward(in, kek.Tested)
			c.plant("late", minted)
			c.set(old)
			return false, journal.ErrNoRecord // the answer of before
		})
		_, err = c.Retire(t.Context(), rotation.RetireInput{RotationID: spring, Action: action, FailedAttempt: 1, Error: "E"})
		c.world.SetHook(nil)
		if v := must(c.table.LoadAll(t.Context(), spring)); !hit || v.KEKs[minted].State != kek.Retired {
			t.Errorf("%s: hit %t, %s is %s", action, hit, minted, v.KEKs[minted].State)
		}
		c.refusedAsSetBack(err, minted)
		c.cured("control table")
	}
}

// TestSweepOfASetBackTable: the control table forgets that a key was claimed and switched
// to, and the rotation is over for it. The sweep for keys with the rotation's tag disables
// none, and the rotation's step says why.
func TestSweepOfASetBackTable(t *testing.T) {
	c := newClinic(t)
	c.run(spring, rotation.ExecutionInput{}, kek.Started)
	old := c.db.items()
	c.onward(rotation.ExecutionInput{}, kek.Started)
	minted := must(c.table.Load(t.Context(), "")).Pointer.KEKID
	c.plant("late", minted)
	c.set(old)
	c.rollBack() // as a step did that looked before the table was set back
	for range 2 {
		_, err := c.Retire(t.Context(), rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "E"})
		c.refusedAsSetBack(err, minted)
	}
	c.cured("control table")
}

// TestRetireOnASetBackTable: an emergency starts on a table that was set back, for the
// pointer must leave its KEK; it retires no KEK before doctor has been there.
func TestRetireOnASetBackTable(t *testing.T) {
	c := newClinic(t)
	old := c.db.items()
	c.run(spring, rotation.ExecutionInput{}, kek.Switched)
	minted := must(c.table.Load(t.Context(), "")).Pointer.KEKID
	c.set(old)
	c.run(stolen, emergency, kek.Rewrapped)
	v := must(c.table.Load(t.Context(), stolen))
	_, err := c.Retire(t.Context(), rotation.RetireInput{RotationID: stolen})
	c.refusedAsSetBack(err, minted, v.Rotation.OldKEK)
	c.cured("control table")
}

// rollBack retires the new KEK of a rotation before its switch, in the registry alone, past
// the check whether the table was set back.
func (c *clinic) rollBack() {
	c.t.Helper()
	change, err := must(c.table.Load(c.t.Context(), spring)).PreSwitchFailure("E", c.clock.now())
	if err != nil {
		c.t.Fatal(err)
	}
	body := map[string]string{"phase": string(kek.RolledBack), "mode": "normal", "old_kek_id": string(change.Rotation.After.OldKEK), "new_kek_id": string(change.Rotation.After.NewKEK)}
	for _, m := range change.KEKs {
		body["kek."+string(m.After.ID)] = string(m.After.State)
	}
	ev := audit.Event{ID: spring + "/rolled_back", Type: "rolled_back", Rotation: spring, Step: "retire", Actor: "test", Body: body}
	if err := c.table.Apply(c.t.Context(), change, ev); err != nil {
		c.t.Fatal(err)
	}
}

// TestDoctorOfADisabledKEK: a KEK that rows are under was retired and disabled by a rollback
// in a table that had forgotten the switch, be it before doctor has looked or by a version
// that took account of the set-back without looking at the KEK. Doctor names it until its key
// is enabled, no normal rotation starts, and the next one moves the rows and disables it.
func TestDoctorOfADisabledKEK(t *testing.T) {
	for _, accounted := range []bool{false, true} {
		c := newClinic(t)
		minted := c.switchedPast(rotation.ExecutionInput{}, kek.Tested)
		c.rollBack()
		c.disable(minted)
		_ = c.VerifyChain(t.Context()) // publishes the record, past the forgotten one
		item := "KEK#" + string(minted)
		names := func(d doctor.Diagnosis) bool {
			return slices.ContainsFunc(d.Open(), func(f doctor.Finding) bool {
				return f.Item == item && (f.Next == (journal.Next{Do: journal.EnableKey, KEK: minted}) || f.Next == (journal.Next{Do: journal.EnableUsedKey, KEK: minted}))
			})
		}
		d := must(c.Doctor.ExamineTable(t.Context()))
		if !names(d) || d.SetBack == "" {
			t.Fatalf("doctor does not name %s: %s", minted, told(d))
		}
		if accounted {
			c.account(d)
			if d = must(c.Doctor.ExamineTable(t.Context())); !names(d) || d.SetBack != "" {
				t.Fatalf("doctor does not name %s once the set-back is history: %s", minted, told(d))
			}
		}
		if !accounted {
			_, err := c.Preflight(t.Context(), preflightInput("next", rotation.ExecutionInput{}))
			wantKind(t, err, journal.AuditTampered)
		}
		for range 2 {
			if d = must(c.Doctor.RepairTable(t.Context())); !names(d) || len(d.Findings) != 1 {
				t.Fatalf("after the repair: %s", told(d))
			}
		}
		if k := must(c.table.LoadAll(t.Context(), "")).KEKs[minted]; k.State != kek.Sealed || c.enabled(minted) {
			t.Errorf("%s is %s, enabled %t", minted, k.State, c.enabled(minted))
		}
		_, err := c.Preflight(t.Context(), preflightInput("next", rotation.ExecutionInput{}))
		wantKind(t, err, journal.KeyUnusable)
		if e := typed(err); e.Field != item || e.Next.Do != journal.EnableLeftKey || e.Next.KEK != minted {
			t.Errorf("%v", err)
		}
		c.world.KMS().Enable(minted)
		if d = must(c.Doctor.ExamineTable(t.Context())); len(d.Findings)+len(d.Notes) > 0 {
			t.Errorf("with the key enabled: %s", told(d))
		}
		c.run("next", rotation.ExecutionInput{}, kek.Completed)
		c.opens()
		if c.enabled(minted) {
			t.Errorf("%s is enabled after the rotation that left it", minted)
		}
		if d = must(c.Doctor.ExamineTable(t.Context())); len(d.Findings)+len(d.Notes) > 0 {
			t.Errorf("after the rotation: %s", told(d))
		}
	}
}

// account records that the set-back was seen, and repairs nothing.
func (c *clinic) account(d doctor.Diagnosis) {
	c.t.Helper()
	at, head, err := c.table.Head(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	place := audit.Line{Chain: at.Chain}
	tip := ""
	for seq := at.Generations.All()[0].From; seq <= head.Seq+1; seq++ {
		b, err := c.Journal.AuditBucket.Get(c.t.Context(), place.RecordKey(seq))
		if err != nil {
			break
		}
		tip = must(audit.Parse(b)).Hash
	}
	if tip == "" {
		c.t.Fatalf("no record was forgotten: %s", told(d))
	}
	if err := c.table.Record(c.t.Context(), audit.Event{
		ID: "seen", Type: audit.EventRepaired, Step: "doctor", Actor: "test", Body: map[string]string{audit.BodyForgotten: tip},
	}); err != nil {
		c.t.Fatal(err)
	}
	_ = c.VerifyChain(c.t.Context())
}

// TestMarksOfASetBackTable: no record tells of marks, so doctor says of a table that was set
// back that those since then are unknown, and which commands help.
func TestMarksOfASetBackTable(t *testing.T) {
	c := newClinic(t)
	old := c.db.items()
	if err := c.table.Record(t.Context(), audit.Event{ID: "one", Type: "one"}); err != nil {
		t.Fatal(err)
	}
	_ = c.VerifyChain(t.Context())
	said := func(all []doctor.Finding) bool {
		return slices.ContainsFunc(all, func(f doctor.Finding) bool {
			return strings.Contains(f.Fault, "marks") && strings.Contains(f.Fault, "registered sources") && strings.Contains(f.Fault, "register what is missing")
		})
	}
	if d := must(c.Doctor.RepairTable(t.Context())); said(d.Findings) || said(d.Repaired) {
		t.Errorf("of a table that was not set back: %s", told(d))
	}
	c.set(slices.Concat([]memddb.Item(nil), old))
	if d := must(c.Doctor.ExamineTable(t.Context())); !said(d.Findings) {
		t.Errorf("doctor does not say that marks are lost: %s", told(d))
	}
	if d := must(c.Doctor.RepairTable(t.Context())); !said(d.Repaired) {
		t.Errorf("the repair does not say that marks are lost: %s", told(d))
	}
}
