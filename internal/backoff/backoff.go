// Package backoff waits between the tries of the adapters.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Pause waits before try n: not at all before the first (0), then first<<n, at most
// longest, of which the second half is jittered. It returns the context's error when
// that ends before.
func Pause(ctx context.Context, n int, first, longest time.Duration) error {
	if n == 0 {
		return ctx.Err()
	}
	d := min(first<<n, longest)
	return Sleep(ctx, d/2+jitter(ctx, d/2))
}

type drawKey struct{}

// WithRandom returns a context whose pauses are jittered by draw, a number from
// [0, n), so that what is run with it replays.
func WithRandom(ctx context.Context, draw func(n int64) int64) context.Context {
	return context.WithValue(ctx, drawKey{}, draw)
}

func jitter(ctx context.Context, d time.Duration) time.Duration {
	if draw, ok := ctx.Value(drawKey{}).(func(int64) int64); ok {
		return time.Duration(draw(int64(d)))
	}
	return rand.N(d) //nolint:gosec // jitter is no secret
}

// Sleep waits for d, or returns the context's error when that ends before.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
