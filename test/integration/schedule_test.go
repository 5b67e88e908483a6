package integration

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/scheduler"
	"github.com/aws/aws-sdk-go-v2/service/sfn"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestScheduleDeployed: the deployed tick takes the input that the schedule has and may read
// what it reads. At the days ahead, which only a moved clock shows, it has the deployed
// preflight announce the window; when the rotation is due two ticks start one, and ticks
// after its end start none.
func TestScheduleDeployed(t *testing.T) {
	w := up(t, nil)
	w.traced(t)
	ctx := t.Context()
	ledger := w.readRows(t)
	deployed, err := scheduler.NewFromConfig(w.AWSConfig()).GetSchedule(ctx, &scheduler.GetScheduleInput{
		GroupName: &w.Name, Name: aws.String(w.Name + "-tick"),
	})
	if err != nil {
		t.Fatal(err)
	}
	payload := aws.ToString(deployed.Target.Input)
	r, err := lambda.NewFromConfig(w.AWSConfig()).Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String(w.Name + "-schedule"), Payload: []byte(payload)})
	if err != nil || r.FunctionError != nil {
		t.Fatalf("%v, %s", err, r.Payload)
	}
	var out rotation.ScheduleOutput
	if err := json.Unmarshal(r.Payload, &out); err != nil || out.Next.Label == "" || len(out.Called)+len(out.Waits) > 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	q := out.Next
	due := app.WireScheduler(w.Deployment.Config, w.AWSConfig(), "test")
	var in rotation.ScheduleInput
	if err := json.Unmarshal([]byte(payload), &in); err != nil {
		t.Fatal(err)
	}
	tick := func(at time.Time, called int) {
		t.Helper()
		due.Journal.Now = func() time.Time { return at }
		if out, err := due.StartDue(ctx, in); err != nil || len(out.Called) != called {
			t.Fatalf("at %s: %+v, %v", at, out, err)
		}
	}
	tick(q.Announce.Add(-time.Minute), 0)
	tick(q.Announce, 1)
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		a, err := w.Deployment.Table.LoadAnnouncement(ctx, q.Label)
		if err != nil || time.Now().After(end) {
			t.Fatalf("the window is not announced: %v", err)
		}
		if a.Rev > 0 {
			if !a.From.Equal(q.Rotation) {
				t.Errorf("announced from %s, the rotation is due at %s", a.From, q.Rotation)
			}
			break
		}
	}
	tick(q.Rotation.Add(-time.Minute), 0)
	tick(q.Rotation, 1)
	at := q.Rotation.Add(15 * time.Minute)
	due.Journal.Now = func() time.Time { return at }
	if _, err := due.StartDue(ctx, in); err != nil { // it runs, or is over
		t.Fatal(err)
	}
	machine := sfn.NewFromConfig(w.AWSConfig())
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		all, err := machine.ListExecutions(ctx, &sfn.ListExecutionsInput{StateMachineArn: &in.StateMachine})
		if err != nil || len(all.Executions) != 1 || time.Now().After(end) {
			t.Fatalf("%+v, %v", all, err)
		}
		if e := all.Executions[0]; aws.ToString(e.Name) != "schedule-"+q.Label {
			t.Fatalf("started %s", aws.ToString(e.Name))
		} else if e.Status == "SUCCEEDED" {
			break
		}
	}
	tick(at.Add(15*time.Minute), 0)
	w.mustHold(t)
	w.rowsHold(t, ledger, "schedule-"+q.Label)
	// The rotation's name was used, so that Step Functions starts nothing even if the
	// control table has not said yet that it is done.
	if err := due.Starter.StartExecution(ctx, in.StateMachine, "schedule-"+q.Label, rotation.ExecutionInput{Label: q.Label, RequestedBy: rotation.ScheduleRequester}); err != nil {
		t.Error(err)
	}
	if all, err := machine.ListExecutions(ctx, &sfn.ListExecutionsInput{StateMachineArn: &in.StateMachine}); err != nil || len(all.Executions) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}
