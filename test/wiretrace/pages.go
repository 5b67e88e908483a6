package wiretrace

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// scan is a page of a source that was read. Which rows it shows is what a pass rests on:
// one that may be stale, or that leaves rows out, says so.
func (r *Recorder) scan(e wire.Exchange) ([]trace.Event, error) {
	var in struct {
		action
		Segment, TotalSegments                                    int
		ExclusiveStartKey                                         item
		ConsistentRead                                            bool
		FilterExpression, ProjectionExpression, IndexName, Select string
		ScanFilter, AttributesToGet                               json.RawMessage // of older requests
	}
	if err := unmarshal(e.Body, &in); err != nil {
		return nil, err
	}
	t, ok := r.table(in.TableName)
	if !ok {
		return nil, nil // the control table: a step that finds items there conditions its write on each of them
	}
	var out struct {
		Items            []item
		LastEvaluatedKey item
	}
	if err := unmarshal(e.Answer, &out); err != nil {
		return nil, err
	}
	whole := in.FilterExpression == "" && in.IndexName == "" && in.ScanFilter == nil && in.AttributesToGet == nil &&
		(in.Select == "" || in.Select == "ALL_ATTRIBUTES" || in.Select == "SPECIFIC_ATTRIBUTES")
	if in.ProjectionExpression != "" {
		var shown []string
		for _, name := range strings.Split(in.ProjectionExpression, ",") {
			shown = append(shown, in.name(name))
		}
		for _, name := range append(slices.Clone(t.Keys), t.KEKID, t.WrappedDEK) {
			whole = whole && slices.Contains(shown, name)
		}
	}
	ev := trace.Event{
		Effect: trace.Scan, Source: t.Source, Segment: in.Segment, Total: max(in.TotalSegments, 1),
		From: t.cursor(in.ExclusiveStartKey), To: t.cursor(out.LastEvaluatedKey), Consistent: in.ConsistentRead, Filtered: !whole,
	}
	for _, i := range out.Items {
		if t.holds(i) {
			ev.Page = append(ev.Page, trace.Seen{Row: t.id(i), KEK: label(i.str(t.KEKID)), Blob: trace.Digest(i[t.WrappedDEK].B)})
		}
	}
	return []trace.Event{ev}, nil
}

// cursor names a place between two rows; "" is the beginning and the end.
func (t Table) cursor(key item) string {
	if len(key) == 0 {
		return ""
	}
	return trace.Digest([]byte(t.id(key)))
}

// listing is a page of keys of the corpus, whose entries are being read one by one. It
// becomes the page of a scan when the last of them was read.
type listing struct {
	page trace.Event
	keys []string
	seen map[string]trace.Seen // by key; without a row, if it was gone or cannot be read as an entry
}

// listed begins a page of the corpus.
func (r *Recorder) listed(e wire.Exchange) ([]trace.Event, error) {
	var out struct {
		Contents              []struct{ Key string }
		IsTruncated           bool
		NextContinuationToken string
	}
	if err := xml.Unmarshal(e.Answer, &out); err != nil {
		return nil, errUnknown
	}
	l := &listing{seen: map[string]trace.Seen{}, page: trace.Event{
		Effect: trace.Scan, Caller: e.Caller, Source: r.cfg.Corpus, Total: 1, Consistent: true,
		Filtered: e.Query.Get("prefix") != r.cfg.CorpusPrefix || e.Query.Get("delimiter") != "" || e.Query.Get("encoding-type") != "",
	}}
	switch token, after := e.Query.Get("continuation-token"), e.Query.Get("start-after"); {
	case token != "":
		l.page.From = trace.Digest([]byte(token))
	case after != "":
		l.page.From = trace.Digest([]byte(after))
	}
	last := out.NextContinuationToken
	for _, o := range out.Contents {
		if last = o.Key; strings.HasSuffix(o.Key, ".json") {
			l.keys = append(l.keys, o.Key)
		}
	}
	if out.IsTruncated {
		l.page.To = trace.Digest([]byte(last))
	}
	open := r.lists[e.AccessKey]
	if len(open) == maxListings {
		open = open[1:] // nobody will read the rest of it
	}
	r.lists[e.AccessKey] = append(open, l)
	return r.completed(e.AccessKey), nil
}

// maxListings is how many pages of the corpus a process reads at once, at most.
const maxListings = 4

// read is an entry of the corpus that was read, or found gone.
func (r *Recorder) read(e wire.Exchange) ([]trace.Event, error) {
	if e.Query.Has("versionId") || e.Header.Get("Range") != "" {
		return nil, nil // not the entry as it is
	}
	var seen trace.Seen
	var k known
	if e.Status != http.StatusNotFound && unmarshal(e.Answer, &k) == nil { // an object that is not an entry names no KEK
		seen = trace.Seen{Row: e.Key, KEK: label(k.KEK), Blob: trace.Digest(k.WrappedDEK)}
	}
	for _, l := range r.lists[e.AccessKey] {
		if _, done := l.seen[e.Key]; !done && slices.Contains(l.keys, e.Key) {
			l.seen[e.Key] = seen
			break
		}
	}
	return r.completed(e.AccessKey), nil
}

// overwritten says of the pages that are being read, and show an entry that is now
// written, that they show no one state.
func (r *Recorder) overwritten(key string) {
	for _, lists := range r.lists {
		for _, l := range lists {
			if _, done := l.seen[key]; done {
				l.page.Consistent = false
			}
		}
	}
}

// completed are the pages of a process whose entries were all read.
func (r *Recorder) completed(process string) []trace.Event {
	var events []trace.Event
	r.lists[process] = slices.DeleteFunc(r.lists[process], func(l *listing) bool {
		if len(l.seen) < len(l.keys) {
			return false
		}
		for _, k := range l.keys {
			if s := l.seen[k]; s.Row != "" {
				l.page.Page = append(l.page.Page, s)
			}
		}
		events = append(events, l.page)
		return true
	})
	return events
}
