package rotation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// convertRow converts one row. If another writer comes first the row is read again, with the
// registry, a bounded number of times. A row that has become one of the other kind, or is gone,
// counts as done.
func (c *converter) convertRow(ctx context.Context, row source.Row) error {
	var cause error
	for try := range journal.MaxTries {
		if row.DEKID != "" && !c.in.Embedded {
			if exposed, err := c.isExposed(ctx, row); err != nil || !exposed {
				return c.leaveKeyed(row, try, err)
			}
			if try == 0 {
				c.count(&c.out.Exposed)
			}
		}
		if err := c.refuseRow(row); err != nil {
			c.leaveRow(row, err.Error())
			return nil
		}
		if !c.in.Write {
			return c.tryRow(ctx, row)
		}
		if err := c.begin(); err != nil {
			return err
		}
		done, err := c.moveRow(ctx, row)
		switch {
		case isKeyError(err):
			c.leaveRow(row, err.Error())
			return nil
		case err != nil && !passes(err):
			if moved, failed := c.lookForPointer(ctx, err); failed != nil || !moved {
				return journal.WrapUnavailable("source "+c.src.Name(), cmp.Or(failed, err))
			}
		case done:
			c.count(&c.out.Converted)
			return nil
		}
		cause = err
		again, ok, err := c.src.Reread(ctx, row, true)
		if err != nil {
			return journal.WrapUnavailable("source "+c.src.Name(), err)
		}
		if !ok {
			c.count(&c.out.Meanwhile)
			return nil
		}
		c.count(&c.out.Retried)
		row = again
		if err := c.look(ctx); err != nil {
			return err
		}
	}
	return c.giveUp(row, cause)
}

// isExposed reports whether a keyed row's data key was made before the last emergency's switch, by
// its record: who writes the table could have written any epoch into the row.
func (c *converter) isExposed(ctx context.Context, row source.Row) (bool, error) {
	named := source.Row{WrappedDEK: []byte(row.DEKID)}
	is, err := c.unwraps.recallResult(ctx, "rows", resultKey("exposed", named), func() ([]byte, error) {
		_, born, err := c.steps.bornKey(ctx, c.keeper, row)
		if err != nil || born >= c.in.ExposedBefore {
			return unexposed, err
		}
		return []byte{1}, nil
	})
	return err == nil && is[0] != unexposed[0], err
}

// leaveKeyed ends with a keyed row that is not exposed, or whose record does not say.
func (c *converter) leaveKeyed(row source.Row, try int, err error) error {
	switch {
	case isKeyError(err):
		c.leaveRow(row, err.Error())
		return nil
	case err == nil && try > 0: // another writer has put it under a later data key
		c.count(&c.out.Meanwhile)
	}
	return err
}

// giveUp ends the tries of a row, by what was the cause of the last.
func (c *converter) giveUp(row source.Row, cause error) error {
	switch {
	case errors.Is(cause, source.ErrFenced):
		return nameRow(journal.WrapUnavailable("data key", cause), row.ID)
	case errors.Is(cause, journal.ErrKeyDisabled), errors.Is(cause, journal.ErrNoKey), errors.Is(cause, errLaterEpoch):
		c.leaveRow(row, cause.Error())
		return nil
	}
	c.count(&c.out.Changed)
	return nil
}

// errLaterEpoch is why a row keeps its data key: that of the pointer is older.
var errLaterEpoch = errors.New("it is of a later epoch than the pointer")

// passes reports an error after which the row and the registry are read again.
func passes(err error) bool {
	for _, is := range []error{source.ErrFenced, source.ErrBusy, journal.ErrKeyDisabled, journal.ErrNoKey, errLaterEpoch} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// refuseRow returns why a row cannot be converted, or nil.
func (c *converter) refuseRow(row source.Row) error {
	switch {
	case row.Defect != "":
		return errors.New(string(row.Kind))
	case row.Whole:
		return errors.New("what its payload is bound to only its application knows: the next update converts it")
	case row.DEKID != "":
		return nil
	}
	return registryRoster(*c.view.Load()).checkRow(row)
}

// tryRow opens one of the first rows, in a dry run.
func (c *converter) tryRow(ctx context.Context, row source.Row) error {
	c.mu.Lock()
	enough := c.out.Tried >= proofSample
	if !enough {
		c.out.Tried++
	}
	c.mu.Unlock()
	if enough {
		return nil
	}
	plain, err := c.openRow(ctx, row)
	clear(plain)
	if isKeyError(err) || passes(err) {
		c.leaveRow(row, err.Error())
		return nil
	}
	if err != nil {
		return journal.WrapUnavailable("source "+c.src.Name(), err)
	}
	return nil
}

// lookForPointer reads the registry again after an error, and reports whether that is that no
// data key could be made because the pointer has moved.
func (c *converter) lookForPointer(ctx context.Context, err error) (bool, error) {
	var key *keyError
	if !errors.As(err, &key) {
		return false, nil
	}
	was := c.view.Load().Pointer.Epoch
	failed := c.look(ctx)
	return c.view.Load().Pointer.Epoch > was, failed
}

// moveRow puts a row under a data key of the other kind (spec: WalkWrite). False means that it
// is not what was read.
func (c *converter) moveRow(ctx context.Context, row source.Row) (bool, error) {
	with, err := c.resealRow(ctx, row)
	if err != nil {
		return false, err
	}
	if c.in.Embedded {
		return c.to.Embed(ctx, row, with, c.drawShard(with.KEK))
	}
	return c.src.Replace(ctx, row, with)
}

// resealRow opens a row's payload and seals it under a data key of the other kind. The key is
// of the pointer's epoch, which must not be earlier than the row's: the row may have been taken
// off an exposed data key.
func (c *converter) resealRow(ctx context.Context, row source.Row) (source.Rewrapped, error) {
	p := c.view.Load().Pointer
	if row.Epoch > p.Epoch {
		return source.Rewrapped{}, errLaterEpoch
	}
	plain, err := c.openRow(ctx, row)
	if err != nil {
		return source.Rewrapped{}, err
	}
	defer clear(plain)
	key, err := c.stock.take(ctx, row.Context, p.Epoch, int64(len(plain)))
	if err != nil {
		return source.Rewrapped{}, &keyError{err}
	}
	defer clear(key.plain)
	if key.epoch < row.Epoch {
		return source.Rewrapped{}, errLaterEpoch
	}
	with := source.Rewrapped{DEKID: key.id, Epoch: key.epoch}
	bound := row.BoundUnder(key.id)
	if c.in.Embedded {
		with.KEK = key.kek
		with.WrappedDEK = key.wrapped
		bound = row.BoundEmbedded()
	}
	with.Ciphertext, err = c.steps.Keys.Cipher.Seal(key.plain, plain, bound)
	return with, err
}

// keyError is the error that no data key could be made. It concerns every row, so a denial or a
// refusal of it must not look like one of the row: only what passes is shown.
type keyError struct{ err error }

func (e *keyError) Error() string { return e.err.Error() }

// Is shows what passes, see passes.
func (e *keyError) Is(target error) bool {
	return (target == source.ErrFenced || target == source.ErrBusy) && errors.Is(e.err, target)
}

// As shows the typed error.
func (e *keyError) As(target any) bool {
	typed, ok := target.(**journal.Error)
	return ok && errors.As(e.err, typed)
}

// openRow opens a row's payload under its data key. Rows that share a data key cost one
// request to KMS.
func (c *converter) openRow(ctx context.Context, row source.Row) ([]byte, error) {
	if len(row.Ciphertext) == 0 {
		return nil, errNoPayload
	}
	named := row
	named.WrappedDEK = append([]byte(row.DEKID), row.WrappedDEK...)
	dek, err := c.unwraps.recallResult(ctx, "rows", resultKey("unwrapped", named), func() ([]byte, error) {
		if row.DEKID == "" {
			return c.steps.unwrapDEK(ctx, row)
		}
		record, _, err := c.steps.bornKey(ctx, c.keeper, row)
		if err == nil {
			err = registryRoster(*c.view.Load()).checkRow(record)
		}
		if err != nil {
			return nil, err
		}
		return c.steps.unwrapDEK(ctx, record)
	})
	if err != nil {
		return nil, err
	}
	defer clear(dek)
	plain, err := c.steps.Keys.Cipher.Open(dek, row.Ciphertext, row.Bound)
	if err != nil {
		return nil, errOpen
	}
	return plain, nil
}

// makeKey makes a data key under the pointer's KEK.
func (c *converter) makeKey(ctx context.Context, encctx map[string]string) (freshKey, error) {
	p := c.view.Load().Pointer
	if !c.in.Embedded {
		return c.steps.createDataKey(ctx, c.keeper, source.DataKey{Context: encctx, KEK: p.KEKID, Epoch: p.Epoch, Shard: c.drawShard(p.KEKID)})
	}
	plain, wrapped, err := c.steps.Keys.Wrapper.GenerateDataKey(ctx, p.KEKID, encctx)
	if err != nil {
		return freshKey{}, c.steps.Keys.ExplainError(p.KEKID, err)
	}
	return freshKey{kek: p.KEKID, epoch: p.Epoch, plain: plain, wrapped: wrapped}, nil
}

// drawShard draws a shard of a KEK's fence: two transactions that check the same one at the same
// time conflict.
func (c *converter) drawShard(id kek.ID) int {
	n := int64(max(c.view.Load().KEKs[id].FenceShards, 1))
	return int(c.shards.Add(1) % n)
}

// count adds one to a count.
func (c *converter) count(n *int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

// leaveRow counts a row that is not converted, by reason, and keeps the ids of the first.
func (c *converter) leaveRow(row source.Row, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Left[reason]++
	if text := fmt.Sprintf("%s: %s", row.ID, orDefect(row, reason)); len(c.out.First) < maxPoison && !slices.Contains(c.out.First, text) {
		c.out.First = append(c.out.First, text)
	}
}
