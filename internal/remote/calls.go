package remote

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go/middleware"
)

// LogCalls returns an option that writes a line for each call to AWS: service, operation, how
// long it took with its retries, and the code of its error. It writes no parameter and no
// answer, which may hold data keys.
func LogCalls(w io.Writer, now func() time.Time) func(*aws.Config) {
	var mu sync.Mutex // calls are made side by side
	logCall := middleware.InitializeMiddlewareFunc("LogCalls", func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (
		middleware.InitializeOutput, middleware.Metadata, error,
	) {
		began := now()
		out, metadata, err := next.HandleInitialize(ctx, in)
		line := fmt.Sprintf("%s %s, %d ms", awsmiddleware.GetServiceID(ctx), awsmiddleware.GetOperationName(ctx), now().Sub(began).Milliseconds())
		if err != nil {
			code := ErrorCode(err)
			if code == "" {
				code = "no answer"
			}
			line += ": " + code
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(w, line)
		return out, metadata, err
	})
	return func(c *aws.Config) {
		c.APIOptions = append(c.APIOptions, func(s *middleware.Stack) error { return s.Initialize.Add(logCall, middleware.After) })
	}
}
