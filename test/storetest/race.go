package storetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// winners counts the calls that succeeded; every other must be a conflict.
func winners(t *testing.T, errs []error) (n int) {
	t.Helper()
	for _, err := range errs {
		switch {
		case err == nil:
			n++
		case !errors.Is(err, kek.ErrConflict):
			t.Errorf("loser's error: %v, want ErrConflict", err)
		}
	}
	return n
}

func testRaceSwitch(t *testing.T, f *fixture) {
	f.takeAll(t, append([]step{genesis()}, toTested(f.id)...)...)
	before := f.dump(t)
	errs := race(func(int) error {
		v, err := f.Store.Load(t.Context(), f.id)
		if err != nil {
			return err
		}
		c, err := v.Switch(f.now())
		if errors.Is(err, kek.ErrDone) {
			return kek.ErrConflict // it came so late that it saw the winner's effect
		}
		if err != nil {
			return err
		}
		return f.Store.Apply(t.Context(), c, f.event(c))
	})
	same(t, "winners", winners(t, errs), 1)
	after := f.dump(t)
	same(t, "epoch", after.View.Pointer.Epoch, before.View.Pointer.Epoch+1)
	same(t, "records", len(f.chain(t)), len(before.Entries)+1)
}

func testRaceStart(t *testing.T, f *fixture) {
	f.take(t, genesis())
	v, err := f.Store.LoadAll(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	errs := race(func(n int) error {
		c, err := start(fmt.Sprintf("rotation-%d", n), kek.Normal).next(v, f.now())
		if err != nil {
			return err
		}
		return f.Store.Apply(t.Context(), c, f.event(c))
	})
	same(t, "winners", winners(t, errs), 1)
	after := f.dump(t)
	if len(after.Rotations) != 1 || after.Rotations[0].ID != after.View.Lock {
		t.Errorf("lock %q, rotations %v", after.View.Lock, after.Rotations)
	}
	same(t, "records", len(f.chain(t)), 2)
}

// testRaceAddSource: of sources that are added at once from the same view one is, so
// that a place cannot be registered twice.
func testRaceAddSource(t *testing.T, f *fixture) {
	f.take(t, genesis())
	before := f.dump(t)
	errs := race(func(n int) error {
		c, err := before.All.PutSource(source(fmt.Sprintf("source-%d", n), "{}"), f.now())
		if err != nil {
			return err
		}
		return f.Store.Apply(t.Context(), c, f.event(c))
	})
	same(t, "winners", winners(t, errs), 1)
	after := f.dump(t)
	same(t, "revision", after.All.Registry, before.All.Registry+1)
	same(t, "sources", len(after.All.Sources), len(before.All.Sources)+1)
}

// testRaceStartAddSource: a rotation that starts while sources are added has frozen
// what is registered, or does not start.
func testRaceStartAddSource(t *testing.T, f *fixture) {
	f.take(t, genesis())
	before := f.dump(t)
	errs := race(func(n int) error {
		c, err := start(f.id, kek.Normal).next(before.All, f.now())
		if n%2 == 0 {
			c, err = before.All.PutSource(source(fmt.Sprintf("source-%d", n), "{}"), f.now())
		}
		if err != nil {
			return err
		}
		return f.Store.Apply(t.Context(), c, f.event(c))
	})
	same(t, "winners", winners(t, errs), 1)
	after := f.dump(t)
	if r := after.All.Rotation; r != nil {
		same(t, "frozen", kek.Digest(r.Sources), kek.Digest(after.All.Sources))
	}
	if (after.All.Rotation != nil) == (len(after.All.Sources) > len(before.All.Sources)) {
		t.Errorf("rotation %v beside sources %v", after.All.Rotation, after.All.Sources)
	}
}

// testRaceRecord checks that losing the race for the head alone is no conflict:
// everybody's record is appended.
func testRaceRecord(t *testing.T, f *fixture) {
	const each = 4
	errs := race(func(n int) error {
		for i := range each {
			if err := f.Store.Record(t.Context(), audit.Event{ID: fmt.Sprintf("heartbeat/%d/%d", n, i), Type: "heartbeat"}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	seen := map[string]bool{}
	next := map[int]int{}
	for _, e := range f.chain(t) {
		var n, i int
		if _, err := fmt.Sscanf(e.Record.ID, "heartbeat/%d/%d", &n, &i); err != nil {
			t.Fatal(err)
		}
		if i != next[n] {
			t.Errorf("record %s of goroutine %d comes out of order", e.Record.ID, n)
		}
		next[n]++
		seen[e.Record.ID] = true
	}
	same(t, "records", len(seen), racers*each)
}

// testRaceSwitchAndRecord mixes the two: the switch is made once however busy the
// chain is.
func testRaceSwitchAndRecord(t *testing.T, f *fixture) {
	f.takeAll(t, append([]step{genesis()}, toTested(f.id)...)...)
	v, err := f.Store.Load(t.Context(), f.id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Switch(f.now())
	if err != nil {
		t.Fatal(err)
	}
	errs := race(func(n int) error {
		if n%2 == 0 {
			return f.Store.Apply(t.Context(), c, f.event(c))
		}
		return f.Store.Record(t.Context(), audit.Event{ID: fmt.Sprintf("heartbeat/%d", n), Type: "heartbeat"})
	})
	same(t, "winners", winners(t, errs), racers/2+1)
	same(t, "records", len(f.chain(t)), 6+1+racers/2)
}
