package journal

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// TestErrorsOfSeveralLines stay readable on one line.
func TestErrorsOfSeveralLines(t *testing.T) {
	e := &Error{Kind: Misconfigured, Msg: "wrong", Err: errors.Join(errors.New("A is missing"), errors.New("B is missing"))}
	if got := e.Error(); got != "Misconfigured: wrong: A is missing; B is missing" {
		t.Errorf("it says %q", got)
	}
}

// TestCut: a text for a record has at most 900 bytes, and no rune that was cut in two.
func TestCut(t *testing.T) {
	for text, want := range map[string]string{
		"": "", strings.Repeat("x", 900): strings.Repeat("x", 900), strings.Repeat("x", 901): strings.Repeat("x", 900),
		strings.Repeat("x", 899) + "ü": strings.Repeat("x", 899), "a\uFFFDb": "ab",
	} {
		if got := CutText(text); got != want {
			t.Errorf("%d bytes: %d, want %d", len(text), len(got), len(want))
		}
	}
}

// TestCheckSetBack: a record in the bucket after the table's last one is a sign of a
// restore if the table's head stays where it was.
func TestCheckSetBack(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, make([]string, MaxTries+3)...)
	head := func(seq int) audit.Head { return own[seq-1].Head() }
	forged := chained(t, audit.Head{Seq: 2, Hash: strings.Repeat("a", 64)}, 0, "")[0]
	var each []audit.Head // a record is made after each look
	for n := range MaxTries + 1 {
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
		{name: "another each time", heads: each[:2*MaxTries], fill: whole, kind: Transient, field: "audit head"},
		{name: "another each time but the last", heads: each[:2*MaxTries], fill: func(s *shelf) { s.keep("", own[:MaxTries]...) }},
		{name: "an object that is no record", heads: []audit.Head{head(2)}, fill: func(s *shelf) { s.keep("", own[:2]...); s.objects[keyIn("", 3)] = []byte("{}") }},
		{name: "a record that does not follow", heads: []audit.Head{head(2)}, fill: func(s *shelf) { s.keep("", own[:2]...); s.keep("", forged) }},
		{name: "the head cannot be read", heads: []audit.Head{{}}, errs: []error{errShelf}, fill: whole, kind: Transient, field: "audit head"},
		{name: "the head cannot be read again", heads: []audit.Head{head(2), {}}, errs: []error{nil, errShelf}, fill: whole, kind: Transient, field: "audit head"},
		{name: "the bucket cannot be read", heads: []audit.Head{head(2)}, fill: whole, fails: keyIn("", 3), kind: Transient, field: "audit bucket"},
	} {
		var bucket shelf
		tc.fill(&bucket)
		bucket.broken = tc.fails
		s := Journal{Outbox: &restless{chain: line, heads: tc.heads, errs: tc.errs}, AuditBucket: &bucket}
		if err := s.CheckSetBack(t.Context()); tc.kind != "" {
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
		{name: "recorded at once", at: from(g1, 3), last: 3, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, repair(own[1].Head(), audit.EventRepaired, "x")) }},
		{name: "recorded last", at: from(g1, 3), last: 5, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[:2]...)
			s.keep(g1, repair(after[1].Head(), audit.EventRepaired, "x"))
		}},
		{name: "recorded, past one that is gone", at: from(g1, 3), last: 5, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[0], repair(after[1].Head(), audit.EventRepaired, "x"))
		}},
		{name: "recorded after the table's last", at: from(g1, 3), last: 4, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[:2]...)
			s.keep(g1, repair(after[1].Head(), audit.EventRepaired, "x"))
		}, want: g1},
		{name: "recorded before it", at: from(g1, 3), last: 6, fill: func(s *shelf) {
			second := repair(own[0].Head(), audit.EventRepaired, "x")
			s.keep("", own[0], second)
			s.keep("", chained(t, second.Head(), 3, "a=3")...)
			s.keep(g1, chained(t, second.Head(), 10, "b=3", "b=4", "b=5", "b=6")...)
		}, want: g1},
		{name: "a repair of nothing forgotten", at: from(g1, 3), last: 3, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, repair(own[1].Head(), audit.EventRepaired, "")) }, want: g1},
		{name: "another record that says so", at: from(g1, 3), last: 3, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, repair(own[1].Head(), "x", "x")) }, want: g1},
		{name: "the second of two", at: from(g1, 3, g2, 5), last: 6, fill: func(s *shelf) {
			s.keep("", own[:2]...)
			s.keep(g1, after...)
			s.keep(g2, chained(t, after[1].Head(), 30, "d=5", "d=6")...)
		}, want: g2},
		{name: "the first of two, recorded in the second", at: from(g1, 3, g2, 5), last: 5, fill: func(s *shelf) {
			s.keep("", own...)
			s.keep(g1, after[:2]...)
			s.keep(g2, repair(after[1].Head(), audit.EventRepaired, "x"))
		}},
		{name: "its place cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after...) }, fails: keyIn("", 3), want: "fails"},
		{name: "the record before cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after...) }, fails: keyIn("", 2), want: "fails"},
		{name: "its first cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own[0], own[2]); s.keep(g1, after...) }, fails: keyIn(g1, 3), want: "fails"},
		{name: "a later one cannot be read", at: from(g1, 3), last: 6, fill: func(s *shelf) { s.keep("", own...); s.keep(g1, after...) }, fails: keyIn(g1, 6), want: "fails"},
	} {
		var bucket shelf
		tc.fill(&bucket)
		bucket.broken = tc.fails
		s := Journal{AuditBucket: &bucket}
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
		s := Journal{Outbox: lined{at: at, head: after[1].Head()}, AuditBucket: &bucket}
		isError(t, what, s.CheckSetBack(t.Context()), AuditTampered, "AUDIT_HEAD")
	}
}

// restless is a control table whose head is another each time that it is asked for. The
// last answer stays.
type restless struct {
	Outbox
	chain string
	heads []audit.Head
	errs  []error // beside heads
	asked int
}

func (r *restless) Head(context.Context) (audit.Line, audit.Head, error) {
	i := min(r.asked, len(r.heads)-1)
	r.asked++
	var err error
	if i < len(r.errs) {
		err = r.errs[i]
	}
	return audit.Line{Chain: r.chain}, r.heads[i], err
}

// lined is a control table whose chain has generations.
type lined struct {
	Outbox
	at   audit.Line
	head audit.Head
}

func (l lined) Head(context.Context) (audit.Line, audit.Head, error) { return l.at, l.head, nil }

// TestEndedByDoctor: what a step of a rotation that doctor has ended is told.
func TestEndedByDoctor(t *testing.T) {
	var typed *Error
	err := ReportSuperseded(kek.Rotation{ID: "r", Err: "ended by doctor: lost"})
	if !errors.As(err, &typed) || typed.Kind != Superseded || typed.Field != "rotation_id" || typed.Msg != "rotation r: ended by doctor: lost" ||
		typed.Next.Do != StartAnother {
		t.Error(err)
	}
	if err := ReportSuperseded(kek.Rotation{ID: "r", EndedBy: "e"}); !errors.As(err, &typed) || typed.Kind != Superseded || !strings.Contains(typed.Msg, "r, by e") {
		t.Error(err)
	}
}
