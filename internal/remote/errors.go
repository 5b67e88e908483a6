// Package remote is what every adapter does around a call to a service: it names the
// error that came back and waits between tries.
//
// Invariant: no error is ever made milder. An error that is not known to be a denial or a
// final refusal stays as it is, so that a caller treats it as transient and asks again.
package remote

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/matter-ops/kms-rotation/source"
)

// ErrorCode returns the error code of an answer from AWS, such as "AccessDenied"; "" if
// AWS did not answer.
func ErrorCode(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return ""
	}
	return api.ErrorCode()
}

// WrapError adds the name of the failed operation to an error. A denied call also becomes
// [source.ErrDenied], and a request that AWS would refuse at any time also becomes
// [source.ErrRejected]. Any other error keeps its kind, for the caller to classify.
func WrapError(op string, err error) error {
	switch code := ErrorCode(err); {
	// S3 answers a HEAD, which has no body, with the bare status; SNS and STS say
	// AuthorizationError.
	case code == "AccessDenied" || code == "AccessDeniedException" || code == "Forbidden" || code == "AuthorizationError":
		return fmt.Errorf("%s: %w: %w", op, source.ErrDenied, err)
	case code != "" && isFinalRefusal(err, code):
		return fmt.Errorf("%s: %w: %w", op, source.ErrRejected, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// transientCodes are codes of client errors (status 4xx) that pass with time: credentials
// are renewed, clocks are set, races end. DynamoDB answers TransactionConflictException
// with status 400 while a transaction on the item is under way (API reference,
// UpdateItem), and the SDK does not retry it.
var transientCodes = map[string]bool{
	"ExpiredToken": true, "ExpiredTokenException": true, "RequestExpired": true, "RequestTimeTooSkewed": true,
	"InvalidSignatureException": true, "UnrecognizedClientException": true, "InvalidClientTokenId": true,
	"TransactionConflictException": true,
}

// isFinalRefusal reports whether the same request will never succeed: the status says
// that the client is at fault, and the SDK would not retry it either.
func isFinalRefusal(err error, code string) bool {
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &resp) || transientCodes[code] {
		return false
	}
	switch status := resp.HTTPStatusCode(); status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	default:
		return status >= 400 && status < 500 && retry.IsErrorRetryables(retry.DefaultRetryables).IsErrorRetryable(err) != aws.TrueTernary
	}
}
