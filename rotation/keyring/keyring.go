// Package keyring handles the KMS keys behind the KEKs: the ports to the key service, and the
// canary that a key must pass before rows depend on it.
package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Keyring joins the key service and the cipher of payloads.
type Keyring struct {
	Admin   Admin
	Wrapper Wrapper
	Cipher  Cipher
	Random  func([]byte)
}

// Key is what KMS says of a key.
type Key struct {
	ID      kek.ID
	ARN     string
	Enabled bool
	Usable  bool   // symmetric, ENCRYPT_DECRYPT, not pending deletion or import
	State   string // the KeyState of KMS, for messages
	Multi   bool   // multi-Region
}

// Use says who else uses a KMS key, and what a key that replaces it will not have.
type Use struct {
	Grants      []string  // one line each: grantee and operations, retiring principal if any
	Aliases     []string  // aliases that are not this project's own
	MultiRegion bool      // it is a multi-Region key
	Replicas    []string  // Regions of its replicas, for a multi-Region primary
	Policy      []string  // statements of its key policy that a new key does not have, by Sid or number
	LastUse     string    // operation of its last successful use; "" if KMS does not say
	LastUseAt   time.Time // zero if KMS does not say
	LastUseBy   string    // CloudTrail event id of it; "" if KMS does not say
}

// Admin creates and disables KEKs. Nothing here schedules a deletion.
type Admin interface {
	// Create makes a symmetric KMS key tagged with the rotation, the attempt and
	// the stack: in the account of old, which it follows, multi-Region if old is, and
	// with a key policy of its own. It has no idempotency token: the caller claims the
	// alias next.
	Create(ctx context.Context, rotationID string, attempt int, label string, old Key) (Key, error)
	// Use reads who else uses a key. An operation that this AWS does not have
	// (GetKeyLastUsage) leaves its fields empty; one that is denied is [journal.ErrDenied].
	Use(ctx context.Context, id kek.ID) (Use, error)
	// PolicyDifferences lists how the key policy of a key that Create has made differs from
	// the one that Create gives: each statement or action beyond it, each action that it
	// lacks. None means that they say the same.
	PolicyDifferences(ctx context.Context, id kek.ID) ([]string, error)
	// Claim gives the alias of (rotation, attempt) to id unless it has an owner, and returns
	// the owner's id. The alias decides between duplicate mints, because KMS gives it to one
	// key only. An empty id only asks; then the answer is "" if the alias has no owner.
	Claim(ctx context.Context, rotationID string, attempt int, id kek.ID) (kek.ID, error)
	// Describe returns [journal.ErrNoKey] if KMS does not know the key.
	Describe(ctx context.Context, id kek.ID) (Key, error)
	// Disable is idempotent.
	Disable(ctx context.Context, id kek.ID) error
	// Tagged lists the keys that are tagged with the rotation. The list is eventually
	// consistent.
	Tagged(ctx context.Context, rotationID string) ([]kek.ID, error)
}

// Wrapper wraps and unwraps DEKs in KMS. encctx is the encryption context.
// Errors: [journal.ErrKeyDisabled], [journal.ErrUnwrap] (wrong key, wrong context, not a
// ciphertext), or anything else as transient.
type Wrapper interface {
	GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error)
	Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) (dek []byte, err error)
	ReEncrypt(ctx context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error)
	// Identify unwraps without being told the key and returns which one it was: a
	// symmetric ciphertext of KMS names its key (KMS API reference, Decrypt, KeyId).
	Identify(ctx context.Context, wrapped []byte, encctx map[string]string) (id kek.ID, arn string, err error)
}

// Cipher seals and opens payloads under a plaintext DEK (32 bytes); encctx is
// bound as associated data.
type Cipher interface {
	Seal(dek, plaintext []byte, encctx map[string]string) ([]byte, error)
	Open(dek, ciphertext []byte, encctx map[string]string) ([]byte, error)
}

// CheckCanary seals a fresh known plaintext under id and opens it again. With corrupt, which
// drills set, the plaintext is changed in between, so that the check must fail.
func (k *Keyring) CheckCanary(ctx context.Context, id kek.ID, encctx map[string]string, corrupt bool) error {
	plain := make([]byte, 64)
	k.Random(plain)
	dek, wrapped, err := k.Wrapper.GenerateDataKey(ctx, id, encctx)
	if err != nil {
		return k.ExplainError(id, err)
	}
	defer clear(dek)
	sealed, err := k.Cipher.Seal(dek, plain, encctx)
	if err != nil {
		return &journal.Error{Kind: journal.CanaryFailed, Field: string(id), Msg: "sealing failed", Err: err}
	}
	got, err := k.openCanary(ctx, id, wrapped, sealed, encctx)
	if err != nil {
		return err
	}
	if corrupt && len(got) > 0 {
		got[0] ^= 1
	}
	if !bytes.Equal(got, plain) {
		return &journal.Error{Kind: journal.CanaryFailed, Field: string(id), Msg: "the known plaintext came back changed"}
	}
	wrong := map[string]string{"matter:purpose": "wrong context"}
	if _, err := k.Wrapper.Decrypt(ctx, id, wrapped, wrong); !errors.Is(err, journal.ErrUnwrap) {
		if err != nil {
			return k.ExplainError(id, err)
		}
		return &journal.Error{Kind: journal.CanaryFailed, Field: string(id), Msg: "a wrong encryption context was accepted"}
	}
	return nil
}

func (k *Keyring) openCanary(ctx context.Context, id kek.ID, wrapped, sealed []byte, encctx map[string]string) ([]byte, error) {
	dek, err := k.Wrapper.Decrypt(ctx, id, wrapped, encctx)
	if errors.Is(err, journal.ErrUnwrap) {
		return nil, &journal.Error{Kind: journal.CanaryFailed, Field: string(id), Msg: "the canary's data key does not unwrap", Err: err}
	}
	if err != nil {
		return nil, k.ExplainError(id, err)
	}
	defer clear(dek)
	plain, err := k.Cipher.Open(dek, sealed, encctx)
	if err != nil {
		return nil, &journal.Error{Kind: journal.CanaryFailed, Field: string(id), Msg: "the canary does not open", Err: err}
	}
	return plain, nil
}

// ExplainError distinguishes a disabled key from a service that did not answer. A typed
// error already names its key.
func (k *Keyring) ExplainError(id kek.ID, err error) error {
	var typed *journal.Error
	if !errors.As(err, &typed) && errors.Is(err, journal.ErrKeyDisabled) {
		return &journal.Error{
			Kind: journal.KeyUnusable, Field: string(id), Msg: "KMS says that the key is disabled", Err: err,
			Next: journal.Next{Say: "find out who disabled it (CloudTrail), enable it, then go on"},
		}
	}
	return journal.WrapUnavailable("KMS", err)
}

// Summarize returns the use of a key in one line.
func (u Use) Summarize() string {
	text := fmt.Sprintf("%d grants, %d aliases of others", len(u.Grants), len(u.Aliases))
	if len(u.Grants) > 0 {
		text += ": " + strings.Join(u.Grants, "; ")
	}
	switch u.LastUse {
	case "":
		text += ", last use not known to KMS"
	default:
		text += fmt.Sprintf(", last use %s at %s", u.LastUse, u.LastUseAt.UTC().Format(time.RFC3339))
	}
	return text
}

// DescribeUsable describes a KMS key that can wrap data keys.
func (k *Keyring) DescribeUsable(ctx context.Context, id kek.ID) (Key, error) {
	key, err := k.Admin.Describe(ctx, id)
	if errors.Is(err, journal.ErrNoKey) {
		return key, &journal.Error{
			Kind: journal.KeyUnusable, Field: "kek_id", Msg: fmt.Sprintf("KMS knows no key %q in this account and Region", id), Err: err,
			Next: journal.Next{Say: "give the id of an enabled symmetric KMS key of usage ENCRYPT_DECRYPT"},
		}
	}
	if err != nil {
		return key, journal.WrapUnavailable("KMS DescribeKey", err)
	}
	if !key.Enabled || !key.Usable {
		return key, &journal.Error{
			Kind: journal.KeyUnusable, Field: "kek_id", Msg: fmt.Sprintf("KMS key %s is in state %q", id, key.State),
			Next: journal.Next{Say: "choose an enabled symmetric KMS key of usage ENCRYPT_DECRYPT"},
		}
	}
	return key, nil
}
