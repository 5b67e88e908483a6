package envelope

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
)

// verdict says what a write that failed may do.
type verdict struct {
	again  bool // nothing was written, and a fresh try may succeed
	fenced bool // as again, but under another KEK
}

// How long to wait before a fresh try: longer each time and jittered.
const (
	firstWait = 5 * time.Millisecond
	maxWait   = time.Second
)

// write runs try with a reference to the current KEK until it succeeds, fails with an
// error that another try cannot change, or has been refused too often. try seals again
// every time.
func (c *Client) write(ctx context.Context, try func(*hold, time.Duration) (verdict, error)) error {
	var last error
	for n := range maxTries {
		if err := c.cfg.wait(ctx, n); err != nil {
			return errors.Join(err, last)
		}
		h, at, err := c.begin(ctx)
		if err != nil {
			return err
		}
		v, err := try(h, at)
		c.release(h)
		disabled := errors.Is(err, errSealKey) // perhaps while this process slept
		if !v.again && !v.fenced && !disabled {
			return err
		}
		last = fmt.Errorf("%w: %w", ErrContended, err)
		if v.fenced || disabled {
			last = fmt.Errorf("KEK %s: %w: %w", h.pointer.KEKID, ErrFenced, err)
			_ = c.refresh(ctx, h) // if it fails, the next try finds out
			if disabled && c.current.Load() == h {
				return err
			}
		}
		c.count.refused.Add(1)
	}
	return fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

func (c Config) wait(ctx context.Context, n int) error {
	if n == 0 {
		return ctx.Err()
	}
	d := min(firstWait<<n, maxWait)
	t := time.NewTimer(d/2 + c.jitter(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// expression collects the names and values of an expression, so that no attribute
// name is one that DynamoDB reserves.
type expression struct {
	names  map[string]string
	values Item
}

func (e *expression) name(attribute string) string {
	for n, a := range e.names {
		if a == attribute {
			return n
		}
	}
	n := fmt.Sprintf("#n%d", len(e.names))
	e.names[n] = attribute
	return n
}

func (e *expression) value(v types.AttributeValue) string {
	n := fmt.Sprintf(":v%d", len(e.values))
	e.values[n] = v
	return n
}

// update sets and removes attributes, and counts up the one of name count if any.
func (e *expression) update(set Item, remove []string, count string) string {
	var sets, removes []string
	for _, a := range slices.Sorted(maps.Keys(set)) {
		sets = append(sets, e.name(a)+" = "+e.value(set[a]))
	}
	if count != "" {
		n := e.name(count)
		sets = append(sets, fmt.Sprintf("%s = if_not_exists(%s, %s) + %s", n, n, e.value(attr.Num(0)), e.value(attr.Num(1))))
	}
	for _, a := range remove {
		removes = append(removes, e.name(a))
	}
	out := "SET " + strings.Join(sets, ", ")
	if len(removes) > 0 {
		out += " REMOVE " + strings.Join(removes, ", ")
	}
	return out
}
