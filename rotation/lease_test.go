package rotation_test

import (
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
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
		if e := typed(err); e == nil || e.Field != field || e.Next == "" {
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
	d.Window = must(rotation.ParseWindow("01:00-05:00", time.UTC))
	d.advance(spring, asked, kek.Tested)
	d.clock.pass(4 * time.Hour) // 06:00
	_, err := d.verdict(bob, "", false)
	wantKind(t, err, rotation.WindowClosed)
	d.clock.pass(-90 * time.Minute)
	if _, err := d.verdict(bob, "", false); err != nil {
		t.Fatal(err)
	}
	d.clock.pass(90 * time.Minute)
	_, err = d.Switch(t.Context(), input(spring))
	wantKind(t, err, rotation.WindowClosed)
	if d.pointer().KEKID != d.first {
		t.Error("the pointer moved")
	}
	d.Window = must(rotation.ParseWindow("06:00-07:00", time.UTC)) // the deployment's now; the rotation keeps its own
	_, err = d.Switch(t.Context(), input(spring))
	wantKind(t, err, rotation.WindowClosed)
	d.clock.pass(-90 * time.Minute)
	if _, err := d.Switch(t.Context(), input(spring)); err != nil {
		t.Fatal(err)
	}
}
