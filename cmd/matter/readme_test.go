package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// notFollowed are the commands of README.md that TestRunbook does not run, and why.
var notFollowed = map[string]string{
	"make demo":                             "it starts a stack of its own and takes minutes: part of making a release (docs/releasing.md)",
	"make test":                             "CI runs it, and this test with it",
	"make build venv dynoxide rekor-server": "make test makes them before its tests",
	"make build":                            "make test makes it before its tests",
	"make package ARCH=arm64":               "it compiles for minutes: make release-snapshot runs it",
	"bin/matter-local up --detach":          "it starts a stack; the test has one, and writes the same .local/env",
	"bin/matter-local down":                 "it ends that stack",
	"sam deploy --guided":                   "it needs an AWS account; TestSamDeploy of examples has sam read the same settings",
}

// readmeBlocks returns the indented lines of README.md by section, without comments. Lines of JSON are one entry.
func readmeBlocks(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][]string{}
	fenced, section := false, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		shown, indented := strings.CutPrefix(line, "    ")
		switch {
		case strings.HasPrefix(line, "```"):
			if fenced = !fenced; fenced && line != "```mermaid" {
				t.Fatalf("README.md: %s: indent commands by four spaces, so that they are run", line)
			}
		case fenced:
		case strings.HasPrefix(line, "## "):
			section = line
		case indented:
			shown, _, _ = strings.Cut(shown, " # ")
			blocks[section] = append(blocks[section], strings.TrimSpace(shown))
		}
	}
	return blocks
}

// isJSON reports whether a line is one of a JSON document, of which TestSourcesOfTheDocuments of examples
// and [consoleInput] take care.
func isJSON(line string) bool { return regexp.MustCompile(`^["{[]`).MatchString(line) }

// readmeCommands returns the commands of a section that are to be run, in order.
func readmeCommands(t *testing.T, section string) (commands []string) {
	t.Helper()
	for _, line := range readmeBlocks(t)[section] {
		if isJSON(line) {
			continue
		}
		for command := range strings.SplitSeq(line, " && ") {
			if _, not := notFollowed[command]; !not {
				commands = append(commands, command)
			}
		}
	}
	return commands
}

// followed are the sections whose commands TestRunbook runs.
var followed = []string{"## Deploy", "## Look around on the local AWS", "## Emergency"}

// TestReadme: each command of README.md is run by TestRunbook, or notFollowed says why not; each of make is one.
func TestReadme(t *testing.T) {
	unused := map[string]bool{}
	for command := range notFollowed {
		unused[command] = true
	}
	for section, lines := range readmeBlocks(t) {
		for _, line := range lines {
			for command := range strings.SplitSeq(line, " && ") {
				delete(unused, command)
				if target, ok := strings.CutPrefix(command, "make "); ok {
					makeKnows(t, target)
				}
			}
		}
		if left := readmeCommands(t, section); len(left) > 0 && !strings.Contains(strings.Join(followed, "\n"), section) {
			t.Errorf("README.md, %s: no test runs %q", section, left)
		}
	}
	for command := range unused {
		t.Errorf("README.md has no %q any more", command)
	}
}

// makeKnows has make say what it would do.
func makeKnows(t *testing.T, target string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", append([]string{"-n"}, strings.Fields(target)...)...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("make %s: %v\n%s", target, err, out)
	}
}

// followReadme runs the commands of a section of README.md in one shell, in a folder like a clone's.
// What a reader puts in is put in: the stack's name, the key, the file of sources.
func (w *world) followReadme(t *testing.T, section string) {
	t.Helper()
	pointer, err := w.Deployment.Table.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	commands := readmeCommands(t, section)
	if section == "## Emergency" { // after a halt, which the runbook has
		commands = w.withoutRunbook(t, commands)
	}
	if len(commands) == 0 {
		t.Fatalf("README.md, %s: no command", section)
	}
	script := strings.NewReplacer("--stack NAME", "--stack "+w.Name, "--kek-id KEY_ID", "--kek-id "+string(pointer.Pointer.KEKID)).Replace(strings.Join(commands, "\n"))
	cmd := exec.CommandContext(t.Context(), "bash", "-euvc", script)
	cmd.Dir = w.layClone(t)
	cmd.Env = w.readmeEnv(section)
	out, err := cmd.CombinedOutput()
	t.Logf("%s\n%s", section, out)
	if err != nil {
		t.Fatalf("README.md, %s: %v\n%s", section, err, out)
	}
	for _, line := range readmeBlocks(t)[section] {
		if strings.HasPrefix(line, `{"mode"`) {
			consoleInput(t, line)
		}
	}
}

// withoutRunbook leaves out the commands that the runbook has word for word.
func (w *world) withoutRunbook(t *testing.T, commands []string) (left []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		if !strings.Contains(string(text), "\n"+c+"\n") {
			left = append(left, c)
		}
	}
	return left
}

// layClone makes a folder with what the commands find in a clone after make build and matter-local up.
func (w *world) layClone(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	program, err := exec.LookPath("matter")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(program), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, ".local"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteEnv(filepath.Join(dir, ".local", "env")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.json"), []byte(w.Env()["MATTER_SOURCES"]), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// readmeEnv is the environment of the shell: before "matter ops env" or .local/env a reader
// has at most the credentials.
func (w *world) readmeEnv(section string) (env []string) {
	env = os.Environ()
	for name, value := range w.Env() {
		if section == "## Emergency" || section == "## Deploy" && strings.HasPrefix(name, "AWS_") {
			env = append(env, name+"="+value)
		}
	}
	return env
}
