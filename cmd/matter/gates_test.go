package main

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/matter-ops/kms-rotation/rotation/gates"
)

// TestGates runs, on a stack that demands a drill and a second person, the scripts of
// both, in order of their names.
func TestGates(t *testing.T) {
	w := deployedWith(t, "gates", map[string]string{"DrillFreshDays": "90", "ApprovalRequired": "true", "ApprovalSeconds": "60"})
	w.more = map[string]string{}
	for _, who := range []string{"alice", "bob"} {
		out, err := sts.NewFromConfig(w.AWSConfig()).AssumeRole(t.Context(), &sts.AssumeRoleInput{
			RoleArn: aws.String("arn:aws:iam::123456789012:role/AWSReservedSSO_ops_0123456789abcdef"), RoleSessionName: &who,
		})
		if err != nil {
			t.Fatal(err)
		}
		w.more["KEY_"+who], w.more["SECRET_"+who] = *out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey
		w.more["TOKEN_"+who] = *out.Credentials.SessionToken
	}
	for who, policies := range map[string][]string{"auditor": {"AuditorPolicyArn"}, "approver": {"AuditorPolicyArn", "ApproverPolicyArn"}} {
		w.admit(t, who, w.ConfigWith, policies...)
	}
	w.admit(t, "operator", w.ConfigWith, operatorPolicies...)
	scripts(t, "gates", w)
}

// operatorPolicies and breakGlassPolicies are the outputs with what docs/runbook.md says to attach.
var (
	operatorPolicies   = []string{"AuditorPolicyArn", "StartRotationPolicyArn", "OperatorPolicyArn", "SourceReadPolicyArn", "CorpusReadPolicyArn"}
	breakGlassPolicies = []string{"AuditorPolicyArn", "BreakGlassPolicyArn", "RestoreRowsPolicyArn"}
)

// admit makes credentials of a person who has policies of the stack's outputs: KEY_who and
// SECRET_who of the scripts.
func (w *world) admit(t *testing.T, who string, with func(context.Context, ...string) (aws.Config, error), outputs ...string) {
	t.Helper()
	var arns []string
	for _, output := range outputs {
		arns = append(arns, w.Outputs[output])
	}
	cfg, err := with(t.Context(), arns...)
	if err != nil {
		t.Fatal(err)
	}
	has, err := cfg.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if w.more == nil {
		w.more = map[string]string{}
	}
	w.more["KEY_"+who], w.more["SECRET_"+who] = has.AccessKeyID, has.SecretAccessKey
}

// plan waits until a rotation asks for approval and sets $PLAN to the hash of its plan.
func (w *world) plan(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: plan rotation")
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		a, err := w.Deployment.Table.LoadApproval(context.Background(), args[0])
		ts.Check(err)
		if a.State == gates.ApprovalPending {
			ts.Setenv("PLAN", a.Plan)
			return
		}
		v, err := w.Deployment.Table.Load(context.Background(), args[0])
		ts.Check(err)
		if v.Rotation != nil && v.Rotation.Execution == "" { // by hand nobody is asked
			ts.Setenv("PLAN", w.Deployment.Steps.Gates.HashPlan(*v.Rotation))
			return
		}
	}
	ts.Fatalf("rotation %s asks for no approval", args[0])
}
