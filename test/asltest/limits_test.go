package asltest

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/matter-ops/kms-rotation/rotation"
)

// Events that a state adds to the history of an execution, as recorded histories show them
// (docs/aws.md): a Task that is entered, scheduled, started, succeeded and
// exited; what is entered and exited; three more for each attempt that fails.
const (
	maxEvents   = 25_000 // Step Functions quota, hard
	taskEvents  = 5
	passEvents  = 2
	retryEvents = 3
	mapEvents   = 6 // entered, started, map run started, map run succeeded, succeeded, exited

	// TotalEvents of an execution of the most rows that a rotation is planned for.
	maxParent = 2000
	mostRows  = 10_000_000_000
)

func eventsOf(s *State) int {
	switch s.Type {
	case "Task":
		n := taskEvents
		for _, r := range s.Retry {
			n += retryEvents * r.MaxAttempts
		}
		return n
	case "Map":
		return mapEvents
	default:
		return passEvents
	}
}

type parameter struct {
	MinValue       int    `yaml:"MinValue"`
	MaxValue       int    `yaml:"MaxValue"`
	AllowedPattern string `yaml:"AllowedPattern"`
}

func parameters(t *testing.T) map[string]parameter {
	t.Helper()
	b, err := os.ReadFile("../../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var tpl struct {
		Parameters map[string]parameter `yaml:"Parameters"`
	}
	if err := yaml.Unmarshal(b, &tpl); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"DrainMaxWait", "DrainPollSeconds", "ApprovalSeconds"} {
		if tpl.Parameters[name] == (parameter{}) {
			t.Fatalf("template.yaml has no bounds of %s", name)
		}
	}
	return tpl.Parameters
}

// longest is the longest duration, to the minute and up to a week, that a pattern takes.
func longest(t *testing.T, pattern string) time.Duration {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for m := 7 * 24 * 60; m > 0; m-- {
		for _, text := range []string{
			fmt.Sprintf("%dm", m), fmt.Sprintf("%ds", m*60), fmt.Sprintf("%dh%dm", m/60, m%60), fmt.Sprintf("%dh", m/60), fmt.Sprintf("%dh0m", m/60),
		} {
			if d, err := time.ParseDuration(text); err == nil && int(d/time.Minute) == m && re.MatchString(text) {
				return d
			}
		}
	}
	t.Fatalf("%s takes no duration", pattern)
	return 0
}

// TestHistoryLimit: no values that the template takes let an execution grow past the
// events that Step Functions allows, which nothing catches: the drain polls to its end, each
// state is retried as often as it may be once. The events of segments are in the histories of
// child executions. With a drain of usual length there are at most 2,000 in the parent, however
// many rows there are.
func TestHistoryLimit(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	p := parameters(t)
	loop := 0
	drain := []string{"Drain", "DrainDone?", "DrainWait"}
	for _, name := range drain {
		if d.States[name] == nil {
			t.Fatalf("no state %s", name)
		}
		loop += eventsWithoutRetries(d.States[name])
	}
	wait, poll, polls := int64(longest(t, p["DrainMaxWait"].AllowedPattern)/time.Second), int64(p["DrainPollSeconds"].MinValue), 0
	for waited := int64(0); waited < wait; polls++ {
		waited += rotation.Pause(waited, time.Duration(poll)*time.Second)
	}
	rest := 0
	typical := 40 * loop // polls of a drain of usual length
	for name, s := range d.States {
		if slices.Contains(drain, name) {
			continue
		}
		rest += eventsOf(s)
		typical += eventsWithoutRetries(s)
	}
	// Each map takes another round for each error of a segment that was healed, and for
	// segments that were not in the list.
	const rounds = 20
	for _, pass := range [][]string{{"Census", "CensusDone?", "CensusRows"}, {"Rewrap", "RewrapComplete", "RewrapDone?"}, {"Retire", "RetireDone?", "ConfirmRows"}, {"Verify", "VerifyDone?", "VerifyRows"}} {
		for _, name := range pass {
			typical += rounds * eventsWithoutRetries(d.States[name])
		}
	}
	t.Logf("%d polls of %d events, %d of everything else: %d; usually %d", polls, loop, rest, polls*loop+rest, typical)
	if sum := polls*loop + rest; sum > maxEvents {
		t.Errorf("DrainMaxWait %d s with DrainPollSeconds %d: %d events of %d", wait, poll, sum, maxEvents)
	}
	if typical > maxParent {
		t.Errorf("%d events in the parent, at most %d are wanted", typical, maxParent)
	}
}

func eventsWithoutRetries(s *State) int {
	without := *s
	without.Retry = nil
	return eventsOf(&without)
}

// TestChildHistoryLimit: a child execution has room for the longest segment of the most rows,
// at the least rows a second that docs/performance.md has measured for one worker, and for a
// pause of a day.
func TestChildHistoryLimit(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	const leastRate, perCall = 500, 13 * 60 // rows a second, seconds
	calls := mostRows/rotation.MaxSegments/leastRate/perCall + 1
	for name, m := range d.States {
		if m.Type != "Map" {
			continue
		}
		call, pause, rest := 0, 0, 0
		for inner, s := range m.ItemProcessor.States {
			rest += eventsOf(s)
			if n := eventsWithoutRetries(s); s.Type == "Wait" {
				pause += n * 24 * 3600 / s.Seconds
			} else if !itemDone(inner) {
				call += n
			}
		}
		pause += 24 * 3600 / int(resumePause(m)/time.Second) * call // each wait ends with a call
		if sum := calls*call + pause + rest; sum > maxEvents {
			t.Errorf("%s: %d calls of %d events, %d of a pause, %d of retries", name, calls, call, pause, rest)
		}
	}
}

// resumePause is how long a child execution of a Map waits in a pause.
func resumePause(m *State) time.Duration {
	for _, s := range m.ItemProcessor.States {
		if s.Type == "Wait" {
			return time.Duration(s.Seconds) * time.Second
		}
	}
	return time.Second
}

// TestMachineTimeout: the machine lasts longer than everything that it may wait for.
func TestMachineTimeout(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	p := parameters(t)
	sum := time.Duration(p["ApprovalSeconds"].MaxValue)*time.Second + longest(t, p["DrainMaxWait"].AllowedPattern)
	for _, s := range d.All() {
		attempts := 1
		for _, r := range s.Retry {
			attempts += r.MaxAttempts
			sum += time.Duration(r.MaxAttempts*r.MaxDelaySeconds) * time.Second
		}
		sum += time.Duration(attempts*s.TimeoutSeconds) * time.Second
	}
	if limit := time.Duration(d.TimeoutSeconds) * time.Second; sum > limit {
		t.Errorf("its waits and its retries come to %s, the machine ends after %s", sum, limit)
	}
	if limit := time.Duration(d.TimeoutSeconds) * time.Second; limit != rotation.MachineLasts {
		t.Errorf("the machine ends after %s, the steps believe after %s", limit, rotation.MachineLasts)
	}
	if d.TimeoutSeconds > 31_536_000 {
		t.Errorf("%d s are more than the year that an execution may last", d.TimeoutSeconds)
	}
}

// TestPayloadOfMostSegments: with names as long as they may be, the plan's list of segments and
// that of the pass that runs are within the 256 KiB that a state may pass on, with room for the
// checks and everything else.
func TestPayloadOfMostSegments(t *testing.T) {
	for _, name := range []string{"orders", strings.Repeat("n", 255)} {
		var all []rotation.Segment
		for i := range rotation.MaxSegments {
			all = append(all, rotation.Segment{Source: name, Segment: i})
		}
		b, err := json.Marshal(rotation.CutLeft(all))
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 80<<10 {
			t.Errorf("%d bytes of segments", len(b))
		}
	}
}

// TestOutputOfMostSegments: the output of a map is the array of its children's outputs, which is
// within 256 KiB although it is dropped.
func TestOutputOfMostSegments(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range d.States {
		for inner, s := range mapStates(m) {
			if s.Type == "Succeed" && text(s.OutputPath) != "$.progress.done" {
				t.Errorf("%s of %s gives %s to the map's output, for each of %d segments", inner, name, s.OutputPath, rotation.MaxSegments)
			}
		}
	}
}

func mapStates(m *State) map[string]*State {
	if m.ItemProcessor == nil {
		return nil
	}
	return m.ItemProcessor.States
}
