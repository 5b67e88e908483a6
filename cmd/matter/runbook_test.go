package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
)

// block is one fenced block of the runbook.
type block struct {
	lang  string
	exit  int      // of its commands
	hooks []string // what the test does before
	text  string
}

var (
	fence = regexp.MustCompile("^```(sh|json)?(?: exit=([0-9]))?$")
	hook  = regexp.MustCompile(`^<!-- test: ([a-z-]+) -->$`)
)

// blocks reads the runbook. Anything between fences that is not sh or json is an
// error: nothing in the runbook is untested.
func blocks(t *testing.T, text string) []block {
	t.Helper()
	var out []block
	var hooks []string
	open := false
	for i, line := range strings.Split(text, "\n") {
		if m := hook.FindStringSubmatch(line); m != nil {
			hooks = append(hooks, m[1])
		}
		switch m := fence.FindStringSubmatch(line); {
		case m == nil && strings.HasPrefix(line, "```"):
			t.Fatalf("line %d: %q: use sh or json", i+1, line)
		case m == nil && open:
			out[len(out)-1].text += line + "\n"
		case m != nil && open:
			open = false
		case m != nil:
			exit, _ := strconv.Atoi(m[2])
			out = append(out, block{lang: m[1], exit: exit, hooks: hooks})
			open, hooks = true, nil
		}
	}
	return append(out, block{hooks: hooks})
}

// TestRunbook runs every command of docs/runbook.md in order, as it is written there
// but for the ids of KEKs, on a stack of its own.
func TestRunbook(t *testing.T) {
	t.Parallel() // it waits more than it works
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	w := deployed(t)
	w.dir = t.TempDir() // some commands write files
	w.followReadme(t, "## Deploy")
	commands := 0
	for _, b := range blocks(t, string(text)) {
		for _, h := range b.hooks {
			w.prepare(t, h)
		}
		switch b.lang {
		case "json":
			consoleInput(t, b.text)
		case "sh":
			for _, line := range strings.Split(strings.TrimSpace(b.text), "\n") {
				commands++
				if code := w.command(t, line); code != b.exit {
					t.Fatalf("%s: exit code %d, want %d", line, code, b.exit)
				}
			}
		}
	}
	if commands < 15 {
		t.Errorf("%d commands found: the runbook is not read", commands)
	}
	w.followReadme(t, "## Look around on the local AWS")
	w.followReadme(t, "## Emergency")
	w.holds(t)
	if err := w.openLetters(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestInterrupted: Ctrl-C is exit code 6, whatever it meets.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if code := runCommand(ctx, []string{"ops", "kms-status"}, &stdout, &stderr); code != console.ExitRunning || !strings.Contains(stderr.String(), "nothing is lost") {
		t.Errorf("interrupted: exit code %d, %s", code, stderr.String())
	}
}

// prepare does what a section of the runbook speaks of.
func (w *world) prepare(t *testing.T, what string) {
	t.Helper()
	var err error
	switch what {
	case "corrupt-corpus":
		w.undo, err = w.Set.CorruptCorpus(t.Context())
	case "restore-corpus":
		err = w.undo(t.Context())
	case "poison-row":
		err = w.poisonAfterSwitch(t, "Q2-2027-rotation")
	case "drop-row":
		err = w.deleteRow(t.Context())
	case "letters":
		var v kek.View
		if v, err = w.Deployment.Table.Load(t.Context(), ""); err == nil {
			err = errors.Join(w.writeLetters(t.Context(), v.Pointer.KEKID), w.writeDefinition())
		}
	case "back-up-rows":
		err = w.backUpRows(t.Context())
	case "orphan-rows":
		err = w.orphanRows(t.Context())
	case "enable-old":
		err = w.allowRetired(t.Context(), true)
	case "disable-old":
		err = w.allowRetired(t.Context(), false)
	case "lose-pointer":
		err = w.deleteControl(t.Context(), "POINTER", "-")
	case "keep-control":
		w.control, err = w.scanControl(t.Context())
	case "restore-control":
		err = w.putBackControl(t.Context())
	default:
		t.Fatalf("the runbook asks for %q", what)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// poisonAfterSwitch has a row appear, under a KEK that nobody knows, when a rotation that
// is about to start has switched; a lease holds it there meanwhile.
func (w *world) poisonAfterSwitch(t *testing.T, id string) error {
	t.Helper()
	v, err := w.Deployment.Table.Load(t.Context(), "")
	if err != nil {
		return err
	}
	l := rotation.Lease{KEK: v.Pointer.KEKID, Holder: "worker-1", Host: "app-7", PID: 4711, Refs: 1, Expires: time.Now().Add(time.Hour)}
	if err := w.leases.PutLease(t.Context(), l); err != nil {
		return err
	}
	var done sync.WaitGroup
	t.Cleanup(done.Wait)
	done.Go(func() {
		for t.Context().Err() == nil {
			v, err := w.Deployment.Table.Load(t.Context(), id)
			if err == nil && v.Rotation != nil && v.Rotation.Phase == kek.Switched {
				if err := errors.Join(w.putRow(t.Context(), "00000000-0000-0000-0000-000000000000"), w.leases.DropLease(t.Context(), l)); err != nil {
					t.Error(err)
				}
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return nil
}

var quoted = regexp.MustCompile(`"[^"]*"|\S+`)

// command runs one line of the runbook and returns its exit code.
func (w *world) command(t *testing.T, line string) int {
	t.Helper()
	all, err := w.Deployment.Table.Rotations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text := line
	if len(all) > 0 {
		r := all[len(all)-1]
		text = strings.NewReplacer("<new_kek_id>", string(r.NewKEK), "<old_kek_id>", string(r.OldKEK)).Replace(line)
	}
	text = strings.ReplaceAll(text, "<historic_kek_id>", string(w.historic))
	inner, evaluated := strings.CutPrefix(text, `eval "$(`)
	if evaluated {
		text = strings.Replace(strings.TrimSuffix(inner, `)"`), "--stack matter", "--stack "+w.Name, 1)
	}
	var args []string
	for _, word := range quoted.FindAllString(text, -1) {
		args = append(args, strings.Trim(word, `"`))
	}
	if len(args) < 2 || args[0] != "matter" || strings.ContainsAny(text, "<>|;&") {
		t.Fatalf("%q is not a command of matter alone", line)
	}
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = w.dir
	cmd.Env = os.Environ()
	for name, value := range w.Env() {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	t.Logf("$ %s\n%s%s", text, stdout.String(), stderr.String())
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if evaluated {
		w.evaluate(t, stdout.String())
	}
	return cmd.ProcessState.ExitCode()
}

// evaluate checks that the export lines are the variables that the stack has.
func (w *world) evaluate(t *testing.T, text string) {
	t.Helper()
	exports := regexp.MustCompile(`(?m)^export (MATTER_\w+)='(.*)'$`).FindAllStringSubmatch(text, -1)
	got := map[string]string{}
	for _, e := range exports {
		got[e[1]] = strings.ReplaceAll(e[2], `'\''`, "'")
	}
	for name, want := range w.Env() {
		if strings.HasPrefix(name, "MATTER_") && got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

// consoleInput checks that preflight takes an input that a person pastes, and the
// registry a definition.
func consoleInput(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(text, "kek_id_attribute") {
		if defs, err := app.ParseDefinitions([]byte(text)); err != nil || len(defs) != 1 {
			t.Errorf("%s: %v", text, err)
		}
		return
	}
	in, err := lambdastep.DecodePayload[rotation.ExecutionInput](json.RawMessage(text))
	emergency := in.Mode == "emergency" && in.Reason != ""
	if err != nil || !emergency && in.Drill != gates.DrillFailure && in.RequestedBy == "" {
		t.Errorf("%s: %+v, %v", text, in, err)
	}
}
