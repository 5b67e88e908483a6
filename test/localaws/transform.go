package localaws

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

//go:embed transform.py
var transformProgram string

// template is a CloudFormation template, and which local files its functions and
// state machines are made of, by logical id.
type template struct {
	Body struct {
		Description string                    `json:"Description,omitempty"`
		Parameters  map[string]parameter      `json:"Parameters,omitempty"`
		Conditions  map[string]any            `json:"Conditions,omitempty"`
		Mappings    map[string]any            `json:"Mappings,omitempty"`
		Resources   map[string]resource       `json:"Resources"`
		Outputs     map[string]map[string]any `json:"Outputs,omitempty"`
	} `json:"template"`
	Code        map[string]string `json:"code"`
	Definitions map[string]string `json:"definitions"`
}

type parameter struct {
	Type    string `json:"Type"`
	Default any    `json:"Default,omitempty"`
}

type resource struct {
	Type       string         `json:"Type"`
	Condition  string         `json:"Condition,omitempty"`
	DependsOn  any            `json:"DependsOn,omitempty"`
	Properties map[string]any `json:"Properties,omitempty"`
}

// ofType returns the logical ids of the resources of a type, sorted.
func (t *template) ofType(kind string) []string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(t.Body.Resources)) {
		if t.Body.Resources[id].Type == kind {
			out = append(out, id)
		}
	}
	return out
}

// transform turns the module's template.yaml into CloudFormation with the official
// translator. bucket is where code and definitions are said to be. What the translator says
// must not depend on values of parameters: CloudFormation puts them in.
func transform(ctx context.Context, root, path, bucket, region string) (*template, error) {
	python := filepath.Join(root, ".venv", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		return nil, fmt.Errorf("the SAM translator is %w: run make venv", backend.ErrNotInstalled)
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("transform: %w", err)
	}
	var t template
	key := strings.Join([]string{string(source), bucket, region}, "\x00")
	if known, ok := transformed.Load(key); ok {
		return &t, json.Unmarshal(known.([]byte), &t) //nolint:forcetypeassert // nothing else is stored
	}
	out, err := translate(ctx, python, path, bucket, region, "{}")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out, &t); err != nil {
		return nil, fmt.Errorf("transform %s: %w", path, err)
	}
	transformed.Store(key, out)
	return &t, nil
}

// translate runs the translator. parameters is a JSON object.
func translate(ctx context.Context, python, path, bucket, region, parameters string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, python, "-I", "-c", transformProgram, path, bucket, parameters)
	cmd.Env = []string{"AWS_DEFAULT_REGION=" + region, "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("transform %s: %w: %s", path, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// transformed is what the translator has said in this process: tests deploy one template
// again and again.
var transformed sync.Map

// outputPrefix begins the names of the outputs that byOutput adds.
const outputPrefix = "LocalAWSValueOf"

// leaf stands for an intrinsic function whose value CloudFormation tells.
type leaf struct {
	output string // name of the output that has the value
	number bool

	// optional: the function may say AWS::NoValue, of which there is no output. The property
	// is then left out.
	optional bool
}

// byOutput replaces the intrinsic functions in the properties of a resource that
// moto's CloudFormation does not create, and adds an output for each: so the same
// CloudFormation evaluates them that evaluates all others.
func (t *template) byOutput(logical string) (any, error) {
	r := t.Body.Resources[logical]
	if r.Condition != "" {
		return nil, fmt.Errorf("%s: %s with a Condition is not supported here", logical, r.Type)
	}
	return t.replace(logical, any(r.Properties)), nil
}

func (t *template) replace(prefix string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		if isIntrinsic(v) {
			return t.output(prefix, v)
		}
		out := map[string]any{}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out[k] = t.replace(prefix, v[k])
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = t.replace(prefix, v[i])
		}
		return out
	default:
		return v
	}
}

// output adds an output for an intrinsic function. A reference to a resource that
// moto does not know is one to its name.
func (t *template) output(prefix string, v map[string]any) any {
	number := false
	if ref, ok := v["Ref"].(string); ok {
		number = t.Body.Parameters[ref].Type == "Number"
		if r, ok := t.Body.Resources[ref]; ok && r.Type == "AWS::Scheduler::ScheduleGroup" {
			return t.replace(prefix, r.Properties["Name"])
		}
	}
	name := fmt.Sprintf("%s%s%d", outputPrefix, prefix, len(t.Body.Outputs))
	if t.Body.Outputs == nil {
		t.Body.Outputs = map[string]map[string]any{}
	}
	t.Body.Outputs[name] = map[string]any{"Value": v}
	return leaf{name, number, mayBeNoValue(v)}
}

func mayBeNoValue(v map[string]any) bool {
	branches, _ := v["Fn::If"].([]any)
	return slices.ContainsFunc(branches, func(b any) bool {
		m, ok := b.(map[string]any)
		return ok && m["Ref"] == "AWS::NoValue"
	})
}

func isIntrinsic(v map[string]any) bool {
	if len(v) != 1 {
		return false
	}
	for k := range v {
		return k == "Ref" || strings.HasPrefix(k, "Fn::")
	}
	return false
}

// fill puts the values of the outputs where byOutput left their names, and decodes
// the properties into what the service's SDK takes: its fields have the names that
// CloudFormation's properties have.
func fill(properties any, outputs map[string]string, into any) error {
	filled, err := filled(properties, outputs)
	if err != nil {
		return err
	}
	b, err := json.Marshal(filled)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

func filled(v any, outputs map[string]string) (any, error) {
	switch v := v.(type) {
	case leaf:
		value, ok := outputs[v.output]
		if !ok {
			return nil, fmt.Errorf("output %s is missing", v.output)
		}
		if v.number {
			return json.Number(value), nil
		}
		return value, nil
	case map[string]any:
		out := map[string]any{}
		var faults []error
		for k := range v {
			if l, ok := v[k].(leaf); ok && l.optional && outputs[l.output] == "" {
				continue
			}
			var err error
			out[k], err = filled(v[k], outputs)
			faults = append(faults, err)
		}
		return out, errors.Join(faults...)
	case []any:
		out := make([]any, len(v))
		var faults []error
		for i := range v {
			var err error
			out[i], err = filled(v[i], outputs)
			faults = append(faults, err)
		}
		return out, errors.Join(faults...)
	default:
		return v, nil
	}
}
