package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// An emergency gives keyed rows other data keys too: a person who holds the compromised KEK may
// hold those that were made under it. Records are rewrapped all the same, for a writer that
// slept may still insert a row under an exposed data key (spec: ExposedOnlyLate). Such rows
// open, and verify counts them.

// openKeeper opens the key table of a rotation.
func (s *Steps) openKeeper(r kek.Rotation) (source.Keeper, error) {
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return nil, err
	}
	for _, src := range sources {
		if k, ok := src.Driver.(source.Keeper); ok {
			return k, nil
		}
	}
	return nil, journal.ExplainRefusal(errors.New("no source of the rotation keeps the records of data keys"))
}

// bornKey returns the record of a row's data key and the epoch in which the key was made. The
// row says an epoch too, but a person who writes the table could have written another.
func (s *Steps) bornKey(ctx context.Context, keeper source.Keeper, row source.Row) (source.Row, int64, error) {
	record, born, ok, err := keeper.FindKey(ctx, row.DEKID)
	switch {
	case err != nil:
		return record, 0, journal.WrapUnavailable("key table", err)
	case !ok:
		return record, 0, &unaccountedItem{source.NoRecord, "its data key has no record"}
	case record.Defect != "":
		return record, 0, &unaccountedItem{record.Kind, "its data key's record: " + record.Defect}
	}
	return record, born, nil
}

// isKeyError reports an error that concerns one row's data key alone.
func isKeyError(err error) bool {
	var u *unaccountedItem
	return errors.As(err, &u) || isRowError(err)
}

// rekeyRow moves the payload of a keyed row to a fresh data key if its own was made before the
// switch of an emergency (spec: WalkRead, WalkWrite). Rows that shared a data key share the
// fresh one, in each process. The write is conditional on the ciphertext that was read, and
// on the row's epoch: a row that a writer has put under a later data key keeps it.
func (s *Steps) rekeyRow(ctx context.Context, t roster, src frozenSource, row source.Row, memory *Memory) (outcome, error) {
	r := t.rotation
	for range journal.MaxTries {
		named := source.Row{WrappedDEK: []byte(row.DEKID), Context: row.Context} // what the result depends on
		keys, err := memory.recallResult(ctx, r.NewKEK, resultKey("rekeyed", named), func() ([]byte, error) { return s.exchangeKey(ctx, t, row) })
		if errors.Is(err, journal.ErrDenied) {
			return s.quarantineUnlessYoung(t, quarantined, err)
		}
		if isKeyError(err) {
			return quarantined, err
		}
		if err != nil {
			return kept, err
		}
		if len(keys) == len(unexposed) {
			return kept, nil
		}
		with, err := s.resealRow(r, row, keys)
		clear(keys)
		if err != nil {
			return quarantined, err
		}
		done, err := src.Replace(ctx, row, with)
		if isRowError(err) {
			return quarantined, err
		}
		if err != nil {
			return kept, journal.WrapUnavailable("source "+src.Name(), err)
		}
		if done {
			return moved, nil
		}
		again, ok, err := src.Reread(ctx, row, true)
		if err != nil {
			return kept, journal.WrapUnavailable("source "+src.Name(), err)
		}
		if !ok {
			return kept, nil // deleted meanwhile: it must not come back
		}
		if again.Defect != "" {
			return quarantined, &unaccountedItem{again.Kind, again.Defect}
		}
		row = again
	}
	return kept, nameRow(journal.WrapUnavailable("row of "+src.Name(), fmt.Errorf("it changed %d times while it was re-encrypted", journal.MaxTries)), row.ID)
}

// unexposed is the result of a data key that was made after the switch.
var unexposed = []byte{0}

// exchangeKey unwraps the data key that a row names and makes the one that replaces it: both,
// and the id of the fresh one. It returns [unexposed] if the row's was made after the switch.
func (s *Steps) exchangeKey(ctx context.Context, t roster, row source.Row) ([]byte, error) {
	r := t.rotation
	keeper, err := s.openKeeper(r)
	if err != nil {
		return nil, err
	}
	record, born, err := s.bornKey(ctx, keeper, row)
	if err != nil || born >= r.Epoch {
		return unexposed, err
	}
	if err := t.checkRow(record); err != nil {
		return nil, err
	}
	old, err := s.unwrapDEK(ctx, record)
	if isRowError(err) {
		return nil, err
	}
	if err != nil {
		return nil, s.Keys.ExplainError(record.KEK, err)
	}
	defer clear(old)
	fresh, err := s.createDataKey(ctx, keeper, source.DataKey{
		Context: row.Context, KEK: r.NewKEK, Epoch: r.Epoch, Shard: source.SpreadShard(row.DEKID, r.Settings.FenceShards),
	})
	if err != nil {
		return nil, err
	}
	defer clear(fresh.plain)
	keys := make([]byte, 0, 2*dekBytes+len(fresh.id))
	return append(append(append(keys, old...), fresh.plain...), fresh.id...), nil
}

// unwrapDEK unwraps the data key of an embedded row, or of a record.
func (s *Steps) unwrapDEK(ctx context.Context, row source.Row) ([]byte, error) {
	dek, err := s.Keys.Wrapper.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	if err == nil && len(dek) != dekBytes {
		clear(dek)
		return nil, errOpen
	}
	return dek, err
}

// createDataKey makes a data key and stores its record: rows may name it after that. A process
// that stops in between leaves a record that no row names, which does no harm.
func (s *Steps) createDataKey(ctx context.Context, keeper source.Keeper, k source.DataKey) (freshKey, error) {
	k.Made = s.Journal.Now()
	s.Keys.Random(k.ID[:])
	record := keeper.NewKey(k)
	plain, wrapped, err := s.Keys.Wrapper.GenerateDataKey(ctx, k.KEK, record.Context)
	if err != nil {
		return freshKey{}, s.Keys.ExplainError(k.KEK, err)
	}
	done, err := keeper.CreateKey(ctx, record, wrapped)
	if err == nil && !done {
		done, err = isStored(ctx, keeper, record, wrapped)
	}
	if err == nil && !done {
		err = errors.New("there is a record of the id that was drawn")
	}
	if err != nil {
		clear(plain)
		return freshKey{}, journal.WrapUnavailable("key table", err)
	}
	return freshKey{id: record.ID, kek: k.KEK, epoch: k.Epoch, plain: plain}, nil
}

// isStored reports whether the record that is there already is the one that was to be created:
// the answer to the first try was lost.
func isStored(ctx context.Context, keeper source.Keeper, record source.Row, wrapped []byte) (bool, error) {
	found, _, ok, err := keeper.FindKey(ctx, record.ID)
	return ok && bytes.Equal(found.WrappedDEK, wrapped), err
}

// resealRow opens the payload of a row under its data key and seals it under the fresh one.
func (s *Steps) resealRow(r kek.Rotation, row source.Row, keys []byte) (source.Rewrapped, error) {
	if len(row.Ciphertext) == 0 {
		return source.Rewrapped{}, errNoPayload
	}
	id := string(keys[2*dekBytes:])
	plain, err := s.Keys.Cipher.Open(keys[:dekBytes], row.Ciphertext, row.Bound)
	if err != nil {
		return source.Rewrapped{}, errOpen
	}
	defer clear(plain)
	sealed, err := s.Keys.Cipher.Seal(keys[dekBytes:2*dekBytes], plain, row.BoundUnder(id))
	return source.Rewrapped{DEKID: id, Epoch: r.Epoch, Ciphertext: sealed}, err
}

// countExposed is the visit of verify to a keyed row after an emergency.
func (s *Steps) countExposed(ctx context.Context, r kek.Rotation, row source.Row) (outcome, error) {
	named := source.Row{WrappedDEK: []byte(row.DEKID)}
	is, err := s.sharedMemory().recallResult(ctx, r.NewKEK, resultKey("exposed", named), func() ([]byte, error) {
		keeper, err := s.openKeeper(r)
		if err != nil {
			return nil, err
		}
		_, born, err := s.bornKey(ctx, keeper, row)
		if err != nil || born >= r.Epoch {
			return unexposed, err
		}
		return []byte{1}, nil
	})
	switch {
	case isKeyError(err):
		return quarantined, err
	case err != nil:
		return kept, err
	case is[0] != unexposed[0]:
		return exposed, nil
	}
	return kept, nil
}
