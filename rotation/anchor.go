package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Anchoring is what it takes to anchor the audit chain in a public log. Nothing
// that serves a rotation waits for it: a log that is down leaves a tail that no
// anchor covers, which verification calls unproven.
type Anchoring struct {
	Store  AnchorStore
	Vault  AnchorVault
	Signer AnchorSigner
	Log    TransparencyLog
	Ledger Ledger
	Bucket audit.Bucket // the whole bucket, for verification
	Trust  audit.Trust  // its logs; anchor keys beside the signer's own: earlier ones

	Retention time.Duration // least Object Lock of an object
	Heartbeat time.Duration // a quiet chain is anchored this often
	MaxTail   time.Duration // how long a record may wait for its anchor
	Deadline  time.Duration // of the canary that preflight anchors
}

// AnchorState is how far the chain is anchored, and the anchor under way.
type AnchorState struct {
	Rev    int64             // grows with every save; a save conditions on it
	Last   Anchored          // zero before the first anchor
	Places audit.Generations // where anchors are
	Intent *audit.Signed     // signed and about to be logged; nil: none
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

// AnchorStore keeps the state of anchoring in the control table.
type AnchorStore interface {
	// LoadAnchor returns the zero state if nothing was ever saved.
	LoadAnchor(ctx context.Context) (AnchorState, error)
	// SaveAnchor stores s with Rev+1 if the stored revision is s.Rev, else
	// [kek.ErrConflict].
	SaveAnchor(ctx context.Context, s AnchorState) error
}

// AnchorVault is the write-once bucket, as far as it holds anchors.
type AnchorVault interface {
	// PutAnchor stores an anchor under its key with compliance retention, if nothing
	// is there, and returns what is there then: the bytes of whoever came first.
	PutAnchor(ctx context.Context, key string, b []byte) ([]byte, error)
	// GetAnchor returns the stored bytes; [ErrNoRecord] if there are none.
	GetAnchor(ctx context.Context, key string) ([]byte, error)
}

// AnchorSigner is the anchor key: ECDSA on P-256.
type AnchorSigner interface {
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

// Ledger appends records that are no transition.
type Ledger interface {
	// Record appends ev to the outbox; an error leaves open whether it was.
	Record(ctx context.Context, ev audit.Event) error
}

// ErrLogRefused reports a log that does not take an upload, however often it is
// repeated.
var ErrLogRefused = errors.New("the log refuses the upload")

// Types of the records that anchoring makes.
const (
	EventHeartbeat = "anchor_heartbeat" // nothing happened, and that is anchored
	EventCanary    = "anchor_canary"    // preflight tries the whole way
)

// AnchorInput asks for an anchor of all that was recorded. Heartbeat anchors a
// quiet chain when its time has come, Canary in any case.
type AnchorInput struct {
	RotationID string `json:"rotation_id,omitempty"` // for the log line alone
	Heartbeat  bool   `json:"heartbeat,omitempty"`
	Canary     bool   `json:"canary,omitempty"`
}

// AnchorOutput names the anchor that covers the chain.
type AnchorOutput struct {
	Anchor   int64  `json:"anchor"` // 0: there was nothing to anchor
	Records  int64  `json:"records"`
	Digest   string `json:"digest"`
	Log      string `json:"log"`
	LogIndex int64  `json:"log_index"`
}

// Anchor states the head of the chain in a public log and keeps the proof in the
// bucket. It publishes, signs, stores what it signed as its intent, uploads,
// verifies the answer offline, stores the anchor, and notes it: in this order, so
// that after a crash anywhere the next call uploads the same statement again and
// the anchors stay one chain. Without [Anchoring] it does nothing.
func (s *Steps) Anchor(ctx context.Context, in AnchorInput) (AnchorOutput, error) {
	a := s.Anchoring
	if a == nil {
		return AnchorOutput{}, nil // a deployment without a log
	}
	at, goal, err := s.anchorGoal(ctx, in)
	if err != nil {
		return AnchorOutput{}, err
	}
	for range maxTries {
		st, err := a.Store.LoadAnchor(ctx)
		if err != nil {
			return AnchorOutput{}, unavailable("anchor state", err)
		}
		switch {
		case st.Intent != nil:
			err = s.fulfil(ctx, at.Chain, st)
		case st.Last.Head.Seq >= goal.Seq:
			return st.Last.output(), nil
		default:
			err = s.intend(ctx, at, goal, st)
		}
		if err != nil && !errors.Is(err, kek.ErrConflict) {
			return AnchorOutput{}, err
		}
	}
	return AnchorOutput{}, unavailable("anchor state", fmt.Errorf("still %w after %d tries", kek.ErrConflict, maxTries))
}

func (l Anchored) output() AnchorOutput {
	return AnchorOutput{Anchor: l.N, Records: l.Head.Seq, Digest: l.Digest, Log: l.Log, LogIndex: l.Index}
}

func notConfigured() error {
	return &Error{
		Kind: Misconfigured, Field: "MATTER_TRUST", Msg: "this deployment has no transparency log",
		Next: "set the stack's parameter TransparencyLogs, see docs/audit.md",
	}
}

// anchorGoal returns the head to anchor, which the bucket holds when it returns.
// Heartbeat and canary append a record first.
func (s *Steps) anchorGoal(ctx context.Context, in AnchorInput) (at audit.Line, goal audit.Head, err error) {
	if err := s.beat(ctx, in); err != nil {
		return at, goal, err
	}
	return s.published(ctx)
}

// beat records a heartbeat or a canary if it is time.
func (s *Steps) beat(ctx context.Context, in AnchorInput) error {
	if !in.Heartbeat && !in.Canary {
		return nil
	}
	_, head, err := s.Outbox.Head(ctx)
	if err != nil {
		return unavailable("audit head", err)
	}
	st, err := s.Anchoring.Store.LoadAnchor(ctx)
	if err != nil {
		return unavailable("anchor state", err)
	}
	event := EventHeartbeat
	quiet := head.Seq <= st.Last.Head.Seq && s.Now().Sub(st.Last.At) >= s.Anchoring.Heartbeat
	if in.Canary {
		event, quiet = EventCanary, true
	}
	if !quiet {
		return nil
	}
	err = s.Anchoring.Ledger.Record(ctx, audit.Event{
		ID: fmt.Sprintf("%s/%d", event, st.Last.N+1), Type: event, Step: "anchor", Actor: s.Actor,
		Body: map[string]string{"last_anchor": fmt.Sprint(st.Last.N)},
	})
	if err != nil {
		return unavailable("audit outbox", err)
	}
	return nil
}

// intend signs the statement of a head and stores it as the intent. What is not
// in the bucket, or does not follow what the last anchor covers, is not signed.
func (s *Steps) intend(ctx context.Context, at audit.Line, goal audit.Head, st AnchorState) error {
	if err := s.checkTail(ctx, at, goal, st.Last); err != nil {
		return err
	}
	prev := st.Last.Digest
	if st.Last.N == 0 {
		prev = audit.AnchorGenesis(at.Chain)
	}
	statement := audit.NewStatement(at.Chain, st.Last.N+1, prev, goal, s.Now())
	msg, err := statement.Message()
	if err != nil {
		return err
	}
	signed := audit.Signed{Statement: statement}
	if signed.Key, err = s.Anchoring.Signer.PublicKey(ctx); err != nil {
		return unavailable("anchor key", err)
	}
	if signed.Signature, err = s.Anchoring.Signer.Sign(ctx, msg); err != nil {
		return unavailable("anchor key", err)
	}
	if err := signed.Verify(); err != nil { // before it is public for ever
		return &Error{Kind: Internal, Field: "anchor key", Msg: "what it signed does not verify", Err: err}
	}
	st.Intent = &signed
	return s.saveAnchor(ctx, st)
}

func (s *Steps) saveAnchor(ctx context.Context, st AnchorState) error {
	if err := s.Anchoring.Store.SaveAnchor(ctx, st); err != nil {
		return unavailable("anchor state", err) // Anchor reads again after a conflict
	}
	return nil
}

// checkTail reads the records after the last anchor from the bucket, to the goal.
func (s *Steps) checkTail(ctx context.Context, at audit.Line, goal audit.Head, last Anchored) error {
	head := last.Head
	if last.N == 0 {
		head = audit.Genesis(at.Chain)
	}
	return s.follow(ctx, at, head, goal)
}

// fulfil brings the intent into the log, verifies the proof, stores the anchor and
// closes the intent.
func (s *Steps) fulfil(ctx context.Context, chain string, st AnchorState) error {
	a, signed := s.Anchoring, *st.Intent
	log, proof, err := s.submit(ctx, signed)
	if err != nil {
		return err
	}
	checkpoint, err := proof.Verify(signed, a.Trust)
	if err != nil {
		return &Error{
			Kind: Unverified, Field: log.URL, Msg: "the transparency log's answer does not verify", Err: err,
			Next: "compare its key and origin with the stack's parameter TransparencyLogs; the anchor stays open",
		}
	}
	if signed.Statement.V > 1 { // a release before made the intent
		if proof.Consistency, err = s.proveConsistency(ctx, log, st, checkpoint); err != nil {
			return err
		}
	}
	stored, err := s.storeAnchor(ctx, chain, st, audit.Anchor{V: signed.Statement.V, Signed: signed, Proof: proof})
	if err != nil {
		return err
	}
	if st.Last, err = anchored(stored); err != nil {
		return err
	}
	st.Intent = nil
	return s.saveAnchor(ctx, st)
}

// submit brings a statement into the log that became valid last. One that takes nothing, as
// a shard does that is frozen, is passed over for the one before.
func (s *Steps) submit(ctx context.Context, signed audit.Signed) (audit.Log, audit.Proof, error) {
	logs := s.Anchoring.Trust.Writable(s.Now())
	if len(logs) == 0 {
		return audit.Log{}, audit.Proof{}, notConfigured()
	}
	var refused []error
	for _, l := range logs {
		proof, err := s.Anchoring.Log.Submit(ctx, l, signed)
		if err == nil {
			return l, proof, nil
		}
		if !errors.Is(err, ErrLogRefused) {
			return l, proof, unavailable("transparency log "+l.URL, err)
		}
		refused = append(refused, err)
	}
	return logs[0], audit.Proof{}, &Error{
		Kind: Misconfigured, Field: logs[0].URL, Msg: "the transparency log does not take the anchor, which stays open", Err: errors.Join(refused...),
		Next: "see docs/audit.md: a log that is frozen has a successor, which the stack's parameter TransparencyLogs must name",
	}
}

// storeAnchor puts an anchor into the bucket. One that is there already is of a
// call that raced or crashed: it holds the same statement, with a proof of its
// own. Where another object is in the way, anchors go on in a new generation, which a
// record of the chain names first.
func (s *Steps) storeAnchor(ctx context.Context, chain string, st AnchorState, made audit.Anchor) (audit.Anchor, error) {
	b, err := made.Encode()
	if err != nil {
		return made, err
	}
	n := made.Signed.Statement.N
	key := st.Places.AnchorKeyIn(chain, n)
	there, err := s.Anchoring.Vault.PutAnchor(ctx, key, b)
	if err != nil {
		return made, unavailable("audit bucket", err)
	}
	if bytes.Equal(there, b) {
		return made, nil
	}
	stored, err := audit.ParseAnchor(there)
	if err == nil && sameSigned(stored.Signed, made.Signed) {
		sound, err := s.isSound(ctx, stored, st)
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
	ev.Actor = s.Actor
	s.pageGeneration(ctx, *taken)
	if err := s.Anchoring.Ledger.Record(ctx, ev); err != nil {
		return made, unavailable("audit outbox", err)
	}
	if err := s.publish(ctx); err != nil {
		return made, err
	}
	st.Places = st.Places.With(g)
	if err := s.saveAnchor(ctx, st); err != nil {
		return made, err
	}
	return made, kek.ErrConflict // what is stored has changed: read it, and store the anchor in its new place
}

func sameSigned(a, b audit.Signed) bool {
	return a.Statement == b.Statement && bytes.Equal(a.Signature, b.Signature) && bytes.Equal(a.Key, b.Key)
}

// anchored is how the control table remembers an anchor.
func anchored(a audit.Anchor) (Anchored, error) {
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
