package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// emulator is one function under the real Lambda Runtime Interface Emulator.
type emulator struct{ url string }

// emulate starts a built function under the emulator that the aws-sam-cli wheel
// ships, with the environment that the deployed function has.
func (w *world) emulate(t *testing.T, function string) emulator {
	t.Helper()
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "arm64"}[runtime.GOARCH]
	found, err := filepath.Glob(filepath.Join(root, ".venv/lib/python3.*/site-packages/samcli/local/rapid/aws-lambda-rie-"+arch))
	if err != nil || len(found) != 1 {
		t.Fatalf("the emulator is not there: make venv (%v, %v)", found, err)
	}
	ports := freePorts(t)
	bootstrap := filepath.Join(root, "build", "local", function, "bootstrap")
	cmd := exec.CommandContext(t.Context(), found[0],
		"--runtime-interface-emulator-address", fmt.Sprintf("127.0.0.1:%d", ports[0]),
		"--runtime-api-address", fmt.Sprintf("127.0.0.1:%d", ports[1]), bootstrap)
	cmd.Env = []string{"AWS_LAMBDA_FUNCTION_NAME=" + w.Name + "-" + function, "AWS_LAMBDA_FUNCTION_TIMEOUT=60", "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	for k, v := range w.Env() {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("emulator of %s:\n%s", function, log.String())
		}
	})
	await(t, ports[0])
	return emulator{fmt.Sprintf("http://127.0.0.1:%d/2015-03-31/functions/function/invocations", ports[0])}
}

// freePorts returns two ports that nobody listened on, and not the same.
func freePorts(t *testing.T) (ports [2]int) {
	t.Helper()
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // nobody connected
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

func await(t *testing.T, port int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// invoke sends one payload and returns the answer.
func (e emulator) invoke(t *testing.T, payload []byte) map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.url, bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("answer %q: %v", b, err)
	}
	return out
}

// emulation runs the functions of one world by hand, each under its emulator.
type emulation struct {
	*world
	used map[string]bool // events
}

// step sends one payload and compares fields of the answer.
func (w *emulation) step(t *testing.T, function, what string, payload []byte, want map[string]any) map[string]any {
	t.Helper()
	e, ok := w.emulators[function]
	if !ok {
		e = w.emulate(t, function)
		w.emulators[function] = e
	}
	out := e.invoke(t, payload)
	for k, v := range want {
		if fmt.Sprint(out[k]) != fmt.Sprint(v) {
			t.Fatalf("%s with %s: %s is %v, want %v; answer %v", function, what, k, out[k], v, out)
		}
	}
	return out
}

// run sends the event of that name, as the repository ships it.
func (w *emulation) run(t *testing.T, event string, want map[string]any) map[string]any {
	t.Helper()
	payload, err := os.ReadFile(filepath.Join("..", "..", "events", event+".json"))
	if err != nil {
		t.Fatal(err)
	}
	w.used[event+".json"] = true
	function, _, _ := strings.Cut(event, "-")
	return w.step(t, function, event, payload, want)
}

// TestEmulator runs a whole rotation by hand: every built function, under the real
// emulator, with every event that the repository ships.
func TestEmulator(t *testing.T) {
	w := &emulation{world: up(t, nil), used: map[string]bool{}}
	w.traced(t)
	w.run(t, "preflight-check-only", map[string]any{"mode": "normal"})
	w.run(t, "preflight-announce", map[string]any{"mode": "normal"})
	w.run(t, "health", map[string]any{"ok": true, "green": 1})
	w.run(t, "schedule", map[string]any{"rotation_overdue": false, "preparation_overdue": false}) // nothing is due on the day of genesis
	if v := w.view(t, ""); v.Lock != "" {
		t.Fatalf("check only took the lock: %q", v.Lock)
	}
	plan := w.run(t, "preflight", map[string]any{"rotation_id": "Q2-2026-rotation"})
	w.run(t, "verify-census", map[string]any{"done": true})
	w.run(t, "mint", map[string]any{"attempt": 1})
	w.run(t, "retire-abandon", map[string]any{"done": true, "phase": "minted"}) // it has gone on: nothing is abandoned
	w.run(t, "rewrap-rehearse", map[string]any{"done": true})
	w.run(t, "dualunwrap", map[string]any{"corpus_entries": 24})
	w.run(t, "retire", map[string]any{"errorType": "Refused"})   // too early
	w.run(t, "approve", map[string]any{"errorType": "Approved"}) // this deployment asks nobody
	w.run(t, "switch", map[string]any{"epoch": 2})
	w.run(t, "retire-pre-switch-failure", map[string]any{"errorType": "Refused"}) // too late
	w.run(t, "drain", map[string]any{"done": true})
	w.run(t, "rewrap", map[string]any{"errorType": "InvalidInput"}) // its source is not one of this stack
	for _, s := range plan["rewrap"].(map[string]any)["left"].([]any) {
		segment := s.(map[string]any)
		segment["rotation_id"] = "Q2-2026-rotation"
		b, err := json.Marshal(segment)
		if err != nil {
			t.Fatal(err)
		}
		w.step(t, "rewrap", "a segment of the plan", b, map[string]any{"done": true})
	}
	w.run(t, "rewrap-complete", map[string]any{"done": true})
	w.run(t, "retire", map[string]any{"done": true, "phase": "retired"})
	w.run(t, "anchor", map[string]any{"log": "rekor.local"})
	w.run(t, "verify", map[string]any{"done": true})
	for _, event := range []string{"notify", "notify-started", "notify-drilled", "notify-rolledback", "notify-refused"} {
		w.run(t, event, map[string]any{"sent": true})
	}
	w.run(t, "notify-verifying", map[string]any{"sent": false}) // customers alone hear of it
	w.run(t, "notify-halted", map[string]any{"errorType": "Halted"})
	w.run(t, "notify-redriven", map[string]any{"sent": false})
	w.run(t, "retire-remint", map[string]any{"errorType": "Refused"}) // there is no such rotation
	if v := w.view(t, "Q2-2026-rotation"); v.Rotation.Phase != kek.Completed {
		t.Errorf("rotation %+v", v.Rotation)
	}
	w.mustHold(t)
	out := w.step(t, "mint", "an unknown field", []byte(`{"rotation_id":"Q2-2026-rotation","surprise":1}`), map[string]any{"errorType": "InvalidInput"})
	if !strings.Contains(fmt.Sprint(out["errorMessage"]), "surprise") {
		t.Errorf("the message does not name the field: %v", out)
	}
	w.allUsed(t)
}

// allUsed checks that no event of a function is shipped untried.
func (w *emulation) allUsed(t *testing.T) {
	t.Helper()
	all, err := os.ReadDir(filepath.Join("..", "..", "events"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), "execution-") && !w.used[e.Name()] {
			t.Errorf("events/%s is not run", e.Name())
		}
	}
}
