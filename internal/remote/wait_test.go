package remote

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaitForTry(t *testing.T) {
	for _, c := range []struct {
		n        int
		from, to time.Duration
	}{
		{0, 0, 0},
		{1, 10 * time.Millisecond, 20 * time.Millisecond},
		{3, 40 * time.Millisecond, 80 * time.Millisecond},
		{9, 500 * time.Millisecond, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			if err := WaitForTry(t.Context(), c.n, 10*time.Millisecond, time.Second); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < c.from || took > c.to {
				t.Errorf("try %d: waited %s, want %s to %s", c.n, took, c.from, c.to)
			}
		})
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := WaitForTry(ctx, 5, time.Second, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if err := WaitForTry(ctx, 0, time.Second, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before the first try: %v", err)
		}
	})
}
