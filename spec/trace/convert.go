package trace

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// run is a trace in the model's terms: everything is a number, given in the order
// of first appearance, as the model numbers rotations and keys itself.
type run struct {
	lines  []string // TLA+ records
	at     []int    // the event that each line stands for
	head   int64    // records in the chain when the recording began
	stored int64    // of them in the bucket
	shards int
	base   int64 // the pointer's epoch then

	historic int // KEKs that are registered during the run: numbers 2 and up
	keks     names
	rots     names
	rows     names
	writers  names
	blobs    names
	times    names
	parts    names       // segments of sources
	mints    int         // attempts at most
	made     map[any]int // keys per rotation and attempt
}

// names numbers what it is asked for, from 1.
type names map[string]int

func (n names) of(parts ...any) int {
	name := fmt.Sprint(parts...)
	if _, ok := n[name]; !ok {
		n[name] = len(n) + 1
	}
	return n[name]
}

func convert(events []Event) (*run, error) {
	r := &run{
		base: 1, shards: 1, mints: 1, made: map[any]int{}, keks: names{}, rots: names{}, rows: names{}, writers: names{},
		blobs: names{}, times: names{}, parts: names{},
	}
	for _, e := range events {
		if e.Effect == Snapshot || e.Event == "kek_genesis" {
			r.keks.of(e.KEK)
			r.shards, r.base = max(e.Shards, 1), e.Epoch
			if e.Effect == Snapshot {
				r.head, r.stored = e.Seq, e.Stored
			}
			break
		}
	}
	if len(r.keks) == 0 {
		return nil, fmt.Errorf("a run of %d events has neither a snapshot nor a kek_genesis", len(events))
	}
	for _, e := range events {
		if e.Event == "kek_registered" {
			r.keks.of(registered(e))
		}
	}
	r.historic = len(r.keks) - 1
	for i, e := range events {
		class, fields := r.event(e)
		if class == "" {
			continue
		}
		r.lines = append(r.lines, fmt.Sprintf("[c |-> %q, %s]", class, fields))
		r.at = append(r.at, i)
	}
	return r, nil
}

// kek is a KEK's number; that of no KEK which the model has, for one that was
// never made in this run.
func (r *run) kek(id string) string {
	if k, ok := r.keks[id]; ok {
		return fmt.Sprint(k)
	}
	return "Unknown"
}

func (r *run) epoch(e int64) int64 {
	if e == 0 {
		return 0 // a row whose epoch is not known
	}
	return max(e-r.base+1, 0)
}

// blob numbers a digest; none is 0.
func (r *run) blob(digest string) int {
	if digest == "" {
		return 0
	}
	return r.blobs.of(digest)
}

// event is the class and the fields of an event; no class if the model has
// nothing to say of it.
func (r *run) event(e Event) (class, fields string) {
	switch e.Effect {
	case "Store.Apply":
		return "change", r.change(e)
	case "Store.Record":
		return "change", fmt.Sprintf(`a |-> "recorded", seq |-> %d`, e.Seq)
	case "Store.SaveCheckpoint":
		if _, ok := r.rots[e.Rotation]; !ok {
			return "", "" // a late call of a rotation of before this run
		}
		return "note", fmt.Sprintf(`a |-> "pass", n |-> %d, p |-> %q, s |-> %d, done |-> %s`,
			r.rots.of(e.Rotation), e.Sweep, r.parts.of(e.Source, "/", e.Segment), strings.ToUpper(fmt.Sprint(e.Done)))
	case "Store.MarkPublished":
		return "note", fmt.Sprintf(`a |-> "mark", seq |-> %d`, e.Seq)
	case "Vault.Put":
		return "note", fmt.Sprintf(`a |-> "store", seq |-> %d`, e.Seq)
	case "KMS.Create", "KMS.Claim", "KMS.Disable", "KMS.Enable":
		return r.key(e)
	case "Store.Leases":
		return "drain", fmt.Sprintf(`a |-> "look", k |-> %s`, r.kek(e.KEK))
	case "Store.PutLease", "Store.RenewLease", "Store.DropLease", "Store.Revoke":
		if _, ok := r.keks[e.KEK]; !ok {
			return "", "" // on a KEK of before this run, which nobody drains any more
		}
		return "drain", fmt.Sprintf(`a |-> %q, w |-> %d, k |-> %s, v |-> %d`,
			leaseWord[e.Effect], r.writers.of(e.Actor, " ", e.KEK), r.kek(e.KEK), r.times.of(e.Expires))
	case "Store.SealFence":
		return "drain", fmt.Sprintf(`a |-> "fence", k |-> %s, s |-> %d`, r.kek(e.KEK), e.Shard)
	default:
		return r.row(e)
	}
}

var leaseWord = map[string]string{
	"Store.PutLease": "lease", "Store.RenewLease": "renew", "Store.DropLease": "drop", "Store.Revoke": "revoke",
}

// registered is the KEK of a kek_registered.
func registered(e Event) string {
	for id := range e.States {
		return id
	}
	return e.KEK
}

func (r *run) change(e Event) string {
	if e.Event == "kek_registered" {
		e.KEK = registered(e)
	}
	f := fmt.Sprintf(`a |-> %q, seq |-> %d, k |-> %s, old |-> %s, e |-> %d`, e.Event, e.Seq, r.kek(e.KEK), r.kek(e.Old), r.epoch(e.Epoch))
	if e.Rotation == "" {
		return f + ", n |-> 0, " + r.wrote(e)
	}
	var segments []string
	for _, source := range slices.Sorted(maps.Keys(e.Segments)) {
		for i := range e.Segments[source] {
			segments = append(segments, fmt.Sprint(r.parts.of(source, "/", i)))
		}
	}
	r.mints = max(r.mints, e.Attempt)
	other := 0
	if e.Ended != "" {
		other = r.rots.of(e.Ended)
	}
	return f + fmt.Sprintf(`, n |-> %d, m |-> %q, segs |-> {%s}, other |-> %d, oph |-> %q, %s`,
		r.rots.of(e.Rotation), e.Mode, strings.Join(segments, ", "), other, e.EndedPhase, r.wrote(e))
}

// wrote is what a transaction wrote beside the pointer.
func (r *run) wrote(e Event) string {
	var states, opened []string
	for _, id := range slices.Sorted(maps.Keys(e.States)) {
		states = append(states, fmt.Sprintf("<<%s, %q>>", r.kek(id), e.States[id]))
	}
	for _, s := range e.Opened {
		opened = append(opened, fmt.Sprint(s))
	}
	return fmt.Sprintf(`ph |-> %q, states |-> {%s}, moved |-> %s, opened |-> {%s}, lock |-> %q`,
		e.Phase, strings.Join(states, ", "), strings.ToUpper(fmt.Sprint(e.Moved)), strings.Join(opened, ", "), e.Lock)
}

// key is an effect on a KMS key. Keys of no rotation in this run (the first KEK,
// what somebody else made) are not in the model.
func (r *run) key(e Event) (class, fields string) {
	if e.Effect == "KMS.Create" {
		n, ok := r.rots[e.Rotation]
		if _, known := r.keks[e.KEK]; !ok || known {
			return "", ""
		}
		tag := [2]int{n, e.Attempt}
		r.made[tag]++
		r.mints = max(r.mints, e.Attempt)
		return "kms", fmt.Sprintf(`a |-> "create", n |-> %d, att |-> %d, k |-> %d`, n, e.Attempt, r.keks.of(e.KEK))
	}
	k, ok := r.keks[e.KEK]
	if !ok || e.Effect == "KMS.Claim" && k == 1 {
		return "", ""
	}
	return "kms", fmt.Sprintf(`a |-> %q, k |-> %d`, strings.ToLower(strings.TrimPrefix(e.Effect, "KMS.")), k)
}

func (r *run) row(e Event) (class, fields string) {
	word := strings.ToLower(strings.TrimPrefix(e.Effect, "Table."))
	if e.Refused {
		word = "refused"
	}
	shard := e.Shard
	if shard == Unfenced {
		shard = r.shards // of which there is none
	}
	switch e.Effect {
	case "Table.Insert", "Table.Update", Plant, "Table.Delete", "Table.Replace":
		return "rows", fmt.Sprintf(`a |-> %q, r |-> %d, k |-> %s, old |-> %s, e |-> %d, s |-> %d, was |-> %d, waspay |-> %d, blob |-> %d, pay |-> %d`,
			word, r.rows.of(e.Source, "/", e.Row), r.kek(e.KEK), r.kek(e.Old), r.epoch(e.Epoch), shard,
			r.blob(e.Was), r.blob(e.WasBody), r.blob(e.Blob), r.blob(e.Body))
	}
	return "", ""
}
