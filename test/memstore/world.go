// Package memstore implements every port of package rotation in memory, for fault
// schedules: deterministic, fast, and with a hook before each effect.
//
// Invariants: one mutex makes every call atomic, so a call has the same outcomes
// as the transaction or conditional write of the real adapter, and no others
// (test/storetest holds both to the same suites). Nothing reads the real clock
// or real randomness, and every listing is sorted, so a schedule replays exactly.
// Nothing that is returned shares memory that a later call changes.
package memstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// Hook is called before every call takes effect, reads included, without any lock
// held: it may block, which makes it a scheduler's yield point, and it may call
// back into the world. op is the method's name, as "Store.Apply"; args are the
// call's. What it returns decides the call's fate:
//
//	true, nil   it goes through
//	true, err   it takes effect and its answer is lost: the caller sees err
//	false, err  it does not take effect: the caller sees err
//
// False without an error is [ErrInjected].
type Hook func(op string, args ...any) (apply bool, err error)

// ErrInjected is the error of a call that a hook stopped without giving one.
var ErrInjected = errors.New("injected fault")

// Observer is called after every call that took effect, or was refused by a
// condition, also when its answer is lost: under the mutex, so in the one order in
// which things happened. It must not call back. err is the effect's own error;
// result is what the call answers where that is more than an error (a key's id, an
// owner, done or not, a page, a data key), the head of the chain for Apply and Record,
// else nil. caller is who made the call, see [WithCaller].
type Observer func(caller, op string, result any, err error, args ...any)

// DataKey is the result of a call on a data key: its plaintext, and as it is wrapped.
type DataKey struct{ Plain, Wrapped []byte }

type callerKey struct{}

// WithCaller says on whose behalf the calls of a context are made: the name of a
// function, or "application" or "person".
func WithCaller(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

func callerOf(ctx context.Context) string {
	caller, _ := ctx.Value(callerKey{}).(string)
	return caller
}

// person is who calls what has no context: a person at a console does.
const person = "person"

// World is one deployment: a control table, a bucket, KMS and tables of rows,
// all under one mutex.
type World struct {
	mu   sync.Mutex
	now  func() time.Time
	hook atomic.Pointer[Hook]
	seen Observer

	store  *Store
	vault  *Vault
	kms    *KMS
	tables map[string]*Table // by name
}

// New returns an empty world. chain names its audit chain.
func New(chain string, now func() time.Time) *World {
	w := &World{now: now, tables: map[string]*Table{}}
	w.store = newStore(w, chain)
	w.vault = &Vault{w: w, objects: map[string][]byte{}}
	w.kms = newKMS(w)
	return w
}

// SetHook installs h, or none if it is nil, for the calls that begin after it. A hook
// may install another.
func (w *World) SetHook(h Hook) { w.hook.Store(&h) }

// SetObserver installs o, or none if it is nil. It must not be called while other
// calls run.
func (w *World) SetObserver(o Observer) { w.seen = o }

// Store is the control table.
func (w *World) Store() *Store { return w.store }

// Vault is the audit bucket.
func (w *World) Vault() *Vault { return w.vault }

// KMS is the key service.
func (w *World) KMS() *KMS { return w.kms }

// NewTable adds an empty table of rows, behind the control table's fences.
func (w *World) NewTable(name string) *Table {
	t := &Table{w: w, name: name, rows: map[string]*record{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables[name] = t
	return t
}

// Open returns the table of a definition's name, as the registry of a release does. It is
// not subject to the hook.
func (w *World) Open(def kek.Source) (source.Driver, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, ok := w.tables[def.Name]
	if !ok {
		return nil, fmt.Errorf("there is no table %q", def.Name)
	}
	switch {
	case t.fence != nil:
		return fenced{t}, nil
	case def.Kind == KindCorpus:
		return corpus{t}, nil
	}
	return t, nil
}

// Resolves reports whether a row may name this KEK: the registry says so and the
// KMS key is enabled (NoKeyOrphans). It is not subject to the hook.
func (w *World) Resolves(id kek.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.kms.keys[id]
	return w.store.keks[id].State.Resolves() && k != nil && k.key.Enabled
}

// call runs effect under the mutex as the hook decides.
func (w *World) call(ctx context.Context, op string, effect func() error, args ...any) error {
	return w.answer(ctx, op, func() (any, error) { return nil, effect() }, args...)
}

// answer is call for an effect whose result an observer is to know.
func (w *World) answer(ctx context.Context, op string, effect func() (any, error), args ...any) error {
	var fault error
	if hook := w.hook.Load(); hook != nil && *hook != nil {
		var apply bool
		if apply, fault = (*hook)(op, args...); !apply {
			if fault == nil {
				fault = ErrInjected
			}
			return fault
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	result, err := effect()
	if w.seen != nil {
		w.seen(callerOf(ctx), op, result, err, args...)
	}
	if fault != nil {
		return fault
	}
	return err
}

var (
	_ journal.Registry     = (*Store)(nil)
	_ journal.Outbox       = (*Store)(nil)
	_ rotation.Drainage    = (*Store)(nil)
	_ rotation.Checkpoints = (*Store)(nil)
	_ journal.AuditBucket  = (*Vault)(nil)
	_ keyring.Admin        = (*KMS)(nil)
	_ keyring.Wrapper      = (*KMS)(nil)
	_ source.Driver        = (*Table)(nil)
	_ source.Labeler       = (*Table)(nil)
)
