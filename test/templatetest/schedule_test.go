package templatetest

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
)

// TestSchedules: each is a rate, because EventBridge Scheduler skips a time of a cron
// expression that daylight saving skips; a call that fails is kept.
func TestSchedules(t *testing.T) {
	tpl := load(t)
	want := map[string]string{
		"TickSchedule": "${ScheduleFunction.Arn}", "AnchorSchedule": "${AnchorFunction.Arn}", "HealthSchedule": "${HealthFunction.Arn}",
	}
	ids := tpl.ofType("AWS::Scheduler::Schedule")
	if d := cmp.Diff([]string{"AnchorSchedule", "HealthSchedule", "TickSchedule"}, ids); d != "" {
		t.Fatalf("schedules (-want +got):\n%s", d)
	}
	for _, id := range ids {
		p := at[object](t, tpl.Resources, id, "Properties")
		target := at[object](t, p, "Target")
		if got := text(target["Arn"]); got != want[id] {
			t.Errorf("%s calls %s", id, got)
		}
		if !strings.HasPrefix(text(p["ScheduleExpression"]), "rate(") || p["ScheduleExpressionTimezone"] != nil {
			t.Errorf("%s: %v in %v", id, p["ScheduleExpression"], p["ScheduleExpressionTimezone"])
		}
		if p["State"] != nil || text(p["GroupName"]) != "${ScheduleGroup}" { // always: what is DISABLED is in the input
			t.Errorf("%s: %v, %v", id, p["State"], p["GroupName"])
		}
		if text(at[any](t, target, "DeadLetterConfig", "Arn")) != "${ScheduleFailures.Arn}" || target["RetryPolicy"] == nil {
			t.Errorf("%s: a failed call is lost", id)
		}
	}
}

// TestScheduledInputs: what the schedules send is what the functions take.
func TestScheduledInputs(t *testing.T) {
	tpl := load(t)
	input := func(id string) string {
		return tpl.resolve(t, at[any](t, tpl.Resources, id, "Properties", "Target", "Input"), map[string]string{
			"ScheduleHour": "23", "ScheduleState": "DISABLED", "StateMachine": "arn:machine", "PreflightFunction": "matter-preflight",
		})
	}
	tick, err := lambdastep.DecodePayload[rotation.ScheduleInput]([]byte(input("TickSchedule")))
	if want := (rotation.ScheduleInput{StateMachine: "arn:machine", Preflight: "matter-preflight", Hour: 23, State: "DISABLED"}); err != nil || tick != want {
		t.Errorf("tick: %+v, %v", tick, err)
	}
	if allowed := texts(at[any](t, tpl.Parameters, "ScheduleState", "AllowedValues")); !slices.Equal(allowed, []string{rotation.ScheduleEnabled, "DISABLED"}) {
		t.Errorf("states of the schedule: %v", allowed)
	}
	beat, err := lambdastep.DecodePayload[anchor.Input]([]byte(input("AnchorSchedule")))
	if err != nil || beat != (anchor.Input{Heartbeat: true}) {
		t.Errorf("anchor: %+v, %v", beat, err)
	}
	if start := event[rotation.ExecutionInput](t, "execution-scheduled"); start.RequestedBy != rotation.ScheduleRequester {
		t.Errorf("rotation: %+v", start)
	}
}

// TestScheduleStartsNormalRotations: what decides when may start normal rotations and
// drills, look ahead, and read what is done; no emergency, and it writes nothing.
func TestScheduleStartsNormalRotations(t *testing.T) {
	var got []string
	for _, s := range policies(t, load(t))["ScheduleRole"] {
		if s.Effect == "Deny" || slices.Equal(s.Resources, []string{"*"}) { // traces
			continue
		}
		for _, a := range s.Actions {
			got = append(got, a+" "+strings.Join(s.Resources, " "))
		}
	}
	slices.Sort(got)
	want := []string{
		"dynamodb:GetItem ${ControlTable.Arn}", "lambda:InvokeFunction ${PreflightFunction.Arn}", "logs:CreateLogStream ${ScheduleLogGroup.Arn}",
		"logs:PutLogEvents ${ScheduleLogGroup.Arn}", "states:StartExecution ${StateMachine}",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the schedule may (-want +got):\n%s", d)
	}
}
