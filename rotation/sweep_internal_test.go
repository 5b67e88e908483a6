package rotation

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// scripted is a source whose scans a test writes down; errs are beside pages.
type scripted struct {
	source.Driver
	segments int
	pages    []source.Page
	errs     []error
	n        *int
}

func (s scripted) Name() string { return "orders" }

func (s scripted) Traits() source.Traits { return source.Traits{} }

func (s scripted) Segments(int) int { return s.segments }

func (s scripted) Scan(context.Context, source.ScanRequest) (source.Page, error) {
	i := *s.n
	*s.n++
	var err error
	if i < len(s.errs) {
		err = s.errs[i]
	}
	return s.pages[i], err
}

// TestAllDenied: a page of which AWS denied two rows or more, and nothing else was to be
// done, stops the pass; rows that there was nothing to do with say nothing either way.
func TestAllDenied(t *testing.T) {
	denied, other := fmt.Errorf("put item: %w", journal.ErrDenied), errors.New("defect")
	rows := []source.Row{{ID: "a"}, {ID: "b"}, {ID: "c"}}
	for i, tc := range []struct {
		results []outcome
		reasons []error
		row     string // that is named; "" none
	}{
		{[]outcome{quarantined, quarantined, quarantined}, []error{denied, denied, denied}, "c"},
		{[]outcome{quarantined, kept, quarantined}, []error{denied, nil, denied}, "c"},
		{[]outcome{kept, quarantined, quarantined}, []error{nil, denied, denied}, "c"},
		{[]outcome{quarantined, quarantined, kept}, []error{denied, denied, nil}, "b"},
		{[]outcome{kept, kept, quarantined}, []error{nil, nil, denied}, ""},
		{[]outcome{kept, kept, kept}, []error{nil, nil, nil}, ""},
		{[]outcome{quarantined, quarantined, moved}, []error{denied, denied, nil}, ""},
		{[]outcome{proved, quarantined, quarantined}, []error{nil, denied, denied}, ""},
		{[]outcome{quarantined, quarantined, quarantined}, []error{denied, other, denied}, ""},
	} {
		err := allDenied(frozenSource{Driver: scripted{}}, rows, tc.results, tc.reasons)
		if tc.row == "" {
			if err != nil {
				t.Errorf("%d: %v", i, err)
			}
			continue
		}
		var typed *journal.Error
		isError(t, fmt.Sprint(i), err, journal.AccessDenied, fmt.Sprintf("%d rows of orders", len(rows)-count(tc.results, kept)))
		if !errors.As(err, &typed) || !cmp.Equal(typed.Rows, []string{tc.row}) {
			t.Errorf("%d: %+v", i, typed)
		}
	}
}

func count(results []outcome, of outcome) (n int) {
	for _, r := range results {
		if r == of {
			n++
		}
	}
	return n
}

// TestBlame: an error that names no row gets one; what it was stays as it was.
func TestBlame(t *testing.T) {
	bare, named := &journal.Error{Kind: journal.Transient, Field: "f"}, &journal.Error{Kind: journal.Transient, Rows: []string{"b"}}
	for _, tc := range []struct {
		err  error
		rows []string
	}{
		{bare, []string{"a"}},
		{fmt.Errorf("wrapped: %w", bare), []string{"a"}},
		{named, []string{"b"}},
	} {
		var typed *journal.Error
		if got := nameRow(tc.err, "a"); !errors.As(got, &typed) || !cmp.Equal(typed.Rows, tc.rows) || typed.Field != typedOf(tc.err).Field {
			t.Errorf("%v: %+v, want rows %q", tc.err, typed, tc.rows)
		}
	}
	if bare.Rows != nil {
		t.Errorf("the error was changed: %+v", bare)
	}
	if got := nameRow(errShelf, "a"); !errors.Is(got, errShelf) {
		t.Errorf("an error without a kind: %v", got)
	}
}

// TestTallyClone: what is added to a copy is not in what it was copied from, nor the other
// way round.
func TestTallyClone(t *testing.T) {
	from := Tally{Poison: append(make([]string, 0, 2), "a"), ByKEK: map[string]int64{"k": 1}, ByKind: map[string]int64{"d": 1}}
	c := from.cloneTally()
	c.Poison, c.ByKEK["k"], c.ByKind["d"] = append(c.Poison, "of the copy"), 2, 2
	from.Poison = append(from.Poison, "of the first")
	if c.Poison[1] != "of the copy" || from.ByKEK["k"] != 1 || from.ByKind["d"] != 1 {
		t.Errorf("%+v and %+v", from, c)
	}
}

// finished is a store in which every segment of a pass is done, and was at a time.
type finished struct {
	Checkpoints
	at []time.Time
}

func (f finished) LoadCheckpoint(_ context.Context, _, _, _ string, segment int) (Checkpoint, error) {
	return Checkpoint{Done: true, SavedAt: f.at[segment]}, nil
}

// TestLastRead: a pass has been read when the last of its segments was, whichever that is.
func TestLastRead(t *testing.T) {
	for _, minutes := range [][]int{{1, 2, 3}, {1, 3, 2}, {3, 2, 1}} {
		var f finished
		for _, m := range minutes {
			f.at = append(f.at, at(m))
		}
		s := Steps{Journal: &journal.Journal{Now: func() time.Time { return at(4) }}, Checkpoints: f}
		src := frozenSource{Driver: scripted{segments: 3}}
		out, err := s.runSegments(t.Context(), kek.Rotation{Segments: 3}, []frozenSource{src}, pass{visit: func(frozenSource) visit { return nil }})
		if err != nil || !out.Done || !out.read.Equal(at(3)) {
			t.Errorf("%v: done %t, read at %s, %v", minutes, out.Done, out.read, err)
		}
	}
}

// tallied is a store with the checkpoints of a source's passes, by their names.
type tallied struct {
	Checkpoints
	passes map[string][]Checkpoint
	broken string // the pass whose checkpoints cannot be listed
}

func (c tallied) ListCheckpoints(_ context.Context, _, _, pass string) ([]Checkpoint, error) {
	if pass == c.broken {
		return nil, errShelf
	}
	return c.passes[pass], nil
}

// TestCountPasses: a pass counts when each of its segments is done.
func TestCountPasses(t *testing.T) {
	done := func(n int64) Checkpoint { return Checkpoint{Done: true, Tally: Tally{Scanned: n}} }
	open := func(n int64) Checkpoint { return Checkpoint{Tally: Tally{Scanned: n}} }
	r := kek.Rotation{Sources: []kek.Source{{Name: "orders"}}}
	c := tallied{passes: map[string][]Checkpoint{
		PassCensus: {done(4), done(5)}, PassRewrap: {done(4), open(1)}, passConfirm: {open(1), done(5)}, passVerify: {done(2)},
	}}
	s := Steps{Checkpoints: c}
	got, err := s.countPasses(t.Context(), r)
	if d := cmp.Diff([]string{"rows scanned: census 9, verify 2"}, []string{got[0].String()}); d != "" || err != nil {
		t.Errorf("-want +got:\n%s%v", d, err)
	}
	const fell = "orders: the number of rows fell from 9 in the census pass to 2 in the last"
	if missing, err := s.RowsMissing(t.Context(), r); missing != fell || err != nil {
		t.Errorf("missing: %q, %v", missing, err)
	}
	for _, pass := range everyPass {
		c.broken, s.Checkpoints = pass, tallied{passes: c.passes, broken: pass}
		_, err := s.RowsMissing(t.Context(), r)
		isError(t, pass, err, journal.Transient, "checkpoints")
	}
}

// TestCheckSeen: a source of which the last pass has seen no envelope, though it has other
// items, is believed if an earlier pass has seen one, and only if that can be read.
func TestCheckSeen(t *testing.T) {
	r := kek.Rotation{Sources: []kek.Source{{Name: "orders", Kind: "dynamodb"}}}
	out := SweepOutput{Sources: map[string]Tally{"orders": {Other: 3}}, opened: []frozenSource{{Driver: scripted{}, def: r.Sources[0]}}}
	seen := func(n int64) []Checkpoint { return []Checkpoint{{}, {Tally: Tally{Scanned: n}}} }
	for _, tc := range []struct {
		name   string
		passes map[string][]Checkpoint
		broken string
		kind   journal.Kind
		field  string
	}{
		{"nothing", nil, "", journal.SourceMisconfigured, "sources[orders]"},
		{"none", map[string][]Checkpoint{PassCensus: seen(0), PassRewrap: seen(0)}, "", journal.SourceMisconfigured, "sources[orders]"},
		{"by the census", map[string][]Checkpoint{PassCensus: seen(1)}, "", "", ""},
		{"by the rewrap", map[string][]Checkpoint{PassRewrap: seen(1)}, "", "", ""},
		{"the census cannot be read", map[string][]Checkpoint{PassRewrap: seen(1)}, PassCensus, journal.Transient, "checkpoints"},
		{"the rewrap cannot be read", map[string][]Checkpoint{PassCensus: seen(1)}, PassRewrap, journal.Transient, "checkpoints"},
	} {
		s := Steps{Checkpoints: tallied{passes: tc.passes, broken: tc.broken}}
		if err := s.checkSeen(t.Context(), r, out); tc.kind != "" {
			isError(t, tc.name, err, tc.kind, tc.field)
		} else if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
