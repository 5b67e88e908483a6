package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// hooked is an anchor key and a transparency log whose calls can fail as the world's do.
type hooked struct {
	anchor.Signer
	log  anchor.TransparencyLog
	tree *rekortest.Log
	hook *memstore.Hook
}

func (h hooked) call(op string) error {
	if *h.hook == nil {
		return nil
	}
	if apply, err := (*h.hook)(op); !apply {
		return err
	}
	return nil
}

func (h hooked) PublicKey(ctx context.Context) ([]byte, error) {
	if err := h.call("Signer.PublicKey"); err != nil {
		return nil, err
	}
	return h.Signer.PublicKey(ctx)
}

func (h hooked) Sign(ctx context.Context, msg []byte) ([]byte, error) {
	if err := h.call("Signer.Sign"); err != nil {
		return nil, err
	}
	return h.Signer.Sign(ctx, msg)
}

func (h hooked) Submit(ctx context.Context, l audit.Log, signed audit.Signed) (audit.Proof, error) {
	if err := h.call("Log.Submit"); err != nil {
		return audit.Proof{}, err
	}
	return h.log.Submit(ctx, l, signed)
}

func (h hooked) Consistency(ctx context.Context, l audit.Log, earlier, c audit.Checkpoint) ([][]byte, error) {
	if err := h.call("Log.Consistency"); err != nil {
		return nil, err
	}
	return h.log.Consistency(ctx, l, earlier, c)
}

// anchor makes a site anchor its chain in a log of its own, and returns the hook of what
// is outside of the world.
func (s *site) anchor(t *testing.T) *memstore.Hook {
	t.Helper()
	log, hook := rekortest.New(t), new(memstore.Hook)
	h := hooked{rekortest.NewKey(t), rekor.New(log.Client(func(_ *http.Request, next func() *http.Response) (*http.Response, error) { return next(), nil })), log, hook}
	s.Anchor = &anchor.Anchor{
		Journal: s.Journal, Store: s.store, Objects: s.vault, Signer: h, Log: h, Recorder: s.store, Bucket: s.vault, Trust: audit.Trust{Logs: []audit.Log{log.Trust()}},
		Retention: day, Heartbeat: time.Hour, MaxTail: time.Hour, Deadline: time.Minute,
	}
	return hook
}

// TestEveryFailureOfAnAnchorIsTold is TestEveryFailureIsTold of what anchors the chain
// and verifies it.
func TestEveryFailureOfAnAnchorIsTold(t *testing.T) {
	ctx := t.Context()
	anchored := func(s *site) { must(s.Anchor.AnchorChain(ctx, anchor.Input{})) }
	var text strings.Builder
	for _, step := range []struct {
		name    string
		prepare func(*site)
		run     func(*site) (any, error)
	}{
		{"anchor", nil, func(s *site) (any, error) { return s.Anchor.AnchorChain(ctx, anchor.Input{}) }},
		{"anchor what an earlier call has signed", func(s *site) {
			trust := s.Anchor.Trust
			s.Anchor.Trust = audit.Trust{}
			if _, err := s.Anchor.AnchorChain(ctx, anchor.Input{}); err == nil {
				t.Fatal("anchored in no log")
			}
			s.Anchor.Trust = trust
		}, func(s *site) (any, error) { return s.Anchor.AnchorChain(ctx, anchor.Input{}) }},
		{"anchor where another object lies", func(s *site) {
			s.vault.Tamper(audit.AnchorKey(chain, 1), []byte("another object"))
		}, func(s *site) (any, error) { return s.Anchor.AnchorChain(ctx, anchor.Input{}) }},
		{"a heartbeat", func(s *site) { anchored(s); s.clock.pass(time.Hour) }, func(s *site) (any, error) {
			return s.Anchor.AnchorChain(ctx, anchor.Input{Heartbeat: true})
		}},
		{"no heartbeat yet", func(s *site) { anchored(s); s.clock.pass(time.Hour - time.Second) }, func(s *site) (any, error) {
			return s.Anchor.AnchorChain(ctx, anchor.Input{Heartbeat: true})
		}},
		{"check anchoring", func(s *site) { anchored(s); s.clock.pass(2 * time.Hour) }, func(s *site) (any, error) { return s.Anchor.CheckAnchoring(ctx) }},
		{"verify", anchored, func(s *site) (any, error) {
			r, err := s.Anchor.VerifyAnchored(ctx)
			return []any{r.Result, r.Records, r.Anchors}, err
		}},
		{"verify the chain", anchored, func(s *site) (any, error) { return nil, s.VerifyChain(ctx) }},
	} {
		var hook *memstore.Hook
		fresh := func() *site {
			s := newSite(t)
			hook = s.anchor(t)
			if step.prepare != nil {
				step.prepare(s)
			}
			return s
		}
		fmt.Fprintf(&text, "%s\n", step.name)
		for _, line := range failing(t, fresh, func(s *site, h memstore.Hook) { s.hook(h); *hook = h }, step.run) {
			fmt.Fprintf(&text, "  %s\n", line)
		}
	}
	wantGolden(t, "anchor-failures.golden", text.String())
}

// TestAnchorIsMetered: the alarms anchor-red and anchor-silent see each try, also of a heartbeat
// that has nothing to anchor.
func TestAnchorIsMetered(t *testing.T) {
	s := newSite(t)
	s.anchor(t)
	meter := counts{}
	s.Journal.Meter = meter
	for range 2 {
		must(s.Anchor.AnchorChain(t.Context(), anchor.Input{Heartbeat: true}))
	}
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Store.LoadAnchor" {
			return false, errors.New("no answer")
		}
		return true, nil
	})
	_, err := s.Anchor.AnchorChain(t.Context(), anchor.Input{Heartbeat: true})
	wantKind(t, err, journal.Transient)
	if diff := cmp.Diff(counts{anchor.MetricGreen: {1, 1, 0}, anchor.MetricRed: {0, 0, 1}}, meter); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// TestAnchorRefusals holds what anchoring refuses to its words.
func TestAnchorRefusals(t *testing.T) {
	ctx := t.Context()
	anchorAll := func(s *site) (any, error) { return s.Anchor.AnchorChain(ctx, anchor.Input{}) }
	check := func(s *site) (any, error) { return s.Anchor.CheckAnchoring(ctx) }
	verify := func(s *site) (any, error) {
		r, err := s.Anchor.VerifyAnchored(ctx)
		return []any{r.Result, r.Records, r.Anchors, r.Anchored, r.Findings}, err
	}
	anchored := func(s *site) { must(s.Anchor.AnchorChain(ctx, anchor.Input{})) }
	var text strings.Builder
	for _, tc := range []struct {
		name string
		call func(s *site) (any, error)
	}{
		{"an anchor of nothing new", func(s *site) (any, error) { anchored(s); return anchorAll(s) }},
		{"a canary of a chain that is anchored", func(s *site) (any, error) {
			anchored(s)
			s.clock.pass(time.Minute)
			out, err := s.Anchor.AnchorChain(ctx, anchor.Input{Canary: true})
			entries := must(s.store.AuditEntries(ctx, 1))
			r := entries[len(entries)-1].Record
			return []any{out, r.ID, r.Type, r.Step, r.Actor, r.Body}, err
		}},
		{"a heartbeat with news", func(s *site) (any, error) {
			anchored(s)
			s.clock.pass(time.Hour)
			s.must(s.RegisterKEK(ctx, must(s.kms.Create(ctx, "", 0, "old", keyring.Key{})).ID, "old"))
			return s.Anchor.AnchorChain(ctx, anchor.Input{Heartbeat: true})
		}},
		{"a log that is not valid yet", func(s *site) (any, error) {
			s.Anchor.Trust.Logs[0].From = s.clock.now().Add(time.Second)
			return anchorAll(s)
		}},
		{"a log of another key", func(s *site) (any, error) {
			s.Anchor.Trust.Logs[0].Key = rekortest.New(t).Trust().Key
			_, err := anchorAll(s)
			return nil, errors.New(strings.SplitAfter(err.Error(), "does not verify")[0] + fmt.Sprint(" … ", typed(err).Err != nil, advice.Command(typed(err).Next)))
		}},
		{"a signature that is none", func(s *site) (any, error) {
			s.Anchor.Signer = forger{s.Anchor.Signer}
			return anchorAll(s)
		}},
		{"another anchor in its place", func(s *site) (any, error) {
			must(s.vault.PutAnchor(ctx, audit.AnchorKey(chain, 1), []byte("{}")))
			return anchorAll(s)
		}},
		{"the anchor of another statement in its place", func(s *site) (any, error) {
			other := newSite(t)
			other.anchor(t)
			other.Anchor.Signer, other.Anchor.Log, other.Anchor.Trust = s.Anchor.Signer, s.Anchor.Log, s.Anchor.Trust
			other.clock.pass(time.Minute)
			anchored(other)
			must(s.vault.PutAnchor(ctx, audit.AnchorKey(chain, 1), must(other.vault.GetAnchor(ctx, audit.AnchorKey(chain, 1)))))
			return anchorAll(s)
		}},
		{"the anchor of another key in its place", func(s *site) (any, error) {
			other := newSite(t)
			other.anchor(t)
			other.Anchor.Log, other.Anchor.Trust = s.Anchor.Log, s.Anchor.Trust
			anchored(other)
			must(s.vault.PutAnchor(ctx, audit.AnchorKey(chain, 1), must(other.vault.GetAnchor(ctx, audit.AnchorKey(chain, 1)))))
			return anchorAll(s)
		}},
		{"the same statement in another log in its place", func(s *site) (any, error) {
			s.Anchor.Store = forgetting{s.Anchor.Store}
			if _, err := anchorAll(s); err == nil {
				t.Error("it was saved")
			}
			s.Anchor.Store = s.store
			elsewhere := rekortest.New(t)
			s.Anchor.Trust.Logs[0] = elsewhere.Trust()
			s.Anchor.Log = rekor.New(elsewhere.Client(func(_ *http.Request, next func() *http.Response) (*http.Response, error) { return next(), nil }))
			return anchorAll(s)
		}},
		{"the same anchor in its place", func(s *site) (any, error) {
			s.Anchor.Store = forgetting{s.Anchor.Store}
			if _, err := anchorAll(s); err == nil {
				t.Error("it was saved")
			}
			s.Anchor.Store = s.store
			return anchorAll(s)
		}},
		{"no anchor yet", check},
		{"an old anchor", func(s *site) (any, error) { anchored(s); s.clock.pass(2*time.Hour + time.Second); return check(s) }},
		{"an anchor that is old enough", func(s *site) (any, error) { anchored(s); s.clock.pass(2 * time.Hour); return check(s) }},
		{"an anchor that was changed", func(s *site) (any, error) {
			s.Anchor.Objects = changed{s.vault}
			return check(s)
		}},
		{"an anchor that is none", func(s *site) (any, error) {
			s.Anchor.Objects = stored{s.vault, []byte("{}")}
			return check(s)
		}},
		{"an anchor whose signature is none", func(s *site) (any, error) {
			_, head := must2(s.store.Head(ctx))
			signed := rekortest.NewKey(t).Statement(t, audit.NewStatement(chain, 1, audit.AnchorGenesis(chain), head, s.clock.now()))
			signed.Signature = rekortest.NewKey(t).Statement(t, signed.Statement).Signature
			a := audit.Anchor{V: audit.Version, Signed: signed, Proof: s.Anchor.Log.(hooked).tree.Submit(t, signed)}
			s.Anchor.Objects = stored{s.vault, must(a.Encode())}
			return check(s)
		}},
		{"the chain of a rotation without an anchor", func(s *site) (any, error) { return nil, s.VerifyChain(ctx) }},
		{"preflight of a rotation", func(s *site) (any, error) {
			plan, err := s.Preflight(ctx, preflightInput(spring, rotation.ExecutionInput{}))
			return plan.Checks, err
		}},
		{"preflight without the log", func(s *site) (any, error) {
			s.Anchor.Trust.Logs = nil
			plan, err := s.Preflight(ctx, preflightInput(spring, rotation.ExecutionInput{}))
			return plan.Checks[len(plan.Checks)-1:], err
		}},
		{"an emergency without the log", func(s *site) (any, error) {
			s.Anchor.Trust.Logs = nil
			plan, err := s.Preflight(ctx, preflightInput(spring, emergency))
			return []any{plan.Checks[len(plan.Checks)-1:], s.body("rotation_started")}, err
		}},
		{"a chain that is not anchored", func(s *site) (any, error) { return verify(s) }},
		{"a chain that has a tail", func(s *site) (any, error) {
			anchored(s)
			s.must(s.RegisterKEK(ctx, must(s.kms.Create(ctx, "", 0, "old", keyring.Key{})).ID, "old"))
			s.must(s.RegisterKEK(ctx, must(s.kms.Create(ctx, "", 0, "older", keyring.Key{})).ID, "older"))
			return verify(s)
		}},
		{"a tail that is too old", func(s *site) (any, error) {
			anchored(s)
			s.must(s.RegisterKEK(ctx, must(s.kms.Create(ctx, "", 0, "old", keyring.Key{})).ID, "old"))
			s.clock.pass(time.Hour + time.Second)
			return verify(s)
		}},
		{"a tail that is too old for a person", func(s *site) (any, error) {
			anchored(s)
			s.must(s.RegisterKEK(ctx, must(s.kms.Create(ctx, "", 0, "old", keyring.Key{})).ID, "old"))
			s.clock.pass(time.Minute)
			tail := time.Second
			r, err := s.Anchor.VerifyAudit(ctx, anchor.AuditOptions{MaxTail: &tail})
			return []any{r.Result, r.Findings}, err
		}},
		{"an anchor that a person remembers", func(s *site) (any, error) {
			anchored(s)
			r, err := s.Anchor.VerifyAudit(ctx, anchor.AuditOptions{Known: []audit.Known{{N: 7, Digest: strings.Repeat("0", 64)}}})
			return []any{r.Result, r.Findings}, err
		}},
		{"an anchor that the control table remembers", func(s *site) (any, error) {
			anchored(s)
			s.vault.Tamper(audit.AnchorKey(chain, 1), nil)
			r, err := s.Anchor.VerifyAudit(ctx, anchor.AuditOptions{})
			return []any{r.Result, r.Findings}, err
		}},
		{"a retention that is too short", func(s *site) (any, error) {
			s.Anchor.Bucket = unlocking{s.vault, s.clock.now().Add(time.Hour)}
			anchored(s)
			r, err := s.Anchor.VerifyAudit(ctx, anchor.AuditOptions{})
			return []any{r.Result, r.Findings}, err
		}},
		{"a record that is missing", func(s *site) (any, error) {
			anchored(s)
			s.vault.Tamper(audit.ObjectKey(chain, 1), nil)
			return verify(s)
		}},
		{"litter", func(s *site) (any, error) {
			s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
			anchored(s)
			s.Anchor.Bucket = littered{s.vault}
			_, err := s.Verify(ctx, verifyInput(spring))
			return s.body("kms_rotation_completed"), err
		}},
		{"litter, and no anchor", func(s *site) (any, error) {
			s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
			s.Anchor.Bucket = littered{s.vault}
			return s.Verify(ctx, verifyInput(spring))
		}},
	} {
		s := newSite(t)
		s.anchor(t)
		out, err := tc.call(s)
		answer := set(t, out)
		if err != nil {
			answer = toldError(err)
		}
		fmt.Fprintf(&text, "%s\n  %s\n", tc.name, answer)
	}
	wantGolden(t, "anchor-refusals.golden", text.String())
}

// forger signs something else.
type forger struct{ anchor.Signer }

func (f forger) Sign(ctx context.Context, _ []byte) ([]byte, error) {
	return f.Signer.Sign(ctx, []byte("something else"))
}

// forgetting is a store that keeps an intent and no anchor.
type forgetting struct{ anchor.Store }

func (d forgetting) SaveAnchor(ctx context.Context, st anchor.State) error {
	if st.Intent == nil {
		return errAway
	}
	return d.Store.SaveAnchor(ctx, st)
}

// changed is a bucket that returns anchors with another index.
type changed struct{ anchor.ObjectStore }

func (c changed) GetAnchor(ctx context.Context, key string) ([]byte, error) {
	b, err := c.ObjectStore.GetAnchor(ctx, key)
	a, perr := audit.ParseAnchor(b)
	a.Proof.Index++
	b, eerr := a.Encode()
	return b, errors.Join(err, perr, eerr)
}

// littered is a bucket with objects that are not of the chain.
type littered struct{ audit.Bucket }

func (l littered) Versions(ctx context.Context) ([]audit.ObjectVersion, error) {
	all, err := l.Bucket.Versions(ctx)
	return append([]audit.ObjectVersion{{Key: "a.txt", ID: "only"}, {Key: "b.txt", ID: "only"}}, all...), err
}

func (l littered) Read(ctx context.Context, o audit.ObjectVersion) (audit.Object, error) {
	if strings.HasSuffix(o.Key, ".txt") {
		return audit.Object{Bytes: []byte("litter"), Lock: &audit.Lock{Mode: audit.Compliance, Until: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}}, nil
	}
	return l.Bucket.Read(ctx, o)
}

// unlocking is a bucket whose locks end.
type unlocking struct {
	audit.Bucket
	until time.Time
}

func (u unlocking) Read(ctx context.Context, o audit.ObjectVersion) (audit.Object, error) {
	out, err := u.Bucket.Read(ctx, o)
	if out.Lock != nil {
		out.Lock = &audit.Lock{Mode: audit.Compliance, Until: u.until}
	}
	return out, err
}

// stored is a bucket in which each anchor is the same object.
type stored struct {
	anchor.ObjectStore
	b []byte
}

func (s stored) GetAnchor(context.Context, string) ([]byte, error) { return s.b, nil }

// must2 is must for two values.
func must2[T, U any](v T, w U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return v, w
}
