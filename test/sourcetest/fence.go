package sourcetest

import (
	"fmt"
	"sync"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// fenceShards is how many shards a fence of the suite has.
const fenceShards = 2

// fenced returns the driver's own fence, and skips the test if it has none.
func (h Harness) fenced(t *testing.T) source.Fence {
	t.Helper()
	f := source.FenceOf(h.Driver)
	switch {
	case f == nil:
		t.Skip("the driver has no fence of its own")
	case h.Insert == nil:
		t.Fatal("a driver with a fence of its own needs Harness.Insert")
	}
	return f
}

// inserts reports by which shards a row can be inserted under a KEK.
func (h Harness) inserts(t *testing.T, what string, id kek.ID) (open []int) {
	t.Helper()
	for n := range fenceShards {
		name := fmt.Sprintf("%s under %s by %d", what, id, n)
		e := sound(name)
		e.KEK = id
		done := h.Insert(t, name, e, n)
		if _, there := h.Get(t, name); there != done {
			t.Errorf("%s: inserted %t, but the row is there: %t", name, done, there)
		}
		if done {
			open = append(open, n)
		}
	}
	return open
}

// testFence: a fence is shut before it is opened and after it is sealed, for its KEK alone,
// however often and in which order it is called.
func testFence(t *testing.T, h Harness) {
	f := h.fenced(t)
	none, all := []int(nil), []int{0, 1}
	shut := func(id kek.ID, shards ...int) {
		t.Helper()
		for _, n := range shards {
			if err := f.Seal(t.Context(), id, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	open := func(id kek.ID) {
		t.Helper()
		if err := f.Open(t.Context(), id, fenceShards); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "never opened", h.inserts(t, "a", "kek-0"), none)
	open("kek-0")
	open("kek-0")
	same(t, "opened twice", h.inserts(t, "b", "kek-0"), all)
	same(t, "another KEK", h.inserts(t, "c", "kek-1"), none)
	shut("kek-0", 1)
	same(t, "one shard sealed", h.inserts(t, "d", "kek-0"), []int{0})
	open("kek-0")
	same(t, "opened after that", h.inserts(t, "e", "kek-0"), []int{0})
	open("kek-1")
	shut("kek-0", 0, 1, 0)
	same(t, "sealed", h.inserts(t, "f", "kek-0"), none)
	open("kek-0")
	same(t, "opened after the seal", h.inserts(t, "g", "kek-0"), none)
	same(t, "the KEK that is in use", h.inserts(t, "h", "kek-1"), all)
	shut("kek-2", 0, 1)
	open("kek-2")
	same(t, "sealed before it was opened", h.inserts(t, "i", "kek-2"), none)
}

// testRaceSeal: a scan that begins when every shard is sealed sees each row that was
// inserted under the KEK, however close to the seal.
func testRaceSeal(t *testing.T, h Harness) {
	f := h.fenced(t)
	if err := f.Open(t.Context(), "kek-0", fenceShards); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	want := map[string]int{}
	begun := make(chan struct{}, racers)
	for n := range racers {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", n, i)
				done := h.Insert(t, id, sound(id), n%fenceShards)
				if i == 0 {
					begun <- struct{}{}
				}
				if !done {
					return
				}
				mu.Lock()
				want[id] = 1
				mu.Unlock()
			}
		})
	}
	for range racers {
		<-begun
	}
	for n := range fenceShards {
		if err := f.Seal(t.Context(), "kek-0", n); err != nil {
			t.Error(err)
		}
	}
	seen := h.scan(t, 1, 0, nil)
	wg.Wait()
	same(t, "rows that were inserted", seen, want)
}
