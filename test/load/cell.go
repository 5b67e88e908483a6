package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
)

// errWrong reports a row that holds what it must not.
var errWrong = errors.New("wrong read")

// cell is one row and what it must hold. Its states are numbered: each write
// begins the next one, and state 0 is the absence before the first.
type cell struct {
	rows    Rows
	item    envelope.Item
	name    string
	payload payload

	mu     sync.Mutex
	begun  int64 // the state that the last write leads to
	acked  int64 // the state that the last acknowledged write has left
	absent int64 // the last state begun in which there is no row
}

// begin starts a write of the cell's owner and returns the state it leads to.
func (c *cell) begin(present bool) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun++
	if !present {
		c.absent = c.begun
	}
	return c.begun
}

func (c *cell) ack(state int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = state
}

// floor is the oldest state that a read which starts now may see.
func (c *cell) floor() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked
}

// judge says whether a read that started when floor was acknowledged may have
// seen plain, or no row (err).
func (c *cell) judge(floor int64, plain []byte, err error) error {
	c.mu.Lock()
	begun, absent := c.begun, c.absent
	c.mu.Unlock()
	if errors.Is(err, envelope.ErrNotFound) {
		if absent >= floor {
			return nil
		}
		return fmt.Errorf("%w: there is no row, want state %d to %d", errWrong, floor, begun)
	}
	if err != nil {
		return err
	}
	state, ok := c.payload.parse(plain)
	switch {
	case !ok:
		return fmt.Errorf("%w: %d bytes that were never written to this row", errWrong, len(plain))
	case state < floor || state > begun:
		return fmt.Errorf("%w: state %d, want %d to %d", errWrong, state, floor, begun)
	}
	return nil
}

func (c *cell) insert(ctx context.Context) error {
	state := c.begin(true)
	err := c.rows.Insert(ctx, c.item, c.payload.of(state))
	if errors.Is(err, envelope.ErrExists) {
		return fmt.Errorf("%w: a row that was deleted, or never written, is there: %w", errWrong, err)
	}
	if err == nil {
		c.ack(state)
	}
	return err
}

func (c *cell) update(ctx context.Context) error {
	floor, state := c.floor(), c.begin(true)
	err := c.rows.Update(ctx, c.item, func(row *envelope.Row) error {
		if err := c.judge(floor, row.Plaintext, nil); err != nil {
			return err
		}
		row.Plaintext = c.payload.of(state)
		return nil
	})
	if errors.Is(err, envelope.ErrNotFound) {
		return fmt.Errorf("%w: the row is gone: %w", errWrong, err)
	}
	if err == nil {
		c.ack(state)
	}
	return err
}

func (c *cell) remove(ctx context.Context) error {
	state := c.begin(false)
	err := c.rows.Delete(ctx, c.item)
	if err == nil {
		c.ack(state)
	}
	return err
}

func (c *cell) read(ctx context.Context) error {
	floor := c.floor()
	row, err := c.rows.Get(ctx, c.item)
	return c.judge(floor, row.Plaintext, err)
}

// readLate reads a row, waits and opens it; "" is the KEK of none.
func (c *cell) readLate(ctx context.Context, held func()) (kek.ID, error) {
	floor := c.floor()
	row, id, err := c.rows.GetLate(ctx, c.item, held)
	return id, c.judge(floor, row.Plaintext, err)
}

// payload makes the plaintexts of one row: the row, the state, and bytes that
// follow from both.
type payload struct {
	row       uint64
	low, high int
}

const headerSize = 16

func (p payload) of(state int64) []byte {
	r := rand.NewPCG(p.row, uint64(state))                 //nolint:gosec // a state is not negative
	size := p.low + int(r.Uint64()%uint64(p.high-p.low+1)) //nolint:gosec // small
	b := make([]byte, headerSize, headerSize+size)
	binary.BigEndian.PutUint64(b, p.row)
	binary.BigEndian.PutUint64(b[8:], uint64(state)) //nolint:gosec // as above
	for len(b) < headerSize+size {
		b = binary.BigEndian.AppendUint64(b, r.Uint64())
	}
	return b[:headerSize+size]
}

// parse returns the state of a payload, false if it is not one of this row's.
func (p payload) parse(b []byte) (int64, bool) {
	if len(b) < headerSize {
		return 0, false
	}
	state := int64(binary.BigEndian.Uint64(b[8:])) //nolint:gosec // compared below
	return state, state > 0 && bytes.Equal(b, p.of(state))
}
