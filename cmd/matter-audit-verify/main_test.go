package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/audittest"
)

// site is a copied bucket with the trust list of its auditor.
type site struct {
	*audittest.World
	trust string
}

func newSite(t *testing.T) site {
	t.Helper()
	w := audittest.New(t)
	b, err := json.Marshal(w.Policy.Trust)
	if err != nil {
		t.Fatal(err)
	}
	s := site{w, filepath.Join(t.TempDir(), "trust.json")}
	if err := os.WriteFile(s.trust, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// verify copies the bucket as it is now and runs the command on the copy.
func (s site) verify(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), s.Bucket, dir); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	args = append([]string{"--trust", s.trust, "--chain", audittest.Chain, "--retention-days", "36500"}, args...)
	code = run(append(args, dir), &out, &errs, s.Policy.Now)
	return code, out.String(), errs.String()
}

func TestGreen(t *testing.T) {
	s := newSite(t)
	last := audittest.Known(t, s.Anchors[2])
	code, out, errs := s.verify(t, "--known-anchor", last.String(), "--known-head", "10:"+s.Head.Hash)
	want := "remember: --known-anchor " + last.String() + "\n" +
		"audit: 10 records, 9 anchored at log index 3 of rekor.test, verified\n"
	if code != exitGreen || out != want || errs != "" {
		t.Errorf("exit code %d\n%s%s\nwant\n%s", code, out, errs, want)
	}
}

func TestJSON(t *testing.T) {
	code, out, _ := newSite(t).verify(t, "-o", "json")
	var r audit.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitGreen || r.Result != audit.Green || len(r.Unchecked) != 2 {
		t.Errorf("exit code %d, %v\n%s", code, err, out)
	}
}

// TestTampering runs the tampering suite through the command: the exit code and
// the words tell a script and a person.
func TestTampering(t *testing.T) {
	for _, c := range audittest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			s := newSite(t)
			c.Tamper(s.World)
			b, err := json.Marshal(s.Policy.Trust) // a case may have changed it
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.trust, b, 0o600); err != nil {
				t.Fatal(err)
			}
			var args []string
			if c.Memory != nil {
				c.Memory(s.World, &s.Policy)
				for _, k := range s.Policy.Known {
					args = append(args, "--known-anchor", k.String())
				}
				if s.Policy.Head != nil {
					args = append(args, "--known-head", "10:"+s.Policy.Head.Hash)
				}
			}
			args = append(args, "--max-tail", s.Policy.MaxTail.String())
			code, out, errs := s.verify(t, args...)
			want := map[audit.Result]int{audit.Tampered: exitTampered, audit.Unproven: exitUnproven}[c.Result()]
			if code != want || !strings.Contains(out, c.Object+": "+string(c.Kind)+": ") {
				t.Errorf("exit code %d, want %d\n%s%s", code, want, out, errs)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte(`{"logs":[{"url":"","origin":"a b","key":"AA==","valid_from":"2026-01-01T00:00:00Z"}],"anchor_keys":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":          {nil, exitUsage, "name one directory"},
		"no trust":         {[]string{"--chain", "matter", dir}, exitUsage, "--trust and --chain are required"},
		"unknown flag":     {[]string{"--what", dir}, exitUsage, "see --help"},
		"bad known anchor": {[]string{"--trust", s.trust, "--chain", "m", "--known-anchor", "x", dir}, exitUsage, "known anchor"},
		"bad known head":   {[]string{"--trust", s.trust, "--chain", "m", "--known-head", "x", dir}, exitUsage, "want a sequence number"},
		"bad format":       {[]string{"--trust", s.trust, "--chain", "m", "-o", "xml", dir}, exitUsage, "use text or json"},
		"help":             {[]string{"--help"}, exitGreen, "usage: matter-audit-verify"},
		"no directory":     {[]string{"--trust", s.trust, "--chain", "m", bad}, exitTampered, "is no directory"},
		"bad trust":        {[]string{"--trust", bad, "--chain", "m", dir}, exitTampered, "logs[0].url"},
		"empty":            {[]string{"--trust", s.trust, "--chain", "m", dir}, exitUnproven, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "empty" {
				c.args[len(c.args)-1] = t.TempDir()
			}
			var out, errs bytes.Buffer
			if code := run(c.args, &out, &errs, s.Policy.Now); code != c.code || !strings.Contains(errs.String(), c.says) {
				t.Errorf("exit code %d, want %d\n%s%s", code, c.code, out.String(), errs.String())
			}
		})
	}
}
