package awserr_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

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

// TestWrapRejected: only a client error that neither a retry nor time can fix is
// rejected.
func TestWrapRejected(t *testing.T) {
	for _, c := range []struct {
		code   string
		status int
		want   bool
	}{
		{"ValidationException", 400, true},
		{"LimitExceededException", 400, false},
		{"ThrottlingException", 400, false},
		{"ProvisionedThroughputExceededException", 400, false},
		{"ExpiredTokenException", 400, false},
		{"TransactionConflictException", 400, false},
		{"RequestTimeTooSkewed", 403, false},
		{"OperationAborted", 409, false},
		{"InternalServerError", 500, false},
	} {
		err := awserr.Wrap("op", &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: c.status}},
			Err:      &smithy.GenericAPIError{Code: c.code},
		})
		if errors.Is(err, rotation.ErrRejected) != c.want {
			t.Errorf("%s (%d): %v, want rejected %t", c.code, c.status, err, c.want)
		}
	}
}
