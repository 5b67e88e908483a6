package wire

import (
	"net/http"
	"strings"
)

// Exchange is a call that was served, and its answer.
type Exchange struct {
	Call
	Caller         string // short name of the calling function; "" for who is none
	Header         http.Header
	Body           []byte
	Status         int // of the answer; 0 if the service gave none, and what became of the call is not known
	AnsweredHeader http.Header
	Answer         []byte
}

// reads begin the names of operations on keys, tables and objects that have no effect.
var reads = []string{"Get", "BatchGet", "TransactGet", "Scan", "Describe", "List", "Head", "Encrypt", "Decrypt", "ReEncrypt", "GenerateDataKey", "GenerateRandom", "Sign", "Verify"}

// Matters reports whether a call may have an effect on a key, an item or an object,
// or asks for several items at once: whoever follows what a rotation does must see
// these calls in one order.
func (c Call) Matters() bool {
	switch c.Service {
	case "dynamodb", "kms", "s3":
	default:
		return false
	}
	for _, r := range reads {
		if strings.HasPrefix(c.Operation, r) {
			return false
		}
	}
	return true
}
