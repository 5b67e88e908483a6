// Package release checks what a release consists of, without GoReleaser: that .goreleaser.yaml builds
// what ships, as the Makefile builds it, and that who builds the same commit gets the same bytes.
package release

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// find returns what the first group of a pattern matches in a file, each time.
func find(t *testing.T, name, pattern string) (found []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(read(t, name), -1) {
		found = append(found, m[1])
	}
	if len(found) == 0 {
		t.Fatalf("%s has nothing like %s", name, pattern)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// config is the part of .goreleaser.yaml that is compared.
type config struct {
	Before struct {
		Hooks []string `yaml:"hooks"`
	} `yaml:"before"`
	Builds []struct {
		ID      string   `yaml:"id"`
		Main    string   `yaml:"main"`
		Binary  string   `yaml:"binary"`
		Env     []string `yaml:"env"`
		Flags   []string `yaml:"flags"`
		LDFlags []string `yaml:"ldflags"`
		GOOS    []string `yaml:"goos"`
		GOARCH  []string `yaml:"goarch"`
	} `yaml:"builds"`
	Archives []struct {
		ID    string   `yaml:"id"`
		IDs   []string `yaml:"ids"`
		Files []struct {
			Src string `yaml:"src"`
			Dst string `yaml:"dst"`
		} `yaml:"files"`
	} `yaml:"archives"`
}

func readConfig(t *testing.T) (c config) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, ".goreleaser.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// listShipped lists the programs that the map of CONTRIBUTING.md does not call "not shipped".
func listShipped(t *testing.T) (programs []string) {
	t.Helper()
	kept := find(t, "CONTRIBUTING.md", "`cmd/([a-z-]+)` \\|[^|]*not shipped")
	all, err := os.ReadDir(filepath.Join(root, "cmd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if !slices.Contains(kept, d.Name()) {
			programs = append(programs, d.Name())
		}
	}
	return programs
}

// TestPrograms: a release has each program that ships, for each platform, built with the Makefile's flags.
func TestPrograms(t *testing.T) {
	c := readConfig(t)
	flags := find(t, "Makefile", `(?m)^export GOFLAGS     := (.+)$`)
	cgo := find(t, "Makefile", `(?m)^export CGO_ENABLED := (.+)$`)
	var built []string
	for _, b := range c.Builds {
		built = append(built, b.ID)
		if b.Main != "./cmd/"+b.ID || b.Binary != b.ID {
			t.Errorf("%s is built from %s and called %s", b.ID, b.Main, b.Binary)
		}
		if diff := cmp.Diff([][]string{flags, {"CGO_ENABLED=" + cgo[0]}, {""}, {"linux", "darwin"}, {"amd64", "arm64"}}, [][]string{b.Flags, b.Env, b.LDFlags, b.GOOS, b.GOARCH}); diff != "" {
			t.Errorf("%s (-make build, no linker flags, all platforms; +.goreleaser.yaml):\n%s", b.ID, diff)
		}
	}
	if diff := cmp.Diff(listShipped(t), built); diff != "" {
		t.Errorf("programs (-shipped +built):\n%s", diff)
	}
	if diff := cmp.Diff(built, c.Archives[0].IDs); diff != "" {
		t.Errorf("programs (-built +in the archive):\n%s", diff)
	}
}

// TestFunctions: a release has all functions for each architecture of the Makefile, each where
// the template beside them looks for it. make package builds every folder of functions/.
func TestFunctions(t *testing.T) {
	c := readConfig(t)
	architectures := find(t, "Makefile", `(?m)^GOARCH_(\w+)`)
	if diff := cmp.Diff([]string{"make release-parts"}, c.Before.Hooks); diff != "" {
		t.Errorf("before (-want +got):\n%s", diff)
	}
	loop := find(t, "Makefile", `(?m)^\tfor arch in (.+); do$`)
	if !slices.Equal(strings.Fields(loop[0]), architectures) {
		t.Errorf("make release-parts builds for %s, make package knows %s", loop, architectures)
	}
	for i, arch := range architectures {
		a := c.Archives[1+i]
		placed := map[string]string{}
		for _, f := range a.Files {
			placed[f.Src] = f.Dst
		}
		where, ok := placed["build/release/"+arch+"/**/bootstrap"]
		if a.ID != "functions-"+arch || !ok {
			t.Errorf("archive %s has no functions of %s: %v", a.ID, arch, placed)
		}
		for _, name := range []string{"template.yaml", "statemachine.asl.json", "samconfig.toml", "LICENSE"} {
			if dst, ok := placed[name]; !ok || dst != "" {
				t.Errorf("archive %s has no %s at its top", a.ID, name)
			}
		}
		for _, uri := range find(t, "template.yaml", `CodeUri: (\S+)`) {
			if name, ok := strings.CutPrefix(uri, where+"/"); !ok || read(t, "functions/"+name+"/main.go") == "" {
				t.Errorf("archive %s has nothing at %s", a.ID, uri)
			}
		}
	}
}

// run runs a program in a folder and returns its output.
func run(t *testing.T, dir string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-trimpath", "CGO_ENABLED=0", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// checkOut is a clone at a tag of what matter-audit-verify is built from, in a folder of its own.
func checkOut(t *testing.T, tag string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	const module = "github.com/matter-ops/kms-rotation/"
	for _, pkg := range strings.Fields(run(t, root, "go", "list", "-deps", "./cmd/matter-audit-verify")) {
		if name, ours := strings.CutPrefix(pkg, module); ours {
			if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(read(t, name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, dir, "git", "init", "--quiet")
	run(t, dir, "git", "add", ".")
	run(t, dir, "git", "commit", "--quiet", "--message", "release")
	run(t, dir, "git", "tag", tag)
	return dir
}

// TestReproducible: two clones of one tag, in different folders, are built to the same bytes, and the
// program says the tag. It is the tag that GoReleaser names the archives by, and what matter --version prints too.
func TestReproducible(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip(err)
	}
	const tag = "v1.8.7"
	var programs [][]byte
	for range 2 {
		dir := checkOut(t, tag)
		run(t, dir, "go", "build", "-o", "program", "./cmd/matter-audit-verify")
		b, err := os.ReadFile(filepath.Join(dir, "program"))
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, b)
		if out := run(t, dir, "./program", "--version"); !strings.HasPrefix(out, "matter-audit-verify version "+tag+", ") {
			t.Errorf("tag %s: %s", tag, out)
		}
	}
	if !bytes.Equal(programs[0], programs[1]) {
		t.Error("two builds of one commit differ")
	}
}

// TestWorkflow: only the publishing job, behind the tests and the reviewed environment, may write and has
// an identity; it runs at tags alone, and what it has make do exists.
func TestWorkflow(t *testing.T) {
	var w struct {
		On          map[string]map[string][]string `yaml:"on"`
		Permissions map[string]string              `yaml:"permissions"`
		Jobs        map[string]struct {
			Needs, Environment string
			Permissions        map[string]string
			Steps              []struct{ Run string }
		} `yaml:"jobs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, ".github/workflows/release.yml")), &w); err != nil {
		t.Fatal(err)
	}
	publish := w.Jobs["release"]
	if publish.Needs != "test" || publish.Environment != "release" || publish.Permissions["id-token"] != "write" {
		t.Errorf("release: %+v", publish)
	}
	if diff := cmp.Diff(map[string]string{"contents": "read"}, w.Permissions); diff != "" || len(w.Jobs["test"].Permissions) > 0 || len(w.Jobs) != 2 {
		t.Errorf("a job that does not publish gets more than to read:\n%s", diff)
	}
	if diff := cmp.Diff(map[string]map[string][]string{"push": {"tags": {"v*"}}}, w.On); diff != "" {
		t.Errorf("it runs (-want +got):\n%s", diff)
	}
	var made []string
	for _, s := range publish.Steps {
		if target, ok := strings.CutPrefix(s.Run, "make "); ok && strings.Contains(read(t, "Makefile"), "\n"+target+":") {
			made = append(made, target)
		}
	}
	if !slices.Equal(made, []string{"release"}) {
		t.Errorf("it makes %q", made)
	}
}
