package flow

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/matter-ops/kms-rotation/rotation"
)

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON writes the members in order, without escaping what HTML would need.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(m.name); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		if err := e.Encode(m.value); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Definition returns the state machine in the Amazon States Language, as JSON that any
// editor reads. Names in ${…} are substituted by template.yaml.
func Definition() ([]byte, error) {
	var compact, b bytes.Buffer
	e := json.NewEncoder(&compact)
	e.SetEscapeHTML(false)
	if err := e.Encode(object{
		{"Comment", Comment},
		{"StartAt", Rotation[0].Name},
		{"TimeoutSeconds", int(Lasts.Seconds())},
		{"States", describeStates(Rotation)},
	}); err != nil {
		return nil, fmt.Errorf("state machine: %w", err)
	}
	if err := json.Indent(&b, compact.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("state machine: %w", err)
	}
	return b.Bytes(), nil
}

func describeStates(states []State) object {
	var out object
	for _, s := range states {
		out = append(out, member{s.Name, s.describe()})
	}
	return out
}

// describe is a state in the Amazon States Language.
func (s State) describe() object {
	out := object{{"Type", s.Type}, {"Comment", s.Comment}}
	if s.Comment == "" {
		out = out[:1]
	}
	add := func(present bool, name string, value any) {
		if present {
			out = append(out, member{name, value})
		}
	}
	switch s.Type {
	case Task:
		resource := "arn:${Partition}:states:::lambda:invoke"
		if s.AwaitToken {
			resource += ".waitForTaskToken"
		}
		add(true, "Resource", resource)
		add(true, "Parameters", object{{"FunctionName", "${" + s.Function + "FunctionArn}"}, {"Payload", describeFields(s.Payload)}})
		add(s.TimeoutAt == "", "TimeoutSeconds", int(s.Timeout.Seconds()))
		add(s.TimeoutAt != "", "TimeoutSecondsPath", s.TimeoutAt)
	case Choice:
		var rules []object
		for _, r := range s.Choices {
			rules = append(rules, r.describe())
		}
		add(true, "Choices", rules)
		add(true, "Default", s.Default)
	case Wait:
		add(true, "SecondsPath", s.SecondsAt)
	case Pass:
		add(true, "Parameters", describeFields(s.Parameters))
	case Map:
		add(true, "ItemsPath", s.Items)
		add(true, "ItemSelector", describeFields(s.ItemSelector))
		add(true, "MaxConcurrencyPath", s.ConcurrencyAt)
		add(true, "ItemProcessor", object{
			{"ProcessorConfig", object{{"Mode", "INLINE"}}}, {"StartAt", s.Each[0].Name}, {"States", describeStates(s.Each)},
		})
	case Fail:
		add(true, "ErrorPath", s.ErrorAt)
		add(true, "CausePath", s.CauseAt)
	case Succeed:
	}
	add(s.Select != nil, "ResultSelector", describeFields(s.Select))
	out = append(out, describeResult(s.Result)...)
	add(s.Output != "", "OutputPath", s.Output)
	add(s.Type == Task, "Retry", []object{s.Retry.describe()})
	var catch []object
	for _, c := range s.Catch {
		catch = append(catch, c.describe())
	}
	add(catch != nil, "Catch", catch)
	add(s.Next != "", "Next", s.Next)
	return out
}

// describeFields names a field that is a path as the Amazon States Language does: with .$
// at its end.
func describeFields(fields []Field) object {
	out := object{}
	for _, f := range fields {
		if _, ok := f.Value.(Path); ok {
			f.Name += ".$"
		}
		out = append(out, member{f.Name, f.Value})
	}
	return out
}

func describeResult(path string) object {
	switch path {
	case "":
		return nil
	case Drop:
		return object{{"ResultPath", nil}}
	default:
		return object{{"ResultPath", path}}
	}
}

// retried are the failures that repeating can heal: a step's own Transient, Lambda's
// (developer guide, "Handle Lambda service exceptions"), and a process that died.
var retried = []rotation.Kind{
	rotation.Transient, "Lambda.ServiceException", "Lambda.AWSLambdaException", "Lambda.SdkClientException",
	"Lambda.ClientExecutionTimeoutException", "Lambda.TooManyRequestsException", "Lambda.Unknown", "Runtime.ExitError", "Sandbox.Timedout",
}

func (r Retry) describe() object {
	errors := append([]rotation.Kind(nil), retried...)
	if !r.NotOnTimeout {
		errors = append(errors, timeout)
	}
	return object{
		{"ErrorEquals", errors},
		{"IntervalSeconds", 1},
		{"BackoffRate", 2},
		{"MaxAttempts", r.Attempts},
		{"MaxDelaySeconds", int(r.Most.Seconds())},
		{"JitterStrategy", "FULL"},
	}
}

func (c CatchClause) describe() object {
	var out object
	if c.Comment != "" {
		out = object{{"Comment", c.Comment}}
	}
	out = append(append(out, member{"ErrorEquals", c.Errors}), describeResult(c.Result)...)
	return append(out, member{"Next", c.Next})
}

func (r ChoiceRule) describe() object {
	compare := "StringEquals"
	if _, ok := r.Is.(bool); ok {
		compare = "BooleanEquals"
	}
	return object{{"Variable", r.At}, {compare, r.Is}, {"Next", r.Next}}
}
