package audit_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// copyOfV1 opens the copy of a chain with anchors of version 1, which a release before
// consistency proofs made.
func copyOfV1(t *testing.T) (*audit.Dir, audit.Policy) {
	t.Helper()
	b, err := os.ReadFile("testdata/chain-v1/trust.json")
	if err != nil {
		t.Fatal(err)
	}
	p := audittest.New(t).Policy
	if p.Trust, err = audit.ParseTrust(b); err != nil {
		t.Fatal(err)
	}
	d, err := audit.OpenDir(os.DirFS("testdata/chain-v1/copy"))
	if err != nil {
		t.Fatal(err)
	}
	return d, p
}

// unprovenPairs are the lines of a report about consistency that was not checked.
func unprovenPairs(r audit.Report) (out []string) {
	for _, u := range r.Unchecked {
		if pair, ok := strings.CutPrefix(u, "consistency between the checkpoints of anchors "); ok {
			out = append(out, pair)
		}
	}
	return out
}

const noProof = ": they hold no proof, which anchors did not before version 2"

// TestVersion1: a chain of before still verifies, and the report says what its anchors do
// not show.
func TestVersion1(t *testing.T) {
	d, p := copyOfV1(t)
	r := verify(t, d, p)
	if r.Result != audit.Green || r.Anchors != 3 || r.Anchored != 9 || !slices.Equal(unprovenPairs(r), []string{"1 to 3" + noProof}) {
		t.Errorf("%s %v, unchecked %q", r, r.Findings, r.Unchecked)
	}
}

// world1 is a world whose anchors 1 to n are of version 1.
func world1(t *testing.T, n int) *audittest.World {
	t.Helper()
	w := audittest.New(t)
	made := w.Anchors
	w.Anchors = nil
	for i, a := range made {
		s := a.Signed.Statement
		if i > 0 {
			s.Prev = audittest.Known(t, w.Anchors[i-1]).Digest
		}
		if i < n {
			s.V = 1
		}
		signed := w.Key.Statement(t, s)
		again := w.Prove(signed, w.Log.Submit(t, signed))
		if i < n {
			again.Proof.Consistency = nil
		}
		w.Anchors = append(w.Anchors, again)
		replaceAnchor(t, w, int64(i)+1, again)
	}
	return w
}

func replaceAnchor(t *testing.T, w *audittest.World, n int64, a audit.Anchor) {
	t.Helper()
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.Bucket.Replace(anchor(n), b)
}

// TestUnproven: what was not checked is named, pair by pair, and nothing else is.
func TestUnproven(t *testing.T) {
	const logs = `: they are in two logs, "rekor.test" and "successor.test"`
	for name, c := range map[string]struct {
		world  func(t *testing.T) *audittest.World
		want   []string
		result audit.Result
	}{
		"none":             {func(t *testing.T) *audittest.World { t.Helper(); return world1(t, 0) }, nil, audit.Green},
		"the first alone":  {func(t *testing.T) *audittest.World { t.Helper(); return world1(t, 1) }, nil, audit.Green},
		"two of version 1": {func(t *testing.T) *audittest.World { t.Helper(); return world1(t, 2) }, []string{"1 and 2" + noProof}, audit.Green},
		"all of version 1": {func(t *testing.T) *audittest.World { t.Helper(); return world1(t, 3) }, []string{"1 to 3" + noProof}, audit.Green},
		"two reasons": {func(t *testing.T) *audittest.World {
			t.Helper()
			w := world1(t, 3)
			successor := rekortest.Named(t, "successor.test")
			w.Policy.Trust.Logs = append(w.Policy.Trust.Logs, successor.Trust())
			a := w.Anchors[2]
			a.Proof = successor.Submit(t, a.Signed)
			replaceAnchor(t, w, 3, a)
			return w
		}, []string{"1 and 2" + noProof, "2 and 3" + logs}, audit.Green},
		"one that does not verify":     {withBroken(2), []string{"2 and 3: the checkpoint of anchor 2 does not verify"}, audit.Tampered},
		"the first does not verify":    {withBroken(1), []string{"1 and 2: the checkpoint of anchor 1 does not verify"}, audit.Tampered},
		"a wrong proof":                {withoutProof(2, [][]byte{make([]byte, 32)}), []string{"2 and 3: the checkpoint of anchor 2 does not verify"}, audit.Tampered},
		"no proof":                     {withoutProof(2, nil), []string{"2 and 3: the checkpoint of anchor 2 does not verify"}, audit.Tampered},
		"a proof of the first":         {withoutProof(1, [][]byte{make([]byte, 32)}), []string{"1 and 2: the checkpoint of anchor 1 does not verify"}, audit.Tampered},
		"the last is in another log":   {inSuccessor(3, [][]byte{}), []string{"2 and 3" + logs}, audit.Green},
		"with a proof between logs":    {inSuccessor(3, [][]byte{make([]byte, 32)}), nil, audit.Tampered},
		"an anchor is gone":            {withoutAnchor, []string{"2 and 3: the checkpoint of anchor 2 does not verify"}, audit.Tampered},
		"the middle is in another log": {inSuccessor(2, [][]byte{}), []string{"1 and 2" + logs}, audit.Tampered},
	} {
		t.Run(name, func(t *testing.T) {
			w := c.world(t)
			r := verify(t, w.Bucket, w.Policy)
			if !slices.Equal(unprovenPairs(r), c.want) || r.Result != c.result {
				t.Errorf("%s, not checked %q, want %q: %v", r, unprovenPairs(r), c.want, r.Findings)
			}
		})
	}
}

// withBroken has an anchor whose checkpoint is not signed by the log.
func withBroken(n int64) func(t *testing.T) *audittest.World {
	return func(t *testing.T) *audittest.World {
		t.Helper()
		w := audittest.New(t)
		a := w.Anchors[n-1]
		a.Proof.Checkpoint = a.Proof.Checkpoint[:len(a.Proof.Checkpoint)-8] + "\n"
		replaceAnchor(t, w, n, a)
		return w
	}
}

func withoutProof(n int64, instead [][]byte) func(t *testing.T) *audittest.World {
	return func(t *testing.T) *audittest.World {
		t.Helper()
		w := audittest.New(t)
		a := w.Anchors[n-1]
		a.Proof.Consistency = instead
		replaceAnchor(t, w, n, a)
		return w
	}
}

func withoutAnchor(t *testing.T) *audittest.World {
	t.Helper()
	w := audittest.New(t)
	w.Bucket.Remove(anchor(2))
	return w
}

// inSuccessor has an anchor in another log.
func inSuccessor(n int64, consistency [][]byte) func(t *testing.T) *audittest.World {
	return func(t *testing.T) *audittest.World {
		t.Helper()
		w := audittest.New(t)
		successor := rekortest.Named(t, "successor.test")
		w.Policy.Trust.Logs = append(w.Policy.Trust.Logs, successor.Trust())
		a := w.Prove(w.Anchors[n-1].Signed, successor.Submit(t, w.Anchors[n-1].Signed))
		a.Proof.Consistency = consistency
		replaceAnchor(t, w, n, a)
		return w
	}
}

// TestSplitAtLaterSize: two trees of one size are one finding, whatever their proofs say.
func TestSplitAtLaterSize(t *testing.T) {
	w := audittest.New(t)
	w.Log.Append([]byte("the entry of somebody else"))
	second := w.Anchors[1]
	replaceAnchor(t, w, 2, w.Prove(second.Signed, w.Log.Prove(second.Proof.Index))) // in a tree of five
	fork := w.Log.Fork()
	for range 4 {
		fork.Append([]byte("the entry of somebody else"))
	}
	third := w.Anchors[2]
	third.Proof = fork.Submit(t, third.Signed)
	third.Proof.Consistency = [][]byte{}
	replaceAnchor(t, w, 3, third)
	r := verify(t, w.Bucket, w.Policy)
	if len(r.Findings) != 1 || r.Findings[0].Kind != audit.SplitLog || r.Findings[0].Object != anchor(3) {
		t.Errorf("%v", r.Findings)
	}
}

// TestVersion1AfterVersion2: an anchor without a proof is one of before only if none of
// version 2 came before it.
func TestVersion1AfterVersion2(t *testing.T) {
	w := world1(t, 1)
	s := w.Anchors[2].Signed.Statement
	s.V = 1
	signed := w.Key.Statement(t, s)
	replaceAnchor(t, w, 3, audit.Anchor{V: 1, Signed: signed, Proof: w.Log.Submit(t, signed)})
	r := verify(t, w.Bucket, w.Policy)
	if len(r.Findings) != 1 || r.Findings[0].Kind != audit.MissingConsistency || r.Findings[0].Object != anchor(3) {
		t.Errorf("%v", r.Findings)
	}
}

// TestVerifyConsistency: trees of every size against all before them, in both directions.
func TestVerifyConsistency(t *testing.T) {
	const most = 20
	log, fork := rekortest.New(t), rekortest.New(t)
	fork.Append([]byte("another first entry"))
	trees, forks := checkpoints(t, log, most), checkpoints(t, fork, most)
	for n := 1; n <= most; n++ {
		for m := 1; m <= n; m++ {
			proof := log.Consistency(int64(m), int64(n))
			if err := trees[n].VerifyConsistency(trees[m], proof); err != nil {
				t.Errorf("%d to %d: %v", m, n, err)
			}
			if err := trees[n].VerifyConsistency(forks[m], proof); !errors.Is(err, audit.ErrConsistency) {
				t.Errorf("%d to %d: the fork is a tree before: %v", m, n, err)
			}
			if err := forks[n].VerifyConsistency(trees[m], proof); !errors.Is(err, audit.ErrConsistency) {
				t.Errorf("%d to %d: the fork has grown from it: %v", m, n, err)
			}
			if m < n {
				if err := trees[m].VerifyConsistency(trees[n], proof); !errors.Is(err, audit.ErrConsistency) {
					t.Errorf("%d to %d: it has shrunk: %v", n, m, err)
				}
			}
			for i := range proof {
				for what, other := range map[string][][]byte{
					"without a hash":    slices.Delete(slices.Clone(proof), i, i+1),
					"with a hash more":  slices.Insert(slices.Clone(proof), i, proof[i]),
					"with another hash": slices.Replace(slices.Clone(proof), i, i+1, make([]byte, 32)),
				} {
					if err := trees[n].VerifyConsistency(trees[m], other); !errors.Is(err, audit.ErrConsistency) {
						t.Errorf("%d to %d: a proof %s is taken: %v", m, n, what, err)
					}
				}
			}
		}
	}
	other := trees[3]
	other.Origin = "other.test"
	if err := trees[3].VerifyConsistency(other, nil); !errors.Is(err, audit.ErrConsistency) || !strings.Contains(err.Error(), `"other.test" and "rekor.test"`) {
		t.Errorf("two logs: %v", err)
	}
	if err := trees[3].VerifyConsistency(trees[2], nil); err == nil || !strings.Contains(err.Error(), "sizes 2 and 3") {
		t.Errorf("no proof: %v", err)
	}
}

// checkpoints are those of a log while it grows to a size; that of size n at n.
func checkpoints(tb testing.TB, l *rekortest.Log, size int) []audit.Checkpoint {
	tb.Helper()
	out := make([]audit.Checkpoint, size+1)
	for n := len(l.Entries()); n <= size; n++ {
		if n > 0 {
			c, err := l.Trust().OpenCheckpoint(l.Prove(0).Checkpoint)
			if err != nil {
				tb.Fatal(err)
			}
			out[n] = c
		}
		l.Append([]byte{byte(n)})
	}
	return out
}
