package flow

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// object is a JSON object whose members keep their order, so that the generated file reads as
// a person would write it and its diffs are small.
type object []member

// member is a name and its value in an [object].
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

// Definition returns the state machine in the Amazon States Language. CloudFormation
// substitutes the names in ${…}, which are all inside strings, so that the file is valid JSON
// for every editor and linter.
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

// describeStates returns the member States: each state under its name, in the table's order.
func describeStates(states []State) object {
	var out object
	for _, s := range states {
		out = append(out, member{s.Name, s.describeState()})
	}
	return out
}

// describeState returns a state in the Amazon States Language. Fields that are empty are left
// out: the language has other defaults for absent fields than for null.
func (s State) describeState() object {
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
			rules = append(rules, r.describeRule())
		}
		add(true, "Choices", rules)
		add(true, "Default", s.Default)
	case Wait:
		add(s.SecondsAt != "", "SecondsPath", s.SecondsAt)
		add(s.SecondsAt == "", "Seconds", int(s.Pause.Seconds()))
	case Pass:
		add(true, "Parameters", describeFields(s.Parameters))
	case Map:
		add(true, "ItemsPath", s.Items)
		add(true, "ItemSelector", describeFields(s.ItemSelector))
		add(true, "MaxConcurrencyPath", s.ConcurrencyAt)
		// The label is part of the ARNs of map runs and child executions (developer guide, "Using
		// Map state in Distributed mode"), to which permissions refer. No failed child execution
		// is tolerated: that is the default ("Tolerated failure threshold for Distributed Map state").
		add(true, "Label", s.Name)
		add(true, "ItemProcessor", object{
			{"ProcessorConfig", object{{"Mode", "DISTRIBUTED"}, {"ExecutionType", "STANDARD"}}}, {"StartAt", s.Each[0].Name}, {"States", describeStates(s.Each)},
		})
	case Fail:
		add(true, "ErrorPath", s.ErrorAt)
		add(true, "CausePath", s.CauseAt)
	case Succeed:
	}
	add(s.Select != nil, "ResultSelector", describeFields(s.Select))
	out = append(out, describeResult(s.Result)...)
	add(s.Output != "", "OutputPath", s.Output)
	add(s.Type == Task, "Retry", []object{s.Retry.describeRetry()})
	var catch []object
	for _, c := range s.Catch {
		catch = append(catch, c.describeCatch())
	}
	add(catch != nil, "Catch", catch)
	add(s.Next != "", "Next", s.Next)
	return out
}

// describeFields returns fields as an object. The name of a field whose value is a path ends in
// ".$" in the Amazon States Language.
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

// describeResult returns the member ResultPath: absent if the answer replaces the input, null
// if it is dropped.
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

// retried lists the failures that repeating can heal: Transient, which a step returns itself,
// those of Lambda (Step Functions developer guide, "Handle Lambda service exceptions"), and a
// process that died or ran out of time.
var retried = []journal.Kind{
	journal.Transient, "Lambda.ServiceException", "Lambda.AWSLambdaException", "Lambda.SdkClientException",
	"Lambda.ClientExecutionTimeoutException", "Lambda.TooManyRequestsException", "Lambda.Unknown", "Runtime.ExitError", "Sandbox.Timedout",
}

// describeRetry returns the one retrier of a task. Full jitter spreads the tries of many
// segments that fail together.
func (r Retry) describeRetry() object {
	errors := append([]journal.Kind(nil), retried...)
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

// describeCatch returns a catcher.
func (c CatchClause) describeCatch() object {
	var out object
	if c.Comment != "" {
		out = object{{"Comment", c.Comment}}
	}
	out = append(append(out, member{"ErrorEquals", c.Errors}), describeResult(c.Result)...)
	return append(out, member{"Next", c.Next})
}

// describeRule returns a rule of a choice.
func (r ChoiceRule) describeRule() object {
	compare := "StringEquals"
	if _, ok := r.Is.(bool); ok {
		compare = "BooleanEquals"
	}
	return object{{"Variable", r.At}, {compare, r.Is}, {"Next", r.Next}}
}
