package estimate_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// numberIn returns the number that a pattern finds in a text; other if it finds none.
func numberIn(t *testing.T, text, pattern string, other int) int {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		return other
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFunctionsAreTheStacks: memory and timeout of each function are those that it is deployed
// with, and every function that a rotation calls is there.
func TestFunctionsAreTheStacks(t *testing.T) {
	common := numberIn(t, readFile(t, "template.yaml"), `(?m)^    MemorySize: (\d+)$`, 0)
	for _, name := range flow.Functions() {
		f, ok := estimate.Functions[name]
		text := readFile(t, filepath.Join("functions", strings.ToLower(name), "function.yaml"))
		memory, timeout := numberIn(t, text, `(?m)^MemorySize: (\d+)$`, common), numberIn(t, text, `(?m)^Timeout: (\d+)$`, 0)
		if !ok || f.Memory != memory || f.Timeout != time.Duration(timeout)*time.Second {
			t.Errorf("%s: %+v, deployed with %d MB and %d s", name, f, memory, timeout)
		}
	}
	if len(estimate.Functions) != len(flow.Functions()) {
		t.Errorf("%d functions, the state machine calls %v", len(estimate.Functions), flow.Functions())
	}
}

// TestSettingsAreTheTemplates: a plan without a deployment has the template's defaults.
func TestSettingsAreTheTemplates(t *testing.T) {
	template := readFile(t, "template.yaml")
	parameter := func(name string) string {
		_, after, _ := strings.Cut(template, "\n  "+name+":\n")
		m := regexp.MustCompile(`(?m)^    Default: (.*)$`).FindStringSubmatch(after)
		if m == nil {
			t.Fatalf("no parameter %s", name)
		}
		return m[1]
	}
	s := estimate.DefaultSettings()
	for name, got := range map[string]any{
		"Segments": s.Segments, "RewrapConcurrency": s.Concurrency, "WriteRate": s.WriteRate, "CanaryRounds": s.CanaryRounds,
		"KeySettleSeconds": s.KeySettle.Seconds(), "DrainMaxWait": strings.TrimSuffix(s.DrainAtMost.String(), "0s"),
	} {
		if want := parameter(name); fmt.Sprint(got) != want {
			t.Errorf("%s is %v, the template has %s", name, got, want)
		}
	}
	if s.KMSRate != budget.StartRate {
		t.Errorf("a rotation begins with %d KMS requests a second, not %g", budget.StartRate, s.KMSRate)
	}
	if want := parameter("VerifyDataKeys") == "every"; s.Deep != want {
		t.Errorf("VerifyDataKeys: %t, want %t", s.Deep, want)
	}
}

// TestStandingIsTheTemplates: what is paid for each month is what the template deploys.
func TestStandingIsTheTemplates(t *testing.T) {
	metrics, calls := 0, 0
	for _, resource := range regexp.MustCompile(`\n  [A-Za-z0-9]+:\n    Type: `).Split(readFile(t, "template.yaml"), -1) {
		if strings.HasPrefix(resource, "AWS::CloudWatch::Alarm") {
			metrics += max(1, strings.Count(resource, "MetricStat:"))
		}
		calls += 730*strings.Count(resource, "ScheduleExpression: rate(1 hour)") + 2920*strings.Count(resource, "ScheduleExpression: rate(15 minutes)")
	}
	one := 1.0
	lines := estimate.Standing{Keys: 3}.PriceMonth(estimate.Prices{AlarmMonth: &one, KMSKeyMonth: &one})
	if got := lines[0]; *got.Amount != 3 {
		t.Errorf("%+v", got)
	}
	if got := lines[1]; *got.Amount != float64(metrics) {
		t.Errorf("%s, the template has %d", got.What, metrics)
	}
	if got := lines[2]; got.Amount != nil || !strings.HasPrefix(got.What, fmt.Sprint(calls, " ")) {
		t.Errorf("%+v: the template calls %d times a month, and no price is known", got, calls)
	}
}

// TestGuessShares: a sample of rows that share data keys evenly gives how many share each.
func TestGuessShares(t *testing.T) {
	for _, each := range []float64{1, 2, 10, 1000, 1e5} {
		const rows, seen = 1e6, 2e5
		distinct := rows / each * (1 - math.Pow(1-seen/rows, each))
		got := estimate.CountDEKs(estimate.GuessShares(rows, seen, distinct))
		if math.Abs(got/(rows/each)-1) > 0.01 {
			t.Errorf("%g rows of each data key: %g data keys, want %g", each, got, rows/each)
		}
	}
	if got := estimate.GuessShares(0, 0, 0); got != nil {
		t.Errorf("%+v of an empty source", got)
	}
}

// bigTable is a table of so many rows, each with a data key of its own.
func bigTable(rows float64) []estimate.Source {
	return []estimate.Source{{
		Name: "orders", Items: rows, Rows: rows, Shares: []estimate.Share{{Each: 1, DEKs: rows}}, ItemBytes: 1000,
		Billing: estimate.DynamoDBByUnit, PageItems: 500, PageBytes: 1 << 20,
	}}
}

var pace = rotation.Pace{RowsInFlight: 64, PagesAhead: 2, SaveEvery: 5 * time.Second}

// TestFindExcesses: each limit is found, with the parameter to change, and a change that it
// names lets the rotation end.
func TestFindExcesses(t *testing.T) {
	find := func(change func(*estimate.Settings), rows float64, b estimate.Bounds) []estimate.Excess {
		s := estimate.DefaultSettings()
		change(&s)
		return estimate.Compute(rotation.DescribeWalk(pace), flow.DescribeMachine(), s, bigTable(rows)).FindExcesses(b)
	}
	none := func(*estimate.Settings) {}
	if got := find(none, 1e6, estimate.Bounds{InputBytes: 1000, Until: 24 * time.Hour}); len(got) > 0 {
		t.Errorf("a million rows: %v", got)
	}
	for _, c := range []struct {
		limit, mention string
		change         func(*estimate.Settings)
		rows           float64
		bounds         estimate.Bounds
	}{
		{"execution timeout", "KmsRate", func(s *estimate.Settings) { s.KMSRate = 40 }, 1e8, estimate.Bounds{}},
		{"events of a child execution", "Segments", func(s *estimate.Settings) { s.Segments, s.KMSRate = 1, 40 }, 1e8, estimate.Bounds{}},
		{"announced window", "KmsRate", none, 1e6, estimate.Bounds{Until: time.Minute}},
		{"state input", "Segments", none, 1e6, estimate.Bounds{InputBytes: estimate.MaxInputBytes + 1}},
		{"time of one page", "KmsRate, planned at 4, to", func(s *estimate.Settings) { s.KMSRate = 4 }, 1e6, estimate.Bounds{}},
	} {
		found := false
		for _, x := range find(c.change, c.rows, c.bounds) {
			found = found || x.Limit == c.limit && strings.Contains(x.Change, c.mention)
		}
		if !found {
			t.Errorf("%s: not found, or without %q: %v", c.limit, c.mention, find(c.change, c.rows, c.bounds))
		}
	}
	rate := 0
	for _, x := range find(func(s *estimate.Settings) { s.KMSRate = 40 }, 1e8, estimate.Bounds{}) {
		if x.Limit == "execution timeout" {
			rate = numberIn(t, x.Change, `to about (\d+)`, 0)
		}
	}
	for _, x := range find(func(s *estimate.Settings) { s.KMSRate = 1.1 * float64(rate) }, 1e8, estimate.Bounds{}) {
		if x.Limit == "execution timeout" {
			t.Errorf("KmsRate %d was to be enough: %v", rate, x)
		}
	}
}

// TestBinds: a phase names what it waits for.
func TestBinds(t *testing.T) {
	for want, change := range map[estimate.Bind]func(*estimate.Settings, *estimate.Source){
		estimate.ByKMSRate:   func(s *estimate.Settings, _ *estimate.Source) { s.KMSRate = 200 },
		estimate.ByInFlight:  func(s *estimate.Settings, _ *estimate.Source) { s.Latency.Write = time.Second },
		estimate.ByProcessor: func(s *estimate.Settings, _ *estimate.Source) { s.RowCPU = 50 * time.Millisecond },
		estimate.ByWrites:    func(_ *estimate.Settings, src *estimate.Source) { src.WritesPerSecond = 100 },
		estimate.ByPages:     func(s *estimate.Settings, _ *estimate.Source) { s.Latency.Scan = time.Minute },
	} {
		s, sources := estimate.DefaultSettings(), bigTable(1e6)
		s.KMSRate, s.WriteRate = 4e5, 0
		change(&s, &sources[0])
		for _, ph := range estimate.Compute(rotation.DescribeWalk(pace), flow.DescribeMachine(), s, sources).Phases {
			if ph.Name == estimate.Rewrap && ph.Binds != want {
				t.Errorf("bound by %q, want %q", ph.Binds, want)
			}
		}
	}
}

// TestWriteUnits: a rewrap is charged by the whole item, and by what it is copied to.
func TestWriteUnits(t *testing.T) {
	sources := bigTable(1000)
	sources[0].ItemBytes, sources[0].ExtraWrites = 2500, 5
	p := estimate.Compute(rotation.DescribeWalk(pace), flow.DescribeMachine(), estimate.DefaultSettings(), sources)
	if math.Abs(p.Total.WriteUnits-3000) > 1 || math.Abs(p.Total.ExtraUnits-5000) > 1 || math.Abs(p.Total.ReadUnits-4*1000*2500/4096.) > 1 {
		t.Errorf("%g write units, %g of copies, %g read units", p.Total.WriteUnits, p.Total.ExtraUnits, p.Total.ReadUnits)
	}
}

func TestOldPrices(t *testing.T) {
	now := time.Date(2026, 6, 2, 0, 0, 0, 0, time.UTC)
	for of, want := range map[string]bool{
		"2025-06": true, "2025-07": false, "2025-06-01": true, "2025-06-02": false, "2025": true, "2026": false, "2031": false,
		"": true, "last summer": true,
	} {
		if (estimate.Prices{AsOf: of}).IsOld(now) != want {
			t.Errorf("of %q: old is %t", of, !want)
		}
	}
}
