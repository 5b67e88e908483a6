package templatetest

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// may lists the roles, without the suffix Role, that any statement lets do it. "" is
// the policy that applications attach.
func may(all map[string][]statement, can func(statement) bool) []string {
	out := []string{}
	for _, role := range slices.Sorted(maps.Keys(all)) {
		if slices.ContainsFunc(all[role], can) {
			out = append(out, strings.TrimSuffix(role, "Role"))
		}
	}
	return out
}

// TestWhoMay is the one table of who may do what; package rotation says why.
func TestWhoMay(t *testing.T) {
	all := policies(t, load(t))
	steps := []string{"Anchor", "Approve", "Drain", "DualUnwrap", "Mint", "Preflight", "Retire", "Rewrap", "Switch", "Verify"}
	for action, want := range map[string][]string{
		"kms:CreateKey":                 {"Mint"},
		"kms:TagResource":               {"Mint"},
		"kms:CreateAlias":               {"Mint"},
		"kms:DisableKey":                {"Mint", "Retire", "Verify"},
		"kms:DescribeKey":               {"DualUnwrap", "Mint", "Preflight", "Retire", "Switch", "Verify"},
		"kms:ReEncryptFrom":             {"DualUnwrap", "Retire", "Rewrap", "Verify"},
		"kms:ReEncryptTo":               {"DualUnwrap", "Retire", "Rewrap", "Verify"},
		"kms:GenerateDataKey":           {"", "DualUnwrap", "Health", "Retire", "Rewrap"},
		"kms:Decrypt":                   {"", "DualUnwrap", "Health", "Retire", "Rewrap", "Verify"},
		"kms:Sign":                      {"Anchor", "Preflight"}, // the head of the audit chain
		"kms:GetPublicKey":              {"Anchor", "Preflight", "Verify"},
		"kms:ListGrants":                {"Preflight", "Retire"},
		"kms:GetKeyPolicy":              {"DualUnwrap", "Preflight", "Retire"},
		"kms:GetKeyLastUsage":           {"Preflight", "Retire"},
		"kms:ListAliases":               {"Preflight", "Retire"},
		"iam:CreateServiceLinkedRole":   {"Mint"},
		"tag:GetResources":              {"Mint", "Retire", "Verify"},
		"dynamodb:DescribeTable":        {"Preflight", "Retire", "Rewrap", "Verify"},
		"dynamodb:Scan":                 {"Preflight", "Retire", "Rewrap", "Verify"},
		"dynamodb:BatchGetItem":         {},
		"cloudwatch:GetMetricData":      {"Retire", "Rewrap", "Verify"}, // what is free of the capacities that live traffic shares
		"s3:PutObject":                  append([]string{""}, steps...), // "": the copies of data keys
		"s3:PutObjectRetention":         steps,
		"s3:GetObject":                  {"DualUnwrap", "Preflight", "Retire", "Rewrap", "Verify"}, // of the corpus
		"s3:GetObjectVersion":           steps,
		"s3:GetObjectRetention":         steps,
		"s3:ListBucketVersions":         steps,
		"s3:GetBucketVersioning":        {"Preflight"},
		"sns:Publish":                   {"Approve", "Health", "Notify", "Preflight"},
		"events:PutEvents":              {"Approve", "Health", "Notify", "Preflight"}, // each its own detail-types, see TestEventPermissions
		"secretsmanager:GetSecretValue": {"Notify", "Preflight"},                      // of the announcers
		"states:SendTaskSuccess":        {},                                           // a person answers
		"lambda:InvokeFunction":         {"AnchorSchedule", "HealthSchedule", "Schedule", "StateMachine", "TickSchedule"},
		"states:StartExecution":         {"", "EmergencyForm", "Schedule", "StateMachine"}, // "": the policies for people, see TestEntrances; StateMachine: child executions
		"sqs:SendMessage":               {"AnchorSchedule", "HealthSchedule", "TickSchedule"},
		"xray:PutTraceSegments":         append(slices.Clone(steps[:4]), "Health", "Mint", "Notify", "Preflight", "Retire", "Rewrap", "Schedule", "StateMachine", "Switch", "Verify"),
	} {
		got := may(all, func(s statement) bool { return s.allows(action) })
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("who may %s (-want +got):\n%s", action, d)
		}
	}
}

// TestEventPermissions: each function publishes the events that it sends, under our source, on
// the one bus.
func TestEventPermissions(t *testing.T) {
	bus := "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:event-bus/${EventBusName}"
	for role, events := range map[string][]string{
		"ApproveRole": {journal.NotifyApproval}, "HealthRole": {journal.NotifyHealthRed}, "PreflightRole": {journal.NotifyAnnounced},
		"NotifyRole": {journal.NotifyStarted, journal.NotifyCompleted, journal.NotifyRolledBack, journal.NotifyRefused, journal.NotifyHalted, journal.NotifyDrilled},
	} {
		var types []string
		for _, e := range events {
			types = append(types, detailType(t, e))
		}
		all := policies(t, load(t))[role]
		i := slices.IndexFunc(all, func(s statement) bool { return s.allows("events:PutEvents") })
		want := statement{Sid: "PublishEvents", Effect: "Allow", Actions: []string{"events:PutEvents"}, Resources: []string{bus}, Conditions: map[string][]string{
			"StringEquals events:source": {notify.EventSource}, "StringEquals events:detail-type": types,
		}}
		if i < 0 {
			t.Errorf("%s may not publish", role)
		} else if d := cmp.Diff(want, all[i]); d != "" {
			t.Errorf("%s (-want +got):\n%s", role, d)
		}
	}
}

// detailType is the detail-type that the notifier sends of an event.
func detailType(t *testing.T, event string) (sent string) {
	t.Helper()
	bus := notify.NewEventBus(putEvents(func(in *eventbridge.PutEventsInput) { sent = *in.Entries[0].DetailType }), "default", "matter", time.Now)
	if err := bus.TellPeople(t.Context(), journal.Notice{Event: event}); err != nil {
		t.Fatal(err)
	}
	return sent
}

// putEvents is an event bus.
type putEvents func(*eventbridge.PutEventsInput)

// PutEvents implements [notify.EventBridge].
func (p putEvents) PutEvents(_ context.Context, in *eventbridge.PutEventsInput, _ ...func(*eventbridge.Options)) (*eventbridge.PutEventsOutput, error) {
	p(in)
	return &eventbridge.PutEventsOutput{}, nil
}

// TestWhoMayWriteState: of the control table each step writes its own items alone.
func TestWhoMayWriteState(t *testing.T) {
	all := policies(t, load(t))
	steps := []string{"Anchor", "Approve", "Drain", "DualUnwrap", "Mint", "Preflight", "Retire", "Rewrap", "Switch", "Verify"}
	registry := []string{"Preflight", "Retire", "Verify"} // start, retirement and census decide by all of it
	type access struct{ action, pk string }
	for a, want := range map[access][]string{
		{"PutItem", "POINTER"}:                  {"Switch"},
		{"PutItem", "LOCK"}:                     {"Preflight"},
		{"DeleteItem", "LOCK"}:                  {"Retire", "Verify"},
		{"PutItem", "KEK#1"}:                    {"Drain", "Mint", "Preflight", "Retire", "Switch"}, // preflight: of the rotation that an emergency ends
		{"PutItem", "FENCE#1"}:                  {"Drain", "Switch"},
		{"ConditionCheckItem", "FENCE#1"}:       {"", "Drain"},
		{"PutItem", "DEKFENCE#1"}:               {"Drain", "Switch"},
		{"ConditionCheckItem", "DEKFENCE#1"}:    {"", "Drain", "Retire", "Rewrap"},
		{"DeleteItem", "DEKFENCE#1"}:            {"Verify"},
		{"ConditionCheckItem", "POINTER"}:       {"Preflight", "Retire"},
		{"ConditionCheckItem", "LOCK"}:          {"Drain", "DualUnwrap", "Mint", "Preflight", "Retire", "Rewrap", "Switch", "Verify"},
		{"GetItem", "REGISTRY"}:                 registry,
		{"ConditionCheckItem", "REGISTRY"}:      {"Preflight"},
		{"PutItem", "REGISTRY"}:                 {}, // a person changes it
		{"Query", "SOURCE"}:                     registry,
		{"PutItem", "SOURCE"}:                   {},
		{"DeleteItem", "SOURCE"}:                {},
		{"Query", "MARK"}:                       registry,
		{"PutItem", "MARK"}:                     {""},
		{"UpdateItem", "MARK"}:                  {},
		{"DeleteItem", "MARK"}:                  {},
		{"PutItem", "LEASE#1"}:                  {""},
		{"UpdateItem", "LEASE#1"}:               {""},
		{"DeleteItem", "LEASE#1"}:               {"", "Drain"},
		{"Query", "LEASE#1"}:                    {"Drain"},
		{"PutItem", "CHECKPOINT#1#s#census"}:    {"Preflight", "Verify"}, // preflight resets those of a rotation that is resumed
		{"PutItem", "CHECKPOINT#1#s#rewrap"}:    {"Rewrap"},
		{"PutItem", "CHECKPOINT#1#s#confirm"}:   {"Preflight", "Retire"},
		{"PutItem", "CHECKPOINT#1#s#verify"}:    {"Preflight", "Verify"},
		{"GetItem", "CHECKPOINT#1#s#rewrap"}:    {"Rewrap"},
		{"GetItem", "CHECKPOINT#1#s#confirm"}:   {"Retire"},
		{"GetItem", "CHECKPOINT#1#s#verify"}:    {"Verify"},
		{"Query", "CHECKPOINT#1#s#census"}:      {"Preflight", "Retire", "Verify"},
		{"Query", "CHECKPOINT#1#s#rewrap"}:      {"Retire", "Rewrap", "Verify"},
		{"PutItem", "ROTATION#1"}:               slices.DeleteFunc(slices.Clone(steps), func(s string) bool { return s == "Anchor" || s == "Approve" }),
		{"PutItem", "AUDIT"}:                    steps,
		{"PutItem", "ANCHOR"}:                   {"Anchor", "Preflight"},
		{"GetItem", "ANCHOR"}:                   {"Anchor", "Preflight", "Verify"},
		{"Query", "AUDIT"}:                      steps,
		{"UpdateItem", "AUDIT_HEAD"}:            steps,
		{"PutItem", "AUDIT_HEAD"}:               {},
		{"UpdateItem", "AUDIT"}:                 {},
		{"DeleteItem", "AUDIT"}:                 {},
		{"DeleteItem", "KEK#1"}:                 {},
		{"DeleteItem", "FENCE#1"}:               {"Verify"}, // archives what earlier rotations have left
		{"DeleteItem", "CHECKPOINT#1#s#rewrap"}: {"Verify"},
		{"ConditionCheckItem", "KEK#1"}:         {"Verify"}, // that a KEK is retired
		{"UpdateItem", "POINTER"}:               {},
		{"GetItem", "POINTER"}:                  slices.Sorted(slices.Values(append([]string{"", "Health", "Schedule"}, steps...))),
		{"GetItem", "ROTATION#1"}:               slices.Sorted(slices.Values(append([]string{"", "Schedule"}, steps...))),
		{"GetItem", "LEASE#1"}:                  {},
		{"Scan", "KEK#1"}:                       registry,
		{"PutItem", "ANNOUNCEMENT#1"}:           {"Preflight"},
		{"GetItem", "ANNOUNCEMENT#1"}:           {"Notify", "Preflight", "Schedule"},
		{"PutItem", "DRILL#1"}:                  {"Retire"},
		{"GetItem", "PAUSE#1"}:                  {"Retire", "Rewrap", "Verify"},
		{"PutItem", "PAUSE#1"}:                  {}, // a person pauses
		{"GetItem", "DRILL#1"}:                  {"Preflight", "Retire", "Schedule"},
		{"PutItem", "APPROVAL#1"}:               {"Approve"},
		{"GetItem", "APPROVAL#1"}:               {"Approve", "Switch"},
		{"UpdateItem", "HEALTH#1"}:              {"Health"},
		{"PutItem", "HEALTH#1"}:                 {},
		{"GetItem", "HEALTH#1"}:                 {"Preflight"},
	} {
		got := may(all, func(s statement) bool {
			return s.allows("dynamodb:"+a.action) && slices.Contains(s.Resources, "${ControlTable.Arn}") && s.onKey(a.pk)
		})
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("who may %s %s (-want +got):\n%s", a.action, a.pk, d)
		}
	}
}

// TestWhoMayTouchDataKeys: records of the key table are created by writers and, for the rows of
// an emergency, by rewrap and retire, which also puts lost ones back; they are rewrapped in three attributes, and deleted by nobody; copies are written by those who
// write records.
func TestWhoMayTouchDataKeys(t *testing.T) {
	all := policies(t, load(t))
	const table, copies = "${KeyTable.Arn}", "${AuditBucket.Arn}/deks/*"
	for what, want := range map[[2]string][]string{
		{"dynamodb:GetItem", table}:          {"", "Retire", "Rewrap", "Verify"},
		{"dynamodb:PutItem", table}:          {"", "Retire", "Rewrap"},
		{"dynamodb:UpdateItem", table}:       {"Retire", "Rewrap"},
		{"dynamodb:DeleteItem", table}:       {},
		{"dynamodb:BatchWriteItem", table}:   {},
		{"dynamodb:PartiQLDelete", table}:    {},
		{"dynamodb:Scan", table}:             {"Preflight", "Retire", "Rewrap", "Verify"},
		{"dynamodb:DescribeTable", table}:    {"Preflight", "Retire", "Rewrap", "Verify"},
		{"s3:PutObject", copies}:             {"", "Retire", "Rewrap"},
		{"s3:GetObject", copies}:             {"Retire"},
		{"s3:PutObjectRetention", copies}:    {},
		{"s3:DeleteObject", copies}:          {},
		{"s3:GetObjectVersion", copies}:      {},
		{"s3:PutLifecycleConfiguration", ""}: {},
	} {
		got := may(all, func(s statement) bool {
			return s.Effect == "Allow" && s.allows(what[0]) && (what[1] == "" || slices.Contains(s.Resources, what[1]))
		})
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("who may %s %s (-want +got):\n%s", what[0], what[1], d)
		}
	}
	for _, role := range []string{"RetireRole", "RewrapRole"} {
		i := slices.IndexFunc(all[role], func(s statement) bool { return s.Sid == "RewrapDataKeys" })
		want := map[string][]string{"ForAllValues:StringEquals dynamodb:Attributes": {"pk", "wrapped_dek", "kek_id", "kek_epoch"}}
		if d := cmp.Diff(want, all[role][i].Conditions); d != "" {
			t.Errorf("%s (-want +got):\n%s", role, d)
		}
	}
}

// TestControlTableIsNarrowed: nobody may touch the control table without naming
// which items, but to find the KEKs.
func TestControlTableIsNarrowed(t *testing.T) {
	for role, ss := range policies(t, load(t)) {
		for _, s := range ss {
			if s.Sid == "FindKEKs" && slices.Equal(s.Actions, []string{"dynamodb:Scan"}) {
				continue
			}
			if s.Effect == "Allow" && slices.Contains(s.Resources, "${ControlTable.Arn}") && s.onKey("anything else") {
				t.Errorf("%s: statement %s is not narrowed by dynamodb:LeadingKeys", role, s.Sid)
			}
		}
	}
}

// TestOneStatementPerTransactionalAction: whether dynamodb:LeadingKeys is asked item by
// item of a transaction or of all items of an action together, AWS documents nowhere.
// Rights that stand in one statement hold either way; split over two they hold one way.
func TestOneStatementPerTransactionalAction(t *testing.T) {
	seen := 0
	for role, ss := range policies(t, load(t)) {
		for _, action := range []string{"GetItem", "PutItem", "UpdateItem", "DeleteItem", "ConditionCheckItem"} {
			var sids []string
			for _, s := range ss {
				if s.allows("dynamodb:"+action) && slices.Contains(s.Resources, "${ControlTable.Arn}") {
					sids = append(sids, s.Sid)
				}
			}
			if seen += len(sids); len(sids) > 1 {
				t.Errorf("%s: dynamodb:%s on the control table is split over %v", role, action, sids)
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d statements were found: the walk is broken", seen)
	}
}

// TestPeople: an auditor reads and changes nothing, and reads no row and opens none. An approver
// may besides write an answer and its record, and wake the execution that waits for it.
func TestPeople(t *testing.T) {
	tpl := load(t)
	of := func(id string) []statement {
		return statements(t, at[object](t, tpl.Resources, id, "Properties", "PolicyDocument"))
	}
	reads := regexp.MustCompile(`^[a-z0-9]+:(Get|List|Describe|Query$|Scan$)`)
	for _, s := range of("AuditorPolicy") {
		for _, a := range s.Actions {
			if !reads.MatchString(a) {
				t.Errorf("an auditor may %s", a)
			}
		}
		for _, r := range s.Resources {
			if strings.Contains(r, "${AWS::StackName}-*") { // a stack's name may begin with another's
				t.Errorf("an auditor sees into other stacks: %s", r)
			}
			if strings.Contains(r, ":dynamodb:") || r == "*" || strings.HasPrefix(r, "${Audit") && !slices.Contains([]string{"${AuditBucket.Arn}", "${AuditBucket.Arn}/v1/${AWS::StackName}/*"}, r) {
				t.Errorf("an auditor reads %s", r)
			}
		}
		if s.allows("kms:DescribeKey") && !slices.Equal(s.Conditions["StringEquals aws:ResourceTag/matter:stack"], []string{"${AWS::StackName}"}) {
			t.Errorf("an auditor looks at keys of others: %v", s.Conditions)
		}
	}
	// The schedule is in a group of the stack's own, which its ARN names (Scheduler's API reference,
	// GetSchedule; operate.FindNextSchedule asks for it there).
	schedule := "arn:${AWS::Partition}:scheduler:${AWS::Region}:${AWS::AccountId}:schedule/${AWS::StackName}/${AWS::StackName}-tick"
	if !slices.ContainsFunc(of("AuditorPolicy"), func(s statement) bool {
		return s.allows("scheduler:GetSchedule") && slices.Equal(s.Resources, []string{schedule})
	}) {
		t.Errorf("an auditor may not read %s", schedule)
	}
	got := map[string][]string{}
	for _, s := range of("ApproverPolicy") {
		for _, a := range s.Actions {
			got[a] = slices.Concat(s.Resources, s.Conditions["ForAllValues:StringLike dynamodb:LeadingKeys"], s.Conditions["ForAllValues:StringEquals dynamodb:LeadingKeys"],
				s.Conditions["NumericGreaterThanEquals s3:object-lock-remaining-retention-days"])
		}
	}
	records := "${AuditBucket.Arn}/v1/${AWS::StackName}/records/*"
	want := map[string][]string{
		"dynamodb:PutItem": {"${ControlTable.Arn}", "APPROVAL#*", "AUDIT"}, "dynamodb:UpdateItem": {"${ControlTable.Arn}", "AUDIT_HEAD"},
		"s3:PutObject": {records}, "s3:PutObjectRetention": {records, "${RetentionDays}"},
		"states:SendTaskSuccess": {"*"}, "states:SendTaskFailure": {"*"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("approver (-want +got):\n%s", d)
	}
}

// TestKEKsByTag: a key that does not carry the stack's tag is out of reach, but for
// making a KEK, naming it and asking what it is and how it is named.
func TestKEKsByTag(t *testing.T) {
	untagged := map[string]bool{
		"Mint MintKEK": true, "Mint TagNewKEK": true, "Mint ClaimAlias": true, "Mint AskArbiter": true, "Retire AskArbiter": true,
		"Preflight ListAliases": true, "Retire ListAliases": true,
	}
	for role, ss := range policies(t, load(t)) {
		for _, s := range ss {
			if s.Effect != "Allow" || !strings.HasPrefix(s.Actions[0], "kms:") {
				continue
			}
			if slices.Equal(s.Resources, []string{"${AnchorKey.Arn}"}) || slices.Equal(s.Resources, []string{"${CheckpointKey.Arn}"}) {
				continue // no KEK
			}
			name := strings.TrimSuffix(role, "Role") + " " + s.Sid
			byTag := slices.Equal(s.Conditions["StringEquals aws:ResourceTag/matter:stack"], []string{"${AWS::StackName}"})
			if byTag == untagged[name] {
				t.Errorf("statement %s: conditioned on the tag matter:stack is %v", name, byTag)
			}
			delete(untagged, name)
		}
	}
	for name := range untagged {
		t.Errorf("there is no statement %s", name)
	}
}

// TestMint: what mint makes is a symmetric KEK of this stack, and of roles the one by
// which KMS synchronises multi-Region keys.
func TestMint(t *testing.T) {
	for _, s := range policies(t, load(t))["MintRole"] {
		switch {
		case s.allows("kms:CreateKey"):
			want := map[string][]string{
				"StringEquals aws:RequestTag/matter:stack": {"${AWS::StackName}"},
				"StringEquals kms:KeySpec":                 {"SYMMETRIC_DEFAULT"}, "StringEquals kms:KeyUsage": {"ENCRYPT_DECRYPT"},
			}
			if d := cmp.Diff(want, s.Conditions); d != "" {
				t.Errorf("CreateKey (-want +got):\n%s", d)
			}
		case s.allows("iam:CreateServiceLinkedRole"):
			const service = "mrk.kms.amazonaws.com"
			role := "arn:${AWS::Partition}:iam::${AWS::AccountId}:role/aws-service-role/" + service + "/AWSServiceRoleForKeyManagementServiceMultiRegionKeys"
			conditions := map[string][]string{"StringEquals iam:AWSServiceName": {service}}
			if d := cmp.Diff([]any{[]string{role}, conditions}, []any{s.Resources, s.Conditions}); d != "" {
				t.Errorf("CreateServiceLinkedRole (-want +got):\n%s", d)
			}
		case s.allows("kms:CreateAlias"):
			arn := "arn:${AWS::Partition}:kms:${AWS::Region}:${AWS::AccountId}:"
			if d := cmp.Diff([]string{arn + "alias/matter/kek/${AWS::StackName}/*", arn + "key/*"}, s.Resources); d != "" {
				t.Errorf("CreateAlias (-want +got):\n%s", d)
			}
		}
	}
}

// TestEntrances: who may start the one kind of rotation may do nothing with the other's
// state machine. What stands behind the form may start an emergency and no more.
func TestEntrances(t *testing.T) {
	tpl := load(t)
	of := func(id string) []statement {
		return statements(t, at[object](t, tpl.Resources, id, "Properties", "PolicyDocument"))
	}
	all := policies(t, tpl)
	for who, tc := range map[string]struct {
		statements    []statement
		machine, name string
	}{
		"StartRotationPolicy":  {of("StartRotationPolicy"), "${StateMachine}", "rotation"},
		"StartEmergencyPolicy": {of("StartEmergencyPolicy"), "${EmergencyStateMachine}", "emergency"},
		"EmergencyFormRole":    {all["EmergencyFormRole"], "${EmergencyStateMachine}", ""},
	} {
		starts := false
		for _, s := range tc.statements {
			if s.Effect == "Deny" || slices.Equal(s.Resources, []string{"${ScheduleFailures.Arn}"}) {
				continue
			}
			const states = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:"
			executions := tc.name != "" && (slices.Equal(s.Resources, []string{states + "execution:${AWS::StackName}-" + tc.name + ":*"}) ||
				slices.Equal(s.Resources, []string{states + "execution:${AWS::StackName}-" + tc.name + "/*", states + "mapRun:${AWS::StackName}-" + tc.name + "/*"}))
			if !executions && !slices.Equal(s.Resources, []string{tc.machine}) {
				t.Errorf("%s may %v on %v", who, s.Actions, s.Resources)
			}
			for _, a := range s.Actions {
				if !strings.HasPrefix(a, "states:") || tc.name == "" && a != "states:StartExecution" {
					t.Errorf("%s may %s", who, a)
				}
			}
			starts = starts || s.allows("states:StartExecution")
		}
		if !starts {
			t.Errorf("%s may not start it", who)
		}
	}
}

// TestEmergencyForm: what the form sends is an emergency that preflight takes, with
// any reason that it lets through.
func TestEmergencyForm(t *testing.T) {
	content := at[object](t, load(t).Resources, "EmergencyForm", "Properties", "Content")
	if got := text(at[any](t, at[[]any](t, content, "mainSteps")[0], "inputs", "stateMachineArn")); got != "${EmergencyStateMachine}" {
		t.Errorf("the form starts %s", got)
	}
	allowed := regexp.MustCompile(at[string](t, content, "parameters", "Reason", "allowedPattern"))
	step := at[object](t, at[[]any](t, content, "mainSteps")[0], "inputs")
	for reason, ok := range map[string]bool{
		"the key was seen in a log":     true,
		"Schlüssel im Log; siehe #4711": true,
		"short":                         false,
		`x","mode":"normal","label":"y`: false,
		`a reason with a \ backslash`:   false,
		"a reason {{ Confirm }} in it":  false,
		"two lines\nof a reason":        false,
	} {
		if allowed.MatchString(reason) != ok {
			t.Errorf("%q is allowed: %t", reason, !ok)
		}
		if !ok {
			continue
		}
		fill := strings.NewReplacer("{{ Reason }}", reason, "{{ automation:EXECUTION_ID }}", "0b5ea7e2-9a6f-4b6e-a2a6-0c7f9a3a6f11")
		in, err := lambdastep.DecodePayload[rotation.ExecutionInput]([]byte(fill.Replace(at[string](t, step, "input"))))
		if err != nil || in.Mode != "emergency" || in.Reason != reason || in.RequestedBy == "" {
			t.Errorf("%+v, %v", in, err)
		}
		if err := kek.CheckRotationID(fill.Replace(at[string](t, step, "name"))); err != nil {
			t.Error(err)
		}
	}
	if at[string](t, content, "parameters", "Confirm", "allowedPattern") != "^ROTATE NOW$" {
		t.Error("it starts without a confirmation")
	}
}

// TestStateMachineInvokesTheStepsAlone: exactly the functions of the template that are
// steps.
func TestStateMachineInvokesTheStepsAlone(t *testing.T) {
	tpl := load(t)
	var want []string
	for _, id := range tpl.ofType("AWS::Serverless::Function") {
		if id != "HealthFunction" && id != "ScheduleFunction" {
			want = append(want, "${"+id+".Arn}")
		}
	}
	for _, s := range policies(t, tpl)["StateMachineRole"] {
		if s.allows("lambda:InvokeFunction") {
			if d := cmp.Diff(want, slices.Sorted(slices.Values(s.Resources))); d != "" {
				t.Errorf("the state machine invokes (-want +got):\n%s", d)
			}
		}
	}
}
