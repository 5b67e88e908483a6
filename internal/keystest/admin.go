package keystest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestKeyAdmin runs the suite of [rotation.KeyAdmin].
func TestKeyAdmin(t *testing.T, newService func(t *testing.T) Service) {
	t.Run("Create", func(t *testing.T) { testCreate(t, newService(t)) })
	t.Run("Disable", func(t *testing.T) { testDisable(t, newService(t)) })
	t.Run("Unknown", func(t *testing.T) { testUnknown(t, newService(t)) })
	t.Run("Claim", func(t *testing.T) { testClaim(t, newService(t)) })
	t.Run("RaceClaim", func(t *testing.T) { testRaceClaim(t, newService(t)) })
	t.Run("Tagged", func(t *testing.T) { testTagged(t, newService(t)) })
}

func testCreate(t *testing.T, s Service) {
	k := s.create(t, spring, 1)
	if k.ID == "" || strings.ContainsAny(string(k.ID), ":/") || !strings.HasPrefix(k.ARN, "arn:") || !strings.HasSuffix(k.ARN, "/"+string(k.ID)) {
		t.Errorf("id %q, ARN %q", k.ID, k.ARN)
	}
	if !k.Enabled || !k.Usable || k.State != "Enabled" {
		t.Errorf("a new key is %+v", k)
	}
	got, err := s.Keys.Describe(t.Context(), k.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(k, got); d != "" {
		t.Errorf("described (-created +described):\n%s", d)
	}
	if again := s.create(t, spring, 1); again.ID == k.ID {
		t.Error("a key was created twice under one id")
	}
}

// testDisable: disabling again changes nothing, and no other key.
func testDisable(t *testing.T, s Service) {
	k, other := s.create(t, spring, 1), s.create(t, spring, 1)
	want := k
	want.Enabled, want.State = false, "Disabled"
	for range 2 {
		s.disable(t, k.ID)
		for _, w := range []rotation.Key{want, other} {
			got, err := s.Keys.Describe(t.Context(), w.ID)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(w, got); d != "" {
				t.Errorf("key (-want +got):\n%s", d)
			}
		}
	}
}

func testUnknown(t *testing.T, s Service) {
	ctx := t.Context()
	if _, err := s.Keys.Describe(ctx, unknown); !errors.Is(err, rotation.ErrNoKey) {
		t.Errorf("Describe: %v, want ErrNoKey", err)
	}
	if err := s.Keys.Disable(ctx, unknown); !errors.Is(err, rotation.ErrNoKey) {
		t.Errorf("Disable: %v, want ErrNoKey", err)
	}
	if owner, err := s.Keys.Claim(ctx, spring, 1, unknown); !errors.Is(err, rotation.ErrNoKey) || owner != "" {
		t.Errorf("Claim: %q, %v, want ErrNoKey", owner, err)
	}
	if owner, err := s.Keys.Claim(ctx, spring, 1, ""); err != nil || owner != "" {
		t.Errorf("a claim that failed left the owner %q, %v", owner, err)
	}
}

// claim calls Claim and checks its answer.
func (s Service) claim(t *testing.T, rotationID string, attempt int, id, want kek.ID) {
	t.Helper()
	owner, err := s.Keys.Claim(t.Context(), rotationID, attempt, id)
	if err != nil || owner != want {
		t.Fatalf("claim of %s/%d for %q: %q, %v, want %q", rotationID, attempt, id, owner, err, want)
	}
}

func testClaim(t *testing.T, s Service) {
	a, b := s.create(t, spring, 1), s.create(t, spring, 1)
	s.claim(t, spring, 1, "", "")
	s.claim(t, spring, 1, a.ID, a.ID)
	s.claim(t, spring, 1, a.ID, a.ID) // its answer was lost
	s.claim(t, spring, 1, b.ID, a.ID)
	s.claim(t, spring, 1, "", a.ID)

	s.claim(t, spring, 2, "", "")
	s.claim(t, spring, 2, b.ID, b.ID)
	s.claim(t, summer, 1, "", "")

	s.disable(t, a.ID) // the owner stays the owner
	s.claim(t, spring, 1, b.ID, a.ID)
}

// testRaceClaim: of racing claims exactly one wins, and everybody who gets an
// answer gets the winner's id. A loser that cannot see the owner yet gets an error
// and asks again.
func testRaceClaim(t *testing.T, s Service) {
	mine, owners := make([]kek.ID, racers), make([]kek.ID, racers)
	for n := range racers {
		mine[n] = s.create(t, spring, 1).ID
	}
	errs := make([]error, racers)
	race(func(n int) { owners[n], errs[n] = s.Keys.Claim(t.Context(), spring, 1, mine[n]) })
	winner, err := s.Keys.Claim(t.Context(), spring, 1, "")
	if err != nil || !slices.Contains(mine, winner) {
		t.Fatalf("winner %q, %v", winner, err)
	}
	for n := range racers {
		if errs[n] == nil && owners[n] != winner {
			t.Errorf("racer %d was told that %s owns the alias, its owner is %s", n, owners[n], winner)
		}
		if errs[n] != nil && (mine[n] == winner || owners[n] != "" || errors.Is(errs[n], rotation.ErrNoKey)) {
			t.Errorf("racer %d: %q, %v", n, owners[n], errs[n])
		}
	}
}

// testTagged: the listing has every key of the rotation, of all attempts, disabled
// ones too, and no other.
func testTagged(t *testing.T, s Service) {
	var want []kek.ID
	for attempt := range 3 {
		want = append(want, s.create(t, spring, attempt+1).ID)
	}
	s.disable(t, want[0])
	other := s.create(t, summer, 1)
	sorted := cmpopts.SortSlices(func(a, b kek.ID) bool { return a < b })
	for id, want := range map[string][]kek.ID{spring: want, summer: {other.ID}, "Q4-2026-rotation": nil} {
		got, err := s.Keys.Tagged(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, sorted, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("keys of %s (-want +got):\n%s", id, d)
		}
	}
}
