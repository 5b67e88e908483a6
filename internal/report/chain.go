package report

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// The results of comparing a record with the object in the bucket.
const (
	bucketSame      = "same"
	bucketMissing   = "missing"
	bucketDifferent = "different"
	bucketUnread    = "unread"
)

// collectAudit adds the rotation's records, their anchors, and the verification of the
// whole chain.
func (c *collection) collectAudit(ctx context.Context) error {
	at, head, err := c.Head.Head(ctx) // before the bucket, which may have grown since
	if err != nil {
		return fmt.Errorf("report: read the head of the audit chain: %w", err)
	}
	c.line = at
	pending, _, err := c.Table.Unpublished(ctx)
	if err != nil {
		return fmt.Errorf("report: read the audit outbox: %w", err)
	}
	if c.entries, err = c.Table.AuditEntries(ctx, 1); err != nil {
		return fmt.Errorf("report: read the audit outbox: %w", err)
	}
	a := Audit{Chain: at.Chain, Records: []Record{}, Anchors: []Anchor{}}
	for _, e := range c.entries {
		if e.Record.Rotation != c.report.Rotation.ID {
			continue
		}
		r := Record{
			Seq: e.Record.Seq, Hash: e.Hash, Type: e.Record.Type, Step: e.Record.Step, Actor: e.Record.Actor,
			Body: e.Record.Body, Object: at.RecordKey(e.Record.Seq), Canonical: string(e.Bytes),
		}
		if r.Time, err = time.Parse(time.RFC3339Nano, e.Record.Time); err != nil {
			return fmt.Errorf("report: time of audit record %d: %w", r.Seq, err)
		}
		r.Bucket = c.compareWithBucket(ctx, at, e)
		a.Records = append(a.Records, r)
	}
	if c.report.Registry, err = c.listRegistryChanges(at); err != nil {
		return err
	}
	c.collectAnchors(ctx, &a)
	a.Verification = c.verifyChain(ctx, at, publishedHead(head, pending, c.entries))
	c.report.Audit = a
	return nil
}

// registryEvents are the types of the records that decide which rows a rotation moves.
var registryEvents = []string{kek.EventGenesis, kek.EventSourceAdded, kek.EventSourceRemoved, kek.EventMarkRemoved, kek.EventKEKRegistered, rotation.EventAdopted, rotation.EventConverted}

// listRegistryChanges returns the changes of sources and historic KEKs, and the adopted and
// converted rows, from the end of the rotation before to the last record of this one.
func (c *collection) listRegistryChanges(at audit.Line) ([]Change, error) {
	out := []Change{}
	var pending []Change
	seen := false // a record of this rotation
	for _, e := range c.entries {
		rec := e.Record
		switch {
		case rec.Rotation == c.report.Rotation.ID:
			seen = true
		case !seen && (rec.Type == kek.EventRotationCompleted || rec.Type == kek.EventRolledBack):
			pending = nil
		}
		if slices.Contains(registryEvents, rec.Type) {
			when, err := time.Parse(time.RFC3339Nano, rec.Time)
			if err != nil {
				return out, fmt.Errorf("report: time of audit record %d: %w", rec.Seq, err)
			}
			pending = append(pending, Change{Seq: rec.Seq, Time: when, Type: rec.Type, Actor: rec.Actor, Body: rec.Body, Object: at.RecordKey(rec.Seq)})
		}
		if rec.Rotation == c.report.Rotation.ID {
			out = append(out, pending...)
			pending = nil
		}
	}
	return out, nil
}

// describeBucket compares a record of the outbox with what the bucket holds.
func (c *collection) compareWithBucket(ctx context.Context, at audit.Line, e audit.Entry) string {
	b, err := c.Vault.Get(ctx, at.RecordKey(e.Record.Seq))
	switch {
	case errors.Is(err, journal.ErrNoRecord):
		return bucketMissing
	case err != nil:
		c.addNote("Audit record %d could not be read from the bucket: %v", e.Record.Seq, err)
		return bucketUnread
	case !bytes.Equal(b, e.Bytes):
		return bucketDifferent
	}
	return bucketSame
}

// collectAnchors finds for each record the first anchor that covers it. There are many
// anchors, and each covers more records than the one before, so it searches by bisection.
func (c *collection) collectAnchors(ctx context.Context, a *Audit) {
	if c.Anchoring == nil {
		c.addNote("This deployment anchors its audit chain in no public log: that nobody rewrote the chain as a whole rests on the bucket's Object Lock alone.")
		return
	}
	st, err := c.Anchoring.Store.LoadAnchor(ctx)
	if err != nil {
		c.addNote("The state of anchoring could not be read: %v", err)
		return
	}
	read := map[int64]Anchor{}
	at := func(n int64) Anchor {
		if known, ok := read[n]; ok || err != nil {
			return known
		}
		read[n], err = c.readAnchor(ctx, st.Places.AnchorKeyIn(a.Chain, n))
		return read[n]
	}
	for i := range a.Records {
		r := &a.Records[i]
		n := 1 + int64(sort.Search(int(st.Last.N), func(i int) bool { return at(int64(i)+1).Seq >= r.Seq }))
		if err != nil {
			c.addNote("The anchors could not be read: %v", err)
			return
		}
		if n > st.Last.N {
			continue
		}
		r.Anchor = n
		if !slices.ContainsFunc(a.Anchors, func(o Anchor) bool { return o.N == n }) {
			a.Anchors = append(a.Anchors, read[n])
		}
	}
}

// readAnchor reads one anchor from the bucket.
func (c *collection) readAnchor(ctx context.Context, key string) (Anchor, error) {
	b, err := c.Anchoring.Objects.GetAnchor(ctx, key)
	if err != nil {
		return Anchor{}, err
	}
	stored, err := audit.ParseAnchor(b)
	if err != nil {
		return Anchor{}, err
	}
	s := stored.Signed.Statement
	digest, err := s.Digest()
	if err != nil {
		return Anchor{}, err
	}
	at, err := time.Parse(time.RFC3339Nano, s.Time)
	return Anchor{
		N: s.N, Seq: s.Seq, Head: s.Head, Digest: digest, Log: stored.Proof.Origin(), Index: stored.Proof.Index,
		Time: at, Object: key,
	}, err
}

// publishedHead returns the head of the records that the bucket must hold: the chain's
// head, or the record before the first one that is not marked as published. Collecting
// does not publish.
func publishedHead(head audit.Head, pending, entries []audit.Entry) *audit.Head {
	if len(pending) == 0 || pending[0].Record.Seq > head.Seq {
		return &head
	}
	for _, e := range entries {
		if e.Record.Seq == pending[0].Record.Seq-1 {
			h := e.Head()
			return &h
		}
	}
	return nil
}

// verifyChain verifies the whole chain in the bucket, offline.
func (c *collection) verifyChain(ctx context.Context, at audit.Line, head *audit.Head) Verification {
	p := audit.Policy{Chain: at.Chain, Retention: c.Retention, Head: head, Generations: at.Generations, Now: c.report.GeneratedAt}
	bucket := c.Bucket
	if a := c.Anchoring; a != nil {
		bucket = a.Bucket
		p.Retention = a.Retention
		p.MaxTail = a.MaxTail
		p.Trust = a.Trust
		own, err := a.Signer.PublicKey(ctx)
		if err != nil {
			return failedVerification(fmt.Errorf("anchor key: %w", err))
		}
		p.Trust.AnchorKeys = append(slices.Clone(p.Trust.AnchorKeys), audit.PinnedKey{Key: own})
		st, err := a.Store.LoadAnchor(ctx)
		if err != nil {
			return failedVerification(fmt.Errorf("anchor state: %w", err))
		}
		if st.Last.N > 0 {
			p.Known = []audit.Known{{N: st.Last.N, Digest: st.Last.Digest}}
		}
	}
	if bucket == nil {
		return failedVerification(errors.New("there is no access to the bucket"))
	}
	var run replay.Run
	p.Replay = run.Take
	r, err := audit.Verify(ctx, bucket, p)
	if err != nil {
		return failedVerification(err)
	}
	model := run.Report()
	return Verification{
		Model: &model, Again: listCommands(p, r.Last),
		Result: r.Result, Summary: r.String(), Records: r.Records, HeadHash: r.HeadHash, Anchored: r.Anchored,
		Findings: r.Findings, More: r.More, Unchecked: r.Unchecked,
	}
}

// listCommands lists the commands by which somebody without access to the account verifies a
// copy of the bucket, up to the anchor that was the last one when the report was made.
func listCommands(p audit.Policy, last *audit.Known) []string {
	verify := fmt.Sprintf("matter-audit-verify --model --trust trust.json --chain %s --retention-days %d", p.Chain, int(p.Retention.Hours()/24))
	if last != nil {
		verify += " --known-anchor " + last.String()
	}
	return []string{"matter ops audit export --to copy", verify + " copy"}
}

// failedVerification is the verification of a chain that could not be verified.
func failedVerification(err error) Verification {
	return Verification{Error: advice.Explain(err), Summary: "the chain could not be verified: " + advice.Explain(err), Findings: []audit.Finding{}}
}
