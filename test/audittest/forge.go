package audittest

import (
	"bytes"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/rekortest"
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

// redate puts a record with another date in the place of the last one.
func (w *World) redate(made time.Time) {
	w.T.Helper()
	e := w.nextAt(w.Entries[records-2].Head(), w.Entries[records-1].Record.Type, made)
	w.Bucket.Replace(rec(records), e.Bytes)
}

// backdate puts an anchor 3 in the place of the one that is there which was made when
// the clock of S3 shows stored, and dated before.
func (w *World) backdate(claimed, stored time.Time) {
	w.T.Helper()
	w.Bucket.Clock = stored
	w.forge(3, 9, func(s *audit.Statement) { s.Time = claimed.Format("2006-01-02T15:04:05.000Z") })
}

// anchorWith adds an anchor of a record that is signed by a key and in a log.
func (w *World) anchorWith(seq int64, key *rekortest.Key, log *rekortest.Log) {
	w.T.Helper()
	was := w.Log
	w.Log = log
	w.store(w.make(key.Statement(w.T, w.statement(w.Entries[seq-1].Head()))))
	w.Log = was
}

// fork makes the log's owner show anchor 3 another tree, which has grown from other
// entries than those that anchor 2 saw.
func (w *World) fork() {
	w.T.Helper()
	fork := w.Log.Fork()
	for range 5 {
		fork.Append([]byte("the entry of somebody else"))
	}
	w.edit(3, func(a *audit.Anchor) {
		w.Log = fork
		*a = w.make(a.Signed)
	})
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
