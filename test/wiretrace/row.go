package wiretrace

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/trace"
)

func (t Table) id(key item) string {
	parts := make([]string, len(t.Keys))
	for n, k := range t.Keys {
		parts[n] = key[k].text()
	}
	return strings.Join(parts, "/")
}

// label is the id of the KEK that a row names, by key id or key ARN; "" in any other form.
func label(text string) string {
	if m := keyRef.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

var keyRef = regexp.MustCompile(`^(?:arn:[\w-]+:kms:[\w-]*:\d*:key/)?([\w-]+)$`)

// holds reports whether an item is a cipher row.
func (t Table) holds(i item) bool { return i.str(t.KEKID) != "" || len(i[t.WrappedDEK].B) > 0 }

// written fills an event from the attributes of an envelope.
func (t Table) written(e trace.Event, i item) trace.Event {
	e.KEK, e.Epoch = label(i.str(t.KEKID)), i.num(t.Epoch)
	e.Blob, e.Body = trace.Digest(i[t.WrappedDEK].B), trace.Digest(i[t.Ciphertext].B)
	return e
}

// opened adds to an event under which DEK the payload of a row opens and to what text, if
// the event is of the payload, and puts before it what the row wraps if that is news.
func (r *Recorder) opened(t Table, e trace.Event, row item) []trace.Event {
	var before []trace.Event
	if encctx, ok := bound(row, t.Context); ok {
		before = r.deks.open(row[t.WrappedDEK].B, encctx)
	}
	if e.Body != "" {
		e.BodyDEK = trace.UnknownDEK
		if all, ok := bound(row, t.Context, t.Bind); ok {
			e.BodyDEK, e.Text = r.deks.under(row[t.Ciphertext].B, row[t.WrappedDEK].B, all)
		}
	}
	return append(before, e)
}

// row is a row as it is now. What is recorded is served one call at a time, so it is
// what the last call has left.
func (r *Recorder) row(t Table, key item) (item, error) {
	sdk, err := key.toSDK(t.Keys)
	if err != nil {
		return nil, err
	}
	out, err := r.cfg.Behind.DynamoDB.GetItem(context.Background(), &dynamodb.GetItemInput{TableName: &t.Table, Key: sdk, ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, fmt.Errorf("read what was written: %w", err)
	}
	return fromSDK(out.Item), nil
}

// write is what a write of a row did. beside is the transaction that it is part of,
// nil if it is a call of its own.
func (r *Recorder) write(t Table, w write, caller string, beside []write) ([]trace.Event, error) {
	e := trace.Event{Source: t.Source, Row: t.id(w.key)}
	switch w.kind {
	case kindDelete:
		e.Effect = "Table.Delete"
		return []trace.Event{e}, nil
	case kindUpdate:
		return r.update(t, e, w, caller, beside)
	case kindPut:
		return r.insert(t, e, w, caller, beside)
	}
	return nil, nil // a check
}

// insert is what a put of a row did. A row that is put past everything is put by somebody
// who is not the library, whoever signs the call.
func (r *Recorder) insert(t Table, e trace.Event, w write, caller string, beside []write) ([]trace.Event, error) {
	if !t.holds(w.Item) { // no cipher row, or none any more
		e.Effect = "Table.Delete"
		return []trace.Event{e}, nil
	}
	e = t.written(e, w.Item)
	_, absent := w.requires()
	switch fresh := slices.ContainsFunc(t.Keys, func(k string) bool { return slices.Contains(absent, k) }); {
	case beside == nil && !fresh && !isFunction(caller):
		e.Effect, e.Caller = trace.Plant, trace.Person
	case beside == nil && isFunction(caller), fresh:
		e.Effect, e.Shard = "Table.Insert", r.fence(e.KEK, beside)
	default:
		return []trace.Event{unconditional(w, e)}, nil
	}
	return r.opened(t, e, w.Item), nil
}

// update is what an update of a row did. A rewrap knows what it replaces; what it
// has not conditioned on it has not read.
func (r *Recorder) update(t Table, e trace.Event, w write, caller string, beside []write) ([]trace.Event, error) {
	set, err := w.updates()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc([]string{t.KEKID, t.WrappedDEK, t.Ciphertext, t.Epoch}, func(name string) bool { _, ok := set[name]; return ok }) {
		if isFunction(caller) {
			return nil, errUnknown
		}
		return nil, nil // the envelope stays
	}
	equal, absent := w.requires()
	e = t.written(e, set)
	if _, wrapped := set[t.WrappedDEK]; !wrapped && e.KEK != "" {
		return r.label(t, e, w, equal, absent)
	}
	row, err := r.row(t, w.key)
	if err != nil {
		return nil, err
	}
	if _, read := equal[t.KEKID]; read || isFunction(caller) {
		e.Effect, e.Old = "Table.Replace", label(equal.str(t.KEKID))
		e.Was, e.WasBody = trace.Digest(equal[t.WrappedDEK].B), trace.Digest(equal[t.Ciphertext].B)
		return r.opened(t, e, row), nil
	}
	switch {
	case t.guards(w, set, equal, absent):
		e.Effect, e.Shard = "Table.Update", r.fence(e.KEK, beside)
	case caller == wire.Application:
		return []trace.Event{unconditional(w, e)}, nil
	case !t.holds(row): // another program, as below; no envelope is left
		return []trace.Event{{Effect: "Table.Delete", Source: e.Source, Row: e.Row}}, nil
	default:
		e = t.written(e, row)
		e.Effect = trace.Plant
	}
	return r.opened(t, e, row), nil
}

// guards reports whether an update of a row conditions on what an application must
// condition on: that the payload is the one that it has read, and that the row is of no
// later epoch.
func (t Table) guards(w write, set, equal item, absent []string) bool {
	if _, read := equal[t.Ciphertext]; !read {
		return false
	}
	if slices.Contains(absent, t.Epoch) {
		return true
	}
	for _, c := range split(w.ConditionExpression, " AND ") {
		name, value, ok := strings.Cut(strings.TrimSpace(c), " <= ")
		if n := w.ExpressionAttributeValues[value].N; ok && w.name(name) == t.Epoch && n != nil && *n == strconv.FormatInt(set.num(t.Epoch), 10) {
			return true
		}
	}
	return false
}

// unconditional is a write that does not condition on what it must. It may do no harm in
// this run, and overwrites in another what came in between.
func unconditional(w write, e trace.Event) trace.Event {
	where := w.pk()
	if e.Row != "" {
		where = e.Source + "/" + e.Row
	}
	return trace.Event{Effect: "Store.Apply", Event: trace.Unconditional, Actor: w.kind + " " + where, KEK: e.KEK, Epoch: e.Epoch}
}

// label is a row that is told which KEK it is under. It must have been read as it is.
// Another form of the same KEK's name changes nothing.
func (r *Recorder) label(t Table, e trace.Event, w write, equal item, absent []string) ([]trace.Event, error) {
	was, named := equal[t.KEKID]
	if named && was.S != nil && label(*was.S) == e.KEK {
		return nil, nil
	}
	if !named && !slices.Contains(absent, t.KEKID) || equal[t.WrappedDEK].B == nil {
		return []trace.Event{unconditional(w, e)}, nil
	}
	return []trace.Event{{Effect: trace.Label, Source: e.Source, Row: e.Row, Old: label(equal.str(t.KEKID)), KEK: e.KEK, Was: trace.Digest(equal[t.WrappedDEK].B)}}, nil
}

// fence is the shard of a KEK that a transaction requires to be open.
func (r *Recorder) fence(id string, all []write) int {
	for _, w := range all {
		equal, _ := w.requires()
		if w.kind != kindCheck || tableName(w.TableName) != r.cfg.ControlTable || w.pk() != pkFence+id || equal.str("state") != "open" {
			continue
		}
		if n, err := strconv.Atoi(w.key.str("sk")); err == nil {
			return n
		}
	}
	return trace.Unfenced
}

// refused is what a transaction that was cancelled says of the fence and of rows.
// It has no effect otherwise.
func (r *Recorder) refused(e wire.Exchange) ([]trace.Event, error) {
	all, _, err := writes(e.Body)
	if err != nil {
		return nil, err
	}
	var answer struct{ CancellationReasons []struct{ Code string } }
	if err := unmarshal(e.Answer, &answer); err != nil {
		return nil, err
	}
	failed := func(i int) bool {
		return i < len(answer.CancellationReasons) && answer.CancellationReasons[i].Code == "ConditionalCheckFailed"
	}
	shut := false
	for i, w := range all {
		shut = shut || w.kind == kindCheck && strings.HasPrefix(w.pk(), pkFence) && failed(i)
	}
	var events []trace.Event
	for i, w := range all {
		t, ok := r.table(w.TableName)
		if !ok || w.kind != kindPut || !failed(i) && !shut || w.Item.str(t.KEKID) == "" {
			continue
		}
		ev := t.written(trace.Event{Effect: "Table.Insert", Source: t.Source, Row: t.id(w.key), Refused: true}, w.Item)
		ev.Shard = r.fence(ev.KEK, all)
		events = append(events, r.opened(t, ev, w.Item)...)
	}
	return events, nil
}
