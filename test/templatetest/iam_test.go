package templatetest

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// statement is one statement of a policy.
type statement struct {
	Sid, Effect string
	Actions     []string
	Resources   []string
	Conditions  map[string][]string // "StringEquals aws:SourceAccount" → values
}

func statements(t *testing.T, doc any) []statement {
	t.Helper()
	var out []statement
	for _, v := range list(at[any](t, doc, "Statement")) {
		o := at[object](t, v)
		s := statement{
			Sid: fmt.Sprint(o["Sid"]), Effect: at[string](t, o, "Effect"),
			Actions: texts(o["Action"]), Resources: texts(o["Resource"]), Conditions: map[string][]string{},
		}
		for _, r := range texts(o["NotResource"]) {
			s.Resources = append(s.Resources, "all but "+r)
		}
		if o["NotAction"] != nil || o["NotResource"] != nil && s.Effect == "Allow" || o["NotPrincipal"] != nil {
			t.Errorf("statement %s: a negated element grants what nobody has thought of", s.Sid)
		}
		if o["Condition"] != nil {
			for op, keys := range at[object](t, o, "Condition") {
				for key, values := range at[object](t, keys) {
					s.Conditions[op+" "+key] = texts(values)
				}
			}
		}
		out = append(out, s)
	}
	return out
}

// allows reports whether the statement allows the action, wildcards included.
func (s statement) allows(action string) bool {
	return s.Effect == "Allow" && slices.ContainsFunc(s.Actions, func(pattern string) bool {
		ok, err := path.Match(strings.ToLower(pattern), strings.ToLower(action))
		return ok && err == nil
	})
}

// onKey reports whether the statement may touch an item with that partition key.
func (s statement) onKey(pk string) bool {
	for op, patterns := range s.Conditions {
		if strings.HasSuffix(op, " dynamodb:LeadingKeys") {
			return slices.ContainsFunc(patterns, func(p string) bool {
				ok, err := path.Match(p, pk)
				return ok && err == nil
			})
		}
	}
	return true
}

// forPeople are the policies that people are given, and no program; TestPeople and
// TestPeopleMustDeny have them.
var forPeople = []string{"AuditorPolicy", "ApproverPolicy", "OperatorPolicy", "BreakGlassPolicy", "RestoreRowsPolicy"}

// policies returns what is attached to each role, and to no role under "": inline
// policies, managed policies that the role names, and those that name the role. Those of
// people are left out.
func policies(t *testing.T, tpl *template) map[string][]statement {
	t.Helper()
	out := map[string][]statement{}
	managed := map[string][]statement{}
	for _, id := range tpl.ofType("AWS::IAM::ManagedPolicy") {
		managed[id] = statements(t, at[object](t, tpl.Resources, id, "Properties", "PolicyDocument"))
	}
	attached := map[string]bool{}
	for _, id := range tpl.ofType("AWS::IAM::Role") {
		p := at[object](t, tpl.Resources, id, "Properties")
		for _, inline := range list(p["Policies"]) {
			out[id] = append(out[id], statements(t, at[object](t, inline, "PolicyDocument"))...)
		}
		for _, ref := range list(p["ManagedPolicyArns"]) {
			name := at[string](t, ref, "Ref")
			if managed[name] == nil {
				t.Errorf("%s: no managed policy %s", id, name)
			}
			out[id], attached[name] = append(out[id], managed[name]...), true
		}
	}
	for name, ss := range managed {
		for _, ref := range list(at[object](t, tpl.Resources, name, "Properties")["Roles"]) {
			id := at[string](t, ref, "Ref")
			out[id], attached[name] = append(out[id], ss...), true
		}
		if !attached[name] && !slices.Contains(forPeople, name) {
			out[""] = append(out[""], ss...)
		}
	}
	return out
}

// everyStatement returns every statement of the template by where it stands,
// resource policies too.
func everyStatement(t *testing.T, tpl *template) map[string][]statement {
	t.Helper()
	out := map[string][]statement{}
	var walk func(where string, v any)
	walk = func(where string, v any) {
		switch v := v.(type) {
		case []any:
			for i, e := range v {
				walk(fmt.Sprintf("%s[%d]", where, i), e)
			}
		case object:
			if _, ok := v["Statement"]; ok {
				out[where] = statements(t, v)
			}
			for k, e := range v {
				walk(where+"."+k, e)
			}
		}
	}
	walk("Resources", tpl.Resources)
	return out
}

func TestNoWildcardAction(t *testing.T) {
	for where, ss := range everyStatement(t, load(t)) {
		for _, s := range ss {
			for _, a := range s.Actions {
				if s.Effect == "Allow" && strings.Contains(a, "*") {
					t.Errorf("%s: statement %s allows %s: write the actions out", where, s.Sid, a)
				}
			}
		}
	}
}

// TestWildcardResourcesHaveReasons: every resource that is everything, or every
// key of the account, says why on its line or on the one above.
func TestWildcardResourcesHaveReasons(t *testing.T) {
	tpl := load(t)
	seen := 0
	var walk func(n *yaml.Node, resource bool)
	walk = func(n *yaml.Node, resource bool) {
		if n.Kind == yaml.ScalarNode && resource && (n.Value == "*" || strings.HasSuffix(n.Value, ":key/*")) {
			seen++
			if !strings.Contains(tpl.lines[n.Line-1], "# reason: ") && !strings.Contains(tpl.lines[n.Line-2], "# reason: ") {
				t.Errorf("line %d: Resource %q gives no reason", n.Line, n.Value)
			}
		}
		for i, c := range n.Content {
			if n.Kind == yaml.MappingNode {
				if i%2 == 1 {
					walk(c, n.Content[i-1].Value == "Resource")
				}
				continue
			}
			walk(c, resource)
		}
	}
	walk(tpl.node, false)
	if seen < 10 {
		t.Errorf("only %d wildcard resources were found: the walk is broken", seen)
	}
}

// TestTrust: nobody else's function, state machine or schedule gets at a role. Whether
// Lambda sends aws:SourceArn when it assumes a function's role is not documented, and at
// CreateFunction there is no function yet: AWS's own samples ask for the account alone.
func TestTrust(t *testing.T) {
	tpl := load(t)
	arn := func(service, rest string) string {
		return "arn:${AWS::Partition}:" + service + ":${AWS::Region}:${AWS::AccountId}:" + rest
	}
	machine := func(id string) string {
		return arn("states", "stateMachine:"+text(at[any](t, tpl.Resources, id, "Properties", "Name")))
	}
	want := map[string]string{
		"StateMachineRole":   machine("StateMachine"),
		"TickScheduleRole":   arn("scheduler", "schedule-group/"+text(at[any](t, tpl.Resources, "ScheduleGroup", "Properties", "Name"))),
		"HealthScheduleRole": arn("scheduler", "schedule-group/"+text(at[any](t, tpl.Resources, "ScheduleGroup", "Properties", "Name"))),
		"EmergencyFormRole":  arn("ssm", "automation-execution/*"),
		"AnchorScheduleRole": arn("scheduler", "schedule-group/"+text(at[any](t, tpl.Resources, "ScheduleGroup", "Properties", "Name"))),
	}
	for _, id := range tpl.ofType("AWS::Serverless::Function") {
		role := strings.TrimSuffix(id, "Function") + "Role"
		want[role] = ""
		if got := text(at[any](t, tpl.Resources, id, "Properties", "Role")); got != "${"+role+".Arn}" {
			t.Errorf("%s has role %s, not its own %s", id, got, role)
		}
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(want)), tpl.ofType("AWS::IAM::Role")); d != "" {
		t.Fatalf("roles (-want +got):\n%s", d)
	}
	for role, source := range want {
		op := "ArnEquals"
		if strings.HasSuffix(source, "*") {
			op = "ArnLike"
		}
		sources := []string{source}
		if role == "StateMachineRole" {
			sources = append(sources, machine("EmergencyStateMachine"))
		}
		ss := statements(t, at[object](t, tpl.Resources, role, "Properties", "AssumeRolePolicyDocument"))
		wantTrust := []statement{{
			Sid: "<nil>", Effect: "Allow", Actions: []string{"sts:AssumeRole"},
			Conditions: map[string][]string{
				"StringEquals aws:SourceAccount": {"${AWS::AccountId}"}, op + " aws:SourceArn": sources,
			},
		}}
		if source == "" {
			delete(wantTrust[0].Conditions, op+" aws:SourceArn")
		}
		if d := cmp.Diff(wantTrust, ss); d != "" {
			t.Errorf("trust policy of %s (-want +got):\n%s", role, d)
		}
	}
}

func TestGuardrails(t *testing.T) {
	tpl := load(t)
	for role, ss := range policies(t, tpl) {
		if role == "" { // attached by applications
			continue
		}
		// The condition holds for every action but to make the role by which KMS
		// synchronises multi-Region keys.
		unless := map[string][]string{"StringNotEqualsIfExists iam:AWSServiceName": {"mrk.kms.amazonaws.com"}}
		denied := func(action string) bool {
			return slices.ContainsFunc(ss, func(s statement) bool {
				flipped := s
				flipped.Effect = "Allow"
				always := len(s.Conditions) == 0 || strings.HasPrefix(action, "iam:") && cmp.Equal(s.Conditions, unless)
				return s.Effect == "Deny" && always && slices.Equal(s.Resources, []string{"*"}) && flipped.allows(action)
			})
		}
		for _, action := range []string{
			"kms:ScheduleKeyDeletion", "kms:PutKeyPolicy", "kms:DeleteAlias", "kms:UpdateAlias", "kms:CreateGrant", "kms:EnableKey",
			"s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention", "s3:PutBucketPolicy",
			"dynamodb:DeleteTable", "dynamodb:UpdateTimeToLive", "iam:PassRole", "iam:PutRolePolicy", "sts:AssumeRole",
		} {
			if !denied(action) {
				t.Errorf("%s is not denied %s", role, action)
			}
		}
	}
	for where, ss := range everyStatement(t, tpl) {
		for _, s := range ss {
			if s.allows("kms:ScheduleKeyDeletion") && where != "Resources.CheckpointKey.Properties.KeyPolicy" { // goes with the stack
				t.Errorf("%s: statement %s allows kms:ScheduleKeyDeletion", where, s.Sid)
			}
		}
	}
}
