package trace_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// green is a whole rotation beside writers: one that holds a lease and renews it,
// one that dies and whose lease is revoked, one that is paused over the switch and
// the seal, and rows that are deleted and restored meanwhile.
func green(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	store := s.world.Store()
	old := s.pointer()
	live, dead := s.lease("live", old), s.lease("dead", old)
	s.toTested("normal")
	s.switched()
	live.Expires = live.Expires.Add(2 * time.Minute)
	_, err := store.RenewLease(s.as(trace.Application), live)
	s.must(err)
	s.must(s.insert("under-old", old, 1)) // in flight
	s.must(s.update("o0", s.pointer()))
	if out, err := s.Drain(s.as("drain"), s.in()); err != nil || out.Done {
		t.Fatalf("drain %+v, %v: two leases live", out, err)
	}
	s.at = s.at.Add(2 * time.Minute) // the dead one's runs out
	if out, err := s.Drain(s.as("drain"), s.in()); err != nil || out.Leases != 1 {
		t.Fatalf("drain %+v, %v: one lease lives", out, err)
	}
	_ = dead
	s.must(store.DropLease(s.as(trace.Application), live))
	s.drained()
	if err := s.insert("too-late", old, 0); err == nil {
		t.Fatal("the fence let an insert pass")
	}
	s.must(s.insert("under-new", s.pointer(), 1))
	s.must(s.update("o1", old)) // paused before the rewrap of that row: allowed, and rewrapped
	stale := s.seal("o2", old)
	s.rewrapped()
	if err := s.orders.Update(s.as(trace.Application), "o2", 2, stale); err == nil {
		t.Fatal("an update of an older epoch passed")
	}
	s.must(s.orders.Delete(s.as(trace.Application), "o0"))
	s.orders.Plant("restored", s.seal("restored", old))
	s.retired()
	s.verified()
	_, err = s.Switch(s.as("switch"), s.in()) // a late duplicate
	s.must(err)
	return s.recorder.Events()
}

func rolledBack(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	s.toTested("normal")
	_, err := s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id, Action: rotation.ActionPreSwitchFailure, Error: "CanaryFailed"})
	s.must(err)
	s.start("again", "normal")
	_, err = s.Keys.Admin.Create(s.as("mint"), "again", 1, "died before it had its alias", keyring.Key{})
	s.must(err)
	_, err = s.Retire(s.as("retire"), rotation.RetireInput{RotationID: "again", Action: rotation.ActionPreSwitchFailure, Error: "States.Timeout"})
	s.must(err)
	return s.recorder.Events()
}

// urgent is an emergency whose first key fails the test, and that has a stray key.
func urgent(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	s.start(id, "emergency")
	_, err := s.Keys.Admin.Create(s.as("mint"), id, 1, "answer lost", keyring.Key{})
	s.must(err)
	_, err = s.Mint(s.as("mint"), s.in())
	s.must(err)
	_, err = s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "CanaryFailed"})
	s.must(err)
	s.rehearsed(id)
	_, err = s.DualUnwrap(s.as("dualunwrap"), s.in())
	s.must(err)
	s.lease("live", s.pointer())
	s.switched()
	s.drained()
	s.rewrapped()
	s.retired()
	s.verified()
	return s.recorder.Events()
}

// crashed is a rotation in which the first two calls of every kind take effect and
// lose their answer.
func crashed(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	var mu sync.Mutex // a step works on several rows at once
	lost := map[string]int{}
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if lost[op]++; lost[op] <= 2 {
			return true, memstore.ErrInjected
		}
		return true, nil
	})
	run := func(f func() (done bool, err error)) {
		for range 100 {
			if done, err := f(); err == nil && done {
				return
			}
		}
		t.Fatal("a step does not end")
	}
	run(func() (bool, error) {
		_, err := s.Preflight(s.as("preflight"), rotation.PreflightInput{ExecutionName: id, Input: rotation.ExecutionInput{Window: "any"}})
		return true, err
	})
	run(func() (bool, error) {
		out, err := s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: id, Census: true})
		return out.Done, err
	})
	run(func() (bool, error) { _, err := s.Mint(s.as("mint"), s.in()); return true, err })
	run(func() (bool, error) {
		_, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Rehearse: true})
		return true, err
	})
	run(func() (bool, error) { _, err := s.DualUnwrap(s.as("dualunwrap"), s.in()); return true, err })
	run(func() (bool, error) { _, err := s.Switch(s.as("switch"), s.in()); return true, err })
	run(func() (bool, error) { out, err := s.Drain(s.as("drain"), s.in()); return out.Done, err })
	for i := range 2 {
		run(func() (bool, error) {
			out, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Source: "orders", Segment: i})
			return out.Done, err
		})
	}
	run(func() (bool, error) {
		_, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Complete: true})
		return true, err
	})
	run(func() (bool, error) {
		out, err := s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id})
		return out.Done, err
	})
	run(func() (bool, error) {
		out, err := s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: id})
		return out.Done, err
	})
	return s.recorder.Events()
}

// TestRunsOfTheCodeAreAccepted checks recorded runs against the model. Between them they
// exercise every action that a run can show.
func TestRunsOfTheCodeAreAccepted(t *testing.T) {
	seen := coverage{}
	var runs [][]trace.Event
	for _, r := range recorded {
		runs = append(runs, r.run(t))
	}
	for i, v := range check(t, runs...) {
		if !v.Accepted {
			t.Errorf("%s: %s %+v", recorded[i].name, v, v.Event)
		}
		seen.add(recorded[i].name, v.Actions)
	}
	seen.check(t)
}

// TestNDJSON checks that a run survives being written and read.
func TestNDJSON(t *testing.T) {
	events := green(t)
	var b bytes.Buffer
	if err := trace.Write(&b, events); err != nil {
		t.Fatal(err)
	}
	got, err := trace.Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(events, got); d != "" {
		t.Errorf("read (-want +got):\n%s", d)
	}
	for _, bad := range []string{`{"n":1}`, `{"n":1,"effect":"x","no_such":1}`, `{`} {
		if _, err := trace.Read(bytes.NewBufferString(bad)); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

// TestTraceFiles checks runs that were recorded elsewhere, one NDJSON file each:
//
//	go test ./test/trace -run TestTraceFiles -args a.ndjson b.ndjson
func TestTraceFiles(t *testing.T) {
	if flag.NArg() == 0 {
		t.Skip("no files given")
	}
	var runs [][]trace.Event
	for _, name := range flag.Args() {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		events, err := trace.Read(f)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		runs = append(runs, events)
	}
	for i, v := range check(t, runs...) {
		if t.Logf("%s: %s", flag.Arg(i), v); !v.Accepted {
			t.Fail()
		}
	}
}
