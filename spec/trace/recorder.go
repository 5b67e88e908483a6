package trace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/memstore"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Recorder records every effect on a world in memory. It is safe for concurrent
// use.
type Recorder struct {
	tables []*memstore.Table
	mu     sync.Mutex
	events []Event
	bodies map[[2]string]string // table and id of a row that names no KEK: its payload, which whoever labels it does not read
}

// Record begins to record a world and its tables, those that the rotation sweeps.
// What is there already is noted first: the pointer, no rotation being under way,
// and the rows. Effects on other tables are left out. It reads the world as any caller
// does, so no hook should be set yet.
func Record(ctx context.Context, w *memstore.World, tables ...*memstore.Table) (*Recorder, error) {
	r := &Recorder{tables: tables, bodies: map[[2]string]string{}}
	if err := r.snapshot(ctx, w); err != nil {
		return nil, fmt.Errorf("begin to record: %w", err)
	}
	w.SetObserver(r.observe)
	return r, nil
}

// Events returns the run so far.
func (r *Recorder) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *Recorder) snapshot(ctx context.Context, w *memstore.World) error {
	v, err := w.Store().Load(ctx, "")
	if err != nil {
		return err
	}
	if v.Lock != "" {
		return fmt.Errorf("rotation %s is under way", v.Lock)
	}
	_, head, err := w.Store().Head(ctx)
	if err != nil {
		return err
	}
	if v.Pointer != nil {
		r.add(Event{
			Effect: Snapshot, KEK: string(v.Pointer.KEKID), Epoch: v.Pointer.Epoch, Seq: head.Seq, Stored: head.Seq,
			Shards: len(w.Store().Fences(v.Pointer.KEKID)),
		})
	}
	for _, t := range r.tables {
		t.Each(func(id string, row memstore.Record) { r.add(r.written(Plant, t.Name(), id, row)) })
	}
	return nil
}

func (r *Recorder) add(e Event) {
	if e.Effect == "" || e.Source != "" && !r.records(e.Source) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.N = int64(len(r.events)) + 1
	r.events = append(r.events, e)
}

// records reports whether effects on a source are recorded, under whatever definition.
func (r *Recorder) records(source string) bool {
	name, _, _ := strings.Cut(source, "~")
	return slices.ContainsFunc(r.tables, func(t *memstore.Table) bool { return t.Name() == name })
}

// observe is the world's [memstore.Observer]. What was refused by a condition left
// no effect; of those a refused insert alone says something, that its fence was shut.
func (r *Recorder) observe(op string, result any, err error, args ...any) {
	if op == "Table.Insert" && (errors.Is(err, memstore.ErrFenced) || errors.Is(err, memstore.ErrExists)) {
		e := r.event(op, result, args)
		e.Refused = true
		r.add(e)
		return
	}
	if err != nil || result == false {
		return
	}
	r.add(r.event(op, result, args))
}

// event is what a call did; without an effect if it only read.
func (r *Recorder) event(op string, result any, args []any) Event {
	switch op {
	case "Store.Apply":
		return r.change(result.(int64), args[0].(kek.Change), args[1].(audit.Event))
	case "Store.Record", "Store.Begin":
		return Event{Effect: "Store.Record", Event: args[0].(audit.Event).Type, Seq: result.(int64)}
	case "Store.MarkPublished":
		return Event{Effect: op, Seq: args[0].(int64)}
	case "Vault.Put":
		return Event{Effect: op, Seq: args[1].(audit.Entry).Record.Seq}
	case "KMS.Create":
		return Event{Effect: op, Rotation: args[0].(string), Attempt: args[1].(int), KEK: string(result.(kek.ID))}
	case "KMS.Claim":
		if id := args[2].(kek.ID); id == "" || id != result.(kek.ID) {
			return Event{} // it asked, or it lost
		}
		return Event{Effect: op, Rotation: args[0].(string), Attempt: args[1].(int), KEK: string(args[2].(kek.ID))}
	case "KMS.Disable", "KMS.Enable", "Store.Leases":
		return Event{Effect: op, KEK: string(args[0].(kek.ID))}
	case "Store.PutLease", "Store.RenewLease", "Store.DropLease", "Store.Revoke":
		l := args[0].(rotation.Lease)
		return Event{Effect: op, Actor: l.Holder, KEK: string(l.KEK), Expires: l.Expires.UnixMilli()}
	case "Store.SealFence":
		return Event{Effect: op, KEK: string(args[0].(kek.ID)), Shard: args[1].(int)}
	case "Store.SaveCheckpoint":
		c := args[0].(rotation.Checkpoint)
		return Event{Effect: op, Rotation: c.RotationID, Source: c.Source, Sweep: c.Pass, Segment: c.Segment, Done: c.Done}
	default:
		return r.rowEvent(op, args)
	}
}

func (r *Recorder) rowEvent(op string, args []any) Event {
	switch op {
	case "Table.Insert":
		e := r.written(op, args[0].(string), args[1].(string), args[2].(memstore.Record))
		e.Shard = args[3].(int)
		return e
	case "Table.Update":
		return r.written(op, args[0].(string), args[1].(string), args[3].(memstore.Record))
	case Plant:
		return r.written(op, args[0].(string), args[1].(string), args[2].(memstore.Record))
	case "Table.Delete":
		return Event{Effect: op, Source: args[0].(string), Row: args[1].(string)}
	case "Table.Label":
		old := args[1].(rotation.Row)
		if old.KEK == args[2].(kek.ID) {
			return Event{} // it named the same KEK in another form
		}
		return Event{
			Effect: Plant, Source: args[0].(string), Row: old.ID, KEK: string(args[2].(kek.ID)), Epoch: old.Epoch,
			Blob: Digest(old.WrappedDEK), Body: r.bodies[[2]string{args[0].(string), old.ID}],
		}
	case "Table.Replace":
		old, with := args[1].(rotation.Row), args[2].(rotation.Rewrapped)
		return Event{
			Effect: op, Source: args[0].(string), Row: old.ID, Old: string(old.KEK), KEK: string(with.KEK), Epoch: with.Epoch,
			Was: Digest(old.WrappedDEK), WasBody: Digest(old.Ciphertext), Blob: Digest(with.WrappedDEK), Body: Digest(with.Ciphertext),
		}
	}
	return Event{}
}

// written is a row as it is stored. Nothing under no KEK is a cipher row.
func (r *Recorder) written(op, source, id string, row memstore.Record) Event {
	if row.Other || row.Declared || row.KEK == "" || row.Kind == rotation.NoKEK || row.Kind == rotation.UnknownForm {
		r.bodies[[2]string{source, id}] = Digest(row.Ciphertext)
		return Event{}
	}
	return Event{
		Effect: op, Source: source, Row: id, KEK: string(row.KEK), Epoch: row.Epoch,
		Blob: Digest(row.WrappedDEK), Body: Digest(row.Ciphertext),
	}
}

// change is one transaction on the control table.
func (r *Recorder) change(seq int64, c kek.Change, ev audit.Event) Event {
	e := Event{Effect: "Store.Apply", Event: c.Event, Actor: ev.Step, Seq: seq, Shards: c.Shards}
	for _, m := range c.KEKs {
		if e.States == nil {
			e.States = map[string]string{}
		}
		e.States[string(m.After.ID)] = string(m.After.State)
	}
	if c.Opens != "" {
		for i := range c.Shards {
			e.Opened = append(e.Opened, i)
		}
	}
	e.Lock = map[kek.LockOp]string{kek.LockTake: LockTaken, kek.LockTakeOver: LockTaken, kek.LockRelease: LockReleased}[c.Lock]
	if m := c.Rotation; m != nil {
		e.Rotation, e.Mode, e.Attempt = m.After.ID, string(m.After.Mode), m.After.Attempt
		e.Old, e.KEK, e.Phase = string(m.After.OldKEK), string(m.After.NewKEK), string(m.After.Phase)
		if m.Before == nil {
			e.Segments = map[string]int{}
			for _, t := range r.tables {
				e.Segments[t.Name()] = t.Segments(m.After.Segments)
			}
		}
	}
	if c.Ends != nil {
		e.Ended, e.EndedPhase = c.Ends.After.ID, string(c.Ends.After.Phase)
	}
	if c.Pointer != nil {
		e.KEK, e.Epoch, e.Moved = string(c.Pointer.After.KEKID), c.Pointer.After.Epoch, true
	}
	return e
}

// Digest names bytes without showing them; "" for none.
func Digest(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
