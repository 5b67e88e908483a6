package asltest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
)

// Contract is what a function takes and returns.
type Contract struct{ In, Out reflect.Type }

var served = regexp.MustCompile(`lambdastep\.Start\(app\.\w+, \(\*(\w+\.\w+)\)\.(\w+)\)`)

// rooms are the types whose methods functions serve.
var rooms = map[string]reflect.Type{
	"rotation.Steps":     reflect.TypeFor[*rotation.Steps](),
	"rotation.Scheduler": reflect.TypeFor[*rotation.Scheduler](),
	"anchor.Anchor":      reflect.TypeFor[*anchor.Anchor](),
	"gates.Gates":        reflect.TypeFor[*gates.Gates](),
}

// ReadContracts returns the contract of each function of the repository at root by its
// folder: that of the step that its main serves.
func ReadContracts(root string) (map[string]Contract, error) {
	mains, err := filepath.Glob(filepath.Join(root, "functions", "*", "main.go"))
	if err != nil {
		return nil, err
	}
	out := map[string]Contract{}
	for _, file := range mains {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m := served.FindSubmatch(b)
		if m == nil {
			return nil, fmt.Errorf("%s serves no step", file)
		}
		room := rooms[string(m[1])]
		if room == nil {
			return nil, fmt.Errorf("%s serves a method of %s, which is not among the rooms", file, m[1])
		}
		step, ok := room.MethodByName(string(m[2]))
		if !ok {
			return nil, fmt.Errorf("%s serves %s, which %s does not have", file, m[2], m[1])
		}
		out[filepath.Base(filepath.Dir(file))] = Contract{step.Type.In(2), step.Type.Out(0)} // after the room and the context
	}
	return out, nil
}

// field is a JSON field of a Go struct.
type field struct {
	typ      reflect.Type
	optional bool // omitempty: it may be absent
}

func jsonFields(t reflect.Type) map[string]field {
	out := map[string]field{}
	if t.Kind() != reflect.Struct {
		return out
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			out[name] = field{f.Type, strings.Contains(options, "omitempty")}
		}
	}
	return out
}

// always lists the dotted paths that are present in every encoding of t.
func always(t reflect.Type, prefix string, into map[string]bool) {
	for name, f := range jsonFields(t) {
		if !f.optional {
			into[prefix+name] = true
			always(f.typ, prefix+name+".", into)
		}
	}
}

// fields checks the payload of each Task against its function's input, and its
// ResultSelector against the output.
func (c *checker) fields(d *Definition) {
	for name, s := range d.All() {
		if s.Type != "Task" {
			continue
		}
		k, ok := c.contracts[strings.ToLower(s.Function())]
		if !ok {
			c.add(name, "invokes an unknown function %q", s.Function())
			continue
		}
		for key := range s.Parameters {
			if key != "FunctionName" && key != "Payload" {
				c.add(name, "has the parameter %q", key)
			}
		}
		c.payload(name, s, k.In)
		c.results(name, s, k.Out)
	}
}

func (c *checker) payload(name string, s *State, in reflect.Type) {
	payload, _ := s.Parameters["Payload"].(map[string]any)
	fields := jsonFields(in)
	given := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(payload)) {
		plain, isPath := strings.CutSuffix(key, ".$")
		given[plain] = true
		f, ok := fields[plain]
		if !ok {
			c.add(name, "sends %q, which %s does not have", plain, in)
			continue
		}
		if isPath {
			continue
		}
		b, err := json.Marshal(payload[key])
		if err == nil {
			err = json.Unmarshal(b, reflect.New(f.typ).Interface())
		}
		if err != nil {
			c.add(name, "sends %q: %v", plain, err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !given[key] && !fields[key].optional {
			c.add(name, "does not send %q, which %s needs", key, in)
		}
	}
}

func (c *checker) results(name string, s *State, out reflect.Type) {
	present := map[string]bool{}
	always(out, "$.Payload.", present)
	for _, key := range slices.Sorted(maps.Keys(s.ResultSelector)) {
		path, _ := s.ResultSelector[key].(string)
		if !strings.HasSuffix(key, ".$") || !present[path] {
			c.add(name, "selects %v, which is not always in %s", s.ResultSelector[key], out)
		}
	}
}
