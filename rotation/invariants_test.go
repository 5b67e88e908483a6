package rotation_test

import (
	"bytes"
	"fmt"
	"maps"
	"sync"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// watch checks the invariants of the specification between any two effects. Its
// hook must be the world's, or be called by it.
type watch struct {
	*site
	mu     sync.Mutex
	states map[kek.ID]kek.State
	epoch  int64
	head   audit.Head
	seen   map[string]bool           // ids of the records up to head
	opened map[place]memstore.Record // wrapped DEK and ciphertext that were seen to open
	mine   sync.Map                  // first byte of blobs that the watch itself unwraps
	found  map[string]bool
	rowsOf []placed // of the table that is looked at
}

// placed is a row and where it is.
type placed struct {
	place
	memstore.Record
}

func newWatch(s *site) *watch {
	w := &watch{
		site: s, states: map[kek.ID]kek.State{}, head: audit.Genesis(chain), seen: map[string]bool{},
		opened: map[place]memstore.Record{}, found: map[string]bool{},
	}
	w.check("at the start")
	return w
}

// looking is the id under which a test reads the whole registry; no rotation has it.
const looking = "-"

// looks reports whether a call is one of the watch's own: no step makes it.
func (w *watch) looks(op string, args []any) bool {
	switch op {
	case "Store.KEKs", "Store.Rotations", "Store.AuditEntries", "Store.Pointer":
		return true
	case "Store.Load":
		return args[0] == ""
	case "Store.LoadAll":
		return args[0] == looking
	case "KMS.Decrypt":
		if b, ok := args[1].([]byte); ok && len(b) > 0 {
			_, own := w.mine.Load(&b[0])
			return own
		}
	}
	return false
}

// violated reports a violation once per test.
func (w *watch) violated(when, format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if !w.found[msg] {
		w.found[msg] = true
		w.t.Errorf("%s: %s", when, msg)
	}
}

func (w *watch) check(when string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx := as("application")
	v, keks, rotations := must(w.store.Load(ctx, "")), must(w.store.KEKs(ctx)), must(w.store.Rotations(ctx))
	for { // segments are walked side by side, and a test may begin a rotation under them
		now := must(w.store.Load(ctx, ""))
		if now.Lock == v.Lock && *now.Pointer == *v.Pointer {
			break
		}
		v, keks, rotations = now, must(w.store.KEKs(ctx)), must(w.store.Rotations(ctx))
	}
	w.registry(when, v, keks)
	w.rotations(when, v, rotations)
	w.chained(when)
	w.rows(when)
}

// registry: PointerAlwaysUsable, one active KEK, EpochMonotone, NoResurrection.
func (w *watch) registry(when string, v kek.View, keks []kek.KEK) {
	active := 0
	for _, k := range keks {
		if k.State == kek.Active {
			active++
		}
		if was := w.states[k.ID]; was == kek.Retired && k.State != kek.Retired {
			w.violated(when, "NoResurrection: %s is %s again", k.ID, k.State)
		}
		w.states[k.ID] = k.State
	}
	if active != 1 {
		w.violated(when, "%d KEKs are active", active)
	}
	if w.states[v.Pointer.KEKID] != kek.Active || !w.world.Resolves(v.Pointer.KEKID) {
		w.violated(when, "PointerAlwaysUsable: %s is %q", v.Pointer.KEKID, w.states[v.Pointer.KEKID])
	}
	if v.Pointer.Epoch < w.epoch {
		w.violated(when, "EpochMonotone: %d after %d", v.Pointer.Epoch, w.epoch)
	}
	w.epoch = v.Pointer.Epoch
}

// rotations: AtMostOneRotation, RetireAfterSwitch, PsfNeverAfterSwitch,
// EmergencyForward.
func (w *watch) rotations(when string, v kek.View, all []kek.Rotation) {
	running := ""
	left := map[kek.ID]bool{} // KEKs that a rotation has moved off and may have retired
	for _, r := range all {
		for _, id := range r.Olds {
			left[id] = left[id] || !r.SwitchedAt.IsZero() && (r.Phase.Reached(kek.KEKRetired) || r.Phase == kek.Superseded)
		}
	}
	for _, r := range all {
		if !r.Phase.Final() {
			if running != "" {
				w.violated(when, "AtMostOneRotation: %s and %s", running, r.ID)
			}
			running = r.ID
		}
		for _, id := range r.Olds {
			if w.states[id] == kek.Retired && (!left[id] || v.Pointer.KEKID == id) {
				w.violated(when, "RetireAfterSwitch: %s is retired, %s is at %s", id, r.ID, r.Phase)
			}
		}
		if r.Phase == kek.RolledBack && (!r.SwitchedAt.IsZero() || r.Mode == kek.Emergency) {
			w.violated(when, "%s was rolled back after the switch or in an emergency", r.ID)
		}
	}
	if v.Lock != running {
		w.violated(when, "the lock is %q, the running rotation %q", v.Lock, running)
	}
}

// chained: AuditLinear in the outbox.
func (w *watch) chained(when string) {
	entries, err := w.store.AuditEntries(w.t.Context(), w.head.Seq+1)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if w.head, err = e.Follow(chain, w.head); err != nil {
			w.violated(when, "AuditLinear: %v", err)
		}
		if w.seen[e.Record.ID] {
			w.violated(when, "AuditOnceInOrder: %s is recorded twice", e.Record.ID)
		}
		w.seen[e.Record.ID] = true
	}
}

// rows: NoKeyOrphans, RowIntegrity, and no row comes or goes.
func (w *watch) rows(when string) {
	w.site.mu.Lock()
	want := maps.Clone(w.plain)
	w.site.mu.Unlock()
	for _, table := range w.tables {
		w.rowsOf = w.rowsOf[:0]
		table.Each(func(id string, r memstore.Record) {
			if !r.Other && !r.Declared {
				w.rowsOf = append(w.rowsOf, placed{place{table, id}, r})
			}
		})
		for _, r := range w.rowsOf {
			plain, ok := want[r.place]
			if !ok {
				w.violated(when, "row %s came back or out of nothing", r.id)
			}
			delete(want, r.place)
			switch {
			case r.Defect == "" && r.Kind == "":
				w.opens(when, r.place, r.Record, plain)
			case (r.Kind == source.NoKEK || r.Kind == source.UnknownForm) && !w.world.Resolves(r.KEK):
				w.violated(when, "NoKeyOrphans: row %s, which names no KEK, is under %s (%q)", r.id, r.KEK, w.states[r.KEK])
			}
		}
	}
	for p := range want {
		w.violated(when, "row %s is gone", p.id)
	}
}

// bound is what a row's payload is bound to.
func bound(r memstore.Record) map[string]string {
	out := maps.Clone(r.Context)
	maps.Copy(out, r.Bind)
	return out
}

func (w *watch) opens(when string, at place, r memstore.Record, plain string) {
	if !w.world.Resolves(r.KEK) {
		w.violated(when, "NoKeyOrphans: row %s is under %s (%q)", at.id, r.KEK, w.states[r.KEK])
		return
	}
	if was := w.opened[at]; bytes.Equal(was.WrappedDEK, r.WrappedDEK) && bytes.Equal(was.Ciphertext, r.Ciphertext) {
		return
	}
	wrapped := bytes.Clone(r.WrappedDEK)
	w.opened[at] = memstore.Record{WrappedDEK: wrapped, Ciphertext: bytes.Clone(r.Ciphertext)}
	w.mine.Store(&wrapped[0], true)
	dek, err := w.kms.Decrypt(as("application"), r.KEK, wrapped, r.Context)
	w.mine.Delete(&wrapped[0])
	if err == nil {
		got := dek
		if !r.Whole {
			got, err = w.Keys.Cipher.Open(dek, r.Ciphertext, bound(r))
		}
		if err == nil && string(got) != plain {
			err = fmt.Errorf("it opens to %q, not %q", got, plain)
		}
	}
	if err != nil {
		w.violated(when, "RowIntegrity: row %s under %s: %v", at.id, r.KEK, err)
	}
}
