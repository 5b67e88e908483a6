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

// hold is one KEK that this process has a lease on, as of one epoch, and the data
// keys made in it.
type hold struct {
	pointer kek.Pointer
	shards  int // of its fence
	refs    atomic.Int64
	sealing *cache // DEKs by context

	// Of the keeper alone, once the hold is in Client.holds.
	written int64         // references the lease says
	renewed time.Duration // when it was written
	revoked bool
}

// entry is what the registry said of a KEK, and when.
type entry struct {
	kek kek.KEK
	at  time.Duration
}

// keep is the background work: it reads the pointer and renews the leases, each
// time after a different wait so that processes do not move in step.
func (c *Client) keep(ctx context.Context) {
	defer close(c.done)
	for {
		t := time.NewTimer(c.cfg.PointerAge/2 + c.cfg.jitter(c.cfg.PointerAge/4))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-c.wake:
			t.Stop()
			c.tend(ctx)
			continue
		case <-t.C:
		}
		err := c.refresh(ctx, nil)
		if err != nil && ctx.Err() == nil {
			c.count.pointerErrors.Add(1)
		}
		c.tend(ctx)
		c.opening.sweep(c.elapsed())
		c.current.Load().sealing.sweep(c.elapsed())
	}
}

// jitter is up to d.
func (c Config) jitter(d time.Duration) time.Duration {
	return time.Duration(c.Random(int64(d) + 1))
}

// catchUp reads the pointer because it is too old. If that fails the client goes
// on with what it knows for as long as a lease lives: the fence keeps rows safe, and
// a control table that cannot be read for a while need not stop readers and updates.
func (c *Client) catchUp(ctx context.Context) error {
	err := c.refresh(ctx, nil)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, errBackoff) {
		c.count.pointerErrors.Add(1)
	}
	if c.age(c.elapsed()) > c.cfg.LeaseTTL {
		return fmt.Errorf("%w: %w", ErrStalePointer, err)
	}
	return nil
}

// refresh reads the pointer, and moves to its KEK if it is another. Callers that
// come while one is reading share what it finds. With stale, the hold under which a
// write was refused, nothing is read if the client has left it already.
func (c *Client) refresh(ctx context.Context, stale *hold) error {
	began := c.elapsed()
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
		return nil // somebody read it while this call waited
	}
	if c.elapsed() < c.retryAt {
		return errBackoff
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.PointerAge)
	defer cancel()
	at := c.elapsed()
	err := c.read(ctx, h)
	// A read that outlives its timeout is one that the process was frozen over. It
	// says nothing of the table, and whoever writes first after the thaw is not to be
	// told that the pointer cannot be read.
	if now := c.elapsed(); err != nil && now-at < 2*c.cfg.PointerAge {
		c.retryAt = now + retryPointer
	}
	return err
}

// read reads the pointer until a lease is on the KEK that it names (spec: Load,
// PutLease, RecheckPtr): a lease put after the pointer has moved may be one that
// drain has not seen.
func (c *Client) read(ctx context.Context, h *hold) error {
	for range maxTries {
		at := c.elapsed()
		p, err := c.control.Pointer(ctx)
		if err != nil {
			return err
		}
		if h != nil && p.Epoch == h.pointer.Epoch {
			c.adopt(ctx, h, at)
			return nil
		}
		if h, err = c.hold(ctx, p); err != nil {
			return err
		}
	}
	return fmt.Errorf("the pointer moved %d times while it was read: %w", maxTries, ErrStalePointer)
}

// adopt makes h current, if it is not, and notes when the pointer named it.
func (c *Client) adopt(ctx context.Context, h *hold, at time.Duration) {
	old := c.current.Load()
	if old != h {
		if old != nil && c.emergency(ctx, h.pointer.RotationID) {
			c.opening.drop(false)
		}
		c.current.Store(h)
		if old != nil {
			old.sealing.drop(true)
		}
		select { // the keeper drops the lease on the old KEK, if it is idle
		case c.wake <- struct{}{}:
		default:
		}
	}
	c.fresh.Store(int64(at))
}

// emergency reports whether a rotation was one. When it cannot be told it was:
// dropping keys costs calls, keeping exposed ones costs more.
func (c *Client) emergency(ctx context.Context, rotation string) bool {
	m, err := c.control.Mode(ctx, rotation)
	return err != nil || m != kek.Normal
}

// hold puts a lease on the KEK that p names, unless an earlier try has.
func (c *Client) hold(ctx context.Context, p kek.Pointer) (*hold, error) {
	c.mu.Lock()
	i := slices.IndexFunc(c.holds, func(h *hold) bool { return h.pointer.Epoch == p.Epoch })
	if i >= 0 {
		defer c.mu.Unlock()
		return c.holds[i], nil
	}
	c.mu.Unlock()
	at := c.elapsed()
	k, err := c.control.KEK(ctx, p.KEKID)
	if err != nil {
		return nil, err
	}
	c.learn(k, at)
	h := &hold{pointer: p, shards: max(k.FenceShards, 1), sealing: newCache(c.cfg.Cache)}
	h.renewed = c.elapsed()
	if err := c.control.PutLease(ctx, c.lease(h)); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holds = append(c.holds, h)
	return h, nil
}

// lease is the lease on h as it should be written now.
func (c *Client) lease(h *hold) controltable.Lease {
	l := c.me
	l.KEK = h.pointer.KEKID
	l.Refs = h.refs.Load()
	l.Expires = c.cfg.clock().Add(c.cfg.LeaseTTL)
	return l
}

// tend renews the marks of tables, then the leases that say another number of references
// than there are or that are a third of their life old, and gives back those of
// superseded KEKs that nothing refers to. While a mark cannot be left they are kept: the
// rotation that waits for them must find it.
func (c *Client) tend(ctx context.Context) {
	marked := c.renewMarks(ctx)
	c.mu.Lock()
	holds := slices.Clone(c.holds)
	c.mu.Unlock()
	for _, h := range holds {
		if !marked && h != c.current.Load() && h.refs.Load() == 0 {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, c.cfg.PointerAge)
		err := c.renew(limited, h)
		cancel()
		if err != nil && ctx.Err() == nil {
			c.count.pointerErrors.Add(1)
		}
	}
}

func (c *Client) renew(ctx context.Context, h *hold) error {
	l := c.lease(h)
	superseded := h.pointer.Epoch < c.current.Load().pointer.Epoch
	if h.revoked && l.Refs > 0 {
		return nil // what is in flight meets the fence
	}
	if superseded && l.Refs == 0 {
		if err := c.control.DropLease(ctx, l); err != nil {
			return err
		}
		c.forget(h)
		return nil
	}
	now := c.elapsed()
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
	// Revoked while the pointer still named it a moment ago: take a new lease on
	// what it names now. What is in flight under a revoked lease meets the fence.
	if err := c.control.PutLease(ctx, l); err != nil {
		h.renewed = -c.cfg.LeaseTTL // try again soon
		return err
	}
	return c.refresh(ctx, nil)
}

func (c *Client) forget(h *hold) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holds = slices.DeleteFunc(c.holds, func(x *hold) bool { return x == h })
}

// registered is what the registry says of a KEK, and what it said as long ago as the
// pointer may be unless again. If the registry cannot be read, what this process has
// known of a KEK still holds, so that rows can be read meanwhile, and KMS decides. Of a
// KEK that it has not known nothing holds.
func (c *Client) registered(ctx context.Context, id kek.ID, again bool) (kek.KEK, error) {
	if p := c.current.Load().pointer; p.KEKID == id && !again {
		return kek.KEK{ID: id, ARN: p.KeyARN, State: kek.Active}, nil
	}
	c.mu.Lock()
	e, ok := c.known[id]
	c.mu.Unlock()
	if ok && !again && c.elapsed()-e.at < c.cfg.PointerAge {
		return e.kek, nil
	}
	at := c.elapsed()
	k, err := c.control.KEK(ctx, id)
	switch {
	case err == nil:
		c.learn(k, at)
		return k, nil
	case ok:
		return e.kek, nil
	default:
		return kek.KEK{}, err
	}
}

// learn keeps a registry entry. Unknown and pending ones are not kept: a switch may
// change them at any moment, and their ids come from rows, where somebody may plant
// many.
func (c *Client) learn(k kek.KEK, at time.Duration) {
	if !k.State.Resolves() && k.State != kek.Retired {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[k.ID] = entry{kek: k, at: at}
}

// markAge is how old a mark may become before it is left again.
const markAge = time.Hour

// marked is when this client last left the mark of a table, and in which epoch.
type marked struct {
	at    time.Duration
	epoch int64
}

// mark leaves the mark of a table in the control table. While the mark is there and the
// table is not a registered source, every rotation is refused.
func (c *Client) mark(ctx context.Context, table string) error {
	m := marked{at: c.elapsed(), epoch: c.current.Load().pointer.Epoch}
	if err := c.control.PutMark(ctx, kek.Mark{Table: table, Holder: c.me.Holder, SeenAt: c.cfg.clock()}); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.marks[table] = m
	return nil
}

// renewMarks leaves each mark again when it is an hour old: if an operator removed it,
// the next rotation is still refused before its switch. It also leaves each mark again
// when the pointer has moved, before the lease on the old KEK is given back. Drain waits
// for that lease, so even a rotation that is shorter than an hour finds the mark before
// it retires the old KEK. It reports whether every mark is there.
func (c *Client) renewMarks(ctx context.Context) (all bool) {
	all = true
	c.mu.Lock()
	marks := maps.Clone(c.marks)
	c.mu.Unlock()
	for table, m := range marks {
		if m.epoch == c.current.Load().pointer.Epoch && c.elapsed()-m.at < markAge {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, c.cfg.PointerAge)
		err := c.mark(limited, table)
		cancel()
		all = all && err == nil
		if err != nil && ctx.Err() == nil {
			c.count.pointerErrors.Add(1)
		}
	}
	return all
}
