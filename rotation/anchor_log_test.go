package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// moody is a transparency log that at some time takes nothing, or nothing any more.
type moody struct {
	rotation.TransparencyLog
	fail func(l audit.Log) error
}

func (f *moody) Submit(ctx context.Context, l audit.Log, s audit.Signed) (audit.Proof, error) {
	if f.fail != nil {
		if err := f.fail(l); err != nil {
			return audit.Proof{}, err
		}
	}
	return f.TransparencyLog.Submit(ctx, l, s)
}

var (
	errFrozen = fmt.Errorf("405: the shard is frozen: %w", rotation.ErrLogRefused)
	errDown   = errors.New("connection refused")
)

// TestFrozenLog: a shard that takes no entries any more is passed over for an earlier log
// that does; if none does the anchor stays open, and the error names every log.
func TestFrozenLog(t *testing.T) {
	a := newAnchorage(t)
	frozen := rekortest.Named(t, "log2026-1.test").Trust()
	frozen.URL, frozen.From = "https://log2026-1.test", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a.Anchoring.Trust.Logs = append(a.Anchoring.Trust.Logs, frozen)
	f := &moody{TransparencyLog: a.Anchoring.Log, fail: func(l audit.Log) error {
		if l.URL == frozen.URL {
			return errFrozen
		}
		return nil
	}}
	a.Anchoring.Log = f
	if out := a.mustAnchor(t, rotation.AnchorInput{Canary: true}); out.Log != a.log.Trust().Origin {
		t.Errorf("anchored in %q", out.Log)
	}
	a.mustBeSound(t)

	f.fail = func(audit.Log) error { return errFrozen }
	_, err := a.Anchor(t.Context(), rotation.AnchorInput{Canary: true})
	if typed := asError(t, err); typed.Kind != rotation.Misconfigured || typed.Field != frozen.URL || strings.Count(err.Error(), "frozen") < 2 {
		t.Errorf("%v", err)
	}
	f.fail = func(audit.Log) error { return errDown }
	_, err = a.Anchor(t.Context(), rotation.AnchorInput{})
	if typed := asError(t, err); typed.Kind != rotation.Transient {
		t.Errorf("one that does not answer was passed over: %v", err)
	}
	f.fail = nil
	a.mustAnchor(t, rotation.AnchorInput{})
	a.mustBeSound(t)
}

// TestAgingLogIsTold: preflight says that the log may soon end, before it does.
func TestAgingLogIsTold(t *testing.T) {
	a := newAnchorage(t)
	if detail, err := a.CheckAnchoring(t.Context()); err != nil || strings.Contains(detail, "successor") {
		t.Fatalf("%q, %v", detail, err)
	}
	l := a.Anchoring.Trust.Logs[0]
	l.URL, l.From = "https://log2025-1.rekor.sigstore.dev", time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	a.Anchoring.Trust.Logs = []audit.Log{l}
	detail, err := a.CheckAnchoring(t.Context())
	if err != nil || !strings.Contains(detail, "log2025-1.rekor.sigstore.dev began") || !strings.Contains(detail, "successor") {
		t.Errorf("%q, %v", detail, err)
	}
}

// TestNoLogStopsAnEmergency: an emergency runs from its start to its end whatever the
// transparency log does, says in its record and to people what is not proven yet, and what
// is open is anchored once a log takes it. A normal rotation halts instead.
func TestNoLogStopsAnEmergency(t *testing.T) {
	for name, err := range map[string]error{"down": errDown, "frozen": errFrozen} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.anchor(t)
			f := &moody{TransparencyLog: s.Anchoring.Log, fail: func(audit.Log) error { return err }}
			s.Anchoring.Log = f
			d := newDriver(s)
			var told []rotation.NotifyInput
			d.before = func(c call) {
				if c.state == "NotifyCompleted" {
					told = append(told, must(lambdastep.Decode[rotation.NotifyInput](c.payload)))
				}
			}
			d.complete(spring, rotation.ExecutionInput{Mode: "emergency", Reason: "a key has leaked"})
			if open := s.body("kms_rotation_completed")["audit_open"]; !strings.HasPrefix(open, "the audit chain is unproven: not_anchored: no valid anchor covers any of ") {
				t.Errorf("the record says %q of what no log has", open)
			}
			if len(told) != 1 || told[0].Detail != s.body("kms_rotation_completed")["audit_open"] {
				t.Errorf("people were told %+v", told)
			}
			f.fail = nil
			if _, err := s.Anchor(t.Context(), rotation.AnchorInput{}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.VerifyAnchored(t.Context()); err != nil {
				t.Errorf("after the log is back: %v", err)
			}
		})
	}
	t.Run("a chain that was changed", func(t *testing.T) {
		s := newSite(t)
		s.anchor(t)
		d := newDriver(s)
		d.before = func(c call) {
			if c.state == "Verify" {
				s.vault.Tamper(audit.ObjectKey(chain, 2), nil)
			}
		}
		e := d.machine.Start(spring, rotation.ExecutionInput{Mode: "emergency", Reason: "a key has leaked"})
		if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "AuditTampered") {
			t.Errorf("ended in %s: %v", e.Final, e.Failure)
		}
	})
	t.Run("a normal rotation", func(t *testing.T) {
		s := newSite(t)
		s.anchor(t)
		f := &moody{TransparencyLog: s.Anchoring.Log}
		s.Anchoring.Log = f
		d := newDriver(s)
		d.before = func(c call) {
			if c.state == "Switch" {
				f.fail = func(audit.Log) error { return errDown }
			}
		}
		e := d.machine.Start(spring, rotation.ExecutionInput{})
		if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "Unverified") {
			t.Fatalf("ended in %s: %v", e.Final, e.Failure)
		}
		f.fail = nil
		must(s.Anchor(t.Context(), rotation.AnchorInput{})) // as the halt says
		if e.Redrive(); e.Status != "SUCCEEDED" {
			t.Errorf("redriven: %s: %v", e.Final, e.Failure)
		}
	})
}
