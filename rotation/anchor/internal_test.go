package anchor

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// TestCheckTail: what no anchor covers yet is read from the bucket, from the beginning of
// the chain if there is no anchor, and follows what the last anchor covers.
func TestCheckTail(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3")
	apart := chained(t, audit.Head{Hash: strings.Repeat("a", 64)}, 0, "b=1", "b=2", "b=3")
	for _, tc := range []struct {
		name   string
		bucket []audit.Entry
		last   Anchored
		goal   audit.Head
		ok     bool
	}{
		{"from the beginning", own, Anchored{}, own[2].Head(), true},
		{"from no beginning", apart, Anchored{}, apart[2].Head(), false},
		{"from the last anchor", own[1:], Anchored{N: 1, Head: own[0].Head()}, own[2].Head(), true},
		{"from another than the last anchor's", apart[1:], Anchored{N: 1, Head: own[0].Head()}, apart[2].Head(), false},
	} {
		var bucket shelf
		bucket.keep("", tc.bucket...)
		s := Anchor{Journal: &journal.Journal{AuditBucket: &bucket}}
		err := s.checkTail(t.Context(), audit.Line{Chain: line}, tc.goal, tc.last)
		if tc.ok && err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if !tc.ok {
			isError(t, tc.name, err, journal.AuditTampered, keyIn("", tc.bucket[0].Record.Seq))
		}
	}
}

// grown is a log that holds anchor 1, and the statement of anchor 2 as the intent.
type grown struct {
	log    *rekortest.Log
	bucket *shelf
	state  State
	made   audit.Anchor // of the intent, with its proofs
	forged []byte       // anchor 1 with another's signature
}

func newGrown(t *testing.T) grown {
	t.Helper()
	a := anchorist{t, rekortest.New(t), rekortest.NewKey(t)}
	head := audit.Head{Seq: 3, Hash: strings.Repeat("a", 64)}
	last, intent := a.signed(line, 1, head), a.signed(line, 2, head)
	bucket := &shelf{objects: map[string][]byte{audit.AnchorKey(line, 1): a.encoded(last)}}
	digest, err := last.Statement.Digest()
	if err != nil {
		t.Fatal(err)
	}
	a.log.Append([]byte("the entry of somebody else"))
	p := a.log.Submit(t, intent)
	p.Consistency = a.log.Consistency(1, 3)
	last.Signature = intent.Signature
	return grown{
		log: a.log, bucket: bucket, forged: a.encoded(last), made: audit.Anchor{V: audit.AnchorVersion, Signed: intent, Proof: p},
		state: State{Rev: 1, Last: Anchored{N: 1, Digest: digest, Head: head, Log: rekortest.Origin}, Intent: &intent},
	}
}

// TestIsSound: an anchor that another call has stored counts if a trusted log holds it and
// if it proves that the log's tree holds that of the last anchor. Only a first one, and the
// first in another log, has nothing to prove, and says so.
func TestIsSound(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(g *grown)
		want   bool
		kind   journal.Kind // of an error; "" none
		field  string
	}{
		{name: "sound", change: func(*grown) {}, want: true},
		{name: "in a log that is not trusted", change: func(g *grown) { g.log = rekortest.New(t) }},
		{name: "the first in a log that is not trusted", change: func(g *grown) { g.log, g.made.Proof.Consistency = rekortest.New(t), [][]byte{} }},
		{name: "of a release before consistency proofs", change: func(g *grown) { g.made.V, g.made.Proof.Consistency = 1, nil }, want: true},
		{name: "without a consistency proof", change: func(g *grown) { g.made.Proof.Consistency = nil }},
		{name: "with an empty one", change: func(g *grown) { g.made.Proof.Consistency = [][]byte{} }},
		{name: "with another's", change: func(g *grown) { g.made.Proof.Consistency = [][]byte{bytes.Repeat([]byte{1}, 32)} }},
		{name: "the first", change: func(g *grown) { g.state.Last = Anchored{}; g.made.Proof.Consistency = [][]byte{} }, want: true},
		{name: "the first, by its number", change: func(g *grown) { g.state.Last.N = 0; g.made.Proof.Consistency = [][]byte{} }, want: true},
		{name: "the first, with a proof", change: func(g *grown) { g.state.Last = Anchored{} }},
		{name: "the first, without a consistency proof", change: func(g *grown) { g.state.Last = Anchored{}; g.made.Proof.Consistency = nil }},
		{name: "the first in its log", change: func(g *grown) { g.state.Last.Log = "other"; g.made.Proof.Consistency = [][]byte{} }, want: true},
		{name: "the first in its log, with a proof", change: func(g *grown) { g.state.Last.Log = "other" }},
		{name: "the last cannot be read", change: func(g *grown) { g.bucket.broken = audit.AnchorKey(line, 1) }, kind: journal.Transient, field: "audit bucket"},
		{name: "the last is of another statement", change: func(g *grown) { g.state.Last.Digest = "other" }, kind: journal.AuditTampered, field: audit.AnchorKey(line, 1)},
		{name: "the last is none", change: func(g *grown) { g.bucket.objects[audit.AnchorKey(line, 1)] = []byte("{}") }, kind: journal.AuditTampered, field: audit.AnchorKey(line, 1)},
		{name: "the last has another's signature", change: func(g *grown) { g.bucket.objects[audit.AnchorKey(line, 1)] = g.forged }, kind: journal.AuditTampered, field: audit.AnchorKey(line, 1)},
	} {
		g := newGrown(t)
		tc.change(&g)
		s := Anchor{Objects: g.bucket, Trust: audit.Trust{Logs: []audit.Log{g.log.Trust()}}}
		got, err := s.isSound(t.Context(), g.made, g.state)
		if got != tc.want {
			t.Errorf("%s: %t, %v", tc.name, got, err)
		}
		if tc.kind != "" {
			isError(t, tc.name, err, tc.kind, tc.field)
		} else if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// TestNoConsistencyToProve: a chain without an anchor asks no log for a proof.
func TestNoConsistencyToProve(t *testing.T) {
	for name, last := range map[string]Anchored{"the first": {}, "the first, by its number": {Log: rekortest.Origin}, "the first in its log": {N: 1, Log: "other"}} {
		g := newGrown(t)
		g.state.Last = last
		trust := audit.Trust{Logs: []audit.Log{g.log.Trust()}}
		c, err := g.made.Proof.Verify(g.made.Signed, trust)
		if err != nil {
			t.Fatal(err)
		}
		s := Anchor{Objects: g.bucket, Trust: trust}
		if hashes, err := s.proveConsistency(t.Context(), trust.Logs[0], g.state, c); err != nil || hashes == nil || len(hashes) > 0 {
			t.Errorf("%s: %x, %v", name, hashes, err)
		}
	}
}

// TestForkIsAnIncident: what to do about a log that shows another tree is said.
func TestForkIsAnIncident(t *testing.T) {
	g := newGrown(t)
	trust := audit.Trust{Logs: []audit.Log{g.log.Trust()}}
	s := Anchor{Objects: g.bucket, Trust: trust}
	_, err := s.proveConsistency(t.Context(), trust.Logs[0], g.state, audit.Checkpoint{Origin: rekortest.Origin, Size: 1, Root: make([]byte, 32)})
	isError(t, "another root", err, journal.Unverified, trust.Logs[0].URL)
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Next.Do != journal.ReplaceLog {
		t.Error(err)
	}
}

// TestSameSigned: a signed statement is another if any part of it is.
func TestSameSigned(t *testing.T) {
	a := audit.Signed{Statement: audit.Statement{N: 1}, Key: []byte("k"), Signature: []byte("s")}
	if !sameSigned(a, a) {
		t.Error("it is not the same as itself")
	}
	for i, edit := range []func(*audit.Signed){
		func(s *audit.Signed) { s.Statement.N = 2 }, func(s *audit.Signed) { s.Key = nil }, func(s *audit.Signed) { s.Signature = nil },
	} {
		b := a
		if edit(&b); sameSigned(a, b) {
			t.Errorf("%d: they are the same", i)
		}
	}
}

// TestWithoutLitter: of a report without litter nothing of it is left.
func TestWithoutLitter(t *testing.T) {
	stray, tail := audit.Finding{Kind: audit.StrayObject}, audit.Finding{Kind: audit.TailTooOld}
	got := withoutLitter(audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray, tail, stray}, More: 4, Strays: 6})
	if d := cmp.Diff(audit.Report{Result: audit.Unproven, Findings: []audit.Finding{tail}}, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestLitterAlone: objects that are not of the chain, however many, are left out of the
// verdict; a finding of another kind, listed or not, is never left out with them.
func TestLitterAlone(t *testing.T) {
	stray, gap, old := audit.Finding{Kind: audit.StrayObject, Object: "notes\n.txt"}, audit.Finding{Kind: audit.MissingRecord}, audit.Finding{Kind: audit.TailTooOld}
	for name, tc := range map[string]struct {
		r    audit.Report
		want audit.Result
	}{
		"one":                  {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray}, Strays: 1}, audit.Green},
		"more than are listed": {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray}, More: 9, Strays: 10}, audit.Green},
		"one hides a gap":      {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray}, More: 9, Strays: 9}, audit.Tampered},
		"beside a gap":         {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray, gap}, Strays: 1}, audit.Tampered},
		"beside an old tail":   {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray, old}, Strays: 1}, audit.Unproven},
		"none":                 {audit.Report{Result: audit.Unproven, Findings: []audit.Finding{old}}, audit.Unproven},
	} {
		if got := withoutLitter(tc.r).Result; got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		if said := NameLitter(tc.r); (said == "") != (tc.r.Strays == 0) || strings.Contains(said, "\n") {
			t.Errorf("%s: %q", name, said)
		}
	}
}

// TestUntampered: what nothing speaks against is not a reason to keep an emergency open.
func TestUntampered(t *testing.T) {
	stray, gone := audit.Finding{Kind: audit.StrayObject}, audit.Finding{Kind: audit.MissingRecord}
	for i, tc := range []struct {
		report audit.Report
		want   bool
	}{
		{audit.Report{Result: audit.Green}, true},
		{audit.Report{Result: audit.Unproven}, true},
		{audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray}, Strays: 1}, true},
		{audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray, gone}, Strays: 1}, false},
		{audit.Report{Result: audit.Tampered, Findings: []audit.Finding{gone}}, false},
	} {
		if got := IsUntampered(tc.report); got != tc.want {
			t.Errorf("%d: %t", i, got)
		}
	}
}
