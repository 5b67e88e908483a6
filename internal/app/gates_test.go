package app

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/notify"
)

// TestMeter holds the line to the embedded metric format.
func TestMeter(t *testing.T) {
	var b bytes.Buffer
	m := &meter{w: &b, stack: "matter", now: func() time.Time { return time.UnixMilli(1775001600123) }}
	m.Count("kms_canary_red", 1)
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || bytes.Count(b.Bytes(), []byte("\n")) != 1 {
		t.Fatalf("%q: %v", b.String(), err)
	}
	want := map[string]any{
		"stack": "matter", "kms_canary_red": 1.0,
		"_aws": map[string]any{"Timestamp": 1775001600123.0, "CloudWatchMetrics": []any{map[string]any{
			"Namespace": "Matter", "Dimensions": []any{[]any{"stack"}}, "Metrics": []any{map[string]any{"Name": "kms_canary_red", "Unit": "Count"}},
		}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("line (-want +got):\n%s", d)
	}
}

func TestParseAnnounce(t *testing.T) {
	for text, ok := range map[string]bool{
		`{}`: true,
		`{"topic":"arn:aws:sns:eu-central-1:123456789012:customers","webhook":"","statuspage":"","statuspage_api":"https://api.statuspage.io","secret":""}`: true,
		`{"webhook":"https://example.com/hook","secret":"arn"}`:       true,
		`{"webhook":"http://127.0.0.1:8080/hook","secret":"arn"}`:     true,
		`{"webhook":"http://example.com/hook","secret":"arn"}`:        false,
		`{"webhook":"https://example.com/hook"}`:                      false,
		`{"webhook":"https://","secret":"arn"}`:                       false,
		`{"statuspage":"p","secret":"arn"}`:                           false,
		`{"statuspage":"p","statuspage_api":"https://a","secret":""}`: false,
		`{"sms":"+49"}`: false,
		`none`:          false,
	} {
		if _, err := parseAnnounce(text); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestWireNotifier: operators are told by what is configured, and nobody is by nothing: a nil
// notifier is what [journal.Journal] asks for.
func TestWireNotifier(t *testing.T) {
	for want, names := range map[int][2]string{1: {"topic", ""}, 2: {"topic", "default"}} {
		if all, _ := wireNotifier(aws.Config{}, "matter", names[0], names[1]).(notify.Several); len(all) != want {
			t.Errorf("%q: %d notifiers", names, len(all))
		}
	}
	if n := wireNotifier(aws.Config{}, "matter", "", ""); n != nil {
		t.Errorf("%v", n)
	}
}
