package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/report"
)

// TestReportUsage: mistakes are told before anything is read.
func TestReportUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{}, "--rotation is required"},
		{[]string{"--rotation", "r", "-o", "pdf"}, `-o "pdf": use html or json`},
	} {
		cmd := newReportCommand()
		cmd.SetArgs(c.args)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		err := cmd.ExecuteContext(t.Context())
		var usage console.UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("report %q: %v", c.args, err)
		}
	}
}

// TestWriteReport: a report goes to the standard output or, as a whole, into a file;
// one of tampering fails all the same.
func TestWriteReport(t *testing.T) {
	green := report.Report{
		Rotation: report.Rotation{ID: "Q2-2026-rotation"}, Outcome: report.Outcome{Title: "Completed"},
		Audit: report.Audit{Verification: report.Verification{Result: audit.Green, Summary: "verified"}},
	}
	tampered := green
	tampered.Audit.Verification.Result = audit.Tampered
	file := filepath.Join(t.TempDir(), "r.html")
	for _, c := range []struct {
		name        string
		r           report.Report
		out, format string
		err         error
		says, has   string // what the standard output and the file begin with
	}{
		{"html", green, "", "html", nil, "<!doctype html>", ""},
		{"json", green, "", "json", nil, "{\n  \"v\"", ""},
		{"file", green, file, "html", nil, "Q2-2026-rotation: Completed; verified\nreport in " + file, "<!doctype html>"},
		{"tampered", tampered, file, "json", console.Exit(console.ExitFailed), "Q2-2026-rotation: Completed", "{\n  \"v\""},
	} {
		var out, errs bytes.Buffer
		cmd := &cobra.Command{}
		cmd.SetOut(&out)
		cmd.SetErr(&errs)
		err := writeReport(cmd, c.r, c.out, c.format)
		if !errors.Is(err, c.err) || !strings.HasPrefix(out.String(), c.says) || (errs.Len() > 0) != (c.err != nil) {
			t.Errorf("%s: %v\n%.200s\n%s", c.name, err, out.String(), errs.String())
		}
		if c.out != "" {
			if b, err := os.ReadFile(c.out); err != nil || !bytes.HasPrefix(b, []byte(c.has)) {
				t.Errorf("%s: %v %.80s", c.name, err, b)
			}
		}
	}
}

// TestReplaceFile: what cannot be written leaves the file that was there.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "r.html")
	if err := os.WriteFile(file, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err := replaceFile(file, func(w io.Writer) error { _, _ = io.WriteString(w, "half"); return broken })
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "before" {
		t.Errorf("%s, %v", b, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
