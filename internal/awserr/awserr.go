// Package awserr reads the errors of the AWS SDK by their codes, for the adapters.
package awserr

import (
	"errors"
	"fmt"

	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/rotation"
)

// Code is the error code that AWS answered with; "" if it did not answer.
func Code(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return ""
	}
	return api.ErrorCode()
}

// Wrap names the operation that failed. A denied call becomes
// [rotation.ErrDenied] too; everything else stays what it is, for the caller to
// classify.
func Wrap(op string, err error) error {
	switch Code(err) {
	// S3 answers a HEAD, which has no body, with the bare status; SNS and STS say
	// AuthorizationError.
	case "AccessDenied", "AccessDeniedException", "Forbidden", "AuthorizationError":
		return fmt.Errorf("%s: %w: %w", op, rotation.ErrDenied, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}
