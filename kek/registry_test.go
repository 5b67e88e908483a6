package kek

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRegistryChanges spells out what each change of the registry writes and what it is
// conditional on, before a rotation, beside one, and after its retirement.
func TestRegistryChanges(t *testing.T) {
	later := now.Add(time.Minute)
	joined := src("later", "{}")
	joined.AddedAt = later
	other := src("orders", `{"a":1}`)
	other.AddedAt, other.Generation = later, 1
	put := func(s Source) func(View) (Change, error) {
		return func(v View) (Change, error) {
			s.AddedAt, s.Generation = time.Time{}, 0
			return v.PutSource(s, later)
		}
	}
	for _, tc := range []struct {
		name  string
		next  func(v View) (Change, error)
		want  RegistryMove
		event string
		joins string // the sources of a rotation past its switch
	}{
		{"put", put(joined), RegistryMove{Put: []Source{joined}}, "source_added", "later~0 {}, orders~0 {}, users~0 {}"},
		{"put otherwise", put(other), RegistryMove{Put: []Source{other}}, "source_added", `orders~1 {"a":1}, users~0 {}`},
		{"remove", func(v View) (Change, error) { return v.RemoveSource("orders", later) }, RegistryMove{Remove: "orders", Forget: "table-orders"}, "source_removed", ""},
		{"forget", func(v View) (Change, error) {
			marks("stray")(&v)
			v.Marks = append([]Mark{{Table: "strayer"}}, v.Marks...)
			return v.ForgetMark("stray", later)
		}, RegistryMove{Forget: "stray"}, "mark_removed", ""},
	} {
		for _, at := range []string{none, string(Switched), string(Drained), string(Rewrapped), string(KEKRetired), string(Completed), string(RolledBack)} {
			tab := standing(t, Normal, at)
			v := tab.view("")
			c, err := tc.next(v)
			must(t, tab, c, err)
			tc.want.Before = 3
			if diff := cmp.Diff(&tc.want, c.Registry); diff != "" || c.Event != tc.event {
				t.Errorf("%s at %q, %s (-want +got):\n%s", tc.name, at, c.Event, diff)
			}
			if c.Pointer != nil || c.Keeps != nil || c.KEKs != nil || c.Opens+c.Shuts+c.Sealed != "" || c.AtRegistry != nil {
				t.Errorf("%s at %q also touches: %+v", tc.name, at, c)
			}
			if tab.registry != 4 {
				t.Errorf("%s at %q: the registry is at %d", tc.name, at, tab.registry)
			}
			if v.Lock == "" {
				if c.Lock != LockFree || c.Rotation != nil {
					t.Errorf("%s at %q, without a rotation: %+v", tc.name, at, c)
				}
				continue
			}
			want := *v.Rotation // it stays where it is, at its next revision
			want.Rev++
			want.UpdatedAt = later
			sources := "orders~0 {}, users~0 {}"
			if tc.joins != "" && at != string(KEKRetired) {
				sources = tc.joins
			}
			got := c.Rotation.After
			if names(got.Sources) != sources {
				t.Errorf("%s at %q: the rotation has %s, want %s", tc.name, at, names(got.Sources), sources)
			}
			got.Sources = want.Sources
			if diff := cmp.Diff(want, got); diff != "" || c.Lock != LockHold || !cmp.Equal(c.Rotation.Before, v.Rotation) {
				t.Errorf("%s at %q: lock %d, the record (-want +got):\n%s", tc.name, at, c.Lock, diff)
			}
		}
	}
}

// TestRemoveWithoutMark: the removal of a table that has no mark is conditional on there
// being none, whatever marks others have.
func TestRemoveWithoutMark(t *testing.T) {
	tab := genesis(t)
	delete(tab.marks, "table-users")
	v := tab.view("")
	if !v.Marked("table-orders") || v.Marked("table-users") {
		t.Errorf("marks %v", v.Marks)
	}
	c, err := v.RemoveSource("users", now)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&RegistryMove{Before: 3, Remove: "users", Absent: "table-users"}, c.Registry); diff != "" {
		t.Error(diff)
	}
	tab.marks["table-users"] = Mark{Table: "table-users"} // a writer comes meanwhile
	if err := tab.apply(c); !errors.Is(err, ErrConflict) {
		t.Errorf("over a new mark: %v", err)
	}
	delete(tab.marks, "table-users")
	must(t, tab, c, err)
	if got := names(tab.view("").Sources); got != "orders~0 {}" || len(tab.marks) != 1 {
		t.Errorf("%s, marks %v", got, tab.marks)
	}
	if c, err := tab.view("").RemoveSource("users", now); !errors.Is(err, ErrDone) || cmp.Diff(Change{}, c) != "" {
		t.Errorf("again: %+v, %v", c, err)
	}
}

// TestStartConditionsOnTheRegistry: a source that is registered between a start's read
// and its write makes the start fail, and so does a historic KEK.
func TestStartConditionsOnTheRegistry(t *testing.T) {
	for name, change := range map[string]func(View) (Change, error){
		"source": func(v View) (Change, error) { return v.PutSource(src("later", "{}"), now) },
		"KEK":    func(v View) (Change, error) { return v.RegisterKEK(KEK{ID: "kek-later", FenceShards: 1}, now) },
		"mark":   func(v View) (Change, error) { return v.RemoveSource("users", now) },
	} {
		tab := genesis(t)
		start, err := step("Start")(tab.view(rid), Normal)
		if err != nil {
			t.Fatal(err)
		}
		c, err := change(tab.view(""))
		must(t, tab, c, err)
		if err := tab.apply(start); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "registry") {
			t.Errorf("%s: %v", name, err)
		}
		tab = genesis(t)
		if c, err = change(tab.view("")); err != nil {
			t.Fatal(err)
		}
		take(t, tab, Normal, "Start")
		if err := tab.apply(c); !errors.Is(err, ErrConflict) { // the other way round
			t.Errorf("%s after the start: %v", name, err)
		}
	}
}

// TestPlaces: a place is a source once, and a name stays with its place: giving it
// another would drop a table without the checks of a removal.
func TestPlaces(t *testing.T) {
	v := genesis(t).view("")
	elsewhere, corpus := src("orders", "{}"), src("orders", "{}")
	elsewhere.Place, corpus.Kind = "table-x", "corpus"
	twice, twiceLater := src("again", "{}"), src("again", "{}")
	twice.Place, twiceLater.Place = "table-orders", "table-users"
	for name, tc := range map[string]struct {
		src  Source
		says string
	}{
		"another place for a name": {elsewhere, "source orders is table-orders"},
		"another kind for a name":  {corpus, "source orders is table-orders"},
		"another name for a place": {twice, "table-orders is source orders already"},
		"of the last source":       {twiceLater, "table-users is source users already"},
	} {
		if c, err := v.PutSource(tc.src, now); err == nil || errors.Is(err, ErrDone) || !strings.Contains(err.Error(), tc.says) || cmp.Diff(Change{}, c) != "" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// TestGenerations is the regression test of a source that was removed from under a
// rotation and added again: it came back in generation 0, so that what had been seen
// under its earlier definition counted for the other, or it took another table's place
// in the rotation, whose rows then nobody moved.
func TestGenerations(t *testing.T) {
	tab := standing(t, Normal, string(Drained))
	put := func(definition string) string {
		t.Helper()
		c, err := tab.view("").PutSource(src("orders", definition), now)
		must(t, tab, c, err)
		return names(tab.rotations[rid].Sources[:1])
	}
	remove := func() {
		t.Helper()
		c, err := tab.view("").RemoveSource("orders", now)
		must(t, tab, c, err)
	}
	for _, tc := range []struct {
		definition, want string
		removed          bool
	}{
		{"{1}", "orders~1 {1}", false},
		{"{2}", "orders~2 {2}", false},
		{"{}", "orders~3 {}", true},
		{"{}", "orders~3 {}", true}, // the same definition as the rotation has: what was seen counts
		{"{1}", "orders~4 {1}", false},
	} {
		if tc.removed {
			remove()
		}
		if got := put(tc.definition); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
	remove()
	moved := src("orders", "{}")
	moved.Place = "table-x"
	if c, err := tab.view("").PutSource(moved, now); err == nil || errors.Is(err, ErrDone) {
		t.Errorf("the name of a frozen source was given to another table: %+v", c)
	}
	for _, name := range []string{"Rewrap", "Retire", "Complete"} {
		take(t, tab, Normal, name)
	}
	c, err := tab.view(rid).PutSource(moved, now) // no rotation that runs has it any more
	must(t, tab, c, err)
	if got := names(tab.view("").Sources); got != "orders~0 {}, users~0 {}" {
		t.Error(got)
	}
}

// TestGenerationOfWhatDidNotJoin: a source that is registered after the retirement is
// ahead of the rotation's, and its next definition is ahead of both.
func TestGenerationOfWhatDidNotJoin(t *testing.T) {
	tab := standing(t, Normal, string(KEKRetired))
	for n, definition := range []string{"{1}", "{2}", "{3}"} {
		c, err := tab.view("").PutSource(src("orders", definition), now)
		must(t, tab, c, err)
		if got := c.Registry.Put[0].Generation; got != n+1 {
			t.Errorf("definition %s is generation %d", definition, got)
		}
	}
	if got := names(tab.rotations[rid].Sources); got != "orders~0 {}, users~0 {}" {
		t.Error(got)
	}
}

// TestForgetsOneMark: a table that has no mark is nothing to forget, whatever others have.
func TestForgetsOneMark(t *testing.T) {
	v := genesis(t).view("")
	marks("stray")(&v)
	if c, err := v.ForgetMark("carts", now); !errors.Is(err, ErrDone) || cmp.Diff(Change{}, c) != "" {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestRegisterKEK: a historic KEK is registered sealed, with a fence that nobody can
// insert behind, beside no rotation, and while the pointer stands.
func TestRegisterKEK(t *testing.T) {
	tab := genesis(t)
	k := KEK{ID: "kek-later", ARN: "arn:later", Label: "before us", FenceShards: 3, State: Active}
	c, err := tab.view("").RegisterKEK(k, now)
	must(t, tab, c, err)
	want := k
	want.State, want.CreatedAt = Sealed, now
	if diff := cmp.Diff(want, tab.keks["kek-later"]); diff != "" || tab.fences["kek-later"] != "sealed" {
		t.Errorf("fence %q, entry (-want +got):\n%s", tab.fences["kek-later"], diff)
	}
	if c.Lock != LockFree || c.Shards != 3 || c.Opens+c.Sealed != "" || c.Event != "kek_registered" || c.Rotation != nil || c.KEKs[0].Before != nil ||
		!cmp.Equal(c.Keeps, tab.pointer) || !cmp.Equal(c.Registry, &RegistryMove{Before: 3}) {
		t.Errorf("%+v", c)
	}
	for _, id := range []ID{old, past1, "kek-later"} {
		if _, err := tab.view("").RegisterKEK(KEK{ID: id}, now); !errors.Is(err, ErrDone) {
			t.Errorf("%s again: %v", id, err)
		}
	}
}

// TestTakeNoRows: a switch that opens the fence of records alone says so of the new KEK, and
// changes neither the change that it was made from nor another KEK.
func TestTakeNoRows(t *testing.T) {
	c := Change{
		Opens: "new", OpensRecords: "new", Shards: 2,
		KEKs: []KEKMove{{After: KEK{ID: "new"}}, {After: KEK{ID: "old"}}},
	}
	got := c.TakeNoRows()
	if got.Opens != "" || got.OpensRecords != "new" || got.Shards != 2 || !got.KEKs[0].After.RecordsOnly || got.KEKs[1].After.RecordsOnly {
		t.Errorf("%+v", got)
	}
	if c.Opens != "new" || c.KEKs[0].After.RecordsOnly {
		t.Errorf("it changed %+v", c)
	}
}

// TestStartRecordsOnly: a rotation leaves KEKs that take records alone only if each of them does.
func TestStartRecordsOnly(t *testing.T) {
	for name, c := range map[string]struct {
		current, past bool
		want          bool
	}{"both": {true, true, true}, "the pointer's": {true, false, false}, "the other": {false, true, false}, "neither": {false, false, false}} {
		v := View{
			Pointer: &Pointer{KEKID: "a", Epoch: 1},
			KEKs:    map[ID]KEK{"a": {ID: "a", State: Active, RecordsOnly: c.current}, "b": {ID: "b", State: Sealed, RecordsOnly: c.past}},
		}
		got, err := v.Start(Rotation{ID: "r", Mode: Normal}, time.Now())
		if err != nil || got.Rotation.After.RecordsOnly != c.want {
			t.Errorf("%s: %+v, %v", name, got.Rotation, err)
		}
	}
}
