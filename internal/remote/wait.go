package remote

import (
	"context"
	"math/rand/v2"
	"time"
)

// WaitForTry waits before try n, counted from 0. It does not wait before try 0. Before a
// later one it waits min(first<<n, longest), of which the second half is random, so that
// clients that failed together do not retry together ("Exponential Backoff And Jitter",
// AWS Architecture Blog). It returns the context's error if the context ends earlier.
func WaitForTry(ctx context.Context, n int, first, longest time.Duration) error {
	if n == 0 {
		return ctx.Err()
	}
	d := min(first<<n, longest)
	return Wait(ctx, d/2+drawJitter(ctx, d/2))
}

type jitterKey struct{}

// WithJitter returns a context under which [WaitForTry] takes its random numbers from
// draw, which returns a number in [0, n). A run with a seeded draw can be replayed.
func WithJitter(ctx context.Context, draw func(n int64) int64) context.Context {
	return context.WithValue(ctx, jitterKey{}, draw)
}

func drawJitter(ctx context.Context, d time.Duration) time.Duration {
	if draw, ok := ctx.Value(jitterKey{}).(func(int64) int64); ok {
		return time.Duration(draw(int64(d)))
	}
	return rand.N(d) //nolint:gosec // jitter need not be secret
}

// Wait waits for d. It returns the context's error if the context ends earlier.
func Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
