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

// refusal says whether a failed write may be tried again; the zero value: no.
type refusal struct {
	retry  bool // nothing was written, and a fresh try may succeed
	fenced bool // as retry, but under another KEK
}

// The wait before a try doubles each time, up to maxWait. Half of it is random.
const (
	firstWait = 5 * time.Millisecond
	maxWait   = time.Second
)

// retryWrite runs try with a reference to the current KEK until try succeeds, fails with
// an error that another try cannot change, or was refused maxTries times. try must seal
// each time, because the KEK may have changed.
func (c *Client) retryWrite(ctx context.Context, try func(*heldLease, time.Duration) (refusal, error)) error {
	var last error
	for n := range maxTries {
		if err := c.cfg.waitForTry(ctx, n); err != nil {
			return errors.Join(err, last)
		}
		h, at, err := c.beginRef(ctx)
		if err != nil {
			return err
		}
		v, err := try(h, at)
		c.releaseRef(h)
		disabled := errors.Is(err, errSealKey) // perhaps while this process was suspended
		if !v.retry && !v.fenced && !disabled {
			return err
		}
		last = fmt.Errorf("%w: %w", ErrContended, err)
		if v.fenced || disabled {
			last = fmt.Errorf("KEK %s: %w: %w", h.pointer.KEKID, ErrFenced, err)
			_ = c.refreshPointer(ctx, h) // if it fails, the next try finds out
			if disabled && c.current.Load() == h {
				return err
			}
		}
		c.count.refused.Add(1)
	}
	return fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// waitForTry waits before try n, counted from 0. It does not wait before try 0.
func (c Config) waitForTry(ctx context.Context, n int) error {
	if n == 0 {
		return ctx.Err()
	}
	d := min(firstWait<<n, maxWait)
	t := time.NewTimer(d/2 + c.drawJitter(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// expression collects the names and values of an expression. It writes every name as a
// placeholder, because DynamoDB reserves some words.
type expression struct {
	names  map[string]string
	values Item
}

// addName returns the placeholder of an attribute name.
func (e *expression) addName(attribute string) string {
	for n, a := range e.names {
		if a == attribute {
			return n
		}
	}
	n := fmt.Sprintf("#n%d", len(e.names))
	e.names[n] = attribute
	return n
}

// addValue returns the placeholder of a value.
func (e *expression) addValue(v types.AttributeValue) string {
	n := fmt.Sprintf(":v%d", len(e.values))
	e.values[n] = v
	return n
}

// buildUpdate returns an update expression that sets and removes attributes, and adds 1 to
// the attribute count unless that is "".
func (e *expression) buildUpdate(set Item, remove []string, count string) string {
	var sets, removes []string
	for _, a := range slices.Sorted(maps.Keys(set)) {
		sets = append(sets, e.addName(a)+" = "+e.addValue(set[a]))
	}
	if count != "" {
		n := e.addName(count)
		sets = append(sets, fmt.Sprintf("%s = if_not_exists(%s, %s) + %s", n, n, e.addValue(attr.Num(0)), e.addValue(attr.Num(1))))
	}
	for _, a := range remove {
		removes = append(removes, e.addName(a))
	}
	out := "SET " + strings.Join(sets, ", ")
	if len(removes) > 0 {
		out += " REMOVE " + strings.Join(removes, ", ")
	}
	return out
}
