package keystest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// TestKeyAdmin runs the suite of [keyring.Admin].
func TestKeyAdmin(t *testing.T, newService func(t *testing.T) Service) {
	t.Run("Create", func(t *testing.T) { testCreate(t, newService(t)) })
	t.Run("Disable", func(t *testing.T) { testDisable(t, newService(t)) })
	t.Run("Unknown", func(t *testing.T) { testUnknown(t, newService(t)) })
	t.Run("Claim", func(t *testing.T) { testClaim(t, newService(t)) })
	t.Run("RaceClaim", func(t *testing.T) { testRaceClaim(t, newService(t)) })
	t.Run("Tagged", func(t *testing.T) { testTagged(t, newService(t)) })
	t.Run("MultiRegion", func(t *testing.T) { testMultiRegion(t, newService(t)) })
	t.Run("Use", func(t *testing.T) { testUse(t, newService(t)) })
	t.Run("LastUse", func(t *testing.T) { testLastUse(t, newService(t)) })
}

func testCreate(t *testing.T, s Service) {
	k := s.create(t, spring, 1)
	if k.ID == "" || strings.ContainsAny(string(k.ID), ":/") || !strings.HasPrefix(k.ARN, "arn:") || !strings.HasSuffix(k.ARN, "/"+string(k.ID)) {
		t.Errorf("id %q, ARN %q", k.ID, k.ARN)
	}
	if !k.Enabled || !k.Usable || k.State != "Enabled" || k.Multi {
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
		for _, w := range []keyring.Key{want, other} {
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
	if _, err := s.Keys.Describe(ctx, unknown); !errors.Is(err, journal.ErrNoKey) {
		t.Errorf("Describe: %v, want ErrNoKey", err)
	}
	if err := s.Keys.Disable(ctx, unknown); !errors.Is(err, journal.ErrNoKey) {
		t.Errorf("Disable: %v, want ErrNoKey", err)
	}
	if owner, err := s.Keys.Claim(ctx, spring, 1, unknown); !errors.Is(err, journal.ErrNoKey) || owner != "" {
		t.Errorf("Claim: %q, %v, want ErrNoKey", owner, err)
	}
	if use, err := s.Keys.Use(ctx, unknown); !errors.Is(err, journal.ErrNoKey) || !cmp.Equal(use, keyring.Use{}) {
		t.Errorf("Use: %+v, %v, want ErrNoKey", use, err)
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
		if errs[n] != nil && (mine[n] == winner || owners[n] != "" || errors.Is(errs[n], journal.ErrNoKey)) {
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

// testMultiRegion: a multi-Region key is one from the beginning, wraps like any other,
// and says where its replicas are.
func testMultiRegion(t *testing.T, s Service) {
	k := s.createOf(t, spring, 1, true)
	if !k.Multi || !k.Usable {
		t.Errorf("a new multi-Region key is %+v", k)
	}
	got, err := s.Keys.Describe(t.Context(), k.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(k, got); d != "" {
		t.Errorf("described (-created +described):\n%s", d)
	}
	dek, wrapped := s.dataKey(t, k.ID, row("a"))
	s.unwraps(t, k.ID, wrapped, row("a"), dek)
	s.identifies(t, wrapped, row("a"), k)

	var replicas []string
	for _, region := range []string{"", "us-east-1", "eu-west-1"} {
		if region != "" {
			s.Replicate(t, k.ID, region)
			replicas = append(replicas, region)
		}
		use := s.use(t, k.ID)
		slices.Sort(replicas)
		if d := cmp.Diff(replicas, use.Replicas, cmpopts.EquateEmpty()); d != "" || !use.MultiRegion {
			t.Errorf("multi-Region: %v, Regions (-want +got):\n%s", use.MultiRegion, d)
		}
	}
}

// use calls Use.
func (s Service) use(t *testing.T, id kek.ID) keyring.Use {
	t.Helper()
	use, err := s.Keys.Use(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return use
}

// testUse: everybody else's use of a key is told, of a disabled one too, and neither
// the project's own alias nor what every new key has, nor what is another key's.
func testUse(t *testing.T, s Service) {
	k, other := s.create(t, spring, 1), s.create(t, spring, 2)
	s.claim(t, spring, 1, k.ID, k.ID)
	for _, id := range []kek.ID{k.ID, other.ID} {
		if d := cmp.Diff(keyring.Use{}, s.use(t, id), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("use of a new key (-want +got):\n%s", d)
		}
	}
	grantees := []string{"arn:aws:iam::123456789012:role/exporter", "arn:aws:iam::123456789012:role/reports"}
	for _, g := range grantees {
		s.Grant(t, k.ID, g)
	}
	aliases := []string{"alias/archive-" + string(k.ID), "alias/billing-" + string(k.ID)}
	s.Alias(t, k.ID, aliases[1])
	s.Alias(t, k.ID, aliases[0])
	if d, err := s.Keys.PolicyDifferences(t.Context(), k.ID); err != nil || len(d) > 0 {
		t.Errorf("the policy of a new key differs from itself: %q, %v", d, err)
	}
	s.SetPolicy(t, k.ID, []string{"partner", "auditors"})
	if d, err := s.Keys.PolicyDifferences(t.Context(), k.ID); err != nil || !slices.Equal(d, []string{"it has partner", "it has auditors"}) {
		t.Errorf("the changed policy differs by %q, %v", d, err)
	}
	s.disable(t, k.ID)

	use := s.use(t, k.ID)
	if len(use.Grants) != len(grantees) {
		t.Fatalf("grants %q", use.Grants)
	}
	for i, g := range grantees {
		if !strings.HasPrefix(use.Grants[i], g+" may Decrypt") {
			t.Errorf("grant %q, want one of %s to decrypt", use.Grants[i], g)
		}
	}
	use.Grants = nil
	want := keyring.Use{Aliases: aliases, Policy: []string{"partner", "auditors"}}
	if d := cmp.Diff(want, use, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("use (-want +got):\n%s", d)
	}
	if d := cmp.Diff(keyring.Use{}, s.use(t, other.ID), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("use of the other key (-want +got):\n%s", d)
	}
}

// testLastUse: the last operation that succeeded is told of each key that took part,
// and none that was refused.
func testLastUse(t *testing.T, s Service) {
	ctx := t.Context()
	k, to := s.create(t, spring, 1), s.create(t, spring, 2)
	var wrapped []byte
	var last keyring.Use
	for _, step := range []struct {
		operation string
		do        func() error
	}{
		{"GenerateDataKey", func() (err error) { _, wrapped, err = s.KMS.GenerateDataKey(ctx, k.ID, row("a")); return err }},
		{"Decrypt", func() error { _, err := s.KMS.Decrypt(ctx, k.ID, wrapped, row("a")); return err }},
		{"ReEncrypt", func() error { _, err := s.KMS.ReEncrypt(ctx, k.ID, to.ID, wrapped, row("a")); return err }},
		{"Decrypt", func() error { _, _, err := s.KMS.Identify(ctx, wrapped, row("a")); return err }},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		use := s.use(t, k.ID)
		if use.LastUse != step.operation || use.LastUseAt.Before(last.LastUseAt) || use.LastUseAt.IsZero() || use.LastUseBy == "" || use.LastUseBy == last.LastUseBy {
			t.Errorf("after %s: %+v, before it: %+v", step.operation, use, last)
		}
		last = use
	}
	if use := s.use(t, to.ID); use.LastUse != "ReEncrypt" || use.LastUseAt.After(last.LastUseAt) || use.LastUseAt.IsZero() {
		t.Errorf("the key that was wrapped under: %+v", use)
	}

	_, err := s.KMS.Decrypt(ctx, k.ID, wrapped, row("b"))
	_, err2 := s.KMS.ReEncrypt(ctx, to.ID, k.ID, wrapped, row("a"))
	s.disable(t, k.ID)
	_, _, err3 := s.KMS.GenerateDataKey(ctx, k.ID, row("a"))
	if err == nil || err2 == nil || err3 == nil {
		t.Fatalf("%v, %v, %v, want refusals", err, err2, err3)
	}
	if d := cmp.Diff(last, s.use(t, k.ID)); d != "" {
		t.Errorf("use after refusals (-want +got):\n%s", d)
	}
}
