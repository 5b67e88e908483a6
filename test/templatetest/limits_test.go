package templatetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Limits of AWS services that no linter has, each with where AWS documents it
// (docs.aws.amazon.com unless said).
const (
	maxAlarmMetrics      = 10      // AmazonCloudWatch/latest/monitoring: "Metric math expressions can reference a maximum of 10 metrics", a hard limit
	maxAlarmQueries      = 20      // PutMetricAlarm: Metrics
	maxAlarmText         = 1024    // PutMetricAlarm: AlarmDescription
	maxEnvironment       = 4096    // lambda/latest/dg/gettingstarted-limits.html; as JSON: LocalStack's recorded CreateFunction error
	maxParameterValue    = 4096    // AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
	maxParameters        = 200     // the same
	maxResources         = 500     // the same
	maxOutputs           = 200     // the same
	maxTemplate          = 1 << 20 // the same, in S3
	maxManagedPolicy     = 6144    // IAM/latest/UserGuide/reference_iam-quotas.html, without white space
	maxInlinePolicies    = 10240   // the same, of one role together
	maxTrustPolicy       = 2048    // the same
	maxManagedPerRole    = 10      // the same, by default
	maxBucketPolicy      = 20480   // AmazonS3/latest/userguide/bucket-policies.html: 20 KB
	maxKeyPolicy         = 32768   // kms/latest/developerguide/resource-limits.html: 32 KB
	maxTopicPolicy       = 30720   // sns: 30 KB
	maxDefinition        = 1 << 20 // step-functions/latest/dg/service-quotas.html
	maxDashboardWidgets  = 500     // AmazonCloudWatch/latest/monitoring/cloudwatch_limits.html
	maxLambdaSeconds     = 900     // lambda/latest/dg/gettingstarted-limits.html
	longestStackName     = 53      // this template's own, see its head
	longestAccountPrefix = 40      // an ARN's beginning in the partition and Region with the longest names
)

// maxNames are the longest names of what the template names.
var maxNames = map[string]int{
	"FunctionName": 64, "RoleName": 64, "AliasName": 256, "TopicName": 256, "QueueName": 80, "LogGroupName": 512, "DashboardName": 255,
	"AlarmName": 255, "AWS::Serverless::StateMachine.Name": 80, "AWS::Scheduler::Schedule.Name": 64, "AWS::Scheduler::ScheduleGroup.Name": 64,
	"AWS::SSM::Document.Name": 128,
}

// extremes are the parameters at their longest.
func extremes(t *testing.T, tpl *template) map[string]string {
	t.Helper()
	out := map[string]string{"AWS::StackName": strings.Repeat("s", longestStackName), "AWS::Region": "ap-southeast-1", "AWS::AccountId": "123456789012", "AWS::Partition": "aws-us-gov"}
	for name, v := range tpl.Parameters {
		p := at[object](t, v)
		switch {
		case p["AllowedValues"] != nil:
			for _, a := range texts(p["AllowedValues"]) {
				if len(a) > len(out[name]) {
					out[name] = a
				}
			}
		case p["Type"] == "Number":
			out[name] = fmt.Sprint(p["MaxValue"])
		case p["MaxLength"] != nil:
			out[name] = worst(t, name, p, at[int](t, p, "MaxLength"))
		default:
			out[name] = worst(t, name, p, maxParameterValue)
		}
	}
	return out
}

// worst is a value of n bytes that the parameter takes, of characters that JSON escapes
// where the pattern lets them through. The trust list is one of as many logs as fit: what
// is no list preflight refuses, and CloudFormation takes.
func worst(t *testing.T, name string, p object, n int) string {
	t.Helper()
	if name == "TransparencyLogs" {
		d := at[string](t, p, "Default")
		log := d[strings.Index(d, "[")+1 : strings.Index(d, "]")]
		for v := d; ; v = strings.Replace(v, "[", "["+log+",", 1) {
			if len(v)+len(log) >= n {
				return v + strings.Repeat(" ", n-len(v))
			}
		}
	}
	pattern, _ := p["AllowedPattern"].(string)
	re := regexp.MustCompile(pattern)
	for _, frame := range []string{"{%s}", "[%s]", "https://%s", "%s/", "a%sa", "%s@a.b", "arn:aws:sns:eu-central-1:123456789012:%s", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:%s", "%s"} {
		for _, fill := range []string{`"`, "a"} {
			v := fmt.Sprintf(frame, strings.Repeat(fill, max(0, n-len(frame)+2)))
			if len(v) <= n && re.MatchString(v) {
				return v
			}
		}
	}
	d := fmt.Sprint(p["Default"])
	if len(d) > 40 {
		t.Fatalf("%s: no long value of pattern %s is known here", name, pattern)
	}
	return d + strings.Repeat("x", max(0, 40-len(d))) // such as a duration or a window, which are short
}

// TestEnvironmentFits: all variables of a function together, as Lambda counts them, at the
// longest values that the template takes.
func TestEnvironmentFits(t *testing.T) {
	tpl := load(t)
	params := extremes(t, tpl)
	table := "arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	for _, id := range []string{"ControlTable", "AuditBucket", "Topic", "AnchorKey.Arn"} {
		params[id] = map[string]string{
			"ControlTable": strings.Repeat("t", longestStackName+len("-ControlTable-1ABCDEFGHIJKL")), "AuditBucket": strings.Repeat("b", 63),
			"Topic": "arn:aws-us-gov:sns:us-gov-west-1:123456789012:" + strings.Repeat("s", longestStackName) + "-notifications", "AnchorKey.Arn": table,
		}[id]
	}
	vars := environment(t, tpl, params)
	sizes := map[string]int{}
	for name, v := range vars {
		sizes[name] = asJSON(t, v)
	}
	n := asJSON(t, vars)
	t.Logf("%d bytes", n)
	if n > maxEnvironment {
		t.Errorf("%d bytes of environment, Lambda takes %d: lower a MaxLength: %v", n, maxEnvironment, sizes)
	}
	for name, v := range tpl.Parameters {
		p := at[object](t, v)
		uses := slices.ContainsFunc(slices.Collect(maps.Values(at[object](t, tpl.Globals, "Function", "Environment", "Variables"))), func(v any) bool {
			return strings.Contains(text(v), "${"+name+"}")
		})
		if uses && p["Type"] == "String" && p["AllowedValues"] == nil && p["MaxLength"] == nil && len(params[name]) > 200 {
			t.Errorf("parameter %s is part of the environment and has no MaxLength", name)
		}
	}
}

// asJSON is the length of v as JSON without escapes for HTML.
func asJSON(t *testing.T, v any) int {
	t.Helper()
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Len() - 1
}

// TestAlarmLimits: no alarm refers to more metrics than CloudWatch allows, however many
// functions there will be.
func TestAlarmLimits(t *testing.T) {
	tpl := load(t)
	seen := 0
	for _, id := range tpl.ofType("AWS::CloudWatch::Alarm") {
		p := at[object](t, tpl.Resources, id, "Properties")
		stats := 0
		queries := list(p["Metrics"])
		for _, q := range queries {
			if at[object](t, q)["MetricStat"] != nil {
				stats++
			}
		}
		seen += stats
		if stats > maxAlarmMetrics || len(queries) > maxAlarmQueries {
			t.Errorf("%s refers to %d metrics in %d queries, CloudWatch takes %d and %d", id, stats, len(queries), maxAlarmMetrics, maxAlarmQueries)
		}
		if n := len(text(p["AlarmDescription"])); n > maxAlarmText {
			t.Errorf("%s: a description of %d characters", id, n)
		}
	}
	if seen < len(tpl.ofType("AWS::Serverless::Function")) {
		t.Errorf("%d metrics of functions: the walk is broken", seen)
	}
}

// compact is a policy as IAM counts it, with every reference at its longest.
func compact(t *testing.T, tpl *template, v any, params map[string]string) int {
	t.Helper()
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case []any:
			out := []any{}
			for _, e := range v {
				out = append(out, walk(e))
			}
			return out
		case object:
			if len(v) == 1 {
				if name, ok := v["Ref"].(string); ok && name == "SourceTableArns" {
					return strings.Split(params[name], ",")
				}
				for k := range v {
					if k == "Ref" || strings.HasPrefix(k, "Fn::") {
						return tpl.resolve(t, v, params)
					}
				}
			}
			out := object{}
			for k, e := range v {
				out[k] = walk(e)
			}
			return out
		default:
			return v
		}
	}
	return asJSON(t, walk(v))
}

// TestPolicySizes: policies and roles with the longest names and as many tables as
// CloudFormation takes.
func TestPolicySizes(t *testing.T) {
	tpl := load(t)
	params := extremes(t, tpl)
	arn := strings.Repeat("a", longestAccountPrefix) + "orders"
	params["SourceTableArns"] = strings.TrimSuffix(strings.Repeat(arn+",", maxParameterValue/(len(arn)+1)), ",")
	for id := range tpl.Resources {
		for _, attribute := range []string{"", ".Arn", ".QueueName"} {
			params[id+attribute] = strings.Repeat("r", longestAccountPrefix+longestStackName+len(id)+14)
		}
	}
	check := func(where string, n, limit int) {
		t.Helper()
		if n > limit {
			t.Errorf("%s has %d characters, AWS takes %d", where, n, limit)
		}
		if n < 100 {
			t.Errorf("%s has %d characters: the walk is broken", where, n)
		}
	}
	attached := map[string]int{}
	for _, id := range tpl.ofType("AWS::IAM::ManagedPolicy") {
		p := at[object](t, tpl.Resources, id, "Properties")
		check(id, compact(t, tpl, p["PolicyDocument"], params), maxManagedPolicy)
		for _, r := range list(p["Roles"]) {
			attached[at[string](t, r, "Ref")]++
		}
	}
	for _, id := range tpl.ofType("AWS::IAM::Role") {
		p := at[object](t, tpl.Resources, id, "Properties")
		check(id+" trust", compact(t, tpl, p["AssumeRolePolicyDocument"], params), maxTrustPolicy)
		n := 0
		for _, q := range list(p["Policies"]) {
			n += compact(t, tpl, at[object](t, q, "PolicyDocument"), params)
		}
		check(id, n, maxInlinePolicies)
		if n := attached[id] + len(list(p["ManagedPolicyArns"])); n > maxManagedPerRole {
			t.Errorf("%s has %d managed policies, IAM takes %d", id, n, maxManagedPerRole)
		}
	}
	policy := func(id, property string) any { return at[any](t, tpl.Resources, id, "Properties", property) }
	check("bucket policy", compact(t, tpl, policy("AuditBucketPolicy", "PolicyDocument"), params), maxBucketPolicy)
	check("anchor key's policy", compact(t, tpl, policy("AnchorKey", "KeyPolicy"), params), maxKeyPolicy)
	check("topic policy", compact(t, tpl, policy("TopicPolicy", "PolicyDocument"), params), maxTopicPolicy)
}

// TestNamesFit: with the longest name of a stack each name is within its service's limit.
func TestNamesFit(t *testing.T) {
	tpl := load(t)
	params := extremes(t, tpl)
	seen := 0
	for id, v := range tpl.Resources {
		p, _ := at[object](t, v)["Properties"].(object)
		for property, value := range p {
			limit, ok := maxNames[property]
			if !ok {
				limit, ok = maxNames[at[string](t, v, "Type")+"."+property]
			}
			if !ok {
				continue
			}
			seen++
			if name := tpl.resolve(t, value, params); len(name) > limit {
				t.Errorf("%s: %s %q has %d characters, AWS takes %d", id, property, name, len(name), limit)
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d names were found: the walk is broken", seen)
	}
}

// TestTemplateLimits: what CloudFormation, Step Functions and Lambda take as a whole.
func TestTemplateLimits(t *testing.T) {
	tpl := load(t)
	size := func(name string) int {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	for what, c := range map[string]struct{ n, limit int }{
		"parameters":               {len(tpl.Parameters), maxParameters},
		"resources":                {2 * len(tpl.Resources), maxResources}, // SAM adds roles, versions and permissions
		"outputs":                  {len(tpl.Outputs), maxOutputs},
		"bytes of template":        {2 * size("template.yaml"), maxTemplate}, // JSON is longer
		"bytes of state machine":   {2 * size("statemachine.asl.json"), maxDefinition},
		"widgets of the dashboard": {strings.Count(text(at[any](t, tpl.Resources, "Dashboard", "Properties", "DashboardBody")), `"type":`), maxDashboardWidgets},
	} {
		if c.n == 0 || c.n > c.limit {
			t.Errorf("%d %s, AWS takes %d", c.n, what, c.limit)
		}
	}
	for _, id := range tpl.ofType("AWS::Serverless::Function") {
		p := at[object](t, tpl.Resources, id, "Properties")
		if n := at[int](t, p, "Timeout"); n > maxLambdaSeconds {
			t.Errorf("%s may run for %d s, Lambda for %d", id, n, maxLambdaSeconds)
		}
	}
	for name, v := range tpl.Parameters {
		p := at[object](t, v)
		if d, ok := p["Default"].(string); ok && len(d) > maxParameterValue {
			t.Errorf("parameter %s: a default of %d bytes", name, len(d))
		}
		if n, ok := p["MaxLength"].(int); ok && n > maxParameterValue {
			t.Errorf("parameter %s takes %d bytes, CloudFormation %d", name, n, maxParameterValue)
		}
	}
}
