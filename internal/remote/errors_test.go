package remote_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/source"
)

func TestWrapError(t *testing.T) {
	for code, denied := range map[string]bool{
		"AccessDenied": true, "AccessDeniedException": true, "Forbidden": true, "AuthorizationError": true,
		"ThrottlingException": false, "NotFoundException": false, "": false,
	} {
		cause := error(&smithy.GenericAPIError{Code: code, Message: "m"})
		if code == "" {
			cause = errors.New("connection reset")
		}
		err := remote.WrapError("kms Decrypt", fmt.Errorf("operation error: %w", cause))
		if errors.Is(err, source.ErrDenied) != denied || !errors.Is(err, cause) || remote.ErrorCode(err) != code {
			t.Errorf("%q: %v", code, err)
		}
	}
}

// TestWrapErrorRejected: only a client error that neither a retry nor time can fix is
// rejected.
func TestWrapErrorRejected(t *testing.T) {
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
		err := remote.WrapError("op", &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: c.status}},
			Err:      &smithy.GenericAPIError{Code: c.code},
		})
		if errors.Is(err, source.ErrRejected) != c.want {
			t.Errorf("%s (%d): %v, want rejected %t", c.code, c.status, err, c.want)
		}
	}
}
