package templatetest

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/localaws/iam"
)

// TestStateOutlivesTheStack: deleting the stack loses no state, no record and no
// signature's key; creating it and failing leaves as little as AWS lets a rollback remove.
func TestStateOutlivesTheStack(t *testing.T) {
	tpl := load(t)
	for id, want := range map[string]string{
		// A rollback cannot delete a table under deletion protection, nor a key whose policy
		// lets nobody schedule its deletion: it would end in ROLLBACK_FAILED.
		"ControlTable": "Retain", "KeyTable": "Retain", "AnchorKey": "Retain",
		"AuditBucket": "RetainExceptOnCreate", "AuditBucketPolicy": "RetainExceptOnCreate",
	} {
		if got := at[string](t, tpl.Resources, id, "DeletionPolicy"); got != want {
			t.Errorf("%s: DeletionPolicy is %s", id, got)
		}
		if got := at[string](t, tpl.Resources, id, "UpdateReplacePolicy"); got != "Retain" {
			t.Errorf("%s: UpdateReplacePolicy is %s", id, got)
		}
	}
	for _, table := range []string{"ControlTable", "KeyTable"} {
		if !at[bool](t, tpl.Resources, table, "Properties", "DeletionProtectionEnabled") {
			t.Errorf("%s is not protected: then RetainExceptOnCreate is right for it", table)
		}
	}
	for where, ss := range everyStatement(t, tpl) {
		for _, s := range ss {
			if strings.Contains(where, "AnchorKey.") && s.allows("kms:ScheduleKeyDeletion") {
				t.Errorf("%s: the anchor key may be deleted: then RetainExceptOnCreate is right for it", where)
			}
		}
	}
	for kind, want := range map[string]int{"AWS::DynamoDB::Table": 2, "AWS::S3::Bucket": 1, "AWS::KMS::Key": 2} {
		if got := tpl.ofType(kind); len(got) != want {
			t.Errorf("%s: %q: each needs a check above", kind, got)
		}
	}
}

// TestOrganisation: a permissions boundary and a key for the logs reach every role and every
// log group, and by default there are none.
func TestOrganisation(t *testing.T) {
	tpl := load(t)
	for kind, want := range map[string][3]string{
		"AWS::IAM::Role":      {"PermissionsBoundary", "HasBoundary", "PermissionsBoundaryArn"},
		"AWS::Logs::LogGroup": {"KmsKeyId", "HasLogKey", "LogKmsKeyArn"},
	} {
		ids := tpl.ofType(kind)
		if len(ids) < 10 {
			t.Errorf("only %d of %s", len(ids), kind)
		}
		for _, id := range ids {
			v := at[any](t, tpl.Resources, id, "Properties", want[0])
			if got := text(v); got != `{"Fn::If":["`+want[1]+`",{"Ref":"`+want[2]+`"},{"Ref":"AWS::NoValue"}]}` {
				t.Errorf("%s: %s is %s", id, want[0], got)
			}
			if got := tpl.resolve(t, v, map[string]string{want[2]: "arn"}); got != "arn" {
				t.Errorf("%s: with %s it is %q", id, want[2], got)
			}
		}
		if tpl.holds(t, at[object](t, tpl.Conditions, want[1]), nil) {
			t.Errorf("%s holds by default", want[1])
		}
	}
}

// TestSecondLife: what outlives the stack has no name of ours, so that a stack of the same
// name can be created again after a failed creation or a deletion.
func TestSecondLife(t *testing.T) {
	tpl := load(t)
	names := []string{
		"TableName", "BucketName", "AliasName", "FunctionName", "RoleName", "ManagedPolicyName", "TopicName", "QueueName", "LogGroupName", "Name",
		"DashboardName", "AlarmName",
	}
	kept := 0
	for id, v := range tpl.Resources {
		r := at[object](t, v)
		if policy, _ := r["DeletionPolicy"].(string); !strings.HasPrefix(policy, "Retain") {
			continue
		}
		kept++
		p := at[object](t, r, "Properties")
		for _, name := range names {
			if p[name] != nil {
				t.Errorf("%s outlives the stack and has the fixed %s %s", id, name, text(p[name]))
			}
		}
	}
	if kept != 5 {
		t.Errorf("%d resources outlive the stack: matter ops reinstall and docs/runbook.md name five", kept)
	}
}

func TestControlTable(t *testing.T) {
	want := object{
		"AttributeDefinitions": []any{
			object{"AttributeName": "pk", "AttributeType": "S"}, object{"AttributeName": "sk", "AttributeType": "S"},
		},
		"KeySchema":                        []any{object{"AttributeName": "pk", "KeyType": "HASH"}, object{"AttributeName": "sk", "KeyType": "RANGE"}},
		"BillingMode":                      "PAY_PER_REQUEST",
		"DeletionProtectionEnabled":        true,
		"PointInTimeRecoverySpecification": object{"PointInTimeRecoveryEnabled": true},
		"SSESpecification":                 object{"SSEEnabled": true},
		// No TimeToLiveSpecification: see ddb.Store.Revoke.
	}
	if d := cmp.Diff(want, at[object](t, load(t).Resources, "ControlTable", "Properties")); d != "" {
		t.Errorf("control table (-want +got):\n%s", d)
	}
}

func TestKeyTable(t *testing.T) {
	want := object{
		"AttributeDefinitions":             []any{object{"AttributeName": "pk", "AttributeType": "S"}},
		"KeySchema":                        []any{object{"AttributeName": "pk", "KeyType": "HASH"}},
		"BillingMode":                      "PAY_PER_REQUEST",
		"DeletionProtectionEnabled":        true,
		"PointInTimeRecoverySpecification": object{"PointInTimeRecoveryEnabled": true},
		"SSESpecification":                 object{"SSEEnabled": true},
		// No TimeToLiveSpecification: records are never deleted.
	}
	if d := cmp.Diff(want, at[object](t, load(t).Resources, "KeyTable", "Properties")); d != "" {
		t.Errorf("key table (-want +got):\n%s", d)
	}
}

func TestAuditBucket(t *testing.T) {
	want := object{
		"ObjectLockEnabled": true,
		"ObjectLockConfiguration": object{
			"ObjectLockEnabled": "Enabled",
			"Rule":              object{"DefaultRetention": object{"Mode": "COMPLIANCE", "Days": object{"Ref": "RetentionDays"}}},
		},
		"VersioningConfiguration": object{"Status": "Enabled"},
		"BucketEncryption": object{"ServerSideEncryptionConfiguration": []any{
			object{"ServerSideEncryptionByDefault": object{"SSEAlgorithm": "AES256"}}, // never under a KEK
		}},
		"PublicAccessBlockConfiguration": object{
			"BlockPublicAcls": true, "BlockPublicPolicy": true, "IgnorePublicAcls": true, "RestrictPublicBuckets": true,
		},
		"OwnershipControls": object{"Rules": []any{object{"ObjectOwnership": "BucketOwnerEnforced"}}},
	}
	if d := cmp.Diff(want, at[object](t, load(t).Resources, "AuditBucket", "Properties")); d != "" {
		t.Errorf("audit bucket (-want +got):\n%s", d)
	}
}

// TestAuditBucketPolicy: what the bucket refuses, whoever asks.
func TestAuditBucketPolicy(t *testing.T) {
	tpl := load(t)
	doc := at[object](t, tpl.Resources, "AuditBucketPolicy", "Properties", "PolicyDocument")
	got := map[string]statement{}
	for _, s := range statements(t, doc) {
		if s.Effect != "Deny" {
			t.Errorf("statement %s grants; the roles' own policies do", s.Sid)
		}
		got[s.Sid] = s
	}
	for _, v := range list(doc["Statement"]) {
		if p := at[object](t, v)["Principal"]; p != "*" {
			t.Errorf("a statement denies %v only", p)
		}
	}
	objects := []string{"${AuditBucket.Arn}/*"}
	deny := func(sid string, resources, actions []string, conditions map[string][]string) statement {
		return statement{Sid: sid, Effect: "Deny", Actions: actions, Resources: resources, Conditions: conditions}
	}
	locks := []string{"s3:PutObject", "s3:PutObjectRetention"}
	want := map[string]statement{}
	for _, s := range []statement{
		deny("OnlyTLS", []string{"${AuditBucket.Arn}", "${AuditBucket.Arn}/*"}, []string{"s3:*"},
			map[string][]string{"Bool aws:SecureTransport": {"false"}}),
		deny("NothingIsDeleted", objects, []string{"s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"},
			map[string][]string{}),
		deny("NothingIsOverwritten", objects, locks[:1], map[string][]string{"Null s3:if-none-match": {"true"}}),
		deny("NothingBesideTheChain", []string{"all but ${AuditBucket.Arn}/v1/${AWS::StackName}/*", "all but ${AuditBucket.Arn}/deks/*"}, locks[:1], map[string][]string{}),
		deny("NeverUnderAKMSKey", objects, locks[:1],
			map[string][]string{"Null s3:x-amz-server-side-encryption-aws-kms-key-id": {"false"}}),
		deny("NoShortLock", objects, locks,
			map[string][]string{"NumericLessThan s3:object-lock-remaining-retention-days": {"${RetentionDays}"}}),
		deny("OnlyCompliance", objects, locks,
			map[string][]string{"Null s3:object-lock-mode": {"false"}, "StringNotEquals s3:object-lock-mode": {"COMPLIANCE"}}),
	} {
		want[s.Sid] = s
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("bucket policy (-want +got):\n%s", d)
	}
}

// TestNothingBesideTheChain: every key that the project writes lies under the prefix of the
// stack's chain or is that of a copy of a data key, and nobody may put any other.
func TestNothingBesideTheChain(t *testing.T) {
	tpl := load(t)
	policy, err := iam.DenialsOnly(tpl.parse(t, "AuditBucketPolicy", at[object](t, tpl.Resources, "AuditBucketPolicy", "Properties")["PolicyDocument"]))
	if err != nil {
		t.Fatal(err)
	}
	taken := *audit.TakenBy("k", "v", []byte("foreign"))
	var none audit.Generations
	later := none.With(none.Next(7, taken, "salt"))
	for key, want := range map[string]iam.Decision{
		audit.ObjectKey("matter", 1):                                 iam.Silent,
		audit.AnchorKey("matter", 1):                                 iam.Silent,
		audit.Line{Chain: "matter", Generations: later}.RecordKey(7): iam.Silent,
		later.AnchorKeyIn("matter", 7):                               iam.Silent,
		audit.ObjectKey("other", 1):                                  iam.Denied,
		"v1/matter-2/records/000000000001.json":                      iam.Denied,
		"v1/matter":                                                  iam.Denied,
		"notes.txt":                                                  iam.Denied,
		"deks/74aaaaaaaaaaaaaaaaaaaaaaae/000000000005-kek-0002-adbf45b08ad6468a.json": iam.Silent, // a copy of a data key
		"deks": iam.Denied,
	} {
		for _, a := range put("arn:aws:s3:::AuditBucket/"+key, locked("s3:if-none-match", "*")...) {
			if a.Action != "s3:PutObject" {
				continue
			}
			if got, by := iam.Decide([]iam.Policy{policy}, a); got != want {
				t.Errorf("%s: %v by %q, want %v", key, got, by, want)
			}
		}
	}
}

// TestPublishing: a step may put records, and the anchor function anchors, of its
// own chain, locked for long enough, and read them back.
func TestPublishing(t *testing.T) {
	for role, ss := range policies(t, load(t)) {
		for _, s := range ss {
			audit := slices.ContainsFunc(s.Resources, func(r string) bool { return strings.HasPrefix(r, "${AuditBucket") })
			looks := []string{"CheckAuditBucket", "FindRecords", "FindAnchors", "ListEverything", "ReadEverything", "ListCopies", "ReadCopies", "CopyDataKeys"}
			if s.Effect != "Allow" || !audit || slices.Contains(looks, s.Sid) {
				continue
			}
			kind := "records"
			if strings.HasSuffix(s.Sid, "Anchors") {
				kind = "anchors"
			}
			if d := cmp.Diff([]string{"${AuditBucket.Arn}/v1/${AWS::StackName}/" + kind + "/*"}, s.Resources); d != "" {
				t.Errorf("%s: statement %s (-want +got):\n%s", role, s.Sid, d)
			}
			long := s.Conditions["NumericGreaterThanEquals s3:object-lock-remaining-retention-days"]
			if s.allows("s3:PutObjectRetention") && !slices.Equal(long, []string{"${RetentionDays}"}) {
				t.Errorf("%s: statement %s allows short locks", role, s.Sid)
			}
		}
	}
}

// TestCorpusIsNeverCreated: an entry of the corpus is replaced only if it still is
// what was read.
func TestCorpusIsNeverCreated(t *testing.T) {
	ss := statements(t, at[object](t, load(t).Resources, "CorpusRewrapPolicy", "Properties", "PolicyDocument"))
	if len(ss) != 1 || !ss[0].allows("s3:PutObject") || !slices.Equal(ss[0].Conditions["Null s3:if-match"], []string{"false"}) {
		t.Errorf("corpus: %+v", ss)
	}
}

// TestCheckpointKey: the key goes with the stack, so its policy lets CloudFormation schedule
// its deletion, and it makes MACs and nothing else.
func TestCheckpointKey(t *testing.T) {
	tpl := load(t)
	key := at[object](t, tpl.Resources, "CheckpointKey")
	if key["DeletionPolicy"] != nil || key["UpdateReplacePolicy"] != nil {
		t.Errorf("the checkpoint key outlives its stack: %v, %v", key["DeletionPolicy"], key["UpdateReplacePolicy"])
	}
	p := at[object](t, key, "Properties")
	if p["KeySpec"] != "HMAC_256" || p["KeyUsage"] != "GENERATE_VERIFY_MAC" || p["Tags"] != nil {
		t.Errorf("checkpoint key is %v %v, tags %v", p["KeySpec"], p["KeyUsage"], p["Tags"])
	}
	deletes := false
	for where, ss := range everyStatement(t, tpl) {
		for _, s := range ss {
			if strings.Contains(where, "CheckpointKey.") {
				deletes = deletes || s.allows("kms:ScheduleKeyDeletion")
			}
			if s.allows("kms:VerifyMac") {
				t.Errorf("%s: statement %s allows kms:VerifyMac, which nothing needs", where, s.Sid)
			}
		}
	}
	if !deletes {
		t.Error("nobody may delete the checkpoint key: a deleted stack would end in DELETE_FAILED")
	}
}

func TestAnchorKey(t *testing.T) {
	p := at[object](t, load(t).Resources, "AnchorKey", "Properties")
	if p["KeySpec"] != "ECC_NIST_P256" || p["KeyUsage"] != "SIGN_VERIFY" {
		t.Errorf("anchor key is %v %v", p["KeySpec"], p["KeyUsage"])
	}
	if p["Tags"] != nil {
		t.Error("the anchor key has tags: matter:stack would make it a KEK")
	}
}

// TestAlarms: every alarm has a name that the topic's policy lets publish, and tells
// somebody what to do. A section of the runbook that it names is there.
func TestAlarms(t *testing.T) {
	tpl := load(t)
	sections := runbookSections(t)
	named := 0
	for _, id := range tpl.ofType("AWS::CloudWatch::Alarm") {
		p := at[object](t, tpl.Resources, id, "Properties")
		if name := text(p["AlarmName"]); !strings.HasPrefix(name, "${AWS::StackName}-") {
			t.Errorf("%s is named %q", id, name)
		}
		if d := cmp.Diff([]string{"${Topic}"}, texts(p["AlarmActions"])); d != "" {
			t.Errorf("%s (-want +got):\n%s", id, d)
		}
		for _, m := range regexp.MustCompile(`docs/runbook\.md, ([^.;]+)`).FindAllStringSubmatch(text(p["AlarmDescription"]), -1) {
			if named++; !sections[strings.ToLower(m[1])] {
				t.Errorf("%s: docs/runbook.md has no section %q", id, m[1])
			}
		}
		if n := len(watched(t, p)); n > 10 { // CloudWatch user guide, "Limits" of alarms
			t.Errorf("%s looks at %d metrics, and CloudWatch allows 10", id, n)
		}
		missing := "notBreaching"
		if id == "CanarySilentAlarm" || id == "ScheduleSilentAlarm" {
			missing = "breaching" // that nothing is measured is what they are for
		}
		if id == "AnchorSilentAlarm" { // a stack without a log anchors nothing
			if d := cmp.Diff(object{"Fn::If": []any{"HasLog", "breaching", "notBreaching"}}, p["TreatMissingData"]); d != "" {
				t.Errorf("%s (-want +got):\n%s", id, d)
			}
			continue
		}
		if p["TreatMissingData"] != missing || p["AlarmDescription"] == nil {
			t.Errorf("%s: %v, %v", id, p["TreatMissingData"], p["AlarmDescription"])
		}
	}
	if named < 7 {
		t.Errorf("only %d sections of the runbook are named", named)
	}
}

// runbookSections lists the headings of the runbook, in lower case.
func runbookSections(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(b), -1) {
		out[strings.ToLower(m[1])] = true
	}
	return out
}

// watched lists what an alarm looks at, as namespace metric dimension=value.
func watched(t *testing.T, alarm object) []string {
	t.Helper()
	var out []string
	metric := func(m object) {
		d := at[object](t, at[[]any](t, m, "Dimensions")[0])
		out = append(out, text(m["Namespace"])+" "+text(m["MetricName"])+" "+text(d["Name"])+"="+text(d["Value"]))
	}
	if alarm["MetricName"] != nil {
		metric(alarm)
	}
	for _, m := range list(alarm["Metrics"]) {
		if stat, ok := at[object](t, m)["MetricStat"]; ok {
			metric(at[object](t, stat, "Metric"))
		}
	}
	return out
}

// TestWatched: no function, way to fail or orphaned key goes unseen.
func TestWatched(t *testing.T) {
	tpl := load(t)
	var got []string
	for _, id := range tpl.ofType("AWS::CloudWatch::Alarm") {
		got = append(got, watched(t, at[object](t, tpl.Resources, id, "Properties"))...)
	}
	want := []string{
		"AWS/States ExecutionsFailed StateMachineArn=${StateMachine}",
		"AWS/States ExecutionsTimedOut StateMachineArn=${StateMachine}",
		"AWS/States ExecutionsAborted StateMachineArn=${StateMachine}",
		"AWS/States ExecutionsFailed StateMachineArn=${EmergencyStateMachine}",
		"AWS/States ExecutionsTimedOut StateMachineArn=${EmergencyStateMachine}",
		"AWS/States ExecutionsAborted StateMachineArn=${EmergencyStateMachine}",
		"Matter orphaned_key_reference stack=${AWS::StackName}",
		"Matter " + journal.MetricGeneration + " stack=${AWS::StackName}",
		"Matter " + anchor.MetricRed + " stack=${AWS::StackName}",
		"Matter " + anchor.MetricGreen + " stack=${AWS::StackName}",
		"Matter " + rotation.MetricCanaryRed + " stack=${AWS::StackName}",
		"Matter " + rotation.MetricCanaryGreen + " stack=${AWS::StackName}",
		"Matter " + rotation.MetricTick + " stack=${AWS::StackName}",
		"Matter " + rotation.MetricRotationOverdue + " stack=${AWS::StackName}",
		"Matter " + rotation.MetricPreparationOverdue + " stack=${AWS::StackName}",
		"AWS/SQS ApproximateNumberOfMessagesVisible QueueName=${ScheduleFailures.QueueName}",
	}
	for _, id := range tpl.ofType("AWS::Serverless::Function") {
		want = append(want, "AWS/Lambda Errors FunctionName=${"+id+"}", "AWS/Lambda Throttles FunctionName=${"+id+"}")
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("watched (-want +got):\n%s", d)
	}
}

// TestTopicPolicy: of the services only this stack's alarms publish, and no KMS key
// can keep them from it.
func TestTopicPolicy(t *testing.T) {
	tpl := load(t)
	if key := at[object](t, tpl.Resources, "Topic", "Properties")["KmsMasterKeyId"]; key != nil {
		t.Errorf("the topic is under KMS key %v", key)
	}
	want := []statement{
		{
			Sid: "AlarmsPublish", Effect: "Allow", Actions: []string{"sns:Publish"}, Resources: []string{"${Topic}"},
			Conditions: map[string][]string{
				"StringEquals aws:SourceAccount": {"${AWS::AccountId}"},
				"ArnLike aws:SourceArn":          {"arn:${AWS::Partition}:cloudwatch:${AWS::Region}:${AWS::AccountId}:alarm:${AWS::StackName}-*"},
			},
		},
		{
			Sid: "OnlyTLS", Effect: "Deny", Actions: []string{"sns:Publish"}, Resources: []string{"${Topic}"},
			Conditions: map[string][]string{"Bool aws:SecureTransport": {"false"}},
		},
	}
	if d := cmp.Diff(want, statements(t, at[object](t, tpl.Resources, "TopicPolicy", "Properties", "PolicyDocument"))); d != "" {
		t.Errorf("topic policy (-want +got):\n%s", d)
	}
}

// TestRefusalAheadIsHeard: function schedule does not wait for preflight, so what it says
// days ahead must go to people.
func TestRefusalAheadIsHeard(t *testing.T) {
	p := at[object](t, load(t).Resources, "PreflightFunction", "Properties")
	if got := text(at[any](t, p, "EventInvokeConfig", "DestinationConfig", "OnFailure", "Destination")); got != "${Topic}" {
		t.Errorf("it goes to %s", got)
	}
}

func TestOutputs(t *testing.T) {
	tpl := load(t)
	want := []string{
		"AnchorKeyArn", "ApproverPolicyArn", "AuditBucketName", "AuditorPolicyArn", "BreakGlassPolicyArn", "ControlTableName", "CorpusReadPolicyArn", "DataPlanePolicyArn", "EmergencyFormName", "EmergencyStateMachineArn", "KeyTableName",
		"OperatorPolicyArn", "RestoreRowsPolicyArn", "SourceReadPolicyArn",
		"SeedCorpus", "SeedSources", "StartEmergencyPolicyArn", "StartRotationPolicyArn", "StateMachineArn", "Told", "TopicArn",
	}
	for _, id := range tpl.ofType("AWS::Serverless::Function") {
		want = append(want, id+"Name")
	}
	slices.Sort(want)
	if d := cmp.Diff(want, slices.Sorted(maps.Keys(tpl.Outputs))); d != "" {
		t.Errorf("outputs (-want +got):\n%s", d)
	}
}
