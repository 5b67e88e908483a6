package budget

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/middleware"
)

var throttles = retry.IsErrorThrottles(retry.DefaultThrottles)

// spendEachAttempt returns the middleware in which each attempt of a request spends a unit of
// the budget that of names, also one that the SDK makes again. It waits before the request is
// signed: a signature would be too old after a long wait.
func spendEachAttempt(of func(context.Context) *Budget) middleware.FinalizeMiddleware {
	return middleware.FinalizeMiddlewareFunc("Budget", func(
		ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler,
	) (middleware.FinalizeOutput, middleware.Metadata, error) {
		b := of(ctx)
		if b == nil {
			return next.HandleFinalize(ctx, in)
		}
		if err := b.Spend(ctx); err != nil {
			return middleware.FinalizeOutput{}, middleware.Metadata{}, err
		}
		out, meta, err := next.HandleFinalize(ctx, in)
		if throttles.IsErrorThrottle(err) == aws.TrueTernary {
			b.Refuse()
		}
		return out, meta, err
	})
}

// SpendRequests lets every attempt of a client's requests spend one unit of b.
func SpendRequests(b *Budget) func(*middleware.Stack) error {
	spend := spendEachAttempt(func(context.Context) *Budget { return b })
	return func(stack *middleware.Stack) error { return stack.Finalize.Insert(spend, "Retry", middleware.After) }
}

type tableKey struct{}

// SpendWrites lets every attempt of UpdateItem spend write units of the budget of its table.
// How many an item takes is known from the answer: the larger of the item before and after
// (DynamoDB developer guide, "Read and write capacity units"). An attempt spends one before,
// and the rest is charged when the answer is there. A failed condition takes units too
// (the same page, "Conditional writes"), but its answer has no count, so it is one.
func SpendWrites(of func(table string) *Budget) func(*middleware.Stack) error {
	count := middleware.InitializeMiddlewareFunc("CountWriteUnits", func(
		ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
	) (middleware.InitializeOutput, middleware.Metadata, error) {
		update, ok := in.Parameters.(*dynamodb.UpdateItemInput)
		if !ok {
			return next.HandleInitialize(ctx, in)
		}
		b := of(aws.ToString(update.TableName))
		if b == nil {
			return next.HandleInitialize(ctx, in)
		}
		asking := *update
		asking.ReturnConsumedCapacity = types.ReturnConsumedCapacityTotal
		in.Parameters = &asking
		out, meta, err := next.HandleInitialize(context.WithValue(ctx, tableKey{}, b), in)
		if done, ok := out.Result.(*dynamodb.UpdateItemOutput); ok && err == nil && done.ConsumedCapacity != nil {
			b.Charge(aws.ToFloat64(done.ConsumedCapacity.CapacityUnits) - 1)
		}
		return out, meta, err
	})
	spend := spendEachAttempt(func(ctx context.Context) *Budget {
		b, _ := ctx.Value(tableKey{}).(*Budget)
		return b
	})
	return func(stack *middleware.Stack) error {
		if err := stack.Initialize.Add(count, middleware.Before); err != nil {
			return err
		}
		return stack.Finalize.Insert(spend, "Retry", middleware.After)
	}
}
