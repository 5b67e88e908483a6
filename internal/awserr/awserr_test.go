package awserr_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

func TestWrap(t *testing.T) {
	for code, denied := range map[string]bool{
		"AccessDenied": true, "AccessDeniedException": true, "Forbidden": true, "AuthorizationError": true,
		"ThrottlingException": false, "NotFoundException": false, "": false,
	} {
		cause := error(&smithy.GenericAPIError{Code: code, Message: "m"})
		if code == "" {
			cause = errors.New("connection reset")
		}
		err := awserr.Wrap("kms Decrypt", fmt.Errorf("operation error: %w", cause))
		if errors.Is(err, rotation.ErrDenied) != denied || !errors.Is(err, cause) || awserr.Code(err) != code {
			t.Errorf("%q: %v", code, err)
		}
	}
}
