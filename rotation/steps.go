package rotation

import (
	"errors"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// Config holds the parameters of a deployment, without the rules of its gates.
type Config struct {
	DrainMaxWait time.Duration // how long leases may outlive the switch
	DrainPoll    time.Duration // longest pause between two looks at the leases
	DeleteHold   time.Duration // how long a retired KEK must not be deleted
	Segments     int           // scan segments per table, 1 to MaxSegments
	Concurrency  int           // segments that a map of the state machine works on at once
	FenceShards  int           // fence items per KEK, 1 to 20
	MaxMints     int           // mint attempts of an emergency
	CanaryRounds int           // known-plaintext roundtrips
	KeySettle    time.Duration // age of a new KEK before the pointer may name it
	Deep         bool          // confirm and verify unwrap every distinct DEK, not a sample
}

// Steps runs the steps of rotations. It keeps no state between calls: everything that a step
// knows it has just read. Gates and Anchor have the same Journal.
type Steps struct {
	Config  Config
	Journal *journal.Journal
	Gates   gates.Gates
	Anchor  *anchor.Anchor // nil: the audit chain is in no public log
	Keys    keyring.Keyring

	Machine estimate.Machine  // what an execution costs; the zero value bounds nothing
	AtBest  estimate.Settings // the most that the deployment may take, for whether a rotation can end

	Pace   Pace    // how much of a pass one process does at once
	Memory *Memory // what data keys were rewrapped to; nil: each call has its own

	OpenSource  func(kek.Source) (source.Driver, error) // the driver of a registered source
	Drainage    Drainage
	Checkpoints Checkpoints
	Archive     Archive // nil: what rotations leave in the control table stays there
}

const day = 24 * time.Hour

// errTooEarly refuses a step that is called before its phase. Such a call has skipped its
// checks, so it must fail even if the phase becomes right before it writes.
func errTooEarly(r kek.Rotation, to kek.Phase) error {
	return journal.ExplainRefusal(&kek.IllegalTransition{What: "rotation " + r.ID, From: string(r.Phase), To: string(to)})
}

// fieldCreate is the Field of errors of CreateKey, see retryWhileKeyIsYoung.
const fieldCreate = "KMS CreateKey"

// tagDelay is how long a key counts as young: twice the five minutes within which, as AWS
// documents, a tag of a KMS key affects authorization (KMS developer guide, "Authorization
// for tag changes").
const tagDelay = 10 * time.Minute

// settleTime returns how much longer the pointer must not name a KEK that was made at a
// moment. The applications' permissions on a KEK are conditional on its tag, which may take
// five minutes to affect authorization (KMS developer guide, "Authorization for tag
// changes"). Before that, their writes would be denied.
func (s *Steps) settleTime(made time.Time) time.Duration {
	return max(0, s.Config.KeySettle-s.Journal.Now().Sub(made))
}

// isKeyYoung reports whether some hosts of KMS may not know a key yet that was made at a
// moment or later, or may not know its tag, on which every permission is conditional. Each
// host learns of both on its own, so a call may be refused after another one succeeded.
func (s *Steps) isKeyYoung(made time.Time) bool { return s.Journal.Now().Sub(made) < tagDelay }

// retryWhileKeyIsYoung turns a denial into [journal.Transient], which is retried, while the
// key that was made at a moment is young. A denial of CreateKey stays what it is: creating a
// key depends on no key's tag.
func (s *Steps) retryWhileKeyIsYoung(made time.Time, err error) error {
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.AccessDenied || typed.Field == fieldCreate || !s.isKeyYoung(made) {
		return err
	}
	return &journal.Error{
		Kind: journal.Transient, Field: typed.Field, Msg: "denied, perhaps because the tag of so young a key is not known everywhere yet", Err: typed.Err,
		Next: typed.Next,
	}
}
