package deploy_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/deploy"
)

// TestTemplateIsGenerated: the committed template is what the entries make of it.
func TestTemplateIsGenerated(t *testing.T) {
	want, err := deploy.Template(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("go generate ./deploy writes it (-entries +file):\n%s", d)
	}
}

// TestReasonsReachTheTemplate: each line of an entry that is not data of the generator, its
// comments included, is in the template as it stands.
func TestReasonsReachTheTemplate(t *testing.T) {
	b, err := os.ReadFile("../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		have[strings.TrimSpace(line)] = true
	}
	files, err := filepath.Glob("../functions/*/function.yaml")
	if err != nil || len(files) < 13 {
		t.Fatalf("%d entries, %v", len(files), err)
	}
	data := regexp.MustCompile(`^(AfterSwitch|Policies|Statements|Properties|Schedule|  (Name|Properties|Target)):|^Name: |^# What function `)
	for _, f := range files {
		entry, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(entry)) {
			line = strings.TrimRight(line, "\n")
			if text := strings.TrimPrefix(strings.TrimSpace(line), "Sid: "); !data.MatchString(line) && !have[text] && !have["- Sid: "+text] {
				t.Errorf("%s: template.yaml has no line %q", f, text)
			}
		}
	}
}

// TestWrongEntries: an entry that the template would leave a part of out is refused.
func TestWrongEntries(t *testing.T) {
	for name, tc := range map[string]struct{ file, old, new, want string }{
		"no entry":           {"functions/mint/function.yaml", "", "", "functions/mint/function.yaml"},
		"no function":        {"functions/mint/main.go", "", "", "calls Mint"},
		"another name":       {"functions/mint/function.yaml", "Name: Mint", "Name: Made", "name as the folder's"},
		"no timeout":         {"functions/mint/function.yaml", "Timeout:", "# Timeout:", "a timeout"},
		"an unknown key":     {"functions/mint/function.yaml", "Timeout:", "Timout:", "Timout"},
		"an unknown policy":  {"functions/mint/function.yaml", "[StepPolicy]", "[StepPolicy, AllPolicy]", `no policy "AllPolicy"`},
		"statements inline":  {"functions/drain/function.yaml", "Statements:\n", "Statements: [{Sid: All}]\nProperties:\n", "below its key"},
		"a template without": {deploy.Source, `<<- if attached "StepPolicy" . >>`, "<<- if false >>", `no policy "StepPolicy"`},
		"a broken template":  {deploy.Source, "<< end >>", "", "template"},
	} {
		t.Run(name, func(t *testing.T) {
			root := repository(t)
			if tc.old == "" {
				delete(root, tc.file)
			} else {
				text := string(root[tc.file].Data)
				if !strings.Contains(text, tc.old) {
					t.Fatalf("%s has no %q", tc.file, tc.old)
				}
				root[tc.file] = &fstest.MapFile{Data: []byte(strings.Replace(text, tc.old, tc.new, 1))}
			}
			if _, err := deploy.Template(root); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// TestLayout: blank lines and comments in the middle of an entry do not end a part of it.
func TestLayout(t *testing.T) {
	root := repository(t)
	const file = "functions/notify/function.yaml"
	text := strings.Replace(string(root[file].Data), "  - Sid: FindAnnouncedWindow", "\n# at the margin\n\n  - Sid: FindAnnouncedWindow", 1)
	root[file] = &fstest.MapFile{Data: []byte(text)}
	b, err := deploy.Template(root)
	if err != nil || !strings.Contains(string(b), "# at the margin\n\n              - Sid: FindAnnouncedWindow\n") {
		t.Errorf("%v", err)
	}
}

// repository is the files that the template is made of, to be changed by a test.
func repository(t *testing.T) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	root := os.DirFS("..")
	for _, pattern := range []string{"functions/*/*", deploy.Source} {
		names, err := fs.Glob(root, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := fs.ReadFile(root, name)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = &fstest.MapFile{Data: b}
		}
	}
	return out
}
