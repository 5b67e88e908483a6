package sim

import (
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/rowcheck"
)

// checker holds what is stored to the promises of spec/rotation.tla. It looks at
// the stores themselves after every effect, and keeps of the past only what a
// promise speaks of.
type checker struct {
	r        *run
	dirty    bool // a row, or
	shifted  bool // the registry or a key has changed
	fenced   bool // a fence has
	states   map[kek.ID]kek.State
	epoch    int64
	head     audit.Head
	recorded map[string]bool
	told     replay.Run // of the chain
	seq      int64
	seen     *rowcheck.Checker       // of rows and their DEKs
	leases   map[rotation.Lease]bool // those that stand
	listed   map[*invocation][]rotation.Lease
	applied  map[*invocation]int64 // the record of the last change that it made
	rows     []memstore.Record     // scratch
	ids      []string

	applier    *invocation // that made the last change
	isSource   bool        // the late table is one
	forgotten  bool        // it is marked, and is no source,
	since      int         // since this call
	joined     bool        // it has just become one
	givenUp    map[string]bool
	unlabelled map[string]bool // rows that do not name their KEK,
	forgiven   map[kek.ID]bool // KEKs that were disabled when the control table was rebuilt
	uncounted  map[string]bool // and have not since before the start of the rotation
}

func newChecker(r *run) *checker {
	return &checker{
		r: r, states: map[kek.ID]kek.State{}, head: audit.Genesis(chain), seq: 1, recorded: map[string]bool{},
		seen:   rowcheck.New(r.kms, r.steps.Keys.Cipher),
		leases: map[rotation.Lease]bool{}, listed: map[*invocation][]rotation.Lease{}, applied: map[*invocation]int64{},
		givenUp: map[string]bool{}, unlabelled: map[string]bool{}, uncounted: map[string]bool{},
	}
}

// observe sees every effect in the one order in which they happened.
func (c *checker) observe(op string, result any, err error, args ...any) {
	switch op {
	case "Store.Apply":
		c.dirty, c.shifted, c.fenced = true, true, true
		if seq, ok := result.(int64); ok && err == nil {
			c.applied[c.r.inv], c.applier = seq, c.r.inv
			if c.seq++; seq != c.seq {
				c.r.violated("EveryEffectRecorded", "%s took effect and the chain's head is %d, not %d", args[0].(kek.Change).Event, seq, c.seq)
			}
		}
	case "Store.Record", "Store.Begin", "Store.RemoveSpent":
		if err == nil {
			c.seq++
		}
	case "Store.Repair":
		if c.dirty, c.shifted, c.fenced = true, true, true; err == nil {
			c.seq++
		}
	case "KMS.Disable":
		c.dirty, c.shifted = true, true
	case "Table.Insert", "Table.Update", "Table.Delete", "Table.Plant", "Table.Replace":
		c.dirty = true
	case "Table.Label":
		c.dirty = true
		if c.r.inv != nil && strings.HasSuffix(c.r.inv.name, dryRun) {
			c.r.violated("DryRun", "%s writes a label", c.r.inv.name)
		}
	case "Store.PutLease":
		c.leases[args[0].(rotation.Lease)] = true
	case "Store.DropLease":
		delete(c.leases, args[0].(rotation.Lease))
	case "Store.Revoke":
		if result == true {
			delete(c.leases, args[0].(rotation.Lease))
		}
	case "Store.Leases":
		if ls, ok := result.([]rotation.Lease); ok && c.r.inv != nil {
			c.listed[c.r.inv] = ls
		}
	case "Store.SealFence":
		c.dirty, c.shifted, c.fenced = true, true, true
		for _, l := range c.listed[c.r.inv] {
			if c.leases[l] && !c.r.lost { // a restore brings leases back that drain has revoked
				c.r.violated("DrainRevokes", "the fence of %s is being sealed while %s, which drain has seen, holds a lease", l.KEK, l.Holder)
			}
		}
	}
}

// look checks what is stored, if anything has changed.
func (c *checker) look() {
	if !c.dirty || c.r.failed != nil {
		return
	}
	c.dirty = false
	was := c.r.mine
	c.r.mine = true
	if c.shifted {
		if !c.r.lost {
			c.registry()
		}
		c.chained()
		c.shifted, c.fenced = false, false
	}
	if c.table(); c.r.keyed != nil {
		c.r.keyed.check()
	}
	if c.joined {
		c.joined = false
		c.r.alone(c.r.added)
	}
	c.r.mine = was
}

var rank = map[kek.State]int{kek.Pending: 1, kek.Active: 2, kek.Draining: 3, kek.Sealed: 4, kek.Retired: 5}

// registry: PointerUsable, EpochMonotone, KekForward, SealedIsShut, RegistryBeforeKMS.
func (c *checker) registry() {
	r := c.r
	v, err := r.store.Load(ctx, "")
	r.must(err)
	keks, err := r.store.KEKs(ctx)
	r.must(err)
	active := 0
	for _, k := range keks {
		if rank[k.State] < rank[c.states[k.ID]] {
			r.violated("KekForward", "%s is %s after %s", k.ID, k.State, c.states[k.ID])
		}
		c.states[k.ID] = k.State
		if k.State == kek.Active {
			active++
		}
		if k.State != kek.Retired && !c.forgiven[k.ID] {
			if key, err := r.kms.Describe(ctx, k.ID); err != nil || !key.Enabled {
				r.violated("RegistryBeforeKMS", "%s is %s in the registry, and disabled", k.ID, k.State)
			}
		}
		if k.State == kek.Sealed && c.fenced {
			for n, s := range r.store.Fences(k.ID) {
				if s != "sealed" {
					r.violated("SealedIsShut", "%s is sealed, its fence shard %d is %s", k.ID, n, s)
				}
			}
		}
	}
	p := v.Pointer
	if active != 1 || c.states[p.KEKID] != kek.Active || !r.resolves(p.KEKID) {
		r.violated("PointerUsable", "the pointer names %s, which is %q; %d KEKs are active", p.KEKID, c.states[p.KEKID], active)
	}
	if c.fenced {
		for n, s := range r.store.Fences(p.KEKID) {
			if s != "open" {
				r.violated("PointerUsable", "fence shard %d of the pointer's KEK is %s", n, s)
			}
		}
	}
	if p.Epoch < c.epoch {
		r.violated("EpochMonotone", "epoch %d after %d", p.Epoch, c.epoch)
	}
	c.epoch = p.Epoch
	c.rotations(v)
}

// rotations: AtMostOneRotation, RetireAfterSwitch, NoRollbackAfterSwitch,
// EmergencyForward, Arbiter.
func (c *checker) rotations(v kek.View) {
	r := c.r
	all, err := r.store.Rotations(ctx)
	r.must(err)
	running := ""
	for _, rot := range all {
		if !rot.Phase.Final() {
			if running != "" {
				r.violated("AtMostOneRotation", "%s and %s", running, rot.ID)
			}
			running = rot.ID
		}
		if rot.Phase == kek.RolledBack && !rot.SwitchedAt.IsZero() {
			r.violated("NoRollbackAfterSwitch", "%s", rot.ID)
		}
		if rot.Phase == kek.RolledBack && rot.Mode == kek.Emergency {
			r.violated("EmergencyForward", "%s was rolled back", rot.ID)
		}
		if rot.NewKEK != "" {
			if owner, err := r.kms.Claim(ctx, rot.ID, rot.Attempt, ""); err != nil || owner != rot.NewKEK {
				r.violated("Arbiter", "%s of %s is registered, %q holds the alias of attempt %d", rot.NewKEK, rot.ID, owner, rot.Attempt)
			}
		}
		if c.states[rot.OldKEK] == kek.Retired && (v.Pointer.KEKID == rot.OldKEK || !c.leftBehind(all, rot.OldKEK)) {
			r.violated("RetireAfterSwitch", "%s is retired, %s is at %s", rot.OldKEK, rot.ID, rot.Phase)
		}
	}
	if v.Lock != running {
		r.violated("AtMostOneRotation", "the lock is %q, the running rotation %q", v.Lock, running)
	}
}

// leftBehind reports whether a rotation has moved off a KEK and retired it.
func (c *checker) leftBehind(all []kek.Rotation, id kek.ID) bool {
	for _, rot := range all {
		over := rot.Phase.Reached(kek.KEKRetired) || rot.Phase == kek.Superseded
		if slices.Contains(rot.Olds, id) && !rot.SwitchedAt.IsZero() && over {
			return true
		}
	}
	return false
}

// chained: AuditLinear, AuditOnceInOrder.
func (c *checker) chained() {
	if c.head.Seq == c.seq {
		return
	}
	entries, err := c.r.store.AuditEntries(ctx, c.head.Seq+1)
	c.r.must(err)
	for _, e := range entries {
		if c.head, err = e.Follow(chain, c.head); err != nil {
			c.r.violated("AuditLinear", "%v", err)
		}
		if c.recorded[e.Record.ID] {
			c.r.violated("AuditOnceInOrder", "%s is recorded twice", e.Record.ID)
		}
		c.recorded[e.Record.ID] = true
		c.registered(e.Record.Type, e.Record.Body)
		c.told.Take(e)
	}
	if found := c.told.Report().Findings; len(found) > 0 {
		c.r.violated("EachRecordIsAStep", "%s", found[0])
	}
}

// strays: NoStrayKeys. Whoever disturbs no listing and makes no key after the last
// sweep leaves none.
func (c *checker) strays(rot kek.Rotation) {
	r := c.r
	if r.lagTags || r.rival != nil {
		return
	}
	ids, err := r.kms.Tagged(ctx, rot.ID)
	r.must(err)
	for _, id := range ids {
		if key, err := r.kms.Describe(ctx, id); err == nil && key.Enabled && id != rot.NewKEK && r.made[id].Before(rot.UpdatedAt) {
			r.violated("NoStrayKeys", "%s is over and %s, which no row can name, is enabled", rot.ID, id)
		}
	}
}

// stored: DoneIsStored. What a step has done is in the bucket when it returns; and
// all that was done before, if the state machine goes on.
func (c *checker) stored(inv *invocation, concluded bool) {
	seq := c.applied[inv]
	if concluded {
		seq = c.seq
	}
	if seq < 2 || c.r.lost {
		return // genesis
	}
	was := c.r.mine
	c.r.mine = true
	at, _, err := c.r.store.Head(ctx)
	c.r.must(err)
	b, err := c.r.world.Vault().Get(ctx, at.RecordKey(seq))
	if err == nil && len(c.r.objects) > 0 {
		_, err = audit.Parse(b)
	}
	if err != nil {
		c.r.violated("DoneIsStored", "%s has returned and record %d is not in the bucket", inv.name, seq)
	}
	c.r.mine = was
}

// table: NoKeyOrphans, RowIntegrity, NoLostWrite, NoRowComesBack.
func (c *checker) table() {
	r := c.r
	c.rows, c.ids = c.rows[:0], c.ids[:0]
	for _, t := range r.tables() {
		t.Each(func(id string, rec memstore.Record) {
			c.rows, c.ids = append(c.rows, rec), append(c.ids, id)
		})
	}
	clear(c.unlabelled)
	for i, rec := range c.rows {
		id := c.ids[i]
		if rec.Kind != "" {
			c.unlabelled[id] = true
		}
		_, wanted := r.want[id]
		switch {
		case wanted && !c.usable(rec.KEK) && c.writtenMeanwhile(id, rec):
		case wanted && !c.usable(rec.KEK):
			c.orphaned(id, rec.KEK)
		default:
			c.found(c.seen.Row(ctx, storedRow(id, rec), r.want))
		}
	}
	c.found(rowcheck.Missing(len(c.rows), r.want))
}

// storedRow is a row as it is checked, whatever a scan would say of it.
func storedRow(id string, rec memstore.Record) source.Row {
	bound := rec.Context
	if rec.Bind != nil { // a keyed row
		bound = rec.Bind
	}
	return source.Row{ID: id, KEK: rec.KEK, WrappedDEK: rec.WrappedDEK, Ciphertext: rec.Ciphertext, Context: rec.Context, Bound: bound}
}

// found notes what the rows have shown, if anything.
func (c *checker) found(f *rowcheck.Finding) {
	if f != nil {
		c.r.violated(f.Promise, "%s", f.Detail)
	}
}

// end checks what must hold when all is over.
func (r *run) end() {
	r.tell("the end")
	r.mine = true
	for n := range 2 {
		r.apps.finish(n)
	}
	r.apps.open()
	r.pass(lag)
	if r.keyed != nil {
		r.must(r.keyed.repair(ctx, r.steps))
	}
	r.check.dirty, r.check.shifted, r.check.fenced = true, true, true
	r.check.look()
	r.mine = true
	if r.failed != nil {
		return
	}
	all, err := r.store.Rotations(ctx)
	r.must(err)
	for _, rot := range all {
		r.check.over(rot)
	}
	if r.keyed != nil {
		r.keyed.sweep()
	}
	r.verified()
	if r.urgent > 0 && !emergencyCompleted(all) {
		r.violated("EmergencyEnds", "none of %d emergencies is completed, the last ended in %s", r.urgent, r.rival.state)
	}
	if r.main.state == completed && r.rival == nil { // its last step has just read the chain in the bucket
		return
	}
	if err := r.steps.VerifyChain(ctx); err != nil {
		r.violated("AuditLinear", "at the end: %v", err)
	}
}

// over checks a rotation that is.
func (c *checker) over(rot kek.Rotation) {
	r := c.r
	if !rot.Phase.Final() {
		r.violated("Terminates", "%s is at %s", rot.ID, rot.Phase)
		return
	}
	if rot.Phase != kek.Completed {
		return
	}
	for _, id := range slices.Concat(rot.Olds, rot.Leftover) {
		if key, err := r.kms.Describe(ctx, id); err != nil || key.Enabled {
			r.violated("RetireAfterSwitch", "%s is completed and the KEK %s that it leaves is still enabled", rot.ID, id)
		}
	}
	for _, ended := range rot.TookOver {
		v, err := r.store.Load(ctx, ended)
		r.must(err)
		for _, id := range append([]kek.ID{v.Rotation.NewKEK}, v.Rotation.Olds...) {
			if key, err := r.kms.Describe(ctx, id); id != "" && (err != nil || key.Enabled) {
				r.violated("SupersededOff", "%s has ended %s and is completed, and the KEK %s is still enabled", rot.ID, ended, id)
			}
		}
	}
	c.strays(rot)
	if rot.Mode != kek.Emergency {
		return
	}
	all, err := r.store.Rotations(ctx)
	r.must(err)
	for _, earlier := range all {
		if earlier.Epoch == 0 || earlier.Epoch > rot.Epoch {
			continue
		}
		c.found(c.seen.Exposed(rot.ID, earlier.Olds, r.inTime(rot.Epoch)))
	}
}

// inTime are the rows that are wanted without those that were inserted after the switch to an
// epoch, by a writer that slept over it (spec/keyed.tla: ExposedOnlyLate).
func (a *actors) inTime(epoch int64) map[string]string {
	if len(a.overslept) == 0 {
		return a.want
	}
	in := maps.Clone(a.want)
	maps.DeleteFunc(in, func(id, _ string) bool { return a.overslept[id] >= epoch })
	return in
}
