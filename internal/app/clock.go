package app

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/matter-ops/kms-rotation/rotation"
)

// maxClockOff is how far this machine's clock may be from AWS's. Audit records are dated
// by who writes them, and verification allows two writers five minutes.
const maxClockOff = 2 * time.Minute

// refuseWrongClock makes every AWS call fail while the clock of this machine is wrong. The
// SDK alone would correct the signature and go on, and the audit chain would have a date
// in it that verification takes for forged, for ever.
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

// checkClock compares the date of an answer with when it was asked for and when it came,
// between which the process may have been stopped.
func checkClock(date string, sent, received time.Time) error {
	at, err := http.ParseTime(date)
	if err != nil {
		return nil // no date: nothing can be said
	}
	if !at.Before(sent.Add(-maxClockOff)) && !at.After(received.Add(maxClockOff)) {
		return nil
	}
	return &rotation.Error{
		Kind: rotation.Misconfigured, Field: "clock",
		Msg: fmt.Sprintf("this machine's clock shows %s, AWS's %s: what is recorded now would look forged",
			received.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339)),
		Next: "set the clock, by NTP, then do it again",
	}
}
