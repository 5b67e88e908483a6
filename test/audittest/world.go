package audittest

import (
	"fmt"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// Chain is the name of the chain that is forged.
const Chain = "matter"

// The chain has ten records, of which three anchors cover three each; the last
// waits.
const (
	records   = 10
	perAnchor = 3
	retention = 100 * 365 * day // S3 takes no lock that has ended
	day       = 24 * time.Hour
)

var start = time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)

// World is a bucket with a sound chain, the log that holds its anchors, and all
// keys: a forger may use any of them.
type World struct {
	T       testing.TB
	Bucket  *Bucket
	Log     *rekortest.Log
	Key     *rekortest.Key
	Entries []audit.Entry  // record i+1
	Anchors []audit.Anchor // anchor i+1
	Policy  audit.Policy   // of a verifier with nothing but the trust list
	Head    audit.Head     // of the control table

	line    audit.Generations // of records, after the first
	anchors audit.Generations // of anchors
	salt    string            // of the ids of generations
	whole   time.Time         // record 4 states that the chain is verified up to anchor 1, and whole at this time; zero: it does not
}

// New builds a sound world.
func New(tb testing.TB) *World {
	tb.Helper()
	return build(tb, time.Time{})
}

// NewStated builds a sound world in which record 4 states that the chain is verified up to
// anchor 1, record 3.
func NewStated(tb testing.TB) *World {
	tb.Helper()
	return build(tb, at(perAnchor))
}

// NewStatedAt is NewStated with another time of the whole verification.
func NewStatedAt(tb testing.TB, whole time.Time) *World {
	tb.Helper()
	return build(tb, whole)
}

func build(tb testing.TB, whole time.Time) *World {
	tb.Helper()
	w := &World{T: tb, Bucket: &Bucket{}, Log: rekortest.New(tb), Key: rekortest.NewKey(tb), salt: "salt", whole: whole}
	w.Log.Append([]byte("the entry of somebody else"))
	head := audit.Genesis(Chain)
	for seq := int64(1); seq <= records; seq++ {
		w.Bucket.Clock = at(seq)
		head = w.record(head, fmt.Sprintf("event %d", seq))
		if seq%perAnchor == 0 {
			w.anchor(w.statement(head))
		}
	}
	w.Head = head
	w.Bucket.Clock = at(records + 1)
	w.Policy = audit.Policy{
		Chain: Chain, Retention: retention, MaxTail: day, Now: at(records + 1),
		Trust: audit.Trust{
			Logs:       []audit.Log{w.Log.Trust()},
			AnchorKeys: []audit.PinnedKey{{Key: w.Key.DER, From: start.Add(-day)}},
		},
	}
	return w
}

// at is the time of a record, or of the anchor made after it.
func at(seq int64) time.Time { return start.Add(time.Duration(seq) * time.Minute) }

// Lock is what an object written at a time gets.
func Lock(written time.Time) audit.Lock {
	return audit.Lock{Mode: audit.Compliance, Until: written.Add(retention)}
}

func (w *World) next(head audit.Head, what string) audit.Entry {
	w.T.Helper()
	return w.nextAt(head, what, at(head.Seq+1))
}

func (w *World) nextAt(head audit.Head, what string, made time.Time) audit.Entry {
	w.T.Helper()
	body := map[string]string{"key": "value"}
	if !w.whole.IsZero() && head.Seq == perAnchor {
		audit.Start{
			Anchor: w.known(1)[0], Seq: perAnchor, Whole: audit.Whole{Seq: perAnchor, At: w.whole, By: "somebody"},
		}.State(body)
	}
	e, err := audit.Next(Chain, head, made, audit.Event{ID: "Q2/" + what, Type: what, Rotation: "Q2", Step: "step", Actor: "somebody", Body: body})
	if err != nil {
		w.T.Fatal(err)
	}
	return e
}

// record appends a record after head.
func (w *World) record(head audit.Head, what string) audit.Head {
	w.T.Helper()
	e := w.next(head, what)
	w.Entries = append(w.Entries, e)
	w.Bucket.Put(audit.ObjectKey(Chain, e.Record.Seq), e.Bytes, Lock(at(e.Record.Seq)))
	return e.Head()
}

// statement is the one that follows the last anchor.
func (w *World) statement(head audit.Head) audit.Statement {
	w.T.Helper()
	prev := audit.AnchorGenesis(Chain)
	n := int64(len(w.Anchors))
	if n > 0 {
		prev = w.digest(n)
	}
	return audit.NewStatement(Chain, n+1, prev, head, at(head.Seq))
}

func (w *World) digest(n int64) string {
	w.T.Helper()
	d, err := w.Anchors[n-1].Signed.Statement.Digest()
	if err != nil {
		w.T.Fatal(err)
	}
	return d
}

// known is how a verifier remembers anchor n.
func (w *World) known(n int64) []audit.Known {
	return []audit.Known{{N: n, Digest: w.digest(n)}}
}

// anchor signs a statement, logs it and stores the anchor.
func (w *World) anchor(s audit.Statement) {
	w.T.Helper()
	signed := w.Key.Statement(w.T, s)
	w.store(w.make(signed))
}

// make logs a signed statement and makes the anchor that comes after the last one.
func (w *World) make(signed audit.Signed) audit.Anchor {
	w.T.Helper()
	return w.Prove(signed, w.Log.Submit(w.T, signed))
}

// Prove makes the anchor of a proof, with the proof that the log has grown from the
// checkpoint of the anchor before.
func (w *World) Prove(signed audit.Signed, p audit.Proof) audit.Anchor {
	w.T.Helper()
	p.Consistency = [][]byte{}
	if n := signed.Statement.N; n > 1 && w.Anchors[n-2].Proof.Origin() == p.Origin() {
		p.Consistency = w.Log.Consistency(w.size(w.Anchors[n-2].Proof), w.size(p))
	}
	return audit.Anchor{V: signed.Statement.V, Signed: signed, Proof: p}
}

// size is that of the tree of a proof's checkpoint.
func (w *World) size(p audit.Proof) (n int64) {
	w.T.Helper()
	if _, err := fmt.Sscanf(p.Checkpoint, p.Origin()+"\n%d\n", &n); err != nil {
		w.T.Fatal(err)
	}
	return n
}

func (w *World) store(a audit.Anchor) {
	w.T.Helper()
	w.Anchors = append(w.Anchors, a)
	s := a.Signed.Statement
	w.Bucket.Put(w.anchors.AnchorKeyIn(Chain, s.N), w.encode(a), Lock(w.Bucket.Clock))
}

func (w *World) encode(a audit.Anchor) []byte {
	w.T.Helper()
	b, err := a.Encode()
	if err != nil {
		w.T.Fatal(err)
	}
	return b
}

// edit stores anchor n changed.
func (w *World) edit(n int64, change func(*audit.Anchor)) {
	w.T.Helper()
	a := w.Anchors[n-1]
	change(&a)
	w.Bucket.Replace(audit.AnchorKey(Chain, n), w.encode(a))
}

// relink rewrites record seq and links all that follow it again.
func (w *World) relink(seq int64) {
	w.T.Helper()
	head := audit.Genesis(Chain)
	if seq > 1 {
		head = w.Entries[seq-2].Head()
	}
	for n := seq; n <= records; n++ {
		what := w.Entries[n-1].Record.Type
		if n == seq {
			what = "nothing happened"
		}
		e := w.next(head, what)
		w.Entries[n-1], head = e, e.Head()
		w.Bucket.Replace(rec(n), e.Bytes)
	}
}

func rec(seq int64) string { return audit.ObjectKey(Chain, seq) }
func anc(n int64) string   { return audit.AnchorKey(Chain, n) }

// Generation lets the chain go on in a new generation from record from on, because of an
// object: carried records of the old head, then the one that begins it, then one more. The
// records after from-1 are forgotten. An anchor covers all, if anchored.
func (w *World) Generation(from int64, o audit.Taken, carried int, anchored bool) audit.Generation {
	w.T.Helper()
	before := w.line
	g := before.Next(from, o, w.salt)
	w.line = before.With(g)
	w.Entries = w.Entries[:from-1]
	w.Head = audit.Genesis(Chain)
	if from > 1 {
		w.Head = w.Entries[from-2].Head()
	}
	for i := range carried {
		w.goOn(w.next(w.Head, fmt.Sprintf("carried %d", i+1)))
	}
	w.Append(g.Event(audit.OfRecords, before, o))
	w.goOn(w.next(w.Head, "after"))
	if anchored {
		w.Anchor()
	}
	w.Policy.Now = at(max(records+10, w.Head.Seq))
	return g
}

// Append puts the record of an event into the last generation.
func (w *World) Append(ev audit.Event) audit.Entry {
	w.T.Helper()
	e, err := audit.Next(Chain, w.Head, at(w.Head.Seq+1), ev)
	if err != nil {
		w.T.Fatal(err)
	}
	w.Policy.Now = at(e.Record.Seq + 1)
	w.goOn(e)
	return e
}

// Anchor makes an anchor of all records.
func (w *World) Anchor() {
	w.T.Helper()
	w.anchor(w.statement(w.Head))
}

// AnchorGeneration lets the anchors go on in a new generation because of an object.
func (w *World) AnchorGeneration(o audit.Taken) audit.Generation {
	w.T.Helper()
	g := w.anchors.Next(int64(len(w.Anchors))+1, o, w.salt)
	w.Append(g.Event(audit.OfAnchors, w.anchors, o))
	w.anchors = w.anchors.With(g)
	return g
}

// Restore sets the control table back to when it had so many records and anchors and knew
// of no generation.
func (w *World) Restore(records, anchors int) {
	w.Entries, w.Anchors = w.Entries[:records], w.Anchors[:anchors]
	w.Head = w.Entries[records-1].Head()
	w.line, w.anchors, w.salt = "", "", "salt after a restore"
}

// goOn puts a record into the last generation.
func (w *World) goOn(e audit.Entry) {
	w.T.Helper()
	w.Entries, w.Head = append(w.Entries, e), e.Head()
	if made := at(e.Record.Seq); made.After(w.Bucket.Clock) {
		w.Bucket.Clock = made
	}
	w.Bucket.Put(w.Line().RecordKey(e.Record.Seq), e.Bytes, Lock(w.Bucket.Clock))
}

// Line is the chain and its generations, as the control table has them.
func (w *World) Line() audit.Line { return audit.Line{Chain: Chain, Generations: w.line} }

// Plant puts an object of somebody else at a key.
func (w *World) Plant(key, content string) audit.Taken {
	w.Bucket.Put(key, []byte(content), Lock(at(records+1)))
	return *audit.TakenBy(key, "", []byte(content))
}

// GenerationTwice is two generations that begin at one record, the second because of an
// object in the place of the first's first record, which it carries.
func (w *World) GenerationTwice(from int64, o, again audit.Taken) {
	w.T.Helper()
	var none audit.Generations
	first := none.Next(from, o, "salt")
	second := none.With(first).Next(from, again, "salt")
	w.line = none.With(first).With(second)
	for _, ev := range []audit.Event{first.Event(audit.OfRecords, none, o), second.Event(audit.OfRecords, none.With(first), again)} {
		e, err := audit.Next(Chain, w.Head, at(w.Head.Seq+1), ev)
		if err != nil {
			w.T.Fatal(err)
		}
		w.goOn(e)
	}
	w.goOn(w.next(w.Head, "after"))
	w.anchor(w.statement(w.Head))
	w.Policy.Now = at(records + 10)
}

// Know makes the control table know of one generation of records more.
func (w *World) Know(g audit.Generation) { w.line = w.line.With(g) }

// Forget makes the control table forget its generations.
func (w *World) Forget() { w.line = "" }
