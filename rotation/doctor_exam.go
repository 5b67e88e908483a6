package rotation

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
)

// exam is one look at the control table: what was read, and what it should be.
type exam struct {
	now     time.Time
	config  Config
	items   []Item
	by      map[ItemKey]*Item
	chain   *chainRead
	told    *told
	keys    keys
	anchors anchors

	inUse    map[kek.ID]bool // see chainRead.inUse
	setBack  bool
	findings []Finding
	notes    []string
}

// diagnose reads everything and decides. seq is the end of the chain that it saw.
func (s *Steps) diagnose(ctx context.Context) (d Diagnosis, seq int64, err error) {
	if s.Items == nil {
		return d, 0, &Error{Kind: Internal, Field: "control table", Msg: "nothing is wired that examines it"}
	}
	e := exam{now: s.Now(), config: s.Config}
	if err := s.readBoth(ctx, &e); err != nil {
		return d, 0, err
	}
	if e.anchors, err = s.readAnchors(ctx, e.chain, e.items); err != nil {
		return d, 0, err
	}
	e.inUse = e.chain.inUse()
	e.chain.forget()
	if e.keys, e.notes, err = s.describeKeys(ctx, e.items, e.chain, e.anchors.proven); err != nil {
		return d, 0, err
	}
	e.chain.believe(e.anchors.proven, e.keys)
	e.setBack, e.told = len(e.chain.branches) > 0, e.chain.tell(e.chain.last)
	e.examine()
	return Diagnosis{Findings: e.findings, Notes: e.notes, Chain: e.rests(), SetBack: e.describeSetBack()}, e.chain.last, nil
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

// readBoth reads the table and then the bucket. A record that was made in between is one
// that the table seems to have forgotten: both are read again.
func (s *Steps) readBoth(ctx context.Context, e *exam) error {
	for range maxTries {
		chain, err := s.readItems(ctx, e)
		if err != nil {
			return err
		}
		if e.chain, err = s.readChain(ctx, chain, e.items); err != nil {
			return err
		}
		said := e.chain.said
		if len(e.chain.branches) == 0 || said == (audit.Head{}) {
			return nil
		}
		_, now, err := s.Outbox.Head(ctx)
		if err != nil {
			return unavailable("audit head", err)
		}
		if now == said {
			return nil
		}
	}
	return unavailable("control table", errors.New("it changed each time the audit bucket was read"))
}

// readItems examines the table between two equal heads of the chain: every transition
// appends to it, so that what was read is of one moment.
func (s *Steps) readItems(ctx context.Context, e *exam) (chain string, err error) {
	for range maxTries {
		at, before, unread := s.Outbox.Head(ctx)
		var typed *Error
		if at.Chain == "" || errors.As(unread, &typed) && typed.Kind == Misconfigured { // of another deployment: nothing is lost
			return "", unavailable("audit head", unread)
		}
		var after audit.Head
		if e.items, err = s.Items.Examine(ctx); err != nil {
			return "", loadError(err)
		}
		if unread == nil {
			_, after, unread = s.Outbox.Head(ctx)
		}
		if unread != nil || before == after { // a head that cannot be read is a finding
			e.items, e.by = ofKind(e.items), map[ItemKey]*Item{}
			for i := range e.items {
				e.by[e.items[i].Key] = &e.items[i]
			}
			return at.Chain, nil
		}
	}
	return "", unavailable("control table", errors.New("it changed each time it was read"))
}

// rests says which records of the chain the findings rest on.
func (e *exam) rests() string {
	s := fmt.Sprintf("%d records, which the control table and the bucket hold", len(e.chain.line))
	for _, b := range e.chain.branches {
		proven := b.proven(e.anchors.proven)
		s += fmt.Sprintf("; %d that the bucket alone holds: %d covered by an anchor, %d believed because KMS agrees, %d not believed",
			len(b.records), proven, b.believed-proven, len(b.records)-b.believed)
	}
	return s
}

func (e *exam) timeOf(seq int64) string {
	if i, ok := e.chain.find(seq); ok {
		return e.chain.line[i].Record.Time
	}
	return "its beginning"
}

const (
	fromChain = "the audit chain"
	fromKMS   = "KMS"
	fromTable = "the rest of the control table"
)

// examine makes the findings.
func (e *exam) examine() {
	e.examineHead()
	e.examineRecords()
	kept := e.examineRotations()
	e.examineKEKs(kept)
	e.examinePointer()
	e.examineRegistry()
	e.examineLock(kept)
	e.account()
	e.examineAnchor()
	e.examineOthers()
}

func (e *exam) find(f Finding) {
	if f.Next == "" {
		f.Next = cmdRepair
	}
	e.findings = append(e.findings, f)
}

// item returns what is stored under a key: nil if nothing is.
func (e *exam) item(pk, sk string) (ItemKey, *Item) {
	k := ItemKey{pk, sk}
	return k, e.by[k]
}

// faultOf is what is wrong with an item in itself; "" if nothing is.
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
		case AnchorState:
			if v.Rev < 1 || v.Last.N < 0 || v.Last.N > 0 && v.Last.Digest == "" {
				err = fmt.Errorf("it says revision %d, anchor %d", v.Rev, v.Last.N)
			}
		case Lease:
			if v.Holder == "" {
				err = errors.New("it names no holder")
			}
		case Checkpoint:
			if v.Rev < 1 {
				err = fmt.Errorf("its revision is %d", v.Rev)
			}
		}
	}
	if err == nil {
		return ""
	}
	var typed *Error
	if errors.As(err, &typed) && typed.Kind == ControlTableDamaged {
		err = typed.Err
	}
	return "it is damaged: " + audit.Visible(err.Error())
}

// examineRecords looks for records of the outbox that are lost.
func (e *exam) examineRecords() {
	c := e.chain
	for seq := int64(1); seq <= c.last; seq++ {
		k, i := e.item("AUDIT", fmt.Sprintf("%012d", seq))
		n, inLine := c.find(seq)
		fault := faultOf(i)
		switch {
		case fault == "" && (!inLine || c.line[n].Hash == c.table[seq].Hash), i == nil && e.told.lost[seq]:
			continue
		case fault == "":
			fault = "it does not follow the record before it; the bucket's does"
		}
		f := Finding{Item: k.String(), Fault: fault, stage: stageAudit, body: map[string]string{"record": fmt.Sprint(seq)}}
		if inLine {
			f.From, f.Repair = "the bucket", "put the record's bytes back"
			f.changes = []ItemChange{{Key: k, Was: i, Put: c.line[n]}}
			e.find(f)
			continue
		}
		f.event, f.Repair = EventRecordLost, "record that it is lost, and publish the records after it"
		f.body = map[string]string{"seq": fmt.Sprint(seq), "hash": c.gaps[seq]}
		f.changes = []ItemChange{{Key: k, Was: i, Keep: i == nil}}
		e.find(f)
	}
}

// examineHead compares the head with the records.
func (e *exam) examineHead() {
	c := e.chain
	if c.last == 0 {
		return // nothing was ever recorded, or the whole table is gone: its chain begins again
	}
	k, i := e.item("AUDIT_HEAD", noSortKey)
	want := HeadItem{c.headAt(c.last), c.published(e.told.lost), c.at.Generations}
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
		e.find(Finding{Item: k.String(), Fault: fault + "; the last record cannot be read either", Next: "restore the control table from a backup or point in time, then matter ops doctor"})
		return
	}
	e.find(Finding{
		Item: k.String(), Fault: fault, From: "the records of the outbox and the bucket",
		Repair: fmt.Sprintf("set it to record %d, published up to %d", want.Head.Seq, want.Published), stage: stageAudit,
		changes: []ItemChange{{Key: k, Was: i, Put: want}},
	})
}

// examineRotations ends every rotation that cannot go on, and returns the one that can.
func (e *exam) examineRotations() (kept string) {
	ids := slices.Collect(maps.Keys(e.told.rotations))
	for _, i := range e.items {
		if i.Kind == ItemRotation {
			ids = append(ids, i.ID)
		}
	}
	if _, lock := e.item("LOCK", noSortKey); faultOf(lock) == "" {
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
	for _, id := range running { // more than one: the lock is whose the chain says
		if id == e.told.running {
			kept = id
			continue
		}
		_, i := e.item("ROTATION#"+id, noSortKey)
		e.endRotation(id, i, i.Value.(kek.Rotation), "another rotation runs") //nolint:forcetypeassert // by its kind
	}
	return kept
}

// examineRotation reports whether a rotation may go on.
func (e *exam) examineRotation(id string) bool {
	_, i := e.item("ROTATION#"+id, noSortKey)
	said := e.told.rotations[id] // of one that the chain does not know the phase is "", which is neither final nor the record's
	fault := faultOf(i)
	var r kek.Rotation
	if i != nil {
		r, _ = i.Value.(kek.Rotation)
	}
	switch {
	case fault == "" && r.Phase.Final():
		return false
	case fault == "" && e.setBack && said.Phase != r.Phase:
		fault = fmt.Sprintf("it is %s here and %s in the audit chain: the control table was set back", r.Phase, or(string(said.Phase), "unknown"))
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

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// endRotation ends a rotation, as the chain says or else as superseded. What of its record
// can be read is kept, the rest is what the chain says.
func (e *exam) endRotation(id string, i *Item, r kek.Rotation, fault string) {
	said, known := e.told.rotations[id]
	r = fill(r, said)
	r.ID, r.Phase = id, said.Phase // superseded, unless the chain says that it is over
	reason := "ended by matter ops doctor: " + fault
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
	e.find(f)
}

// fill adds to what can be read of a record what the chain says.
func fill(r, said kek.Rotation) kek.Rotation {
	if r.Mode != kek.Normal && r.Mode != kek.Emergency {
		r.Mode = said.Mode
	}
	if r.Mode == "" {
		r.Mode = kek.Normal
	}
	r.Label, r.Reason = or(r.Label, said.Label), or(r.Reason, said.Reason)
	r.OldKEK, r.NewKEK = kek.ID(or(string(r.OldKEK), string(said.OldKEK))), kek.ID(or(string(r.NewKEK), string(said.NewKEK)))
	if len(r.Olds) == 0 {
		r.Olds = said.Olds
	}
	r.Execution = or(r.Execution, said.Execution)
	r.Actor = or(r.Actor, said.Actor)
	r.Requester = or(r.Requester, said.Requester)
	r.Drill, r.EndedBy = or(r.Drill, said.Drill), or(r.EndedBy, said.EndedBy)
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

// examineKEKs compares each registry entry, and its fence, with the chain and KMS. running
// is the rotation that goes on.
func (e *exam) examineKEKs(running string) {
	shards := map[kek.ID]int{}
	ids := slices.Collect(maps.Keys(e.told.keks))
	for _, i := range e.items {
		switch i.Kind {
		case ItemKEK:
			ids = append(ids, kek.ID(i.ID))
		case ItemFence:
			f, _ := i.Value.(FenceItem)
			shards[kek.ID(i.ID)] = max(shards[kek.ID(i.ID)], f.Shard+1)
		default:
		}
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if !e.keys.ours[id] {
			e.notes = append(e.notes, fmt.Sprintf("KEK %s is named by records that no anchor covers and that the control table does not know, and it carries no tag of its rotation: it is left out", id))
			continue
		}
		k := e.examineKEK(id, shards[id], running)
		e.examineFence(k)
		e.examineUsed(id)
	}
}

// examineUsed names a KEK that rows may be under though its KMS key is disabled: a rotation
// that switched to it was rolled back in a control table that had forgotten the switch.
func (e *exam) examineUsed(id kek.ID) {
	kms, known := e.keys.known[id]
	if !e.inUse[id] || !known || kms.Enabled || e.told.pointer != nil && e.told.pointer.KEKID == id {
		return
	}
	e.find(Finding{
		Item:  "KEK#" + string(id),
		Fault: fmt.Sprintf("records that the control table had forgotten say that it was in use, and its KMS key is in state %q: rows under it cannot be read", kms.State),
		Next:  fmt.Sprintf("find out in CloudTrail who disabled it, then aws kms enable-key --key-id %s; the next rotation moves its rows and disables it again", id),
	})
}

// examineKEK returns the entry as it should be.
func (e *exam) examineKEK(id kek.ID, shards int, running string) kek.KEK {
	key, i := e.item("KEK#"+string(id), noSortKey)
	said, known := e.told.keks[id]
	kms := e.keys.known[id]
	fault := faultOf(i)
	var found kek.KEK
	if i != nil {
		found, _ = i.Value.(kek.KEK)
	}
	p := e.told.pointer
	_, own := e.item("ROTATION#"+running, noSortKey)
	r, _ := valueOf[kek.Rotation](own)
	abandoned := said.State == kek.Pending && r.NewKEK != id // nobody else switches to it, or retires it
	if abandoned {
		said.State = "" // a switch to it may have been forgotten
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
	k.ARN = or(kms.ARN, k.ARN)
	k.Label = or(k.Label, said.Label)
	k.RotationID = or(k.RotationID, said.RotationID)
	if k.ARN == "" {
		k.ARN = "unknown"
	}
	if k.FenceShards = max(shards, found.FenceShards); k.FenceShards < 1 {
		k.FenceShards = e.config.FenceShards
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
		k.Reason = or(found.Reason, said.Reason)
		k.NotBeforeDelete = said.RetiredAt.Add(e.config.DeleteHold)
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
	e.find(f)
	return k
}

// compareWithKMS names a retired KEK whose KMS key is enabled, a retirement that stopped
// halfway or a person; and one that was left and is not retired whose key is disabled: a
// retirement of which the control table has forgotten every record, or a person.
func (e *exam) compareWithKMS(key ItemKey, k kek.KEK, kms Key) {
	if !kms.Enabled && (k.State == kek.Draining || k.State == kek.Sealed || k.State == kek.Pending) && !e.inUse[k.ID] {
		e.notes = append(e.notes, fmt.Sprintf("%s is %s and its KMS key is not enabled: rows under it, if there are any, cannot be read until aws kms enable-key --key-id %s; "+
			"find out in CloudTrail who disabled it", key, k.State, k.ID))
	}
	if k.State == kek.Retired && kms.Enabled {
		for _, r := range e.told.rotations {
			if !r.Phase.Final() && (slices.Contains(r.Olds, k.ID) || r.NewKEK == k.ID) {
				return // its rotation is about to disable it
			}
		}
		e.notes = append(e.notes, fmt.Sprintf("%s is retired and its KMS key is enabled: aws kms disable-key --key-id %s, unless rows are being restored", key, k.ID))
	}
}

// examineFence: the active KEK has all of its shards, open; every other KEK that was in use
// has them too, and only one that drains has open ones.
func (e *exam) examineFence(k kek.KEK) {
	fenced := k.State.Resolves() || e.told.fenced[k.ID]
	for n := range max(k.FenceShards, e.maxShard(k.ID)+1) {
		key, i := e.item("FENCE#"+string(k.ID), fmt.Sprintf("%02d", n))
		fault := faultOf(i)
		f, _ := valueOf[FenceItem](i)
		switch {
		case i == nil && (!fenced || n >= k.FenceShards):
			continue
		case fault != "":
		case f.Open == (k.State == kek.Active), k.State == kek.Draining:
			continue
		case f.Open:
			fault = fmt.Sprintf("it is open, and its KEK is %s", k.State)
		default: // sealed is final
			e.find(Finding{
				Item: key.String(), Fault: "it is sealed, and its KEK is active: inserts that meet it try another shard",
				Next: "nothing at once; the next rotation gives its KEK a fence of its own",
			})
			continue
		}
		want, what := FenceItem{KEK: k.ID, Shard: n}, "seal it"
		if k.State == kek.Active {
			want.Open, what = true, "open it"
		}
		e.find(Finding{
			Item: key.String(), Fault: fault, From: fmt.Sprintf("the state of its KEK, %s", k.State), Repair: what, stage: stageRegistry,
			changes: append([]ItemChange{{Key: key, Was: i, Put: want}}, e.keepKEK(k.ID)...),
		})
	}
}

// keepKEK conditions a fence's repair on the entry of its KEK.
func (e *exam) keepKEK(id kek.ID) []ItemChange {
	key, i := e.item("KEK#"+string(id), noSortKey)
	return []ItemChange{{Key: key, Was: i, Keep: true}}
}

func (e *exam) maxShard(id kek.ID) int {
	most := -1
	for _, i := range e.items {
		if f, _ := i.Value.(FenceItem); f.KEK == id {
			most = max(most, f.Shard)
		}
	}
	return most
}

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
	key, i := e.item("POINTER", noSortKey)
	fault := faultOf(i)
	found, _ := valueOf[kek.Pointer](i)
	want := e.told.pointer
	if want == nil {
		want = e.activeKEK()
	}
	switch {
	case want == nil && i == nil && e.blank():
		return // before genesis
	case want == nil:
		if fault != "" {
			e.find(Finding{Item: key.String(), Fault: fault + "; neither the chain nor the registry says which KEK is in use", Next: "restore the control table from a backup or point in time, then matter ops doctor"})
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
	if e.setBack { // a switch of which no record came into the bucket would have had the next epoch
		p.Epoch++
	}
	p.KeyARN = e.keys.known[p.KEKID].ARN
	e.find(Finding{
		Item: key.String(), Fault: fault, From: fromChain + " and " + fromKMS, stage: stageRegistry,
		Repair:  fmt.Sprintf("point at KEK %s, epoch %d", p.KEKID, p.Epoch),
		changes: append([]ItemChange{{Key: key, Was: i, Put: p}}, e.keepKEK(p.KEKID)...),
		body:    map[string]string{"pointer": string(p.KEKID), "epoch": strconv.FormatInt(p.Epoch, 10), "kek." + string(p.KEKID): string(kek.Active)},
	})
}

// checkPointed names a KEK that the pointer should name and that KMS does not let wrap.
func (e *exam) checkPointed(key ItemKey, id kek.ID, fault string) bool {
	kms, known := e.keys.known[id]
	if kms.Enabled && kms.Usable {
		return false
	}
	state := "not known to KMS"
	if known {
		state = fmt.Sprintf("in KMS state %q", kms.State)
	}
	next := fmt.Sprintf("find out in CloudTrail who changed it, then aws kms enable-key --key-id %s", id)
	if k := e.told.keks[id]; k.State == kek.Retired {
		next = "matter ops audit show, and ask who operates the stack: no rotation has left it a KEK in use"
	}
	e.find(Finding{Item: key.String(), Fault: strings.TrimPrefix(fault+"; ", "; ") + fmt.Sprintf("KEK %s is %s", id, state), Next: next})
	return true
}

// activeKEK is what the registry alone says where the chain says nothing: the one active
// KEK, at the last rotation's epoch.
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

// blank reports a control table in which nothing was ever registered.
func (e *exam) blank() bool {
	return len(e.told.keks) == 0 && !slices.ContainsFunc(e.items, func(i Item) bool { return i.Kind == ItemKEK || i.Kind == ItemRegistry })
}

// examineRegistry compares the registered sources and their revision with the chain.
func (e *exam) examineRegistry() {
	if e.blank() {
		return
	}
	key, i := e.item("REGISTRY", noSortKey)
	fault := faultOf(i)
	found, _ := valueOf[RegistryItem](i)
	if fault == "" && found.Rev < e.told.registry {
		fault = fmt.Sprintf("its revision is %d; the audit chain counts %d changes", found.Rev, e.told.registry)
	}
	next := RegistryItem{max(found.Rev, e.told.registry) + 1}
	bump := ItemChange{Key: key, Was: i, Put: next}
	body := map[string]string{"registry": fmt.Sprint(next.Rev)}
	if fault != "" {
		e.find(Finding{
			Item: key.String(), Fault: fault, From: fromChain, Repair: fmt.Sprintf("set its revision to %d", next.Rev),
			stage: stageRegistry, changes: []ItemChange{bump}, body: body,
		})
	}
	for _, name := range e.sourceNames() {
		e.examineSource(name, bump, body)
	}
}

func (e *exam) sourceNames() []string {
	names := slices.Collect(maps.Keys(e.told.sources))
	for _, i := range e.items {
		if i.Kind == ItemSource {
			names = append(names, i.ID)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (e *exam) examineSource(name string, bump ItemChange, body map[string]string) {
	key, i := e.item("SOURCE", name)
	fault := faultOf(i)
	said, known := e.told.sources[name]
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
		e.find(Finding{
			Item: key.String(), Fault: fault,
			Next: "matter ops source add --file DEFINITION.json --confirm; or, if it is none any more, matter ops source remove --name " + name + ` --force --reason "why" --confirm`,
		})
		return
	}
	e.find(Finding{
		Item: key.String(), Fault: fault, From: from, Repair: "register it again as " + src.Place, stage: stageRegistry,
		changes: []ItemChange{{Key: key, Was: i, Put: src}, bump}, body: body,
	})
}

// frozenSource is a source as the newest rotation that can be read has frozen it.
func (e *exam) frozenSource(name string, said toldSource) (src kek.Source, found bool) {
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

// examineLock: the lock is the running rotation's, or free.
func (e *exam) examineLock(running string) {
	key, i := e.item("LOCK", noSortKey)
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
		k, r := e.item("ROTATION#"+running, noSortKey)
		f.Repair = "give it to rotation " + running + ", which then goes on"
		f.changes = []ItemChange{{Key: key, Was: i, Put: LockItem{running}}, {Key: k, Was: r, Keep: true}}
	}
	e.find(f)
}

// marksUnknown is said of a table that was set back: no record tells of marks.
const marksUnknown = "tables that were first written to since then have lost their marks: compare matter ops source list with the tables that applications write to, " +
	"and register what is missing with matter ops source add --file DEFINITION.json --confirm"

// account records of a table that was set back that this was seen. Then the branches that
// it has forgotten are history: the record says what the table should be.
func (e *exam) account() {
	if !e.setBack {
		return
	}
	var tips []string
	for _, b := range e.chain.branches {
		tips = append(tips, b.tip())
	}
	key, i := e.item("POINTER", noSortKey)
	e.find(Finding{
		Item: "control table", Fault: e.describeSetBack() + "; " + marksUnknown, From: fromChain, Repair: "record it; the audit chain goes on in a new generation", stage: stageRegistry,
		changes: []ItemChange{{Key: key, Was: i, Keep: true}}, body: map[string]string{audit.BodyForgotten: strings.Join(tips, ",")},
	})
}

// examineAnchor compares the state of anchoring with the anchors in the bucket.
func (e *exam) examineAnchor() {
	if e.anchors.last == nil {
		return
	}
	key, i := e.item("ANCHOR", noSortKey)
	fault := faultOf(i)
	st, _ := valueOf[AnchorState](i)
	last := *e.anchors.last
	switch {
	case fault == "" && st.Last.N >= last.N:
		return
	case fault == "" && st.Intent != nil && st.Intent.Statement.N == last.N && st.Last.N == last.N-1:
		return // an anchor that is under way, or whose maker died: the next call closes it
	case fault == "":
		fault = fmt.Sprintf("it says anchor %d; the bucket holds anchor %d", st.Last.N, last.N)
	}
	e.find(Finding{
		Item: key.String(), Fault: fault, From: "the anchors in the bucket, the last of which verifies", Repair: fmt.Sprintf("set it to anchor %d", last.N), stage: stageAnchor,
		changes: []ItemChange{{Key: key, Was: i, Put: AnchorState{Rev: max(st.Rev, last.N), Last: last, Places: e.anchors.places}}}, body: map[string]string{"anchor": fmt.Sprint(last.N)},
	})
}

// removals says of each kind of item what it costs to remove a damaged one.
var removals = map[ItemKind]string{
	ItemMark:         "a process that writes into the table leaves its mark again",
	ItemLease:        "the lease is revoked: its holder takes another before it writes",
	ItemCheckpoint:   "the pass over that segment begins from its start",
	ItemAnnouncement: "the window counts as not announced: matter ops announce",
	ItemDrill:        "the drill counts as not passed: matter ops drill run",
	ItemApproval:     "the rotation is asked about again",
	ItemHealth:       "the day counts as one without canaries",
}

// examineOthers removes damaged items that others are made in place of, and names those
// that nothing of this project writes.
func (e *exam) examineOthers() {
	for n := range e.items {
		i := &e.items[n]
		cost, removable := removals[i.Kind]
		fault := faultOf(i)
		switch {
		case i.Kind == "":
			e.notes = append(e.notes, fmt.Sprintf("item %s is none of this project's: it is left alone", audit.Visible(i.Key.String())))
		case i.Kind == ItemFence && e.stray(i):
			e.notes = append(e.notes, fmt.Sprintf("item %s has no key of its kind: it is left alone", audit.Visible(i.Key.String())))
		case fault != "" && removable:
			e.find(Finding{
				Item: i.Key.String(), Fault: fault, Repair: "remove it; " + cost, stage: stageRemoval, changes: []ItemChange{{Key: i.Key, Was: i}},
			})
		}
	}
}

// stray reports a fence shard of no KEK, or with no number.
func (e *exam) stray(i *Item) bool {
	f, _ := i.Value.(FenceItem)
	return f.Shard < 0 || e.by[ItemKey{"KEK#" + i.ID, noSortKey}] == nil && e.told.keks[kek.ID(i.ID)].ID == ""
}
