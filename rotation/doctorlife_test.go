package rotation_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// TestRotationAfterALateRepair: a table was set back, the chain continued in a new generation,
// and doctor's repair is not the first record of that. The next normal rotation starts.
func TestRotationAfterALateRepair(t *testing.T) {
	c := patientAt(t, atEnd).clone(t)
	c.set(patientAt(t, atStart).db.items())
	for _, id := range []string{"one", "two"} {
		if err := c.table.Record(t.Context(), audit.Event{ID: id, Type: id}); err != nil {
			t.Fatal(err)
		}
	}
	must(c.Anchor.AnchorChain(t.Context(), anchor.Input{Heartbeat: true}))
	in := preflightInput(summer, rotation.ExecutionInput{Label: "next"})
	if _, err := c.Preflight(t.Context(), in); err == nil || !strings.Contains(err.Error(), "goes on past record 15 of the chain itself") {
		t.Errorf("before the repair: %v", err)
	}
	must(c.Doctor.RepairTable(t.Context()))
	c.clock.pass(time.Minute)
	c.run(summer, rotation.ExecutionInput{Label: "next"}, kek.Completed)
	c.opens()
}

// TestRecordsHaveIDs: each record of a rotation has an id of its own, under which the
// repetition of its transaction is known.
func TestRecordsHaveIDs(t *testing.T) {
	for name, in := range faulted {
		e := newEffects(t)
		e.begin(in)
		e.d.complete(spring, in)
		seen := map[string]string{}
		for _, entry := range must(e.d.store.AuditEntries(t.Context(), 1)) {
			if was := seen[entry.Record.ID]; was != "" {
				t.Errorf("%s: %s and %s are both %s", name, was, entry.Record.Type, entry.Record.ID)
			}
			seen[entry.Record.ID] = entry.Record.Type
		}
	}
}

// TestPayloadsOfARewrap: the rows are read with their payloads in an emergency alone, which
// looks whether they open.
func TestPayloadsOfARewrap(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		s := newSite(t)
		s.advance(spring, in, kek.Drained)
		var scans atomic.Int64 // segments are walked side by side
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "Table.Scan" {
				if scans.Add(1); args[1].(source.ScanRequest).Payload != (name == "emergency") {
					t.Errorf("%s: a scan %+v", name, args[1])
				}
			}
			return true, nil
		})
		if _, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Complete: true}); err != nil || scans.Load() == 0 {
			t.Errorf("%s: %d scans, %v", name, scans.Load(), err)
		}
	}
}

// TestDoctorBesideWriters: doctor looks again while the table changes under it, or its
// repair meets somebody's write, a bounded number of times.
func TestDoctorBesideWriters(t *testing.T) {
	for name, tc := range map[string]struct {
		op   string
		harm func(c *clinic)
		run  func(c *clinic) (doctor.Diagnosis, error)
	}{
		"between its reads of the table": {"Items.Examine", func(*clinic) {}, func(c *clinic) (doctor.Diagnosis, error) { return c.Doctor.ExamineTable(t.Context()) }},
		"between the table and the bucket": {"Vault.Versions", func(c *clinic) { c.set(patientAt(t, atStart).db.items()) }, func(c *clinic) (doctor.Diagnosis, error) {
			return c.Doctor.ExamineTable(t.Context())
		}},
		"before its repair": {"Items.Repair", func(c *clinic) { c.drop("LOCK") }, func(c *clinic) (doctor.Diagnosis, error) { return c.Doctor.RepairTable(t.Context()) }},
	} {
		limit := 11 // of twelve looks
		if tc.op == "Items.Repair" {
			limit = 10 // and one that finds nothing any more
		}
		for times, want := range map[int]bool{1: true, limit: true, limit + 1: false} {
			c := patientAt(t, atMint).clone(t)
			tc.harm(c)
			table := &hookedTable{Store: c.table}
			c.Doctor.Items, c.Journal.Outbox = table, table
			n := 0
			c.Anchor.Signer = &hooked{Signer: c.key}
			c.hookAll(func(op string, _ ...any) (bool, error) {
				if op == tc.op && n < times {
					n++
					if op == "Items.Repair" {
						return false, kek.ErrConflict
					}
					return true, c.table.Record(t.Context(), audit.Event{ID: fmt.Sprint("write-", n), Type: "write"})
				}
				return true, nil
			})
			_, err := tc.run(c)
			if n != times || (err == nil) != want {
				t.Errorf("%s, %d times: %d, %v", name, times, n, err)
			}
			if !want {
				if wantKind(t, err, journal.Transient); typed(err).Field != "control table" {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}
