package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

const (
	deniedID  = "r5" // is to be refused, for the control table was set back
	rebuiltID = "r6" // the emergency after it was rebuilt
)

// bucket is what others have put into the audit bucket, and whether the control table is
// what the bucket says.
type bucket struct {
	objects  map[string]bool // keys of objects that are none of the chain
	lost     bool            // the control table was set back, and nobody has rebuilt it
	evident  bool            // the bucket holds records that the table has forgotten
	restored bool
}

// foreignObject is no record and no anchor.
const foreignObject = "somebody else's"

// putObject puts an object where the next record that is stored has its place; 1: the next
// that is made; 2: where the first anchor has it. Object Lock keeps whatever is there.
func (r *run) putObject(where int) {
	waiting, at, err := r.store.Unpublished(ctx)
	r.must(err)
	_, head, err := r.store.Head(ctx)
	r.must(err)
	key := at.RecordKey(head.Seq + 1)
	switch {
	case where == 2:
		key = audit.AnchorKey(chain, 1)
	case where == 0 && len(waiting) > 0:
		key = at.RecordKey(waiting[0].Record.Seq)
	}
	vault := r.world.Vault()
	if _, err := vault.Get(ctx, key); !errors.Is(err, journal.ErrNoRecord) {
		return
	}
	vault.Tamper(key, []byte(foreignObject))
	if r.objects == nil {
		r.objects = map[string]bool{}
	}
	r.objects[key] = true
	r.tell("somebody puts an object at %s", key)
}

// setBack restores the control table. KMS, rows and bucket stay. Until it is rebuilt what
// it says of KEKs is not held to anything; every row must open all the same.
func (r *run) setBack(back int) {
	if r.recover == nil || r.restored {
		return
	}
	r.alone(func() {
		r.recover(back)
		at, head, err := r.store.Head(ctx)
		r.must(err)
		_, err = r.world.Vault().Get(ctx, at.RecordKey(head.Seq+1))
		r.evident = err == nil && !r.objects[at.RecordKey(head.Seq+1)]
		r.lost, r.restored = true, true
		if r.check.forget(head); !r.evident {
			r.check.epoch = 0 // nothing tells of a switch since
		}
		r.tell("the control table is what it was at record %d; the bucket has more: %t", head.Seq, r.evident)
	})
}

// forget begins with the chain of a control table that was restored.
func (c *checker) forget(head audit.Head) {
	c.head, c.seq, c.recorded = head, head.Seq, map[string]bool{}
	clear(c.applied)
	c.told = replay.Run{}
	entries, err := c.r.store.AuditEntries(ctx, 1)
	c.r.must(err)
	for _, e := range entries {
		if e.Record.Seq <= head.Seq {
			c.told.Take(e)
		}
	}
	c.states, c.dirty, c.shifted, c.fenced = map[kek.ID]kek.State{}, true, true, true
}

// forgive looks for KEKs that KMS has disabled and that the rebuilt registry calls usable:
// the control table has lost their retirement, and the bucket never had it. Doctor names
// them; no row is under one, for every row opens.
func (c *checker) forgive(d doctor.Diagnosis) {
	c.r.mine = true
	keks, err := c.r.store.KEKs(ctx)
	c.r.must(err)
	c.forgiven = map[kek.ID]bool{}
	for _, k := range keks {
		key, err := c.r.kms.Describe(ctx, k.ID)
		switch {
		case err != nil:
			c.r.violated("Rebuilt", "entry %+v: %v", k, err)
			return
		case k.State == kek.Retired, key.Enabled:
			continue
		}
		c.forgiven[k.ID] = true
		if !slices.ContainsFunc(d.Notes, func(n doctor.Note) bool { return strings.Contains(n.Text, string(k.ID)) }) {
			c.r.violated("DisabledNamed", "%s is %s, its KMS key is disabled, and doctor does not say so: %q", k.ID, k.State, d.Notes)
		}
	}
	c.r.mine = false
}

// writtenMeanwhile reports a row that was written under a KEK which is disabled in KMS: a
// restore opens fences again, and whoever had sealed a row before may still write it. It was
// never there to be opened.
func (c *checker) writtenMeanwhile(id string, rec memstore.Record) bool {
	return c.r.lost && !c.seen.Seen(storedRow(id, rec))
}

// restoreRows repairs such rows in place (docs/runbook.md), after a census has named them.
func (r *run) restoreRows() {
	r.mine = true
	v, err := r.store.LoadAll(ctx, "")
	r.must(err)
	for _, t := range r.tables() {
		var ids []string
		retired := false
		t.Each(func(id string, rec memstore.Record) {
			if key, err := r.kms.Describe(ctx, rec.KEK); err != nil || !key.Enabled {
				ids, retired = append(ids, id), retired || v.KEKs[rec.KEK].State == kek.Retired
			}
		})
		if retired && !r.checkCensus() {
			r.violated("CensusSees", "rows %q are under a KEK that is retired, and a census finds nothing", ids)
		}
		for _, id := range ids {
			rec, err := r.seal(id, r.want[id], v.Pointer.KEKID, v.Pointer.Epoch)
			if err != nil {
				r.violated("PointerUsable", "after the repair: %v", err)
				continue
			}
			rec.Version = 1
			t.Plant(id, rec)
			r.tell("row %s is restored under %s", id, v.Pointer.KEKID)
		}
	}
	r.mine = false
}

// checkCensus reports whether a census finds something.
func (r *run) checkCensus() bool {
	c, err := r.steps.TakeCensus(ctx, "", nil)
	r.must(err)
	return c.Problem != ""
}

// usable reports whether rows under a KEK can be read: for as long as the registry is that
// of an earlier time, KMS alone says so.
func (c *checker) usable(id kek.ID) bool {
	if !c.r.lost {
		return c.r.resolves(id)
	}
	k, err := c.r.kms.Describe(ctx, id)
	return err == nil && k.Enabled
}

// rebuilt is what the person does who has restored the control table, when nothing runs any
// more: a normal rotation is refused, doctor says what happened and repairs it, and an
// emergency moves whatever has come to be under another KEK.
func (r *run) rebuilt() bool {
	if !r.lost {
		return false
	}
	r.outage, r.skew = 0, 0
	if r.evident {
		m := newMachine(r, deniedID, rotation.ExecutionInput{})
		for !m.over() && r.failed == nil && m.state != "Mint" {
			m.step()
		}
		if m.state != refused {
			r.violated("SetBackRefused", "the control table was set back, and a normal rotation comes to %s", m.state)
		}
	}
	var d doctor.Diagnosis
	do := func(name string, f func(context.Context, *rotation.Steps) error) (err error) {
		for range 8 {
			if err = r.command(name, f); err == nil || r.failed != nil {
				return err
			}
		}
		return err
	}
	look := func(c context.Context, s *rotation.Steps) (err error) {
		d, err = r.doctor(s).ExamineTable(c)
		return err
	}
	if err := do("doctor", look); err != nil || r.evident && d.SetBack == "" {
		r.violated("SetBackNamed", "doctor does not say that the control table was set back: %v, %+v", err, d.Findings)
	}
	for _, f := range d.Findings {
		r.tell("doctor: %s: %s; %s", f.Item, f.Fault, f.Repair)
	}
	if err := do("doctor --repair", func(c context.Context, s *rotation.Steps) (err error) {
		d, err = r.doctor(s).RepairTable(c)
		return err
	}); err != nil {
		r.violated("Rebuilt", "the control table cannot be rebuilt: %v", err)
	}
	inOrder := func(c context.Context, s *rotation.Steps) error {
		if err := look(c, s); err != nil || len(d.Findings) == 0 && d.SetBack == "" {
			return err
		}
		return fmt.Errorf("%s %+v", d.SetBack, d.Findings) // a rotation may have run meanwhile
	}
	if err := do("doctor", inOrder); err != nil {
		r.violated("Rebuilt", "doctor finds, after it has repaired everything: %v", err)
	}
	if r.failed != nil {
		return true
	}
	r.check.forgive(d)
	r.restoreRows()
	r.lost = false
	r.check.dirty, r.check.shifted, r.check.fenced = true, true, true
	r.alone(func() {})
	r.urgent, r.rival = 1, newMachine(r, rebuiltID, rotation.ExecutionInput{Mode: "emergency", Reason: "the control table was restored", Again: true})
	return true
}

// doctor examines and repairs the control table of a run, as the steps write it.
func (r *run) doctor(s *rotation.Steps) *doctor.Doctor {
	return &doctor.Doctor{
		Journal: s.Journal, Items: r.items, Keys: s.Keys.Admin, Anchor: s.Anchor, FenceShards: s.Config.FenceShards, DeleteHold: s.Config.DeleteHold,
	}
}

// verified: PlantedNamed, SetBackNamed, ChainVerifies. Whoever verifies the whole chain reads
// what was in its way and what the control table has forgotten, and nothing else is wrong.
func (r *run) verified() {
	if len(r.objects) == 0 && !r.restored {
		return
	}
	r.skew, r.outage = 0, 0
	s := *r.steps
	var report audit.Report
	_ = s.VerifyChain(ctx) // it puts the records into the bucket that an execution which gave up has left
	at, head, err := r.store.Head(ctx)
	r.must(err)
	if r.anchors != nil {
		s.Anchor = r.anchors()
		s.Anchor.Journal = s.Journal
		if _, err = s.Anchor.AnchorChain(ctx, anchor.Input{}); err == nil {
			report, err = s.Anchor.VerifyAudit(ctx, anchor.AuditOptions{})
		}
	} else {
		report, err = audit.Verify(ctx, r.world.Vault(), audit.Policy{Chain: chain, Head: &head, Generations: at.Generations, Now: s.Journal.Now()})
	}
	if err != nil {
		r.violated("ChainVerifies", "%v", err)
		return
	}
	named := map[string]bool{}
	for _, f := range report.Findings {
		switch named[f.Object] = true; {
		case r.objects[f.Object], f.Kind == audit.NotAnchored && r.anchors == nil:
		default:
			r.violated("ChainVerifies", "%+v", f)
		}
	}
	for _, g := range report.Generations {
		named[g.Object] = true
	}
	for _, key := range slices.Sorted(maps.Keys(r.objects)) {
		if b, err := r.world.Vault().Get(ctx, key); err != nil || string(b) != foreignObject {
			r.violated("ObjectsStay", "%s: %v, %q", key, err, b)
		}
		if !named[key] {
			r.violated("PlantedNamed", "verification does not name %s: %s", key, report)
		}
	}
	if r.evident && len(report.Generations) == 0 {
		r.violated("SetBackNamed", "verification does not say that the control table was set back: %s", report)
	}
}
