package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/matter-ops/kms-rotation/internal/console"
)

// TestReinstall: what is imported is all that a deleted stack leaves, the way that
// CloudFormation takes it: by itself a valid template, each resource with a deletion
// policy, nothing that would have to be created, no transform.
func TestReinstall(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	f := reinstallFlags{
		template: filepath.Join(root, "template.yaml"), stack: "matter", table: "matter-ControlTable-1ABC", keyTable: "matter-KeyTable-1ABC", bucket: "matter-auditbucket-1abc",
		key: "1234abcd-12ab-34cd-56ef-1234567890ab", retention: 365,
	}
	var out bytes.Buffer
	if err := f.printReinstall(console.Console{Out: &out, Err: &out}); err != nil {
		t.Fatal(err)
	}
	read := func(name string, into any, parse func([]byte, any) error) string {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := parse(b, into); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	type resource struct {
		Type   string `yaml:"Type"`
		Policy string `yaml:"DeletionPolicy"`
	}
	var state, whole struct {
		Transform  any                 `yaml:"Transform"`
		Parameters map[string]any      `yaml:"Parameters"`
		Resources  map[string]resource `yaml:"Resources"`
	}
	text := read(stateFile, &state, yaml.Unmarshal)
	read(f.template, &whole, yaml.Unmarshal)
	var list []imported
	read(resourcesFile, &list, json.Unmarshal)

	want := map[string]resource{}
	for id, r := range whole.Resources {
		if strings.HasPrefix(r.Policy, "Retain") {
			want[id] = r
		}
	}
	for _, i := range list {
		if r := state.Resources[i.LogicalResourceID]; r != want[i.LogicalResourceID] || r.Type != i.ResourceType || len(i.ResourceIdentifier) != 1 {
			t.Errorf("%+v is %+v in the template and %+v in %s", i, want[i.LogicalResourceID], r, stateFile)
		}
	}
	if len(list) != len(want) || len(state.Resources) != len(want) || state.Transform != nil {
		t.Errorf("%d resources outlive the stack, %d are imported, the template has %d; transform %v", len(want), len(list), len(state.Resources), state.Transform)
	}
	if state.Parameters["RetentionDays"] == nil || len(state.Parameters) != 1 {
		t.Errorf("parameters %v", state.Parameters)
	}
	lint := exec.Command(filepath.Join(root, ".venv", "bin", "cfn-lint"), stateFile)
	if b, err := lint.CombinedOutput(); err != nil {
		t.Errorf("cfn-lint: %v\n%s\n%s", err, b, text)
	}
	for _, part := range []string{"--change-set-type IMPORT", "file://" + stateFile, "file://" + resourcesFile, "ParameterValue=365", "sam deploy --stack-name matter "} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the commands lack %q:\n%s", part, out.String())
		}
	}
}

func TestReinstallRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	good := reinstallFlags{template: "t.yaml", stack: "s", table: "t", bucket: "b", key: "k", retention: 1}
	for name, c := range map[string]struct {
		change   func(*reinstallFlags)
		template string
		want     string
	}{
		"an ARN":              {func(f *reinstallFlags) { f.key = "arn:aws:kms:r:1:key/k" }, "", "--anchor-key"},
		"no template":         {func(f *reinstallFlags) { f.template = "none.yaml" }, "", "--template"},
		"a resource missing":  {func(*reinstallFlags) {}, "Parameters: {}\nResources: {}\n", "no resource ControlTable"},
		"one that goes":       {func(*reinstallFlags) {}, "Parameters: {}\nResources: {ControlTable: {DeletionPolicy: Delete}}\n", "does not outlive"},
		"one without policy":  {func(*reinstallFlags) {}, "Parameters: {}\nResources: {ControlTable: {}}\n", "does not outlive"},
		"no template at all":  {func(*reinstallFlags) {}, "", "is not a template"},
		"neither of the maps": {func(*reinstallFlags) {}, "{}\n", "no Resources"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile("t.yaml", []byte(c.template), 0o600); err != nil {
				t.Fatal(err)
			}
			f := good
			c.change(&f)
			err := f.printReinstall(console.Console{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if files, _ := filepath.Glob("reinstall-*"); slices.Contains(files, stateFile) {
				t.Error("wrote a file all the same")
			}
		})
	}
}
