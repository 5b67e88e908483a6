package report

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestReportOfAnArchivedRotation: the rows in the report of a rotation are the same after
// another one has archived its checkpoints.
func TestReportOfAnArchivedRotation(t *testing.T) {
	s := newSite(t)
	s.start(rotation.ExecutionInput{})
	s.upTo(kek.Completed)
	before := s.collect(spring)
	s.pass(time.Hour)
	s.emergency("next")
	left, err := s.world.Store().ListCheckpoints(t.Context(), spring, before.Rows[0].Source, "verify")
	must(t, err)
	if len(left) > 0 {
		t.Fatal("nothing was archived")
	}
	after := s.collect(spring)
	if diff := cmp.Diff(before.Rows, after.Rows, cmp.AllowUnexported(Pass{})); diff != "" || len(after.Rows) == 0 {
		t.Errorf("rows (-before +after):\n%s", diff)
	}
}

// TestReportOfForgedCheckpoints: what somebody has written into the control table is not
// counted, and the report names it, before and after the checkpoints are archived.
func TestReportOfForgedCheckpoints(t *testing.T) {
	s := newSite(t)
	s.start(rotation.ExecutionInput{})
	s.upTo(kek.Completed)
	sound := s.collect(spring)
	store := s.world.Store()
	name := rotation.ProgressName(s.orders.Source())
	cps, err := store.ListCheckpoints(t.Context(), spring, name, "verify")
	must(t, err)
	cps[1].Tally.Scanned += 1e6
	must(t, store.SaveCheckpoint(t.Context(), cps[1]))
	look := func(when, why string) {
		t.Helper()
		r := s.collect(spring)
		if k := findCheck(t, r, "checkpoints of the passes"); k.OK || !strings.Contains(k.Detail, "orders, verify, segment 1: "+why) {
			t.Errorf("%s: %+v", when, k)
		}
		for i, rows := range r.Rows {
			want := sound.Rows[i]
			if rows.Source == "orders" {
				p := rows.Passes[len(rows.Passes)-1]
				if p.Pass != "verify" || p.Unproven != 1 || p.Done != p.Segments-1 || p.Scanned >= want.Passes[len(rows.Passes)-1].Scanned || rows.By != "confirm" {
					t.Errorf("%s: %+v, after by %s", when, p, rows.By)
				}
				continue
			}
			if diff := cmp.Diff(want, rows, cmp.AllowUnexported(Pass{})); diff != "" {
				t.Errorf("%s: %s (-sound +now):\n%s", when, rows.Source, diff)
			}
		}
		if i := slices.IndexFunc(r.Claims, func(k Claim) bool { return strings.Contains(k.Asks, "at rest") }); r.Claims[i].Status != NotShown {
			t.Errorf("%s: a claim rests on it: %+v", when, r.Claims[i])
		}
	}
	if k := findCheck(t, sound, "checkpoints of the passes"); !k.OK {
		t.Fatalf("sound: %+v", k)
	}
	look("in the control table", "its MAC is false")
	s.pass(time.Hour)
	s.emergency("next")
	look("archived", "its MAC is false")

	t.Run("KMS is not asked", func(t *testing.T) {
		from := s.reader()
		from.Prove = func(context.Context, rotation.Checkpoint) (rotation.Proof, error) { return "", errors.New("denied") }
		r, err := Collect(t.Context(), from, "next")
		must(t, err)
		if k := findCheck(t, r, "checkpoints of the passes"); k.OK || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "denied") }) {
			t.Errorf("%+v, notes %q", k, r.Notes)
		}
		for _, rows := range r.Rows {
			if len(rows.After) > 0 {
				t.Errorf("%s: %+v", rows.Source, rows.After)
			}
		}
	})
	t.Run("an outbox that somebody has written", func(t *testing.T) {
		from := s.reader()
		from.Table = forgedOutbox{Table: from.Table}
		r, err := Collect(t.Context(), from, spring)
		must(t, err)
		if len(r.Rows) > 0 || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "is left out: in the locked bucket it is different") }) {
			t.Errorf("rows %+v, notes %q", r.Rows, r.Notes)
		}
	})
}

// forgedOutbox says of every archived checkpoint that it is proven.
type forgedOutbox struct{ Table }

func (f forgedOutbox) AuditEntries(ctx context.Context, from int64) ([]audit.Entry, error) {
	entries, err := f.Table.AuditEntries(ctx, from)
	for i, e := range entries {
		if e.Record.Type != journal.EventArchived {
			continue
		}
		body := maps.Clone(e.Record.Body)
		for key, text := range body {
			body[key] = strings.Replace(text, string(rotation.FalseMAC), string(rotation.Proven), 1)
		}
		e.Record.Body = body
		b, err := json.Marshal(e.Record)
		if err != nil {
			return nil, err
		}
		entries[i].Record, entries[i].Bytes = e.Record, b
	}
	return entries, err
}

func findCheck(t *testing.T, r Report, name string) Check {
	t.Helper()
	i := slices.IndexFunc(r.Checks, func(k Check) bool { return k.Name == name })
	if i < 0 {
		t.Fatalf("no check %q", name)
	}
	return r.Checks[i]
}

// emergency runs an emergency rotation to its end.
func (s *site) emergency(id string) {
	s.t.Helper()
	ctx, in := s.t.Context(), rotation.StepInput{RotationID: id}
	_, err := s.Preflight(ctx, rotation.PreflightInput{ExecutionARN: arn + "-" + id, ExecutionName: id, Input: rotation.ExecutionInput{Mode: "emergency", Reason: "a test"}})
	must(s.t, err)
	_, err = s.Mint(ctx, in)
	must(s.t, err)
	s.pass(time.Hour)
	_, err = s.Rewrap(ctx, rotation.RewrapInput{RotationID: id, Rehearse: true})
	must(s.t, err)
	_, err = s.DualUnwrap(ctx, in)
	must(s.t, err)
	_, err = s.Switch(ctx, in)
	must(s.t, err)
	_, err = s.Drain(ctx, in)
	must(s.t, err)
	_, err = s.Rewrap(ctx, rotation.RewrapInput{RotationID: id, Complete: true})
	must(s.t, err)
	_, err = s.Retire(ctx, rotation.RetireInput{RotationID: id})
	must(s.t, err)
	s.anchor()
	_, err = s.Verify(ctx, rotation.VerifyInput{RotationID: id})
	must(s.t, err)
}
