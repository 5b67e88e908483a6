package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"maps"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// Memory remembers what data keys were rewrapped to, so that rows which share a data key
// cost one KMS request in a process, whatever the order of the rows. It outlives a call: a
// function continues with what its last invocation knew. It holds only results of KMS and
// no progress, so a lost memory costs requests and nothing else.
//
// Results are kept in eight sets. When the newest set is full, the oldest is overwritten
// and dropped. A result that is used while it is in the oldest set is copied to the newest.
// So results in use are kept, and a process that meets more data keys than fit loses hits
// in proportion, not all at once.
//
//	key     SHA-256 of what was done, KEK, wrapped DEK and encryption context
//	result  rewrapped: the wrapped DEK
//	        exchanged: old DEK and fresh DEK in plaintext (32 bytes each), fresh wrapped DEK
type Memory struct {
	mu      sync.Mutex
	to      kek.ID       // the KEK that the results are under
	limit   int          // bytes of one set
	sets    []*resultSet // oldest first
	pending map[rewrapKey]*pending
}

// MemoryBytes is how many bytes a process remembers: 1.1 to 1.27 million data keys, each of
// which takes 184 bytes for its wrapped form and [entryBytes].
const MemoryBytes = 320 << 20

const (
	maxSets    = 8
	entryBytes = 80      // of the index, for each result
	chunkBytes = 1 << 20 // results are stored in chunks, which the garbage collector need not look into
)

type rewrapKey [sha256.Size]byte

// pending is a result that one caller is asking KMS for. Other callers wait on ready, which
// is a channel so that a cancelled caller does not have to wait for KMS.
type pending struct {
	ready chan struct{}
	err   error
}

// NewMemory returns a memory of at most so many bytes.
func NewMemory(bytes int) *Memory {
	return &Memory{limit: bytes / maxSets, pending: map[rewrapKey]*pending{}}
}

// sharedMemory returns the memory of the process; a new one if none is configured.
func (s *Steps) sharedMemory() *Memory {
	if s.Memory == nil {
		return NewMemory(MemoryBytes)
	}
	return s.Memory
}

// recallResult returns a copy of the result for a key; the first caller gets it from ask. A
// failure is not remembered, but every caller that waited for it gets it. All results are
// forgotten when a result under another KEK is asked for.
func (m *Memory) recallResult(ctx context.Context, to kek.ID, key rewrapKey, ask func() ([]byte, error)) ([]byte, error) {
	for {
		m.mu.Lock()
		m.resetIfOther(to)
		if value, ok := m.findResult(key); ok {
			m.mu.Unlock()
			return value, nil
		}
		p, ok := m.pending[key]
		if !ok {
			p = &pending{ready: make(chan struct{})}
			m.pending[key] = p
			m.mu.Unlock()
			return m.askAndShare(to, key, p, ask)
		}
		m.mu.Unlock()
		select {
		case <-p.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if cancelled := errors.Is(p.err, context.Canceled) || errors.Is(p.err, context.DeadlineExceeded); p.err != nil && !cancelled {
			return nil, p.err
		}
		// Either the caller that asked gave up, and this one asks itself, or the result is in
		// the memory now.
	}
}

// askAndShare asks for a result, remembers it and wakes the callers that wait for it.
func (m *Memory) askAndShare(to kek.ID, key rewrapKey, p *pending, ask func() ([]byte, error)) ([]byte, error) {
	value, err := ask()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pending[key] == p {
		delete(m.pending, key)
	}
	if p.err = err; err == nil && m.to == to {
		m.putResult(key, value)
	}
	close(p.ready)
	return value, err
}

// resetIfOther forgets everything if the results are under another KEK than to.
func (m *Memory) resetIfOther(to kek.ID) {
	if m.to == to {
		return
	}
	for _, set := range m.sets {
		set.overwriteResults()
	}
	clear(m.pending)
	m.to = to
	m.sets = nil
}

// findResult looks for a result in the newest set first.
func (m *Memory) findResult(key rewrapKey) ([]byte, bool) {
	for i, set := range slices.Backward(m.sets) {
		if value, ok := set.findResult(key); ok {
			if i == 0 && len(m.sets) == maxSets {
				m.putResult(key, value)
			}
			return value, true
		}
	}
	return nil, false
}

// putResult adds a result to the newest set, and begins a new set if that one is full.
func (m *Memory) putResult(key rewrapKey, value []byte) {
	last := len(m.sets) - 1
	if last < 0 || m.sets[last].bytes+len(value)+entryBytes > m.limit {
		if len(m.sets) == maxSets {
			m.sets[0].overwriteResults()
			m.sets = slices.Delete(m.sets, 0, 1)
		}
		m.sets = append(m.sets, newResultSet())
		last = len(m.sets) - 1
	}
	m.sets[last].putResult(key, value)
}

// resultSet is an append-only store of results.
type resultSet struct {
	index  map[rewrapKey]span
	chunks [][]byte
	bytes  int
}

// span is the place of a result: a chunk, and the bytes from..to in it.
type span struct{ chunk, from, to uint32 }

func newResultSet() *resultSet { return &resultSet{index: map[rewrapKey]span{}} }

func (g *resultSet) findResult(key rewrapKey) ([]byte, bool) {
	at, ok := g.index[key]
	if !ok {
		return nil, false
	}
	return slices.Clone(g.chunks[at.chunk][at.from:at.to]), true
}

func (g *resultSet) putResult(key rewrapKey, value []byte) {
	last := len(g.chunks) - 1
	if last < 0 || len(g.chunks[last])+len(value) > cap(g.chunks[last]) {
		g.chunks = append(g.chunks, make([]byte, 0, max(chunkBytes, len(value))))
		last++
	}
	from := len(g.chunks[last])
	g.chunks[last] = append(g.chunks[last], value...)
	g.index[key] = span{uint32(last), uint32(from), uint32(len(g.chunks[last]))} //nolint:gosec // within a chunk
	g.bytes += len(value) + entryBytes
}

// overwriteResults overwrites the results: in an emergency they are plaintext data keys.
func (g *resultSet) overwriteResults() {
	for _, chunk := range g.chunks {
		clear(chunk)
	}
}

// resultKey names a result: what was done with which data key. Each field is preceded by its
// length, so that two different lists of fields never give the same bytes.
func resultKey(did string, row source.Row) rewrapKey {
	h := sha256.New()
	for _, field := range []string{did, string(row.KEK), string(row.WrappedDEK)} {
		writeField(h, field)
	}
	for _, name := range slices.Sorted(maps.Keys(row.Context)) {
		writeField(h, name)
		writeField(h, row.Context[name])
	}
	return rewrapKey(h.Sum(nil))
}

func writeField(h hash.Hash, field string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(field)))
	h.Write(n[:])
	h.Write([]byte(field))
}
