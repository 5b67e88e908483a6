package source_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// driver is a driver that states a fencing.
type driver struct {
	source.Driver
	fencing source.Fencing
}

func (d driver) Traits() source.Traits { return source.Traits{Noun: "shelf", Fencing: d.fencing} }

// fenced is one that has a fence of its own too.
type fenced struct{ driver }

func (fenced) Open(context.Context, kek.ID, int) error { return nil }
func (fenced) Seal(context.Context, kek.ID, int) error { return nil }

// TestRegistryOpens: a source is opened by the driver of its kind, and one that does not
// state the fence of its rows, or states what it has not, is refused.
func TestRegistryOpens(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		d    source.Driver
		err  error
		says string // "" if it is opened
		own  bool
	}{
		"control table":        {driver{fencing: source.ControlTable()}, nil, "", false},
		"own":                  {fenced{driver{fencing: source.Own()}}, nil, "", true},
		"none needed":          {driver{fencing: source.Unfenced("nobody writes")}, nil, "", false},
		"none without reason":  {driver{fencing: source.Unfenced("")}, nil, "does not state which fence", false},
		"nothing said":         {driver{}, nil, "does not state which fence", false},
		"own, but it has none": {driver{fencing: source.Own()}, nil, "states a fence of its own and has none", false},
		"a fence not stated":   {fenced{driver{fencing: source.ControlTable()}}, nil, "does not state it", false},
		"broken":               {nil, broken, "broken", false},
	} {
		r := source.NewRegistry(source.Kind{Name: "shelf", Open: func(kek.Source) (source.Driver, error) { return c.d, c.err }})
		d, err := r.Open(kek.Source{Name: "s", Kind: "shelf"})
		if (err == nil) != (c.says == "") || err != nil && (d != nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
		if err == nil && (source.FenceOf(d) != nil) != c.own {
			t.Errorf("%s: its own fence is %v", name, source.FenceOf(d))
		}
	}
	if source.FenceOf(driver{fencing: source.Own()}) != nil {
		t.Error("a fence that is stated and not there")
	}
}

// TestRegistryNames: the kind of a definition chooses who reads it, the first kind reads one
// that names none, and a kind that is not known is answered with those that are.
func TestRegistryNames(t *testing.T) {
	reads := func(name string) source.Kind {
		return source.Kind{Name: name, Parse: func([]byte) (kek.Source, error) { return kek.Source{Kind: name}, nil }}
	}
	r := source.NewRegistry(reads("shelf"), reads("drawer"))
	for definition, want := range map[string]string{`{}`: "shelf", `{"kind":""}`: "shelf", `{"kind":"shelf"}`: "shelf", `{"kind":"drawer","x":1}`: "drawer"} {
		if def, err := r.Parse([]byte(definition)); err != nil || def.Kind != want {
			t.Errorf("%s: %v, %v", definition, def, err)
		}
	}
	for definition, says := range map[string]string{
		`{"kind":"box"}`: `kind: "box" is not known; use "shelf" or "drawer"`, `7`: "JSON object: ", `{"kind":7}`: "JSON object: ",
	} {
		if _, err := r.Parse([]byte(definition)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", definition, err)
		}
	}
	if _, err := r.Open(kek.Source{Kind: "box"}); err == nil || err.Error() != `kind "box" is not known to this release; it knows shelf and drawer` {
		t.Errorf("opened: %v", err)
	}
}

// TestError: an error names the field, and its cause.
func TestError(t *testing.T) {
	cause := errors.New("no such table")
	e := &source.Error{Problem: source.Misconfigured, Field: "table", Msg: "it is not there", Err: cause, Rows: []string{"secret"}}
	if e.Error() != "table: it is not there: no such table" || !errors.Is(e, cause) {
		t.Errorf("%v", e)
	}
	if e = (&source.Error{Msg: "it is not there"}); e.Error() != "it is not there" || e.Unwrap() != nil {
		t.Errorf("%v", e)
	}
}
