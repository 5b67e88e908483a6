package audit_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

var update = flag.Bool("update", false, "write the table of docs/audit.md and the findings of testdata again")

// views are the ways to look at a bucket.
var views = map[string]func(t *testing.T, b audit.Bucket) audit.Bucket{
	"bucket": func(_ *testing.T, b audit.Bucket) audit.Bucket { return b },
	"copy":   copied,
}

// copied copies a bucket into a directory and reads it from there.
func copied(t *testing.T, b audit.Bucket) audit.Bucket {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), b, dir); err != nil {
		t.Fatal(err)
	}
	d, err := audit.OpenDir(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func verify(tb testing.TB, b audit.Bucket, p audit.Policy) audit.Report {
	tb.Helper()
	r, err := audit.Verify(tb.Context(), b, p)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// TestSound is what the tampering suite rests on: without tampering nothing is
// found, with all that a verifier can remember.
func TestSound(t *testing.T) {
	for name, view := range views {
		t.Run(name, func(t *testing.T) {
			w := audittest.New(t)
			p := w.Policy
			p.Head = &w.Head
			for n := range w.Anchors {
				p.Known = append(p.Known, audittest.Known(t, w.Anchors[n]))
			}
			r := verify(t, view(t, w.Bucket), p)
			var unchecked []string
			if name == "copy" {
				unchecked = []string{"versions and locks are the copy's claim: who made the copy wrote its versions.json"}
			}
			if r.Result != audit.Green || len(r.Findings) != 0 || !slices.Equal(r.Unchecked, unchecked) {
				t.Fatalf("%s\nfindings %v\nunchecked %v", r, r.Findings, r.Unchecked)
			}
			if r.Records != 10 || r.Anchors != 3 || r.Anchored != 9 || r.LogIndex != 3 || *r.Last != p.Known[2] {
				t.Errorf("%+v", r)
			}
			if r.Chain != audittest.Chain || r.HeadHash != w.Head.Hash || r.AnchorAt.Format(time.TimeOnly) != "02:09:00" || r.Findings == nil {
				t.Errorf("%+v", r)
			}
			if want := "audit: 10 records, 9 anchored at log index 3 of rekor.test, verified"; r.String() != want {
				t.Errorf("got %q, want %q", r.String(), want)
			}
		})
	}
}

// TestTampering runs every case: verification names what was done, and what it
// cannot see without memory it does not see.
func TestTampering(t *testing.T) {
	if n := len(audittest.Cases()); n < 25 {
		t.Errorf("only %d cases", n)
	}
	for _, c := range audittest.Cases() {
		for name, view := range views {
			t.Run(c.Name+"/"+name, func(t *testing.T) { audittest.Run(t, c, view) })
		}
	}
}

// TestNothingAnchored: a report of no anchor has no entry in a log, and entry 0 is one.
func TestNothingAnchored(t *testing.T) {
	r := verify(t, &audittest.Bucket{}, audittest.New(t).Policy)
	if r.LogIndex != -1 || r.Last != nil || r.Result != audit.Unproven {
		t.Errorf("%+v", r)
	}
	log, w := rekortest.New(t), audittest.New(t)
	w.Log, w.Policy.Trust.Logs = log, []audit.Log{log.Trust()}
	for n := range w.Anchors {
		w.Anchors[n] = w.Prove(w.Anchors[n].Signed, log.Submit(t, w.Anchors[n].Signed))
		b, err := w.Anchors[n].Encode()
		if err != nil {
			t.Fatal(err)
		}
		w.Bucket.Replace(anchor(int64(n)+1), b)
	}
	if r := verify(t, w.Bucket, w.Policy); r.Result != audit.Green || w.Anchors[0].Proof.Index != 0 || r.LogIndex != 2 {
		t.Errorf("%s: %v", r, r.Findings)
	}
}

// changing are the parts of findings that differ from run to run.
var changing = regexp.MustCompile(`[0-9a-f]{64}|\[[0-9 ]+\]|\+[0-9a-f]{8}`)

// TestFindings holds every case to all of its findings, and to the verdict: one fault
// is one finding, and what it does not touch is still verified.
func TestFindings(t *testing.T) {
	const golden = "testdata/findings.txt"
	want, err := os.ReadFile(golden)
	if err != nil && !*update {
		t.Fatal(err)
	}
	for name, view := range views {
		var got strings.Builder
		for _, c := range audittest.Cases() {
			w := audittest.New(t)
			c.Tamper(w)
			p := w.Policy
			if c.Memory != nil {
				c.Memory(w, &p)
			}
			r := verify(t, view(t, w.Bucket), p)
			fmt.Fprintf(&got, "%s\n\t%s, tail %s\n", c.Name, r, r.TailAge)
			for _, f := range r.Findings {
				fmt.Fprintf(&got, "\t%s\n", changing.ReplaceAllString(f.String(), "…"))
			}
		}
		if *update {
			if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
		if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
			t.Errorf("%s: the findings of %s (-want +got):\n%s", name, golden, d)
		}
	}
}

// TestPlainCopy shows that a copy without a manifest is verified as far as it
// goes, and that the report says how far.
func TestPlainCopy(t *testing.T) {
	w := audittest.New(t)
	dir := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), w.Bucket, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, audit.ManifestName)); err != nil {
		t.Fatal(err)
	}
	d, err := audit.OpenDir(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r := verify(t, d, w.Policy)
	if r.Result != audit.Green || len(r.Unchecked) != 4 {
		t.Errorf("%s, unchecked %q", r, r.Unchecked)
	}
}

// TestCopyTampered changes the copy itself: a file more, a file less.
func TestCopyTampered(t *testing.T) {
	w := audittest.New(t)
	for name, c := range map[string]struct {
		change func(dir string) error
		kind   audit.Kind
		object string
	}{
		"a file more": {
			func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "v1", "matter", "records", "extra"), []byte("x"), 0o600)
			}, audit.StrayObject, "v1/matter/records/extra",
		},
		"a file less": {
			func(dir string) error { return os.Remove(filepath.Join(dir, audit.ObjectKey("matter", 5))) },
			audit.MissingRecord, audit.ObjectKey("matter", 5),
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "copy")
			if err := audit.Copy(t.Context(), w.Bucket, dir); err != nil {
				t.Fatal(err)
			}
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			d, err := audit.OpenDir(os.DirFS(dir))
			if err != nil {
				t.Fatal(err)
			}
			audittest.MustFind(t, verify(t, d, w.Policy), c.kind, c.object)
		})
	}
}

// TestCopyStaysInside copies an object whose key leads out of the directory.
func TestCopyStaysInside(t *testing.T) {
	w := audittest.New(t)
	w.Bucket.Put("../outside.json", []byte("x"), audit.Lock{})
	w.Bucket.Put("/etc/outside.json", []byte("y"), audit.Lock{})
	parent := t.TempDir()
	if err := audit.Copy(t.Context(), w.Bucket, filepath.Join(parent, "copy")); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
		t.Errorf("the copy wrote outside of its directory: %v %v", entries, err)
	}
	if err := audit.Copy(t.Context(), w.Bucket, filepath.Join(parent, "copy")); err == nil {
		t.Error("a second copy into the same directory succeeded")
	}
}

const (
	doc   = "../docs/audit.md"
	begin = "<!-- tampering table: go test ./audit -run TestDocumented -update -->\n"
	end   = "<!-- end of the tampering table -->\n"
)

// TestDocumented holds the table of docs/audit.md to the cases that run.
func TestDocumented(t *testing.T) {
	var table strings.Builder
	table.WriteString("| What was done | Found as | Named object | Verdict |\n|---|---|---|---|\n")
	for _, c := range audittest.Cases() {
		if c.Memory == nil {
			fmt.Fprintf(&table, "| %s | `%s` | `%s` | %s |\n", c.Name, c.Kind, c.Object, c.Result())
		}
	}
	table.WriteString("\nThese show only to a verifier who remembers something from outside the bucket:\n\n")
	table.WriteString("| What was done | Without memory | Why | With memory |\n|---|---|---|---|\n")
	for _, c := range audittest.Cases() {
		if c.Memory != nil {
			fmt.Fprintf(&table, "| %s | %s | %s | `%s` |\n", c.Name, c.Before, c.Reason, c.Kind)
		}
	}
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := bytes.Cut(b, []byte(begin))
	_, tail, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", doc)
	}
	want := string(head) + begin + table.String() + end + string(tail)
	if *update {
		if err := os.WriteFile(doc, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(b) != want {
		t.Errorf("the table of %s is not that of the cases: go test ./audit -run TestDocumented -update", doc)
	}
}

// TestDocumentedTrust holds the trust list of docs/audit.md to what is read.
func TestDocumentedTrust(t *testing.T) {
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(b, []byte("```json\n"))
	list, _, ok := bytes.Cut(rest, []byte("```"))
	trust, err := audit.ParseTrust(list)
	if !ok || err != nil || len(trust.Logs) != 1 || len(trust.AnchorKeys) != 1 {
		t.Errorf("%v\n%s", err, list)
	}
}
