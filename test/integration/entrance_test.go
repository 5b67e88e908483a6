package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
)

// TestEntrances: the two policies for people. Whoever may start emergencies is denied the
// state machine of normal rotations, which refuses an emergency whoever asks it for one, and
// the other way about. What either may start runs to its end.
func TestEntrances(t *testing.T) {
	w := up(t, nil)
	machines := map[kek.Mode]string{
		kek.Normal: w.Env()["MATTER_STATE_MACHINE_ARN"], kek.Emergency: w.Env()["MATTER_EMERGENCY_STATE_MACHINE_ARN"],
	}
	inputs := map[kek.Mode]string{kek.Normal: `{}`, kek.Emergency: urgent}
	for _, tc := range []struct {
		policy     string
		own, other kek.Mode
	}{
		{"StartRotationPolicyArn", kek.Normal, kek.Emergency},
		{"StartEmergencyPolicyArn", kek.Emergency, kek.Normal},
	} {
		cfg, err := w.ConfigWith(t.Context(), w.Outputs[tc.policy])
		if err != nil {
			t.Fatal(err)
		}
		person := sfn.NewFromConfig(cfg)
		begin := func(name string, at, ask kek.Mode) (string, error) {
			out, err := person.StartExecution(t.Context(), &sfn.StartExecutionInput{
				StateMachineArn: aws.String(machines[at]), Name: &name, Input: aws.String(inputs[ask]),
			})
			if err != nil {
				return "", err
			}
			return aws.ToString(out.ExecutionArn), nil
		}
		for _, ask := range []kek.Mode{tc.own, tc.other} {
			if _, err := begin("denied", tc.other, ask); err == nil || !strings.Contains(err.Error(), "not authorized to perform: states:StartExecution") {
				t.Errorf("%s starts the state machine of %s rotations: %v", tc.policy, tc.other, err)
			}
		}
		before := w.view(t, "").Pointer
		arn, err := begin("forged-"+string(tc.other), tc.own, tc.other)
		if err != nil {
			t.Fatal(err)
		}
		if o := w.finish(t, arn); o.Error != "InvalidInput" || !slices.Contains(o.States, "Refused") || !strings.Contains(o.Cause, "mode: this state machine") {
			t.Error(describe(o))
		}
		if v := w.view(t, "forged-"+string(tc.other)); v.Rotation != nil || v.Lock != "" || *v.Pointer != *before {
			t.Errorf("the refusal has left %+v, lock %q, pointer %+v", v.Rotation, v.Lock, v.Pointer)
		}
		name := "own-" + string(tc.own)
		if arn, err = begin(name, tc.own, tc.own); err != nil {
			t.Fatal(err)
		}
		if o := w.finish(t, arn); o.Status != types.ExecutionStatusSucceeded {
			t.Fatal(describe(o))
		}
		if _, err := person.DescribeExecution(t.Context(), &sfn.DescribeExecutionInput{ExecutionArn: &arn}); err != nil {
			t.Errorf("%s cannot follow what it has started: %v", tc.policy, err)
		}
		if r := w.view(t, name).Rotation; r.Mode != tc.own || r.Phase != kek.Completed {
			t.Errorf("%+v", r)
		}
	}
	w.mustHold(t)
}

// TestSharedEntrance: where the deployment says so, one permission is for both.
func TestSharedEntrance(t *testing.T) {
	w := up(t, map[string]string{"EmergencyPermission": "shared"})
	name, input := "urgent", urgent
	out, err := w.sfn.StartExecution(t.Context(), &sfn.StartExecutionInput{
		StateMachineArn: aws.String(w.Env()["MATTER_STATE_MACHINE_ARN"]), Name: &name, Input: &input,
	})
	if err != nil {
		t.Fatal(err)
	}
	if o := w.finish(t, aws.ToString(out.ExecutionArn)); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	w.mustHold(t)
}
