package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// TestCheckSetBack: a record in the bucket after the table's last one is a sign of a
// restore if the table's head stays where it was.
func TestCheckSetBack(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, make([]string, maxTries+3)...)
	head := func(seq int) audit.Head { return own[seq-1].Head() }
	forged := chained(t, audit.Head{Seq: 2, Hash: strings.Repeat("a", 64)}, 0, "")[0]
	var each []audit.Head // a record is made after each look
	for n := range maxTries + 1 {
		each = append(each, head(n+1), head(n+2))
	}
	whole := func(s *shelf) { s.keep("", own...) }
	for _, tc := range []struct {
		name  string
		heads []audit.Head
		errs  []error
		fill  func(s *shelf)
		fails string // Get of this key
		kind  Kind   // "" green
		field string
	}{
		{name: "the last record", heads: []audit.Head{head(2)}, fill: func(s *shelf) { s.keep("", own[:2]...) }},
		{name: "a record after it", heads: []audit.Head{head(2)}, fill: whole, kind: AuditTampered, field: "AUDIT_HEAD"},
		{name: "a record that was made meanwhile", heads: []audit.Head{head(2), head(3)}, fill: func(s *shelf) { s.keep("", own[:3]...) }},
		{name: "a record that was made meanwhile, and one after it", heads: []audit.Head{head(2), head(3)}, fill: whole, kind: AuditTampered, field: "AUDIT_HEAD"},
		{name: "another each time", heads: each[:2*maxTries], fill: whole, kind: Transient, field: "audit head"},
		{name: "another each time but the last", heads: each[:2*maxTries], fill: func(s *shelf) { s.keep("", own[:maxTries]...) }},
		{name: "an object that is no record", heads: []audit.Head{head(2)}, fill: func(s *shelf) { s.keep("", own[:2]...); s.objects[keyIn("", 3)] = []byte("{}") }},
		{name: "a record that does not follow", heads: []audit.Head{head(2)}, fill: func(s *shelf) { s.keep("", own[:2]...); s.keep("", forged) }},
		{name: "the head cannot be read", heads: []audit.Head{{}}, errs: []error{errShelf}, fill: whole, kind: Transient, field: "audit head"},
		{name: "the head cannot be read again", heads: []audit.Head{head(2), {}}, errs: []error{nil, errShelf}, fill: whole, kind: Transient, field: "audit head"},
		{name: "the bucket cannot be read", heads: []audit.Head{head(2)}, fill: whole, fails: keyIn("", 3), kind: Transient, field: "audit bucket"},
	} {
		var bucket shelf
		tc.fill(&bucket)
		bucket.broken = tc.fails
		s := Steps{Deps: Deps{Outbox: &restless{chain: line, heads: tc.heads, errs: tc.errs}, Vault: &bucket}}
		if err := s.checkSetBack(t.Context()); tc.kind != "" {
			isError(t, tc.name, err, tc.kind, tc.field)
		} else if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// TestCheckForgotten: a generation that begins where the chain's own record is in the way
// is a sign of a restore, until doctor has recorded after that what was forgotten.
func TestCheckForgotten(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3", "a=4")
	after := chained(t, own[1].Head(), 10, "b=3", "b=4", "b=5", "b=6")
	first := chained(t, audit.Genesis(line), 10, "b=1", "b=2")
	apart := chained(t, audit.Head{Seq: 2, Hash: strings.Repeat("a", 64)}, 0, "c=3")
	repair := func(from audit.Head, typed string, forgotten string) audit.Entry {
		e, err := audit.Next(line, from, at(20), audit.Event{ID: "x", Type: typed, Body: map[string]string{audit.BodyForgotten: forgotten}})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	g1, g2 := generation(1), generation(2)
	from := func(pairs ...any) (g audit.Generations) {
		for i := 0; i < len(pairs); i += 2 {
			g = g.With(audit.Generation{ID: pairs[i].(string), From: int64(pairs[i+1].(int))})
		}
		return g
	}
	for _, tc := range []struct {
		name  string
		at    audit.Generations
		last  int64
		fill  func(s *shelf)
		fails string // Get of this key
		want  string // the generation that is named, or "fails"
	}{
		{name: "no generation", last: 4, fill: func(s *shelf) { s.keep("", own...) }},
		{name: "its place is free", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own[:2]...); s.keep(g1, after...) }},
		{name: "no record is in its place", at: from(g1, 3), last: 6, fill: func(s *shelf) {
			s.keep("", own[:2]...)
			s.keep(g1, after...)
			s.objects[keyIn("", 3)] = []byte("{}")
		}},
		{name: "another's record is in its place", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own[:2]...); s.keep("", apart...); s.keep(g1, after...) }},
		{name: "the chain's own is in its place", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after...) }, want: g1},
		{name: "and the record before it is gone", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own[0], own[2], own[3]); s.keep(g1, after...) }, want: g1},
		{name: "and both around its beginning are gone", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own[0], own[2], own[3]); s.keep(g1, after[1:]...) }},
		{name: "the chain's first is in its place", at: from(g1, 1), last: 2, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, first...) }, want: g1},
		{name: "another's first is in its place", at: from(g1, 1), last: 2, fill: func(s *shelf) {
			s.keep(g1, first...)
			s.keep("", chained(t, audit.Head{Hash: strings.Repeat("a", 64)}, 0, "")...)
		}},
		{name: "and its first is gone", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after[1:]...) }, want: g1},
		{name: "the chain's first is in its place and its own is gone", at: from(g1, 1), last: 2, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, first[1:]...) }, want: g1},
		{name: "the chain's second is in its place", at: from(g1, 2), last: 3, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, chained(t, own[0].Head(), 10, "b=2", "b=3")...)
		}, want: g1},
		{name: "its place is free and nothing else can be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own[:2]...) }, fails: keyIn("", 2)},
		{name: "recorded at once", at: from(g1, 3), last: 3, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, repair(own[1].Head(), EventRepaired, "x")) }},
		{name: "recorded last", at: from(g1, 3), last: 5, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[:2]...)
			s.keep(g1, repair(after[1].Head(), EventRepaired, "x"))
		}},
		{name: "recorded, past one that is gone", at: from(g1, 3), last: 5, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[0], repair(after[1].Head(), EventRepaired, "x"))
		}},
		{name: "recorded after the table's last", at: from(g1, 3), last: 4, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[:2]...)
			s.keep(g1, repair(after[1].Head(), EventRepaired, "x"))
		}, want: g1},
		{name: "recorded before it", at: from(g1, 3), last: 6, fill: func(s *shelf) {
			second := repair(own[0].Head(), EventRepaired, "x")
			s.keep("", own[0], second)
			s.keep("", chained(t, second.Head(), 3, "a=3")...)
			s.keep(g1, chained(t, second.Head(), 10, "b=3", "b=4", "b=5", "b=6")...)
		}, want: g1},
		{name: "a repair of nothing forgotten", at: from(g1, 3), last: 3, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, repair(own[1].Head(), EventRepaired, "")) }, want: g1},
		{name: "another record that says so", at: from(g1, 3), last: 3, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, repair(own[1].Head(), "x", "x")) }, want: g1},
		{name: "the second of two", at: from(g1, 3, g2, 5), last: 6, fill: func(s *shelf) {
			s.keep("", own[:2]...)
			s.keep(g1, after...)
			s.keep(g2, chained(t, after[1].Head(), 30, "d=5", "d=6")...)
		}, want: g2},
		{name: "the first of two, recorded in the second", at: from(g1, 3, g2, 5), last: 5, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[:2]...)
			s.keep(g2, repair(after[1].Head(), EventRepaired, "x"))
		}},
		{name: "its place cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after...) }, fails: keyIn("", 3), want: "fails"},
		{name: "the record before cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after...) }, fails: keyIn("", 2), want: "fails"},
		{name: "its first cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own[0], own[2]); s.keep(g1, after...) }, fails: keyIn(g1, 3), want: "fails"},
		{name: "a later one cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after...) }, fails: keyIn(g1, 6), want: "fails"},
	} {
		var bucket shelf
		tc.fill(&bucket)
		bucket.broken = tc.fails
		s := Steps{Deps: Deps{Vault: &bucket}}
		err := s.checkForgotten(t.Context(), audit.Line{Chain: line, Generations: tc.at}, tc.last)
		switch tc.want {
		case "":
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		case "fails":
			if isError(t, tc.name, err, Transient, "audit bucket"); !errors.Is(err, errShelf) {
				t.Errorf("%s: %v", tc.name, err)
			}
		default:
			if isError(t, tc.name, err, AuditTampered, "AUDIT_HEAD"); err != nil && !strings.Contains(err.Error(), "generation "+tc.want+" ") {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
}

// TestCheckSetBackLooksOnPastForeignObjects: an object that is not of the chain lies after
// the last record and hides no generation that continues past the chain's own records.
func TestCheckSetBackLooksOnPastForeignObjects(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3", "a=4")
	after := chained(t, own[1].Head(), 10, "b=3", "b=4")
	g := audit.Generation{ID: generation(1), From: 3}
	at := audit.Line{Chain: line, Generations: audit.Generations("").With(g)}
	for what, foreign := range map[string][]byte{
		"no record": []byte("{}"), "a record that does not follow": chained(t, audit.Head{Seq: 4, Hash: strings.Repeat("a", 64)}, 0, "c=5")[0].Bytes,
	} {
		var bucket shelf
		bucket.keep("", own...)
		bucket.keep(g.ID, after...)
		bucket.objects[at.RecordKey(5)] = foreign
		s := Steps{Deps: Deps{Outbox: lined{at: at, head: after[1].Head()}, Vault: &bucket}}
		isError(t, what, s.checkSetBack(t.Context()), AuditTampered, "AUDIT_HEAD")
	}
}

// lined is a control table whose chain has generations.
type lined struct {
	Outbox
	at   audit.Line
	head audit.Head
}

func (l lined) Head(context.Context) (audit.Line, audit.Head, error) { return l.at, l.head, nil }

// TestSegmentsOf: all sources together are scanned in 400 parts at most, each in one at
// least.
func TestSegmentsOf(t *testing.T) {
	for _, tc := range []struct{ n, sources, want int }{
		{4, 1, 4}, {400, 1, 400}, {401, 1, 400}, {500, 0, 400}, {500, 3, 133}, {133, 3, 133}, {500, 200, 2}, {500, 201, 1}, {500, 400, 1}, {500, 401, 1},
	} {
		if got := segmentsOf(tc.n, tc.sources); got != tc.want {
			t.Errorf("%d of %d sources: %d, want %d", tc.n, tc.sources, got, tc.want)
		}
	}
}

// TestSameStart: a repeated preflight continues with its own record alone; another execution
// that chose the same name is told so, whatever has become of the record.
func TestSameStart(t *testing.T) {
	record := func(execution string, phase kek.Phase, endedBy string) kek.Rotation {
		return kek.Rotation{ID: "id", Execution: execution, Phase: phase, EndedBy: endedBy}
	}
	for _, tc := range []struct {
		r     kek.Rotation
		kind  Kind
		field string
	}{
		{record("a", kek.Minted, ""), "", ""},
		{record("b", kek.Minted, ""), InvalidInput, "execution_name"},
		{record("a", kek.Completed, ""), InvalidInput, "execution_name"},
		{record("b", kek.Completed, ""), InvalidInput, "execution_name"},
		{record("a", kek.RolledBack, "e"), Superseded, "rotation_id"},
		{record("b", kek.RolledBack, "e"), InvalidInput, "execution_name"},
	} {
		if err := sameStart(tc.r, kek.Rotation{ID: "id", Execution: "a"}); tc.kind != "" {
			isError(t, fmt.Sprintf("%+v", tc.r), err, tc.kind, tc.field)
		} else if err != nil {
			t.Errorf("%+v: %v", tc.r, err)
		}
	}
}

// TestPlanHasLists: the state machine maps over the lists of a plan, which are never null.
func TestPlanHasLists(t *testing.T) {
	s := Steps{
		Config: Config{Concurrency: 7},
		Deps:   Deps{OpenSource: func(kek.Source) (Source, error) { return scripted{}, nil }},
	}
	p, err := s.plan(kek.Rotation{Sources: []kek.Source{{Name: "orders"}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"old_kek_ids":[]`, `"segments":[]`, `"checks":[]`, `"rewrap_concurrency":7`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s has no %s", b, want)
		}
	}
}

// TestLeftKEKs: they are those that rows may be under, but the pointer's, in one order.
func TestLeftKEKs(t *testing.T) {
	v := kek.View{KEKs: map[kek.ID]kek.KEK{}}
	var want []kek.ID
	for i := range 40 {
		id, state := kek.ID(fmt.Sprintf("k%02d", i)), kek.Sealed
		if i%2 == 0 {
			state = kek.Retired
		} else {
			want = append(want, id)
		}
		v.KEKs[id] = kek.KEK{ID: id, State: state}
	}
	if got := leftKEKs(v); !slices.Equal(got, want) {
		t.Errorf("without a pointer: %v", got)
	}
	v.Pointer = &kek.Pointer{KEKID: want[0]}
	if got := leftKEKs(v); !slices.Equal(got, want[1:]) {
		t.Errorf("%v", got)
	}
}

// TestCheckLeftKeys: a KEK that rows may be under, and whose KMS key is disabled, stops a
// start; one that KMS does not know stops nothing, and one that it does not tell of does.
func TestCheckLeftKeys(t *testing.T) {
	keys := map[kek.ID]Key{"on": {Enabled: true}, "off": {State: "Disabled"}, "unread": {Enabled: true}}
	for _, tc := range []struct {
		left  []kek.ID
		kind  Kind
		field string
	}{
		{nil, "", ""},
		{[]kek.ID{"on"}, "", ""},
		{[]kek.ID{"gone", "on"}, "", ""},
		{[]kek.ID{"off"}, KeyUnusable, "KEK#off"},
		{[]kek.ID{"on", "off"}, KeyUnusable, "KEK#off"},
		{[]kek.ID{"gone", "off"}, KeyUnusable, "KEK#off"},
		{[]kek.ID{"on", "unread", "off"}, Transient, "KMS"},
	} {
		s := Steps{Deps: Deps{Keys: describer{keys: keys, broken: "unread"}}}
		err := s.checkLeftKeys(t.Context(), tc.left)
		if tc.kind == "" {
			if err != nil {
				t.Errorf("%v: %v", tc.left, err)
			}
			continue
		}
		isError(t, fmt.Sprint(tc.left), err, tc.kind, tc.field)
		if want := `rows may be under it, and its KMS key is in state "Disabled"`; tc.kind == KeyUnusable && typedOf(err).Msg != want {
			t.Errorf("%v: %q, want %q", tc.left, typedOf(err).Msg, want)
		}
	}
}

// TestCheckAwakeOfNoWindow: a record whose window cannot be read says what is wrong with it.
func TestCheckAwakeOfNoWindow(t *testing.T) {
	s := Steps{Config: Config{ApprovalRequired: true}}
	err := s.checkAwake(kek.Rotation{ID: "id", Mode: kek.Normal, Settings: kek.Settings{Window: "night"}})
	isError(t, "night", err, Misconfigured, "ROTATION#id.window")
	_, want := ParseWindow("night", nil)
	if d := cmp.Diff(want.Error(), fmt.Sprint(typedOf(err).Err)); d != "" {
		t.Errorf("its cause (-want +got):\n%s", d)
	}
}

// TestCheckCorpus: a corpus has an entry, on whichever page; a scan that fails is not an empty
// corpus, whatever comes with the error.
func TestCheckCorpus(t *testing.T) {
	empty, one := Page{Next: "n"}, Page{Rows: []Row{{ID: "a"}}}
	for name, tc := range map[string]struct {
		pages []Page
		errs  []error
		kind  Kind
		field string
	}{
		"an entry":                       {[]Page{one}, nil, "", ""},
		"an entry on the third page":     {[]Page{empty, empty, one}, nil, "", ""},
		"none":                           {[]Page{empty, {}}, nil, SourceMisconfigured, "sources[orders]"},
		"no answer":                      {[]Page{{}}, []error{errShelf}, Transient, "corpus"},
		"no answer to the first page":    {[]Page{empty, one}, []error{errShelf}, Transient, "corpus"},
		"no answer to the second page":   {[]Page{empty, empty, one}, []error{nil, errShelf}, Transient, "corpus"},
		"no answer, but with some entry": {[]Page{one}, []error{errShelf}, Transient, "corpus"},
	} {
		s := Steps{}
		if err := s.checkCorpus(t.Context(), frozen{Source: scripted{pages: tc.pages, errs: tc.errs, n: new(int)}}); tc.kind != "" {
			isError(t, name, err, tc.kind, tc.field)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
