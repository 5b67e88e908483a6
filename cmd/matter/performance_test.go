package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/rotation/estimate"
)

// billion is the command whose figures docs/performance.md has; the first column of its table
// are the flags that come after.
const billion = "ops kms-plan --rows 1e9 --segments 40 --concurrency 40 -o json"

// billionRow returns the row of the table for flags.
func billionRow(t *testing.T, flags string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	if code := runCommand(t.Context(), append(strings.Fields(billion), strings.Fields(flags)...), &out, &stderr); code != 0 {
		t.Fatalf("%s: %s", flags, stderr.String())
	}
	var p struct {
		Estimate struct {
			Phases []estimate.Phase `json:"phases"`
			Total  estimate.Phase   `json:"total"`
		} `json:"estimate"`
		Total    float64           `json:"total"`
		Excesses []estimate.Excess `json:"cannot_end"`
	}
	if err := json.Unmarshal(out.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	row := "| " + flags + " |"
	for _, ph := range p.Estimate.Phases {
		if ph.Name == estimate.Census || ph.Name == estimate.Rewrap || ph.Name == estimate.Verify {
			row += fmt.Sprintf(" %s, %s |", estimate.FormatDays(ph.Time), ph.Binds)
		}
	}
	ends := "ends"
	if len(p.Excesses) > 0 {
		ends = "refused: " + p.Excesses[0].Limit
	}
	return row + fmt.Sprintf(" %s | %.0f | %s |", estimate.FormatDays(p.Estimate.Total.Time), p.Total, ends)
}

// TestBillionRows: the figures of docs/performance.md are those that the command prints.
func TestBillionRows(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "performance.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "matter "+strings.TrimSuffix(billion, " -o json")) {
		t.Errorf("docs/performance.md has no %q", billion)
	}
	found := 0
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "| --kms-rate") {
			continue
		}
		found++
		want := billionRow(t, strings.TrimSpace(strings.Split(line, "|")[1]))
		if line != want && !*update {
			t.Errorf("docs/performance.md (-update writes it):\n%s\n%s", line, want)
		}
		lines[i] = want
	}
	if found < 6 {
		t.Errorf("%d figures", found)
	}
	if *update {
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
