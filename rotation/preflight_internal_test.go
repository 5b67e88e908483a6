package rotation

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// TestSegmentsOf: all sources together are scanned in 2,000 parts at most, each in one at
// least.
func TestSegmentsOf(t *testing.T) {
	for _, tc := range []struct{ n, sources, want int }{
		{4, 1, 4}, {2000, 1, 2000}, {2001, 1, 2000}, {2500, 0, 2000}, {2000, 3, 666}, {666, 3, 666}, {2000, 1000, 2}, {2000, 1001, 1}, {2000, 2000, 1}, {2000, 2001, 1},
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
		kind  journal.Kind
		field string
	}{
		{record("a", kek.Minted, ""), "", ""},
		{record("b", kek.Minted, ""), journal.InvalidInput, "execution_name"},
		{record("a", kek.Completed, ""), journal.InvalidInput, "execution_name"},
		{record("b", kek.Completed, ""), journal.InvalidInput, "execution_name"},
		{record("a", kek.RolledBack, "e"), journal.Superseded, "rotation_id"},
		{record("b", kek.RolledBack, "e"), journal.InvalidInput, "execution_name"},
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
		Config:     Config{Concurrency: 7},
		OpenSource: func(kek.Source) (source.Driver, error) { return scripted{}, nil },
	}
	p, err := s.planRotation(kek.Rotation{Sources: []kek.Source{{Name: "orders"}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"old_kek_ids":[]`, `"rewrap":{"left":[]}`, `"checks":[]`, `"rewrap_concurrency":7`} {
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
	keys := map[kek.ID]keyring.Key{"on": {Enabled: true}, "off": {State: "Disabled"}, "unread": {Enabled: true}}
	for _, tc := range []struct {
		left  []kek.ID
		kind  journal.Kind
		field string
	}{
		{nil, "", ""},
		{[]kek.ID{"on"}, "", ""},
		{[]kek.ID{"gone", "on"}, "", ""},
		{[]kek.ID{"off"}, journal.KeyUnusable, "KEK#off"},
		{[]kek.ID{"on", "off"}, journal.KeyUnusable, "KEK#off"},
		{[]kek.ID{"gone", "off"}, journal.KeyUnusable, "KEK#off"},
		{[]kek.ID{"on", "unread", "off"}, journal.Transient, "KMS"},
	} {
		s := Steps{Keys: keyring.Keyring{Admin: describer{keys: keys, broken: "unread"}}}
		err := s.checkLeftKeys(t.Context(), tc.left)
		if tc.kind == "" {
			if err != nil {
				t.Errorf("%v: %v", tc.left, err)
			}
			continue
		}
		isError(t, fmt.Sprint(tc.left), err, tc.kind, tc.field)
		if want := `rows may be under it, and its KMS key is in state "Disabled"`; tc.kind == journal.KeyUnusable && typedOf(err).Msg != want {
			t.Errorf("%v: %q, want %q", tc.left, typedOf(err).Msg, want)
		}
	}
}

// TestCheckCorpus: a corpus has an entry, on whichever page; a scan that fails is not an empty
// corpus, whatever comes with the error.
func TestCheckCorpus(t *testing.T) {
	empty, one := source.Page{Next: "n"}, source.Page{Rows: []source.Row{{ID: "a"}}}
	for name, tc := range map[string]struct {
		pages []source.Page
		errs  []error
		kind  journal.Kind
		field string
	}{
		"an entry":                       {[]source.Page{one}, nil, "", ""},
		"an entry on the third page":     {[]source.Page{empty, empty, one}, nil, "", ""},
		"none":                           {[]source.Page{empty, {}}, nil, journal.SourceMisconfigured, "sources[orders]"},
		"no answer":                      {[]source.Page{{}}, []error{errShelf}, journal.Transient, "corpus"},
		"no answer to the first page":    {[]source.Page{empty, one}, []error{errShelf}, journal.Transient, "corpus"},
		"no answer to the second page":   {[]source.Page{empty, empty, one}, []error{nil, errShelf}, journal.Transient, "corpus"},
		"no answer, but with some entry": {[]source.Page{one}, []error{errShelf}, journal.Transient, "corpus"},
	} {
		s := Steps{}
		if err := s.checkCorpus(t.Context(), frozenSource{Driver: scripted{pages: tc.pages, errs: tc.errs, n: new(int)}}); tc.kind != "" {
			isError(t, name, err, tc.kind, tc.field)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSegmentsSpread: each segment is there once, and those that are worked on at once are not
// neighbours, but for the last one, with which nothing begins. Any eighth of a long list has as
// many of each quarter of the table.
func TestSegmentsSpread(t *testing.T) {
	for n := range 41 {
		order := SpreadSegments(n)
		if got := slices.Sorted(slices.Values(order)); len(got) != n || n > 0 && (got[0] != 0 || got[n-1] != n-1) {
			t.Errorf("%d segments: %v", n, order)
		}
		for i := 1; i < n-1; i++ {
			if d := order[i] - order[i-1]; n > 7 && d*d < 4 {
				t.Errorf("%d segments: %v has neighbours after one another", n, order)
			}
		}
	}
	for _, n := range []int{200, 1000, 2000} {
		for at, order := 0, SpreadSegments(n); at+n/8 <= n; at += n / 16 {
			quarters := [4]int{}
			for _, segment := range order[at : at+n/8] {
				quarters[4*segment/n]++
			}
			if slices.Max(quarters[:]) > slices.Min(quarters[:])+4 {
				t.Errorf("%d segments, from %d on: %v of each quarter", n, at, quarters)
			}
		}
	}
	if got := fmt.Sprint(SpreadSegments(8)); got != "[0 4 2 6 1 5 3 7]" {
		t.Errorf("eight segments: %s", got)
	}
}
