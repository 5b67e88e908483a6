package templatetest

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/kek"
)

// environment is what every function gets with these parameters.
func environment(t *testing.T, tpl *template, params map[string]string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, v := range at[object](t, tpl.Globals, "Function", "Environment", "Variables") {
		out[name] = tpl.resolve(t, v, params)
	}
	return out
}

// TestEnvironment: the functions find every variable that they read, and nothing is
// passed that nobody reads; with the parameters' defaults the configuration is
// sound.
func TestEnvironment(t *testing.T) {
	vars := environment(t, load(t), nil)
	read := map[string]bool{}
	if _, err := app.FromEnv(func(name string) string {
		read[name] = true
		return vars[name]
	}); err != nil {
		t.Error(err)
	}
	// The operator's: a function must not know them, nor could, for the machines name the functions.
	delete(read, "MATTER_STATE_MACHINE_ARN")
	delete(read, "MATTER_EMERGENCY_STATE_MACHINE_ARN")
	if d := cmp.Diff(slices.Sorted(maps.Keys(read)), slices.Sorted(maps.Keys(vars))); d != "" {
		t.Errorf("variables (-read +passed):\n%s", d)
	}
}

// TestConfiguredEnvironment: parameters get to where they belong.
func TestConfiguredEnvironment(t *testing.T) {
	vars := environment(t, load(t), map[string]string{
		"Window": "22:00-04:00", "TimeZone": "Europe/Berlin", "VerifyDataKeys": "sample",
		"RetentionDays": "30", "DeleteHoldDays": "31", "Segments": "3", "FenceShards": "4", "MaxMints": "5", "CanaryRounds": "6",
		"KmsRate": "7", "WriteRate": "70", "KeySettleSeconds": "12", "DrainMaxWait": "1h30m", "AnnounceDays": "8", "DrillFreshDays": "9", "HealthDays": "10",
		"ApprovalRequired": "true", "ApprovalSeconds": "11", "EventBusName": "operations", "AnnounceTopicArn": "arn:aws:sns:eu-central-1:123456789012:customers",
		"AnnounceWebhook": "https://example.com/hook", "StatuspagePage": "page1", "StatuspageApi": "https://status.example.com",
		"AnnounceSecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:keys-abc",
	})
	c, err := app.FromEnv(func(name string) string { return vars[name] })
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{
		"stack": c.Stack, "table": c.ControlTable, "bucket": c.AuditBucket, "topic": c.Topic, "bus": c.EventBus, "window": c.Window.String(),
		"retention": c.Retention.Hours() / 24, "hold": c.DeleteHold.Hours() / 24, "segments": c.Segments, "shards": c.FenceShards,
		"mints": c.MaxMints, "canaries": c.CanaryRounds, "settle": c.KeySettle.Seconds(), "rate": c.KMSRate, "writes": c.WriteRate, "wait": c.DrainMaxWait.Minutes(), "deep": c.Deep,
		"announce": c.AnnounceDays, "drill": c.DrillFreshDays, "health": c.HealthDays, "approval": c.ApprovalRequired, "seconds": c.ApprovalWait.Seconds(),
		"announcers": c.Announce,
	}
	want := map[string]any{
		"stack": "matter", "table": "ControlTable", "bucket": "AuditBucket", "topic": "Topic", "bus": "operations",
		"window": "22:00-04:00 Europe/Berlin", "retention": 30.0, "hold": 31.0, "segments": 3, "shards": 4,
		"mints": 5, "canaries": 6, "settle": 12.0, "rate": 7.0, "writes": 70.0, "wait": 90.0, "deep": false,
		"announce": 8, "drill": 9, "health": 10, "approval": true, "seconds": 11.0,
		"announcers": app.Announce{
			Topic: "arn:aws:sns:eu-central-1:123456789012:customers", Webhook: "https://example.com/hook", Statuspage: "page1",
			StatuspageAPI: "https://status.example.com", Secret: "arn:aws:secretsmanager:eu-central-1:123456789012:secret:keys-abc",
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
}

// TestSeed: genesis finds in the outputs what the parameters say, and nothing by
// default.
func TestSeed(t *testing.T) {
	tpl := load(t)
	seed := func(params map[string]string) ([]kek.Source, error) {
		return app.Seed(func(name string) string {
			output := map[string]string{"MATTER_SOURCES": "SeedSources", "MATTER_CORPUS": "SeedCorpus"}[name]
			if c, ok := at[object](t, tpl.Outputs, output)["Condition"]; ok && !tpl.holds(t, at[object](t, tpl.Conditions, text(c)), params) {
				return ""
			}
			return tpl.resolve(t, at[any](t, tpl.Outputs, output, "Value"), params)
		})
	}
	if got, err := seed(nil); err != nil || len(got) != 0 {
		t.Errorf("by default: %v, %v", got, err)
	}
	got, err := seed(map[string]string{
		"Sources":      `[{"table":"orders","kek_id_attribute":"kek_id","wrapped_dek_attribute":"dek","ciphertext_attribute":"ct"}]`,
		"CorpusBucket": "corpus", "CorpusPrefix": "known/",
	})
	if err != nil || len(got) != 2 || got[0].Place != "orders" || got[1].Place != "s3://corpus/known/" {
		t.Errorf("%+v, %v", got, err)
	}
}
