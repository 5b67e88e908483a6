package fips_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/fips"
)

// TestModeIsStrict: the mode that RunTests sets is one in which a test can fail.
func TestModeIsStrict(t *testing.T) { fips.RunTests(t, "TestRefusesNonces") }

// TestRefusesNonces is run by TestModeIsStrict: in strict mode a nonce that a program chooses is refused.
func TestRefusesNonces(t *testing.T) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cipher.NewGCM(block); (err != nil) != fips140.Enforced() {
		t.Errorf("strict mode %t: %v", fips140.Enforced(), err)
	}
}

const root = "../.."

// findModule returns the version of the module that the Makefile builds with.
func findModule(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^build-fips package-fips: export GOFIPS140 := (\S+)$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("the Makefile does not say GOFIPS140")
	}
	return string(m[1])
}

// TestProgramOfValidatedModule builds matter-audit-verify as make build-fips does, and verifies with it a
// chain of the test data, in strict mode; and refuses it with one byte changed.
func TestProgramOfValidatedModule(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the standard library once more")
	}
	module := findModule(t)
	program := filepath.Join(t.TempDir(), "matter-audit-verify")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/matter-audit-verify")
	build.Dir = root
	build.Env = append(os.Environ(), "GOFIPS140="+module, "GOFLAGS=-trimpath", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if !strings.HasPrefix(settings["GOFIPS140"], module+"-") || settings["DefaultGODEBUG"] != "fips140=on" {
		t.Errorf("built with module %q and %q", settings["GOFIPS140"], settings["DefaultGODEBUG"])
	}
	dir := filepath.Join(t.TempDir(), "chain")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "audit", "testdata", "chain-v1"))); err != nil {
		t.Fatal(err)
	}
	verifyChain(t, program, dir, module, 0)
	changeByte(t, filepath.Join(dir, "copy", "v1", "matter", "records", "000000000004.json"))
	verifyChain(t, program, dir, module, 1)
}

// verifyChain runs the program in strict mode, which it must say that it is in.
func verifyChain(t *testing.T, program, dir, module string, want int) {
	t.Helper()
	for _, run := range []struct {
		args []string
		says string
		code int
	}{
		{[]string{"--version"}, "FIPS 140-3 module " + module, 0},
		{[]string{"--trust", filepath.Join(dir, "trust.json"), "--chain", "matter", "--retention-days", "36500", "--max-tail", "2000000h", filepath.Join(dir, "copy")}, "9 anchored at log index 3", want},
	} {
		cmd := exec.CommandContext(t.Context(), program, run.args...)
		cmd.Env = append(os.Environ(), fips.Strict)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != run.code || run.code == 0 && !bytes.Contains(out, []byte(run.says)) {
			t.Errorf("%v: %v, want exit code %d and %q\n%s", run.args, cmd.ProcessState, run.code, run.says, out)
		}
	}
}

func changeByte(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte(`"time":"`)) + len(`"time":"`)
	b[at+3] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
