package trace_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/trace"
)

// is finds an event by its effect, or by what happened in a change.
type is func(trace.Event) bool

func change(event string) is {
	return func(e trace.Event) bool { return e.Effect == "Store.Apply" && e.Event == event }
}

func effect(name string) is { return func(e trace.Event) bool { return e.Effect == name } }

func (f is) and(g is) is { return func(e trace.Event) bool { return f(e) && g(e) } }

func row(id string) is { return func(e trace.Event) bool { return e.Row == id } }

func pass(name string) is {
	return effect("Store.SaveCheckpoint").and(func(e trace.Event) bool { return e.Sweep == name })
}

// mutant is a run that the code must never make, planted in one that it made.
type mutant struct {
	name     string
	of       string // the run it is made of
	mutate   func(t *testing.T, events []trace.Event) []trace.Event
	at       string // the event that must not be explained
	violates string // the invariant that it breaks, if an action explains it all the same
}

func index(t *testing.T, events []trace.Event, f is) int {
	t.Helper()
	i := slices.IndexFunc(events, f)
	if i < 0 {
		t.Fatal("the run has no such event")
	}
	return i
}

// moved puts the first event that f finds before the first that g finds.
func moved(f, before is) func(*testing.T, []trace.Event) []trace.Event {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		i, j := index(t, events, f), index(t, events, before)
		e := events[i]
		events = slices.Delete(events, i, i+1)
		if i < j {
			j--
		}
		return slices.Insert(events, j, e)
	}
}

// dropped leaves out every event that f finds.
func dropped(f is) func(*testing.T, []trace.Event) []trace.Event {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		index(t, events, f)
		return slices.DeleteFunc(events, f)
	}
}

// added puts a copy of the first event that f finds, changed, after the first that
// g finds.
func added(f, after is, edit func(*trace.Event)) func(*testing.T, []trace.Event) []trace.Event {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		e := events[index(t, events, f)]
		edit(&e)
		return slices.Insert(events, index(t, events, after)+1, e)
	}
}

// edited changes the first event that f finds.
func edited(f is, edit func(*trace.Event)) func(*testing.T, []trace.Event) []trace.Event {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		edit(&events[index(t, events, f)])
		return events
	}
}

func same(*trace.Event) {}

func event(name string) func(*trace.Event) { return func(e *trace.Event) { e.Event = name } }

var mutants = []mutant{
	{"switched before tested", "green", moved(change("pointer_switched"), change("dual_unwrap_passed")), "pointer_switched", ""},
	{"pointer moved twice", "green", added(change("pointer_switched"), change("pointer_switched"), same), "pointer_switched", ""},
	{"pointer skips an epoch", "green", edited(change("pointer_switched"), func(e *trace.Event) { e.Epoch++ }), "pointer_switched", ""},
	{"rolled back after the switch", "green", added(change("pointer_switched"), change("pointer_switched"), event("rolled_back")), "rolled_back", ""},
	{"a second rotation beside the first", "green", added(change("rotation_started"), change("dual_unwrap_passed"), func(e *trace.Event) { e.Rotation = "rival" }), "rotation_started", ""},
	{"minted without the arbiter", "green", dropped(effect("KMS.Claim")), "kek_minted", ""},
	{"fence not sealed", "green", dropped(effect("Store.SealFence")), "old_kek_sealed", ""},
	{"one shard not sealed", "green", dropped(effect("Store.SealFence").and(func(e trace.Event) bool { return e.Shard == 1 })), "old_kek_sealed", ""},
	{"fence sealed before the switch", "green", moved(effect("Store.SealFence"), change("pointer_switched")), "Store.SealFence", ""},
	{"drain trusts the clock", "green", dropped(effect("Store.Revoke")), "Store.SealFence", ""},
	{"drain never looks", "green", dropped(effect("Store.Leases")), "Store.SealFence", ""},
	{"a renewed lease revoked", "green", edited(effect("Store.Revoke"), func(e *trace.Event) { e.Expires++ }), "Store.Revoke", ""},
	{"inserted under a sealed KEK", "green", edited(effect("Table.Insert").and(row("too-late")), func(e *trace.Event) { e.Refused = false }), "Table.Insert", ""},
	{"inserted without the fence", "green", edited(effect("Table.Insert"), func(e *trace.Event) { e.Shard = trace.Unfenced }), "Table.Insert", ""},
	{"updated by a writer of an older epoch", "green", added(effect("Table.Update").and(row("o1")), change("rows_rewrapped"), same), "Table.Update", ""},
	{"rewrapped before the seal", "green", moved(effect("Table.Replace"), change("old_kek_sealed")), "Table.Replace", ""},
	{"rewrapped what had changed", "green", edited(effect("Table.Replace"), func(e *trace.Event) { e.Was = "00" }), "Table.Replace", ""},
	{"rewrap leaves the epoch", "green", edited(effect("Table.Replace"), func(e *trace.Event) { e.Epoch-- }), "Table.Replace", ""},
	{"rewrap brings a deleted row back", "green", added(effect("Table.Replace").and(row("o2")), change("rows_rewrapped"), func(e *trace.Event) { e.Row = "never" }), "Table.Replace", ""},
	{"rewrapped without every segment", "green", dropped(pass("rewrap").and(func(e trace.Event) bool { return e.Segment == 1 })), "rows_rewrapped", ""},
	{"retired without the second scan", "green", dropped(pass("confirm")), "old_kek_retired", ""},
	{"retired before rewrapped", "green", moved(change("old_kek_retired"), change("rows_rewrapped")), "old_kek_retired", ""},
	{"restored behind the second scan", "green", added(effect("Table.Plant"), change("old_kek_retired"), func(e *trace.Event) { e.Row = "again" }), "Table.Plant", "NoKeyOrphans"},
	{"disabled before the registry says retired", "green", moved(effect("KMS.Disable"), change("old_kek_retired")), "KMS.Disable", ""},
	{"new KEK disabled by a sweep", "green", added(effect("KMS.Claim"), change("kek_minted"), func(e *trace.Event) { e.Effect = "KMS.Disable" }), "KMS.Disable", ""},
	{"completed with the old key enabled", "green", dropped(effect("KMS.Disable")), "kms_rotation_completed", ""},
	{"completed unverified", "green", dropped(pass("verify")), "kms_rotation_completed", ""},
	{"a change without its record", "green", edited(change("pointer_switched"), func(e *trace.Event) { e.Seq = noRecord }), "pointer_switched", ""},
	{"a registry entry not written", "green", edited(change("pointer_switched"), func(e *trace.Event) { delete(e.States, e.Old) }), "pointer_switched", ""},
	{"the wrong state written", "green", edited(change("old_kek_sealed"), func(e *trace.Event) { e.States[e.Old] = "retired" }), "old_kek_sealed", ""},
	{"the pointer not written", "green", edited(change("pointer_switched"), func(e *trace.Event) { e.Moved = false }), "pointer_switched", ""},
	{"the pointer written out of turn", "green", edited(change("old_kek_sealed"), func(e *trace.Event) { e.Moved, e.Epoch = true, 3 }), "old_kek_sealed", ""},
	{"one shard not opened", "green", edited(change("pointer_switched"), func(e *trace.Event) { e.Opened = e.Opened[:1] }), "pointer_switched", ""},
	{"the phase not written", "green", edited(change("dual_unwrap_passed"), func(e *trace.Event) { e.Phase = "minted" }), "dual_unwrap_passed", ""},
	{"the lock not taken", "green", edited(change("rotation_started"), func(e *trace.Event) { e.Lock = "" }), "rotation_started", ""},
	{"the lock released too early", "green", edited(change("pointer_switched"), func(e *trace.Event) { e.Lock = trace.LockReleased }), "pointer_switched", ""},
	{"other bytes in the bucket", "green", edited(effect("Vault.Put"), func(e *trace.Event) { e.Seq = noPlace }), "Vault.Put", ""},
	{"marked before it was put", "green", dropped(effect("Vault.Put")), "Store.MarkPublished", ""},
	{"emergency rolled back", "emergency", added(change("dual_unwrap_passed"), change("dual_unwrap_passed"), event("rolled_back")), "rolled_back", ""},
	{"emergency that only rewraps", "emergency", edited(effect("Table.Replace"), func(e *trace.Event) { e.Body = "" }), "Table.Replace", ""},
	{"emergency overwrites a payload", "emergency", edited(effect("Table.Replace"), func(e *trace.Event) { e.WasBody = "00" }), "Table.Replace", ""},
	{"the failed attempt's key registered again", "emergency", added(change("kek_minted"), change("reminted"), same), "kek_minted", ""},
	{"rolled back in KMS alone", "rolled back", dropped(change("rolled_back")), "KMS.Disable", ""},
}

// renumbered gives the changes and their records the places that they would have
// had in the mutated run, so that it is rejected for what was planted and not for
// its numbers. A change whose place is noRecord gets none.
func renumbered(events []trace.Event) []trace.Event {
	seq := int64(0)
	for i := range events {
		e := &events[i]
		e.N = int64(i) + 1
		switch e.Effect {
		case "Store.Apply":
			if e.Seq != noRecord {
				seq++
			}
			e.Seq = seq
		case "Vault.Put", "Store.MarkPublished":
			e.Seq = min(e.Seq, seq)
		}
	}
	return events
}

const noRecord = -1

// noPlace is the place of what is no record of the chain.
const noPlace = 0

// TestMutatedRunsAreRejected plants what the code must never do in runs that it
// made: each is rejected, and for that event.
func TestMutatedRunsAreRejected(t *testing.T) {
	runs := map[string]func(*testing.T) []trace.Event{"green": green, "rolled back": rolledBack, "emergency": urgent}
	made := make([][]trace.Event, len(mutants))
	for i, m := range mutants {
		made[i] = renumbered(m.mutate(t, runs[m.of](t)))
	}
	for i, v := range check(t, made...) {
		m := mutants[i]
		name := strings.TrimPrefix(v.Event.Effect+" "+v.Event.Event, "Store.Apply ")
		if v.Accepted || strings.TrimSpace(name) != m.at || v.Violated != m.violates {
			t.Errorf("%s: %s, want it rejected at %s %s", m.name, v, m.at, m.violates)
		}
		t.Logf("%-45s %s", m.name, v)
	}
}
