package awskms

import (
	"fmt"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// codes maps the error codes of KMS to the errors that the steps test for. Any other error
// is transient.
//
// KMSInvalidStateException is the answer for a key that is pending deletion, and for a key
// with imported material while the material is missing (KMS developer guide, "Key states
// of AWS KMS keys"). As with a disabled key, no call on it succeeds until a person acts.
var codes = map[string]error{
	"NotFoundException":          journal.ErrNoKey,
	"DisabledException":          journal.ErrKeyDisabled,
	"KMSInvalidStateException":   journal.ErrKeyDisabled,
	"InvalidCiphertextException": journal.ErrUnwrap,
	"IncorrectKeyException":      journal.ErrUnwrap,
}

// classifyError adds the operation and the key to an error, and the error that the steps
// test for. KMS's own messages contain keys and principals, never key material, blobs or
// encryption contexts.
func classifyError(op string, err error) error {
	if means, ok := codes[remote.ErrorCode(err)]; ok {
		return fmt.Errorf("kms %s: %w: %w", op, means, err)
	}
	return remote.WrapError("kms "+op, err)
}
