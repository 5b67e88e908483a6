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
	return Sleep(ctx, d/2+rand.N(d/2)) //nolint:gosec // jitter is no secret
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
