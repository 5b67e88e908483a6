package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/test/audittest"
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
	code = runCommand(append(args, dir), &out, &errs, s.Policy.Now)
	return code, out.String(), errs.String()
}

func TestGreen(t *testing.T) {
	s := newSite(t)
	last := audittest.Known(t, s.Anchors[2])
	code, out, errs := s.verify(t, "--known-anchor", last.String(), "--known-head", "10:"+s.Head.Hash)
	want := "not checked: versions and locks are the copy's claim: who made the copy wrote its versions.json\n" +
		"remember: --known-anchor " + last.String() + "\n" +
		"audit: 10 records, 9 anchored at log index 3 of rekor.test, verified\n"
	if code != exitGreen || out != want || errs != "" {
		t.Errorf("exit code %d\n%s%s\nwant\n%s", code, out, errs, want)
	}
}

func TestJSON(t *testing.T) {
	code, out, _ := newSite(t).verify(t, "-o", "json")
	var r audit.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitGreen || r.Result != audit.Green || len(r.Unchecked) != 3 {
		t.Errorf("exit code %d, %v\n%s", code, err, out)
	}
}

// TestDefaultTail: a record may wait for the three hours that docs/audit.md names, which
// the schedule keeps.
func TestDefaultTail(t *testing.T) {
	o, err := parseFlags([]string{"--trust", "t", "--chain", "c", "dir"}, io.Discard)
	if err != nil || o.policy.MaxTail != 3*time.Hour {
		t.Errorf("%s, %v", o.policy.MaxTail, err)
	}
	s := newSite(t)
	made, err := time.Parse(time.RFC3339, s.Entries[9].Record.Time)
	if err != nil {
		t.Fatal(err)
	}
	for age, want := range map[time.Duration]int{time.Hour + 15*time.Minute: exitGreen, 3 * time.Hour: exitGreen, 3*time.Hour + 1: exitUnproven} {
		s.Policy.Now = made.Add(age)
		if code, out, _ := s.verify(t); code != want {
			t.Errorf("%s: exit code %d, want %d\n%s", age, code, want, out)
		}
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

// TestDesktopFiles: a file that a desktop added to the copy does not count as tampering, and is named.
func TestDesktopFiles(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), s.Bucket, dir); err != nil {
		t.Fatal(err)
	}
	verify := func(added string, want int, says string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "v1", audittest.Chain, added), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		code := runCommand([]string{"--trust", s.trust, "--chain", audittest.Chain, dir}, &out, &errs, s.Policy.Now)
		if code != want || !strings.Contains(out.String(), says) || (code == exitTampered) == strings.Contains(out.String(), "remember:") {
			t.Errorf("%s: exit code %d\n%s%s", added, code, out.String(), errs.String())
		}
	}
	verify(".DS_Store", exitGreen, "not checked: the file v1/"+audittest.Chain+"/.DS_Store: desktops write such files")
	verify("other", exitTampered, "stray_object")
}

// TestDamagedManifest: a copy that cannot be read proves nothing; it is not the command line's
// fault.
func TestDamagedManifest(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), s.Bucket, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, audit.ManifestName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if code := runCommand([]string{"--trust", s.trust, "--chain", audittest.Chain, dir}, &out, &errs, s.Policy.Now); code != exitUnproven || !strings.Contains(errs.String(), "nothing is proven: the copy cannot be read") {
		t.Errorf("exit code %d\n%s%s", code, out.String(), errs.String())
	}
}

func TestUsage(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte(`{"logs":[{"url":"","origin":"a b","key":"AA==","valid_from":"2026-01-01T00:00:00Z"}],"anchor_keys":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), s.Bucket, other); err != nil {
		t.Fatal(err)
	}
	keyless := filepath.Join(dir, "keyless.json")
	logs, err := json.Marshal(audit.Trust{Logs: s.Policy.Trust.Logs})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyless, logs, 0o600); err != nil {
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
		"version":          {[]string{"--version"}, exitGreen, ""},
		"no directory":     {[]string{"--trust", s.trust, "--chain", "m", bad}, exitUsage, "is not a directory"},
		"no trust file":    {[]string{"--trust", dir + "/none", "--chain", "m", dir}, exitUsage, "--trust: open "},
		"bad trust":        {[]string{"--trust", bad, "--chain", "m", dir}, exitUsage, "logs[0].url"},
		"no anchor key":    {[]string{"--trust", keyless, "--chain", "m", dir}, exitUsage, "anchor_keys: at least one is required"},
		"no chain":         {[]string{"--trust", s.trust, "--chain", "m", dir}, exitUsage, "--chain m: the directory has files and no chain"},
		"other chain":      {[]string{"--trust", s.trust, "--chain", "m", other}, exitUsage, "--chain m: the copy has no object of that chain; it has " + audittest.Chain},
		"empty":            {[]string{"--trust", s.trust, "--chain", "m", dir}, exitUnproven, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "empty" {
				c.args[len(c.args)-1] = t.TempDir()
			}
			var out, errs bytes.Buffer
			if code := runCommand(c.args, &out, &errs, s.Policy.Now); code != c.code || !strings.Contains(errs.String(), c.says) {
				t.Errorf("exit code %d, want %d\n%s%s", code, c.code, out.String(), errs.String())
			}
		})
	}
}

// TestModel: with --model a record that is not a step of the specification is named, which is neither
// tampering nor unproven, and without it is not looked for.
func TestModel(t *testing.T) {
	s := newSite(t) // its records have types of rotations, and say nothing of what a rotation does
	code, out, errs := s.verify(t, "--model")
	if code != exitForeign || !strings.Contains(out, "NOT OF THE MODEL") || !strings.Contains(out, "\naudit: 10 records") || errs != "" {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	code, out, _ = s.verify(t, "--model", "-o", "json")
	var r struct {
		audit.Report
		Model *replay.Report
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitForeign || r.Result != audit.Green || r.Model == nil || len(r.Model.Findings) == 0 {
		t.Errorf("exit code %d, %v\n%s", code, err, out)
	}
	if code, out, _ := s.verify(t); code != exitGreen || strings.Contains(out, "model") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
