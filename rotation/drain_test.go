package rotation_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// lease registers a process that may write under the old KEK.
func (s *site) lease(holder string, ttl time.Duration) rotation.Lease {
	s.t.Helper()
	l := rotation.Lease{KEK: s.first, Holder: holder, Host: "web-1", PID: 7, Refs: 3, Expires: s.clock.now().Add(ttl)}
	if err := s.store.PutLease(s.t.Context(), l); err != nil {
		s.t.Fatal(err)
	}
	return l
}

// renew prolongs a lease; false means that it was revoked.
func (s *site) renew(l rotation.Lease, ttl time.Duration) bool {
	s.t.Helper()
	l.Expires = s.clock.now().Add(ttl)
	ok, err := s.store.RenewLease(s.t.Context(), l)
	if err != nil {
		s.t.Fatal(err)
	}
	return ok
}

func (s *site) drain(t *testing.T) rotation.DrainOutput {
	t.Helper()
	out, err := s.Drain(t.Context(), input(spring))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fences fails the test unless all shards of a KEK are in the state.
func (s *site) fences(id kek.ID, want string) {
	s.t.Helper()
	got := s.store.Fences(id)
	for i := range shards {
		if got[i] != want {
			s.t.Errorf("fence of %s: %v, want all %s", id, got, want)
		}
	}
}

// TestDrainSealedByDuplicate is the regression test of a drain that found the
// fence sealed by its own duplicate, refused, and halted the rotation.
func TestDrainSealedByDuplicate(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Switched)
	inside := false
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Store.Leases" && !inside {
			inside = true
			if _, err := s.Drain(t.Context(), input(spring)); err != nil {
				t.Errorf("the duplicate: %v", err)
			}
		}
		return w.hook(op, args...)
	})
	if out := s.drain(t); !out.Done {
		t.Errorf("got %+v", out)
	}
	s.phase(spring, kek.Drained)
}

func TestDrainAwaitsLiveLease(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
	l := s.lease("a", time.Minute)
	s.clock.pass(20 * time.Second)
	if out := s.drain(t); out.Done || out.Leases != 1 || out.Refs != 3 || out.Waited != 20 {
		t.Errorf("with a live lease: %+v", out)
	}
	s.phase(spring, kek.Switched)
	s.fences(s.first, "open") // its holder may still insert
	r := s.seal(s.orders, "late", s.first, 1, "late")
	if err := s.orders.Insert(t.Context(), "late", r, 0); err != nil {
		t.Errorf("insert under a live lease: %v", err)
	}
	s.expect(s.orders, "late", "late")
	if err := s.store.DropLease(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if out := s.drain(t); !out.Done || out.Leases != 0 {
		t.Errorf("after it was released: %+v", out)
	}
	s.phase(spring, kek.Drained)
	s.fences(s.first, "sealed")
	s.fences(s.pointer().KEKID, "open")
}

func TestDrainRevokesExpiredLease(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
	l := s.lease("a", time.Minute)
	s.clock.pass(time.Minute) // at this very moment it is still good
	if out := s.drain(t); out.Done {
		t.Errorf("a lease was revoked in its last moment: %+v", out)
	}
	s.clock.pass(time.Second)
	if out := s.drain(t); !out.Done {
		t.Errorf("with an expired lease: %+v", out)
	}
	if s.renew(l, time.Minute) {
		t.Error("a revoked lease was renewed")
	}
}

// TestDrainLosesToRenewal checks that a lease that is renewed between the look and
// the revocation counts as live.
func TestDrainLosesToRenewal(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Switched)
	l := s.lease("a", time.Minute)
	s.clock.pass(2 * time.Minute)
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Store.Revoke" && !s.renew(l, time.Minute) {
			t.Error("the lease was gone before it was revoked")
		}
		return w.hook(op, args...)
	})
	if out := s.drain(t); out.Done || out.Leases != 1 {
		t.Errorf("got %+v", out)
	}
	s.fences(s.first, "open")
}

func TestDrainTimeout(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
	l := s.lease("stuck", time.Minute)
	s.clock.pass(maxWait - time.Second)
	s.renew(l, time.Minute)
	if out := s.drain(t); out.Done {
		t.Errorf("a second before max-wait: %+v", out)
	}
	s.clock.pass(time.Second)
	_, err := s.Drain(t.Context(), input(spring))
	wantKind(t, err, journal.DrainTimeout)
	if e := typed(err); !strings.Contains(e.Msg, "stuck (host web-1, pid 7, 3 in flight)") || e.Next.IsZero() {
		t.Errorf("the error does not name the process: %v", e)
	}
	s.phase(spring, kek.Switched)
	s.fences(s.first, "open")
}

// TestDrainTimeoutHalts checks the state machine's part: it waits, pages, fails in
// the task that a redrive enters again, and continues from there.
func TestDrainTimeoutHalts(t *testing.T) {
	d, w := watched(t)
	var l rotation.Lease
	d.before = func(c call) {
		switch {
		case c.state == "Switch" && l.Holder == "":
			l = d.lease("stuck", time.Minute)
		case c.state == "Drain":
			d.renew(l, time.Minute)
		}
	}
	e := d.machine.Start(spring, rotation.ExecutionInput{})
	if e.Final != "Halted" || e.Failure.Name != string(journal.Halted) || !strings.Contains(e.Failure.Cause, "DrainTimeout") {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	if len(d.mail) != 2 || d.mail[1] != "KEK rotation halted" {
		t.Errorf("mail %q", d.mail)
	}
	e.Redrive() // the process is still there: it halts and pages again
	if e.Final != "Halted" || len(d.mail) != 3 {
		t.Fatalf("redriven too early: %s, mail %q", e.Final, d.mail)
	}
	if err := d.store.DropLease(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	e.Redrive()
	if e.Status != "SUCCEEDED" {
		t.Fatalf("redriven: %s: %v", e.Final, e.Failure)
	}
	w.check("at the end")
	d.settled()
}

func TestEmergencyDrainRevokesAtOnce(t *testing.T) {
	s, _ := at(t, emergency, kek.Switched)
	l := s.lease("a", time.Hour)
	if out := s.drain(t); !out.Done || out.Leases != 0 {
		t.Errorf("got %+v", out)
	}
	if s.renew(l, time.Hour) {
		t.Error("the lease was not revoked")
	}
	s.fences(s.first, "sealed")
}

// TestDrainBeforeSwitch checks that nothing is sealed before the switch.
func TestDrainBeforeSwitch(t *testing.T) {
	for _, phase := range []kek.Phase{kek.Started, kek.Minted, kek.Tested} {
		s, _ := at(t, emergency, phase)
		s.lease("a", -time.Minute)
		before := s.snapshot()
		_, err := s.Drain(t.Context(), input(spring))
		wantKind(t, err, journal.Refused)
		if diff := s.diff(before); diff != "" {
			t.Errorf("at %s (-was +is):\n%s", phase, diff)
		}
	}
}

// TestZombieWriter checks what makes a writer harmless that was paused with a row
// sealed under the old KEK in hand: not time but the fence, and for updates the
// epoch. A paused lease holder commits late.
func TestZombieWriter(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			w := newWatch(s)
			s.world.SetHook(w.hook)
			s.lease("zombie", time.Minute)
			row := s.seal(s.orders, "zombie", s.first, 1, "from the dead")
			update := s.seal(s.orders, "o1", s.first, 1, "from the dead")
			s.advance(spring, in, kek.Switched)
			s.clock.pass(2 * time.Minute)
			s.advance(spring, in, kek.Drained)
			for i := range shards {
				if err := s.orders.Insert(t.Context(), "zombie", row, i); !errors.Is(err, memstore.ErrFenced) {
					t.Errorf("insert past shard %d after the seal: %v", i, err)
				}
			}
			s.advance(spring, in, kek.Rewrapped)
			for version := range int64(5) {
				if err := s.orders.Update(t.Context(), "o1", version, update); !errors.Is(err, memstore.ErrChanged) {
					t.Errorf("update of version %d after the rewrap: %v", version, err)
				}
			}
			s.advance(spring, in, kek.Completed)
			s.settled()
		})
	}
}

// TestDrainOfTwoKEKs: an emergency that ends a rotation which has switched drains two KEKs,
// and takes the leases on both.
func TestDrainOfTwoKEKs(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Switched)
	second := s.pointer().KEKID
	s.advance(summer, emergency, kek.Switched)
	leases := map[kek.ID]rotation.Lease{}
	for _, id := range []kek.ID{s.first, second} {
		l := rotation.Lease{KEK: id, Holder: "web", Host: "web-1", PID: 7, Refs: 1, Expires: s.clock.now().Add(time.Hour)}
		s.must(s.store.PutLease(t.Context(), l))
		leases[id] = l
	}
	if out, err := s.Drain(t.Context(), input(summer)); !out.Done || err != nil {
		t.Fatalf("%+v, %v", out, err)
	}
	for id, l := range leases {
		if s.renew(l, time.Hour) {
			t.Errorf("the lease on %s is still held", id)
		}
	}
}

// TestDrainWithin: a person's own limit stands in for the rotation's, in both directions.
func TestDrainWithin(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Switched)
	s.clock.pass(time.Hour)
	s.lease("a", time.Minute)
	_, err := s.Drain(t.Context(), input(spring))
	wantKind(t, err, journal.DrainTimeout)
	if out, err := s.DrainWithin(t.Context(), input(spring), rotation.WithoutLimit); err != nil || out.Done || out.Leases != 1 {
		t.Errorf("without a limit: %+v, %v", out, err)
	}
	_, err = s.DrainWithin(t.Context(), input(spring), time.Nanosecond)
	wantKind(t, err, journal.DrainTimeout)
	s.phase(spring, kek.Switched)
}
