package asltest

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
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
	mapEvents   = 4 // entered, started, succeeded, exited
	itemEvents  = 2 // iteration started, iteration succeeded
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
// events that Step Functions allows, which nothing catches: the drain polls to its end, the
// map has as many items as there may be, each state is retried as often as it may be once,
// and what is left is enough to continue each segment for an hour of scanning.
func TestHistoryLimit(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	p := parameters(t)
	loop := 0
	for _, name := range []string{"Drain", "DrainDone?", "DrainWait"} {
		if d.States[name] == nil {
			t.Fatalf("no state %s", name)
		}
		loop += map[string]int{"Task": taskEvents}[d.States[name].Type]
		if d.States[name].Type != "Task" {
			loop += passEvents
		}
	}
	wait, poll, polls := int64(longest(t, p["DrainMaxWait"].AllowedPattern)/time.Second), int64(p["DrainPollSeconds"].MinValue), 0
	for waited := int64(0); waited < wait; polls++ {
		waited += rotation.Pause(waited, time.Duration(poll)*time.Second)
	}
	items := 0
	for name, s := range d.States["Rewrap"].ItemProcessor.States {
		if name != "RewrapSegment" {
			items += eventsOf(s)
		}
	}
	items = rotation.MaxSegments * (items + taskEvents + itemEvents)
	rest := 0
	for name, s := range d.States {
		if !slices.Contains([]string{"Drain", "DrainDone?", "DrainWait"}, name) {
			rest += eventsOf(s)
		}
	}
	continued := rotation.MaxSegments * 4 * (taskEvents + passEvents) // four calls of almost 15 minutes
	sum := polls*loop + items + rest
	t.Logf("%d polls of %d events, %d events of the map, %d of everything else: %d; %d to continue", polls, loop, items, rest, sum, continued)
	if sum > maxEvents {
		t.Errorf("DrainMaxWait %d s with DrainPollSeconds %d: %d events of %d", wait, poll, sum, maxEvents)
	}
	if typical := 40 * loop; typical+items+rest+continued > maxEvents {
		t.Errorf("an execution whose drain is short has no room to continue its segments: %d of %d", typical+items+rest+continued, maxEvents)
	}
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

// TestPayloadOfMostSegments: the plan with as many segments as there may be is well within
// the 256 KiB that a state may pass on.
func TestPayloadOfMostSegments(t *testing.T) {
	const name = "a-name-of-a-table-that-is-as-long-as-names-of-tables-are-in-large-organisations"
	n := 0
	for i := range rotation.MaxSegments {
		n += len(`{"source":"` + name + `","segment":` + strconv.Itoa(i) + `},`)
	}
	if n > 128<<10 {
		t.Errorf("%d bytes of segments", n)
	}
}
