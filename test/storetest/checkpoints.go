package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestCheckpoints runs the suite of [rotation.Checkpoints].
func TestCheckpoints(t *testing.T, newStore func(t *testing.T) RegistryHarness) {
	t.Run("Revisions", func(t *testing.T) { testRevisions(t, newStore(t).Store) })
	t.Run("List", func(t *testing.T) { testListCheckpoints(t, newStore(t).Store) })
	t.Run("Race", func(t *testing.T) { testRaceCheckpoint(t, newStore(t).Store) })
}

func load(t *testing.T, s rotation.Checkpoints) rotation.Checkpoint {
	t.Helper()
	c, err := s.LoadCheckpoint(t.Context(), "r1", "orders", "rewrap", 2)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func testRevisions(t *testing.T, s rotation.Checkpoints) {
	c := load(t, s)
	same(t, "no progress", c, rotation.Checkpoint{RotationID: "r1", Source: "orders", Pass: "rewrap", Segment: 2})
	later := c
	later.Rev = 1
	if err := s.SaveCheckpoint(t.Context(), later); !errors.Is(err, kek.ErrConflict) {
		t.Fatalf("save at a revision that was never made: %v, want ErrConflict", err)
	}
	at := Clock()
	for rev := range int64(3) {
		c.SavedAt = at()
		c.Rev, c.Cursor, c.Done = rev, fmt.Sprintf("cursor-%d", rev), rev == 2
		c.Tally = rotation.Tally{
			Scanned: 10 * rev, Rewrapped: 5 * rev, Other: 2 * rev, Declared: 3 * rev, Quarantined: rev, Unwrapped: 4 * rev,
			Poison: []string{"a: b", "", "é"}[:rev],
			ByKEK:  map[string]int64{"kek-0": rev, "arn:aws:kms:eu-central-1:000000000000:key/é": 1}, ByKind: map[string]int64{"no_kek_id": 1 << 40}, DataKeys: rotation.Sketch{1, 0, byte(rev)},
		}
		if rev == 2 {
			c.Tally.ByKEK = nil
			c.Tally.DataKeys = nil
		}
		if err := s.SaveCheckpoint(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		want := c
		want.Rev++
		same(t, "checkpoint", load(t, s), want)
		for _, stale := range []int64{0, rev, rev + 2} {
			again := c
			again.Rev, again.Cursor = stale, "stale"
			if err := s.SaveCheckpoint(t.Context(), again); !errors.Is(err, kek.ErrConflict) {
				t.Fatalf("save at revision %d of %d: %v, want ErrConflict", stale, want.Rev, err)
			}
		}
		same(t, "checkpoint after stale saves", load(t, s), want)
	}
	c.Rev, c.Cursor, c.Done, c.Tally, c.SavedAt = 3, "", false, rotation.Tally{}, time.Time{} // an empty value replaces a full one
	if err := s.SaveCheckpoint(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.Rev++
	same(t, "checkpoint begun anew", load(t, s), c)
}

// testListCheckpoints checks that a listing is in order and has nothing of other
// rotations, sources or passes, however alike their names.
func testListCheckpoints(t *testing.T, s rotation.Checkpoints) {
	names := []struct{ rotation, source, pass string }{
		{"r1", "orders", "rewrap"},
		{"r1", "orders", "confirm"},
		{"r1", "orders", "verify"},
		{"r1", "orders", "rewrap2"},
		{"r1", "orders2", "rewrap"},
		{"r1", "orders#rewrap", "rewrap"},
		{"r12", "orders", "rewrap"},
	}
	for n, name := range names {
		for i := range 12 {
			c := rotation.Checkpoint{RotationID: name.rotation, Source: name.source, Pass: name.pass, Segment: (i * 5) % 12, Cursor: fmt.Sprint(n)}
			if err := s.SaveCheckpoint(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n, name := range names {
		got, err := s.ListCheckpoints(t.Context(), name.rotation, name.source, name.pass)
		if err != nil {
			t.Fatal(err)
		}
		want := []rotation.Checkpoint{}
		for i := range 12 {
			want = append(want, rotation.Checkpoint{
				RotationID: name.rotation, Source: name.source, Pass: name.pass, Segment: i, Rev: 1, Cursor: fmt.Sprint(n),
			})
		}
		same(t, fmt.Sprintf("%v", name), got, want)
	}
	none, err := s.ListCheckpoints(t.Context(), "r2", "orders", "rewrap")
	if err != nil || len(none) != 0 {
		t.Errorf("list of nothing: %v, %v", none, err)
	}
}

func testRaceCheckpoint(t *testing.T, s rotation.Checkpoints) {
	for rev := range int64(3) {
		errs := race(func(n int) error {
			return s.SaveCheckpoint(t.Context(), rotation.Checkpoint{
				RotationID: "r1", Source: "orders", Pass: "rewrap", Segment: 2, Rev: rev, Cursor: fmt.Sprint(n),
			})
		})
		same(t, "winners", winners(t, errs), 1)
		same(t, "revision", load(t, s).Rev, rev+1)
	}
}
