package rotation_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/asltest"
)

const (
	alice = "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_ops_0123456789abcdef/alice"
	bob   = "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_ops_0123456789abcdef/bob"
)

var asked = rotation.ExecutionInput{RequestedBy: alice}

// twoPersons is a driver of a deployment in which a second person must agree.
func twoPersons(t *testing.T) *driver {
	t.Helper()
	d, _ := watched(t)
	d.Gates.Rules.ApprovalRequired, d.Gates.Rules.ApprovalWait = true, time.Hour
	d.Journal.Actor = "lambda/test"
	return d
}

// as runs something as a person.
func (s *site) as(who string, do func()) {
	was := s.Journal.Actor
	s.Journal.Actor = who
	do()
	s.Journal.Actor = was
}

// verdict is what a person says to the plan that waits.
func (d *driver) verdict(who, reason string, reject bool) (a gates.Approval, err error) {
	d.t.Helper()
	d.as(who, func() {
		a, err = d.Gates.JudgePlan(d.t.Context(), gates.Verdict{RotationID: spring, Plan: d.Gates.HashPlan(d.record(spring)), Reason: reason, Reject: reject})
	})
	return a, err
}

// TestApproval checks that the rotation waits for a second person, who is told what to
// run, and that the requester cannot be that person.
func TestApproval(t *testing.T) {
	d := twoPersons(t)
	d.machine.Await = func(_, token string) *asltest.Failure {
		if d.pointer().KEKID != d.first {
			t.Error("the pointer moved before anybody agreed")
		}
		_, err := d.verdict(alice, "", false)
		wantKind(t, err, journal.Refused)
		if e := typed(err); e.Field != "approver" || e.Next.Do != journal.AskApprover || e.Next.Rotation != spring || e.Next.Plan == "" {
			t.Errorf("the refusal: %v", e)
		}
		a, err := d.verdict(bob, "", false)
		if err != nil || a.Token != token || a.By != bob || a.State != gates.ApprovalGiven {
			t.Fatalf("%+v, %v; the token is %s", a, err, token)
		}
		if again, err := d.verdict(bob, "", false); err != nil || again != a {
			t.Errorf("repeated: %+v, %v", again, err)
		}
		_, err = d.verdict("arn:aws:iam::123456789012:user/carol", "I disagree", true)
		wantKind(t, err, journal.Refused) // it is settled
		return nil
	}
	d.complete(spring, asked)
	d.settled()
	if again, err := d.verdict(bob, "", false); err != nil || again.State != gates.ApprovalGiven {
		t.Errorf("repeated when all is over: %+v, %v", again, err)
	}
	_, err := d.verdict(bob, "too late", true)
	wantKind(t, err, journal.Refused)
	wantEvents(t, d.site, "rotation_started", "rows_counted", "kek_minted", "rows_rehearsed", "dual_unwrap_passed", "approval_wanted", "approval_given", "pointer_switched",
		"old_kek_sealed", "rows_rewrapped", "old_kek_retired", "kms_rotation_completed")
	if !slices.Contains(d.mail, "KEK rotation waits for a second person") {
		t.Errorf("mail %q", d.mail)
	}
}

// TestApprovalNotGiven checks that a rejection, silence and a forged answer leave the
// pointer alone; the first two roll back by themselves.
func TestApprovalNotGiven(t *testing.T) {
	for _, tc := range []struct {
		name  string
		await func(d *driver) *asltest.Failure
		final string
		kind  journal.Kind
	}{
		{"rejected", func(d *driver) *asltest.Failure {
			_, err := d.verdict(bob, "", true)
			wantKind(t, err, journal.InvalidInput) // why not?
			a, err := d.verdict(bob, "not tonight", true)
			d.must(err)
			return &asltest.Failure{Name: string(journal.ApprovalRejected), Cause: a.Reason}
		}, "RolledBack", journal.ApprovalRejected},
		{"withdrawn by who asked", func(d *driver) *asltest.Failure {
			_, err := d.verdict(alice, "too early", true)
			d.must(err)
			return &asltest.Failure{Name: string(journal.ApprovalRejected)}
		}, "RolledBack", journal.ApprovalRejected},
		{"silence", func(d *driver) *asltest.Failure {
			d.clock.pass(time.Hour + time.Second)
			_, err := d.verdict(bob, "", false)
			wantKind(t, err, journal.ApprovalExpired)
			return &asltest.Failure{Name: "States.Timeout"}
		}, "RolledBack", journal.ApprovalExpired},
		{"a forged answer", func(*driver) *asltest.Failure { return nil }, "Halted", journal.ApprovalMissing},
		{"an answer to another plan", func(d *driver) *asltest.Failure {
			d.as(bob, func() {
				_, err := d.Gates.JudgePlan(t.Context(), gates.Verdict{RotationID: spring, Plan: strings.Repeat("0", 64)})
				wantKind(t, err, journal.Refused)
			})
			return nil
		}, "Halted", journal.ApprovalMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := twoPersons(t)
			d.machine.Await = func(string, string) *asltest.Failure { return tc.await(d) }
			e := d.machine.Start(spring, asked)
			if e.Final != tc.final || !strings.Contains(e.Failure.Error(), string(tc.kind)) || d.pointer().KEKID != d.first {
				t.Fatalf("ended in %s: %v; pointer %+v", e.Final, e.Failure, d.pointer())
			}
			if tc.final == "RolledBack" {
				d.settled()
				return
			}
			if _, err := d.verdict(bob, "", false); err != nil { // a halt continues once somebody agrees
				t.Fatal(err)
			}
			e.Redrive()
			if e.Status != "SUCCEEDED" {
				t.Fatalf("redriven: %s: %v", e.Final, e.Failure)
			}
			d.settled()
		})
	}
}

// TestApprovalIsForOnePlan checks that an approval does not outlive what it was given
// for: other sources, another definition of one, other old KEKs and other settings are
// another plan.
func TestApprovalIsForOnePlan(t *testing.T) {
	d := twoPersons(t)
	d.as(alice, func() { d.advance(spring, rotation.ExecutionInput{}, kek.Tested) }) // by hand: who runs it is who asks
	if r := d.record(spring); r.Requester != alice || !r.Approval {
		t.Fatalf("record %+v", r)
	}
	if _, err := d.verdict(bob, "", false); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(r *kek.Rotation){
		"a source less":      func(r *kek.Rotation) { r.Sources = r.Sources[:1] },
		"another definition": func(r *kek.Rotation) { r.Sources[0].Definition = `{"a":1}` },
		"another old KEK":    func(r *kek.Rotation) { r.Olds = append(r.Olds, "kek-9999") },
		"a sample":           func(r *kek.Rotation) { r.Settings.Deep = !r.Settings.Deep },
		"a shorter hold":     func(r *kek.Rotation) { r.Settings.DeleteHold /= 2 },
		"a longer drain":     func(r *kek.Rotation) { r.Settings.DrainMaxWait *= 2 },
		"fewer canaries":     func(r *kek.Rotation) { r.Settings.CanaryRounds++ },
		"other shards":       func(r *kek.Rotation) { r.Settings.FenceShards++ },
		"other segments":     func(r *kek.Rotation) { r.Segments++ },
	} {
		other := altered{d.store, func(v *kek.View) {
			if v.Rotation != nil {
				edit(v.Rotation)
			}
		}}
		d.Journal.Registry = other
		_, err := d.Switch(t.Context(), input(spring))
		if wantKind(t, err, journal.ApprovalMissing); d.pointer().KEKID != d.first {
			t.Errorf("%s: the pointer moved", name)
		}
		d.as(bob, func() { // it can be given again, for the plan that is
			r := must(other.Load(t.Context(), spring)).Rotation
			_, err = d.Gates.JudgePlan(t.Context(), gates.Verdict{RotationID: spring, Plan: d.Gates.HashPlan(*r)})
		})
		d.must(err)
		d.Journal.Registry = d.store
		_, err = d.Switch(t.Context(), input(spring))
		wantKind(t, err, journal.ApprovalMissing)
		if _, err := d.verdict(bob, "", false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Switch(t.Context(), input(spring)); err != nil {
		t.Errorf("under the approved plan: %v", err)
	}
}

// TestApprovalGivenWhileNobodyWaited resumes a rotation whose execution ended between
// the answer and the switch: it is not asked again.
func TestApprovalGivenWhileNobodyWaited(t *testing.T) {
	for _, reject := range []bool{false, true} {
		d := twoPersons(t)
		d.as(alice, func() { d.advance(spring, rotation.ExecutionInput{}, kek.Tested) })
		if _, err := d.verdict(bob, "because", reject); err != nil {
			t.Fatal(err)
		}
		d.machine.Await = func(string, string) *asltest.Failure {
			t.Error("it waits")
			return nil
		}
		e := d.machine.Start("resumed", rotation.ExecutionInput{Resume: spring})
		if want := map[bool]string{false: "Completed", true: "RolledBack"}[reject]; e.Final != want {
			t.Errorf("rejected %t: ended in %s: %v", reject, e.Final, e.Failure)
		}
		d.settled()
	}
}

// TestApprovalNamesWhoAsks checks that an execution which says nobody is refused, and
// that a schedule is somebody.
func TestApprovalNamesWhoAsks(t *testing.T) {
	d := twoPersons(t)
	_, err := d.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.InvalidInput)
	if e := typed(err); e.Field != "requested_by" {
		t.Errorf("field %q", e.Field)
	}
	d.machine.Await = func(string, string) *asltest.Failure {
		_, err := d.verdict(bob, "", false)
		d.must(err)
		return nil
	}
	d.complete(spring, rotation.ExecutionInput{RequestedBy: "schedule"})
}

// TestSamePerson checks who counts as whom.
func TestSamePerson(t *testing.T) {
	role := "arn:aws:sts::123456789012:assumed-role/"
	for _, tc := range []struct {
		asked, approves string
		same            bool
	}{
		{alice, alice, true},
		{alice, bob, false},
		{alice, role + "AWSReservedSSO_admin_89abcdef01234567/alice", true}, // Identity Center names the user, under whatever role
		{role + "ops/alice", role + "ops/bob", true},                        // who assumes a role chooses the session's name
		{role + "ops/alice", alice, false},
		{alice, "arn:aws:sts::999999999999:assumed-role/AWSReservedSSO_admin_89abcdef01234567/alice", true}, // and in whatever account
		{"arn:aws:sts::123456789012:assumed-role/ops/alice", "arn:aws:sts::999999999999:assumed-role/ops/alice", false},
		{role + "ops/botocore-session-1", role + "ops/botocore-session-2", true},
		{role + "ops/botocore-session-1", role + "admin/botocore-session-2", false},
		{"arn:aws:iam::123456789012:user/alice", "arn:aws:iam::123456789012:user/bob", false},
		{"schedule", "arn:aws:iam::123456789012:user/bob", false},
	} {
		d := twoPersons(t)
		d.advance(spring, rotation.ExecutionInput{RequestedBy: tc.asked}, kek.Tested)
		_, err := d.verdict(tc.approves, "", false)
		if same := typed(err).Field == "approver"; same != tc.same || !same && err != nil {
			t.Errorf("%s approves what %s asked for: %v", tc.approves, tc.asked, err)
		}
	}
}

// TestApprovalUnderFaults plants each fault at each call between the test and the
// switch: nothing switches but with two persons, and who answered is recorded once.
func TestApprovalUnderFaults(t *testing.T) {
	arm := func(e *effects) {
		e.d.Gates.Rules.ApprovalRequired, e.d.Gates.Rules.ApprovalWait, e.d.Journal.Actor = true, time.Hour, "lambda/test"
		e.d.machine.Await = func(string, string) *asltest.Failure {
			_, err := e.d.verdict(bob, "", false)
			e.d.must(err)
			return nil
		}
	}
	free := newEffects(t)
	arm(free)
	free.d.complete(spring, asked)
	tried := 0
	for _, name := range slices.Compact(slices.Sorted(slices.Values(free.names))) {
		if !strings.HasPrefix(name, "AwaitApproval ") && !strings.HasPrefix(name, "Switch ") {
			continue
		}
		for _, f := range faults(name) {
			tried++
			t.Run(fmt.Sprint(name, "/", f), func(t *testing.T) {
				e := newEffects(t)
				arm(e)
				e.at, e.kind = name, f
				run := e.d.finish(spring, asked)
				if !e.hit {
					t.Fatalf("the call was not made: %q", run.Trail)
				}
				given := 0
				for _, ev := range e.d.events() {
					if ev == "approval_given" {
						given++
					}
				}
				r := e.d.record(spring)
				if !r.Phase.Final() || (r.Phase == kek.Completed) != (given == 1) || given > 1 {
					t.Errorf("it is %s, approved %d times; ended in %s: %v", r.Phase, given, run.Final, run.Failure)
				}
				e.d.settled()
			})
		}
	}
	if tried < 20 {
		t.Errorf("only %d faults: %v", tried, cmp.Diff(nil, free.names))
	}
}
