package rotation_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestLeaseFromAFastClock: a dead process whose clock ran a day ahead does not hold up the
// drain for a day, and a lease that may be a live one's is waited for.
func TestLeaseFromAFastClock(t *testing.T) {
	for _, c := range []struct {
		name   string
		ttl    time.Duration
		passed time.Duration // since the switch
		waits  bool
	}{
		{"a day ahead, at once", 24 * time.Hour, 0, true},
		{"a day ahead, ten minutes later", 24 * time.Hour, kek.MaxLease, true},
		{"a day ahead, a moment after that", 24 * time.Hour, kek.MaxLease + time.Second, false},
		{"the longest there is", kek.MaxLease + 20*time.Minute, 20 * time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
			s.lease("web", c.ttl)
			s.clock.pass(c.passed)
			if out := s.drain(t); out.Done == c.waits || (out.Leases == 1) != c.waits {
				t.Errorf("%+v", out)
			}
		})
	}
}

// TestRevokeLease: a person takes back the lease of a process that is gone, and the record
// says whose and why.
func TestRevokeLease(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
	l := s.lease("web", 5*time.Minute)
	revoke := func(id kek.ID, holder, reason string) error {
		_, err := s.RevokeLease(t.Context(), s.store, id, holder, reason)
		return err
	}
	for field, err := range map[string]error{
		"kek-id": revoke(s.pointer().KEKID, "web", "gone"), "holder": revoke(s.first, "other", "gone"), "reason": revoke(s.first, "web", ""),
	} {
		if e := typed(err); e == nil || e.Field != field || e.Next.IsZero() {
			t.Errorf("%s: %v", field, err)
		}
	}
	if out := s.drain(t); out.Leases != 1 {
		t.Fatalf("%+v", out)
	}
	renewed := 0
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Store.Revoke" && renewed == 0 { // it is alive at first
			renewed++
			s.renew(l, 7*time.Minute)
		}
		return true, nil
	})
	if err := revoke(s.first, "web", "host is gone"); err != nil || renewed != 1 {
		t.Fatal(err, renewed)
	}
	s.world.SetHook(nil)
	if s.renew(l, time.Minute) {
		t.Error("it is renewed after it was revoked")
	}
	body := s.body("lease_revoked")
	for k, want := range map[string]string{"kek_id": string(s.first), "holder": "web", "host": "web-1", "pid": "7", "refs": "3", "reason": "host is gone"} {
		if body[k] != want {
			t.Errorf("%s: %q, want %q", k, body[k], want)
		}
	}
	if out := s.drain(t); !out.Done {
		t.Errorf("%+v", out)
	}
}

// TestApprovedOutsideTheWindow: what waited for its approval is not switched outside the
// window that it was started in, and cannot be approved there; it can be rejected.
func TestApprovedOutsideTheWindow(t *testing.T) {
	d := twoPersons(t)
	d.Gates.Rules.Window = must(gates.ParseWindow("01:00-05:00", time.UTC))
	d.advance(spring, asked, kek.Tested)
	d.clock.pass(4 * time.Hour) // 06:00
	_, err := d.verdict(bob, "", false)
	wantKind(t, err, journal.WindowClosed)
	d.clock.pass(-90 * time.Minute)
	if _, err := d.verdict(bob, "", false); err != nil {
		t.Fatal(err)
	}
	d.clock.pass(90 * time.Minute)
	_, err = d.Switch(t.Context(), input(spring))
	wantKind(t, err, journal.WindowClosed)
	if d.pointer().KEKID != d.first {
		t.Error("the pointer moved")
	}
	d.Gates.Rules.Window = must(gates.ParseWindow("06:00-07:00", time.UTC)) // the deployment's now; the rotation keeps its own
	_, err = d.Switch(t.Context(), input(spring))
	wantKind(t, err, journal.WindowClosed)
	d.clock.pass(-90 * time.Minute)
	if _, err := d.Switch(t.Context(), input(spring)); err != nil {
		t.Fatal(err)
	}
}

// TestRevokeLeaseRecords: the record of a lease that was taken back, and what a holder is
// told that has none.
func TestRevokeLeaseRecords(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
	l := s.lease("web", 5*time.Minute)
	_, err := s.RevokeLease(t.Context(), s.store, s.first, "other", "gone")
	want := &journal.Error{Kind: journal.Refused, Field: "holder", Msg: "it has no lease on KEK " + string(s.first), Next: journal.Next{Do: journal.ListLeases}}
	if d := cmp.Diff(want, typed(err)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	var noted note
	if got, err := s.RevokeLease(t.Context(), &noted, s.first, "web", "host is gone"); got.Holder != "web" || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if d := cmp.Diff([]audit.Event{{
		ID: "lease_revoked/" + string(s.first) + "/web", Type: "lease_revoked", Step: "lease revoke", Actor: s.Journal.Actor, Body: map[string]string{
			"kek_id": string(s.first), "holder": "web", "host": "web-1", "pid": "7", "refs": "3", "reason": "host is gone",
			"expires_at": l.Expires.UTC().Format(time.RFC3339),
		},
	}}, []audit.Event(noted)); d != "" {
		t.Errorf("the record (-want +got):\n%s", d)
	}
	s.lease("batch", 5*time.Minute)
	alter(func(v *kek.View) { v.Pointer = nil })(s)
	if _, err := s.RevokeLease(t.Context(), s.store, s.first, "batch", "the pointer is lost"); err != nil {
		t.Errorf("without a pointer: %v", err)
	}
}

// note is a recorder that keeps what it is told.
type note []audit.Event

func (n *note) Record(_ context.Context, ev audit.Event) error { *n = append(*n, ev); return nil }

// TestRevokeLeaseOfALiveHolder: a holder that renews its lease twelve times in a row is
// alive; one that stops before loses it.
func TestRevokeLeaseOfALiveHolder(t *testing.T) {
	for _, renewals := range []int{11, 12} {
		s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
		l := s.lease("web", 5*time.Minute)
		renewed := 0
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "Store.Revoke" && renewed < renewals {
				renewed++
				s.renew(l, 5*time.Minute+time.Duration(renewed)*time.Second)
			}
			return true, nil
		})
		_, err := s.RevokeLease(t.Context(), s.store, s.first, "web", "gone")
		if alive := renewals == 12; alive != (err != nil) || alive && typed(err).Next.Say != "stop that process" {
			t.Errorf("%d renewals: %v", renewals, err)
		}
	}
}
