package trace

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// Recorder records every effect on a world in memory. It is safe for concurrent
// use.
type Recorder struct {
	world  *memstore.World
	tables []*memstore.Table
	secret []byte // of the digests of DEKs
	mu     sync.Mutex
	events []Event
	opened map[string][]byte // digest of a wrapped DEK → the DEK, for those that calls have shown
	deks   map[string][]byte // digest of a DEK → the DEK
}

// Record begins to record a world and its tables, those that the rotation sweeps.
// What is there already is noted first: the pointer, no rotation being under way,
// and the rows. Effects on other tables are left out. It reads the world as any caller
// does, so no hook should be set yet.
//
// Who makes a call is said by its context, see [memstore.WithCaller]. A run in which
// somebody does not say so is refused.
func Record(ctx context.Context, w *memstore.World, tables ...*memstore.Table) (*Recorder, error) {
	r := &Recorder{world: w, tables: tables, secret: make([]byte, 32), opened: map[string][]byte{}, deks: map[string][]byte{}}
	if _, err := rand.Read(r.secret); err != nil {
		return nil, fmt.Errorf("begin to record: %w", err)
	}
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
			Effect: Snapshot, Caller: Person, KEK: string(v.Pointer.KEKID), Epoch: v.Pointer.Epoch, Seq: head.Seq, Stored: head.Seq,
			Shards: len(w.Store().Fences(v.Pointer.KEKID)),
		})
	}
	for _, t := range r.tables {
		t.Each(func(id string, row memstore.Record) { r.plant(t.Name(), id, row) })
	}
	return nil
}

// plant records a row that is there past the library, and what its blob wraps.
func (r *Recorder) plant(source, id string, row memstore.Record) {
	if _, known := r.opened[Digest(row.WrappedDEK)]; !known && len(row.WrappedDEK) > 0 && r.records(source) {
		if by, dek, ok := r.world.KMS().Opened(row.WrappedDEK, row.Context); ok {
			r.add(Event{
				Effect: Decrypt, Caller: Person, KEK: string(by), Blob: Digest(row.WrappedDEK), DEK: r.dek(memstore.DataKey{Plain: dek, Wrapped: row.WrappedDEK}),
			})
		}
	}
	e := r.written(Plant, source, id, row)
	e.Caller = Person
	r.add(e)
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
	name := sourceName(source)
	return slices.ContainsFunc(r.tables, func(t *memstore.Table) bool { return t.Name() == name })
}

// sourceName is the name of a source as checkpoints know it under whatever definition.
func sourceName(progress string) string {
	name, _, _ := strings.Cut(progress, "~")
	return name
}

// observe is the world's [memstore.Observer]. What was refused by a condition left
// no effect; of those a refused insert alone says something, that its fence was shut.
func (r *Recorder) observe(caller, op string, result any, err error, args ...any) {
	refused := op == "Table.Insert" && (errors.Is(err, memstore.ErrFenced) || errors.Is(err, memstore.ErrExists))
	if err != nil && !refused || result == false {
		return
	}
	if op == Plant {
		r.plant(args[0].(string), args[1].(string), args[2].(memstore.Record))
		return
	}
	e := r.event(op, result, args)
	e.Caller, e.Refused = caller, refused
	r.add(e)
}

// reads are the calls that change nothing and show nothing that the model knows.
var reads = []string{
	"Store.Load", "Store.LoadAll", "Store.KEKs", "Store.Rotations", "Store.AuditEntries", "Store.Unpublished", "Store.Head", "Store.Pointer",
	"Store.KEKState", "Store.LoadCheckpoint", "Store.ListCheckpoints", "Store.LoadAnchor", "Store.LoadAnnouncement", "Store.LoadApproval",
	"Store.LoadDrill", "Store.LoadPause", "Store.ListHealth", "Vault.Get", "Vault.GetAnchor", "Vault.Check", "Vault.Read", "Vault.Versions", "Vault.VersionsAfter", "Store.ListSpent", "Table.Check",
	"Table.EncryptedBy", "Table.Get", "Table.Rehearse", "Table.Reread", "KMS.Describe", "KMS.Tagged", "KMS.Use", "KMS.PolicyDifferences", "KMS.Identify",
}

// beside are the calls that change what the model knows nothing of.
var beside = []string{
	"Store.Mark", "Store.SaveAnchor", "Store.CountHealth", "Vault.PutAnchor", "KMS.AddGrant", "KMS.AddAlias", "KMS.SetMultiRegion", "KMS.SetPolicy",
}

// event is what a call did; without an effect if it only read. A call of which this
// package knows nothing keeps its name, and [Check] refuses it.
func (r *Recorder) event(op string, result any, args []any) Event {
	if slices.Contains(reads, op) || slices.Contains(beside, op) {
		return Event{}
	}
	switch op {
	case "Store.Apply":
		return r.change(result.(int64), args[0].(kek.Change), args[1].(audit.Event))
	case "Store.Record", "Store.Begin":
		return Event{Effect: "Store.Record", Event: args[0].(audit.Event).Type, Seq: result.(int64)}
	case "Store.SaveAnnouncement", "Store.SaveDrill", "Store.SaveApproval", "Store.RemoveSpent", "Store.SavePause":
		return Event{Effect: "Store.Record", Event: args[1].(audit.Event).Type, Seq: result.(int64)}
	case "Store.MarkPublished":
		return Event{Effect: op, Seq: args[0].(int64)}
	case "Vault.Put":
		return Event{Effect: op, Seq: args[1].(audit.Entry).Record.Seq}
	case "Store.Leases":
		return Event{Effect: op, KEK: string(args[0].(kek.ID))}
	case "Store.PutLease", "Store.RenewLease", "Store.DropLease", "Store.Revoke":
		l := args[0].(rotation.Lease)
		return Event{Effect: op, Actor: l.Holder, KEK: string(l.KEK), Expires: l.Expires.UnixMilli()}
	case "Store.SealFence":
		return Event{Effect: op, KEK: string(args[0].(kek.ID)), Shard: args[1].(int)}
	case "Store.SaveCheckpoint":
		c := args[0].(rotation.Checkpoint)
		return Event{Effect: op, Rotation: c.RotationID, Source: c.Source, Sweep: c.Pass, Segment: c.Segment, Done: c.Done}
	}
	if strings.HasPrefix(op, "KMS.") {
		return r.keyEvent(op, result, args)
	}
	return r.rowEvent(op, result, args)
}

func (r *Recorder) keyEvent(op string, result any, args []any) Event {
	switch op {
	case "KMS.Create":
		return Event{Effect: op, Rotation: args[0].(string), Attempt: args[1].(int), KEK: string(result.(kek.ID))}
	case "KMS.Claim":
		if id := args[2].(kek.ID); id == "" || id != result.(kek.ID) {
			return Event{} // it asked, or it lost
		}
		return Event{Effect: op, Rotation: args[0].(string), Attempt: args[1].(int), KEK: string(args[2].(kek.ID))}
	case "KMS.Disable", "KMS.Enable":
		return Event{Effect: op, KEK: string(args[0].(kek.ID))}
	case GenerateDataKey, Decrypt:
		made := result.(memstore.DataKey)
		return Event{Effect: op, KEK: string(args[0].(kek.ID)), Blob: Digest(made.Wrapped), DEK: r.dek(made)}
	case ReEncrypt:
		made := result.(memstore.DataKey)
		return Event{
			Effect: op, Old: string(args[0].(kek.ID)), KEK: string(args[1].(kek.ID)),
			Was: Digest(args[2].([]byte)), Blob: Digest(made.Wrapped), DEK: r.dek(made),
		}
	}
	return Event{Effect: op}
}

// dek remembers a data key, and returns its digest.
func (r *Recorder) dek(k memstore.DataKey) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	digest := r.digest(k.Plain)
	plain := slices.Clone(k.Plain) // its owner clears it
	r.opened[Digest(k.Wrapped)], r.deks[digest] = plain, plain
	return digest
}

// digest names a DEK, or a payload's text, without helping anybody who has the trace to
// find it.
func (r *Recorder) digest(secret []byte) string {
	mac := hmac.New(sha256.New, r.secret)
	mac.Write(secret)
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// open adds to an event the DEK that a payload opens under, that which is wrapped beside
// it or any other that calls have shown, and what it opens to.
func (r *Recorder) open(e Event, payload, wrapped []byte, bound map[string]string) Event {
	if e.Body = Digest(payload); e.Body == "" {
		return e
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	candidates := make([][]byte, 0, 1)
	if dek, ok := r.opened[Digest(wrapped)]; ok {
		candidates = append(candidates, dek)
	}
	for _, digest := range slices.Sorted(maps.Keys(r.deks)) {
		candidates = append(candidates, r.deks[digest])
	}
	for _, dek := range candidates {
		if text, err := (aead.Cipher{}).Open(dek, payload, bound); err == nil {
			e.BodyDEK, e.Text = r.digest(dek), r.digest(text)
			return e
		}
	}
	e.BodyDEK = UnknownDEK
	return e
}

func (r *Recorder) rowEvent(op string, result any, args []any) Event {
	switch op {
	case "Table.Insert":
		e := r.written(op, args[0].(string), args[1].(string), args[2].(memstore.Record))
		e.Shard = args[3].(int)
		return e
	case "Table.Update":
		return r.written(op, args[0].(string), args[1].(string), args[3].(memstore.Record))
	case "Table.Delete":
		return Event{Effect: op, Source: args[0].(string), Row: args[1].(string)}
	case "Table.Label":
		old := args[1].(source.Row)
		if old.KEK == args[2].(kek.ID) {
			return Event{} // it named the same KEK in another form
		}
		return Event{
			Effect: Label, Source: args[0].(string), Row: old.ID, Old: string(old.KEK), KEK: string(args[2].(kek.ID)), Was: Digest(old.WrappedDEK),
		}
	case "Table.Replace":
		old, with := args[1].(source.Row), args[2].(source.Rewrapped)
		return r.open(Event{
			Effect: op, Source: args[0].(string), Row: old.ID, Old: string(old.KEK), KEK: string(with.KEK), Epoch: with.Epoch,
			Was: Digest(old.WrappedDEK), WasBody: Digest(old.Ciphertext), Blob: Digest(with.WrappedDEK),
		}, with.Ciphertext, with.WrappedDEK, old.Bound)
	case Scan:
		req, page := args[1].(source.ScanRequest), result.(source.Page)
		e := Event{
			Effect: op, Source: args[0].(string), Segment: req.Segment, Total: req.Total, From: Digest([]byte(req.Cursor)), To: Digest([]byte(page.Next)),
			Consistent: true,
		}
		for _, row := range page.Rows {
			if row.KEK != "" || len(row.WrappedDEK) > 0 {
				e.Page = append(e.Page, Seen{Row: row.ID, KEK: string(row.KEK), Blob: Digest(row.WrappedDEK)})
			}
		}
		return e
	}
	return Event{Effect: op}
}

// written is a row as it is stored; what is no cipher row is as good as gone. A row
// may say nothing of its KEK, or in a form that nobody understands.
func (r *Recorder) written(op, name, id string, row memstore.Record) Event {
	if row.Other || row.Declared || len(row.WrappedDEK) == 0 && row.KEK == "" {
		return Event{Effect: "Table.Delete", Source: name, Row: id}
	}
	if row.Kind == source.NoKEK || row.Kind == source.UnknownForm {
		row.KEK = ""
	}
	bound := row.Context
	if len(row.Bind) > 0 {
		bound = maps.Clone(row.Bind)
		maps.Copy(bound, row.Context)
	}
	return r.open(Event{
		Effect: op, Source: name, Row: id, KEK: string(row.KEK), Epoch: row.Epoch, Blob: Digest(row.WrappedDEK),
	}, row.Ciphertext, row.WrappedDEK, bound)
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
