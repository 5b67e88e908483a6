// Package asltest reads the state machine's definition, checks what the design
// promises of it, and runs it against functions in this process, so that the
// tests of the steps meet the real order, retries and catches.
//
// It knows the part of the Amazon States Language that the definition uses, and
// refuses any other field: JSONPath, Task (lambda:invoke, with or without
// waitForTaskToken), Choice, Pass, Wait,
// Map (distributed, over an array of the input), Succeed and Fail.
package asltest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/rotation"
)

// Definition is a state machine, or the processor of a Map.
type Definition struct {
	Comment         string
	StartAt         string
	TimeoutSeconds  int               `json:",omitempty"`
	ProcessorConfig map[string]string `json:",omitempty"`
	States          map[string]*State
}

// State is one state. Paths are raw: null and absent differ.
type State struct {
	Type, Comment, Next        string
	Resource                   string
	Parameters, ResultSelector map[string]any
	ItemSelector               map[string]any
	ItemsPath                  string
	InputPath, OutputPath      json.RawMessage
	ResultPath                 json.RawMessage
	TimeoutSeconds             int
	TimeoutSecondsPath         string
	SecondsPath                string
	Seconds                    int
	Label                      string
	ToleratedFailurePercentage int
	MaxConcurrencyPath         string
	Retry                      []Retrier
	Catch                      []Catcher
	Choices                    []Rule
	Default                    string
	ErrorPath, CausePath       string
	ItemProcessor              *Definition
	End                        bool
}

// Retrier is one element of Retry.
type Retrier struct {
	ErrorEquals                  []string
	IntervalSeconds, MaxAttempts int
	MaxDelaySeconds              int
	BackoffRate                  float64
	JitterStrategy, Comment      string
}

// Catcher is one element of Catch.
type Catcher struct {
	ErrorEquals   []string
	ResultPath    json.RawMessage
	Next, Comment string
}

// Rule is one element of Choices.
type Rule struct {
	Variable      string
	StringEquals  *string
	BooleanEquals *bool
	Next          string
}

var placeholder = regexp.MustCompile(`\$\{(\w+)\}`)

// Substitute lets the machine start every mode, in the partition aws, and leaves the other
// placeholders, the functions' ARNs, as they are.
func Substitute(text []byte) []byte {
	text = bytes.ReplaceAll(text, []byte("${Partition}"), []byte("aws"))
	return bytes.ReplaceAll(text, []byte("${Entrance}"), []byte(rotation.EntranceAny))
}

// Placeholders lists the names of all placeholders, sorted.
func Placeholders(text []byte) []string {
	names := map[string]bool{}
	for _, m := range placeholder.FindAllSubmatch(text, -1) {
		names[string(m[1])] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// Parse reads a definition.
func Parse(text []byte) (*Definition, error) {
	var d Definition
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, fmt.Errorf("state machine: %w", err)
	}
	if dec.More() {
		return nil, fmt.Errorf("state machine: more than one JSON value")
	}
	return &d, nil
}

// All yields every state by name, those of Maps too, in order.
func (d *Definition) All() iter.Seq2[string, *State] {
	return func(yield func(string, *State) bool) {
		for _, name := range slices.Sorted(maps.Keys(d.States)) {
			s := d.States[name]
			if !yield(name, s) {
				return
			}
			if s.ItemProcessor == nil {
				continue
			}
			for inner, t := range s.ItemProcessor.All() {
				if !yield(inner, t) {
					return
				}
			}
		}
	}
}

// targets lists where a state may go next within its own definition.
func (s *State) targets() []string {
	var out []string
	for _, next := range []string{s.Next, s.Default} {
		if next != "" {
			out = append(out, next)
		}
	}
	for _, c := range s.Catch {
		out = append(out, c.Next)
	}
	for _, r := range s.Choices {
		out = append(out, r.Next)
	}
	return out
}

// From returns every state that can come after the named one, through Next,
// Default, Choices, Catch and into Maps. The state itself is among them only if a
// path leads back to it.
func (d *Definition) From(name string) map[string]bool {
	seen := map[string]bool{}
	var visit func(in *Definition, name string)
	enter := func(in *Definition, name string) {
		if s := in.States[name]; s != nil && s.ItemProcessor != nil {
			visit(s.ItemProcessor, s.ItemProcessor.StartAt)
		}
	}
	visit = func(in *Definition, name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		enter(in, name)
		if s := in.States[name]; s != nil {
			for _, next := range s.targets() {
				visit(in, next)
			}
		}
	}
	enter(d, name)
	if s := d.States[name]; s != nil {
		for _, next := range s.targets() {
			visit(d, next)
		}
	}
	return seen
}

// Function is the function that a Task invokes, as in ${<Function>FunctionArn}.
func (s *State) Function() string {
	arn, _ := s.Parameters["FunctionName"].(string)
	name, ok := strings.CutPrefix(arn, "${")
	if name, ok2 := strings.CutSuffix(name, "FunctionArn}"); ok && ok2 {
		return name
	}
	return ""
}
