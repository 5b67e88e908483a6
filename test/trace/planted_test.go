package trace_test

import (
	"context"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// clockDrainage counts a lease that has run out as gone, and does not revoke it.
type clockDrainage struct {
	rotation.Drainage
	s *site
}

func (d clockDrainage) Leases(ctx context.Context, id kek.ID) (live []rotation.Lease, err error) {
	all, err := d.Drainage.Leases(ctx, id)
	for _, l := range all {
		if d.s.at.Before(l.Expires) {
			live = append(live, l)
		}
	}
	return live, err
}

// selfishKeys takes every key for the owner of its alias.
type selfishKeys struct{ keyring.Admin }

func (selfishKeys) Claim(_ context.Context, _ string, _ int, id kek.ID) (kek.ID, error) {
	return id, nil
}

// confirmed says that the second scan is done already, a moment ago.
type confirmed struct {
	rotation.Checkpoints
	s *site
}

func (c confirmed) LoadCheckpoint(ctx context.Context, id, source, pass string, segment int) (rotation.Checkpoint, error) {
	cp, err := c.Checkpoints.LoadCheckpoint(ctx, id, source, pass, segment)
	if pass == "confirm" {
		cp.Done, cp.SavedAt = true, c.s.at
	}
	return cp, err
}

// eager disables the old key and then says so in the registry.
type eager struct {
	journal.Registry
	keys keyring.Admin
}

func (e eager) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {
	if c.Event == "old_kek_retired" {
		if err := e.keys.Disable(ctx, c.Rotation.After.OldKEK); err != nil {
			return err
		}
	}
	return e.Registry.Apply(ctx, c, ev)
}

// TestPlantedBugsAreRejected runs rotations with a bug in one port. All of them end
// well, as far as the steps themselves can tell.
func TestPlantedBugsAreRejected(t *testing.T) {
	bugs := []struct {
		name  string
		plant func(*site)
		at    string
	}{
		{"drain trusts the clock", func(s *site) { s.Drainage = clockDrainage{s.Drainage, s} }, "Store.SealFence"},
		{"mint without arbiter", func(s *site) { s.Keys.Admin = selfishKeys{s.Keys.Admin} }, "Store.Apply"},
		{"retire without second scan", func(s *site) { s.Checkpoints = confirmed{s.Checkpoints, s} }, "Store.Apply"},
		{"disable before registry", func(s *site) { s.Journal.Registry = eager{s.Journal.Registry, s.Keys.Admin} }, "KMS.Disable"},
		{"none", func(*site) {}, ""},
	}
	var runs [][]trace.Event
	for _, b := range bugs {
		s := newSite(t)
		b.plant(s)
		s.lease("paused", s.pointer())
		s.toTested("normal")
		s.at = s.at.Add(time.Hour / 2)
		s.switched()
		s.drained()
		s.rewrapped()
		s.retired()
		s.verified()
		runs = append(runs, s.recorder.Events())
	}
	for i, v := range check(t, runs...) {
		if v.Accepted != (bugs[i].at == "") || v.Event.Effect != bugs[i].at {
			t.Errorf("%s: %s, want it rejected at %q", bugs[i].name, v, bugs[i].at)
		}
	}
}
