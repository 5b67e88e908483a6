package anchor_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/rekortest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// errKilled is what a process sees of the world once it has been killed: nothing.
var errKilled = errors.New("killed")

// anchorage is one deployment that anchors, and a process in it that can be killed
// at any call to the outside.
type anchorage struct {
	*anchor.Anchor
	world *memstore.World
	log   *rekortest.Log
	key   *rekortest.Key

	mu    sync.Mutex
	calls int      // to the outside, so far
	names []string // of them
	kill  int      // the call at which the process dies; 0: never
	lost  bool     // the call takes effect and only its answer is lost
	dead  bool
}

func newAnchorage(t *testing.T) *anchorage {
	t.Helper()
	a := &anchorage{world: memstore.New("matter", storetest.Clock()), log: rekortest.New(t), key: rekortest.NewKey(t)}
	a.world.SetHook(func(op string, _ ...any) (bool, error) { return a.call(op) })
	client := a.log.Client(func(r *http.Request, next func() *http.Response) (*http.Response, error) {
		apply, err := a.call("log " + r.Method + " " + r.URL.Path)
		if !apply {
			return nil, err
		}
		resp := next()
		if err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
		return resp, nil
	})
	store, vault := a.world.Store(), a.world.Vault()
	a.Anchor = &anchor.Anchor{
		Journal: &journal.Journal{Outbox: store, AuditBucket: vault, Now: storetest.Clock(), Actor: "test"},
		Store:   store, Objects: vault, Signer: signer{a}, Log: rekor.New(client), Recorder: store, Bucket: vault,
		Trust:     audit.Trust{Logs: []audit.Log{a.log.Trust()}},
		Retention: 24 * time.Hour, Heartbeat: time.Hour, MaxTail: time.Hour, Deadline: time.Minute,
	}
	return a
}

// call decides the fate of one call to the outside.
func (a *anchorage) call(name string) (apply bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return false, errKilled
	}
	a.calls++
	a.names = append(a.names, name)
	if a.calls != a.kill {
		return true, nil
	}
	a.dead = true
	return a.lost, errKilled
}

// arm kills the process at its n-th call from now on.
func (a *anchorage) arm(n int, lost bool) {
	a.calls, a.names, a.kill, a.lost, a.dead = 0, nil, n, lost, false
}

// signer is the anchor key, behind the same fate.
type signer struct{ a *anchorage }

func (s signer) PublicKey(ctx context.Context) ([]byte, error) {
	if apply, err := s.a.call("key PublicKey"); !apply || err != nil {
		return nil, err
	}
	return s.a.key.PublicKey(ctx)
}

func (s signer) Sign(ctx context.Context, msg []byte) ([]byte, error) {
	if apply, err := s.a.call("key Sign"); !apply || err != nil {
		return nil, err
	}
	return s.a.key.Sign(ctx, msg)
}

func (a *anchorage) record(ctx context.Context, what string) error {
	return a.world.Store().Record(ctx, audit.Event{ID: what, Type: what, Step: "test"})
}

// mustAnchor anchors and returns the outcome.
func (a *anchorage) mustAnchor(t *testing.T, in anchor.Input) anchor.Output {
	t.Helper()
	out, err := a.AnchorChain(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mustBeSound verifies everything and returns the report.
func (a *anchorage) mustBeSound(t *testing.T) audit.Report {
	t.Helper()
	r, err := a.VerifyAnchored(t.Context())
	if err != nil {
		t.Fatalf("%v\n%v\ncalls: %s", err, r.Findings, strings.Join(a.names, ", "))
	}
	return r
}

func TestAnchor(t *testing.T) {
	a := newAnchorage(t)
	if out := a.mustAnchor(t, anchor.Input{}); out.Anchor != 0 {
		t.Errorf("an empty chain was anchored: %+v", out)
	}
	for n := range 3 {
		if err := errors.Join(a.record(t.Context(), "one"), a.record(t.Context(), "two")); err != nil {
			t.Fatal(err)
		}
		out := a.mustAnchor(t, anchor.Input{})
		if out.Anchor != int64(n+1) || out.Records != int64(2*n+2) || out.LogIndex != int64(n) {
			t.Errorf("anchor %d: %+v", n+1, out)
		}
		if again := a.mustAnchor(t, anchor.Input{Heartbeat: true}); again != out {
			t.Errorf("anchored again: %+v, was %+v", again, out)
		}
	}
	r := a.mustBeSound(t)
	if r.Anchors != 3 || r.Records != 6 || r.Anchored != 6 {
		t.Errorf("%+v", r)
	}
}

// TestAnchorHeartbeat anchors a quiet chain once an hour, and a canary at once.
func TestAnchorHeartbeat(t *testing.T) {
	a := newAnchorage(t)
	first := a.mustAnchor(t, anchor.Input{Heartbeat: true})
	if first.Anchor != 1 || first.Records != 1 {
		t.Errorf("%+v: a chain that never began has no heartbeat", first)
	}
	a.Heartbeat = 0
	if out := a.mustAnchor(t, anchor.Input{}); out != first {
		t.Errorf("%+v without asking", out)
	}
	if out := a.mustAnchor(t, anchor.Input{Heartbeat: true}); out.Anchor != 2 || out.Records != 2 {
		t.Errorf("%+v when it was time", out)
	}
	a.Heartbeat = time.Hour
	if detail, err := a.CheckAnchoring(t.Context()); err != nil || detail != "3 records, anchor 3 at log index 2 of rekor.test" {
		t.Errorf("canary: %q, %v", detail, err)
	}
	var types []string
	entries, err := a.world.Store().AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		types = append(types, e.Record.ID)
	}
	if got, want := strings.Join(types, " "), "anchor_heartbeat/1 anchor_heartbeat/2 anchor_canary/3"; got != want {
		t.Errorf("records %s, want %s", got, want)
	}
	a.mustBeSound(t)
}

// life is what a process does from its start: it brings three records into the
// chain, each once, and anchors after each.
func (a *anchorage) life(ctx context.Context) error {
	for _, what := range []string{"one", "two", "three"} {
		entries, err := a.world.Store().AuditEntries(ctx, 1)
		if err != nil {
			return err
		}
		seen := false
		for _, e := range entries {
			seen = seen || e.Record.ID == what
		}
		if !seen {
			if err := a.record(ctx, what); err != nil {
				return err
			}
		}
		if _, err := a.AnchorChain(ctx, anchor.Input{}); err != nil {
			return err
		}
	}
	return nil
}

// TestAnchorKilled kills the process at every call it makes, before or after the
// call takes effect, then its successor at every third call, which third it is
// changing, and shows that the last process ends with one chain, in which every
// anchor is one entry of the log.
func TestAnchorKilled(t *testing.T) {
	a := newAnchorage(t)
	if err := a.life(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := a.calls
	runs := 0
	for n := 1; n <= first; n += raced { // all of them without the race detector
		for _, lost := range []bool{false, true} {
			killTwice(t, n, lost, 0) // the successor lives
			runs++
			for m := 1 + n%3; !killTwice(t, n, lost, m); m += 3 {
				runs++
			}
		}
	}
	t.Logf("%d calls, %d runs", first, runs)
}

// killTwice kills the first process at call n and the second at call m, and
// reports whether the second had less to do.
func killTwice(t *testing.T, n int, lost bool, m int) bool {
	t.Helper()
	a := newAnchorage(t)
	a.arm(n, lost)
	if err := a.life(t.Context()); err == nil {
		t.Fatalf("call %d: the process was killed and succeeded", n)
	}
	died := a.names[n-1]
	a.arm(m, m%2 == 0)
	err := a.life(t.Context())
	survived := m == 0 || a.calls < m
	a.arm(0, false)
	if survived != (err == nil) {
		t.Fatalf("%s, then call %d: %v", died, m, err)
	}
	if err := a.life(t.Context()); err != nil {
		t.Fatalf("%s, then call %d: %v", died, m, err)
	}
	r := a.mustBeSound(t)
	if entries := int64(len(a.log.Entries())); r.Records != 3 || entries != r.Anchors {
		t.Fatalf("%s, then call %d: %d records, %d anchors, %d log entries", died, m, r.Records, r.Anchors, entries)
	}
	return survived
}

// TestAnchorRaces lets many processes anchor at once.
func TestAnchorRaces(t *testing.T) {
	a := newAnchorage(t)
	for round := range 5 {
		var wg sync.WaitGroup
		for n := range 6 {
			wg.Go(func() {
				if err := a.record(t.Context(), fmt.Sprintf("%d/%d", round, n)); err != nil {
					t.Error(err)
				}
				if _, err := a.AnchorChain(t.Context(), anchor.Input{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	r := a.mustBeSound(t)
	if entries := int64(len(a.log.Entries())); r.Records != 30 || entries != r.Anchors {
		t.Errorf("%d records, %d anchors, %d log entries", r.Records, r.Anchors, entries)
	}
}

// TestAnchorRefuses shows what is never signed or never stored.
func TestAnchorRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, a *anchorage)
		kind   journal.Kind
		signed bool // an intent may be left, to be fulfilled later
	}{
		"a record that is not in the bucket": {
			func(t *testing.T, a *anchorage) {
				t.Helper()
				publish(t, a)
				a.world.Vault().Tamper(audit.ObjectKey("matter", 2), nil)
			}, journal.AuditTampered, false,
		},
		"a record that is another in the bucket": {
			func(t *testing.T, a *anchorage) {
				t.Helper()
				publish(t, a)
				b, err := a.world.Vault().Get(t.Context(), audit.ObjectKey("matter", 1))
				if err != nil {
					t.Fatal(err)
				}
				a.world.Vault().Tamper(audit.ObjectKey("matter", 2), b)
			}, journal.AuditTampered, false,
		},
		"no log": {
			func(_ *testing.T, a *anchorage) { a.Trust.Logs = nil }, journal.Misconfigured, true,
		},
		"a log whose key is another": {
			func(t *testing.T, a *anchorage) {
				t.Helper()
				l := a.log.Trust()
				l.Key = rekortest.New(t).Trust().Key
				a.Trust.Logs = []audit.Log{l}
			}, journal.Unverified, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAnchorage(t)
			if err := errors.Join(a.record(t.Context(), "one"), a.record(t.Context(), "two")); err != nil {
				t.Fatal(err)
			}
			c.damage(t, a)
			_, err := a.AnchorChain(t.Context(), anchor.Input{})
			var typed *journal.Error
			if !errors.As(err, &typed) || typed.Kind != c.kind {
				t.Fatalf("%v, want %s", err, c.kind)
			}
			st, err := a.world.Store().LoadAnchor(t.Context())
			if err != nil || (st.Intent != nil) != c.signed || st.Last.N != 0 {
				t.Errorf("state %+v, %v", st, err)
			}
		})
	}
}

// publish brings the outbox into the bucket by a look at it.
func publish(t *testing.T, a *anchorage) {
	t.Helper()
	if _, err := a.VerifyAudit(t.Context(), anchor.AuditOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestAnchorOutage shows that a log that is down blocks nothing: the intent waits,
// records continue, and verification says unproven until the log is back.
func TestAnchorOutage(t *testing.T) {
	a := newAnchorage(t)
	a.mustAnchor(t, anchor.Input{Canary: true})
	up := a.Log
	a.Log = rekor.New(a.log.Client(func(*http.Request, func() *http.Response) (*http.Response, error) {
		return nil, errors.New("connection refused")
	}))
	for _, what := range []string{"one", "two"} {
		if err := a.record(t.Context(), what); err != nil {
			t.Fatal(err)
		}
		_, err := a.AnchorChain(t.Context(), anchor.Input{})
		var typed *journal.Error
		if !errors.As(err, &typed) || typed.Kind != journal.Transient {
			t.Fatalf("%v, want Transient", err)
		}
	}
	_, err := a.VerifyAnchored(t.Context())
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.Unverified {
		t.Fatalf("%v, want Unverified", err)
	}
	a.Log = up
	if out := a.mustAnchor(t, anchor.Input{}); out.Anchor != 3 || out.Records != 3 { // the intent's, then the rest
		t.Errorf("%+v", out)
	}
	a.mustBeSound(t)
}

// TestCheckAnchoringStale refuses when the cron has stopped, though anchoring would
// work.
func TestCheckAnchoringStale(t *testing.T) {
	a := newAnchorage(t)
	a.mustAnchor(t, anchor.Input{Canary: true})
	a.Heartbeat, a.MaxTail = 0, 0
	_, err := a.CheckAnchoring(t.Context())
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.Unverified {
		t.Fatalf("%v, want Unverified", err)
	}
}

// storedAnchor is anchor n as the bucket holds it.
func storedAnchor(t *testing.T, a *anchorage, n int64) audit.Anchor {
	t.Helper()
	b, err := a.world.Vault().GetAnchor(t.Context(), audit.AnchorKey("matter", n))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := audit.ParseAnchor(b)
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

// asError is err as the typed error that it must be.
func asError(t *testing.T, err error) *journal.Error {
	t.Helper()
	var typed *journal.Error
	if !errors.As(err, &typed) {
		t.Fatalf("%v is no typed error", err)
	}
	return typed
}

// TestAnchorFork: a log that shows another tree than the one that holds the last anchor
// gets no anchor, however often it is asked, and each call says why. The anchor stays open
// until another log is named, which begins without a proof.
func TestAnchorFork(t *testing.T) {
	for name, others := range map[string]int{"a smaller tree": 0, "a tree of the same size": 2, "a larger tree": 20} {
		t.Run(name, func(t *testing.T) {
			a := newAnchorage(t)
			for range 3 {
				a.mustAnchor(t, anchor.Input{Canary: true})
			}
			fork := a.log.Fork()
			for range others {
				fork.Append([]byte("the entry of somebody else"))
			}
			a.Log = rekor.New(fork.Client(nil))
			for try := range 3 {
				_, err := a.AnchorChain(t.Context(), anchor.Input{Canary: try == 0})
				if typed := asError(t, err); typed.Kind != journal.Unverified || typed.Field != a.log.Trust().URL || !errors.Is(err, audit.ErrConsistency) || !strings.Contains(typed.Msg, "a fork") {
					t.Fatalf("try %d: %v", try, err)
				}
			}
			st, err := a.world.Store().LoadAnchor(t.Context())
			if err != nil || st.Intent == nil || st.Last.N != 3 {
				t.Fatalf("state %+v, %v", st, err)
			}
			successor := rekortest.Named(t, "successor.test")
			a.Log = rekor.New(successor.Client(nil))
			trust := successor.Trust()
			trust.From = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			a.Trust.Logs = append(a.Trust.Logs, trust)
			if out := a.mustAnchor(t, anchor.Input{}); out.Anchor != 4 || out.Log != "successor.test" {
				t.Errorf("%+v", out)
			}
			r := a.mustBeSound(t)
			if want := `consistency between the checkpoints of anchors 3 and 4: they are in two logs, "rekor.test" and "successor.test"`; len(r.Unchecked) != 1 || r.Unchecked[0] != want {
				t.Errorf("not checked %q, want %q", r.Unchecked, want)
			}
		})
	}
}

// TestAnchorTreeGrows: every anchor after the first holds the proof that the tree has
// grown from the one before, also where others use the log.
func TestAnchorTreeGrows(t *testing.T) {
	a := newAnchorage(t)
	for n := range 4 {
		for range n {
			a.log.Append([]byte("the entry of somebody else"))
		}
		a.mustAnchor(t, anchor.Input{Canary: true})
	}
	for n := int64(1); n <= 4; n++ {
		stored := storedAnchor(t, a, n)
		if stored.V != 2 || stored.Proof.Consistency == nil || (n == 1) != (len(stored.Proof.Consistency) == 0) {
			t.Errorf("anchor %d: version %d, proof %x", n, stored.V, stored.Proof.Consistency)
		}
	}
	if r := a.mustBeSound(t); len(r.Unchecked) != 0 {
		t.Errorf("not checked: %q", r.Unchecked)
	}
}

// TestAnchorTreeUnread: an answer of the log about its tree that does not come is an
// outage, and the next call continues.
func TestAnchorTreeUnread(t *testing.T) {
	a := newAnchorage(t)
	a.mustAnchor(t, anchor.Input{Canary: true})
	up := a.Log
	a.Log = rekor.New(a.log.Client(func(r *http.Request, next func() *http.Response) (*http.Response, error) {
		if strings.Contains(r.URL.Path, "/tile/") {
			return nil, errors.New("connection refused")
		}
		return next(), nil
	}))
	_, err := a.AnchorChain(t.Context(), anchor.Input{Canary: true})
	if typed := asError(t, err); typed.Kind != journal.Transient {
		t.Fatalf("%v, want Transient", err)
	}
	a.Log = up
	if out := a.mustAnchor(t, anchor.Input{}); out.Anchor != 2 {
		t.Errorf("%+v", out)
	}
	a.mustBeSound(t)
}

// TestAnchorOfBefore: an intent that a release before consistency proofs has signed becomes
// an anchor of its version.
func TestAnchorOfBefore(t *testing.T) {
	a := newAnchorage(t)
	if err := a.record(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	publish(t, a)
	at, head, err := a.world.Store().Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := audit.NewStatement(at.Chain, 1, audit.AnchorGenesis(at.Chain), head, storetest.Clock()())
	s.V = 1
	signed := a.key.Statement(t, s)
	if err := a.world.Store().SaveAnchor(t.Context(), anchor.State{Intent: &signed}); err != nil {
		t.Fatal(err)
	}
	a.mustAnchor(t, anchor.Input{})
	a.mustAnchor(t, anchor.Input{Canary: true})
	first, second := storedAnchor(t, a, 1), storedAnchor(t, a, 2)
	if first.V != 1 || first.Proof.Consistency != nil || second.V != 2 || len(second.Proof.Consistency) == 0 {
		t.Errorf("versions %d and %d, proofs %x and %x", first.V, second.V, first.Proof.Consistency, second.Proof.Consistency)
	}
	if r := a.mustBeSound(t); len(r.Unchecked) != 0 {
		t.Errorf("not checked: %q", r.Unchecked)
	}
}

// TestAnchorThatIsThere: the anchor of a call that was faster counts if all of it
// verifies, its consistency proof too. Past any other the anchors continue.
func TestAnchorThatIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *audit.Proof)
		ok     bool
	}{
		"sound":         {func(*audit.Proof) {}, true},
		"without proof": {func(p *audit.Proof) { p.Consistency = nil }, false},
		"wrong proof":   {func(p *audit.Proof) { p.Consistency = [][]byte{make([]byte, 32)} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := anchoredByAnother(t, c.change)
			out := a.mustAnchor(t, anchor.Input{})
			st, err := a.world.Store().LoadAnchor(t.Context())
			if err != nil || out.Anchor < 2 || (st.Places == "") != c.ok {
				t.Errorf("%+v, anchors are in %q, %v", out, st.Places, err)
			}
			entries, err := a.world.Store().AuditEntries(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			var actors []string // of the records that name another place
			for _, e := range entries {
				if e.Record.Type == audit.EventGeneration {
					actors = append(actors, e.Record.Actor)
				}
			}
			if want := map[bool]string{true: "", false: "test"}[c.ok]; strings.Join(actors, " ") != want {
				t.Errorf("new places are recorded by %q, want %q", actors, want)
			}
			a.mustAnchor(t, anchor.Input{Canary: true})
			a.mustBeSound(t)
		})
	}
}

// anchoredByAnother is a deployment whose second anchor a call that was faster has stored,
// with a proof that was changed. The intent is open.
func anchoredByAnother(t *testing.T, change func(p *audit.Proof)) *anchorage {
	t.Helper()
	a := newAnchorage(t)
	a.mustAnchor(t, anchor.Input{Canary: true})
	a.arm(0, false)
	up := a.Log
	a.Log = refusing{}
	if _, err := a.AnchorChain(t.Context(), anchor.Input{Canary: true}); err == nil {
		t.Fatal("a log that answers nothing")
	}
	a.Log = up
	st, err := a.world.Store().LoadAnchor(t.Context())
	if err != nil || st.Intent == nil {
		t.Fatal(st, err)
	}
	p := a.log.Submit(t, *st.Intent)
	p.Consistency = a.log.Consistency(1, 2)
	a.log.Append([]byte("the entry of somebody else")) // so that this call's proof is another
	change(&p)
	b, err := audit.Anchor{V: 2, Signed: *st.Intent, Proof: p}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.world.Vault().PutAnchor(t.Context(), audit.AnchorKey("matter", 2), b); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestAnchorThatIsThereUnread: if the last anchor cannot be read, whether the anchor of a
// call that was faster is sound stays open. Nothing is concluded, and the next call continues.
func TestAnchorThatIsThereUnread(t *testing.T) {
	a := anchoredByAnother(t, func(*audit.Proof) {})
	before, err := a.world.Store().LoadAnchor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	a.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Vault.GetAnchor" {
			if reads++; reads == 2 { // the first is for the proof of this call
				return false, errors.New("the bucket is away")
			}
		}
		return true, nil
	})
	_, err = a.AnchorChain(t.Context(), anchor.Input{})
	if typed := asError(t, err); typed.Kind != journal.Transient || typed.Field != "audit bucket" {
		t.Errorf("%v, want Transient", err)
	}
	a.world.SetHook(nil)
	if st, err := a.world.Store().LoadAnchor(t.Context()); err != nil || st.Rev != before.Rev || st.Intent == nil || st.Places != "" || reads != 2 {
		t.Errorf("after %d reads the state is %+v, %v", reads, st, err)
	}
	if out := a.mustAnchor(t, anchor.Input{}); out.Anchor != 2 {
		t.Errorf("%+v", out)
	}
	a.mustBeSound(t)
}

// refusing is a log that answers nothing.
type refusing struct{ anchor.TransparencyLog }

// Submit implements [anchor.TransparencyLog].
func (refusing) Submit(context.Context, audit.Log, audit.Signed) (audit.Proof, error) {
	return audit.Proof{}, errors.New("connection refused")
}

// TestLastAnchorChanged: what a consistency proof begins at is the last anchor that the
// control table remembers, and nothing else.
func TestLastAnchorChanged(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, a *anchorage){
		"another statement": func(t *testing.T, a *anchorage) {
			t.Helper()
			st, err := a.world.Store().LoadAnchor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			st.Last.Digest = audit.AnchorGenesis("matter")
			if err := a.world.Store().SaveAnchor(t.Context(), st); err != nil {
				t.Fatal(err)
			}
		},
		"an unknown log key": func(t *testing.T, a *anchorage) {
			t.Helper()
			other := rekortest.New(t)
			a.Log = rekor.New(other.Client(nil))
			a.Trust.Logs = []audit.Log{other.Trust()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAnchorage(t)
			a.mustAnchor(t, anchor.Input{Canary: true})
			change(t, a)
			_, err := a.AnchorChain(t.Context(), anchor.Input{Canary: true})
			if typed := asError(t, err); typed.Kind != journal.AuditTampered || typed.Field != audit.AnchorKey("matter", 1) {
				t.Errorf("%v, want AuditTampered", err)
			}
		})
	}
}
