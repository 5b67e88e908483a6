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
	lines   []string // TLA+ records
	at      []int    // the event that each line stands for
	refused string   // why the event of the last line can be in no run; "" if it may
	head    int64    // records in the chain when the recording began
	stored  int64    // of them in the bucket
	begun   bool     // there was a pointer then
	shards  int
	base    int64 // the pointer's epoch then

	historic int // KEKs that are registered during the run: numbers 2 and up
	keks     names
	rots     names
	rows     names
	writers  names
	blobs    names
	times    names
	parts    names // segments of sources, of so many
	sources  names
	cursors  names
	deks     names
	mints    int                       // attempts at most
	made     map[any]int               // keys per rotation and attempt
	tags     map[string]tag            // of keys that were made in this run
	wraps    map[string]wrapping       // by digest of the wrapped DEK
	born     map[string]int            // of each DEK, its number in the model
	totals   map[string]map[string]int // by rotation and source: how many segments
	places   map[int]map[[2]int]bool   // of each row, its segments: number and total
	used     map[string]int            // of each DEK that a payload is under, a row
	serial   map[int]int               // of each row, the serial of its DEK
	tables   map[int]int               // of each row, the number of its source
}

// tag is what a key was made for.
type tag struct {
	rotation string
	attempt  int
	older    bool // of a rotation of before this run
}

// wrapping is what KMS has said of a wrapped DEK.
type wrapping struct{ kek, dek string }

// names numbers what it is asked for, from 1.
type names map[string]int

func (n names) of(parts ...any) int {
	name := fmt.Sprint(parts...)
	if _, ok := n[name]; !ok {
		n[name] = len(n) + 1
	}
	return n[name]
}

// serials is Serials of the model.
const serials = 100000

func convert(events []Event) *run {
	r := &run{
		base: 1, shards: 1, mints: 1, made: map[any]int{}, keks: names{}, rots: names{}, rows: names{}, writers: names{},
		blobs: names{}, times: names{}, parts: names{}, sources: names{}, cursors: names{}, deks: names{}, tags: map[string]tag{},
		wraps: map[string]wrapping{}, born: map[string]int{}, totals: map[string]map[string]int{}, places: map[int]map[[2]int]bool{}, tables: map[int]int{}, used: map[string]int{}, serial: map[int]int{},
	}
	if why := r.begin(events); why != "" {
		r.refuse(0, why)
		return r
	}
	for i, e := range events {
		why := r.refusal(e, i)
		if why == "" {
			why = r.key(e)
		}
		if why == "" {
			why = r.renewed(e)
		}
		if why != "" {
			r.refuse(i, why)
			return r
		}
		class, fields := r.event(e)
		if class == "" {
			continue
		}
		r.lines = append(r.lines, fmt.Sprintf("[c |-> %q, %s]", class, fields))
		r.at = append(r.at, i)
	}
	if len(r.lines) == 0 {
		r.refuse(len(events)-1, "nothing happened in this run")
	}
	return r
}

// refuse ends the run with an event that no action explains.
func (r *run) refuse(i int, why string) {
	r.lines, r.at, r.refused = append(r.lines, `[c |-> "never"]`), append(r.at, i), why
}

// begin finds what was there in the beginning, and what must be known from it on.
func (r *run) begin(events []Event) string {
	for _, e := range events {
		if e.Effect == Snapshot || e.Effect == "Store.Apply" && e.Event == "kek_genesis" {
			r.keks.of(e.KEK)
			r.shards, r.base, r.begun = max(e.Shards, 1), e.Epoch, e.Effect == Snapshot
			if r.begun {
				r.head, r.stored = e.Seq, e.Stored
			}
			break
		}
	}
	if len(r.keks) == 0 {
		return fmt.Sprintf("a run of %d events has neither a snapshot nor a kek_genesis", len(events))
	}
	for _, e := range events {
		if e.Event == "kek_registered" {
			r.keks.of(registered(e))
		}
		if e.Effect != Scan {
			continue
		}
		for _, seen := range e.Page {
			row := r.rows.of(e.Source, "/", seen.Row)
			r.tables[row] = r.sources.of(sourceName(e.Source))
			if r.places[row] == nil {
				r.places[row] = map[[2]int]bool{}
			}
			r.places[row][[2]int{r.part(e.Source, e.Segment, e.Total), e.Total}] = true
		}
	}
	r.historic = len(r.keks) - 1
	return ""
}

// part numbers a segment of a source.
func (r *run) part(source string, segment, total int) int {
	return r.parts.of(sourceName(source), "/", segment, "/", total)
}

// key takes down what a call to KMS says of keys and DEKs, or says why it can be in no
// run.
func (r *run) key(e Event) string {
	switch e.Effect {
	case "KMS.Create":
		if _, known := r.rots[e.Rotation]; !known && e.Rotation != "" {
			r.tags[e.KEK] = tag{e.Rotation, e.Attempt, true}
		} else if r.tags[e.KEK] != (tag{}) {
			return "a key is made once"
		} else {
			r.tags[e.KEK] = tag{e.Rotation, e.Attempt, false}
		}
	case "KMS.Claim":
		if t, known := r.tags[e.KEK]; known && (t.rotation != e.Rotation || t.attempt != e.Attempt) {
			return "the key was made for another rotation or attempt"
		} else if _, ours := r.rots[e.Rotation]; !known && ours {
			return "nobody made this key"
		}
	case "KMS.Disable":
		if _, known := r.keks[e.KEK]; !known && !r.tags[e.KEK].older && e.Caller != Person {
			return "it is no key of this deployment"
		}
	case GenerateDataKey:
		if _, known := r.born[e.DEK]; known {
			return "KMS makes no DEK twice"
		}
		return r.wrapped(e.Blob, e.KEK, e.DEK)
	case Decrypt:
		return r.wrapped(e.Blob, e.KEK, e.DEK)
	case ReEncrypt:
		if why := r.wrapped(e.Was, e.Old, e.DEK); why != "" {
			return why
		}
		return r.wrapped(e.Blob, e.KEK, e.DEK)
	}
	return ""
}

// wrapped takes down that a blob is a DEK under a KEK. A DEK is born under the first
// that it is seen under.
func (r *run) wrapped(blob, kek, dek string) string {
	w := wrapping{kek, dek}
	if was, known := r.wraps[blob]; known && was != w {
		return "these bytes wrap another DEK, or under another KEK"
	}
	r.wraps[blob] = w
	if _, known := r.born[dek]; !known {
		r.born[dek] = serials*r.keks[kek] + r.deks.of(dek)
	}
	return ""
}

// renewed numbers a fresh DEK of an emergency as the model does, after the one that it
// replaces. Rows that shared a DEK may share the fresh one; it replaces no other DEK.
func (r *run) renewed(e Event) string {
	if e.Effect != "Table.Replace" || e.BodyDEK == "" || r.born[e.BodyDEK] == 0 {
		return ""
	}
	row := r.rows.of(e.Source, "/", e.Row)
	if of, used := r.used[e.BodyDEK]; used && of != row && r.serial[row] != r.born[e.BodyDEK]%serials {
		return "the DEK replaces that of another row"
	} else if !used && r.serial[row] != 0 {
		r.born[e.BodyDEK] = r.born[e.BodyDEK]/serials*serials + r.serial[row]
	}
	return ""
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

func boolean(b bool) string { return strings.ToUpper(fmt.Sprint(b)) }

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
		source := sourceName(e.Source)
		total, ok := r.totals[e.Rotation][source]
		if !ok { // a source that has joined has as many segments as the others
			for _, n := range r.totals[e.Rotation] {
				total = n
			}
		}
		return "note", fmt.Sprintf(`a |-> "pass", n |-> %d, p |-> %q, s |-> %d, done |-> %s`,
			r.rots.of(e.Rotation), e.Sweep, r.part(source, e.Segment, total), boolean(e.Done))
	case "Store.MarkPublished":
		return "note", fmt.Sprintf(`a |-> "mark", seq |-> %d`, e.Seq)
	case "Vault.Put":
		return "note", fmt.Sprintf(`a |-> "store", seq |-> %d`, e.Seq)
	case "KMS.Create", "KMS.Claim", "KMS.Disable", "KMS.Enable":
		return r.admin(e)
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
	case Scan:
		return "scan", r.scan(e)
	default:
		return r.row(e)
	}
}

var leaseWord = map[string]string{
	"Store.PutLease": "lease", "Store.RenewLease": "renew", "Store.DropLease": "drop", "Store.Revoke": "revoke",
}

// scan is a page. One that an application read is no part of a pass, nor is one that may
// be stale or leave rows out.
func (r *run) scan(e Event) string {
	cursor := func(digest string) int {
		if digest == "" {
			return 0
		}
		return r.cursors.of(e.Source, "/", e.Segment, "/", e.Total, "/", digest)
	}
	var page []string
	for _, seen := range e.Page {
		k := "0"
		if seen.KEK != "" {
			k = r.kek(seen.KEK)
		}
		page = append(page, fmt.Sprintf("<<%d, %s, %d>>", r.rows.of(e.Source, "/", seen.Row), k, r.blob(seen.Blob)))
	}
	return fmt.Sprintf(`x |-> %d, src |-> %d, total |-> %d, f |-> %d, to |-> %d, fresh |-> %s, whole |-> %s, page |-> {%s}`,
		r.part(e.Source, e.Segment, e.Total), r.sources.of(sourceName(e.Source)), e.Total, cursor(e.From), cursor(e.To),
		boolean(e.Consistent), boolean(e.Consistent && !e.Filtered && e.Caller != Application), strings.Join(page, ", "))
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
		total := e.Segments[source]
		if r.totals[e.Rotation] == nil {
			r.totals[e.Rotation] = map[string]int{}
		}
		r.totals[e.Rotation][sourceName(source)] = total
		for i := range total {
			segments = append(segments, fmt.Sprint(r.part(source, i, total)))
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
		e.Phase, strings.Join(states, ", "), boolean(e.Moved), strings.Join(opened, ", "), e.Lock)
}

// admin is an effect on a KMS key. Keys of no rotation in this run (the first KEK,
// what somebody else made) are not in the model.
func (r *run) admin(e Event) (class, fields string) {
	if e.Effect == "KMS.Create" {
		n, ok := r.rots[e.Rotation]
		if _, known := r.keks[e.KEK]; !ok || known {
			return "", ""
		}
		r.made[[2]int{n, e.Attempt}]++
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
	case "Table.Insert", "Table.Update", Plant, "Table.Delete", "Table.Replace", Label:
	default:
		return "", ""
	}
	row := r.rows.of(e.Source, "/", e.Row)
	r.tables[row] = r.sources.of(sourceName(e.Source))
	k := r.kek(e.KEK)
	if e.KEK == "" {
		k = "0" // it says nothing of its KEK
	}
	w := r.wraps[e.Blob]
	under := r.born[w.dek]
	body := under
	switch {
	case e.BodyDEK != "":
		if body = r.born[e.BodyDEK]; body == 0 {
			body = r.deks.of(e.BodyDEK)
		}
	case e.Effect == "Table.Replace":
		body = 0 // untouched
	}
	if body != 0 && !e.Refused && e.Effect != "Table.Delete" && e.Effect != Label {
		r.serial[row], r.used[e.BodyDEK] = body%serials, row
	}
	return "rows", fmt.Sprintf(`a |-> %q, r |-> %d, k |-> %s, old |-> %s, e |-> %d, s |-> %d, was |-> %d, waspay |-> %d, blob |-> %d, pay |-> %d, real |-> %d, dek |-> %d, ct |-> %d, text |-> %d`,
		word, row, k, r.oldLabel(e), r.epoch(e.Epoch), shard,
		r.blob(e.Was), r.blob(e.WasBody), r.blob(e.Blob), r.blob(e.Body), r.keks[w.kek], under, body, r.blob(e.Text))
}

func (r *run) oldLabel(e Event) string {
	if e.Effect == Label && e.Old == "" {
		return "0"
	}
	return r.kek(e.Old)
}

// place is where the rows are: of each its source, and the segments that showed it.
func (r *run) place() string {
	out := make([]string, len(r.rows))
	for _, row := range r.rows {
		var parts []string
		for _, p := range slices.SortedFunc(maps.Keys(r.places[row]), func(a, b [2]int) int { return a[0] - b[0] }) {
			parts = append(parts, fmt.Sprintf("<<%d, %d>>", p[0], p[1]))
		}
		out[row-1] = fmt.Sprintf("[src |-> %d, in |-> {%s}]", r.tables[row], strings.Join(parts, ", "))
	}
	return "<<" + strings.Join(out, ", ") + ">>"
}
