package doctor

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// chainRead is the audit chain as the control table (the outbox) and the bucket hold it. Both
// should have the same records. There are three differences:
//
//   - A record that only the bucket has, before the table's last: the outbox has lost it.
//   - A record that only the table has: it is not published yet.
//   - Records in the bucket after, or instead of, the table's last: the control table was
//     restored to an earlier time and has forgotten them. They form a branch.
type chainRead struct {
	at        audit.Line
	last      int64                 // number of the table's last record, by its items and its head
	tableHead audit.Head            // the head that the table names; zero if it cannot be read
	table     map[int64]audit.Entry // the outbox; of a damaged record only the hash
	sound     map[int64]bool        // whether a record of table is undamaged
	bucket    map[int64]audit.Entry // what can be read under the chain's own keys
	line      []audit.Entry         // the chain: from both, up to last
	gaps      map[int64]string      // records of the chain that neither has, and their hashes if those are known

	branches []branch // records in the bucket that the table has forgotten, or that are not the chain's
}

// branch is a run of records in the bucket that continue the chain after the record fork,
// and that the control table does not know: it was set back to the moment of that record.
type branch struct {
	fork     int64
	records  []audit.Entry
	believed int // how many of the records are believed, see believeBranches
}

// tipHash returns the hash of the last record. A repair names the branch by it.
func (b branch) tipHash() string { return b.records[len(b.records)-1].Hash }

// countProven returns how many of the records are covered by an anchor: all up to the last
// anchored one, since each record commits to the hash of the one before it.
func (b branch) countProven(heads map[audit.Head]bool) int {
	n := len(b.records)
	for n > 0 && !heads[b.records[n-1].Head()] {
		n--
	}
	return n
}

// readChain reads the chain from the bucket, record by record, beside the table's items.
func (doc *Doctor) readChain(ctx context.Context, chain string, items []Item) (*chainRead, error) {
	c := &chainRead{at: audit.Line{Chain: chain}, table: map[int64]audit.Entry{}, sound: map[int64]bool{}, bucket: map[int64]audit.Entry{}, gaps: map[int64]string{}}
	said := false
	for _, i := range items {
		switch v := i.Value.(type) {
		case audit.Entry:
			seq := recordSeq(i.Key)
			if i.Err == nil && v.Record.Chain != chain { // the table of another deployment: nothing is lost
				return nil, &journal.Error{
					Kind: journal.Misconfigured, Field: i.Key.String(), Msg: fmt.Sprintf("the control table holds records of chain %q, the configuration says %q", v.Record.Chain, chain),
					Next: journal.Next{Say: "correct the configured chain name; a chain is never renamed"},
				}
			}
			c.table[seq], c.sound[seq] = v, i.Err == nil
			c.last = max(c.last, seq)
		case HeadItem:
			if said = faultOf(&i) == ""; said {
				c.last = max(c.last, v.Head.Seq)
				c.tableHead = v.Head
				c.at.Generations = v.Generations
			}
		}
	}
	if !said {
		c.at.Generations = c.begunGenerations(audit.OfRecords)
	}
	if err := doc.readBucket(ctx, c); err != nil {
		return nil, err
	}
	fork := c.followChain()
	if err := doc.readBranches(ctx, c, fork); err != nil {
		return nil, err
	}
	return c, nil
}

// begunGenerations returns the generations that have begun according to the outbox. It
// stands in for the generations in a head that cannot be read.
func (c *chainRead) begunGenerations(of string) (g audit.Generations) {
	for seq := int64(1); seq <= c.last; seq++ {
		if b, ok := audit.ParseBegun(c.table[seq].Record); ok && b.Of == of && !hasGeneration(g, b.ID) {
			g = g.With(b.Generation)
		}
	}
	return g
}

// hasGeneration reports whether a generation with an id is among g.
func hasGeneration(g audit.Generations, id string) bool {
	return slices.ContainsFunc(g.All(), func(one audit.Generation) bool { return one.ID == id })
}

// recordSeq returns the number of the record in an item AUDIT/<12 digits>; 0 if the sort key
// has another form.
func recordSeq(k ItemKey) int64 {
	var seq int64
	if _, err := fmt.Sscanf(k.SK, "%d", &seq); err != nil || seq < 1 || fmt.Sprintf("%012d", seq) != k.SK {
		return 0
	}
	return seq
}

// bucketReaders is how many records are read from the bucket at once.
const bucketReaders = 16

// readBucket reads every record up to the table's last from the bucket.
func (doc *Doctor) readBucket(ctx context.Context, c *chainRead) error {
	stored := make([]*audit.Entry, c.last+1)
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(bucketReaders)
	for seq := int64(1); seq <= c.last; seq++ {
		g.Go(func() (err error) {
			stored[seq], err = doc.Journal.GetRecord(within, c.at, seq)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for seq, e := range stored {
		if e != nil {
			c.bucket[int64(seq)] = *e
		}
	}
	return nil
}

// followChain finds the chain in what the table and the bucket hold: a record belongs to it
// if it commits to the hash of the record before. If both have a record and they differ, the
// table was set back and has continued since. Then the chain is the table's, and the records
// of the bucket may continue from the fork, which is returned.
func (c *chainRead) followChain() (fork int64) {
	head := audit.Genesis(c.at.Chain)
	forked := false
	for seq := int64(1); seq <= c.last; seq++ {
		own, stored := c.table[seq], c.bucket[seq]
		ok := c.sound[seq] && own.Record.Prev == head.Hash && own.Record.Chain == c.at.Chain
		there := stored.Bytes != nil && stored.Record.Prev == head.Hash
		if ok && there && stored.Hash != own.Hash && !forked {
			forked, fork = true, seq-1
		}
		switch {
		case ok:
			c.line = append(c.line, own)
			head = own.Head()
		case there && !forked:
			c.line = append(c.line, stored)
			head = stored.Head()
		default:
			c.gaps[seq] = c.hashOf(seq)
			head = audit.Head{Seq: seq, Hash: c.gaps[seq]}
		}
	}
	if !forked {
		fork = c.last
	}
	return fork
}

// headAt returns the chain's head at the time when a record was its last.
func (c *chainRead) headAt(seq int64) audit.Head {
	if seq == 0 {
		return audit.Genesis(c.at.Chain)
	}
	if i, ok := c.findRecord(seq); ok {
		return c.line[i].Head()
	}
	return audit.Head{Seq: seq, Hash: c.gaps[seq]}
}

// readBranches reads the records in the bucket that continue the chain: under the chain's own
// keys after the fork, under the keys of earlier generations from where a later one begins,
// and in generations that the table does not know.
func (doc *Doctor) readBranches(ctx context.Context, c *chainRead, fork int64) error {
	read := func(at audit.Line, from audit.Head) ([]audit.Entry, error) {
		var out []audit.Entry
		for {
			e, err := doc.Journal.GetRecord(ctx, at, from.Seq+1)
			if err != nil || e == nil || e.Record.Prev != from.Hash {
				return out, err
			}
			out, from = append(out, *e), e.Head()
		}
	}
	before := audit.Line{Chain: c.at.Chain}
	for _, g := range append(c.at.Generations.All(), audit.Generation{From: fork + 1}) {
		records, err := read(before, c.headAt(g.From-1))
		if err != nil {
			return err
		}
		if len(records) > 0 {
			c.branches = append(c.branches, branch{fork: g.From - 1, records: records})
		}
		before.Generations = before.Generations.With(g)
	}
	return doc.readUnknown(ctx, c, read)
}

// readUnknown adds the generations in the bucket that the table has forgotten, because it was
// set back to a time before they began. If the bucket cannot be listed it adds none.
func (doc *Doctor) readUnknown(ctx context.Context, c *chainRead, read func(audit.Line, audit.Head) ([]audit.Entry, error)) error {
	bucket, ok := doc.Journal.AuditBucket.(audit.Bucket)
	if !ok {
		return nil
	}
	versions, err := bucket.Versions(ctx)
	if err != nil {
		return journal.WrapUnavailable("audit bucket", err)
	}
	places := map[string][]int64{}
	for _, v := range versions {
		id, seq, ok := audit.PlaceOf(c.at.Chain, v.Key)
		if ok && id != "" && !hasGeneration(c.at.Generations, id) {
			places[id] = append(places[id], seq)
		}
	}
	var found []branch
	for id, seqs := range places {
		branches, err := doc.readGeneration(ctx, c, id, seqs, read)
		if err != nil {
			return err
		}
		found = append(found, branches...)
	}
	slices.SortFunc(found, func(a, b branch) int { // a branch that continues another comes after it
		first, second := a.records[0].Record, b.records[0].Record
		return cmp.Or(strings.Compare(first.Time, second.Time), cmp.Compare(first.Seq, second.Seq))
	})
	for _, b := range found {
		first := b.records[0].Record
		if b.fork, ok = c.findFork(first); !ok {
			continue
		}
		for _, e := range c.line { // older records of the chain itself come before the branch
			if e.Record.Seq > b.fork && e.Record.Time <= first.Time {
				b.fork = e.Record.Seq
			}
		}
		c.branches = append(c.branches, b)
	}
	return nil
}

// readGeneration reads the records of one generation that the table does not know. A writer
// of the bucket can put an object before the first of them. So an object that is not a
// record, or is a copy of the chain's, is skipped and does not hide the records after it.
func (doc *Doctor) readGeneration(ctx context.Context, c *chainRead, id string, seqs []int64, read func(audit.Line, audit.Head) ([]audit.Entry, error)) ([]branch, error) {
	at := audit.Line{Chain: c.at.Chain, Generations: audit.Generations("").With(audit.Generation{ID: id, From: 1})}
	slices.Sort(seqs)
	var out []branch
	var next int64
	for _, seq := range seqs {
		if seq < next {
			continue // it was read with the records before it
		}
		next = seq + 1
		first, err := doc.Journal.GetRecord(ctx, at, seq)
		if err != nil {
			return nil, err
		}
		if first == nil || first.Head() == c.headAt(seq) {
			continue
		}
		more, err := read(at, first.Head())
		if err != nil {
			return nil, err
		}
		records := append([]audit.Entry{*first}, more...)
		out = append(out, branch{records: records})
		next += int64(len(more))
	}
	return out, nil
}

// findFork returns the number of the chain's record that r continues, directly or through
// branches that were read before.
func (c *chainRead) findFork(r audit.Record) (int64, bool) {
	if c.headAt(r.Seq-1).Hash == r.Prev {
		return r.Seq - 1, true
	}
	for _, b := range c.branches {
		if slices.ContainsFunc(b.records, func(e audit.Entry) bool { return e.Hash == r.Prev }) {
			return b.fork, true
		}
	}
	return 0, false
}

// findRecord returns the index of a record in the line.
func (c *chainRead) findRecord(seq int64) (int, bool) {
	return slices.BinarySearchFunc(c.line, seq, func(e audit.Entry, seq int64) int { return int(e.Record.Seq - seq) })
}

// hashOf returns the hash of a record that cannot be read: from the next record, which
// commits to it, from the head, or from the attribute beside the damaged record.
func (c *chainRead) hashOf(seq int64) string {
	if c.sound[seq+1] {
		return c.table[seq+1].Record.Prev
	}
	if e := c.bucket[seq+1]; e.Bytes != nil {
		return e.Record.Prev
	}
	if c.tableHead.Seq == seq {
		return c.tableHead.Hash
	}
	return c.table[seq].Hash
}

// lastPublished returns the number of the last record up to which the bucket holds the bytes
// of the chain, except for records that are declared lost.
func (c *chainRead) lastPublished(lost map[int64]bool) int64 {
	n := int64(0)
	for seq := int64(1); seq <= c.last; seq++ {
		i, ok := c.findRecord(seq)
		switch {
		case ok && bytes.Equal(c.bucket[seq].Bytes, c.line[i].Bytes):
			n = seq
		case !ok && lost[seq]:
		default:
			return n
		}
	}
	return n
}

// replayRecords replays the chain up to a record, with the believed records of each branch
// inserted at its fork.
func (c *chainRead) replayRecords(upTo int64) *replayedState {
	t, done := newReplayedState(), make([]bool, len(c.branches))
	branches := func(fork int64) {
		for i, b := range c.branches {
			if b.fork <= fork && !done[i] {
				done[i] = true
				for _, e := range b.records[:b.believed] {
					t.replayRecord(e.Record)
				}
			}
		}
	}
	branches(0)
	for _, e := range c.line {
		if e.Record.Seq > upTo {
			break
		}
		t.replayRecord(e.Record)
		branches(e.Record.Seq)
	}
	branches(upTo)
	return t
}

// inUse returns the KEKs that forgotten records call active and that no record retires after
// a rewrap. Rows may be under them, whatever the table has concluded since. Records count
// here even if they are not believed, because the consequence is safe: a KEK becomes
// readable, and nothing is retired.
func (c *chainRead) inUse() map[kek.ID]bool {
	used, moved := map[kek.ID]bool{}, map[kek.ID]bool{}
	hear := func(r audit.Record, forgotten bool) {
		for name, state := range r.Body {
			id, ok := strings.CutPrefix(name, "kek.")
			used[kek.ID(id)] = used[kek.ID(id)] || ok && forgotten && state == string(kek.Active)
			moved[kek.ID(id)] = moved[kek.ID(id)] || ok && r.Type == kek.EventOldKEKRetired && state == string(kek.Retired)
		}
	}
	for _, e := range c.line {
		hear(e.Record, false)
	}
	for _, b := range c.branches {
		for _, e := range b.records {
			hear(e.Record, true)
		}
	}
	maps.DeleteFunc(used, func(id kek.ID, yes bool) bool { return !yes || moved[id] })
	return used
}

// listArchived returns the items that the chain says were removed, by key, with the number of
// the last record that says so. Branches do not count: a table that was set back to before
// such a record has the items again, and the next rotation archives them.
func (c *chainRead) listArchived() map[string]int64 {
	out := map[string]int64{}
	for _, e := range c.line {
		if e.Record.Type != journal.EventArchived {
			continue
		}
		for key := range e.Record.Body {
			out[key] = e.Record.Seq
		}
	}
	return out
}

// forgetKnown drops the branches that an earlier repair has recorded, by the hash of their
// last record. The record of that repair says what the table should be, so the branches are
// history.
func (c *chainRead) forgetKnown() {
	known := map[string]bool{}
	for _, e := range c.line {
		if e.Record.Type == EventRepaired {
			for _, tip := range strings.Split(e.Record.Body[audit.BodyForgotten], ",") {
				known[tip] = true
			}
		}
	}
	c.branches = slices.DeleteFunc(c.branches, func(b branch) bool { return known[b.tipHash()] })
}

// keys holds what KMS says of the KEKs that the table or the chain names.
type keys struct {
	known map[kek.ID]keyring.Key // absent: KMS does not know it
	ours  map[kek.ID]bool        // the registry, or records that the table holds or an anchor covers, name it; or it carries its rotation's tag
}

// describeKeys asks KMS for every KEK. notes name keys with a rotation's tag that no record
// names.
func (doc *Doctor) describeKeys(ctx context.Context, items []Item, c *chainRead, proven map[audit.Head]bool) (keys, []Note, error) {
	k := keys{known: map[kek.ID]keyring.Key{}, ours: map[kek.ID]bool{}}
	for _, i := range items {
		if i.Kind == ItemKEK {
			k.ours[kek.ID(i.ID)] = true
		}
	}
	all, sure := newReplayedState(), newReplayedState()
	for _, e := range c.line {
		all.replayRecord(e.Record)
		sure.replayRecord(e.Record)
	}
	for _, b := range c.branches {
		for _, e := range b.records {
			all.replayRecord(e.Record)
		}
		for _, e := range b.records[:b.countProven(proven)] {
			sure.replayRecord(e.Record)
		}
	}
	for id := range sure.keks {
		k.ours[id] = true
	}
	var notes []Note
	for id := range all.rotations {
		tagged, err := doc.Keys.Tagged(ctx, id)
		if err != nil {
			return k, nil, journal.WrapUnavailable("tagged keys", err)
		}
		for _, key := range tagged {
			if _, named := all.keks[key]; !named && !k.ours[key] {
				notes = append(notes, Note{Text: fmt.Sprintf("KMS key %s carries the tag of rotation %s and no record names it: a mint that lost, which its rotation disables", key, id)})
				continue
			}
			k.ours[key] = true
		}
	}
	ids := make([]kek.ID, 0, len(all.keks))
	for id := range all.keks {
		ids = append(ids, id)
	}
	for id := range k.ours {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		key, err := doc.Keys.Describe(ctx, id)
		if errors.Is(err, journal.ErrNoKey) {
			continue
		}
		if err != nil {
			return k, nil, journal.WrapUnavailable("KMS DescribeKey", err)
		}
		k.known[id] = key
	}
	slices.SortFunc(notes, func(a, b Note) int { return strings.Compare(a.Text, b.Text) })
	return k, notes, nil
}

// believeBranches decides how many records of each branch are believed: those that an anchor
// covers, and of those after it as many as give a pointer whose KEK is usable in KMS and the
// newest. A writer of the bucket can add a record that continues the chain, so a correct
// hash alone proves nothing.
func (c *chainRead) believeBranches(proven map[audit.Head]bool, k keys) {
	for i := range c.branches {
		b := &c.branches[i]
		certain := b.countProven(proven)
		for b.believed = len(b.records); b.believed > certain; b.believed-- {
			t := c.replayRecords(b.fork)
			if p := t.pointer; p != nil && k.ours[p.KEKID] && k.known[p.KEKID].Enabled && k.known[p.KEKID].Usable && t.isNewest(p.KEKID, k.known) {
				break
			}
		}
	}
}

// anchors holds the anchors in the bucket that verify under the deployment's trust list.
type anchors struct {
	proven map[audit.Head]bool // records that the last ones cover, also those that the table has forgotten
	last   *anchor.Anchored    // the last one that covers a record of the chain; nil: none
	places audit.Generations   // where the chain's anchors are
}

// readAnchors looks for the last anchors in each generation of them.
func (doc *Doctor) readAnchors(ctx context.Context, c *chainRead, items []Item) (out anchors, err error) {
	out = anchors{proven: map[audit.Head]bool{}, places: c.begunGenerations(audit.OfAnchors)}
	if doc.Anchor == nil {
		return out, nil
	}
	for _, i := range items {
		if st, ok := i.Value.(anchor.State); ok && faultOf(&i) == "" {
			out.places = st.Places
		}
	}
	own, err := doc.Anchor.Signer.PublicKey(ctx)
	if err != nil {
		return out, journal.WrapUnavailable("anchor key", err)
	}
	places := audit.Generations("")
	for _, g := range append(out.places.All(), audit.Generation{}) {
		if err := doc.lastAnchors(ctx, c, places, own, &out); err != nil {
			return out, err
		}
		places = places.With(g)
	}
	return out, nil
}

// lastAnchors reads back from the last anchor in a place until one covers a record of the
// chain.
func (doc *Doctor) lastAnchors(ctx context.Context, c *chainRead, places audit.Generations, own []byte, out *anchors) error {
	n, err := doc.countAnchors(ctx, c.at.Chain, places)
	if err != nil {
		return err
	}
	for ; n > 0; n-- {
		b, err := doc.getAnchor(ctx, places.AnchorKeyIn(c.at.Chain, n))
		if err != nil {
			return err
		}
		a, err := doc.verifiedAnchor(b, own, c.at.Chain, n)
		if err != nil {
			continue // not a valid anchor: a writer of the bucket may have put it there
		}
		out.proven[a.Head] = true
		if c.headAt(a.Head.Seq) == a.Head {
			if out.last == nil || a.N > out.last.N {
				out.last = &a
			}
			return nil
		}
	}
	return nil
}

// getAnchor returns nil if there is none.
func (doc *Doctor) getAnchor(ctx context.Context, key string) ([]byte, error) {
	b, err := doc.Anchor.Objects.GetAnchor(ctx, key)
	if errors.Is(err, journal.ErrNoRecord) {
		return nil, nil
	}
	if err != nil {
		return nil, journal.WrapUnavailable("audit bucket", err)
	}
	return b, nil
}

// countAnchors returns the number of the last anchor in a place. Anchors have no gaps, so it
// doubles the step until an anchor is missing and then searches in between.
func (doc *Doctor) countAnchors(ctx context.Context, chain string, places audit.Generations) (int64, error) {
	there, beyond := places.Last().From-1, places.Last().From // anchor there is in the bucket, anchor beyond perhaps
	for step := int64(1); ; step *= 2 {
		b, err := doc.getAnchor(ctx, places.AnchorKeyIn(chain, beyond))
		if err != nil {
			return 0, err
		}
		if b == nil {
			break
		}
		there, beyond = beyond, beyond+step
	}
	for beyond-there > 1 {
		mid := (there + beyond) / 2
		b, err := doc.getAnchor(ctx, places.AnchorKeyIn(chain, mid))
		if err != nil {
			return 0, err
		}
		if b == nil {
			beyond = mid
		} else {
			there = mid
		}
	}
	return there, nil
}

// verifiedAnchor parses an anchor and verifies its signature and its proof of inclusion. The
// key must be the deployment's own or one of the trust list.
func (doc *Doctor) verifiedAnchor(b, own []byte, chain string, n int64) (anchor.Anchored, error) {
	a, err := audit.ParseAnchor(b)
	if err != nil {
		return anchor.Anchored{}, err
	}
	trusted := slices.ContainsFunc(doc.Anchor.Trust.AnchorKeys, func(k audit.PinnedKey) bool { return bytes.Equal(k.Key, a.Signed.Key) })
	if st := a.Signed.Statement; !trusted && !bytes.Equal(a.Signed.Key, own) || st.Chain != chain || st.N != n {
		return anchor.Anchored{}, errors.New("it is not an anchor of this chain")
	}
	if err := a.Signed.Verify(); err != nil {
		return anchor.Anchored{}, err
	}
	if _, err := a.Proof.Verify(a.Signed, doc.Anchor.Trust); err != nil {
		return anchor.Anchored{}, err
	}
	return anchor.SummarizeAnchor(a)
}
