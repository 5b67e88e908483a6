package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// customers is where customers look: a webhook's receiver and a status page.
type customers struct {
	t      *testing.T
	mu     sync.Mutex
	events []string         // stages that the webhook got
	page   []map[string]any // incidents
}

const announcersKey = "local-announcers-key"

func (c *customers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r.URL.Path == "/hook":
		signature := r.Header.Get(notify.SignatureHeader)
		signed, err := strconv.ParseInt(strings.TrimPrefix(strings.Split(signature, ",")[0], "t="), 10, 64)
		if at := time.Unix(signed, 0); err != nil || time.Since(at).Abs() > time.Minute || signature != notify.SignBody(announcersKey, at, body) {
			c.t.Errorf("a delivery is signed %q: %v", signature, err)
		}
		var e notify.Event
		if err := json.Unmarshal(body, &e); err != nil {
			c.t.Error(err)
		}
		c.events = append(c.events, string(e.Stage))
	case r.Header.Get("Authorization") != "OAuth "+announcersKey || !strings.HasPrefix(r.URL.Path, "/v1/pages/page1/incidents"):
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == http.MethodGet:
		if err := json.NewEncoder(w).Encode(c.page); err != nil {
			c.t.Error(err)
		}
	default:
		var in struct{ Incident map[string]any }
		if err := json.Unmarshal(body, &in); err != nil {
			c.t.Error(err)
		}
		if r.Method == http.MethodPost {
			in.Incident["id"] = "incident1"
			c.page = append(c.page, in.Incident)
			return
		}
		for k, v := range in.Incident {
			c.page[0][k] = v
		}
	}
}

// invoke calls a deployed function, as a schedule does, with an event that the
// repository ships.
func (w *world) invoke(t *testing.T, function, event string) (out map[string]any, failed bool) {
	t.Helper()
	payload, err := os.ReadFile(filepath.Join("..", "..", "events", event+".json"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := lambda.NewFromConfig(w.AWSConfig()).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String(w.Name + "-" + function), Payload: payload})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(r.Payload, &out); err != nil {
		t.Fatalf("%s: %v", r.Payload, err)
	}
	return out, r.FunctionError != nil
}

// countEvents archives the events of this stack on the account's event bus from now on. The
// returned function counts them by what happened.
func (w *world) countEvents(t *testing.T, events ...string) func() map[string]int64 {
	t.Helper()
	client := eventbridge.NewFromConfig(w.AWSConfig())
	bus, err := client.DescribeEventBus(t.Context(), &eventbridge.DescribeEventBusInput{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		pattern := fmt.Sprintf(`{"source":[%q],"detail":{"stack":[%q],"event":[%q]}}`, notify.EventSource, w.Name, e)
		if _, err := client.CreateArchive(t.Context(), &eventbridge.CreateArchiveInput{ArchiveName: &e, EventSourceArn: bus.Arn, EventPattern: &pattern}); err != nil {
			t.Fatal(err)
		}
	}
	return func() map[string]int64 {
		seen := map[string]int64{}
		for _, e := range events {
			a, err := client.DescribeArchive(t.Context(), &eventbridge.DescribeArchiveInput{ArchiveName: &e})
			if err != nil {
				t.Fatal(err)
			}
			seen[e] = a.EventCount
		}
		return seen
	}
}

// TestNotice walks a strict deployment from the first refusal to a rotation that
// customers can follow: on a webhook and on a status page, under the permissions of
// the shipped roles.
func TestNotice(t *testing.T) {
	told := &customers{t: t, page: []map[string]any{}}
	server := httptest.NewServer(told)
	t.Cleanup(server.Close)
	w := up(t, map[string]string{
		"AnnounceDays": "7", "HealthDays": "1", "AnnounceWebhook": server.URL + "/hook", "StatuspagePage": "page1", "StatuspageApi": server.URL,
		"AnnounceSecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:announcers",
	})
	w.traced(t)
	_, err := secretsmanager.NewFromConfig(w.AWSConfig()).CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{
		Name: aws.String("announcers"), SecretString: aws.String(`{"webhook_hmac_key":"` + announcersKey + `","statuspage_api_key":"` + announcersKey + `"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	published := w.countEvents(t, journal.NotifyAnnounced, journal.NotifyRefused, journal.NotifyStarted, journal.NotifyCompleted, journal.NotifyHalted)
	w.refused(t, "no-notice", "{}", string(journal.AnnouncementMissing), "label")
	for range 2 { // as it may be called twice; the days that the canary must be green are to come
		if out, failed := w.invoke(t, "preflight", "preflight-announce"); failed {
			t.Fatalf("%v", out)
		}
	}
	told.mu.Lock()
	if len(told.events) != 1 || len(told.page) != 1 || told.page[0]["status"] != "scheduled" {
		t.Fatalf("customers were told %q, %v", told.events, told.page)
	}
	label, _ := told.page[0]["metadata"].(map[string]any)["matter"].(map[string]any)["window"].(string)
	told.mu.Unlock()
	w.refused(t, "too-early", `{"label":"`+label+`"}`, string(journal.AnnouncementYoung), "label")
	w.weekPasses(t, label)
	if out, failed := w.invoke(t, "health", "health"); failed || out["ok"] != true {
		t.Fatalf("%v", out)
	}
	o := w.rotate(t, "in-time", `{"label":"`+label+`"}`)
	if o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	if diff := cmp.Diff(map[string]int64{journal.NotifyAnnounced: 1, journal.NotifyRefused: 2, journal.NotifyStarted: 1, journal.NotifyCompleted: 1, journal.NotifyHalted: 0}, published()); diff != "" {
		t.Errorf("events on the bus (-want +got):\n%s", diff)
	}
	told.mu.Lock()
	defer told.mu.Unlock()
	if diff := cmp.Diff([]string{"scheduled", "in_progress", "verifying", "completed"}, told.events); diff != "" {
		t.Errorf("the webhook (-want +got):\n%s", diff)
	}
	if len(told.page) != 1 || told.page[0]["status"] != "completed" {
		t.Errorf("the page: %v", told.page)
	}
	w.mustHold(t)
}

// weekPasses puts the announcement back by eight days, its window to now, and fills the
// history of the canary.
func (w *world) weekPasses(t *testing.T, label string) {
	t.Helper()
	table := w.Deployment.Table
	a, err := table.LoadAnnouncement(t.Context(), label)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	a.At, a.From, a.To = now.AddDate(0, 0, -8), now.Add(-time.Hour), now.Add(time.Hour)
	if err := table.SaveAnnouncement(t.Context(), a, audit.Event{ID: "test/week", Type: "window_announced"}); err != nil {
		t.Fatal(err)
	}
	for range 24 {
		if _, err := table.CountHealth(t.Context(), now.UTC().AddDate(0, 0, -1).Format("2006-01-02"), true); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDrillDeployed runs the drill as a schedule does: the pointer stays, the new key
// is dead, and the execution does not fail, which would call a person.
func TestDrillDeployed(t *testing.T) {
	w := up(t, map[string]string{"DrillFreshDays": "90"})
	w.traced(t)
	before := w.view(t, "").Pointer
	w.refused(t, "no-drill", "{}", string(journal.DrillStale), gates.DrillFailure)
	input, err := os.ReadFile(filepath.Join("..", "..", "events", "execution-drill.json"))
	if err != nil {
		t.Fatal(err)
	}
	o := w.rotate(t, "drill", string(input))
	if o.Status != types.ExecutionStatusSucceeded || !slices.Contains(o.States, "PreSwitchFailure") || !slices.Contains(o.States, "DrillPassed") {
		t.Fatal(describe(o))
	}
	if v := w.view(t, "drill"); *v.Pointer != *before || v.Rotation.Phase != kek.RolledBack || v.Lock != "" {
		t.Errorf("pointer %+v, rotation %+v, lock %q", v.Pointer, v.Rotation, v.Lock)
	}
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(before.KEKID)}) {
		t.Errorf("enabled KMS keys %v, want the old one alone", got)
	}
	w.mustHold(t)
	if o := w.rotate(t, "after-drill", `""`); o.Status != types.ExecutionStatusSucceeded { // blank, as a console may send it
		t.Fatal(describe(o))
	}
	w.mustHold(t)
}

// TestApprovalExpires: without an answer the rotation rolls back by itself; and without
// a name it does not start.
func TestApprovalExpires(t *testing.T) {
	w := up(t, map[string]string{"ApprovalRequired": "true", "ApprovalSeconds": "2"})
	w.traced(t)
	before := w.view(t, "").Pointer
	w.refused(t, "nameless", "null", string(journal.InvalidInput), "requested_by")
	o := w.rotate(t, "silence", `{"requested_by":"schedule"}`)
	if o.Status != types.ExecutionStatusFailed || o.Error != string(journal.ApprovalExpired) || !slices.Contains(o.States, "RolledBack") {
		t.Fatal(describe(o))
	}
	if v := w.view(t, "silence"); *v.Pointer != *before || v.Rotation.Phase != kek.RolledBack || v.Lock != "" {
		t.Errorf("pointer %+v, rotation %+v, lock %q", v.Pointer, v.Rotation, v.Lock)
	}
	if o := w.rotate(t, "emergency", `{"mode":" emergency ","reason":"the key was seen in a log"}`); o.Status != types.ExecutionStatusSucceeded || slices.Contains(o.States, "AwaitApproval") {
		t.Error(describe(o))
	}
	w.mustHold(t)
}
