package rotation

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
)

// chainRead is the audit chain as the control table and the bucket hold it.
type chainRead struct {
	at     audit.Line
	last   int64                 // of the table's items and its head
	said   audit.Head            // the head that the table says; zero if it cannot be read
	table  map[int64]audit.Entry // the outbox; of a damaged record only the hash
	sound  map[int64]bool        // of table
	bucket map[int64]audit.Entry // what can be read under the chain's own keys
	line   []audit.Entry         // the chain: from both, up to last
	gaps   map[int64]string      // records of the chain that neither has, and their hashes if those are known

	branches []branch // records in the bucket that the table has forgotten, or that are not the chain's
}

// branch is records in the bucket that go on from the chain and that the control table
// does not know: it was set back to the moment of the record fork.
type branch struct {
	fork     int64
	records  []audit.Entry
	believed int // how many of them
}

func (b branch) tip() string { return b.records[len(b.records)-1].Hash }

// proven is how many of its records anchors cover.
func (b branch) proven(heads map[audit.Head]bool) int {
	n := len(b.records)
	for n > 0 && !heads[b.records[n-1].Head()] {
		n--
	}
	return n
}

// readChain reads the chain from the bucket, record by record, beside the table's items.
func (s *Steps) readChain(ctx context.Context, chain string, items []Item) (*chainRead, error) {
	c := &chainRead{at: audit.Line{Chain: chain}, table: map[int64]audit.Entry{}, sound: map[int64]bool{}, bucket: map[int64]audit.Entry{}, gaps: map[int64]string{}}
	said := false
	for _, i := range items {
		switch v := i.Value.(type) {
		case audit.Entry:
			seq := recordSeq(i.Key)
			if i.Err == nil && v.Record.Chain != chain { // of another deployment: nothing is lost
				return nil, &Error{
					Kind: Misconfigured, Field: i.Key.String(), Msg: fmt.Sprintf("the control table holds records of chain %q, the configuration says %q", v.Record.Chain, chain),
					Next: "correct the configured chain name; a chain is never renamed",
				}
			}
			c.table[seq], c.sound[seq] = v, i.Err == nil
			c.last = max(c.last, seq)
		case HeadItem:
			if said = faultOf(&i) == ""; said {
				c.last = max(c.last, v.Head.Seq)
				c.said = v.Head
				c.at.Generations = v.Generations
			}
		}
	}
	if !said {
		c.at.Generations = c.begun(audit.OfRecords)
	}
	if err := s.readBucket(ctx, c); err != nil {
		return nil, err
	}
	fork := c.follow()
	if err := s.readBranches(ctx, c, fork); err != nil {
		return nil, err
	}
	return c, nil
}

// begun is the generations that the outbox says have begun.
func (c *chainRead) begun(of string) (g audit.Generations) {
	for seq := int64(1); seq <= c.last; seq++ {
		if b, ok := audit.ParseBegun(c.table[seq].Record); ok && b.Of == of && !has(g, b.ID) {
			g = g.With(b.Generation)
		}
	}
	return g
}

func has(g audit.Generations, id string) bool {
	return slices.ContainsFunc(g.All(), func(one audit.Generation) bool { return one.ID == id })
}

// recordSeq is the number of the record in an item AUDIT/<12 digits>; 0 if it has none.
func recordSeq(k ItemKey) int64 {
	var seq int64
	if _, err := fmt.Sscanf(k.SK, "%d", &seq); err != nil || seq < 1 || fmt.Sprintf("%012d", seq) != k.SK {
		return 0
	}
	return seq
}

// bucketReaders is how many records are read at once.
const bucketReaders = 16

// readBucket reads every record up to the table's last from the bucket.
func (s *Steps) readBucket(ctx context.Context, c *chainRead) error {
	stored := make([]*audit.Entry, c.last+1)
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(bucketReaders)
	for seq := int64(1); seq <= c.last; seq++ {
		g.Go(func() (err error) {
			stored[seq], err = s.getRecord(within, c.at, seq)
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

// getRecord returns nil if there is none, or something else.
func (s *Steps) getRecord(ctx context.Context, at audit.Line, seq int64) (*audit.Entry, error) {
	b, err := s.Vault.Get(ctx, at.RecordKey(seq))
	if errors.Is(err, ErrNoRecord) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("audit bucket", err)
	}
	e, err := audit.Parse(b)
	if err != nil || e.Record.Seq != seq || e.Record.Chain != at.Chain {
		return nil, nil
	}
	return &e, nil
}

// follow tells the chain from what the table and the bucket hold. Where both have a
// record and differ, the table was set back and went on: the chain is the table's, and
// the bucket's may go on from the fork, which is returned.
func (c *chainRead) follow() (fork int64) {
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

// headAt is the chain's head when a record was its last.
func (c *chainRead) headAt(seq int64) audit.Head {
	if seq == 0 {
		return audit.Genesis(c.at.Chain)
	}
	if i, ok := c.find(seq); ok {
		return c.line[i].Head()
	}
	return audit.Head{Seq: seq, Hash: c.gaps[seq]}
}

// readBranches reads what goes on from the chain in the bucket: under its own keys after
// the fork, under the keys of earlier generations from where a later one begins, and in
// generations that the table does not know.
func (s *Steps) readBranches(ctx context.Context, c *chainRead, fork int64) error {
	read := func(at audit.Line, from audit.Head) ([]audit.Entry, error) {
		var out []audit.Entry
		for {
			e, err := s.getRecord(ctx, at, from.Seq+1)
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
	return s.readUnknown(ctx, c, read)
}

// readUnknown adds the generations in the bucket that the table has forgotten: it was set
// back to a time before they began. A bucket that cannot be listed shows none.
func (s *Steps) readUnknown(ctx context.Context, c *chainRead, read func(audit.Line, audit.Head) ([]audit.Entry, error)) error {
	bucket, ok := s.Vault.(audit.Bucket)
	if !ok {
		return nil
	}
	versions, err := bucket.Versions(ctx)
	if err != nil {
		return unavailable("audit bucket", err)
	}
	places := map[string][]int64{}
	for _, v := range versions {
		id, seq, ok := audit.PlaceOf(c.at.Chain, v.Key)
		if ok && id != "" && !has(c.at.Generations, id) {
			places[id] = append(places[id], seq)
		}
	}
	var found []branch
	for id, seqs := range places {
		branches, err := s.readGeneration(ctx, c, id, seqs, read)
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
		if b.fork, ok = c.root(first); !ok {
			continue
		}
		for _, e := range c.line { // the chain's own records that are older come first
			if e.Record.Seq > b.fork && e.Record.Time <= first.Time {
				b.fork = e.Record.Seq
			}
		}
		c.branches = append(c.branches, b)
	}
	return nil
}

// readGeneration reads the records of one generation that the table does not know. Whoever
// may put an object into the bucket can put one before the first of them: what is no
// record, or is a copy of the chain's, hides nothing that comes after it.
func (s *Steps) readGeneration(ctx context.Context, c *chainRead, id string, seqs []int64, read func(audit.Line, audit.Head) ([]audit.Entry, error)) ([]branch, error) {
	at := audit.Line{Chain: c.at.Chain, Generations: audit.Generations("").With(audit.Generation{ID: id, From: 1})}
	slices.Sort(seqs)
	var out []branch
	var next int64
	for _, seq := range seqs {
		if seq < next {
			continue // it was read with those before it
		}
		next = seq + 1
		first, err := s.getRecord(ctx, at, seq)
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

// root is the record of the chain that a record goes on from, be it over branches that
// were read before.
func (c *chainRead) root(r audit.Record) (int64, bool) {
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

// find is the index in the line of a record.
func (c *chainRead) find(seq int64) (int, bool) {
	return slices.BinarySearchFunc(c.line, seq, func(e audit.Entry, seq int64) int { return int(e.Record.Seq - seq) })
}

// hashOf is the hash of a record that cannot be read: the next one commits to it, or it
// is stored beside what is left.
func (c *chainRead) hashOf(seq int64) string {
	if c.sound[seq+1] {
		return c.table[seq+1].Record.Prev
	}
	if e := c.bucket[seq+1]; e.Bytes != nil {
		return e.Record.Prev
	}
	if c.said.Seq == seq {
		return c.said.Hash
	}
	return c.table[seq].Hash
}

// published is the last record up to which the bucket holds the chain's own bytes, but
// for those that are lost.
func (c *chainRead) published(lost map[int64]bool) int64 {
	n := int64(0)
	for seq := int64(1); seq <= c.last; seq++ {
		i, ok := c.find(seq)
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

// tell is what the chain tells, with the branches of which n are believed, in order; upTo
// is the last record of the chain that is heard.
func (c *chainRead) tell(upTo int64) *told {
	t, done := newTold(), make([]bool, len(c.branches))
	branches := func(fork int64) {
		for i, b := range c.branches {
			if b.fork <= fork && !done[i] {
				done[i] = true
				for _, e := range b.records[:b.believed] {
					t.hear(e.Record)
				}
			}
		}
	}
	branches(0)
	for _, e := range c.line {
		if e.Record.Seq > upTo {
			break
		}
		t.hear(e.Record)
		branches(e.Record.Seq)
	}
	branches(upTo)
	return t
}

// inUse are the KEKs that records which the control table has forgotten call active, and that
// no record retires with its rows moved: rows may be under them, whatever the table has
// concluded since. It does not matter whether the records are believed, for what follows
// retires nothing: a KEK becomes readable.
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

// known are the branches that doctor has taken account of, by the hash of their last
// record: its repairs said again what the table should be.
func (c *chainRead) forget() {
	known := map[string]bool{}
	for _, e := range c.line {
		if e.Record.Type == EventRepaired {
			for _, tip := range strings.Split(e.Record.Body[audit.BodyForgotten], ",") {
				known[tip] = true
			}
		}
	}
	c.branches = slices.DeleteFunc(c.branches, func(b branch) bool { return known[b.tip()] })
}

// keys is what KMS says of the KEKs that the table or the chain names.
type keys struct {
	known map[kek.ID]Key  // absent: KMS does not know it
	ours  map[kek.ID]bool // the registry, or records that the table holds or an anchor covers, name it; or it carries its rotation's tag
}

// describeKeys asks KMS for every KEK.
func (s *Steps) describeKeys(ctx context.Context, items []Item, c *chainRead, proven map[audit.Head]bool) (keys, []string, error) {
	k := keys{known: map[kek.ID]Key{}, ours: map[kek.ID]bool{}}
	for _, i := range items {
		if i.Kind == ItemKEK {
			k.ours[kek.ID(i.ID)] = true
		}
	}
	all, sure := newTold(), newTold()
	for _, e := range c.line {
		all.hear(e.Record)
		sure.hear(e.Record)
	}
	for _, b := range c.branches {
		for _, e := range b.records {
			all.hear(e.Record)
		}
		for _, e := range b.records[:b.proven(proven)] {
			sure.hear(e.Record)
		}
	}
	for id := range sure.keks {
		k.ours[id] = true
	}
	var notes []string
	for id := range all.rotations {
		tagged, err := s.Keys.Tagged(ctx, id)
		if err != nil {
			return k, nil, unavailable("tagged keys", err)
		}
		for _, key := range tagged {
			if _, named := all.keks[key]; !named && !k.ours[key] {
				notes = append(notes, fmt.Sprintf("KMS key %s carries the tag of rotation %s and no record names it: a mint that lost, which its rotation disables", key, id))
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
		key, err := s.Keys.Describe(ctx, id)
		if errors.Is(err, ErrNoKey) {
			continue
		}
		if err != nil {
			return k, nil, unavailable("KMS DescribeKey", err)
		}
		k.known[id] = key
	}
	slices.Sort(notes)
	return k, notes, nil
}

// believe decides how many records of each branch are believed: those that an anchor
// covers, and those after it as far as KMS agrees with the pointer that they tell of.
// Whoever may put an object into the bucket can add a record that links.
func (c *chainRead) believe(proven map[audit.Head]bool, k keys) {
	for i := range c.branches {
		b := &c.branches[i]
		certain := b.proven(proven)
		for b.believed = len(b.records); b.believed > certain; b.believed-- {
			t := c.tell(b.fork)
			if p := t.pointer; p != nil && k.ours[p.KEKID] && k.known[p.KEKID].Enabled && k.known[p.KEKID].Usable && t.newest(p.KEKID, k.known) {
				break
			}
		}
	}
}

// anchors are the anchors in the bucket that verify under the deployment's trust.
type anchors struct {
	proven map[audit.Head]bool // records that the last ones cover, also those that the table has forgotten
	last   *Anchored           // the last one that covers a record of the chain; nil: none
	places audit.Generations   // where the chain's anchors are
}

// readAnchors looks for the last anchors in each generation of them.
func (s *Steps) readAnchors(ctx context.Context, c *chainRead, items []Item) (out anchors, err error) {
	out = anchors{proven: map[audit.Head]bool{}, places: c.begun(audit.OfAnchors)}
	if s.Anchoring == nil {
		return out, nil
	}
	for _, i := range items {
		if st, ok := i.Value.(AnchorState); ok && faultOf(&i) == "" {
			out.places = st.Places
		}
	}
	own, err := s.Anchoring.Signer.PublicKey(ctx)
	if err != nil {
		return out, unavailable("anchor key", err)
	}
	places := audit.Generations("")
	for _, g := range append(out.places.All(), audit.Generation{}) {
		if err := s.lastAnchors(ctx, c, places, own, &out); err != nil {
			return out, err
		}
		places = places.With(g)
	}
	return out, nil
}

// lastAnchors goes back from the last anchor in a place to one that covers a record of the
// chain.
func (s *Steps) lastAnchors(ctx context.Context, c *chainRead, places audit.Generations, own []byte, out *anchors) error {
	n, err := s.countAnchors(ctx, c.at.Chain, places)
	if err != nil {
		return err
	}
	for ; n > 0; n-- {
		b, err := s.getAnchor(ctx, places.AnchorKeyIn(c.at.Chain, n))
		if err != nil {
			return err
		}
		a, err := s.verifiedAnchor(b, own, c.at.Chain, n)
		if err != nil {
			continue // it is no anchor
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
func (s *Steps) getAnchor(ctx context.Context, key string) ([]byte, error) {
	b, err := s.Anchoring.Vault.GetAnchor(ctx, key)
	if errors.Is(err, ErrNoRecord) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("audit bucket", err)
	}
	return b, nil
}

// countAnchors is the number of the last anchor in a place: they have no gaps.
func (s *Steps) countAnchors(ctx context.Context, chain string, places audit.Generations) (int64, error) {
	there, beyond := places.Last().From-1, places.Last().From // anchor there is in the bucket, anchor beyond perhaps
	for step := int64(1); ; step *= 2 {
		b, err := s.getAnchor(ctx, places.AnchorKeyIn(chain, beyond))
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
		b, err := s.getAnchor(ctx, places.AnchorKeyIn(chain, mid))
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

func (s *Steps) verifiedAnchor(b, own []byte, chain string, n int64) (Anchored, error) {
	a, err := audit.ParseAnchor(b)
	if err != nil {
		return Anchored{}, err
	}
	trusted := slices.ContainsFunc(s.Anchoring.Trust.AnchorKeys, func(k audit.PinnedKey) bool { return bytes.Equal(k.Key, a.Signed.Key) })
	if st := a.Signed.Statement; !trusted && !bytes.Equal(a.Signed.Key, own) || st.Chain != chain || st.N != n {
		return Anchored{}, errors.New("it is no anchor of this chain")
	}
	if err := a.Signed.Verify(); err != nil {
		return Anchored{}, err
	}
	if _, err := a.Proof.Verify(a.Signed, s.Anchoring.Trust); err != nil {
		return Anchored{}, err
	}
	return anchored(a)
}
