package trace_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/trace"
)

// Lies: true runs that were changed by hand, as a broken or hostile deployment, or a
// recorder that leaves things out, would make them. Each is named after what is false in
// it.

type mutation = func(*testing.T, []trace.Event) []trace.Event

// then mutates one after the other.
func then(all ...mutation) mutation {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		for _, m := range all {
			events = m(t, events)
		}
		return events
	}
}

// made puts an event after the first that g finds.
func made(e trace.Event, after is) mutation {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		return slices.Insert(events, index(t, events, after)+1, e)
	}
}

// every changes each event that f finds.
func every(f is, edit func(*trace.Event)) mutation {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		index(t, events, f)
		for i := range events {
			if f(events[i]) {
				edit(&events[i])
			}
		}
		return events
	}
}

// scanned are the checkpoints of a pass after which a lie says that it is done. early puts
// them, all done, after the first event that g finds, and leaves out the true ones.
func early(name string, after is) mutation {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		var done []trace.Event
		events = slices.DeleteFunc(events, func(e trace.Event) bool {
			if pass(name)(e) && e.Done {
				done = append(done, e)
			}
			return pass(name)(e)
		})
		if len(done) == 0 {
			t.Fatal("the run has no such pass")
		}
		return slices.Insert(events, index(t, events, after)+1, done...)
	}
}

// between finds events of a kind in a phase: after the change that begins it, before the
// one that ends it.
func between(f is, from, to string) func(t *testing.T, events []trace.Event) is {
	return func(t *testing.T, events []trace.Event) is {
		t.Helper()
		a, b := events[index(t, events, change(from))].N, events[index(t, events, change(to))].N
		return f.and(func(e trace.Event) bool { return a < e.N && e.N < b })
	}
}

// inPhase mutates only what happened in a phase.
func inPhase(f is, from, to string, mutate func(is) mutation) mutation {
	return func(t *testing.T, events []trace.Event) []trace.Event {
		t.Helper()
		for i := range events {
			events[i].N = int64(i) + 1
		}
		return mutate(between(f, from, to)(t, events))(t, events)
	}
}

func by(caller string) func(*trace.Event) { return func(e *trace.Event) { e.Caller = caller } }

func of(kek string) is { return func(e trace.Event) bool { return e.KEK == kek } }

// The KEKs of the runs.
const (
	first  = "kek-0001"
	second = "kek-0002"
)

// back is a genesis that says that the pointer is at the first KEK again.
var back = trace.Event{
	Caller: trace.Person, Effect: "Store.Apply", Event: "kek_genesis", Actor: "genesis", KEK: first, Epoch: 1, Seq: 1, Shards: shards, Moved: true,
	States: map[string]string{first: "active"}, Opened: []int{0, 1},
}

func deleted(row string) trace.Event {
	return trace.Event{Caller: "rewrap", Effect: "Table.Delete", Source: "orders", Row: row}
}

// sameDEK makes every row of the rewrap carry the first one's wrapped DEK.
func sameDEK(t *testing.T, events []trace.Event) []trace.Event {
	t.Helper()
	blob := events[index(t, events, effect("Table.Replace"))].Blob
	return every(effect("Table.Replace"), func(e *trace.Event) { e.Blob = blob })(t, events)
}

// secondRow is where the run rewraps its second row, and where that row was written before.
func secondRow(t *testing.T, events []trace.Event) (moved, written *trace.Event) {
	t.Helper()
	first := index(t, events, effect("Table.Replace"))
	second := first + 1 + index(t, events[first+1:], effect("Table.Replace"))
	for i := range second {
		if events[i].Row == events[second].Row && events[i].Blob == events[second].Was {
			written = &events[i]
		}
	}
	if written == nil {
		t.Fatal("the row was never written")
	}
	return &events[second], written
}

// corruptedRow has a person overwrite the payload of the row that is moved second.
func corruptedRow(t *testing.T, events []trace.Event) []trace.Event {
	t.Helper()
	_, w := secondRow(t, events)
	w.Effect, w.Caller, w.Shard, w.BodyDEK, w.Text = trace.Plant, trace.Person, 0, trace.UnknownDEK, ""
	return events
}

// otherDEK wraps another row's DEK in the row that is moved second.
func otherDEK(t *testing.T, events []trace.Event) []trace.Event {
	t.Helper()
	moved, _ := secondRow(t, events)
	moved.Blob = events[index(t, events, effect("Table.Replace"))].Blob
	return events
}

// kept makes an emergency keep the exposed DEK of the row that it moves first, wrapped
// again.
func kept(t *testing.T, events []trace.Event) []trace.Event {
	t.Helper()
	i := index(t, events, effect("Table.Replace"))
	e := &events[i]
	old := events[index(t, events, func(g trace.Event) bool { return g.Effect == trace.GenerateDataKey && g.Blob == e.Was })].DEK
	e.BodyDEK = old
	blob := e.Blob
	made := index(t, events, func(g trace.Event) bool { return g.Effect == trace.GenerateDataKey && g.Blob == blob })
	events[made].DEK = old
	events[made].Effect, events[made].Old, events[made].Was = trace.ReEncrypt, e.Old, e.Was
	return events
}

// rewrappedOnly is kept with the KMS call left as it is: what KMS made is not used.
func rewrappedOnly(t *testing.T, events []trace.Event) []trace.Event {
	t.Helper()
	return edited(effect("Table.Replace"), func(e *trace.Event) { e.BodyDEK = "0123456789abcdef" })(t, events)
}

// looksEarly lets drain look at the leases before the switch alone.
func looksEarly(t *testing.T, events []trace.Event) []trace.Event {
	t.Helper()
	looks := slices.DeleteFunc(slices.Clone(events), func(e trace.Event) bool { return e.Effect != "Store.Leases" })
	events = dropped(effect("Store.Leases"))(t, events)
	return slices.Insert(events, index(t, events, change("pointer_switched")), looks...)
}

var lies = []mutant{
	// The pointer.
	{"genesis again, at the end", "green", made(back, change("kms_rotation_completed")), "kek_genesis", ""},
	{"genesis again, between seal and rewrap", "green", made(back, change("old_kek_sealed")), "kek_genesis", ""},
	{"genesis writes another state", "green", edited(change("kek_genesis"), func(e *trace.Event) { e.States = map[string]string{first: "sealed"} }), "kek_genesis", ""},
	{"genesis opens no fence", "green", edited(change("kek_genesis"), func(e *trace.Event) { e.Opened = nil }), "kek_genesis", ""},
	{"genesis at the second epoch", "green", edited(change("kek_genesis"), func(e *trace.Event) { e.Epoch = 2 }), "kek_genesis", ""},
	{"rows before genesis", "green", moved(effect("Table.Insert"), change("kek_genesis")), "Table.Insert", ""},
	{"genesis by a function", "green", edited(change("kek_genesis"), by("switch")), "kek_genesis", ""},

	// Passes that nobody made.
	{"confirm done right after the start", "green", early("confirm", change("rotation_started")), "Store.SaveCheckpoint", ""},
	{"rewrap done right after the start", "green", early("rewrap", change("rotation_started")), "Store.SaveCheckpoint", ""},
	{"verify done right after the start", "green", early("verify", change("rotation_started")), "Store.SaveCheckpoint", ""},
	{"confirm done before the rewrap is", "green", early("confirm", change("old_kek_sealed")), "Store.SaveCheckpoint", ""},
	{"verify done before the old KEK is retired", "green", early("verify", change("rows_rewrapped")), "Store.SaveCheckpoint", ""},
	{"census done with nothing read", "green", inPhase(effect(trace.Scan), "rotation_started", "rows_counted", dropped), "Store.SaveCheckpoint", ""},
	{"rewrap read nothing", "green", inPhase(effect(trace.Scan), "old_kek_sealed", "rows_rewrapped", dropped), "Store.SaveCheckpoint", ""},
	{"confirm read nothing", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", dropped), "Store.SaveCheckpoint", ""},
	{"verify read nothing", "green", inPhase(effect(trace.Scan), "old_kek_retired", "kms_rotation_completed", dropped), "Store.SaveCheckpoint", ""},
	{"confirm read what may be stale", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return every(f, func(e *trace.Event) { e.Consistent = false })
	}), "Store.SaveCheckpoint", ""},
	{"confirm left rows out by a filter", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return every(f, func(e *trace.Event) { e.Filtered = true })
	}), "Store.SaveCheckpoint", ""},
	{"confirm read by an application", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation { return every(f, by(trace.Application)) }), "Store.SaveCheckpoint", ""},
	{"confirm left a segment out", "green", inPhase(effect(trace.Scan).and(func(e trace.Event) bool { return e.Segment == 1 }), "rows_rewrapped", "old_kek_retired", dropped), "Store.SaveCheckpoint", ""},
	{"confirm read segments of three", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return every(f, func(e *trace.Event) { e.Total = 3 })
	}), "Store.SaveCheckpoint", ""},
	{"confirm ended before the end", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return every(f, func(e *trace.Event) { e.To = "more" })
	}), "Store.SaveCheckpoint", ""},
	{"confirm began in the middle", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return every(f, func(e *trace.Event) { e.From = "less" })
	}), "Store.SaveCheckpoint", ""},
	{"confirm jumped from one cursor to another", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return func(_ *testing.T, events []trace.Event) (out []trace.Event) {
			for _, e := range events {
				if !f(e) {
					out = append(out, e)
					continue
				}
				head, tail := e, e
				head.To, tail.From = "here", "there"
				out = append(out, head, tail)
			}
			return out
		}
	}), "Store.SaveCheckpoint", ""},
	{"confirm shows no rows", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return every(f, func(e *trace.Event) { e.Page = nil })
	}), "old_kek_retired", ""},
	{"verify shows no rows", "green", inPhase(effect(trace.Scan), "old_kek_retired", "kms_rotation_completed", func(f is) mutation {
		return every(f, func(e *trace.Event) { e.Page = nil })
	}), "kms_rotation_completed", ""},
	{"a page shows an old row under the new KEK", "green", inPhase(effect(trace.Scan), "old_kek_sealed", "rows_rewrapped", func(f is) mutation {
		old := func(s trace.Seen) bool { return s.KEK == first }
		return edited(f.and(func(e trace.Event) bool { return slices.ContainsFunc(e.Page, old) }), func(e *trace.Event) {
			e.Page = slices.Clone(e.Page)
			e.Page[slices.IndexFunc(e.Page, old)].KEK = second
		})
	}), trace.Scan, ""},
	{"a page shows other bytes than are stored", "green", inPhase(effect(trace.Scan), "old_kek_sealed", "rows_rewrapped", func(f is) mutation {
		return edited(f.and(func(e trace.Event) bool { return len(e.Page) > 0 }), func(e *trace.Event) {
			e.Page = slices.Clone(e.Page)
			e.Page[0].Blob = "00"
		})
	}), trace.Scan, ""},
	{"a page shows a row that nobody wrote", "green", inPhase(effect(trace.Scan), "rows_rewrapped", "old_kek_retired", func(f is) mutation {
		return edited(f, func(e *trace.Event) {
			e.Page = append(slices.Clone(e.Page), trace.Seen{Row: "ghost", KEK: second, Blob: "00"})
		})
	}), trace.Scan, ""},
	{"a row that the rewrap left behind", "green", inPhase(effect("Table.Replace"), "old_kek_sealed", "rows_rewrapped", func(f is) mutation { return dropped(f.and(row("o2"))) }), "rows_rewrapped", ""},

	// What only somebody else may do.
	{"rewrap deletes every row", "green", inPhase(effect("Table.Replace"), "old_kek_sealed", "rows_rewrapped", func(f is) mutation {
		return every(f, func(e *trace.Event) { *e = deleted(e.Row) })
	}), "Table.Delete", ""},
	{"rewrap deletes one row", "green", made(deleted("o1"), change("old_kek_sealed")), "Table.Delete", ""},
	{"retire deletes a row", "green", then(made(deleted("o1"), change("rows_rewrapped")), edited(effect("Table.Delete").and(row("o1")), by("retire"))), "Table.Delete", ""},
	{"rewrap plants a row", "green", edited(effect(trace.Plant), by("rewrap")), trace.Plant, ""},
	{"a retired key enabled by retire", "green", made(trace.Event{Caller: "retire", Effect: "KMS.Enable", KEK: first}, change("old_kek_retired")), "KMS.Enable", ""},
	{"a retired key enabled by verify at the end", "green", made(trace.Event{Caller: "verify", Effect: "KMS.Enable", KEK: first}, change("kms_rotation_completed")), "KMS.Enable", ""},
	{"a lease dropped by drain", "green", edited(effect("Store.DropLease"), by("drain")), "Store.DropLease", ""},
	{"a lease renewed by drain", "green", edited(effect("Store.RenewLease"), by("drain")), "Store.RenewLease", ""},
	{"rewrap inserts", "green", edited(effect("Table.Insert"), by("rewrap")), "Table.Insert", ""},
	{"rewrap updates", "green", edited(effect("Table.Update"), by("rewrap")), "Table.Update", ""},
	{"an application moves the pointer", "green", edited(change("pointer_switched"), by(trace.Application)), "pointer_switched", ""},
	{"an application disables a key", "green", edited(effect("KMS.Disable"), by(trace.Application)), "KMS.Disable", ""},
	{"an application rewraps", "green", edited(effect("Table.Replace"), by(trace.Application)), "Table.Replace", ""},
	{"an application seals a fence", "green", edited(effect("Store.SealFence"), by(trace.Application)), "Store.SealFence", ""},
	{"rewrap disables a key", "green", edited(effect("KMS.Disable"), by("rewrap")), "KMS.Disable", ""},
	{"drain moves the pointer", "green", edited(change("pointer_switched"), by("drain")), "pointer_switched", ""},
	{"a caller that nobody deployed", "green", edited(change("pointer_switched"), by("janitor")), "pointer_switched", ""},
	{"a call by nobody", "green", edited(change("pointer_switched"), by("")), "pointer_switched", ""},

	// Keys.
	{"a claim for another attempt", "green", edited(effect("KMS.Claim"), func(e *trace.Event) { e.Attempt = 2 }), "KMS.Claim", ""},
	{"a claim for another rotation", "green", edited(effect("KMS.Claim"), func(e *trace.Event) { e.Rotation = "other" }), "KMS.Claim", ""},
	{"a claim of a key that nobody made", "green", edited(effect("KMS.Claim"), func(e *trace.Event) { e.KEK = "kek-0099" }), "KMS.Claim", ""},
	{"another team's key disabled", "green", made(trace.Event{Caller: "retire", Effect: "KMS.Disable", KEK: "kek-0099"}, change("old_kek_retired")), "KMS.Disable", ""},
	{"the pointer's key disabled", "green", made(trace.Event{Caller: "retire", Effect: "KMS.Disable", KEK: second}, change("old_kek_retired")), "KMS.Disable", ""},
	{"a key made twice", "green", added(effect("KMS.Create").and(of(second)), effect("KMS.Create").and(of(second)), same), "KMS.Create", ""},
	{"no key was made", "green", dropped(effect("KMS.Create").and(of(second))), "KMS.Claim", ""},

	// DEKs.
	{"garbage for a wrapped DEK", "green", edited(effect("Table.Replace"), func(e *trace.Event) { e.Blob = "garbage" }), "Table.Replace", "NoKeyOrphans"},
	{"every row with the first one's wrapped DEK", "green", sameDEK, "Table.Replace", "RowIntegrity"},
	{"a DEK that KMS wrapped for nobody", "green", every(effect(trace.ReEncrypt), func(e *trace.Event) { e.DEK = "ffffffffffffffff" }), trace.ReEncrypt, ""},
	{"the wrapped DEK stays the old one", "green", edited(effect("Table.Replace"), func(e *trace.Event) { e.Blob = e.Was }), "Table.Replace", ""},
	{"a row that a person has corrupted gets another DEK", "green", then(corruptedRow, otherDEK), "Table.Replace", "RowIntegrity"},
	{"inserted with the payload under another DEK", "green", edited(effect("Table.Insert"), func(e *trace.Event) { e.BodyDEK = trace.UnknownDEK }), "Table.Insert", "RowIntegrity"},
	{"updated with the payload under another DEK", "green", edited(effect("Table.Update"), func(e *trace.Event) { e.BodyDEK = trace.UnknownDEK }), "Table.Update", "RowIntegrity"},
	{"inserted without saying what the payload opens under", "green", edited(effect("Table.Insert"), func(e *trace.Event) { e.BodyDEK = "" }), "Table.Insert", ""},
	{"a normal rewrap touches the payload", "green", edited(effect("Table.Replace"), func(e *trace.Event) { e.Body, e.BodyDEK = "00", trace.UnknownDEK }), "Table.Replace", ""},
	{"an emergency keeps the exposed DEK", "emergency", kept, "Table.Replace", ""},
	{"an emergency seals another text", "emergency", edited(effect("Table.Replace"), func(e *trace.Event) { e.Text = "0123456789abcdef" }), "Table.Replace", "NoLostWrite"},
	{"an emergency leaves the wrapped DEK", "emergency", edited(effect("Table.Replace"), func(e *trace.Event) { e.Blob = e.Was }), "Table.Replace", ""},
	{"an emergency seals the payload under another DEK", "emergency", rewrappedOnly, "Table.Replace", "RowIntegrity"},
	{"an emergency gives every row one DEK", "emergency", func(t *testing.T, events []trace.Event) []trace.Event {
		e := events[index(t, events, effect("Table.Replace"))]
		return every(effect("Table.Replace"), func(o *trace.Event) { o.Blob, o.BodyDEK = e.Blob, e.BodyDEK })(t, events)
	}, "Table.Replace", ""},
	{"KMS makes one DEK twice", "green", func(t *testing.T, events []trace.Event) []trace.Event {
		d := events[index(t, events, effect(trace.GenerateDataKey))].DEK
		return every(effect(trace.GenerateDataKey), func(e *trace.Event) { e.DEK = d })(t, events)
	}, trace.GenerateDataKey, ""},
	{"a row under an exposed DEK comes back after an emergency", "emergency", func(t *testing.T, events []trace.Event) []trace.Event {
		old := events[index(t, events, effect("Table.Insert").and(row("o0")))]
		made := trace.Event{Caller: trace.Person, Effect: trace.ReEncrypt, Old: first, Was: old.Blob, KEK: "kek-0004", Blob: "back", DEK: old.BodyDEK}
		plant := trace.Event{Caller: trace.Person, Effect: trace.Plant, Source: "orders", Row: "back", KEK: "kek-0004", Epoch: 2, Blob: "back", Body: old.Body, BodyDEK: old.BodyDEK}
		return slices.Insert(events, index(t, events, change("kms_rotation_completed"))+1, made, plant)
	}, trace.Plant, "ExposedDeksGone"},

	{"a row of an epoch that the pointer has not reached", "green", edited(effect(trace.Plant), func(e *trace.Event) { e.Epoch = 7 }), trace.Plant, "EpochOfRows"},

	// Records.
	{"no record put", "green", dropped(effect("Vault.Put")), "Store.MarkPublished", ""},
	{"no record put or marked", "green", then(dropped(effect("Vault.Put")), dropped(effect("Store.MarkPublished"))), "KMS.Disable", ""},
	{"one record left out of the bucket", "green", func(t *testing.T, events []trace.Event) []trace.Event {
		return dropped(effect("Vault.Put").and(func(e trace.Event) bool { return e.Seq == 3 }))(t, events)
	}, "Store.MarkPublished", ""},
	{"records put out of order", "green", edited(effect("Vault.Put").and(func(e trace.Event) bool { return e.Seq == 2 }), func(e *trace.Event) { e.Seq = 1 }), "Store.MarkPublished", ""},
	{"the mark goes back", "green", made(trace.Event{Caller: "verify", Effect: "Store.MarkPublished", Seq: 1}, change("kms_rotation_completed")), "Store.MarkPublished", ""},
	{"a change given out as a record of its own", "green", edited(change("pointer_switched"), func(e *trace.Event) {
		*e = trace.Event{Caller: "switch", Effect: "Store.Record", Event: "pointer_switched", Seq: e.Seq}
	}), "Store.Record pointer_switched", ""},
	{"a record of no type", "green", made(trace.Event{Caller: "drain", Effect: "Store.Record", Seq: 1}, change("rotation_started")), "Store.Record", ""},
	{"a change that calls itself recorded", "green", edited(change("pointer_switched"), event("recorded")), "recorded", ""},

	// What nobody understands.
	{"an effect that nobody knows", "green", made(trace.Event{Caller: "retire", Effect: "KMS.ScheduleKeyDeletion", KEK: first}, change("old_kek_retired")), "KMS.ScheduleKeyDeletion", ""},
	{"an effect that is misspelt", "green", edited(change("pointer_switched"), func(e *trace.Event) { e.Effect = "Store.Aply" }), "Store.Aply pointer_switched", ""},
	{"a change that nobody knows", "green", edited(change("rows_rewrapped"), event("rows_rewraped")), "rows_rewraped", ""},
	{"a change that was not recorded", "green", edited(change("pointer_switched"), event(trace.Unrecorded)), trace.Unrecorded, ""},
	{"a change without conditions", "green", edited(change("pointer_switched"), event(trace.Unconditional)), trace.Unconditional, ""},
	{"the fence of an unknown KEK", "green", edited(effect("Store.SealFence"), func(e *trace.Event) { e.KEK = "kek-0099" }), "Store.SealFence", ""},
	{"a shard that there is not", "green", edited(effect("Store.SealFence"), func(e *trace.Event) { e.Shard = shards }), "Store.SealFence", ""},
	{"a pass that nobody knows", "green", edited(pass("confirm"), func(e *trace.Event) { e.Sweep = "confrim" }), "Store.SaveCheckpoint", ""},
	{"a row without a name", "green", edited(effect("Table.Insert"), func(e *trace.Event) { e.Row = "" }), "Table.Insert", ""},
	{"a run with nothing in it", "green", func(_ *testing.T, _ []trace.Event) []trace.Event { return nil }, "", ""},
	{"a run with nothing but a snapshot", "green", func(_ *testing.T, _ []trace.Event) []trace.Event {
		return []trace.Event{{Caller: trace.Person, Effect: trace.Snapshot, KEK: first, Epoch: 1, Shards: shards}}
	}, trace.Snapshot, ""},
	{"a run without its beginning", "green", dropped(change("kek_genesis")), "KMS.Create", ""},

	// The rotation.
	{"an epoch of the future", "green", edited(effect("Table.Insert"), func(e *trace.Event) { e.Epoch = 7 }), "Table.Insert", ""},
	{"a mode that changes under way", "green", edited(change("old_kek_sealed"), func(e *trace.Event) { e.Phase = "switched" }), "old_kek_sealed", ""},
	{"leases looked at before the switch", "green", looksEarly, "Store.SealFence", ""},
	{"disabled before its record is safe", "green", inPhase(effect("Vault.Put"), "old_kek_retired", "kms_rotation_completed", dropped), "Store.MarkPublished", ""},
	{"disabled before its record is safe, unmarked", "green", then(
		inPhase(effect("Store.MarkPublished"), "old_kek_retired", "kms_rotation_completed", dropped),
		inPhase(effect("Vault.Put"), "old_kek_retired", "kms_rotation_completed", dropped)), "KMS.Disable", ""},
	{"completed twice", "green", added(change("kms_rotation_completed"), change("kms_rotation_completed"), same), "kms_rotation_completed", ""},
	{"the old KEK active again", "green", edited(change("old_kek_retired"), func(e *trace.Event) { e.States = map[string]string{first: "active"} }), "old_kek_retired", ""},
}

// later lies are of runs with more than one rotation.
var later = []mutant{
	{"a worker of the first rotation moves a row in the second", "two rotations", func(t *testing.T, events []trace.Event) []trace.Event {
		e := events[index(t, events, effect("Table.Replace").and(row("o1")))]
		last := lastIndex(t, events, change("pointer_switched"))
		return slices.Insert(events, last+1, e)
	}, "Table.Replace", ""},
	{"the second rotation reads nothing", "two rotations", func(t *testing.T, events []trace.Event) []trace.Event {
		last := lastIndex(t, events, change("rotation_started"))
		return append(events[:last:last], slices.DeleteFunc(slices.Clone(events[last:]), func(e trace.Event) bool { return e.Effect == trace.Scan })...)
	}, "Store.SaveCheckpoint", ""},
	{"the second rotation concludes from the first one's passes", "two rotations", func(t *testing.T, events []trace.Event) []trace.Event {
		last := lastIndex(t, events, change("rotation_started"))
		return append(events[:last:last], slices.DeleteFunc(slices.Clone(events[last:]), func(e trace.Event) bool {
			return e.Effect == trace.Scan || e.Effect == "Store.SaveCheckpoint"
		})...)
	}, "rows_counted", ""},
	{"the second rotation begins before the first is over", "two rotations", func(t *testing.T, events []trace.Event) []trace.Event {
		last := lastIndex(t, events, change("rotation_started"))
		e := events[last]
		return slices.Insert(slices.Delete(events, last, last+1), index(t, events, change("kms_rotation_completed")), e)
	}, "rotation_started", ""},
	{"the pointer goes back to the KEK before the last", "two rotations", func(t *testing.T, events []trace.Event) []trace.Event {
		last := lastIndex(t, events, change("pointer_switched"))
		events[last].KEK = first
		return events
	}, "pointer_switched", ""},
	{"the loser of a claim registers its key", "two keys minted at once", every(change("kek_minted"), func(e *trace.Event) {
		e.States = map[string]string{"kek-0003": "pending"}
		e.KEK = "kek-0003"
	}), "kek_minted", ""},
	{"a rotation that an emergency has ended completes", "taken over", added(change("kms_rotation_completed"), change("kms_rotation_completed"), func(e *trace.Event) { e.Rotation = id }), "kms_rotation_completed", ""},
	{"an emergency takes over and leaves the other's lock", "taken over", edited(change("emergency_took_over"), func(e *trace.Event) { e.Lock = "" }), "emergency_took_over", ""},
	{"an emergency takes over a rotation that goes on", "taken over", edited(change("emergency_took_over"), func(e *trace.Event) { e.EndedPhase = "switched" }), "emergency_took_over", ""},
	{"a label that the bytes belie", "rows of others", edited(effect(trace.Label), func(e *trace.Event) { e.KEK = "kek-0002" }), trace.Label, ""},
	{"a label on a row that has changed", "rows of others", edited(effect(trace.Label), func(e *trace.Event) { e.Was = "00" }), trace.Label, ""},
	{"rewrap labels a row", "rows of others", edited(effect(trace.Label), by("rewrap")), trace.Label, ""},
	{"a KEK registered while a rotation runs", "rows of others", moved(change("rotation_started"), change("kek_registered")), "kek_registered", ""},
	{"a KEK registered as active", "rows of others", edited(change("kek_registered"), func(e *trace.Event) {
		for id := range e.States {
			e.States[id] = "active"
		}
	}), "kek_registered", ""},
}

func lastIndex(t *testing.T, events []trace.Event, f is) int {
	t.Helper()
	for i, e := range slices.Backward(events) {
		if f(e) {
			return i
		}
	}
	t.Fatal("the run has no such event")
	return 0
}

// allowed are changes of a true run that are no lie: what the world may do, or what does
// nothing.
var allowed = []struct {
	name, why string
	mutate    mutation
}{
	{"a person enables the retired key", "people may; who does has the records of KMS against them, and verify halts", made(trace.Event{Caller: trace.Person, Effect: "KMS.Enable", KEK: first}, change("kms_rotation_completed"))},
	{"a person enables a key of another team", "it is none of ours", made(trace.Event{Caller: trace.Person, Effect: "KMS.Enable", KEK: "kek-0099"}, change("old_kek_retired"))},
	{"a person disables a key of another team", "it is none of ours", made(trace.Event{Caller: trace.Person, Effect: "KMS.Disable", KEK: "kek-0099"}, change("old_kek_retired"))},
	{"a person corrupts a payload", "the rotation moves what is wrapped, and the canary and the corpus find what does not open", corruptedRow},
	{"a person deletes a row", "rows are the application's", edited(effect("Table.Delete"), by(trace.Person))},
	{"an application takes a lease on a KEK that is being left", "leases promise nothing: the fence refuses its rows", made(trace.Event{Caller: trace.Application, Effect: "Store.PutLease", Actor: "late", KEK: first, Expires: 1}, change("old_kek_sealed"))},
	{"a fence sealed twice", "it is shut", added(effect("Store.SealFence"), change("old_kek_sealed"), same)},
	{"a key disabled twice", "it is off", added(effect("KMS.Disable"), change("kms_rotation_completed"), same)},
	{"a record put twice", "the same bytes are there", added(effect("Vault.Put"), change("kms_rotation_completed"), same)},
	{"a pass begun again", "what was seen counts, what was not is read", added(pass("verify"), change("old_kek_retired"), func(e *trace.Event) { e.Done = false })},
	{"a late call makes another key", "a sweep disables it", made(trace.Event{Caller: "mint", Effect: "KMS.Create", KEK: "kek-0003", Rotation: id, Attempt: 1}, change("pointer_switched"))},
	{"an application reads the table without consistency", "it concludes nothing", made(trace.Event{Caller: trace.Application, Effect: trace.Scan, Source: "orders", Total: 1, Page: []trace.Seen{{Row: "o0", KEK: "kek-0001", Blob: "00"}}}, change("rows_rewrapped"))},
}

// TestAllowedIsAccepted: who is stricter than this refuses true runs.
func TestAllowedIsAccepted(t *testing.T) {
	var runs [][]trace.Event
	for _, a := range allowed {
		runs = append(runs, renumbered(a.mutate(t, green(t))))
	}
	for i, v := range check(t, runs...) {
		if !v.Accepted {
			t.Errorf("%s: %s, but %s", allowed[i].name, v, allowed[i].why)
		}
	}
}

// TestLiesAreRejected: each lie is rejected, and at what is false in it.
func TestLiesAreRejected(t *testing.T) { rejected(t, slices.Concat(lies, later)) }

func rejected(t *testing.T, mutants []mutant) {
	t.Helper()
	runs := map[string]func(*testing.T) []trace.Event{}
	for _, r := range recorded {
		runs[r.name] = r.run
	}
	var made [][]trace.Event
	for _, m := range mutants {
		made = append(made, renumbered(m.mutate(t, runs[m.of](t))))
	}
	for i, v := range check(t, made...) {
		m := mutants[i]
		name := strings.TrimSpace(strings.TrimPrefix(v.Event.Effect+" "+v.Event.Event, "Store.Apply "))
		if v.Accepted || name != m.at || v.Violated != m.violates {
			t.Errorf("%s: %s, want it rejected at %s %s", m.name, v, m.at, m.violates)
		}
		t.Logf("%-55s %s", m.name, v)
	}
}
