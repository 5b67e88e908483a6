package wiretrace

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// What the wire calls the items of the control table (docs/design.md, section 3).
const (
	pkPointer    = "POINTER"
	pkLock       = "LOCK"
	pkKEK        = "KEK#"
	pkFence      = "FENCE#"    // of rows
	pkKeyFence   = "DEKFENCE#" // of records of data keys, which spec/rotation.tla does not know
	pkRotation   = "ROTATION#"
	pkLease      = "LEASE#"
	pkCheckpoint = "CHECKPOINT#"
	pkAudit      = "AUDIT"
	pkAuditHead  = "AUDIT_HEAD"
	pkRegistry   = "REGISTRY"
	pkSource     = "SOURCE"
	pkMark       = "MARK"
)

// beside are the items of which the model knows nothing, by the beginning of their pk, and
// who may write them how: the functions whose role says so in template.yaml, the
// commands that a person runs, and the library. Nobody deletes one. A write by anybody
// else is an unrecorded change, which no action explains.
var beside = []struct {
	pk   string
	kind string
	by   []string
}{
	{"ANCHOR", kindPut, []string{"anchor", "preflight", wire.Person}}, // matter ops anchor
	{"DRILL#", kindPut, []string{"retire", wire.Person}},
	{"ANNOUNCEMENT#", kindPut, []string{"preflight", wire.Person}},
	{"APPROVAL#", kindPut, []string{"approve", wire.Person}},
	{"PAUSE#", kindPut, []string{wire.Person}},
	{"HEALTH#", kindUpdate, []string{"health", wire.Person}},
	{pkMark, kindPut, []string{wire.Application}}, // it says where it writes; a change of the registry removes one
}

// isBeside reports whether a write is of such an item, and whether its caller may make it.
func isBeside(w write, caller string) (is, may bool) {
	for _, b := range beside {
		if strings.HasPrefix(w.pk(), b.pk) {
			return true, w.kind == kindCheck || w.kind == b.kind && slices.Contains(b.by, caller)
		}
	}
	return false, false
}

// The kinds of an action.
const (
	kindPut    = "Put"
	kindUpdate = "Update"
	kindDelete = "Delete"
	kindCheck  = "ConditionCheck"
)

// write is an action of a kind. In a put Key is not set; key is, in all of them.
type write struct {
	action
	kind string
	key  item
}

func (w write) pk() string { return w.key.str("pk") }

func of(kind string, a action) write {
	if kind == kindPut {
		return write{a, kind, a.Item}
	}
	return write{a, kind, a.Key}
}

// item is what a call to DynamoDB did.
func (r *Recorder) item(e wire.Exchange) ([]trace.Event, error) {
	kind := map[string]string{"PutItem": kindPut, "UpdateItem": kindUpdate, "DeleteItem": kindDelete}[e.Operation]
	switch {
	case e.Operation == "Query":
		return r.query(e)
	case e.Operation == "Scan":
		return r.scan(e)
	case e.Operation == "TransactWriteItems":
		return r.transaction(e)
	case kind == "":
		return nil, errUnknown
	}
	var a action
	if err := unmarshal(e.Body, &a); err != nil {
		return nil, err
	}
	w := of(kind, a)
	if t, ok := r.table(a.TableName); ok {
		return r.write(t, w, e.Caller, nil)
	}
	if tableName(a.TableName) != r.cfg.ControlTable {
		return nil, nil
	}
	return r.control(w, e.Caller)
}

// writes are the parts of a transaction.
func writes(body []byte) (all []write, token string, err error) {
	var in struct {
		ClientRequestToken string
		TransactItems      []struct{ Put, Update, Delete, ConditionCheck *action }
	}
	if err := unmarshal(body, &in); err != nil {
		return nil, "", err
	}
	for _, i := range in.TransactItems {
		switch {
		case i.Put != nil:
			all = append(all, of(kindPut, *i.Put))
		case i.Update != nil:
			all = append(all, of(kindUpdate, *i.Update))
		case i.Delete != nil:
			all = append(all, of(kindDelete, *i.Delete))
		case i.ConditionCheck != nil:
			all = append(all, of(kindCheck, *i.ConditionCheck))
		default:
			return nil, "", errUnknown
		}
	}
	return all, in.ClientRequestToken, nil
}

// transaction is what TransactWriteItems did. The SDK repeats a transaction whose
// answer was lost under the same token, and DynamoDB answers without doing it again.
func (r *Recorder) transaction(e wire.Exchange) ([]trace.Event, error) {
	all, token, err := writes(e.Body)
	if err != nil || token != "" && r.tokens[token] {
		return nil, err
	}
	r.tokens[token] = true
	var control []write
	var events []trace.Event
	for _, w := range all {
		if t, ok := r.table(w.TableName); ok {
			made, err := r.write(t, w, e.Caller, all)
			if err != nil {
				return nil, err
			}
			events = append(events, made...)
		} else if tableName(w.TableName) == r.cfg.ControlTable {
			control = append(control, w)
		}
	}
	if !slices.ContainsFunc(control, func(w write) bool { return w.kind != kindCheck }) {
		return events, nil
	}
	c, err := r.change(control, e.Caller)
	if err != nil {
		return nil, err
	}
	return append(events, c), nil
}

// change is what a transaction did to the control table. Without a record that it
// appends to the audit chain it is unrecorded, and without conditions on what it
// rests on unconditional, whatever else is right.
func (r *Recorder) change(all []write, caller string) (trace.Event, error) {
	e := trace.Event{Effect: "Store.Apply", Event: trace.Unrecorded}
	var head item
	var entry audit.Entry
	changed := false
	for _, w := range all {
		is, may := isBeside(w, caller)
		switch pk := w.pk(); {
		case pk == pkAudit && w.kind == kindPut:
			var err error
			if entry, err = audit.Parse(w.Item["record"].B); err != nil {
				return e, err
			}
			if w.Item.str("sk") != fmt.Sprintf("%012d", entry.Record.Seq) {
				return e, fmt.Errorf("record %d is stored as %s", entry.Record.Seq, w.Item.str("sk"))
			}
		case pk == pkAuditHead && w.kind == kindUpdate:
			var err error
			if head, err = w.updates(); err != nil {
				return e, err
			}
		case isSpent(w) && caller != "verify" && caller != wire.Person:
			return unrecorded(w)[0], nil
		case isSpent(w) && !keepsPromises(w, all):
			return unconditional(w, trace.Event{}), nil
		case is && may, w.kind == kindCheck, isSpent(w):
		case is && !ofRegistry(w):
			return unrecorded(w)[0], nil
		default:
			changed = true
			if err := r.part(&e, w); err != nil {
				return e, err
			}
		}
	}
	seq := entry.Record.Seq
	if seq == 0 || head.num("seq") != seq || head.str("hash") != entry.Hash || entry.Record.Chain != r.cfg.Stack ||
		changed && entry.Record.Rotation != e.Rotation {
		return e, nil
	}
	r.records[seq] = entry
	if !changed {
		return trace.Event{Effect: "Store.Record", Event: entry.Record.Type, Seq: seq}, nil
	}
	e.Event, e.Actor, e.Seq = entry.Record.Type, entry.Record.Step, seq
	if !conditional(e, all) {
		e.Event = trace.Unconditional
	}
	return e, nil
}

// isSpent reports the removal of a checkpoint or of a fence shard. The model knows them as
// passes that are over and shards that are shut, and nothing changes in it.
func isSpent(w write) bool {
	return w.kind == kindDelete && (strings.HasPrefix(w.pk(), pkCheckpoint) || isFence(w.pk()))
}

// isFence reports the key of a shard of either fence.
func isFence(pk string) bool {
	return strings.HasPrefix(pk, pkFence) || strings.HasPrefix(pk, pkKeyFence)
}

// fencedKEK is the KEK in the key of a shard.
func fencedKEK(pk string) string {
	_, id, _ := strings.Cut(pk, "#")
	return id
}

// keepsPromises reports whether such a removal conditions on what makes it harmless: a
// checkpoint on the revision that was read, a shard on being sealed and its KEK on being
// retired.
func keepsPromises(w write, all []write) bool {
	equal, _ := w.requires()
	if strings.HasPrefix(w.pk(), pkCheckpoint) {
		return equal["rev"].N != nil
	}
	retired := func(c write) bool {
		state, _ := c.requires()
		return c.kind == kindCheck && c.pk() == pkKEK+fencedKEK(w.pk()) && state.str("state") == "retired"
	}
	return equal.str("state") == "sealed" && slices.ContainsFunc(all, retired)
}

// part adds to a change what one of its writes did.
func (r *Recorder) part(e *trace.Event, w write) error {
	pk := w.pk()
	switch {
	case ofRegistry(w): // the record's type says what was done to the registry
		return nil
	case pk == pkLock && w.kind == kindPut:
		e.Lock = trace.LockTaken
		return nil
	case pk == pkLock && w.kind == kindDelete:
		e.Lock = trace.LockReleased
		return nil
	case w.kind != kindPut:
		return fmt.Errorf("%s of %s: %w", w.kind, pk, errUnknown)
	}
	i := w.Item
	switch {
	case pk == pkPointer:
		e.Moved, e.KEK, e.Epoch = true, i.str("kek_id"), i.num("epoch")
	case strings.HasPrefix(pk, pkRotation) && i.str("ended_by") != "":
		e.Ended, e.EndedPhase = pk[len(pkRotation):], i.str("phase")
	case strings.HasPrefix(pk, pkRotation):
		e.Rotation, e.Mode, e.Phase, e.Attempt = pk[len(pkRotation):], i.str("mode"), i.str("phase"), int(i.num("attempt"))
		e.Old = i.str("old_kek_id")
		if !e.Moved {
			e.KEK = i.str("new_kek_id")
		}
		if i.num("rev") == 1 {
			var err error
			if e.Segments, err = r.segments(i); err != nil {
				return err
			}
		}
	case strings.HasPrefix(pk, pkKEK):
		if e.States == nil {
			e.States = map[string]string{}
		}
		e.States[pk[len(pkKEK):]] = i.str("state")
	case strings.HasPrefix(pk, pkFence) && i.str("state") == "open":
		shard, err := strconv.Atoi(i.str("sk"))
		if err != nil {
			return fmt.Errorf("fence shard: %w", err)
		}
		e.Opened = append(e.Opened, shard)
	case isFence(pk) && i.str("state") == "sealed": // of a KEK that is registered shut
	case strings.HasPrefix(pk, pkKeyFence) && i.str("state") == "open":
	default:
		return fmt.Errorf("%s of %s in a transaction: %w", w.kind, pk, errUnknown)
	}
	return nil
}

// segments is how many parts each source that a rotation has frozen is worked on in, by
// the name that checkpoints know it by: each new definition begins from the start.
func (r *Recorder) segments(rotation item) (map[string]int, error) {
	var sources []struct {
		Name, Kind string
		Generation int
	}
	if err := unmarshal([]byte(rotation.str("sources")), &sources); err != nil {
		return nil, fmt.Errorf("sources: %w", err)
	}
	out := map[string]int{}
	for _, s := range sources {
		if !r.follows(s.Name) {
			continue
		}
		if s.Generation > 0 {
			s.Name = fmt.Sprintf("%s~%d", s.Name, s.Generation)
		}
		out[s.Name] = 1
		if s.Kind != "corpus" {
			out[s.Name] = max(int(rotation.num("segments")), 1)
		}
	}
	return out, nil
}

// follows reports whether the rows of a source are recorded, under whatever definition. A
// table that becomes a source during the run is not: nobody has looked at its rows when the
// recording began, and neither its rows nor its passes are part of the run.
func (r *Recorder) follows(source string) bool {
	name, _, _ := strings.Cut(source, "~")
	return name == r.cfg.Corpus && name != "" || slices.ContainsFunc(r.cfg.Tables, func(t Table) bool { return t.Source == name })
}

// control is what a write of one item of the control table did.
func (r *Recorder) control(w write, caller string) ([]trace.Event, error) {
	pk, i := w.pk(), w.Item
	is, may := isBeside(w, caller)
	switch {
	case is && may:
		return nil, nil
	case is:
		return unrecorded(w), nil
	case strings.HasPrefix(pk, pkLease):
		return r.lease(w, caller)
	case strings.HasPrefix(pk, pkFence) && w.kind == kindPut && i.str("state") == "sealed":
		shard, err := strconv.Atoi(i.str("sk"))
		return []trace.Event{{Effect: "Store.SealFence", KEK: pk[len(pkFence):], Shard: shard}}, err
	case strings.HasPrefix(pk, pkKeyFence) && w.kind == kindPut && i.str("state") == "sealed" && slices.Contains([]string{"drain", wire.Person}, caller):
		return nil, nil // the seal that follows requires it
	case strings.HasPrefix(pk, pkCheckpoint) && w.kind == kindPut:
		return r.checkpoint(w)
	case pk == pkAuditHead && w.kind == kindUpdate:
		set, err := w.updates()
		if n, ok := set["published_seq"]; err == nil && ok && n.N != nil && len(set) == 1 {
			if !forward(w) {
				return []trace.Event{unconditional(w, trace.Event{})}, nil
			}
			return []trace.Event{{Effect: "Store.MarkPublished", Seq: set.num("published_seq")}}, nil
		}
		return unrecorded(w), err
	default:
		return unrecorded(w), nil
	}
}

// forward reports whether a mark of what is published conditions on not going back, nor
// past the head.
func forward(w write) bool {
	_, value, _ := strings.Cut(w.UpdateExpression, "=")
	value = strings.TrimSpace(value)
	condition := w.ConditionExpression
	for token, name := range w.ExpressionAttributeNames {
		condition = strings.ReplaceAll(condition, token, name)
	}
	return operand.MatchString(value) &&
		condition == "seq >= "+value+" AND (attribute_not_exists(published_seq) OR published_seq < "+value+")"
}

// unrecorded is what no single write may do.
func unrecorded(w write) []trace.Event {
	set := w.Item
	if w.kind == kindUpdate {
		set, _ = w.updates()
	}
	return []trace.Event{{Effect: "Store.Apply", Event: trace.Unrecorded, Actor: w.kind + " " + w.pk(), KEK: set.str("kek_id"), Epoch: set.num("epoch")}}
}

// lease is what a write of a lease did. No function holds one: what it deletes it
// revokes, and must condition on what it judged.
func (r *Recorder) lease(w write, caller string) ([]trace.Event, error) {
	e := trace.Event{Actor: w.key.str("sk"), KEK: w.pk()[len(pkLease):]}
	equal, _ := w.requires()
	switch _, judged := equal["expires_at"]; {
	case w.kind == kindPut:
		e.Effect, e.Expires = "Store.PutLease", w.Item.num("expires_at")
	case w.kind == kindUpdate:
		set, err := w.updates()
		if err != nil {
			return nil, err
		}
		e.Effect, e.Expires = "Store.RenewLease", set.num("expires_at")
	case judged || isFunction(caller):
		e.Effect, e.Expires = "Store.Revoke", equal.num("expires_at")
	default:
		e.Effect = "Store.DropLease"
	}
	return []trace.Event{e}, nil
}

// checkpoint is CHECKPOINT#<rotation>#<source>#<pass>, <segment>. It conditions on the
// revision that was read, or that there was none.
func (r *Recorder) checkpoint(w write) ([]trace.Event, error) {
	pk, i := w.pk(), w.Item
	if equal, absent := w.requires(); equal["rev"].N == nil && !slices.Contains(absent, "pk") {
		return []trace.Event{unconditional(w, trace.Event{})}, nil
	}
	rotation, rest, ok := strings.Cut(pk[len(pkCheckpoint):], "#")
	last := strings.LastIndex(rest, "#")
	segment, err := strconv.Atoi(i.str("sk"))
	if !ok || last < 0 || err != nil {
		return nil, fmt.Errorf("checkpoint %s/%s: %w", pk, i.str("sk"), errUnknown)
	}
	if !r.follows(rest[:last]) {
		return nil, nil
	}
	done := i["done"].BOOL != nil && *i["done"].BOOL
	return []trace.Event{{Effect: "Store.SaveCheckpoint", Rotation: rotation, Source: rest[:last], Sweep: rest[last+1:], Segment: segment, Done: done}}, nil
}

// query is a look at all the leases on a KEK, if it is a consistent one and sees
// them in one page.
func (r *Recorder) query(e wire.Exchange) ([]trace.Event, error) {
	var in struct {
		action
		ConsistentRead                           bool
		KeyConditionExpression, FilterExpression string
		ExclusiveStartKey                        item
	}
	if err := unmarshal(e.Body, &in); err != nil {
		return nil, err
	}
	in.ConditionExpression = in.KeyConditionExpression
	equal, _ := in.requires()
	id, ok := strings.CutPrefix(equal.str("pk"), pkLease)
	if tableName(in.TableName) != r.cfg.ControlTable || !ok {
		return nil, nil // records, checkpoints, marks: the writes that follow condition on what was read
	}
	var out struct{ LastEvaluatedKey json.RawMessage }
	if err := unmarshal(e.Answer, &out); err != nil {
		return nil, err
	}
	if len(in.ExclusiveStartKey) > 0 || len(out.LastEvaluatedKey) > 0 {
		return nil, fmt.Errorf("leases in several pages: %w", errUnknown)
	}
	whole := in.ConsistentRead && in.FilterExpression == "" && !strings.Contains(in.KeyConditionExpression, "sk")
	if !whole {
		return nil, nil
	}
	return []trace.Event{{Effect: "Store.Leases", KEK: id}}, nil
}
