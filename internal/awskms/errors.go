package awskms

import (
	"fmt"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

// codes maps the refusals of KMS to what the steps branch on. Anything else stays
// what it is: worth another try.
//
// KMSInvalidStateException is the answer for a key that is pending deletion; for
// one of another origin than KMS also while its material is missing. Either way no
// call on the key succeeds until a person acts, as with a disabled one.
var codes = map[string]error{
	"NotFoundException":          rotation.ErrNoKey,
	"DisabledException":          rotation.ErrKeyDisabled,
	"KMSInvalidStateException":   rotation.ErrKeyDisabled,
	"InvalidCiphertextException": rotation.ErrUnwrap,
	"IncorrectKeyException":      rotation.ErrUnwrap,
}

// wrap names the operation and the key, and says what an error means to the steps.
// KMS's own errors name keys and principals, never material, blobs or contexts.
func wrap(op string, err error) error {
	if means, ok := codes[awserr.Code(err)]; ok {
		return fmt.Errorf("kms %s: %w: %w", op, means, err)
	}
	return awserr.Wrap("kms "+op, err)
}
