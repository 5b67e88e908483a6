package notify

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

var update = flag.Bool("update", false, "write docs/events.schema.json and the tables and examples of docs/events.md")

const (
	eventsPage   = "../../docs/events.md"
	eventsSchema = "../../docs/events.schema.json"
)

// examples has a notice of each event, and of a completed rotation two.
var examples = []journal.Notice{
	{Event: journal.NotifyAnnounced, RotationID: "Q2-2026-rotation", Detail: "2026-04-05 01:00 UTC to 2026-04-05 05:00 UTC"},
	{Event: journal.NotifyRefused, RotationID: "Q2-2026-rotation", Error: "HealthRed", Cause: `{"errorType":"HealthRed","errorMessage":"HealthRed: the canary failed on 2026-04-02"}`, Execution: journal.Execution{ID: exampleExecution, Name: "Q2-2026-rotation"}},
	{Event: journal.NotifyStarted, RotationID: "Q2-2026-rotation", Mode: "normal", Execution: journal.Execution{ID: exampleExecution, Name: "Q2-2026-rotation"}},
	{Event: journal.NotifyApproval, RotationID: "Q2-2026-rotation", Plan: "3f0c9a7e51", Detail: "From KEK 1111 to KEK 2222, asked for by arn:aws:iam::123456789012:role/ops; expires 2026-04-06T02:31:07Z"},
	{Event: journal.NotifyRolledBack, RotationID: "Q2-2026-rotation", Error: "CanaryFailed", Cause: "a canary did not come back as it was", Execution: journal.Execution{ID: exampleExecution, Name: "Q2-2026-rotation"}},
	{Event: journal.NotifyDrilled, RotationID: "drill-2026-03-22", Execution: journal.Execution{ID: exampleExecution, Name: "Q2-2026-rotation"}},
	{Event: journal.NotifyHalted, RotationID: "Q2-2026-rotation", Error: "DrainTimeout", Cause: "1 leases outlive max-wait 30m0s", Execution: journal.Execution{ID: exampleExecution, Name: "Q2-2026-rotation"}},
	{Event: journal.NotifyCompleted, RotationID: "Q2-2026-rotation", Execution: journal.Execution{ID: exampleExecution, Name: "Q2-2026-rotation"}},
	{Event: journal.NotifyCompleted, RotationID: "Q2-2026-rotation", Missing: "orders: the number of rows fell from 9 to 2", Execution: journal.Execution{ID: exampleExecution, Name: "Q2-2026-rotation"}},
	{Event: journal.NotifyHealthRed, Error: "HealthRed", Cause: "KMS refuses to wrap: KMSInternalException", Detail: "KEK 1111"},
	{Event: journal.NotifyGeneration, Detail: "v1/matter/records/000000000214.json"},
}

// A rule sees these fields of an event, and others that EventBridge adds.
type busEvent struct {
	Source     string      `json:"source"`
	DetailType string      `json:"detail-type"`
	Detail     EventDetail `json:"detail"`
}

func composeExamples() []busEvent {
	bus := NewEventBus(nil, "default", "matter", func() time.Time { return exampleTime })
	var out []busEvent
	for _, n := range examples {
		out = append(out, busEvent{EventSource, messages[n.Event].what, bus.composeDetail(n)})
	}
	return out
}

// indentJSON is v as people read it.
func indentJSON(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// describeType is the JSON Schema of a type. A field without omitempty is required; others may be
// added later.
func describeType(t *testing.T, r reflect.Type) map[string]any {
	t.Helper()
	switch r {
	case reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[Severity]():
		return map[string]any{"enum": []Severity{Critical, Warning, Info}}
	}
	switch r.Kind() {
	case reflect.String:
		return map[string]any{"type": "string", "minLength": 1}
	case reflect.Int:
		return map[string]any{"const": SchemaVersion}
	case reflect.Struct:
		required, properties := []string{}, map[string]any{}
		for i := range r.NumField() {
			name, option, _ := strings.Cut(r.Field(i).Tag.Get("json"), ",")
			p := describeType(t, r.Field(i).Type)
			if p["description"] = r.Field(i).Tag.Get("about"); p["description"] == "" {
				t.Errorf("field %s is not described", name)
			}
			properties[name] = p
			if option == "" {
				required = append(required, name)
			}
		}
		return map[string]any{"type": "object", "required": required, "properties": properties}
	default:
		t.Fatalf("%s has no schema here", r)
		return nil
	}
}

func describeEvents(t *testing.T) map[string]any {
	t.Helper()
	detail := describeType(t, reflect.TypeFor[EventDetail]())
	events := slices.Sorted(maps.Keys(messages))
	detail["properties"].(map[string]any)["event"].(map[string]any)["enum"] = events
	var types []string
	for _, e := range events {
		types = append(types, messages[e].what)
	}
	return map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": fmt.Sprintf("Events of a KEK rotation, version %d", SchemaVersion),
		"type": "object", "required": []string{"source", "detail-type", "detail"},
		"properties": map[string]any{"source": map[string]any{"const": EventSource}, "detail-type": map[string]any{"enum": types}, "detail": detail},
	}
}

// describeFields is the tables and the examples of docs/events.md.
func describeFields(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| field | always | what |\n|---|---|---|\n")
	var rows func(prefix string, r reflect.Type)
	rows = func(prefix string, r reflect.Type) {
		for i := range r.NumField() {
			f := r.Field(i)
			name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[time.Time]() {
				rows(prefix+name+".", f.Type)
				continue
			}
			fmt.Fprintf(&b, "| `%s%s` | %s | %s |\n", prefix, name, map[string]string{"": "yes", "omitempty": ""}[option], f.Tag.Get("about"))
		}
	}
	rows("", reflect.TypeFor[EventDetail]())
	b.WriteString("\n| detail-type | `event` | severity | runbook |\n|---|---|---|---|\n")
	shown := composeExamples()
	for i, e := range shown {
		if i > 0 && shown[i-1].DetailType == e.DetailType {
			continue
		}
		section := messages[e.Detail.Event].section
		fmt.Fprintf(&b, "| %s | `%s` | %s | [%s](runbook.md#%s) |\n", e.DetailType, e.Detail.Event, e.Detail.Severity, section, section)
	}
	b.WriteString("\n### An example of each\n")
	for _, e := range shown {
		fmt.Fprintf(&b, "\n```json\n%s```\n", indentJSON(t, e))
	}
	return b.String()
}

// TestEventsPage: docs/events.md and docs/events.schema.json are what the code publishes, and show
// every event.
func TestEventsPage(t *testing.T) {
	const begin, end = "<!-- begin: written by go test ./internal/notify -run TestEventsPage -update -->\n", "<!-- end -->"
	for event := range messages {
		if !slices.ContainsFunc(examples, func(n journal.Notice) bool { return n.Event == event }) {
			t.Errorf("%s has no example", event)
		}
	}
	page, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("docs/events.md has no place for what the code says")
	}
	for file, want := range map[string]string{eventsPage: before + begin + describeFields(t) + end + after, eventsSchema: indentJSON(t, describeEvents(t))} {
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(want, string(got)); d != "" {
			t.Errorf("%s; go test ./internal/notify -run TestEventsPage -update writes it (-code +file):\n%s", file, d)
		}
	}
}

// TestRunbookSections: each section that an event links to is in the runbook.
func TestRunbookSections(t *testing.T) {
	b, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(b), -1) {
		anchor := strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")
		sections[regexp.MustCompile(`[^a-z0-9_-]`).ReplaceAllString(anchor, "")] = true
	}
	for _, e := range composeExamples() {
		if s, ok := strings.CutPrefix(e.Detail.Links.Runbook, runbook); !ok || !sections[s] {
			t.Errorf("%s links to %s", e.Detail.Event, e.Detail.Links.Runbook)
		}
	}
}

// validate prints, for each document of its input, whether the schema takes it.
const validate = `
import json, sys
from jsonschema import Draft202012Validator, FormatChecker
given = json.load(sys.stdin)
Draft202012Validator.check_schema(given["schema"])
v = Draft202012Validator(given["schema"], format_checker=FormatChecker())
json.dump(["; ".join(e.json_path + " " + e.message for e in v.iter_errors(d)) for d in given["documents"]], sys.stdout)`

// TestExamplesValidate: the schema takes each example, a later field, and nothing that lacks or
// misspells what a rule relies on.
func TestExamplesValidate(t *testing.T) {
	python, err := filepath.Abs("../../.venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(python); err != nil && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip(err)
	}
	var documents []any
	for _, e := range composeExamples() {
		documents = append(documents, e)
	}
	good := len(documents)
	for _, change := range []struct{ old, new string }{
		{`"severity":"critical"`, `"severity":"urgent"`},
		{`"schema_version":1`, `"schema_version":2`},
		{`"event":"halted"`, `"event":"stopped"`},
		{`"source":"matter.kms-rotation"`, `"source":"payments"`},
		{`"time":"2026`, `"time":"on 2026`},
		{`"next":`, `"then":`},
		{`"detail-type":"KEK`, `"detail-type":"KMS`},
		{`"stack":"matter"`, `"stack":"matter","new":1`},
	} {
		halted, err := json.Marshal(composeExamples()[6])
		if err != nil {
			t.Fatal(err)
		}
		bad := strings.Replace(string(halted), change.old, change.new, 1)
		if bad == string(halted) {
			t.Errorf("the example has no %s", change.old)
		}
		documents = append(documents, json.RawMessage(bad))
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", validate)
	cmd.Stdin = strings.NewReader(indentJSON(t, map[string]any{"schema": describeEvents(t), "documents": documents}))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var faults []string
	if err := json.Unmarshal(out, &faults); err != nil || len(faults) != len(documents) {
		t.Fatalf("%s: %v", out, err)
	}
	for i, fault := range faults {
		valid := i < good || i == len(faults)-1 // the last one has a field of a later time
		if (fault == "") != valid {
			t.Errorf("document %d is valid: %t, %s", i, fault == "", fault)
		}
	}
}

// TestRules: each pattern of docs/events.md matches the events that the page says, as moto
// evaluates it, of those that the notifier puts on the bus.
func TestRules(t *testing.T) {
	page, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	client := eventbridge.NewFromConfig(mototest.Config(t))
	bus, err := client.CreateEventBus(t.Context(), &eventbridge.CreateEventBusInput{Name: new("rules")})
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile("(?s)Matches ([^.]+)\\.\n\n```json\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	got, want := map[string][]string{}, map[string][]string{}
	for i, r := range rules {
		if _, err := client.CreateArchive(t.Context(), &eventbridge.CreateArchiveInput{ArchiveName: new(fmt.Sprint("rule", i)), EventSourceArn: bus.EventBusArn, EventPattern: &r[2]}); err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(r[1], -1) {
			want[r[2]] = append(want[r[2]], m[1])
		}
	}
	seen := make([]int64, len(rules))
	for _, n := range examples {
		if err := NewEventBus(client, "rules", "matter", time.Now).TellPeople(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		for i, r := range rules {
			a, err := client.DescribeArchive(t.Context(), &eventbridge.DescribeArchiveInput{ArchiveName: new(fmt.Sprint("rule", i))})
			if err != nil {
				t.Fatal(err)
			}
			if a.EventCount > seen[i] && !slices.Contains(got[r[2]], n.Event) {
				got[r[2]] = append(got[r[2]], n.Event)
			}
			seen[i] = a.EventCount
		}
	}
	for _, m := range []map[string][]string{got, want} {
		for _, events := range m {
			slices.Sort(events)
		}
	}
	if d := cmp.Diff(want, got); d != "" || len(rules) < 5 {
		t.Errorf("%d rules match (-page +moto):\n%s", len(rules), d)
	}
}
