// Package anchor brings the head of the audit chain into a public log, and verifies the
// chain and its anchors.
package anchor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Anchor is what it takes to anchor the audit chain in a public log. Nothing
// that serves a rotation waits for it: a log that is down leaves a tail that no
// anchor covers, which verification calls unproven.
type Anchor struct {
	Journal *journal.Journal

	Store    Store
	Objects  ObjectStore
	Signer   Signer
	Log      TransparencyLog
	Recorder journal.Recorder
	Bucket   audit.Bucket // the whole bucket, for verification
	Trust    audit.Trust  // its logs; anchor keys beside the signer's own: earlier ones

	Retention time.Duration // least Object Lock of an object
	Heartbeat time.Duration // a quiet chain is anchored this often
	MaxTail   time.Duration // how long a record may wait for its anchor
	Deadline  time.Duration // of the canary that preflight anchors
}

// State is how far the chain is anchored, and the anchor under way.
type State struct {
	Rev    int64             // grows with every save; a save conditions on it
	Last   Anchored          // zero before the first anchor
	Places audit.Generations // where anchors are
	Intent *audit.Signed     // signed and about to be logged; nil: none
}

// CheckStored says what is wrong with a state that was read; nil for nothing.
func (s State) CheckStored() error {
	if s.Rev < 1 || s.Last.N < 0 || s.Last.N > 0 && s.Last.Digest == "" {
		return fmt.Errorf("it says revision %d, anchor %d", s.Rev, s.Last.N)
	}
	return nil
}

// Anchored is an anchor that is in the bucket.
type Anchored struct {
	N      int64
	Digest string     // of its statement
	Head   audit.Head // what it covers
	Log    string     // origin of the log
	Index  int64      // of the entry in the log
	At     time.Time  // of the statement
}

// Store keeps the state of anchoring in the control table.
type Store interface {
	// LoadAnchor returns the zero state if nothing was ever saved.
	LoadAnchor(ctx context.Context) (State, error)
	// SaveAnchor stores s with Rev+1 if the stored revision is s.Rev, else
	// [kek.ErrConflict].
	SaveAnchor(ctx context.Context, s State) error
}

// ObjectStore is the write-once bucket, as far as it holds anchors.
type ObjectStore interface {
	// PutAnchor stores an anchor under its key with compliance retention, if nothing
	// is there, and returns what is there then: the bytes of whoever came first.
	PutAnchor(ctx context.Context, key string, b []byte) ([]byte, error)
	// GetAnchor returns the stored bytes; [journal.ErrNoRecord] if there are none.
	GetAnchor(ctx context.Context, key string) ([]byte, error)
}

// Signer is the anchor key: ECDSA on P-256.
type Signer interface {
	// PublicKey returns the public key, PKIX DER.
	PublicKey(ctx context.Context) ([]byte, error)
	// Sign signs the SHA-256 of msg.
	Sign(ctx context.Context, msg []byte) ([]byte, error)
}

// TransparencyLog brings statements into public logs.
type TransparencyLog interface {
	// Submit returns the proof that l holds s, whether it was there before or not. The
	// proof is the log's word, to be verified. No error means that s is not in the log.
	// [ErrLogRefused] says that repeating it will not help.
	Submit(ctx context.Context, l audit.Log, s audit.Signed) (audit.Proof, error)
	// Consistency returns the proof that the tree of a checkpoint of l holds that of an
	// earlier one, to be verified. [audit.ErrConsistency] says that l cannot prove it.
	Consistency(ctx context.Context, l audit.Log, earlier, c audit.Checkpoint) ([][]byte, error)
}

// ErrLogRefused reports a log that does not take an upload, however often it is
// repeated.
var ErrLogRefused = errors.New("the log refuses the upload")

// Types of the records that anchoring makes.
const (
	EventHeartbeat = "anchor_heartbeat" // nothing happened, and that is anchored
	EventCanary    = "anchor_canary"    // preflight tries the whole way
)

// Input asks for an anchor of all that was recorded. Heartbeat anchors a
// quiet chain when its time has come, Canary in any case.
type Input struct {
	RotationID string `json:"rotation_id,omitempty"` // for the log line alone
	Heartbeat  bool   `json:"heartbeat,omitempty"`
	Canary     bool   `json:"canary,omitempty"`
}

// Output names the anchor that covers the chain.
type Output struct {
	Anchor   int64  `json:"anchor"` // 0: there was nothing to anchor
	Records  int64  `json:"records"`
	Digest   string `json:"digest"`
	Log      string `json:"log"`
	LogIndex int64  `json:"log_index"`
}

// AnchorChain states the head of the chain in a public log and keeps the proof in the
// bucket. It publishes, signs, stores what it signed as its intent, uploads,
// verifies the answer offline, stores the anchor, and notes it: in this order, so
// that after a crash anywhere the next call uploads the same statement again and
// the anchors stay one chain. Without [Anchor] it does nothing. It counts whether it
// succeeded.
func (a *Anchor) AnchorChain(ctx context.Context, in Input) (Output, error) {
	if a == nil {
		return Output{}, nil // a deployment without a log
	}
	out, err := a.anchorHead(ctx, in)
	a.Journal.Measure(MetricGreen, err == nil)
	a.Journal.Measure(MetricRed, err != nil)
	return out, err
}

// The metrics of anchoring, which alarms of template.yaml watch: one alarm when it fails hour
// after hour, one when it is not even tried.
const (
	MetricGreen = "audit_anchor_green"
	MetricRed   = "audit_anchor_red"
)

// anchorHead is [Anchor.AnchorChain] without the count.
func (a *Anchor) anchorHead(ctx context.Context, in Input) (Output, error) {
	at, goal, err := a.anchorGoal(ctx, in)
	if err != nil {
		return Output{}, err
	}
	var out Output
	err = journal.RetryConflicts("anchor state", journal.ErrStillChanged, func() error {
		st, err := a.Store.LoadAnchor(ctx)
		if err != nil {
			return journal.WrapUnavailable("anchor state", err)
		}
		switch {
		case st.Intent != nil:
			err = a.fulfilIntent(ctx, at.Chain, st)
		case st.Last.Head.Seq >= goal.Seq:
			out = st.Last.output()
			return nil
		default:
			err = a.storeIntent(ctx, at, goal, st)
		}
		if err != nil {
			return err
		}
		return kek.ErrConflict // read again: what is stored says whether it is done
	})
	return out, err
}

func (l Anchored) output() Output {
	return Output{Anchor: l.N, Records: l.Head.Seq, Digest: l.Digest, Log: l.Log, LogIndex: l.Index}
}

func errNoLog() error {
	return &journal.Error{
		Kind: journal.Misconfigured, Field: "transparency log", Msg: "this deployment has none",
		Next: journal.Next{Do: journal.ConfigureLog},
	}
}

// anchorGoal returns the head to anchor, which the bucket holds when it returns.
// Heartbeat and canary append a record first.
func (a *Anchor) anchorGoal(ctx context.Context, in Input) (at audit.Line, goal audit.Head, err error) {
	if err := a.recordBeat(ctx, in); err != nil {
		return at, goal, err
	}
	return a.Journal.PublishHead(ctx)
}

// recordBeat records a heartbeat or a canary if it is time.
func (a *Anchor) recordBeat(ctx context.Context, in Input) error {
	if !in.Heartbeat && !in.Canary {
		return nil
	}
	_, head, err := a.Journal.Outbox.Head(ctx)
	if err != nil {
		return journal.WrapUnavailable("audit head", err)
	}
	st, err := a.Store.LoadAnchor(ctx)
	if err != nil {
		return journal.WrapUnavailable("anchor state", err)
	}
	event := EventHeartbeat
	quiet := head.Seq <= st.Last.Head.Seq && a.Journal.Now().Sub(st.Last.At) >= a.Heartbeat
	if in.Canary {
		event, quiet = EventCanary, true
	}
	if !quiet {
		return nil
	}
	err = a.Recorder.Record(ctx, audit.Event{
		ID: fmt.Sprintf("%s/%d", event, st.Last.N+1), Type: event, Step: "anchor", Actor: a.Journal.Actor,
		Body: map[string]string{"last_anchor": fmt.Sprint(st.Last.N)},
	})
	if err != nil {
		return journal.WrapUnavailable("audit outbox", err)
	}
	return nil
}

// storeIntent signs the statement of a head and stores it as the intent. What is not
// in the bucket, or does not follow what the last anchor covers, is not signed.
func (a *Anchor) storeIntent(ctx context.Context, at audit.Line, goal audit.Head, st State) error {
	if err := a.checkTail(ctx, at, goal, st.Last); err != nil {
		return err
	}
	prev := st.Last.Digest
	if st.Last.N == 0 {
		prev = audit.AnchorGenesis(at.Chain)
	}
	statement := audit.NewStatement(at.Chain, st.Last.N+1, prev, goal, a.Journal.Now())
	msg, err := statement.Message()
	if err != nil {
		return err
	}
	signed := audit.Signed{Statement: statement}
	if signed.Key, err = a.Signer.PublicKey(ctx); err != nil {
		return journal.WrapUnavailable("anchor key", err)
	}
	if signed.Signature, err = a.Signer.Sign(ctx, msg); err != nil {
		return journal.WrapUnavailable("anchor key", err)
	}
	if err := signed.Verify(); err != nil { // before it is public for ever
		return &journal.Error{Kind: journal.Internal, Field: "anchor key", Msg: "what it signed does not verify", Err: err}
	}
	st.Intent = &signed
	return a.saveAnchor(ctx, st)
}

func (a *Anchor) saveAnchor(ctx context.Context, st State) error {
	if err := a.Store.SaveAnchor(ctx, st); err != nil {
		return journal.WrapUnavailable("anchor state", err) // Anchor reads again after a conflict
	}
	return nil
}

// checkTail reads the records after the last anchor from the bucket, to the goal.
func (a *Anchor) checkTail(ctx context.Context, at audit.Line, goal audit.Head, last Anchored) error {
	head := last.Head
	if last.N == 0 {
		head = audit.Genesis(at.Chain)
	}
	return a.Journal.FollowChain(ctx, at, head, goal)
}

// fulfilIntent brings the intent into the log, verifies the proof, stores the anchor and
// closes the intent.
func (a *Anchor) fulfilIntent(ctx context.Context, chain string, st State) error {
	signed := *st.Intent
	log, proof, err := a.submitStatement(ctx, signed)
	if err != nil {
		return err
	}
	checkpoint, err := proof.Verify(signed, a.Trust)
	if err != nil {
		return &journal.Error{
			Kind: journal.Unverified, Field: log.URL, Msg: "the transparency log's answer does not verify", Err: err,
			Next: journal.Next{Do: journal.CompareLogKey},
		}
	}
	if signed.Statement.V > 1 { // a release before made the intent
		if proof.Consistency, err = a.proveConsistency(ctx, log, st, checkpoint); err != nil {
			return err
		}
	}
	stored, err := a.storeAnchor(ctx, chain, st, audit.Anchor{V: signed.Statement.V, Signed: signed, Proof: proof})
	if err != nil {
		return err
	}
	if st.Last, err = SummarizeAnchor(stored); err != nil {
		return err
	}
	st.Intent = nil
	return a.saveAnchor(ctx, st)
}

// submitStatement brings a statement into the log that became valid last. One that takes nothing, as
// a shard does that is frozen, is passed over for the one before.
func (a *Anchor) submitStatement(ctx context.Context, signed audit.Signed) (audit.Log, audit.Proof, error) {
	logs := a.Trust.Writable(a.Journal.Now())
	if len(logs) == 0 {
		return audit.Log{}, audit.Proof{}, errNoLog()
	}
	var refused []error
	for _, l := range logs {
		proof, err := a.Log.Submit(ctx, l, signed)
		if err == nil {
			return l, proof, nil
		}
		if !errors.Is(err, ErrLogRefused) {
			return l, proof, journal.WrapUnavailable("transparency log "+l.URL, err)
		}
		refused = append(refused, err)
	}
	return logs[0], audit.Proof{}, &journal.Error{
		Kind: journal.Misconfigured, Field: logs[0].URL, Msg: "the transparency log does not take the anchor, which stays open", Err: errors.Join(refused...),
		Next: journal.Next{Do: journal.NameSuccessor},
	}
}

// storeAnchor puts an anchor into the bucket. One that is there already is of a
// call that raced or crashed: it holds the same statement, with a proof of its
// own. Where another object is in the way, anchors go on in a new generation, which a
// record of the chain names first.
func (a *Anchor) storeAnchor(ctx context.Context, chain string, st State, made audit.Anchor) (audit.Anchor, error) {
	b, err := made.Encode()
	if err != nil {
		return made, err
	}
	n := made.Signed.Statement.N
	key := st.Places.AnchorKeyIn(chain, n)
	there, err := a.Objects.PutAnchor(ctx, key, b)
	if err != nil {
		return made, journal.WrapUnavailable("audit bucket", err)
	}
	if bytes.Equal(there, b) {
		return made, nil
	}
	stored, err := audit.ParseAnchor(there)
	if err == nil && sameSigned(stored.Signed, made.Signed) {
		sound, err := a.isSound(ctx, stored, st)
		if err != nil {
			return made, err
		}
		if sound {
			return stored, nil
		}
	}
	taken := audit.TakenBy(key, "", there)
	g := st.Places.Next(n, *taken, string(made.Signed.Signature))
	ev := g.Event(audit.OfAnchors, st.Places, *taken)
	ev.Actor = a.Journal.Actor
	a.Journal.PageGeneration(ctx, *taken)
	if err := a.Recorder.Record(ctx, ev); err != nil {
		return made, journal.WrapUnavailable("audit outbox", err)
	}
	if err := a.Journal.Publish(ctx); err != nil {
		return made, err
	}
	st.Places = st.Places.With(g)
	if err := a.saveAnchor(ctx, st); err != nil {
		return made, err
	}
	return made, kek.ErrConflict // what is stored has changed: read it, and store the anchor in its new place
}

func sameSigned(a, b audit.Signed) bool {
	return a.Statement == b.Statement && bytes.Equal(a.Signature, b.Signature) && bytes.Equal(a.Key, b.Key)
}

// SummarizeAnchor is how the control table remembers an anchor.
func SummarizeAnchor(a audit.Anchor) (Anchored, error) {
	st := a.Signed.Statement
	digest, err := st.Digest()
	if err != nil {
		return Anchored{}, err
	}
	at, err := time.Parse(time.RFC3339Nano, st.Time)
	if err != nil {
		return Anchored{}, fmt.Errorf("time of anchor %d: %w", st.N, err)
	}
	return Anchored{
		N: st.N, Digest: digest, Head: audit.Head{Seq: st.Seq, Hash: st.Head},
		Log: a.Proof.Origin(), Index: a.Proof.Index, At: at,
	}, nil
}
