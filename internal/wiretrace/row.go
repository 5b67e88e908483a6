package wiretrace

import (
	"slices"
	"strconv"
	"strings"

	"github.com/matter-ops/kms-rotation/internal/localaws/wire"
	"github.com/matter-ops/kms-rotation/spec/trace"
)

func (t Table) id(key item) string {
	parts := make([]string, len(t.Keys))
	for n, k := range t.Keys {
		parts[n] = key[k].text()
	}
	return strings.Join(parts, "/")
}

// written fills an event from the attributes of an envelope.
func (t Table) written(e trace.Event, i item) trace.Event {
	e.KEK, e.Epoch = keyID(i.str(t.KEKID)), i.num(t.Epoch) // a row may name its KEK by ARN
	e.Blob, e.Body = trace.Digest(i[t.WrappedDEK].B), trace.Digest(i[t.Ciphertext].B)
	return e
}

// row is what a write of a row did. beside is the transaction that it is part of,
// nil if it is a call of its own.
func (r *Recorder) row(t Table, w write, caller string, beside []write) ([]trace.Event, error) {
	e := trace.Event{Source: t.Source, Row: t.id(w.key), Actor: caller}
	switch w.kind {
	case kindDelete:
		e.Effect = "Table.Delete"
		return []trace.Event{e}, nil
	case kindUpdate:
		return r.update(t, e, w, beside)
	case kindPut:
	default:
		return nil, nil // a check
	}
	if w.Item.str(t.KEKID) == "" { // no cipher row, or one that says nothing of its KEK yet
		r.bare[e.Source+"/"+e.Row] = trace.Digest(w.Item[t.Ciphertext].B)
		return nil, nil
	}
	e = t.written(e, w.Item)
	if _, absent := w.requires(); beside == nil && len(absent) == 0 && caller == "" {
		e.Effect = trace.Plant // somebody puts a row as it is, past everything
		return []trace.Event{e}, nil
	}
	e.Effect, e.Shard = "Table.Insert", r.fence(e.KEK, beside)
	return []trace.Event{e}, nil
}

// update is what an update of a row did. A rewrap knows what it replaces; what it
// has not conditioned on it has not read.
func (r *Recorder) update(t Table, e trace.Event, w write, beside []write) ([]trace.Event, error) {
	set, err := w.updates()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc([]string{t.KEKID, t.WrappedDEK, t.Ciphertext, t.Epoch}, func(name string) bool { _, ok := set[name]; return ok }) {
		return nil, nil // the envelope stays
	}
	equal, absent := w.requires()
	e = t.written(e, set)
	if _, wrapped := set[t.WrappedDEK]; !wrapped && e.KEK != "" {
		return r.label(t, e, equal, absent)
	}
	if _, read := equal[t.KEKID]; !read && e.Actor == "" {
		e.Effect, e.Shard = "Table.Update", r.fence(e.KEK, beside)
		return []trace.Event{e}, nil
	}
	e.Effect, e.Old = "Table.Replace", keyID(equal.str(t.KEKID))
	e.Was, e.WasBody = trace.Digest(equal[t.WrappedDEK].B), trace.Digest(equal[t.Ciphertext].B)
	return []trace.Event{e}, nil
}

// label is a row that is told which KEK it is under: from here on it is one that the
// model knows. It must have been read as it is. Another form of the same KEK's name
// changes nothing.
func (r *Recorder) label(t Table, e trace.Event, equal item, absent []string) ([]trace.Event, error) {
	was, named := equal[t.KEKID]
	if named && was.S != nil && keyID(*was.S) == e.KEK {
		return nil, nil
	}
	if !named && !slices.Contains(absent, t.KEKID) || equal[t.WrappedDEK].B == nil {
		e.Effect = "Table.Update" // not on condition of what was read
		return []trace.Event{e}, nil
	}
	e.Effect, e.Blob, e.Body = trace.Plant, trace.Digest(equal[t.WrappedDEK].B), r.bare[e.Source+"/"+e.Row]
	return []trace.Event{e}, nil
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
		events = append(events, ev)
	}
	return events, nil
}
