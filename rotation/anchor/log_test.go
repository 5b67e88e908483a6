package anchor_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

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

// TestFrozenLog: a shard that takes no entries any more is passed over for an earlier log
// that does; if none does the anchor stays open, and the error names every log.
func TestFrozenLog(t *testing.T) {
	a := newAnchorage(t)
	frozen := rekortest.Named(t, "log2026-1.test").Trust()
	frozen.URL, frozen.From = "https://log2026-1.test", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a.Trust.Logs = append(a.Trust.Logs, frozen)
	f := &moody{TransparencyLog: a.Log, fail: func(l audit.Log) error {
		if l.URL == frozen.URL {
			return errFrozen
		}
		return nil
	}}
	a.Log = f
	if out := a.mustAnchor(t, anchor.Input{Canary: true}); out.Log != a.log.Trust().Origin {
		t.Errorf("anchored in %q", out.Log)
	}
	a.mustBeSound(t)

	f.fail = func(audit.Log) error { return errFrozen }
	_, err := a.AnchorChain(t.Context(), anchor.Input{Canary: true})
	if typed := asError(t, err); typed.Kind != journal.Misconfigured || typed.Field != frozen.URL || strings.Count(err.Error(), "frozen") < 2 {
		t.Errorf("%v", err)
	}
	f.fail = func(audit.Log) error { return errDown }
	_, err = a.AnchorChain(t.Context(), anchor.Input{})
	if typed := asError(t, err); typed.Kind != journal.Transient {
		t.Errorf("one that does not answer was passed over: %v", err)
	}
	f.fail = nil
	a.mustAnchor(t, anchor.Input{})
	a.mustBeSound(t)
}

// TestAgingLogIsTold: preflight says that the log may soon end, before it does.
func TestAgingLogIsTold(t *testing.T) {
	a := newAnchorage(t)
	if detail, err := a.CheckAnchoring(t.Context()); err != nil || strings.Contains(detail, "successor") {
		t.Fatalf("%q, %v", detail, err)
	}
	l := a.Trust.Logs[0]
	l.URL, l.From = "https://log2025-1.rekor.sigstore.dev", time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	a.Trust.Logs = []audit.Log{l}
	detail, err := a.CheckAnchoring(t.Context())
	if err != nil || !strings.Contains(detail, "log2025-1.rekor.sigstore.dev began") || !strings.Contains(detail, "successor") {
		t.Errorf("%q, %v", detail, err)
	}
}
