package tlc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// counter counts to a bound, or for ever.
const counter = `---- MODULE counter ----
EXTENDS Naturals
CONSTANT Max
VARIABLE n
Init == n = 0
Count == n < Max /\ n' = n + 1
Spec == Init /\ [][Count]_n
Fair == Spec /\ WF_n(Count)
Small == n < 3
Steady == [][n' = n]_n
Ends == <>(n = 3)
====
`

func run(config string) Run {
	return Run{Module: "counter", Files: map[string]string{"counter": counter}, Config: config}
}

func installed(t *testing.T) {
	t.Helper()
	if _, err := Jar(); errors.Is(err, ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip(err)
	}
}

func TestCheck(t *testing.T) {
	installed(t)
	const some = -1 // how long a liveness counterexample is TLC is free to choose
	cases := []struct {
		config, verdict string
		distinct        int64
		actions         int
	}{
		{"SPECIFICATION Spec\nCONSTANT Max = 2\nINVARIANT Small", Holds, 3, 0},
		{"SPECIFICATION Spec\nCONSTANT Max = 3\nINVARIANT Small", "Small", 4, 4},
		{"SPECIFICATION Spec\nCONSTANT Max = 1\nPROPERTY Steady", "Steady", 2, 2},
		{"SPECIFICATION Fair\nCONSTANT Max = 3\nPROPERTY Ends", Holds, 4, 0},
		{"SPECIFICATION Spec\nCONSTANT Max = 3\nPROPERTY Ends", Temporal, 4, some},
	}
	for _, c := range cases {
		r, err := Check(t.Context(), run(c.config))
		if err != nil {
			t.Fatal(err)
		}
		actions := len(r.Actions)
		if c.actions == some && actions > 0 {
			actions = some
		}
		if r.Verdict != c.verdict || r.Distinct != c.distinct || actions != c.actions {
			t.Errorf("%q: %s, %d states, %v", c.config, r.Verdict, r.Distinct, r.Actions)
		}
	}
}

// TestCount: what is counted is how often an action is taken, also if it never is.
func TestCount(t *testing.T) {
	installed(t)
	for config, want := range map[string]Taken{
		"SPECIFICATION Spec\nCONSTANT Max = 2": {"counter", "Count", 2, 2},
		"SPECIFICATION Spec\nCONSTANT Max = 0": {"counter", "Count", 0, 0},
	} {
		r := run(config)
		r.Count = true
		found, err := Check(t.Context(), r)
		if err != nil || !slices.Contains(found.Taken, want) {
			t.Errorf("%v: %+v, want %+v", err, found.Taken, want)
		}
	}
}

// TestWalk: random walks find what is violated, and end with their context.
func TestWalk(t *testing.T) {
	installed(t)
	r := run("SPECIFICATION Spec\nCONSTANT Max = 9\nINVARIANT Small")
	r.Walk, r.Seed = 20, 1
	found, err := Check(t.Context(), r)
	if err != nil || found.Verdict != "Small" || found.Depth != 4 {
		t.Errorf("%v: %s after %d states", err, found.Verdict, found.Depth)
	}
	r.Config = "SPECIFICATION Spec\nCONSTANT Max = 2\nINVARIANT Small"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if walked, err := Check(ctx, r); err != nil || walked.Verdict != Unfinished {
		t.Errorf("%v: %s", err, walked.Verdict)
	}
}

// TestNotChecked holds Check to give no verdict where TLC gave none.
func TestNotChecked(t *testing.T) {
	installed(t)
	for _, config := range []string{"", "SPECIFICATION Spec\nCONSTANT Max = 2\nINVARIANT NoSuch"} {
		if r, err := Check(t.Context(), run(config)); err == nil {
			t.Errorf("%q: verdict %s", config, r.Verdict)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Check(ctx, run("SPECIFICATION Spec\nCONSTANT Max = 2")); err != nil || r.Verdict != Unfinished {
		t.Errorf("cancelled: %s, %v", r.Verdict, err)
	}
}

// TestJava: whatever Java is in the path, TLC runs on that of the environment, or not at
// all.
func TestJava(t *testing.T) {
	installed(t)
	t.Setenv("PATH", t.TempDir())
	if r, err := Check(t.Context(), run("SPECIFICATION Spec\nCONSTANT Max = 2")); err != nil || r.Verdict != Holds {
		t.Errorf("nothing in the path: %s, %v", r.Verdict, err)
	}
	jar, err := Jar()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TLA2TOOLS_JAR", jar)
	t.Setenv("MATTER_ROOT", t.TempDir())
	if _, err := Check(t.Context(), run("")); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("no environment: %v", err)
	}
}

func TestJarIsChecked(t *testing.T) {
	root := t.TempDir()
	t.Setenv("TLA2TOOLS_JAR", "")
	t.Setenv("MATTER_ROOT", root)
	if _, err := Jar(); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("no jar: %v", err)
	}
	if err := os.Mkdir(filepath.Join(root, "build"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "build", "tla2tools.jar"), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Jar(); err == nil || errors.Is(err, ErrNotInstalled) {
		t.Errorf("another jar: %v", err)
	}
}
