package rotation

import (
	"bytes"
	"context"
	"sync"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// freshKey is a data key that was just made.
type freshKey struct {
	id      string // of its record; "" if rows will carry it
	kek     kek.ID
	epoch   int64 // of the pointer that named the KEK
	plain   []byte
	wrapped []byte
}

// keyStock holds the data keys that one process seals rows under, by encryption context: rows
// of one context share a data key, within the bounds that writers have (package envelope).
// It is safe for concurrent use.
type keyStock struct {
	make  func(ctx context.Context, encctx map[string]string) (freshKey, error)
	uses  int64 // payloads under one data key
	bytes int64 // of them

	mu    sync.Mutex
	lines map[rewrapKey]*stockLine
	made  int64
}

// stockLine is the data key of one encryption context.
type stockLine struct {
	mu      sync.Mutex
	key     freshKey
	uses    int64
	bytes   int64
	dropped bool // nobody would wipe a key that is put here
}

// maxLines is how many contexts a stock holds. With more than these in the order of a scan,
// which is random, rows of one context do not always share a data key.
const maxLines = 100_000

// take returns a copy of a data key for one payload, of an epoch or of a later one. The caller
// wipes it.
func (k *keyStock) take(ctx context.Context, encctx map[string]string, epoch, size int64) (freshKey, error) {
	line := k.lineOf(encctx)
	line.mu.Lock()
	defer line.mu.Unlock()
	full := line.uses >= k.uses || line.uses > 0 && line.bytes+size > k.bytes
	if line.key.plain == nil || line.key.epoch < epoch || full {
		fresh, err := k.make(ctx, encctx)
		if err != nil {
			return freshKey{}, err
		}
		k.mu.Lock()
		k.made++
		k.mu.Unlock()
		if line.dropped {
			return fresh, nil
		}
		clear(line.key.plain)
		line.key = fresh
		line.uses = 0
		line.bytes = 0
	}
	line.uses++
	line.bytes += size
	out := line.key
	out.plain = bytes.Clone(out.plain)
	return out, nil
}

// lineOf returns the line of an encryption context.
func (k *keyStock) lineOf(encctx map[string]string) *stockLine {
	key := resultKey("context", source.Row{Context: encctx})
	k.mu.Lock()
	line := k.lines[key]
	full := line == nil && len(k.lines) >= maxLines
	k.mu.Unlock()
	if line != nil {
		return line
	}
	if full {
		k.drop()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines == nil {
		k.lines = map[rewrapKey]*stockLine{}
	}
	if k.lines[key] == nil {
		k.lines[key] = &stockLine{}
	}
	return k.lines[key]
}

// drop wipes every data key.
func (k *keyStock) drop() {
	k.mu.Lock()
	lines := k.lines
	k.lines = nil
	k.mu.Unlock()
	for _, line := range lines {
		line.mu.Lock()
		clear(line.key.plain)
		line.key = freshKey{}
		line.dropped = true
		line.mu.Unlock()
	}
}

// count returns how many data keys were made.
func (k *keyStock) count() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.made
}
