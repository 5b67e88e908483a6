package rotation_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// check is the check of a name that a look of preflight makes.
func (s *site) check(in rotation.ExecutionInput, name string) (rotation.Check, error) {
	s.t.Helper()
	p := preflightInput(spring, in)
	p.CheckOnly = true
	plan, err := s.Preflight(s.t.Context(), p)
	for _, c := range plan.Checks {
		if c.Name == name {
			return c, err
		}
	}
	s.t.Fatalf("no check is called %q: %v", name, plan.Checks)
	return rotation.Check{}, nil
}

// TestPlanNamesEveryOld: the plan has each KEK that the rotation leaves, historic ones too.
func TestPlanNamesEveryOld(t *testing.T) {
	s := newSite(t)
	past := s.past("before")
	plan, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	if s.must(err); len(plan.Olds) != 2 || plan.Olds[0] != string(s.first) || plan.Olds[1] != string(past) {
		t.Errorf("it leaves %v, want %s and %s", plan.Olds, s.first, past)
	}
}

// TestCorpusLooked: preflight reads on over a page without a row, and says of a corpus
// that it cannot read that it cannot.
func TestCorpusLooked(t *testing.T) {
	s := newSite(t)
	s.corpus.SetEmptyPages(true)
	if c, err := s.check(rotation.ExecutionInput{}, "known-cipher corpus"); err != nil || !c.OK {
		t.Errorf("behind an empty page: %+v, %v", c, err)
	}
	s.fail("Table.Scan", "corpus", journal.ErrDenied)
	c, err := s.check(rotation.ExecutionInput{}, "known-cipher corpus")
	if wantKind(t, err, journal.AccessDenied); c.OK {
		t.Errorf("unreadable: %+v", c)
	}
}

// TestSparedOnlyInAnEmergency: what an emergency goes past refuses a normal rotation.
func TestSparedOnlyInAnEmergency(t *testing.T) {
	s := newSite(t)
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "KMS.Use" {
			return false, errPlanted
		}
		return true, nil
	})
	c, err := s.check(rotation.ExecutionInput{}, "KEK's other users")
	if wantKind(t, err, journal.Transient); c.OK {
		t.Errorf("normal: %+v", c)
	}
	if c, err := s.check(emergency, "KEK's other users"); err != nil || !c.OK || !strings.HasPrefix(c.Detail, "overridden") {
		t.Errorf("emergency: %+v, %v", c, err)
	}
	s.world.SetHook(nil)
	s.people.FailCheck(&journal.Error{Kind: journal.SourceMisconfigured, Field: "wrapped_dek", Msg: "no such attribute"})
	if c, err := s.check(emergency, "source people"); err != nil || !c.OK || !strings.HasPrefix(c.Detail, "overridden") || !strings.Contains(c.Detail, "no such attribute") {
		t.Errorf("emergency, a source: %+v, %v", c, err)
	}
}

// TestWithoutALog: a deployment that has no transparency log says so, and that nothing is
// verified there.
func TestWithoutALog(t *testing.T) {
	s := newSite(t)
	_, err := s.Anchor.CheckAnchoring(t.Context())
	wantKind(t, err, journal.Misconfigured)
	_, err = s.Anchor.VerifyAudit(t.Context(), anchor.AuditOptions{})
	wantKind(t, err, journal.Misconfigured)
}

// TestGenesisIsRecorded: the record of genesis has the definition of each source.
func TestGenesisIsRecorded(t *testing.T) {
	s := newSite(t)
	body := s.body("kek_genesis")
	for _, def := range s.view(looking).Sources {
		if got, ok := body["source."+def.Name]; !ok || got != def.Definition {
			t.Errorf("source %s: %q, want %q", def.Name, got, def.Definition)
		}
	}
}

// TestCheckpointUnread: a pass whose checkpoint cannot be read after it was saved does not
// continue from what it believes.
func TestCheckpointUnread(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	var saved atomic.Bool
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Store.SaveCheckpoint" {
			saved.Store(true)
		}
		if saved.Load() && op == "Store.LoadCheckpoint" {
			return false, errPlanted
		}
		return true, nil
	})
	_, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Source: "orders"})
	if wantKind(t, err, journal.Transient); !saved.Load() {
		t.Error("no checkpoint was saved")
	}
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
}

// TestAllDeniedCounts: when AWS denies every row of a page, the error says how many of
// which source, and names the first to a person's terminal alone.
func TestAllDeniedCounts(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	table := s.newTable("carts", s.first, "c1", "c2", "c3")
	table.Plant("other", memstore.Record{Other: true})
	s.add(table)
	s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	s.fail("Table.Replace", "carts", journal.ErrDenied)
	_, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Source: "carts"})
	if wantKind(t, err, journal.AccessDenied); !strings.Contains(err.Error(), "3 rows of carts") || strings.Contains(err.Error(), "c1") || len(typed(err).Rows) != 1 {
		t.Errorf("it says %v, rows %q", err, typed(err).Rows)
	}
}

// TestEarlyNamesTheRotation: a step before its turn says whose turn it is not.
func TestEarlyNamesTheRotation(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	_, err := s.Switch(t.Context(), input(spring))
	if wantKind(t, err, journal.Refused); !strings.Contains(err.Error(), "rotation "+spring) || !strings.Contains(err.Error(), string(kek.Minted)) {
		t.Errorf("it says %v", err)
	}
}
