package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"time"
)

// Error is an error as a service answers it.
type Error struct {
	Status        int
	Code, Message string
}

// Error implements the error interface.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Skews that AWS tolerates between its clock and X-Amz-Date.
const (
	skew   = 5 * time.Minute
	skewS3 = 15 * time.Minute
)

// CheckAge returns the error with which AWS refuses a call that is unsigned, was
// signed too long ago or will be signed in the future, or nil.
func (c Call) CheckAge(now time.Time) *Error {
	if c.AccessKey == "" {
		if c.Protocol == RESTXML {
			return &Error{http.StatusForbidden, "AccessDenied", "Access Denied: anonymous requests are refused"}
		}
		return &Error{http.StatusForbidden, "MissingAuthenticationToken", "Missing Authentication Token"}
	}
	age := now.Sub(c.Signed)
	switch {
	case c.Expires > 0:
		if age > c.Expires || age < -skewS3 {
			return &Error{http.StatusForbidden, "AccessDenied", "Request has expired"}
		}
	case c.Service == "s3":
		if age.Abs() > skewS3 {
			return &Error{http.StatusForbidden, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."}
		}
	case age > skew:
		return c.badSignature(fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - 5 min.)",
			c.Signed.Format(amzTime), now.UTC().Add(-skew).Format(amzTime), now.UTC().Format(amzTime)))
	case age < -skew:
		return c.badSignature(fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + 5 min.)",
			c.Signed.Format(amzTime), now.UTC().Add(skew).Format(amzTime), now.UTC().Format(amzTime)))
	}
	return nil
}

func (c Call) badSignature(message string) *Error {
	switch c.Protocol {
	case Query:
		return &Error{http.StatusForbidden, "SignatureDoesNotMatch", message}
	case JSON:
		return &Error{http.StatusBadRequest, "InvalidSignatureException", message}
	default:
		return &Error{http.StatusForbidden, "InvalidSignatureException", message}
	}
}

// Throttled returns the error with which the call's service throttles.
func (c Call) Throttled() *Error {
	switch c.Service {
	case "s3":
		return &Error{http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate."}
	case "dynamodb":
		return &Error{http.StatusBadRequest, "ProvisionedThroughputExceededException", "The level of configured provisioned throughput for the table was exceeded."}
	case "lambda":
		return &Error{http.StatusTooManyRequests, "TooManyRequestsException", "Rate Exceeded."}
	case "sns", "cloudformation", "iam", "monitoring":
		return &Error{http.StatusBadRequest, "Throttling", "Rate exceeded"}
	default:
		return &Error{http.StatusBadRequest, "ThrottlingException", "Rate exceeded"}
	}
}

// Denied returns the error with which the call's service refuses for lack of a
// permission.
func (c Call) Denied(message string) *Error {
	switch c.Protocol {
	case RESTXML:
		return &Error{http.StatusForbidden, "AccessDenied", message}
	case Query:
		return &Error{http.StatusForbidden, "AuthorizationError", message}
	case RESTJSON:
		return &Error{http.StatusForbidden, "AccessDeniedException", message}
	default:
		return &Error{http.StatusBadRequest, "AccessDeniedException", message}
	}
}

// Write answers with the error as the call's protocol encodes it.
func (c Call) Write(w http.ResponseWriter, e *Error) {
	id := RequestID()
	h := w.Header()
	h.Set("X-Amzn-Requestid", id)
	h.Set("X-Amzn-Errortype", e.Code)
	var body []byte
	switch c.Protocol {
	case RESTXML:
		h.Set("X-Amz-Request-Id", id)
		h.Set("Content-Type", "application/xml")
		body = fmt.Appendf(nil, "%s<Error><Code>%s</Code><Message>%s</Message><RequestId>%s</RequestId></Error>", xml.Header, escape(e.Code), escape(e.Message), id)
	case Query:
		h.Set("Content-Type", "text/xml")
		body = fmt.Appendf(nil, "%s<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>",
			xml.Header, escape(e.Code), escape(e.Message), id)
	case CBOR:
		h.Set("Smithy-Protocol", "rpc-v2-cbor")
		h.Set("Content-Type", "application/cbor")
		body = cborMap("__type", e.Code, "message", e.Message)
	default:
		h.Set("Content-Type", map[Protocol]string{JSON: "application/x-amz-json-1.1", RESTJSON: "application/json"}[c.Protocol])
		body, _ = json.Marshal(map[string]string{"__type": e.Code, "message": e.Message, "Message": e.Message}) // of strings: cannot fail
	}
	w.WriteHeader(e.Status)
	_, _ = w.Write(body) // the client may be gone
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // to memory
	return b.String()
}

// cborMap encodes a map of text strings.
func cborMap(pairs ...string) []byte {
	b := []byte{0xa0 | byte(len(pairs)/2)}
	for _, s := range pairs {
		b = append(b, 0x79, byte(len(s)>>8), byte(len(s)))
		b = append(b, s...)
	}
	return b
}

// RequestID returns a random id in the form of a UUID.
func RequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-4" + s[13:16] + "-a" + s[17:20] + "-" + s[20:]
}
