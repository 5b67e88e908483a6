package envelope

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// heldLease is a lease of this process on the KEK of one epoch, and the data keys made in
// that epoch.
type heldLease struct {
	pointer kek.Pointer
	shards  int // of its fence
	refs    atomic.Int64
	sealing *cache // DEKs by context

	// Only the background work uses these once the lease is in Client.leases.
	written int64         // references that the item says
	renewed time.Duration // when the item was written
	revoked bool
}

// knownKEK is a KEK's entry in the registry, and when it was read.
type knownKEK struct {
	kek kek.KEK
	at  time.Duration
}

// runBackground reads the pointer and renews the leases until ctx ends. The wait between
// two rounds is random, so that many processes do not call at the same time.
func (c *Client) runBackground(ctx context.Context) {
	defer close(c.done)
	for {
		t := time.NewTimer(c.cfg.PointerAge/2 + c.cfg.drawJitter(c.cfg.PointerAge/4))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-c.wake:
			t.Stop()
			c.renewAll(ctx)
			continue
		case <-t.C:
		}
		err := c.refreshPointer(ctx, nil)
		if err != nil && ctx.Err() == nil {
			c.count.pointerErrors.Add(1)
		}
		c.renewAll(ctx)
		c.opening.dropExpired(c.elapsedTime())
		c.current.Load().sealing.dropExpired(c.elapsedTime())
		c.keyed.dropExpired(c.elapsedTime())
	}
}

// drawJitter returns a random duration of at most d.
func (c Config) drawJitter(d time.Duration) time.Duration {
	return time.Duration(c.Random(int64(d) + 1))
}

// refreshStalePointer reads the pointer because it is too old. If that fails, the client
// continues with the pointer that it knows, for LeaseTTL: the fence keeps rows safe, and a
// control table that cannot be read for a while need not stop readers and updates.
func (c *Client) refreshStalePointer(ctx context.Context) error {
	err := c.refreshPointer(ctx, nil)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, errBackoff) {
		c.count.pointerErrors.Add(1)
	}
	if c.pointerAge(c.elapsedTime()) > c.cfg.LeaseTTL {
		return fmt.Errorf("%w: %w", ErrStalePointer, err)
	}
	return nil
}

// refreshPointer reads the pointer, and changes to its KEK if it is another one.
// Concurrent callers share one read. stale may be the lease under which a write was
// refused: if the client has already changed to another one, nothing is read.
func (c *Client) refreshPointer(ctx context.Context, stale *heldLease) error {
	began := c.elapsedTime()
	select {
	case c.reading <- struct{}{}:
		defer func() { <-c.reading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	h := c.current.Load()
	switch {
	case c.closed.Load():
		return ErrClosed
	case stale != nil && h != stale:
		return nil
	}
	if time.Duration(c.fresh.Load()) > began {
		return nil // another caller read it while this one waited
	}
	if c.elapsedTime() < c.retryAt {
		return errBackoff
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.PointerAge)
	defer cancel()
	at := c.elapsedTime()
	err := c.readPointer(ctx, h)
	// If the read took much longer than its timeout, the process was suspended during the
	// read. Do not back off then: the table may be fine, and the first write after the
	// suspension would fail without a reason.
	if now := c.elapsedTime(); err != nil && now-at < 2*c.cfg.PointerAge {
		c.retryAt = now + retryPointer
	}
	return err
}

// readPointer reads the pointer until it names a KEK that this process has a lease on
// (spec: Load, PutLease, RecheckPtr). The second read is needed: if the pointer moved
// before the lease was written, drain may not have seen the lease.
func (c *Client) readPointer(ctx context.Context, h *heldLease) error {
	for range maxTries {
		at := c.elapsedTime()
		p, err := c.control.ReadPointer(ctx)
		if err != nil {
			return err
		}
		if h != nil && p.Epoch == h.pointer.Epoch {
			c.setCurrent(ctx, h, at)
			return nil
		}
		if h, err = c.acquireLease(ctx, p); err != nil {
			return err
		}
	}
	return fmt.Errorf("the pointer moved %d times while it was read: %w", maxTries, ErrStalePointer)
}

// setCurrent makes h the current lease. at is when the pointer named its KEK. The data
// keys of the lease before are dropped; after an emergency also those for reading, and those
// of the key table from earlier epochs, which may be exposed. If the pointer has moved more
// than once since it was read, an emergency may have been among the rotations.
func (c *Client) setCurrent(ctx context.Context, h *heldLease, at time.Duration) {
	old := c.current.Load()
	if old != h {
		if old != nil && (h.pointer.Epoch != old.pointer.Epoch+1 || c.isEmergency(ctx, h.pointer.RotationID)) {
			c.opening.dropAll(false)
			c.keyed.dropEarlier(h.pointer.Epoch)
		}
		c.current.Store(h)
		if old != nil {
			old.sealing.dropAll(true)
		}
		select { // the background work returns the old lease, if it has no references
		case c.wake <- struct{}{}:
		default:
		}
	}
	c.fresh.Store(int64(at))
}

// isEmergency reports whether a rotation is an emergency. If its record cannot be read,
// the answer is yes: dropping keys costs calls to KMS, keeping exposed ones costs more.
func (c *Client) isEmergency(ctx context.Context, rotation string) bool {
	m, err := c.control.ReadMode(ctx, rotation)
	return err != nil || m != kek.Normal
}

// acquireLease writes a lease on the KEK that p names, unless this process has one for
// that epoch.
func (c *Client) acquireLease(ctx context.Context, p kek.Pointer) (*heldLease, error) {
	c.mu.Lock()
	i := slices.IndexFunc(c.leases, func(h *heldLease) bool { return h.pointer.Epoch == p.Epoch })
	if i >= 0 {
		defer c.mu.Unlock()
		return c.leases[i], nil
	}
	c.mu.Unlock()
	at := c.elapsedTime()
	k, err := c.control.ReadKEK(ctx, p.KEKID)
	if err != nil {
		return nil, err
	}
	c.rememberKEK(k, at)
	h := &heldLease{pointer: p, shards: max(k.FenceShards, 1), sealing: newCache(c.cfg.Cache)}
	h.renewed = c.elapsedTime()
	if err := c.control.PutLease(ctx, c.leaseItem(h)); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leases = append(c.leases, h)
	return h, nil
}

// leaseItem returns the lease as it should be written now.
func (c *Client) leaseItem(h *heldLease) controltable.Lease {
	l := c.identity
	l.KEK = h.pointer.KEKID
	l.Refs = h.refs.Load()
	l.Expires = c.cfg.wallClock().Add(c.cfg.LeaseTTL)
	return l
}

// renewAll renews the marks of tables, then the leases, and returns the leases on
// superseded KEKs that have no references. It keeps those while a mark cannot be written:
// a rotation waits for these leases, and must find the mark before it continues.
func (c *Client) renewAll(ctx context.Context) {
	marked := c.renewMarks(ctx)
	c.mu.Lock()
	holds := slices.Clone(c.leases)
	c.mu.Unlock()
	for _, h := range holds {
		if !marked && h != c.current.Load() && h.refs.Load() == 0 {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, c.cfg.PointerAge)
		err := c.renewLease(limited, h)
		cancel()
		if err != nil && ctx.Err() == nil {
			c.count.pointerErrors.Add(1)
		}
	}
}

// renewLease writes a lease whose stored reference count is wrong or of whose TTL a third
// has passed, and returns a superseded one without references.
func (c *Client) renewLease(ctx context.Context, h *heldLease) error {
	l := c.leaseItem(h)
	superseded := h.pointer.Epoch < c.current.Load().pointer.Epoch
	if h.revoked && l.Refs > 0 {
		return nil // the fence decides about what is still in flight
	}
	if superseded && l.Refs == 0 {
		if err := c.control.DropLease(ctx, l); err != nil {
			return err
		}
		c.forgetLease(h)
		return nil
	}
	now := c.elapsedTime()
	if l.Refs == h.written && now-h.renewed < c.cfg.LeaseTTL/3 {
		return nil
	}
	alive, err := c.control.RenewLease(ctx, l)
	if err != nil {
		return err
	}
	h.written, h.renewed = l.Refs, now
	if alive {
		return nil
	}
	c.count.revoked.Add(1)
	if superseded {
		h.revoked = true
		return nil
	}
	// The lease was revoked although the pointer still named its KEK at the last read:
	// write it again, and read the pointer. The fence decides about writes in flight.
	if err := c.control.PutLease(ctx, l); err != nil {
		h.renewed = -c.cfg.LeaseTTL // try again soon
		return err
	}
	return c.refreshPointer(ctx, nil)
}

// forgetLease removes a returned lease from the list.
func (c *Client) forgetLease(h *heldLease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leases = slices.DeleteFunc(c.leases, func(x *heldLease) bool { return x == h })
}

// lookUpKEK returns a KEK's entry in the registry. Unless again is set, the entry may be
// as old as the pointer may be. If the registry cannot be read, it returns the last known
// entry, so that rows can still be read; KMS decides then. A KEK that this process has not
// known is an error then.
func (c *Client) lookUpKEK(ctx context.Context, id kek.ID, again bool) (kek.KEK, error) {
	if p := c.current.Load().pointer; p.KEKID == id && !again {
		return kek.KEK{ID: id, ARN: p.KeyARN, State: kek.Active}, nil
	}
	c.mu.Lock()
	e, ok := c.known[id]
	c.mu.Unlock()
	if ok && !again && c.elapsedTime()-e.at < c.cfg.PointerAge {
		return e.kek, nil
	}
	at := c.elapsedTime()
	k, err := c.control.ReadKEK(ctx, id)
	switch {
	case err == nil:
		c.rememberKEK(k, at)
		return k, nil
	case ok:
		return e.kek, nil
	default:
		return kek.KEK{}, err
	}
}

// rememberKEK keeps a registry entry. It does not keep unknown and pending KEKs: a switch
// may change them at any time, and their ids come from rows, so a person who can write
// rows could fill the memory.
func (c *Client) rememberKEK(k kek.KEK, at time.Duration) {
	if !k.State.Resolves() && k.State != kek.Retired {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[k.ID] = knownKEK{kek: k, at: at}
}

// markAge is how old a mark may become before it is written again.
const markAge = time.Hour

// tableMark is when this client last wrote the mark of a table, and in which epoch.
type tableMark struct {
	at    time.Duration
	epoch int64
}

// putMark writes the mark of a table into the control table. While the mark exists and the
// table is not a registered source, every rotation is refused.
func (c *Client) putMark(ctx context.Context, table string) error {
	m := tableMark{at: c.elapsedTime(), epoch: c.current.Load().pointer.Epoch}
	if err := c.control.PutMark(ctx, kek.Mark{Table: table, Holder: c.identity.Holder, SeenAt: c.cfg.wallClock()}); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.marks[table] = m
	return nil
}

// renewMarks writes each mark again after markAge: if an operator removed it, the next
// rotation is still refused before its switch. It also writes each mark again when the
// pointer has moved, before the lease on the old KEK is returned. Drain waits for that
// lease, so even a rotation that is shorter than an hour finds the mark before it retires
// the old KEK. It reports whether every mark was written.
func (c *Client) renewMarks(ctx context.Context) (all bool) {
	all = true
	c.mu.Lock()
	marks := maps.Clone(c.marks)
	c.mu.Unlock()
	for table, m := range marks {
		if m.epoch == c.current.Load().pointer.Epoch && c.elapsedTime()-m.at < markAge {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, c.cfg.PointerAge)
		err := c.putMark(limited, table)
		cancel()
		all = all && err == nil
		if err != nil && ctx.Err() == nil {
			c.count.pointerErrors.Add(1)
		}
	}
	return all
}
