// Package awserr reads the errors of the AWS SDK by their codes, for the adapters.
package awserr

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

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

// Wrap names the operation that failed. A denied call becomes [rotation.ErrDenied]
// too, and another request that AWS refuses whenever it is sent [rotation.ErrRejected];
// everything else stays what it is, for the caller to classify.
func Wrap(op string, err error) error {
	switch code := Code(err); {
	// S3 answers a HEAD, which has no body, with the bare status; SNS and STS say
	// AuthorizationError.
	case code == "AccessDenied" || code == "AccessDeniedException" || code == "Forbidden" || code == "AuthorizationError":
		return fmt.Errorf("%s: %w: %w", op, rotation.ErrDenied, err)
	case code != "" && rejected(err, code):
		return fmt.Errorf("%s: %w: %w", op, rotation.ErrRejected, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// passing are codes of client errors that pass: credentials are renewed, clocks are
// set, races end. DynamoDB answers TransactionConflictException with status 400 while a
// transaction on the item is under way (API reference, UpdateItem), and the SDK does
// not retry it.
var passing = map[string]bool{
	"ExpiredToken": true, "ExpiredTokenException": true, "RequestExpired": true, "RequestTimeTooSkewed": true,
	"InvalidSignatureException": true, "UnrecognizedClientException": true, "InvalidClientTokenId": true,
	"TransactionConflictException": true,
}

// rejected reports whether an answer says that the same request will never succeed:
// a client error by its status that the SDK would not retry either.
func rejected(err error, code string) bool {
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &resp) || passing[code] {
		return false
	}
	switch status := resp.HTTPStatusCode(); status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	default:
		return status >= 400 && status < 500 && retry.IsErrorRetryables(retry.DefaultRetryables).IsErrorRetryable(err) != aws.TrueTernary
	}
}
