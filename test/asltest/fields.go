package asltest

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/rotation"
)

// Contract is what a function takes and returns.
type Contract struct{ In, Out reflect.Type }

func contract[In, Out any]() Contract {
	return Contract{reflect.TypeFor[In](), reflect.TypeFor[Out]()}
}

// Contracts are the functions that the state machine may invoke, by the name in
// ${<name>FunctionArn}.
var Contracts = map[string]Contract{
	"Preflight":  contract[rotation.PreflightInput, rotation.Plan](),
	"Mint":       contract[rotation.StepInput, rotation.MintOutput](),
	"DualUnwrap": contract[rotation.StepInput, rotation.DualUnwrapOutput](),
	"Approve":    contract[rotation.ApprovalInput, rotation.ApprovalOutput](),
	"Switch":     contract[rotation.StepInput, rotation.SwitchOutput](),
	"Drain":      contract[rotation.StepInput, rotation.DrainOutput](),
	"Rewrap":     contract[rotation.RewrapInput, rotation.SweepOutput](),
	"Retire":     contract[rotation.RetireInput, rotation.RetireOutput](),
	"Verify":     contract[rotation.VerifyInput, rotation.SweepOutput](),
	"Anchor":     contract[rotation.AnchorInput, rotation.AnchorOutput](),
	"Notify":     contract[rotation.NotifyInput, rotation.NotifyOutput](),
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
		k, ok := Contracts[s.Function()]
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
