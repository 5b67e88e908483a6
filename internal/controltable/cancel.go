package controltable

import (
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// Reason says whether one item of a transaction caused its cancellation, and how.
type Reason int

// The reasons, by the codes that DynamoDB gives (API reference,
// TransactionCanceledException).
const (
	Innocent  Reason = iota // None: another item was the cause
	Condition               // ConditionalCheckFailed
	Conflict                // TransactionConflict: another write or transaction had the item
	Throttled               // ThrottlingError, ProvisionedThroughputExceeded
	Refused                 // everything else: the same request will be refused again
)

// ReasonOf classifies DynamoDB's reason for one item.
func ReasonOf(r types.CancellationReason) Reason {
	switch aws.ToString(r.Code) {
	case "", "None":
		return Innocent
	case "ConditionalCheckFailed":
		return Condition
	case "TransactionConflict":
		return Conflict
	case "ThrottlingError", "ProvisionedThroughputExceeded":
		return Throttled
	default:
		return Refused
	}
}

// Busy reports whether other requests were the cause. Nothing was written, and the same
// request may succeed later.
func (r Reason) Busy() bool { return r == Conflict || r == Throttled }

// Reasons returns why a transaction was cancelled, item by item in the order of the
// request; nil if err is not a cancellation.
func Reasons(err error) []Reason {
	var e *types.TransactionCanceledException
	if !errors.As(err, &e) {
		return nil
	}
	all := make([]Reason, len(e.CancellationReasons))
	for n, r := range e.CancellationReasons {
		all[n] = ReasonOf(r)
	}
	return all
}

// Busy reports whether a request was refused as a whole because of another transaction.
// Nothing was written, and the same request may succeed later.
func Busy(err error) bool {
	var conflict *types.TransactionConflictException
	var busy *types.TransactionInProgressException
	return errors.As(err, &conflict) || errors.As(err, &busy)
}
