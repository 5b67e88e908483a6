package app

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// maxClockOff is how far this machine's clock may differ from AWS's. The writer of an audit
// record dates it, and verification allows two writers to differ by five minutes, so each of
// them may be wrong by less than half of that.
const maxClockOff = 2 * time.Minute

// refuseWrongClock makes every AWS call fail while the clock of this machine is wrong. The
// SDK alone would correct the time of the signature and continue. Then the audit chain would
// permanently contain a date that verification takes for a forgery.
func refuseWrongClock(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("RefuseWrongClock",
		func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
			middleware.DeserializeOutput, middleware.Metadata, error,
		) {
			sent := time.Now()
			out, metadata, err := next.HandleDeserialize(ctx, in)
			if resp, ok := out.RawResponse.(*smithyhttp.Response); ok && err == nil {
				err = checkClock(resp.Header.Get("Date"), sent, time.Now())
			}
			return out, metadata, err
		}), middleware.Before)
}

// checkClock compares the Date header of an answer with the times of this machine when the
// request was sent and when the answer was read. The process may have been suspended in
// between, so the date may be anywhere in that span.
func checkClock(date string, sent, received time.Time) error {
	at, err := http.ParseTime(date)
	if err != nil {
		return nil // without a date there is nothing to compare
	}
	if !at.Before(sent.Add(-maxClockOff)) && !at.After(received.Add(maxClockOff)) {
		return nil
	}
	return &journal.Error{
		Kind: journal.Misconfigured, Field: "clock",
		Msg: fmt.Sprintf("this machine's clock shows %s, AWS's %s: what is recorded now would look forged",
			received.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339)),
		Next: journal.Next{Say: "set the clock, by NTP, then do it again"},
	}
}
