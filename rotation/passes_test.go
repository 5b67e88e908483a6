package rotation_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// TestVerifyForgetsWhatItSaw is the regression test of a verify that halted after its
// scan: a row that was brought back before the rotation was redriven or resumed was
// signed off, under a disabled KEK. It does not matter how long the pause was.
func TestVerifyForgetsWhatItSaw(t *testing.T) {
	for name, goOn := range map[string]func(s *site){
		"redriven a day later":     func(s *site) { s.clock.pass(24 * time.Hour) },
		"redriven ten minutes on":  func(s *site) { s.clock.pass(10 * time.Minute) },
		"redriven at once":         func(*site) {},
		"resumed a minute later":   func(s *site) { s.clock.pass(time.Minute); s.resume() },
		"resumed after its record": func(s *site) { s.resume(); s.resume() },
	} {
		s := newSite(t)
		old := s.rows()[place{s.people, "p1"}]
		s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
		sound := s.rows()[place{s.people, "p1"}]
		record := must(s.vault.Get(t.Context(), audit.ObjectKey(chain, 2)))
		s.vault.Tamper(audit.ObjectKey(chain, 2), []byte("foreign"))
		wantKind(t, s.verify(spring), journal.AuditTampered) // it has looked at every row
		s.vault.Tamper(audit.ObjectKey(chain, 2), record)
		s.people.Plant("p1", old)
		goOn(s)
		if s.unverified(t, journal.OrphansFound); t.Failed() {
			t.Fatal(name)
		}
		s.people.Plant("p1", sound)
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}

// resume is what a person does with a rotation that halted.
func (s *site) resume() {
	s.t.Helper()
	must(s.Preflight(s.t.Context(), preflightInput("again", rotation.ExecutionInput{Resume: spring})))
}

// TestResumeRestartsTheConfirmation: a resumed rotation begins its second scan
// from the start, however short the pause was.
func TestResumeRestartsTheConfirmation(t *testing.T) {
	for _, resumed := range []bool{true, false} {
		s, w := at(t, rotation.ExecutionInput{}, kek.Rewrapped)
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "Store.Apply" {
				return false, errors.New("no answer")
			}
			return w.hook(op, args...)
		})
		wantKind(t, s.retire(spring), journal.Transient)
		s.world.SetHook(w.hook)
		if s.clock.pass(time.Minute); resumed {
			s.resume()
		}
		var scans atomic.Int64
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "Table.Scan" {
				scans.Add(1)
			}
			return w.hook(op, args...)
		})
		s.must(s.retire(spring))
		if s.world.SetHook(nil); (scans.Load() == 6) != resumed || (scans.Load() == 0) == resumed {
			t.Errorf("resumed %t: %d pages were read", resumed, scans.Load())
		}
	}
}

// TestResumeRecords: each resume of a person is in the chain once, and in the record.
func TestResumeRecords(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Drained)
	s.clock.pass(time.Hour)
	s.resume()
	s.resume() // at the same moment: a repeated call
	if r := s.record(spring); !r.ResumedAt.Equal(s.clock.now()) || r.Phase != kek.Drained {
		t.Errorf("%+v", r)
	}
	s.clock.pass(time.Second)
	s.resume()
	n := 0
	for _, ev := range s.events() {
		if ev == "rotation_resumed" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d records of 2 resumes", n)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestPauses: a process that sleeps for ten minutes, as a closed laptop does, draws no
// conclusion from what it saw before, wherever it falls asleep.
func TestPauses(t *testing.T) {
	for _, tc := range []struct {
		from kek.Phase
		run  func(s *site) error
		op   string
	}{
		{kek.Started, func(s *site) error { return s.census(spring) }, "Table.Scan"},
		{kek.Started, func(s *site) error { return s.census(spring) }, "Store.SaveCheckpoint"},
		{kek.Started, func(s *site) error { return s.census(spring) }, "Store.Load"},
		{kek.Rewrapped, func(s *site) error { return s.retire(spring) }, "Table.Scan"},
		{kek.Rewrapped, func(s *site) error { return s.retire(spring) }, "KMS.ReEncrypt"},
		{kek.Rewrapped, func(s *site) error { return s.retire(spring) }, "Store.LoadAll"},
		{kek.KEKRetired, func(s *site) error { return s.verify(spring) }, "Table.Scan"},
		{kek.KEKRetired, func(s *site) error { return s.verify(spring) }, "KMS.Describe"},
		{kek.KEKRetired, func(s *site) error { return s.verify(spring) }, "Vault.Get"},
	} {
		for _, slept := range []time.Duration{10 * time.Minute, 10*time.Minute - time.Second} {
			s, w := at(t, rotation.ExecutionInput{}, tc.from)
			var mu sync.Mutex
			asleep, seen := false, false
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				seen = seen || op == "Store.SaveCheckpoint" // of reads of the record, that after the scan
				if op == tc.op && !asleep && !w.looks(op, args) && (seen || op != "Store.Load" && op != "Store.LoadAll") {
					asleep = true
					s.clock.pass(slept)
				}
				return true, nil
			})
			err := tc.run(s)
			short := slept < 10*time.Minute
			if !asleep || short && err != nil || !short && typed(err).Kind != journal.Transient {
				t.Errorf("from %s asleep for %s in %s (%t): %v", tc.from, slept, tc.op, asleep, err)
			}
			for range 3 { // repeated, it continues
				if err = tc.run(s); err == nil {
					break
				}
			}
			if s.must(err); s.record(spring).Phase == tc.from && tc.from != kek.Started {
				t.Errorf("from %s asleep in %s: it does not continue", tc.from, tc.op)
			}
			s.world.SetHook(nil)
			s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
			s.settled()
		}
	}
}

// TestPauseOverARestoredRow is what the pauses are about: a row under the old KEK comes
// back while the process sleeps between its last page and the retirement.
func TestPauseOverARestoredRow(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Rewrapped)
	var asleep atomic.Bool
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Store.LoadAll" && !w.looks(op, args) && asleep.CompareAndSwap(false, true) {
			s.plant(s.orders, "restored", s.first)
			s.clock.pass(24 * time.Hour)
		}
		return w.hook(op, args...)
	})
	wantKind(t, s.retire(spring), journal.Transient)
	s.must(s.retire(spring))
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestPauseWithinAPass: a process sleeps over one segment's page, and other segments are
// read only after it. The pass counts in no call, also not in the one that comes next.
func TestPauseWithinAPass(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 16
	s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
	var mu sync.Mutex
	asleep, scans := false, 0
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if op == "Table.Scan" {
			scans++
		}
		if op == "Store.SaveCheckpoint" && !asleep {
			asleep = true
			s.clock.pass(10 * time.Minute)
		}
		return true, nil
	})
	wantKind(t, s.retire(spring), journal.Transient)
	scans = 0
	s.must(s.retire(spring))
	if want := 16 * len(s.record(spring).Sources); scans < want {
		t.Errorf("%d scans after the pause, want %d: segments from before it counted", scans, want)
	}
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestSegmentsAtOnce: a pass reads as many segments at once as it may, of all sources;
// who asks for one segment has one thing read at a time.
func TestSegmentsAtOnce(t *testing.T) {
	for segments, want := range map[int]int{1: 1, 2: 2, 3: 3, 4: 4, 8: 4} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t)
			s.Config.Segments = segments
			s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
			var mu sync.Mutex
			now, most := 0, 0
			count := func(n int) {
				mu.Lock()
				defer mu.Unlock()
				now += n
				most = max(most, now)
			}
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "Table.Scan" {
					count(1)
					time.Sleep(time.Minute) // until every segment that may run is here
					count(-1)
				}
				return true, nil
			})
			s.must(s.retire(spring))
			if most != want {
				t.Errorf("%d segments a table: %d scans at once, want %d", segments, most, want)
			}
		})
	}
}

// TestAsleepOverTheLastWrite: a call sleeps over the write of its conclusion, and another
// begins to read the rows again meanwhile. The write is refused, however late it arrives.
func TestAsleepOverTheLastWrite(t *testing.T) {
	for _, tc := range []struct {
		from kek.Phase
		call func(s *site) (done bool, err error)
	}{
		{kek.Rewrapped, func(s *site) (bool, error) {
			out, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring})
			return out.Done, err
		}},
		{kek.KEKRetired, func(s *site) (bool, error) {
			out, err := s.Verify(t.Context(), verifyInput(spring))
			return out.Done, err
		}},
	} {
		s, w := at(t, rotation.ExecutionInput{}, tc.from)
		asleep := false
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "Store.Apply" && !asleep {
				asleep = true
				s.clock.pass(10 * time.Minute)
				if done, err := tc.call(s); done || err != nil {
					t.Errorf("from %s, the other call: done %t, %v", tc.from, done, err)
				}
			}
			return w.hook(op, args...)
		})
		_, err := tc.call(s)
		if wantKind(t, err, journal.Transient); !asleep {
			t.Errorf("from %s: no write", tc.from)
		}
		if s.phase(spring, tc.from); s.events()[len(s.events())-1] != "reading_restarted" {
			t.Errorf("from %s: the chain ends with %s", tc.from, s.events()[len(s.events())-1])
		}
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}

// TestTwoPauses: what was read before two pauses is as old as both.
func TestTwoPauses(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
	var mu sync.Mutex
	scans, slept := 0, map[string]bool{}
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if op == "Table.Scan" {
			scans++
		}
		if scans == 3 && (op == "KMS.ReEncrypt" || op == "Store.LoadAll") && !slept[op] { // the last page is read
			slept[op] = true
			s.clock.pass(6 * time.Minute)
		}
		return true, nil
	})
	if wantKind(t, s.retire(spring), journal.Transient); len(slept) != 2 {
		t.Errorf("it slept in %v", slept)
	}
	s.must(s.retire(spring))
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestResumeRestartsVerify: a verify whose execution died after its scan, with nobody to
// note that it halted, begins from the start when it is resumed a minute later.
func TestResumeRestartsVerify(t *testing.T) {
	s := newSite(t)
	old := s.rows()[place{s.people, "p1"}]
	s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
	s.world.SetHook(func(op string, _ ...any) (bool, error) { return op != "Vault.Get", nil })
	wantKind(t, s.verify(spring), journal.Transient) // it has looked at every row
	s.world.SetHook(nil)
	sound := s.rows()[place{s.people, "p1"}]
	s.people.Plant("p1", old)
	s.clock.pass(time.Minute)
	s.resume()
	s.unverified(t, journal.OrphansFound)
	s.people.Plant("p1", sound)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestEmptyPages: a page without a row but with a cursor ends no pass.
func TestEmptyPages(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		d, w := watched(t)
		d.Config.Segments = 1
		many(d.site, 250)
		d.orders.SetEmptyPages(true)
		d.complete(spring, in)
		w.check("at the end")
		d.settled()
		if got := d.body("kms_rotation_completed")["verified_rows"]; got != "260" {
			t.Errorf("%s: %s rows were verified", name, got)
		}
	}
}

// TestOneRow: what AWS denies or rejects of one row is of that row: it is quarantined
// under its name, with the reason, and every other row is moved.
func TestOneRow(t *testing.T) {
	of := func(op string, err error) func(op string, args []any) error {
		return func(got string, args []any) error {
			mine := false
			switch got {
			case "Table.Replace":
				mine = args[1].(source.Row).ID == "o1"
			case "KMS.ReEncrypt":
				mine = args[3].(map[string]string)["id"] == "o1"
			case "KMS.Decrypt":
				mine = args[2].(map[string]string)["id"] == "o1"
			}
			if got == op && mine {
				return err
			}
			return nil
		}
	}
	for _, tc := range []struct {
		name string
		in   rotation.ExecutionInput
		op   string
		err  error
	}{
		{"a denied write", rotation.ExecutionInput{}, "Table.Replace", journal.ErrDenied},
		{"a denied write", emergency, "Table.Replace", journal.ErrDenied},
		{"a rejected write", rotation.ExecutionInput{}, "Table.Replace", journal.ErrRejected},
		{"a denied key", rotation.ExecutionInput{}, "KMS.ReEncrypt", journal.ErrDenied},
		{"a rejected key", rotation.ExecutionInput{}, "KMS.ReEncrypt", journal.ErrRejected},
		{"a denied key", emergency, "KMS.Decrypt", journal.ErrDenied},
	} {
		t.Run(tc.name+" "+tc.in.Mode, func(t *testing.T) {
			d, w := watched(t)
			d.Config.Segments = 1
			fails := of(tc.op, tc.err)
			broken := false
			d.world.SetHook(func(op string, args ...any) (bool, error) {
				if err := fails(op, args); err != nil && broken && !w.looks(op, args) {
					return false, err
				}
				return w.hook(op, args...)
			})
			d.before = func(c call) {
				if !broken && c.state == "RewrapSegment" {
					d.clock.pass(tagDelay) // a key that is no longer young
				}
				broken = c.state == "RewrapSegment" || c.state == "RewrapComplete"
			}
			e := d.machine.Start(spring, tc.in)
			if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "RowsQuarantined") || strings.Contains(e.Failure.Cause, "o1") ||
				!strings.Contains(e.Failure.Cause, "1 of orders ("+map[error]string{journal.ErrDenied: "denied", journal.ErrRejected: "rejected"}[tc.err]+" 1)") {
				t.Fatalf("ended in %s: %v", e.Final, e.Failure)
			}
			for p, r := range d.rows() {
				if (r.KEK == d.first) != (p.id == "o1") {
					t.Errorf("row %s is under %s", p.id, r.KEK)
				}
			}
			d.before = func(call) { broken = false }
			e.Redrive()
			if e.Status != "SUCCEEDED" {
				t.Fatalf("redriven: %s: %v", e.Final, e.Failure)
			}
			d.settled()
		})
	}
}

// TestNoRoom: a row that passes the size limit with a rewrap is found by the census; one
// that grows afterwards is quarantined, and the others are moved.
func TestNoRoom(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Drained)
	row := s.rows()[place{s.orders, "o1"}]
	row.Kind = source.NoRoom
	s.orders.Plant("o1", row)
	err := s.rewrapAll(spring)
	wantKind(t, err, journal.RowsQuarantined)
	if rows := typed(err).Rows; len(rows) != 1 || !strings.HasPrefix(rows[0], "o1: ") || !strings.Contains(rows[0], "maximum allowed size") || strings.Contains(err.Error(), "o1") {
		t.Errorf("%v, rows %q", err, rows)
	}
	for p, r := range s.rows() {
		if (r.KEK == s.first) != (p.id == "o1") {
			t.Errorf("row %s is under %s", p.id, r.KEK)
		}
	}
	row.Kind = ""
	s.orders.Plant("o1", row)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestEveryRowDenied: a permission that is missing for every row is not a fault of rows: it
// stops the pass at once and quarantines none.
func TestEveryRowDenied(t *testing.T) {
	for _, op := range []string{"Table.Replace", "KMS.ReEncrypt"} {
		s := newSite(t)
		s.Config.Segments = 1
		s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
		s.clock.pass(tagDelay)
		s.world.SetHook(func(got string, _ ...any) (bool, error) {
			if got == op {
				return false, journal.ErrDenied
			}
			return true, nil
		})
		err := s.rewrapAll(spring)
		wantKind(t, err, journal.AccessDenied)
		if !strings.Contains(err.Error(), " rows of ") {
			t.Errorf("%s: %v", op, err)
		}
		for _, cp := range s.snapshot().Checkpoints {
			if cp.Tally.Quarantined > 0 {
				t.Errorf("%s: quarantined %v", op, cp.Tally.Poison)
			}
		}
		s.world.SetHook(nil)
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}

// lie gives rows of a table the new KEK's id, though they are wrapped under the old one,
// as a script that sets the attribute does, and returns how many.
func (s *site) lie(table *memstore.Table, old map[place]memstore.Record, which func(id string) bool) int {
	n := 0
	for p, r := range old {
		if p.table == table && which(p.id) {
			r.KEK, r.Epoch = s.pointer().KEKID, s.pointer().Epoch
			table.Plant(p.id, r)
			n++
		}
	}
	return n
}

// TestLabelIsNoProof: rows that only name the new KEK are found by unwrapping them: by
// rewrap and the second scan before the retirement, by verify after it. A sample counts
// what did unwrap, so that it too finds all of a segment's rows where all of them lie.
func TestLabelIsNoProof(t *testing.T) {
	for _, deep := range []bool{true, false} {
		for _, to := range []kek.Phase{kek.Drained, kek.Rewrapped, kek.KEKRetired} {
			t.Run(fmt.Sprintf("deep %t at %s", deep, to), func(t *testing.T) {
				s := newSite(t)
				s.Config.Segments, s.Config.Deep = 1, deep
				many(s, 60)
				old := s.rows()
				s.advance(spring, rotation.ExecutionInput{}, to)
				lies := s.lie(s.orders, old, func(string) bool { return true })
				var err error
				kind := journal.RowsQuarantined
				switch to {
				case kek.Drained:
					err = s.rewrapAll(spring)
				case kek.Rewrapped:
					err = s.retire(spring)
				default:
					err, kind = s.verify(spring), journal.OrphansFound
				}
				wantKind(t, err, kind)
				if !strings.Contains(err.Error(), fmt.Sprintf("%d rows", lies)) ||
					to != kek.KEKRetired && !strings.Contains(err.Error(), fmt.Sprintf("not_unwrapped %d", lies)) {
					t.Errorf("of %d: %v", lies, err)
				}
				if to != kek.KEKRetired && (s.state(s.first) != kek.Sealed || !s.enabled(s.first)) {
					t.Error("the old KEK was retired over them")
				}
			})
		}
	}
}

// TestDeepFindsTheOne: of many rows one only claims to be moved. A deep pass finds it; a
// sample may not, and says that it is one.
func TestDeepFindsTheOne(t *testing.T) {
	for _, deep := range []bool{true, false} {
		s := newSite(t)
		s.Config.Segments, s.Config.Deep = 1, deep
		many(s, 300)
		old := s.rows()
		s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
		s.lie(s.orders, old, func(id string) bool { return id == "row-0299" })
		s.Config.Deep = !deep // the rotation keeps what it was started with
		err := s.retire(spring)
		if deep {
			if wantKind(t, err, journal.RowsQuarantined); !strings.HasPrefix(typed(err).Rows[0], "row-0299: ") || !strings.Contains(err.Error(), "1 of orders (not_unwrapped 1)") {
				t.Error(err)
			}
			continue
		}
		s.must(err)
		if got := s.body("old_kek_retired")["unwrapped"]; got != "a sample of 26 data keys" { // 20 of the orders, all of the others
			t.Errorf("the record says %q", got)
		}
	}
}

// TestProofs: what the records say was unwrapped is what KMS was asked, each distinct
// data key once.
func TestProofs(t *testing.T) {
	for deep, want := range map[bool]string{
		true:  "every distinct data key that was not rewrapped by this rotation: 51",
		false: "a sample of 27 data keys",
	} {
		s := newSite(t)
		s.Config.Segments, s.Config.Deep = 1, deep
		many(s, 40)
		shared := s.seal(s.people, "shared", s.first, 1, "shared") // one data key, of thirty rows
		shared.Version = 1
		for i := range 30 {
			id := fmt.Sprintf("share-%02d", i)
			s.people.Plant(id, shared)
			s.expect(s.people, id, "shared")
		}
		s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
		var fresh atomic.Int32
		to := any(s.pointer().KEKID)
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			switch {
			case op == "KMS.ReEncrypt" && args[0] == to && args[1] == to:
				fresh.Add(1)
			case op == "KMS.Decrypt" && args[0] == to:
				t.Error("a data key was decrypted, which verify's role does not allow")
			}
			return true, nil
		})
		s.must(s.verify(spring))
		s.world.SetHook(nil)
		if got := s.body("kms_rotation_completed")["unwrapped"]; got != want || !strings.Contains(got, fmt.Sprint(fresh.Load())) {
			t.Errorf("deep %t, KMS was asked %d times: %q, want %q", deep, fresh.Load(), got, want)
		}
	}
}

// TestRestartFails: a pass that nobody has worked on for a while does not continue before its
// restart is recorded and its checkpoints are reset.
func TestRestartFails(t *testing.T) {
	for _, tc := range []struct {
		pass string
		from kek.Phase
		call func(s *site) (done bool, err error)
		stop string // this, so that the pass has looked at every row and concluded nothing
	}{
		{"confirm", kek.Rewrapped, func(s *site) (bool, error) {
			out, err := s.Retire(s.t.Context(), rotation.RetireInput{RotationID: spring})
			return out.Done, err
		}, "Store.Apply"},
		{"verify", kek.KEKRetired, func(s *site) (bool, error) {
			out, err := s.Verify(s.t.Context(), verifyInput(spring))
			return out.Done, err
		}, "KMS.Describe"},
	} {
		for _, op := range []string{"Store.Apply", "Store.SaveCheckpoint"} {
			s := newSite(t)
			s.advance(spring, rotation.ExecutionInput{}, tc.from)
			s.world.SetHook(away(tc.stop))
			_, err := tc.call(s)
			wantKind(t, err, journal.Transient)
			s.clock.pass(10 * time.Minute)
			s.world.SetHook(away(op))
			if done, err := tc.call(s); done || !errors.Is(err, errAway) {
				t.Errorf("%s, %s fails: done %t, %v", tc.pass, op, done, err)
			}
			seen := 0
			for _, cp := range must(s.store.ListCheckpoints(t.Context(), spring, "orders", tc.pass)) {
				if !cp.SavedAt.IsZero() {
					seen++
				}
			}
			if seen != 2 {
				t.Errorf("%s, %s fails: %d segments are as they were", tc.pass, op, seen)
			}
			s.world.SetHook(nil)
			if done, err := tc.call(s); done || err != nil {
				t.Errorf("%s, then: done %t, %v", tc.pass, done, err)
			}
			if body := s.body("reading_restarted"); body["pass"] != tc.pass {
				t.Errorf("%s: the record says %v", tc.pass, body)
			}
			s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
			s.settled()
		}
	}
}

// TestVerifyCannotForget: where what was seen before a halt cannot be forgotten, that is
// told beside what it halted on. What has seen nothing forgets nothing.
func TestVerifyCannotForget(t *testing.T) {
	for _, op := range []string{"Store.ListCheckpoints", "Store.Apply", "Store.SaveCheckpoint"} {
		s := retired(t)
		s.vault.Tamper(audit.ObjectKey(chain, 2), []byte("foreign"))
		var read atomic.Bool
		s.world.SetHook(func(got string, _ ...any) (bool, error) {
			read.CompareAndSwap(false, got == "Vault.Get")
			if read.Load() && got == op {
				return false, errAway
			}
			return true, nil
		})
		_, err := s.Verify(t.Context(), verifyInput(spring))
		if wantKind(t, err, journal.AuditTampered); !strings.Contains(err.Error(), errAway.Error()) {
			t.Errorf("%s fails: %v", op, err)
		}
	}
	s := retired(t)
	alter(func(v *kek.View) { v.Pointer.KEKID = "kek-9999" })(s)
	s.unverified(t, journal.Unverified)
	if slices.Contains(s.events(), "reading_restarted") {
		t.Errorf("nothing was read, and %q", s.events())
	}
}
