package rotation

import (
	"errors"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
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
