package main

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
)

// TestExamples: every command shows how it is used, and refuses what it does not know.
func TestExamples(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || !strings.HasPrefix(cmd.Example, "  matter-local ") {
			t.Errorf("%s: short %q, example %q", cmd.CommandPath(), cmd.Short, cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
			var out, diagnosis bytes.Buffer
			if code := run(t.Context(), []string{sub.Name(), "--nothing"}, &out, &diagnosis); code != console.ExitUsage || !strings.Contains(diagnosis.String(), "--help") {
				t.Errorf("%s --nothing: exit code %d, %s", sub.CommandPath(), code, &diagnosis)
			}
		}
	}
	walk(newRoot())
}

// TestParameters: --param names a parameter of the template and its value.
func TestParameters(t *testing.T) {
	got, err := parseParameters([]string{"ApprovalSeconds=3600", "ApproverArns=", "EmergencyPermission=separate"})
	if want := map[string]string{"ApprovalSeconds": "3600", "ApproverArns": "", "EmergencyPermission": "separate"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "=x", "Name"} {
		var usage console.UsageError
		if _, err := parseParameters([]string{bad}); !errors.As(err, &usage) || !strings.Contains(err.Error(), "--param") {
			t.Errorf("--param %q: %v", bad, err)
		}
	}
}

// TestProof: no claim proves nothing, and one that is false is shown as such.
func TestProof(t *testing.T) {
	var out bytes.Buffer
	if (&proof{}).print(&out) {
		t.Error("no claims are a proof")
	}
	var p proof
	p.claim("a", "it holds", true, "seen")
	if !p.print(&out) {
		t.Error("a claim that holds is none")
	}
	p.claim("b", "it does not", false, "seen too")
	if p.print(&out) || !strings.Contains(out.String(), "FALSE it does not\n          seen too") {
		t.Error(&out)
	}
}

// TestDocumentedCommands: every command that a document shows is there, with the flags
// that it shows.
func TestDocumentedCommands(t *testing.T) {
	shown := regexp.MustCompile("matter-local ([a-z]+[^`\n|#;)&]*)")
	flagName := regexp.MustCompile(`(?:^|\s)--([a-z][a-z-]*)`)
	seen := 0
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../docs/adr/*.md", "../../Makefile"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range shown.FindAllStringSubmatch(string(text), -1) {
				name, _, _ := strings.Cut(m[1], " ")
				cmd, _, err := newRoot().Find([]string{name})
				if err != nil || cmd.Name() != name {
					continue // a sentence about the program
				}
				seen++
				for _, f := range flagName.FindAllStringSubmatch(m[1], -1) {
					if cmd.Flags().Lookup(f[1]) == nil {
						t.Errorf("%s: matter-local %s: there is no flag --%s", file, m[1], f[1])
					}
				}
			}
		}
	}
	if seen < 4 {
		t.Errorf("only %d commands were found", seen)
	}
}
