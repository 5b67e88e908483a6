package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// chainRead is the audit chain as the control table and the bucket hold it.
type chainRead struct {
	name   string
	last   int64                 // of the table's items and its head
	said   audit.Head            // the head that the table says; zero if it cannot be read
	table  map[int64]audit.Entry // the outbox; of a damaged record only the hash
	sound  map[int64]bool        // of table
	bucket map[int64]audit.Entry // what can be read of it
	line   []audit.Entry         // the chain: from both, up to last
	gaps   map[int64]string      // records of the chain that neither has, and their hashes if those are known
	fork   int64                 // last record before other
	other  []audit.Entry         // records in the bucket that go on from the chain, and that the table does not know
}

// readChain reads the chain from the bucket, record by record, beside the table's items.
func (s *Steps) readChain(ctx context.Context, name string, items []Item) (*chainRead, error) {
	c := &chainRead{name: name, table: map[int64]audit.Entry{}, sound: map[int64]bool{}, bucket: map[int64]audit.Entry{}, gaps: map[int64]string{}}
	for _, i := range items {
		switch v := i.Value.(type) {
		case audit.Entry:
			seq := recordSeq(i.Key)
			c.table[seq], c.sound[seq] = v, i.Err == nil
			c.last = max(c.last, seq)
		case HeadItem:
			if faultOf(&i) == "" {
				c.last, c.said = max(c.last, v.Head.Seq), v.Head
			}
		}
	}
	if err := s.readBucket(ctx, c); err != nil {
		return nil, err
	}
	c.follow()
	return c, nil
}

// recordSeq is the number of the record in an item AUDIT/<12 digits>; 0 if it has none.
func recordSeq(k ItemKey) int64 {
	var seq int64
	if _, err := fmt.Sscanf(k.SK, "%d", &seq); err != nil || fmt.Sprintf("%012d", seq) != k.SK {
		return 0
	}
	return seq
}

// bucketReaders is how many records are read at once.
const bucketReaders = 16

// readBucket reads every record up to the table's last, and on from there as long as
// there are any.
func (s *Steps) readBucket(ctx context.Context, c *chainRead) error {
	stored := make([][]byte, c.last+1)
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(bucketReaders)
	for seq := int64(1); seq <= c.last; seq++ {
		g.Go(func() (err error) {
			stored[seq], err = s.getRecord(within, c.name, seq)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for seq := int64(1); ; seq++ {
		var b []byte
		if seq <= c.last {
			b = stored[seq]
		} else {
			var err error
			if b, err = s.getRecord(ctx, c.name, seq); err != nil {
				return err
			}
			if b == nil {
				return nil
			}
		}
		if e, err := audit.Parse(b); err == nil && e.Record.Seq == seq {
			c.bucket[seq] = e
		} else if seq > c.last {
			return nil // no record of ours
		}
	}
}

// getRecord returns nil if there is none.
func (s *Steps) getRecord(ctx context.Context, chain string, seq int64) ([]byte, error) {
	b, err := s.Vault.Get(ctx, chain, seq)
	if errors.Is(err, ErrNoRecord) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("audit bucket", err)
	}
	return b, nil
}

// follow tells the chain from what the table and the bucket hold. Where both have a
// record and differ, the table was set back and went on: the chain is the table's, and
// the bucket's records go on from the fork as another.
func (c *chainRead) follow() {
	head := audit.Genesis(c.name)
	forked := false
	for seq := int64(1); seq <= c.last; seq++ {
		own, stored := c.table[seq], c.bucket[seq]
		ok := c.sound[seq] && own.Record.Prev == head.Hash && own.Record.Chain == c.name
		there := stored.Bytes != nil && stored.Record.Prev == head.Hash && stored.Record.Chain == c.name
		if ok && stored.Bytes != nil && stored.Hash != own.Hash && !forked {
			forked, c.fork = true, seq-1
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
		c.fork = c.last
	}
	prev := audit.Genesis(c.name)
	if i, ok := c.at(c.fork); ok {
		prev = c.line[i].Head()
	} else if c.fork > 0 {
		prev = audit.Head{Seq: c.fork, Hash: c.gaps[c.fork]}
	}
	for {
		e, ok := c.bucket[prev.Seq+1]
		if !ok || e.Record.Prev != prev.Hash || e.Record.Chain != c.name {
			return
		}
		c.other, prev = append(c.other, e), e.Head()
	}
}

// at is the index in the line of a record.
func (c *chainRead) at(seq int64) (int, bool) {
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

// head is the last record of the chain as far as its hash is known.
func (c *chainRead) head() audit.Head {
	if c.last == 0 {
		return audit.Genesis(c.name)
	}
	if i, ok := c.at(c.last); ok {
		return c.line[i].Head()
	}
	return audit.Head{Seq: c.last, Hash: c.gaps[c.last]}
}

// published is the last record up to which the bucket holds the chain's own bytes, but
// for those that are lost.
func (c *chainRead) published(lost map[int64]bool) int64 {
	n := int64(0)
	for seq := int64(1); seq <= c.last; seq++ {
		i, ok := c.at(seq)
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

// tell is what the chain tells when of the other records the first n are believed.
func (c *chainRead) tell(n int) *told {
	t := c.tellBefore(n)
	for _, e := range c.line {
		if e.Record.Seq > c.fork {
			t.hear(e.Record)
		}
	}
	return t
}

// tellBefore leaves out what the table has recorded since it was set back.
func (c *chainRead) tellBefore(n int) *told {
	t := newTold()
	for _, e := range c.line {
		if e.Record.Seq <= c.fork {
			t.hear(e.Record)
		}
	}
	for _, e := range c.other[:n] {
		t.hear(e.Record)
	}
	return t
}

// keys is what KMS says of the KEKs that the table or the chain names.
type keys struct {
	known map[kek.ID]Key  // absent: KMS does not know it
	ours  map[kek.ID]bool // the registry, or records that the table holds, name it; or it carries its rotation's tag
}

// describeKeys asks KMS for every KEK.
func (s *Steps) describeKeys(ctx context.Context, items []Item, c *chainRead) (keys, []string, error) {
	k := keys{known: map[kek.ID]Key{}, ours: map[kek.ID]bool{}}
	for _, i := range items {
		if i.Kind == ItemKEK {
			k.ours[kek.ID(i.ID)] = true
		}
	}
	for id := range c.tell(0).keks {
		k.ours[id] = true
	}
	all := c.tell(len(c.other))
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

// believed is how many of the records that the table does not know are believed: those
// that an anchor covers, and those after it as far as KMS agrees with the pointer that
// they tell of. Whoever may put an object into the bucket can add a record that links.
func (c *chainRead) believed(proven int64, k keys) int {
	for n := len(c.other); n > 0; n-- {
		if c.other[n-1].Record.Seq <= proven {
			return n
		}
		t := c.tellBefore(n)
		if p := t.pointer; p != nil && k.ours[p.KEKID] && k.known[p.KEKID].Enabled && k.known[p.KEKID].Usable && t.newest(p.KEKID, k.known) {
			return n
		}
	}
	return 0
}

// lastAnchor is the last anchor in the bucket that verifies under the deployment's trust;
// nil if there is none or no log.
func (s *Steps) lastAnchor(ctx context.Context, chain string) (*Anchored, error) {
	if s.Anchoring == nil {
		return nil, nil
	}
	get := func(n int64) ([]byte, error) {
		b, err := s.Anchoring.Vault.GetAnchor(ctx, chain, n)
		if errors.Is(err, ErrNoRecord) {
			return nil, nil
		}
		if err != nil {
			return nil, unavailable("audit bucket", err)
		}
		return b, nil
	}
	there, beyond := int64(0), int64(1) // anchor there is in the bucket, anchor beyond is not
	for {
		b, err := get(beyond)
		if err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		there, beyond = beyond, 2*beyond
	}
	for beyond-there > 1 {
		mid := (there + beyond) / 2
		b, err := get(mid)
		if err != nil {
			return nil, err
		}
		if b == nil {
			beyond = mid
		} else {
			there = mid
		}
	}
	own, err := s.Anchoring.Signer.PublicKey(ctx)
	if err != nil {
		return nil, unavailable("anchor key", err)
	}
	for ; there > 0; there-- { // what does not verify is no anchor
		b, err := get(there)
		if err != nil {
			return nil, err
		}
		if a, err := s.verifiedAnchor(b, own, chain, there); err == nil {
			return &a, nil
		}
	}
	return nil, nil
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
