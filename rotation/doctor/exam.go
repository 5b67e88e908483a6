package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// exam is one examination of the control table: what was read, and what it should be.
type exam struct {
	now      time.Time
	shards   int           // fence items of a KEK that is registered now
	hold     time.Duration // how long a retired KEK must not be deleted
	items    []Item
	by       map[ItemKey]*Item
	chain    *chainRead
	replayed *replayedState
	keys     keys
	anchors  anchors

	inUse    map[kek.ID]bool  // see chainRead.inUse
	archived map[string]int64 // see chainRead.listArchived
	setBack  bool
	findings []Finding
	notes    []Note
}

// diagnoseTable reads the table, the bucket and KMS, and decides. seq is the number of the
// last record that it saw.
func (doc *Doctor) diagnoseTable(ctx context.Context) (d Diagnosis, seq int64, err error) {
	if doc.Items == nil {
		return d, 0, &journal.Error{Kind: journal.Internal, Field: "control table", Msg: "nothing is wired that examines it"}
	}
	e := exam{now: doc.Journal.Now(), shards: doc.FenceShards, hold: doc.DeleteHold}
	if err := doc.readBoth(ctx, &e); err != nil {
		return d, 0, err
	}
	if e.anchors, err = doc.readAnchors(ctx, e.chain, e.items); err != nil {
		return d, 0, err
	}
	e.inUse = e.chain.inUse()
	e.archived = e.chain.listArchived()
	e.chain.forgetKnown()
	if e.keys, e.notes, err = doc.describeKeys(ctx, e.items, e.chain, e.anchors.proven); err != nil {
		return d, 0, err
	}
	e.chain.believeBranches(e.anchors.proven, e.keys)
	e.setBack, e.replayed = len(e.chain.branches) > 0, e.chain.replayRecords(e.chain.last)
	e.examineItems()
	return Diagnosis{Findings: e.findings, Notes: e.notes, Chain: e.describeBasis(), SetBack: e.describeSetBack()}, e.chain.last, nil
}

// describeSetBack says from when to when the control table was set back; "" if it was not.
func (e *exam) describeSetBack() string {
	var all []string
	for _, b := range e.chain.branches {
		last := b.records[len(b.records)-1].Record
		all = append(all, fmt.Sprintf("the bucket holds records %d to %d, of %s to %s, which the control table does not know: it was set back to record %d, of %s",
			b.records[0].Record.Seq, last.Seq, b.records[0].Record.Time, last.Time, b.fork, e.timeOf(b.fork)))
	}
	return strings.Join(all, "; ")
}

// readBoth reads the table and then the bucket. A record that is appended in between looks
// like one that the table has forgotten. So if there are such records and the head has
// moved, both are read again.
func (doc *Doctor) readBoth(ctx context.Context, e *exam) error {
	for range journal.MaxTries {
		chain, err := doc.readItems(ctx, e)
		if err != nil {
			return err
		}
		if e.chain, err = doc.readChain(ctx, chain, e.items); err != nil {
			return err
		}
		said := e.chain.tableHead
		if len(e.chain.branches) == 0 || said == (audit.Head{}) {
			return nil
		}
		_, now, err := doc.Journal.Outbox.Head(ctx)
		if err != nil {
			return journal.WrapUnavailable("audit head", err)
		}
		if now == said {
			return nil
		}
	}
	return journal.WrapUnavailable("control table", errors.New("it changed each time the audit bucket was read"))
}

// readItems reads the table between two reads of the chain's head. Every transition appends
// a record, so if both heads are equal all items are of one moment.
func (doc *Doctor) readItems(ctx context.Context, e *exam) (chain string, err error) {
	for range journal.MaxTries {
		at, before, unread := doc.Journal.Outbox.Head(ctx)
		var typed *journal.Error
		if at.Chain == "" || errors.As(unread, &typed) && typed.Kind == journal.Misconfigured { // the table of another deployment: nothing is lost
			return "", journal.WrapUnavailable("audit head", unread)
		}
		var after audit.Head
		if e.items, err = doc.Items.Examine(ctx); err != nil {
			return "", journal.ExplainLoadError(err)
		}
		if unread == nil {
			_, after, unread = doc.Journal.Outbox.Head(ctx)
		}
		if unread != nil || before == after { // a head that cannot be read is a finding
			e.items, e.by = dropMisplaced(e.items), map[ItemKey]*Item{}
			for i := range e.items {
				e.by[e.items[i].Key] = &e.items[i]
			}
			return at.Chain, nil
		}
	}
	return "", journal.WrapUnavailable("control table", errors.New("it changed each time it was read"))
}

// describeBasis says which records the findings are based on, and why those that only the
// bucket has are believed or not.
func (e *exam) describeBasis() string {
	s := fmt.Sprintf("%d records, which the control table and the bucket hold", len(e.chain.line))
	for _, b := range e.chain.branches {
		proven := b.countProven(e.anchors.proven)
		s += fmt.Sprintf("; %d that only the bucket holds: %d covered by an anchor, %d believed because KMS agrees, %d not believed",
			len(b.records), proven, b.believed-proven, len(b.records)-b.believed)
	}
	return s
}

// timeOf returns the time of a record of the chain, for a message.
func (e *exam) timeOf(seq int64) string {
	if i, ok := e.chain.findRecord(seq); ok {
		return e.chain.line[i].Record.Time
	}
	return "its beginning"
}

// What an item is rebuilt from, for [Finding].From.
const (
	fromChain = "the audit chain"
	fromKMS   = "KMS"
	fromTable = "the rest of the control table"
)

// examineItems makes the findings. The order matters: which rotation may continue decides
// what state its KEKs should have, and the lock follows the rotations.
func (e *exam) examineItems() {
	e.examineHead()
	e.examineRecords()
	kept := e.examineRotations()
	e.examineKEKs(kept)
	e.examinePointer()
	e.examineRegistry()
	e.examineLock(kept)
	e.recordSetBack()
	e.examineAnchor()
	e.examineOthers()
}

// addFinding adds a finding. Without a Next, a person runs the repair.
func (e *exam) addFinding(f Finding) {
	if f.Next.IsZero() {
		f.Next = journal.Next{Do: journal.RepairTable}
	}
	e.findings = append(e.findings, f)
}

// lookUp returns the item that is stored under a key; nil if there is none.
func (e *exam) lookUp(pk, sk string) (ItemKey, *Item) {
	k := ItemKey{pk, sk}
	return k, e.by[k]
}

// faultOf says what is wrong with an item by itself, without comparing it with others; "" if
// nothing is.
func faultOf(i *Item) string {
	if i == nil {
		return "it is missing"
	}
	err := i.Err
	if err == nil {
		switch v := i.Value.(type) {
		case kek.Pointer:
			err = v.Check()
		case kek.KEK:
			err = v.Check()
		case kek.Rotation:
			err = v.Check()
		case LockItem:
			if kek.CheckRotationID(v.RotationID) != nil {
				err = fmt.Errorf("it names rotation %q", v.RotationID)
			}
		case RegistryItem:
			if v.Rev < 1 {
				err = fmt.Errorf("its revision is %d", v.Rev)
			}
		case kek.Source:
			if v.Kind == "" || v.Place == "" || v.Definition == "" {
				err = errors.New("it has no kind, place or definition")
			}
		case HeadItem:
			if v.Head.Seq < 1 || v.Head.Hash == "" || v.Published > v.Head.Seq {
				err = fmt.Errorf("it says record %d, hash %q, published %d", v.Head.Seq, v.Head.Hash, v.Published)
			}
		case Stored:
			err = v.CheckStored()
		}
	}
	if err == nil {
		return ""
	}
	var typed *journal.Error
	if errors.As(err, &typed) && typed.Kind == journal.ControlTableDamaged {
		err = typed.Err
	}
	return "it is damaged: " + audit.Visible(err.Error())
}

// examineRecords looks for lost records of the outbox. A record that the bucket has is put
// back. One that neither has is declared lost by a record of its own, so that the records
// after it can be published.
func (e *exam) examineRecords() {
	c := e.chain
	for seq := int64(1); seq <= c.last; seq++ {
		k, i := e.lookUp("AUDIT", fmt.Sprintf("%012d", seq))
		n, inLine := c.findRecord(seq)
		fault := faultOf(i)
		switch {
		case fault == "" && (!inLine || c.line[n].Hash == c.table[seq].Hash), i == nil && e.replayed.lost[seq]:
			continue
		case fault == "":
			fault = "it does not follow the record before it; the bucket's does"
		}
		f := Finding{Item: k.String(), Fault: fault, stage: stageAudit, body: map[string]string{"record": fmt.Sprint(seq)}}
		if inLine {
			f.From, f.Repair = "the bucket", "put the record's bytes back"
			f.changes = []ItemChange{{Key: k, Was: i, Put: c.line[n]}}
			e.addFinding(f)
			continue
		}
		f.event, f.Repair = EventRecordLost, "record that it is lost, and publish the records after it"
		f.body = map[string]string{"seq": fmt.Sprint(seq), "hash": c.gaps[seq]}
		f.changes = []ItemChange{{Key: k, Was: i, Keep: i == nil}}
		e.addFinding(f)
	}
}

// examineHead compares the head of the chain with the records.
func (e *exam) examineHead() {
	c := e.chain
	if c.last == 0 {
		return // nothing was ever recorded, or the whole table is lost: its chain begins again
	}
	k, i := e.lookUp("AUDIT_HEAD", noSortKey)
	want := HeadItem{c.headAt(c.last), c.lastPublished(e.replayed.lost), c.at.Generations}
	fault := faultOf(i)
	if fault == "" {
		h := i.Value.(HeadItem) //nolint:forcetypeassert // by its kind
		switch {
		case h.Head != want.Head:
			fault = fmt.Sprintf("it says record %d with hash %s; the last record is %d with hash %s", h.Head.Seq, h.Head.Hash, want.Head.Seq, want.Head.Hash)
		case h.Published > want.Published:
			fault = fmt.Sprintf("it says that the bucket holds the records up to %d; it holds them up to %d", h.Published, want.Published)
		default:
			return
		}
	}
	if want.Head.Hash == "" {
		e.addFinding(Finding{Item: k.String(), Fault: fault + "; the last record cannot be read either", Next: journal.Next{Do: journal.RestoreTable}})
		return
	}
	e.addFinding(Finding{
		Item: k.String(), Fault: fault, From: "the records of the outbox and the bucket",
		Repair: fmt.Sprintf("set it to record %d, published up to %d", want.Head.Seq, want.Published), stage: stageAudit,
		changes: []ItemChange{{Key: k, Was: i, Put: want}},
	})
}

// examineRotations ends every rotation that cannot continue, and returns the one that can;
// "" if there is none.
func (e *exam) examineRotations() (kept string) {
	ids := slices.Collect(maps.Keys(e.replayed.rotations))
	for _, i := range e.items {
		if i.Kind == ItemRotation {
			ids = append(ids, i.ID)
		}
	}
	if _, lock := e.lookUp("LOCK", noSortKey); faultOf(lock) == "" {
		ids = append(ids, lock.Value.(LockItem).RotationID) //nolint:forcetypeassert // by its kind
	}
	slices.Sort(ids)
	var running []string
	for _, id := range slices.Compact(ids) {
		if e.examineRotation(id) {
			running = append(running, id)
		}
	}
	if len(running) == 1 {
		return running[0]
	}
	for _, id := range running { // more than one: the chain says which one has the lock
		if id == e.replayed.running {
			kept = id
			continue
		}
		_, i := e.lookUp("ROTATION#"+id, noSortKey)
		e.endRotation(id, i, i.Value.(kek.Rotation), "another rotation runs") //nolint:forcetypeassert // by its kind
	}
	return kept
}

// examineRotation reports whether a rotation may continue. It may not if its record is
// damaged, if the chain says that it is over, or if the table was set back: then it may have
// switched without knowing it.
func (e *exam) examineRotation(id string) bool {
	_, i := e.lookUp("ROTATION#"+id, noSortKey)
	said := e.replayed.rotations[id] // if the chain does not know it, the phase is "", which is neither final nor that of a record
	fault := faultOf(i)
	var r kek.Rotation
	if i != nil {
		r, _ = i.Value.(kek.Rotation)
	}
	switch {
	case fault == "" && r.Phase.Final():
		return false
	case fault == "" && e.setBack && said.Phase != r.Phase:
		fault = fmt.Sprintf("it is %s here and %s in the audit chain: the control table was set back", r.Phase, firstNonEmpty(string(said.Phase), "unknown"))
	case fault == "" && e.setBack:
		fault = "the control table was set back while it ran"
	case fault == "" && said.Phase.Final():
		fault = fmt.Sprintf("it is %s here and %s in the audit chain", r.Phase, said.Phase)
	case fault == "":
		return true
	}
	e.endRotation(id, i, r, fault)
	return false
}

// firstNonEmpty returns s, or otherwise if s is empty.
func firstNonEmpty(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// endRotation ends a rotation in the phase that the chain says, or else as superseded. What
// can be read of its record is kept; the rest comes from the chain.
func (e *exam) endRotation(id string, i *Item, r kek.Rotation, fault string) {
	said, known := e.replayed.rotations[id]
	r = fillRecord(r, said)
	r.ID, r.Phase = id, said.Phase // superseded, unless the chain says that it is over
	reason := "ended by doctor: " + fault
	after := r.Lose(reason, e.now)
	f := Finding{
		Item: "ROTATION#" + id, Fault: fault, From: fromChain, Repair: "end it as " + string(after.Phase), stage: stageRegistry,
		changes: []ItemChange{{Key: ItemKey{"ROTATION#" + id, noSortKey}, Was: i, Put: after}},
		body:    map[string]string{"rotation." + id: string(after.Phase)},
	}
	if after.Phase == kek.Superseded {
		f.Repair += "; the next rotation, or an emergency, moves what it has left"
	}
	if !known {
		f.From = fromTable
	}
	e.addFinding(f)
}

// fillRecord fills the gaps of a damaged record with what the chain says.
func fillRecord(r, said kek.Rotation) kek.Rotation {
	if r.Mode != kek.Normal && r.Mode != kek.Emergency {
		r.Mode = said.Mode
	}
	if r.Mode == "" {
		r.Mode = kek.Normal
	}
	r.Label, r.Reason = firstNonEmpty(r.Label, said.Label), firstNonEmpty(r.Reason, said.Reason)
	r.OldKEK, r.NewKEK = kek.ID(firstNonEmpty(string(r.OldKEK), string(said.OldKEK))), kek.ID(firstNonEmpty(string(r.NewKEK), string(said.NewKEK)))
	if len(r.Olds) == 0 {
		r.Olds = said.Olds
	}
	r.Execution = firstNonEmpty(r.Execution, said.Execution)
	r.Actor = firstNonEmpty(r.Actor, said.Actor)
	r.Requester = firstNonEmpty(r.Requester, said.Requester)
	r.Drill, r.EndedBy = firstNonEmpty(r.Drill, said.Drill), firstNonEmpty(r.EndedBy, said.EndedBy)
	r.Epoch = max(r.Epoch, said.Epoch)
	r.Rev = max(r.Rev, said.Rev, 1)
	r.Attempt = max(r.Attempt, 1)
	if r.StartedAt.IsZero() {
		r.StartedAt = said.StartedAt
	}
	if r.SwitchedAt.IsZero() {
		r.SwitchedAt = said.SwitchedAt
	}
	if r.OldKEK == "" {
		r.OldKEK = "unknown"
	}
	return r
}

// examineKEKs compares each registry entry and its fence with the chain and KMS. running is
// the rotation that may continue. A KEK that only unproven records name is left out, unless
// it carries the tag of its rotation: a writer of the bucket could invent one.
func (e *exam) examineKEKs(running string) {
	shards := map[kek.ID]int{}
	ids := slices.Collect(maps.Keys(e.replayed.keks))
	for _, i := range e.items {
		switch i.Kind {
		case ItemKEK:
			ids = append(ids, kek.ID(i.ID))
		case ItemFence, ItemKeyFence:
			f, _ := i.Value.(FenceItem)
			shards[kek.ID(i.ID)] = max(shards[kek.ID(i.ID)], f.Shard+1)
		default:
		}
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if !e.keys.ours[id] {
			e.notes = append(e.notes, Note{Text: fmt.Sprintf("KEK %s is named by records that no anchor covers and that the control table does not know, and it carries no tag of its rotation: it is left out", id)})
			continue
		}
		k := e.examineKEK(id, shards[id], running)
		e.examineFence(k, false)
		e.examineFence(k, true)
		e.examineUsed(id)
	}
}

// examineUsed reports a KEK that rows may be under although its KMS key is disabled: the
// rotation that switched to it was rolled back in a control table that had forgotten the
// switch.
func (e *exam) examineUsed(id kek.ID) {
	kms, known := e.keys.known[id]
	if !e.inUse[id] || !known || kms.Enabled || e.replayed.pointer != nil && e.replayed.pointer.KEKID == id {
		return
	}
	e.addFinding(Finding{
		Item:  "KEK#" + string(id),
		Fault: fmt.Sprintf("records that the control table had forgotten say that it was in use, and its KMS key is in state %q: rows under it cannot be read", kms.State),
		Next:  journal.Next{Do: journal.EnableUsedKey, KEK: id},
	})
}

// examineKEK compares the registry entry of a KEK with the chain and KMS, and returns the
// entry as it should be. If they disagree, [kek.RebuiltState] chooses the state from which
// rows stay readable.
func (e *exam) examineKEK(id kek.ID, shards int, running string) kek.KEK {
	key, i := e.lookUp("KEK#"+string(id), noSortKey)
	said, known := e.replayed.keks[id]
	kms := e.keys.known[id]
	fault := faultOf(i)
	var found kek.KEK
	if i != nil {
		found, _ = i.Value.(kek.KEK)
	}
	p := e.replayed.pointer
	_, own := e.lookUp("ROTATION#"+running, noSortKey)
	r, _ := valueOf[kek.Rotation](own)
	abandoned := said.State == kek.Pending && r.NewKEK != id // no other rotation switches to it or retires it
	if abandoned {
		said.State = "" // unknown: a switch to it may have been forgotten
	}
	want := kek.RebuiltState(said.State, p != nil && p.KEKID == id, kms.Enabled)
	_, there := e.keys.known[id]
	wronged := said.State == kek.Retired && e.inUse[id] && there
	if wronged && want == kek.Retired {
		want = kek.Sealed
	}
	switch {
	case fault == "" && (!known || found.State == want || found.State == said.State && said.State == kek.Retired && !wronged):
		e.compareWithKMS(key, found, kms)
		return found
	case fault == "" && wronged:
		fault = "it is retired as if it had never been in use, and records that the control table had forgotten say that it was"
	case fault == "" && abandoned:
		fault = fmt.Sprintf("it is %s, and the rotation that minted it is over", found.State)
	case fault == "":
		fault = fmt.Sprintf("it is %s here; the audit chain says %s", found.State, said.State)
	}
	k := found
	k.ID, k.State = id, want
	k.ARN = firstNonEmpty(kms.ARN, k.ARN)
	k.Label = firstNonEmpty(k.Label, said.Label)
	k.RotationID = firstNonEmpty(k.RotationID, said.RotationID)
	if k.ARN == "" {
		k.ARN = "unknown"
	}
	if k.FenceShards = max(shards, found.FenceShards); k.FenceShards < 1 {
		k.FenceShards = e.shards
	}
	for _, t := range []struct{ at, said *time.Time }{{&k.CreatedAt, &said.CreatedAt}, {&k.SwitchedAt, &said.SwitchedAt}} {
		if t.at.IsZero() {
			*t.at = *t.said
		}
	}
	k.RetiredAt = time.Time{}
	k.Reason = ""
	k.NotBeforeDelete = time.Time{}
	if want == kek.Retired {
		k.RetiredAt = said.RetiredAt
		k.Reason = firstNonEmpty(found.Reason, said.Reason)
		k.NotBeforeDelete = said.RetiredAt.Add(e.hold)
	}
	f := Finding{
		Item: key.String(), Fault: fault, From: fromChain + " and " + fromKMS, Repair: "make it " + string(want), stage: stageRegistry,
		changes: []ItemChange{{Key: key, Was: i, Put: k}}, body: map[string]string{"kek." + string(id): string(want)},
	}
	if abandoned {
		f.Repair = "make it sealed: rows under it, if there are any, can be read, and the next rotation moves them and disables it"
	}
	if !known {
		f.From, f.Repair = fromKMS, "make it sealed, for the chain says nothing of it: rows under it can be read, and the next rotation moves them"
	}
	switch {
	case wronged && want == kek.Sealed:
		f.Repair = "make it sealed: the next rotation moves what is under it and disables it"
	case said.State == kek.Retired && want == kek.Sealed:
		f.Repair += ", for its KMS key is enabled: the next rotation moves what is under it and disables it"
	}
	e.addFinding(f)
	return k
}

// compareWithKMS notes a retired KEK whose KMS key is enabled: a retirement stopped halfway,
// or a person enabled it. It also notes a KEK that is not retired, and that the pointer has
// left, whose key is disabled: the control table has forgotten a retirement, or a person
// disabled it.
func (e *exam) compareWithKMS(key ItemKey, k kek.KEK, kms keyring.Key) {
	if !kms.Enabled && (k.State == kek.Draining || k.State == kek.Sealed || k.State == kek.Pending) && !e.inUse[k.ID] {
		e.notes = append(e.notes, Note{
			Text: fmt.Sprintf("%s is %s and its KMS key is not enabled: rows under it, if there are any, cannot be read", key, k.State), Next: journal.Next{Do: journal.EnableKey, KEK: k.ID},
		})
	}
	if k.State == kek.Retired && kms.Enabled {
		for _, r := range e.replayed.rotations {
			if !r.Phase.Final() && (slices.Contains(r.Olds, k.ID) || r.NewKEK == k.ID) {
				return // its rotation will disable it
			}
		}
		e.notes = append(e.notes, Note{Text: fmt.Sprintf("%s is retired and its KMS key is enabled", key), Next: journal.Next{Do: journal.DisableKey, KEK: k.ID}})
	}
}

// examineFence checks one of the fences of a KEK. The active KEK has all shards of both, and
// they are open. Every other KEK that was in use has all shards of the fence of rows too, and
// only a draining KEK may have open ones.
//
// The fence of rows of a KEK that takes records alone was never opened, and stays so.
//
// A KEK from before the key table has no fence of records. A missing shard refuses as a sealed
// one does, so that of the active KEK alone is rebuilt (spec: OpenRecords).
func (e *exam) examineFence(k kek.KEK, records bool) {
	pk := "FENCE#"
	fenced := (k.State.Resolves() || e.replayed.fenced[k.ID]) && !k.RecordsOnly
	opens := k.State == kek.Active && !k.RecordsOnly
	if records {
		pk = "DEKFENCE#"
		fenced = k.State == kek.Active
		opens = k.State == kek.Active
	}
	for n := range max(k.FenceShards, e.maxShard(k.ID, records)+1) {
		key, i := e.lookUp(pk+string(k.ID), fmt.Sprintf("%02d", n))
		fault := faultOf(i)
		f, _ := valueOf[FenceItem](i)
		switch {
		case i == nil && (!fenced || n >= k.FenceShards), i == nil && e.isArchived(key) && k.State == kek.Retired:
			continue
		case fault != "":
		case f.Open == opens, k.State == kek.Draining && (!f.Open || records || !k.RecordsOnly):
			continue
		case f.Open && !records && k.RecordsOnly:
			fault = "it is open, and its KEK takes records alone"
		case f.Open:
			fault = fmt.Sprintf("it is open, and its KEK is %s", k.State)
		default: // sealed is final
			e.addFinding(Finding{
				Item: key.String(), Fault: "it is sealed, and its KEK is active: inserts that meet it try another shard",
				Next: journal.Next{Say: "nothing at once; the next rotation gives its KEK a fence of its own"},
			})
			continue
		}
		want, what := FenceItem{KEK: k.ID, Shard: n, Records: records}, "seal it"
		if opens {
			want.Open, what = true, "open it"
		}
		e.addFinding(Finding{
			Item: key.String(), Fault: fault, From: fmt.Sprintf("the state of its KEK, %s", k.State), Repair: what, stage: stageRegistry,
			changes: append([]ItemChange{{Key: key, Was: i, Put: want}}, e.keepKEK(k.ID)...),
		})
	}
}

// isArchived reports whether the chain says that an item was removed, and keeps what it said. A
// fence shard that is not there refuses an insert as a sealed one does.
func (e *exam) isArchived(key ItemKey) bool { return e.archived[key.String()] > 0 }

// examineArchived removes an item that was archived and is there again: a worker woke up late,
// or somebody put it back. Nothing reads it. It is left alone
// unless its rotation is over, or its KEK retired.
func (e *exam) examineArchived(i *Item) {
	var keep []ItemChange
	switch v := i.Value.(type) {
	case FenceItem:
		k, ok := valueOf[kek.KEK](e.by[ItemKey{"KEK#" + string(v.KEK), noSortKey}])
		if v.Open || !ok || k.State != kek.Retired {
			return // examineFence judges it
		}
		keep = e.keepKEK(v.KEK)
	default:
		id, _, _ := strings.Cut(i.ID, "#")
		r, ok := valueOf[kek.Rotation](e.by[ItemKey{"ROTATION#" + id, noSortKey}])
		if !ok || !r.Phase.Final() {
			return
		}
	}
	e.addFinding(Finding{
		Item: i.Key.String(), Fault: fmt.Sprintf("it was archived by record %d and is there again", e.archived[i.Key.String()]),
		From: fromChain, Repair: "remove it; the record keeps what it said", stage: stageRemoval,
		changes: append([]ItemChange{{Key: i.Key, Was: i}}, keep...),
	})
}

// keepKEK makes a repair conditional on the entry of a KEK, from whose state it was decided:
// a fence must not be opened for a KEK that was sealed meanwhile.
func (e *exam) keepKEK(id kek.ID) []ItemChange {
	key, i := e.lookUp("KEK#"+string(id), noSortKey)
	return []ItemChange{{Key: key, Was: i, Keep: true}}
}

// maxShard returns the highest number of a stored shard of a fence; -1 for none.
func (e *exam) maxShard(id kek.ID, records bool) int {
	most := -1
	for _, i := range e.items {
		if f, _ := i.Value.(FenceItem); f.KEK == id && f.Records == records {
			most = max(most, f.Shard)
		}
	}
	return most
}

// valueOf returns the value of an item; false if the item is nil or has another type.
func valueOf[T any](i *Item) (T, bool) {
	if i == nil {
		var zero T
		return zero, false
	}
	v, ok := i.Value.(T)
	return v, ok
}

// examinePointer compares the pointer with the chain. It is rebuilt only to a KEK whose
// KMS key is enabled and usable.
func (e *exam) examinePointer() {
	key, i := e.lookUp("POINTER", noSortKey)
	fault := faultOf(i)
	found, _ := valueOf[kek.Pointer](i)
	want := e.replayed.pointer
	if want == nil {
		want = e.activeKEK()
	}
	switch {
	case want == nil && i == nil && e.isBlank():
		return // before genesis
	case want == nil:
		if fault != "" {
			e.addFinding(Finding{Item: key.String(), Fault: fault + "; neither the chain nor the registry says which KEK is in use", Next: journal.Next{Do: journal.RestoreTable}})
		}
		return
	case fault == "" && found.KEKID == want.KEKID && found.Epoch >= want.Epoch && !e.setBack:
		e.checkPointed(key, want.KEKID, "")
		return
	case fault == "" && found.KEKID == want.KEKID && found.Epoch >= want.Epoch:
		fault = fmt.Sprintf("its epoch, %d, may have been another KEK's: the control table was set back", found.Epoch)
	case fault == "":
		fault = fmt.Sprintf("it names KEK %s at epoch %d; the audit chain says KEK %s at epoch %d", found.KEKID, found.Epoch, want.KEKID, want.Epoch)
	}
	if e.checkPointed(key, want.KEKID, fault) {
		return
	}
	p := want.Rebuild(found)
	if e.setBack { // a switch whose record never reached the bucket would have had the next epoch
		p.Epoch++
	}
	p.KeyARN = e.keys.known[p.KEKID].ARN
	e.addFinding(Finding{
		Item: key.String(), Fault: fault, From: fromChain + " and " + fromKMS, stage: stageRegistry,
		Repair:  fmt.Sprintf("point at KEK %s, epoch %d", p.KEKID, p.Epoch),
		changes: append([]ItemChange{{Key: key, Was: i, Put: p}}, e.keepKEK(p.KEKID)...),
		body:    map[string]string{"pointer": string(p.KEKID), "epoch": strconv.FormatInt(p.Epoch, 10), "kek." + string(p.KEKID): string(kek.Active)},
	})
}

// checkPointed reports a KEK that the pointer should name and that is not usable in KMS. It
// returns whether it did: then the pointer is not rebuilt.
func (e *exam) checkPointed(key ItemKey, id kek.ID, fault string) bool {
	kms, known := e.keys.known[id]
	if kms.Enabled && kms.Usable {
		return false
	}
	state := "not known to KMS"
	if known {
		state = fmt.Sprintf("in KMS state %q", kms.State)
	}
	next := journal.Next{Do: journal.EnableKey, KEK: id}
	if k := e.replayed.keks[id]; k.State == kek.Retired {
		next = journal.Next{Do: journal.ShowAudit}
	}
	e.addFinding(Finding{Item: key.String(), Fault: strings.TrimPrefix(fault+"; ", "; ") + fmt.Sprintf("KEK %s is %s", id, state), Next: next})
	return true
}

// activeKEK returns the pointer by the registry, if the chain says nothing: the one active
// KEK, at the epoch of the last rotation; nil if there is not exactly one.
func (e *exam) activeKEK() *kek.Pointer {
	var p *kek.Pointer
	epoch := int64(1)
	for _, i := range e.items {
		switch v := i.Value.(type) {
		case kek.KEK:
			if i.Err == nil && v.State == kek.Active {
				if p != nil {
					return nil
				}
				p = &kek.Pointer{KEKID: v.ID, RotationID: v.RotationID, SwitchedAt: v.SwitchedAt}
			}
		case kek.Rotation:
			epoch = max(epoch, v.Epoch)
		}
	}
	if p != nil {
		p.Epoch = epoch
	}
	return p
}

// isBlank reports a control table before genesis: nothing was ever registered in it.
func (e *exam) isBlank() bool {
	return len(e.replayed.keks) == 0 && !slices.ContainsFunc(e.items, func(i Item) bool { return i.Kind == ItemKEK || i.Kind == ItemRegistry })
}

// examineRegistry compares the registered sources and their revision with the chain.
func (e *exam) examineRegistry() {
	if e.isBlank() {
		return
	}
	key, i := e.lookUp("REGISTRY", noSortKey)
	fault := faultOf(i)
	found, _ := valueOf[RegistryItem](i)
	if fault == "" && found.Rev < e.replayed.registry {
		fault = fmt.Sprintf("its revision is %d; the audit chain counts %d changes", found.Rev, e.replayed.registry)
	}
	next := RegistryItem{max(found.Rev, e.replayed.registry) + 1}
	bump := ItemChange{Key: key, Was: i, Put: next}
	body := map[string]string{"registry": fmt.Sprint(next.Rev)}
	if fault != "" {
		e.addFinding(Finding{
			Item: key.String(), Fault: fault, From: fromChain, Repair: fmt.Sprintf("set its revision to %d", next.Rev),
			stage: stageRegistry, changes: []ItemChange{bump}, body: body,
		})
	}
	for _, name := range e.sourceNames() {
		e.examineSource(name, bump, body)
	}
}

// sourceNames lists the sources that the chain or the table names.
func (e *exam) sourceNames() []string {
	names := slices.Collect(maps.Keys(e.replayed.sources))
	for _, i := range e.items {
		if i.Kind == ItemSource {
			names = append(names, i.ID)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// examineSource compares one source with the chain. bump is the change of the registry's
// revision, so that a rotation which has read the old sources cannot start from them.
func (e *exam) examineSource(name string, bump ItemChange, body map[string]string) {
	key, i := e.lookUp("SOURCE", name)
	fault := faultOf(i)
	said, known := e.replayed.sources[name]
	found, _ := valueOf[kek.Source](i)
	src, from := said.Source, fromChain
	switch {
	case fault == "" && (!e.setBack || !said.whole || said.Definition == found.Definition):
		return
	case fault == "":
		fault = "its definition is not the last that was registered: the control table was set back"
		src.Generation = max(src.Generation, found.Generation+1)
	case !said.whole:
		if src, known = e.frozenSource(name, said); known {
			from = "the record of the last rotation that froze it"
		}
	}
	if !known {
		e.addFinding(Finding{
			Item: key.String(), Fault: fault,
			Next: journal.Next{Do: journal.AddOrRemoveSource, Name: name},
		})
		return
	}
	e.addFinding(Finding{
		Item: key.String(), Fault: fault, From: from, Repair: "register it again as " + src.Place, stage: stageRegistry,
		changes: []ItemChange{{Key: key, Was: i, Put: src}, bump}, body: body,
	})
}

// frozenSource returns a source as the newest readable rotation has frozen it.
func (e *exam) frozenSource(name string, said replayedSource) (src kek.Source, found bool) {
	var at time.Time
	for _, i := range e.items {
		r, _ := i.Value.(kek.Rotation)
		if i.Err != nil || r.StartedAt.Before(at) {
			continue
		}
		for _, f := range r.Sources {
			if f.Name == name && (said.Definition == "" || f.Definition == said.Definition) {
				src = f
				found = true
				at = r.StartedAt
			}
		}
	}
	src.AddedAt, src.AddedBy = said.AddedAt, said.AddedBy
	return src, found
}

// examineLock checks that the running rotation holds the lock, or that it is free.
func (e *exam) examineLock(running string) {
	key, i := e.lookUp("LOCK", noSortKey)
	fault := faultOf(i)
	l, _ := valueOf[LockItem](i)
	switch {
	case running == "" && i == nil || fault == "" && l.RotationID == running:
		return
	case running == "" && fault == "":
		fault = fmt.Sprintf("rotation %s holds it, which has no record or is over", l.RotationID)
	case fault == "":
		fault = fmt.Sprintf("rotation %s holds it, and rotation %s runs", l.RotationID, running)
	}
	f := Finding{Item: key.String(), Fault: fault, From: "the records of the rotations", stage: stageRegistry}
	if running == "" {
		f.Repair, f.changes = "free it", []ItemChange{{Key: key, Was: i}}
	} else {
		k, r := e.lookUp("ROTATION#"+running, noSortKey)
		f.Repair = "give it to rotation " + running + ", which then continues"
		f.changes = []ItemChange{{Key: key, Was: i, Put: LockItem{running}}, {Key: k, Was: r, Keep: true}}
	}
	e.addFinding(f)
}

// marksUnknown is a warning about a table that was set back. Marks have no audit records, so
// lost ones cannot be rebuilt.
const marksUnknown = "tables that were first written to since then have lost their marks: compare the registered sources with the tables that applications write to, " +
	"and register what is missing"

// recordSetBack adds a finding whose repair records that the table was set back. After that
// the forgotten branches are history (forgetKnown): the record says what the table should be.
func (e *exam) recordSetBack() {
	if !e.setBack {
		return
	}
	var tips []string
	for _, b := range e.chain.branches {
		tips = append(tips, b.tipHash())
	}
	key, i := e.lookUp("POINTER", noSortKey)
	e.addFinding(Finding{
		Item: "control table", Fault: e.describeSetBack() + "; " + marksUnknown, From: fromChain, Repair: "record it; the audit chain continues in a new generation", stage: stageRegistry,
		changes: []ItemChange{{Key: key, Was: i, Keep: true}}, body: map[string]string{audit.BodyForgotten: strings.Join(tips, ",")},
	})
}

// examineAnchor compares the state of anchoring with the anchors in the bucket.
func (e *exam) examineAnchor() {
	if e.anchors.last == nil {
		return
	}
	key, i := e.lookUp("ANCHOR", noSortKey)
	fault := faultOf(i)
	st, _ := valueOf[anchor.State](i)
	last := *e.anchors.last
	switch {
	case fault == "" && st.Last.N >= last.N:
		return
	case fault == "" && st.Intent != nil && st.Intent.Statement.N == last.N && st.Last.N == last.N-1:
		return // an anchor that is being made, or whose maker died: the next call of anchor completes it
	case fault == "":
		fault = fmt.Sprintf("it says anchor %d; the bucket holds anchor %d", st.Last.N, last.N)
	}
	e.addFinding(Finding{
		Item: key.String(), Fault: fault, From: "the anchors in the bucket, the last of which verifies", Repair: fmt.Sprintf("set it to anchor %d", last.N), stage: stageAnchor,
		changes: []ItemChange{{Key: key, Was: i, Put: anchor.State{Rev: max(st.Rev, last.N), Last: last, Places: e.anchors.places}}}, body: map[string]string{"anchor": fmt.Sprint(last.N)},
	})
}

// removals says, by kind, what it costs to remove a damaged item. Kinds that are not listed
// are never removed.
var removals = map[ItemKind]string{
	ItemMark:         "a process that writes into the table leaves its mark again",
	ItemLease:        "the lease is revoked: its holder takes another before it writes",
	ItemCheckpoint:   "the pass over that segment begins from its start",
	ItemAnnouncement: "the window counts as not announced, and must be announced again",
	ItemDrill:        "the drill counts as not passed, and must be run again",
	ItemApproval:     "the rotation is asked about again",
	ItemPause:        "the rotation counts as not paused, and must be paused again",
	ItemHealth:       "the day counts as one without canaries",
}

// examineOthers removes damaged items that are made again when they are missing, and notes
// items that this project does not write.
func (e *exam) examineOthers() {
	for n := range e.items {
		i := &e.items[n]
		cost, removable := removals[i.Kind]
		fault := faultOf(i)
		switch {
		case i.Kind == "":
			e.notes = append(e.notes, Note{Text: fmt.Sprintf("item %s is not one of this project's: it is left alone", audit.Visible(i.Key.String()))})
		case (i.Kind == ItemFence || i.Kind == ItemKeyFence) && e.isStrayFence(i):
			e.notes = append(e.notes, Note{Text: fmt.Sprintf("item %s has a key that its kind cannot have: it is left alone", audit.Visible(i.Key.String()))})
		case fault != "" && removable:
			e.addFinding(Finding{
				Item: i.Key.String(), Fault: fault, Repair: "remove it; " + cost, stage: stageRemoval, changes: []ItemChange{{Key: i.Key, Was: i}},
			})
		case fault == "" && e.isArchived(i.Key):
			e.examineArchived(i)
		}
	}
}

// isStrayFence reports a fence shard without a number, or of a KEK that neither the table nor
// the chain knows.
func (e *exam) isStrayFence(i *Item) bool {
	f, _ := i.Value.(FenceItem)
	return f.Shard < 0 || e.by[ItemKey{"KEK#" + i.ID, noSortKey}] == nil && e.replayed.keks[kek.ID(i.ID)].ID == ""
}
