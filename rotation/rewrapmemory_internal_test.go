package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

func rowOf(n int) source.Row { return source.Row{KEK: "old", WrappedDEK: fmt.Append(nil, n)} }

// TestMemoryKeys: a result is of one KEK, one wrapped data key and one encryption context;
// a failure is not remembered.
func TestMemoryKeys(t *testing.T) {
	m := NewMemory(MemoryBytes)
	calls := 0
	fault := errors.New("no answer")
	wrapped := rowOf(0).WrappedDEK
	for i, tc := range []struct {
		did   string
		row   source.Row
		err   error
		calls int
	}{
		{"a", rowOf(0), fault, 1},
		{"a", rowOf(0), nil, 2},
		{"a", rowOf(0), fault, 2}, // it is known
		{"b", rowOf(0), nil, 3},
		{"a", source.Row{KEK: "old", WrappedDEK: wrapped, Context: map[string]string{"a": "b"}}, nil, 4},
		{"a", source.Row{KEK: "old", WrappedDEK: wrapped, Context: map[string]string{"a": "c"}}, nil, 5},
		{"a", source.Row{KEK: "old", WrappedDEK: wrapped, Context: map[string]string{"a": "", "b": ""}}, nil, 6},
		{"a", source.Row{KEK: "old", WrappedDEK: wrapped, Context: map[string]string{"ab": "", "": ""}}, nil, 7},
		{"a", source.Row{KEK: "ol", WrappedDEK: append([]byte("d"), wrapped...)}, nil, 8},
		{"a", source.Row{KEK: "other", WrappedDEK: wrapped}, nil, 9},
		{"a", source.Row{KEK: "old", WrappedDEK: wrapped, Context: map[string]string{"a": "b"}}, nil, 9},
	} {
		want := fmt.Append(nil, tc.did, tc.row)
		got, err := m.recallResult(t.Context(), "new", resultKey(tc.did, tc.row), func() ([]byte, error) { calls++; return want, tc.err })
		if calls != tc.calls || (err != nil) != (i == 0) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%d: %d calls, want %d; %q, %v", i, calls, tc.calls, got, err)
		}
	}
	got, _ := m.recallResult(t.Context(), "new", resultKey("a", rowOf(0)), nil)
	clear(got) // the caller's copy
	if again, _ := m.recallResult(t.Context(), "new", resultKey("a", rowOf(0)), nil); bytes.Equal(again, got) {
		t.Error("a caller's copy is the memory's own")
	}
	m.recallResult(t.Context(), "newer", resultKey("a", rowOf(0)), func() ([]byte, error) { calls++; return nil, nil }) //nolint:errcheck // there is none
	if calls != 10 {
		t.Error("a result under another KEK was taken")
	}
}

// TestMemoryBound: a full memory drops what was not used for longest, and overwrites it.
func TestMemoryBound(t *testing.T) {
	const fits, each = 100, entryBytes + 8 // results in a set, bytes of one
	m := NewMemory(maxSets * fits * each)
	calls := 0
	use := func(n int) {
		_, err := m.recallResult(t.Context(), "new", resultKey("a", rowOf(n)), func() ([]byte, error) { calls++; return []byte("8 bytes."), nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := range fits {
		use(n)
	}
	first := m.sets[0].chunks[0][:8]
	for n := fits; n < 20*fits; n++ {
		use(n)
		use(7) // used again and again
	}
	if calls != 20*fits {
		t.Errorf("%d calls, want %d: what is used stays", calls, 20*fits)
	}
	if !bytes.Equal(first, make([]byte, 8)) {
		t.Errorf("what was dropped still reads %q", first)
	}
	total := 0
	for _, set := range m.sets {
		total += set.bytes
	}
	if len(m.sets) != maxSets || total > maxSets*fits*each {
		t.Errorf("%d sets of %d bytes are more than it may have", len(m.sets), total)
	}
	calls = 0
	for n := 20*fits - 1; n >= 13*fits+10; n-- {
		use(n)
	}
	if calls != 0 {
		t.Errorf("%d of the last seven sets were forgotten", calls)
	}
}

// TestMemoryMillion: rows in random order of a million data keys cost one request for each,
// within 512 MiB.
func TestMemoryMillion(t *testing.T) {
	const keys, again = 1_000_000, 300_000
	m := NewMemory(MemoryBytes)
	order := rand.New(rand.NewPCG(1, 2)).Perm(keys)
	wrapped := make([]byte, 184)
	calls := 0
	for _, n := range append(order, order[:again]...) {
		copy(wrapped, fmt.Sprintf("%12d", n))
		_, err := m.recallResult(t.Context(), "new", resultKey("rewrapped", source.Row{KEK: "old", WrappedDEK: wrapped}), func() ([]byte, error) {
			calls++
			return slices.Clone(wrapped), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var stats runtime.MemStats
	runtime.GC() // what other tests of the process have left behind is not of the memory
	runtime.ReadMemStats(&stats)
	t.Logf("%d rows of %d data keys: %d requests, %d MiB", keys+again, keys, calls, stats.HeapAlloc>>20)
	if stats.HeapAlloc > 512<<20 {
		t.Errorf("%d MiB of memory", stats.HeapAlloc>>20)
	}
	if calls != keys {
		t.Errorf("%d requests for %d data keys", calls, keys)
	}
	runtime.KeepAlive(m)
}

// TestMemoryWaits: callers that need one result at once cost one request. A caller whose
// context ends does not wait, and what it asked for is asked for again.
func TestMemoryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(1 << 20)
		var calls atomic.Int32
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				got, err := m.recallResult(t.Context(), "new", resultKey("a", rowOf(1)), func() ([]byte, error) {
					calls.Add(1)
					time.Sleep(5 * time.Millisecond)
					return []byte("wrapped"), nil
				})
				if string(got) != "wrapped" || err != nil {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		wg.Wait()
		if calls.Load() != 1 {
			t.Errorf("%d requests for one data key", calls.Load())
		}
		short, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			_, err := m.recallResult(short, "new", resultKey("a", rowOf(2)), func() ([]byte, error) {
				<-short.Done()
				return nil, short.Err()
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the first: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			got, err := m.recallResult(t.Context(), "new", resultKey("a", rowOf(2)), func() ([]byte, error) { return []byte("again"), nil })
			if string(got) != "again" || err != nil {
				t.Errorf("the second: %q, %v", got, err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

// TestMemoryOfAnotherRotation: a result that comes after the memory turned to another KEK is
// its caller's alone.
func TestMemoryOfAnotherRotation(t *testing.T) {
	m := NewMemory(1 << 20)
	ask := func(to kek.ID, then func()) string {
		got, err := m.recallResult(t.Context(), to, resultKey("a", rowOf(1)), func() ([]byte, error) {
			if then != nil {
				then()
			}
			return []byte(to), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if got := ask("new", func() { ask("newer", nil) }); got != "new" {
		t.Errorf("got %q", got)
	}
	if got := ask("newer", func() { t.Error("it was forgotten") }); got != "newer" {
		t.Errorf("then %q", got)
	}
}
