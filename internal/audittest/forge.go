package audittest

import (
	"bytes"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/rekor/rekortest"
)

func newKey(w *World) *rekortest.Key { return rekortest.NewKey(w.T) }
func newLog(w *World) *rekortest.Log { return rekortest.New(w.T) }

// replaceOnce fails the test unless old occurs exactly once: a case that tampers
// with nothing proves nothing.
func replaceOnce(w *World, b []byte, old, replacement string) []byte {
	w.T.Helper()
	if n := bytes.Count(b, []byte(old)); n != 1 {
		w.T.Fatalf("%q occurs %d times in %s", old, n, b)
	}
	return bytes.Replace(b, []byte(old), []byte(replacement), 1)
}

// resign signs the statement of anchor n with another key and logs it.
func (w *World) resign(n int64, key *rekortest.Key) {
	w.T.Helper()
	w.edit(n, func(a *audit.Anchor) {
		*a = w.make(key.Statement(w.T, a.Signed.Statement))
	})
}

// forge puts another anchor n in the place of the one that is there, of a statement
// about record seq that is changed, signed and logged.
func (w *World) forge(n, seq int64, change func(*audit.Statement)) {
	w.T.Helper()
	w.Anchors = w.Anchors[:n-1]
	s := w.statement(w.Entries[seq-1].Head())
	change(&s)
	w.Bucket.Remove(anc(n))
	signed := w.Key.Statement(w.T, s)
	w.Bucket.Put(anc(n), w.encode(w.make(signed)), Lock(w.Bucket.Clock))
}

// rewriteAll makes another history with anchors of its own in the real log.
func (w *World) rewriteAll() {
	w.T.Helper()
	w.relink(1)
	old := len(w.Anchors)
	remembered := w.Anchors
	w.Anchors = nil
	for n := range old {
		s := w.statement(w.Entries[(n+1)*perAnchor-1].Head())
		signed := w.Key.Statement(w.T, s)
		a := w.make(signed)
		w.Anchors = append(w.Anchors, a)
		w.Bucket.Replace(anc(s.N), w.encode(a))
	}
	w.Anchors = remembered // what a verifier knows from before
}

// splitLog makes the log's owner show anchor 3 a tree of the size that anchor 2
// saw, with another root.
func (w *World) splitLog() {
	w.T.Helper()
	fork := w.Log.Fork()
	for range 2 { // as many as were logged before anchor 2
		fork.Append([]byte("the entry of somebody else"))
	}
	w.edit(3, func(a *audit.Anchor) { a.Proof = fork.Submit(w.T, a.Signed) })
}
