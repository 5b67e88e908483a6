package rotation_test

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// sealedStore is a store of checkpoints, and the same without the MACs: what somebody sees
// who can write the control table.
func sealedStore(t *testing.T) (sealed, raw rotation.Checkpoints) {
	t.Helper()
	store := memstore.New(chain, time.Now).Store()
	return rotation.SealCheckpoints(store, memstore.CheckpointKeys{}), store
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func doneCheckpoint() rotation.Checkpoint {
	return rotation.Checkpoint{
		RotationID: "r1", Source: "orders", Pass: "verify", Segment: 2, Cursor: "c", Done: true,
		SavedAt: time.Date(2026, 4, 1, 2, 0, 0, 123456789, time.FixedZone("", 3600)),
		Tally: rotation.Tally{
			Scanned: 7, Rewrapped: 1, Other: 2, Declared: 3, Quarantined: 1, Unwrapped: 4, Poison: []string{"row: reason"},
			ByKEK: map[string]int64{"b": 1, "a": 2}, ByKind: map[string]int64{"denied": 1},
		},
	}
}

// TestSealedCheckpoints saves a checkpoint and loads it as it was.
func TestSealedCheckpoints(t *testing.T) {
	sealed, raw := sealedStore(t)
	for _, want := range []rotation.Checkpoint{doneCheckpoint(), {RotationID: "r1", Source: "orders", Pass: "verify", Segment: 3}} {
		check(t, sealed.SaveCheckpoint(t.Context(), want))
		got, err := sealed.LoadCheckpoint(t.Context(), want.RotationID, want.Source, want.Pass, want.Segment)
		check(t, err)
		if len(got.MAC) == 0 {
			t.Errorf("segment %d has no MAC", want.Segment)
		}
		want.Rev = 1
		want.MAC = got.MAC
		want.Proof = rotation.Proven
		want.SavedAt = want.SavedAt.UTC().Truncate(time.Millisecond)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("segment %d (-saved +loaded):\n%s", want.Segment, diff)
		}
	}
	listed, err := sealed.ListCheckpoints(t.Context(), "r1", "orders", "verify")
	check(t, err)
	stored, err := raw.ListCheckpoints(t.Context(), "r1", "orders", "verify")
	check(t, err)
	for i := range stored {
		stored[i].Proof = rotation.Proven
	}
	if diff := cmp.Diff(stored, listed); diff != "" {
		t.Errorf("listed (-stored +listed):\n%s", diff)
	}
}

// TestCheckpointMAC holds what the MAC is over. If it changes on purpose, macVersion does too:
// an update must not call the checkpoints of a rotation that runs forged.
func TestCheckpointMAC(t *testing.T) {
	sealed, raw := sealedStore(t)
	check(t, sealed.SaveCheckpoint(t.Context(), doneCheckpoint()))
	c, err := raw.LoadCheckpoint(t.Context(), "r1", "orders", "verify", 2)
	check(t, err)
	if got, want := hex.EncodeToString(c.MAC), "018756577aa82f5e3fabb2bd70e86c69597d7ae08615a7d7ab340f7c15b89e4508"; got != want {
		t.Errorf("MAC %s, want %s", got, want)
	}
}

// TestForgedCheckpoints: whatever somebody changes in a stored checkpoint, or wherever it is
// copied to, it counts as not made.
func TestForgedCheckpoints(t *testing.T) {
	forgeries := map[string]struct {
		change   func(*rotation.Checkpoint)
		stripped bool // not forged: as if another version had saved it
	}{
		"nothing but the revision": {change: func(*rotation.Checkpoint) {}},
		"rotation":                 {change: func(c *rotation.Checkpoint) { c.RotationID = "r2" }},
		"source":                   {change: func(c *rotation.Checkpoint) { c.Source = "users" }},
		"pass":                     {change: func(c *rotation.Checkpoint) { c.Pass = "confirm" }},
		"segment":                  {change: func(c *rotation.Checkpoint) { c.Segment = 3 }},
		"cursor":                   {change: func(c *rotation.Checkpoint) { c.Cursor = "d" }},
		"done":                     {change: func(c *rotation.Checkpoint) { c.Done = false }},
		"time":                     {change: func(c *rotation.Checkpoint) { c.SavedAt = c.SavedAt.Add(time.Hour) }},
		"tally":                    {change: func(c *rotation.Checkpoint) { c.Tally.Quarantined = 0 }},
		"count":                    {change: func(c *rotation.Checkpoint) { c.Tally.ByKEK = map[string]int64{"a": 3} }},
		"MAC":                      {change: func(c *rotation.Checkpoint) { c.MAC = append([]byte{}, c.MAC...); c.MAC[9] ^= 1 }},
		"short MAC":                {change: func(c *rotation.Checkpoint) { c.MAC = c.MAC[:9] }},
		"no MAC":                   {change: func(c *rotation.Checkpoint) { c.MAC = nil }, stripped: true},
		"MAC of another version":   {change: func(c *rotation.Checkpoint) { c.MAC = []byte{200, 1, 2} }, stripped: true},
	}
	for name, f := range forgeries {
		t.Run(name, func(t *testing.T) {
			sealed, raw := sealedStore(t)
			c := doneCheckpoint()
			check(t, sealed.SaveCheckpoint(t.Context(), c))
			c, err := raw.LoadCheckpoint(t.Context(), c.RotationID, c.Source, c.Pass, c.Segment)
			check(t, err)
			f.change(&c)
			if at, err := raw.LoadCheckpoint(t.Context(), c.RotationID, c.Source, c.Pass, c.Segment); err != nil {
				t.Fatal(err)
			} else {
				c.Rev = at.Rev
			}
			check(t, raw.SaveCheckpoint(t.Context(), c))
			got, err := sealed.LoadCheckpoint(t.Context(), c.RotationID, c.Source, c.Pass, c.Segment)
			check(t, err)
			want := rotation.Checkpoint{RotationID: c.RotationID, Source: c.Source, Pass: c.Pass, Segment: c.Segment, Rev: c.Rev + 1, Proof: rotation.FalseMAC}
			if f.stripped {
				want.Proof = rotation.NoMAC
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("loaded (-want +got):\n%s", diff)
			}
		})
	}
}

// TestForgedVerify: somebody who can write the control table finishes the last pass over rows
// that nobody has read. Verify refuses, and a resumed rotation reads them all.
func TestForgedVerify(t *testing.T) {
	for _, copied := range []bool{false, true} { // the MAC of another pass
		s := newSite(t)
		old := s.rows()[place{s.people, "p1"}]
		s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
		sound := s.rows()[place{s.people, "p1"}]
		s.people.Plant("p1", old)
		for _, src := range s.record(spring).Sources {
			for _, c := range must(s.store.ListCheckpoints(t.Context(), spring, rotation.ProgressName(src), "confirm")) {
				if !copied {
					c.MAC = nil
				}
				c.Pass = "verify"
				c.Rev = 0
				s.must(s.store.SaveCheckpoint(t.Context(), c))
			}
		}
		if copied {
			wantKind(t, s.verify(spring), journal.ControlTableDamaged)
			s.resume()
		}
		if s.unverified(t, journal.OrphansFound); t.Failed() {
			t.Fatalf("copied %v", copied)
		}
		s.people.Plant("p1", sound)
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}
