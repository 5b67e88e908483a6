package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestNoLogStopsAnEmergency: an emergency runs from its start to its end whatever the
// transparency log does, says in its record and to people what is not proven yet, and what
// is open is anchored once a log takes it. A normal rotation halts instead.
func TestNoLogStopsAnEmergency(t *testing.T) {
	for name, err := range map[string]error{"down": errDown, "frozen": errFrozen} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.anchor(t)
			f := &moody{TransparencyLog: s.Anchor.Log, fail: func(audit.Log) error { return err }}
			s.Anchor.Log = f
			d := newDriver(s)
			var told []journal.Notice
			d.before = func(c call) {
				if c.state == "NotifyCompleted" {
					told = append(told, must(lambdastep.DecodePayload[journal.Notice](c.payload)))
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
			if _, err := s.Anchor.AnchorChain(t.Context(), anchor.Input{}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Anchor.VerifyAnchored(t.Context()); err != nil {
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
		f := &moody{TransparencyLog: s.Anchor.Log}
		s.Anchor.Log = f
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
		must(s.Anchor.AnchorChain(t.Context(), anchor.Input{})) // as the halt says
		if e.Redrive(); e.Status != "SUCCEEDED" {
			t.Errorf("redriven: %s: %v", e.Final, e.Failure)
		}
	})
}

// moody is a transparency log that at some time takes nothing, or nothing any more.
type moody struct {
	anchor.TransparencyLog
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
	errFrozen = fmt.Errorf("405: the shard is frozen: %w", anchor.ErrLogRefused)
	errDown   = errors.New("connection refused")
)
