package templatetest

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/localaws/iam"
)

var update = flag.Bool("update", false, "write the table of docs/threat-model.md")

const (
	arnOf   = "arn:aws:%s:eu-central-1:123456789012:%s"
	control = "arn:aws:dynamodb:eu-central-1:123456789012:table/ControlTable"
	orders  = "arn:aws:dynamodb:eu-central-1:123456789012:table/orders"
	records = "arn:aws:s3:::AuditBucket/v1/matter/records/000000000999.json"
)

// given are the parameters with which every permission of the template is there.
var given = map[string]string{
	"SourceTableArns": orders, "CorpusBucket": "corpus", "CorpusPrefix": "known/",
	"AnnounceTopicArn":  fmt.Sprintf(arnOf, "sns", "customers"),
	"AnnounceSecretArn": fmt.Sprintf(arnOf, "secretsmanager", "secret:announcers"),
}

// physical are the resources that policies name, as CloudFormation would name them.
func (tpl *template) physical(t *testing.T, name string) string {
	t.Helper()
	id, attribute, _ := strings.Cut(name, ".")
	if p, ok := tpl.Parameters[id].(object); ok {
		if v, ok := given[id]; ok {
			return v
		}
		return fmt.Sprint(p["Default"])
	}
	switch name {
	case "AWS::StackName":
		return "matter"
	case "AWS::Partition":
		return "aws"
	case "AWS::Region":
		return "eu-central-1"
	case "AWS::AccountId":
		return "123456789012"
	}
	kind := at[string](t, tpl.Resources, id, "Type")
	switch {
	case kind == "AWS::S3::Bucket" && attribute == "Arn":
		return "arn:aws:s3:::" + id
	case kind == "AWS::DynamoDB::Table" && attribute == "Arn":
		return fmt.Sprintf(arnOf, "dynamodb", "table/"+id)
	case kind == "AWS::KMS::Key" && attribute == "Arn":
		return fmt.Sprintf(arnOf, "kms", "key/"+id)
	case kind == "AWS::SNS::Topic":
		return fmt.Sprintf(arnOf, "sns", id)
	case kind == "AWS::Serverless::StateMachine":
		return fmt.Sprintf(arnOf, "states", "stateMachine:"+id)
	case kind == "AWS::Serverless::Function" && attribute == "Arn":
		return fmt.Sprintf(arnOf, "lambda", "function:"+id)
	case attribute == "Arn":
		return "arn:aws:" + strings.ToLower(id) + ":::" + id
	}
	return id
}

// concrete is a value of a policy as CloudFormation makes it.
func (tpl *template) concrete(t *testing.T, v any) any {
	t.Helper()
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = tpl.concrete(t, e)
		}
		return out
	case object:
		if len(v) == 1 && (v["Ref"] != nil || v["Fn::GetAtt"] != nil || v["Fn::Sub"] != nil) {
			return reference.ReplaceAllStringFunc(text(v), func(m string) string { return tpl.physical(t, m[2:len(m)-1]) })
		}
		out := object{}
		for k, e := range v {
			out[k] = tpl.concrete(t, e)
		}
		return out
	}
	return v
}

func (tpl *template) parse(t *testing.T, name string, document any) iam.Policy {
	t.Helper()
	b, err := json.Marshal(tpl.concrete(t, document))
	if err != nil {
		t.Fatal(err)
	}
	p, err := iam.Parse(name, b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// application is the column of an application that has the policy that applications attach.
const application = "application"

// principals returns the functions' policies by function, and the application's.
func (tpl *template) principals(t *testing.T) map[string][]iam.Policy {
	t.Helper()
	managed := map[string]iam.Policy{}
	byRole := map[string][]iam.Policy{}
	for _, id := range tpl.ofType("AWS::IAM::ManagedPolicy") {
		p := at[object](t, tpl.Resources, id, "Properties")
		managed[id] = tpl.parse(t, id, p["PolicyDocument"])
		for _, ref := range list(p["Roles"]) {
			role := at[string](t, ref, "Ref")
			byRole[role] = append(byRole[role], managed[id])
		}
	}
	out := map[string][]iam.Policy{application: {managed["DataPlanePolicy"]}}
	for _, id := range tpl.ofType("AWS::Serverless::Function") {
		name := strings.TrimSuffix(id, "Function")
		role := at[object](t, tpl.Resources, name+"Role", "Properties")
		all := byRole[name+"Role"]
		for _, ref := range list(role["ManagedPolicyArns"]) {
			all = append(all, managed[at[string](t, ref, "Ref")])
		}
		for _, inline := range list(role["Policies"]) {
			all = append(all, tpl.parse(t, id, at[object](t, inline)["PolicyDocument"]))
		}
		out[strings.ToLower(name)] = all
	}
	return out
}

// access is one action on one resource; context has pairs of condition key and value.
func access(action, resource string, context ...string) iam.Access {
	a := iam.Access{Action: action, Resource: resource, Context: map[string][]string{
		"aws:securetransport": {"true"}, "aws:principalaccount": {"123456789012"},
	}}
	for i := 0; i < len(context); i += 2 {
		k := strings.ToLower(context[i])
		a.Context[k] = append(a.Context[k], context[i+1])
	}
	return a
}

// The keys that attempts are made on, with what conditions see of them.
var (
	kekInUse     = []string{"live", "aws:ResourceTag/matter:stack", "matter", "kms:ResourceAliases", "alias/matter/kek/matter/Q1-2026-rotation/1"}
	loser        = []string{"loser", "aws:ResourceTag/matter:stack", "matter"}
	otherStacks  = []string{"other", "aws:ResourceTag/matter:stack", "other", "kms:ResourceAliases", "alias/matter/kek/other/Q1-2026-rotation/1"}
	foreign      = []string{"foreign", "kms:ResourceAliases", "alias/billing"}
	foreignPlain = []string{"unnamed"}
	anchorKey    = []string{"AnchorKey"}
	macKey       = []string{"CheckpointKey"}
)

var (
	rowContext    = []string{"kms:EncryptionContext:table", "orders", "kms:EncryptionContextKeys", "table"}
	canaryContext = []string{"kms:EncryptionContext:matter:purpose", "canary", "kms:EncryptionContextKeys", "matter:purpose"}
	ourTag        = []string{"aws:RequestTag/matter:stack", "matter", "aws:TagKeys", "matter:stack"}
	otherTag      = []string{"aws:RequestTag/matter:stack", "other", "aws:TagKeys", "matter:stack"}
)

func onKey(action string, key []string, context ...string) iam.Access {
	return access("kms:"+action, fmt.Sprintf(arnOf, "kms", "key/"+key[0]), append(slices.Clone(key[1:]), context...)...)
}

func onItem(action, pk string) iam.Access {
	return access("dynamodb:"+action, control, "dynamodb:LeadingKeys", pk)
}

// put is a PutObject into the audit bucket, with its lock.
func put(object string, context ...string) []iam.Access {
	return []iam.Access{access("s3:PutObject", object, context...), access("s3:PutObjectRetention", object, context...)}
}

// publish is a PutEvents of an event of this project on the default bus.
func publish(detailType string) iam.Access {
	return access("events:PutEvents", fmt.Sprintf(arnOf, "events", "event-bus/default"), "events:source", notify.EventSource, "events:detail-type", detailType)
}

func locked(more ...string) []string {
	return append([]string{"s3:object-lock-mode", "COMPLIANCE", "s3:object-lock-remaining-retention-days", "366"}, more...)
}

// onKeys is an access to a record of the key table.
func onKeys(action string, context ...string) iam.Access {
	return access("dynamodb:"+action, "arn:aws:dynamodb:eu-central-1:123456789012:table/KeyTable", append(context, "dynamodb:LeadingKeys", "DEK#x")...)
}

const copyOfDEK = "arn:aws:s3:::AuditBucket/deks/x/000000000001-k-0.json"

// attempt is one thing that a compromised function might try.
type attempt struct {
	what  string
	takes []iam.Access // all of them
	why   string       // what is accepted, and why; "" if nobody may ever do it
}

// attempts are in the order of the table. One without a reason is allowed to nobody.
var attempts = []attempt{
	{
		"unwrap a row's data key",
		[]iam.Access{onKey("Decrypt", kekInUse, rowContext...)},
		"rewrap and retire: an emergency encrypts payloads again, and IAM cannot tell an emergency. dualunwrap: the known ciphers have the application's contexts; it reads no table",
	},
	{
		"read a source's rows in clear",
		[]iam.Access{onKey("Decrypt", kekInUse, rowContext...), access("dynamodb:Scan", orders)},
		"as above: a function that re-encrypts every payload reads every payload",
	},
	{"read the rows of a source, encrypted", []iam.Access{access("dynamodb:Scan", orders)}, "preflight checks a sample of the definitions, the others scan"},
	{
		"make a data key for a row",
		[]iam.Access{onKey("GenerateDataKey", kekInUse, rowContext...)},
		"of an emergency's fresh data keys, and of the application's",
	},
	{"encrypt under a KEK", []iam.Access{onKey("Encrypt", kekInUse, rowContext...)}, ""},
	{
		"rewrap a row's data key under a KEK of this stack",
		[]iam.Access{onKey("ReEncryptFrom", kekInUse, rowContext...), onKey("ReEncryptTo", kekInUse, rowContext...)},
		"it is what a rotation does; verify proves by it that a row is under its KEK, and decrypts nothing",
	},
	{
		"turn a row's data key into a canary's, which more roles may unwrap",
		[]iam.Access{onKey("ReEncryptFrom", kekInUse, rowContext...), onKey("ReEncryptTo", kekInUse, canaryContext...)},
		"",
	},
	{"rewrap a row's data key under a foreign key", []iam.Access{onKey("ReEncryptFrom", kekInUse, rowContext...), onKey("ReEncryptTo", foreign, rowContext...)}, ""},
	{"unwrap under a KEK of another stack", []iam.Access{onKey("Decrypt", otherStacks, rowContext...)}, ""},
	{"unwrap under a foreign key", []iam.Access{onKey("Decrypt", foreign, rowContext...)}, ""},
	{
		"disable a KEK in use",
		[]iam.Access{onKey("DisableKey", kekInUse)},
		"retire disables the old KEKs, and a key does not say that it is old. Undone by aws kms enable-key; kms-status and the hourly canary show it",
	},
	{"disable a key that lost its mint's race", []iam.Access{onKey("DisableKey", loser)}, "nothing is under it"},
	{"enable a retired KEK", []iam.Access{onKey("EnableKey", kekInUse)}, ""},
	{"schedule the deletion of a KEK", []iam.Access{onKey("ScheduleKeyDeletion", kekInUse)}, ""},
	{"grant a KEK to somebody", []iam.Access{onKey("CreateGrant", kekInUse)}, ""},
	{"change a KEK's policy", []iam.Access{onKey("PutKeyPolicy", kekInUse)}, ""},
	{"take the tags off a KEK", []iam.Access{onKey("UntagResource", kekInUse)}, ""},
	{"move an alias to another key", []iam.Access{access("kms:UpdateAlias", fmt.Sprintf(arnOf, "kms", "alias/matter/kek/matter/x/1")), onKey("UpdateAlias", kekInUse)}, ""},
	{"delete an alias", []iam.Access{access("kms:DeleteAlias", fmt.Sprintf(arnOf, "kms", "alias/matter/kek/matter/x/1")), onKey("DeleteAlias", kekInUse)}, ""},
	{
		"make a KEK, with any key policy",
		[]iam.Access{access("kms:CreateKey", "*", append(slices.Clone(ourTag), "kms:KeySpec", "SYMMETRIC_DEFAULT", "kms:KeyUsage", "ENCRYPT_DECRYPT")...)},
		"it is mint's work, and IAM has no condition on a policy's text: dualunwrap refuses a new KEK with another policy than mint gives",
	},
	{"make a foreign key with an alias a KEK, by its tag", []iam.Access{onKey("TagResource", foreign, ourTag...)}, ""},
	{
		"make a foreign key without an alias a KEK, by its tag",
		[]iam.Access{onKey("TagResource", foreignPlain, ourTag...)},
		"CreateKey with tags takes this permission, and a new key has no alias either. Give every key an alias",
	},
	{"make a KEK of another stack one of this stack", []iam.Access{onKey("TagResource", otherStacks, ourTag...)}, ""},
	{"give a key another stack's tag", []iam.Access{onKey("TagResource", foreignPlain, otherTag...)}, ""},
	{
		"sign a head of the audit chain",
		[]iam.Access{onKey("Sign", anchorKey, "kms:SigningAlgorithm", "ECDSA_SHA_256")},
		"preflight shows that anchoring works by anchoring a canary. A false head contradicts the records in the bucket, which nobody can change",
	},

	{"move the pointer", []iam.Access{onItem("PutItem", "POINTER")}, "it is switch's work"},
	{
		"write a KEK's state",
		[]iam.Access{onItem("PutItem", "KEK#x")},
		"each of them makes one transition; preflight retires the new KEK of a rotation that an emergency ends. IAM cannot tell transitions apart",
	},
	{"open or seal a fence", []iam.Access{onItem("PutItem", "FENCE#x")}, "switch opens the new KEK's, drain seals the old one's"},
	{
		"remove a fence",
		[]iam.Access{onItem("DeleteItem", "FENCE#x")},
		"verify archives those of retired KEKs, and IAM cannot tell them apart. A shard that is not there refuses inserts: they stop, no row is orphaned, and doctor opens it again",
	},
	{
		"remove a checkpoint",
		[]iam.Access{onItem("DeleteItem", "CHECKPOINT#x#orders#rewrap")},
		"verify archives those of rotations that are over; the pass of one that runs begins that segment again",
	},
	{"delete the record of a data key", []iam.Access{onKeys("DeleteItem")}, ""},
	{
		"overwrite the record of a data key",
		[]iam.Access{onKeys("PutItem")},
		"applications create records, rewrap and retire make them for the rows of an emergency, and retire puts back lost ones; IAM cannot demand the condition. Each version stays in the bucket, from which it is put back",
	},
	{
		"rewrap the record of a data key",
		[]iam.Access{onKeys("UpdateItem", "dynamodb:Attributes", "wrapped_dek", "dynamodb:Attributes", "kek_id")},
		"it is their work. The other attributes of a record they cannot change",
	},
	{"change the birth epoch of a data key", []iam.Access{onKeys("UpdateItem", "dynamodb:Attributes", "born_epoch")}, ""},
	{
		"write a copy of a data key",
		[]iam.Access{access("s3:PutObject", copyOfDEK, "s3:if-none-match", "*")},
		"a copy comes before each version of a record. One that is false stays forever and stops nothing: it does not unwrap, and is counted",
	},
	{"write over a copy of a data key", []iam.Access{access("s3:PutObject", copyOfDEK)}, ""},
	{"remove a copy of a data key", []iam.Access{access("s3:DeleteObjectVersion", copyOfDEK)}, ""},
	{"take the lock", []iam.Access{onItem("PutItem", "LOCK")}, "preflight starts rotations"},
	{"free the lock", []iam.Access{onItem("DeleteItem", "LOCK")}, "they end rotations"},
	{
		"end a rotation as an emergency does",
		[]iam.Access{onItem("PutItem", "LOCK"), onItem("PutItem", "ROTATION#x")},
		"preflight starts emergencies; what an emergency leaves behind is safe",
	},
	{
		"claim a census, a rehearsal or a phase that never was",
		[]iam.Access{onItem("PutItem", "ROTATION#x"), onItem("PutItem", "AUDIT"), onItem("UpdateItem", "AUDIT_HEAD")},
		"each step records its own phase in the same item. Retire and verify scan every row again and believe no record",
	},
	{
		"add to the audit chain",
		[]iam.Access{onItem("PutItem", "AUDIT"), onItem("UpdateItem", "AUDIT_HEAD")},
		"each step's effect and its record are one transaction. What is added stays forever, a false record too",
	},
	{"change a record in the outbox", []iam.Access{onItem("UpdateItem", "AUDIT")}, ""},
	{"remove a record from the outbox", []iam.Access{onItem("DeleteItem", "AUDIT")}, ""},
	{"set the head of the chain back, as a whole item", []iam.Access{onItem("PutItem", "AUDIT_HEAD")}, ""},
	{"write the anchor's state", []iam.Access{onItem("PutItem", "ANCHOR")}, "as for the signature"},
	{"approve a plan", []iam.Access{onItem("PutItem", "APPROVAL#x")}, "approve asks in the same item and records it in the chain, so it could forge an answer; the record names a person, who can be asked"},
	{"read the token of the task that waits", []iam.Access{onItem("GetItem", "APPROVAL#x")}, "it wakes the task and answers nothing: switch reads the answer itself"},
	{"pass a drill that never was", []iam.Access{onItem("PutItem", "DRILL#x")}, "retire ends drills"},
	{"claim that customers were told", []iam.Access{onItem("PutItem", "ANNOUNCEMENT#x")}, "preflight announces"},
	{"count green canaries", []iam.Access{onItem("UpdateItem", "HEALTH#x")}, "health counts them"},
	{
		"have the rewrap skip rows, by a checkpoint",
		[]iam.Access{onItem("PutItem", "CHECKPOINT#x#orders#rewrap")},
		"rewrap keeps its own checkpoints; retire's pass has others, and reads every row again",
	},
	{
		"have the second scan skip rows, by a checkpoint",
		[]iam.Access{onItem("PutItem", "CHECKPOINT#x#orders#confirm")},
		"retire keeps its own; preflight resets them when a rotation is resumed. verify's pass has others, and matter ops verify-kms-rotation has none",
	},
	{
		"have the census or the last scan skip rows, by a checkpoint",
		[]iam.Access{onItem("PutItem", "CHECKPOINT#x#orders#census"), onItem("PutItem", "CHECKPOINT#x#orders#verify")},
		"verify keeps its own; preflight as above",
	},
	{
		"make the MAC of a checkpoint",
		[]iam.Access{onKey("GenerateMac", macKey, "kms:MacAlgorithm", "HMAC_SHA_256")},
		"each saves checkpoints of its own pass; which item a function may write, the lines above say",
	},
	{"add, change or remove a source", []iam.Access{onItem("PutItem", "SOURCE"), onItem("PutItem", "REGISTRY")}, ""},
	{"remove a source", []iam.Access{onItem("DeleteItem", "SOURCE")}, ""},
	{"hide a forgotten table", []iam.Access{onItem("DeleteItem", "MARK")}, ""},
	{"mark a table that is not a source, which refuses normal rotations", []iam.Access{onItem("PutItem", "MARK")}, "an application says by it what it writes; the refusal names the table, and an emergency starts"},
	{"hold a lease, which delays the drain", []iam.Access{onItem("PutItem", "LEASE#x")}, "an application holds leases; drain revokes those that have run out, an emergency all"},
	{"revoke a lease", []iam.Access{onItem("DeleteItem", "LEASE#x")}, "a writer whose lease is gone is refused by the fence, and loses nothing"},
	{"scan the control table", []iam.Access{access("dynamodb:Scan", control)}, "they decide by the whole registry, which no index has; the table holds no secret but the token above"},
	{"run PartiQL on the control table", []iam.Access{access("dynamodb:PartiQLSelect", control)}, ""},
	{"write the control table in batches", []iam.Access{access("dynamodb:BatchWriteItem", control)}, ""},
	{"delete the control table", []iam.Access{access("dynamodb:DeleteTable", control)}, ""},
	{"end point-in-time recovery", []iam.Access{access("dynamodb:UpdateContinuousBackups", control)}, ""},

	{
		"change any attribute of a row",
		[]iam.Access{access("dynamodb:UpdateItem", orders)},
		"a rewrap changes up to five attributes, whose names the sources' definitions have and the template does not",
	},
	{"put a row", []iam.Access{access("dynamodb:PutItem", orders)}, ""},
	{"delete a row", []iam.Access{access("dynamodb:DeleteItem", orders)}, ""},
	{"replace a known cipher that is as it was read", []iam.Access{access("s3:PutObject", "arn:aws:s3:::corpus/known/a", "s3:if-match", "x")}, "known ciphers are rewrapped like rows"},
	{"create or overwrite a known cipher", []iam.Access{access("s3:PutObject", "arn:aws:s3:::corpus/known/a")}, ""},
	{"delete a known cipher", []iam.Access{access("s3:DeleteObject", "arn:aws:s3:::corpus/known/a")}, ""},

	{
		"put a locked record far ahead of the head", put(records, locked("s3:if-none-match", "*")...),
		"each step publishes what it records, and IAM cannot count. Verification names the object as litter, and it keeps no emergency from starting",
	},
	{"put a locked anchor", put("arn:aws:s3:::AuditBucket/v1/matter/anchors/000000000999.json", locked("s3:if-none-match", "*")...), "as for the signature"},
	{"put a record over another one", put(records, locked()...), ""},
	{"put a record with a short lock", put(records, "s3:if-none-match", "*", "s3:object-lock-mode", "COMPLIANCE", "s3:object-lock-remaining-retention-days", "1"), ""},
	{"put a record that administrators can delete", put(records, "s3:if-none-match", "*", "s3:object-lock-mode", "GOVERNANCE", "s3:object-lock-remaining-retention-days", "366"), ""},
	{"put an object beside the chain", put("arn:aws:s3:::AuditBucket/notes.txt", locked("s3:if-none-match", "*")...), ""},
	{"delete a record", []iam.Access{access("s3:DeleteObject", records)}, ""},
	{"delete a version of a record", []iam.Access{access("s3:DeleteObjectVersion", records)}, ""},
	{"change the audit bucket's policy", []iam.Access{access("s3:PutBucketPolicy", "arn:aws:s3:::AuditBucket")}, ""},
	{"change the audit bucket's lock", []iam.Access{access("s3:PutBucketObjectLockConfiguration", "arn:aws:s3:::AuditBucket")}, ""},

	{
		"send the operators a false message",
		[]iam.Access{access("sns:Publish", fmt.Sprintf(arnOf, "sns", "Topic"))},
		"they tell people what they do. Every message names a command, and the commands read the state, not the message",
	},
	{
		"publish a false halt on the event bus, which pages",
		[]iam.Access{publish("KEK rotation halted")},
		"notify tells of halts. The event names a command, which reads the state",
	},
	{
		"publish a false event that pages nobody",
		[]iam.Access{publish("KEK rotation announced")},
		"preflight announces",
	},
	{"publish an event in the name of another source", []iam.Access{access("events:PutEvents", fmt.Sprintf(arnOf, "events", "event-bus/default"), "events:source", "payments", "events:detail-type", "KEK rotation halted")}, ""},
	{"publish on another bus", []iam.Access{access("events:PutEvents", fmt.Sprintf(arnOf, "events", "event-bus/payments"), "events:source", notify.EventSource, "events:detail-type", "KEK rotation halted")}, ""},
	{"send the customers a false message", []iam.Access{access("sns:Publish", given["AnnounceTopicArn"])}, "preflight announces windows, notify moves them on"},
	{"read the announcers' keys", []iam.Access{access("secretsmanager:GetSecretValue", given["AnnounceSecretArn"])}, "as above"},
	{
		"start a rotation",
		[]iam.Access{access("states:StartExecution", fmt.Sprintf(arnOf, "states", "stateMachine:StateMachine"))},
		"schedule starts them when they are due. A normal rotation too many does no harm, and the gates of announcement, drill and canary hold for it",
	},
	{
		"call preflight past the state machines",
		[]iam.Access{access("lambda:InvokeFunction", fmt.Sprintf(arnOf, "lambda", "function:PreflightFunction"))},
		"schedule has it look ahead. Asked to start, it takes the lock for a rotation that no state machine runs, or ends one as an emergency does: every row stays readable, kms-status shows it, and matter ops resume or an emergency continues",
	},
	{"start an emergency", []iam.Access{access("states:StartExecution", fmt.Sprintf(arnOf, "states", "stateMachine:EmergencyStateMachine"))}, ""},
	{"wake the task that waits for a second person", []iam.Access{access("states:SendTaskSuccess", fmt.Sprintf(arnOf, "states", "stateMachine:StateMachine"))}, ""},
	{"invoke another function", []iam.Access{access("lambda:InvokeFunction", fmt.Sprintf(arnOf, "lambda", "function:SwitchFunction"))}, ""},
	{"assume another role", []iam.Access{access("sts:AssumeRole", "arn:aws:iam::123456789012:role/admin")}, ""},
}

// allowed reports whether a principal with these policies may do it: by its own
// policies, by that of the key and by that of the bucket.
func allowed(policies []iam.Policy, ofKeys, ofBucket iam.Policy, takes []iam.Access) bool {
	return !slices.ContainsFunc(takes, func(a iam.Access) bool {
		mine, _ := iam.Decide(policies, a)
		bucket := iam.Silent
		if strings.Contains(a.Resource, "AuditBucket") {
			bucket, _ = iam.Decide([]iam.Policy{ofBucket}, a)
		}
		key := iam.Allowed // a foreign key's policy lets IAM grant everything, as by default
		if strings.HasSuffix(a.Resource, ":key/live") || strings.HasSuffix(a.Resource, ":key/loser") {
			key, _ = iam.Decide([]iam.Policy{ofKeys}, a)
		}
		return mine != iam.Allowed || key != iam.Allowed || bucket == iam.Denied
	})
}

// resourcePolicies are the policy of a KEK and the denials of the audit bucket's.
func (tpl *template) resourcePolicies(t *testing.T) (ofKeys, ofBucket iam.Policy) {
	t.Helper()
	document, err := awskms.KeyPolicy(keyring.Key{ARN: fmt.Sprintf(arnOf, "kms", "key/old")})
	if err != nil {
		t.Fatal(err)
	}
	if ofKeys, err = iam.Parse("key", []byte(document)); err != nil {
		t.Fatal(err)
	}
	ofBucket, err = iam.DenialsOnly(tpl.parse(t, "AuditBucketPolicy", at[object](t, tpl.Resources, "AuditBucketPolicy", "Properties")["PolicyDocument"]))
	if err != nil {
		t.Fatal(err)
	}
	return ofKeys, ofBucket
}

// TestMustDeny is what a compromised function could do with its role, as the shipped
// policies are evaluated. The table stands in docs/threat-model.md; what nobody may do
// fails here whatever the document says.
func TestMustDeny(t *testing.T) {
	tpl := load(t)
	who := tpl.principals(t)
	columns := append(steps(who), application)
	ofKeys, ofBucket := tpl.resourcePolicies(t)
	var b strings.Builder
	fmt.Fprintf(&b, "| to | %s | accepted, because |\n|---|%s---|\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, a := range attempts {
		fmt.Fprintf(&b, "| %s |", a.what)
		anybody := false
		for _, name := range columns {
			cell := "."
			if allowed(who[name], ofKeys, ofBucket, a.takes) {
				cell, anybody = "Y", true
				if a.why == "" {
					t.Errorf("%s may %s", name, a.what)
				}
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		if !anybody && a.why != "" {
			t.Errorf("nobody may %s: the reason to accept it is out of date", a.what)
		}
		fmt.Fprintf(&b, " %s |\n", a.why)
	}
	checkTable(t, b.String())
}

// steps are the functions in the order in which a rotation calls them.
func steps(who map[string][]iam.Policy) []string {
	order := []string{"preflight", "mint", "dualunwrap", "approve", "switch", "drain", "rewrap", "retire", "anchor", "verify", "notify", "health"}
	for _, name := range slices.Sorted(maps.Keys(who)) {
		if name != application && !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	return order
}

// checkTable compares the table with the document's, or writes it there.
func checkTable(t *testing.T, table string) {
	t.Helper()
	const begin, end = "<!-- begin: written by go test ./test/templatetest -run TestMustDeny -update -->\n", "<!-- end -->"
	file := filepath.Join(root, "docs", "threat-model.md")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+table+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(old, table); d != "" {
		t.Errorf("%s (-document +template); go test ./test/templatetest -run TestMustDeny -update writes it:\n%s", file, d)
	}
}

// people are the policies of each person, as docs/runbook.md says to attach them.
var people = map[string][]string{
	"auditor":     {"AuditorPolicy"},
	"approver":    {"AuditorPolicy", "ApproverPolicy"},
	"operator":    {"AuditorPolicy", "StartRotationPolicy", "OperatorPolicy", "SourceReadPolicy", "CorpusReadPolicy"},
	"break glass": {"AuditorPolicy", "BreakGlassPolicy", "RestoreRowsPolicy"},
}

// TestPeopleMustDeny: of all that a compromised function might try, and of what people do, each
// person may do this and nothing else. Without MFA who may break glass may look.
func TestPeopleMustDeny(t *testing.T) {
	tpl := load(t)
	look := []string{"read the token of the task that waits", "scan the control table"}
	record := append(slices.Clone(look), "add to the audit chain", "put a locked record far ahead of the head")
	may := map[string][]string{
		"auditor":  look,
		"approver": append(slices.Clone(record), "approve a plan", "wake the task that waits for a second person"),
		"operator": append(slices.Clone(record),
			"claim that customers were told", "make the MAC of a checkpoint", "pause a rotation", "publish a false event that pages nobody", "put a locked anchor",
			"read the rows of a source, encrypted", "send the operators a false message", "sign a head of the audit chain", "start a rotation", "write the anchor's state",
		),
		"break glass": append(slices.Clone(record),
			"add, change or remove a source", "change any attribute of a row", "claim a census, a rehearsal or a phase that never was", "enable a retired KEK",
			"end a rotation as an emergency does", "free the lock", "hide a forgotten table", "make a data key for a row", "make the MAC of a checkpoint", "move the pointer",
			"open or seal a fence", "overwrite the record of a data key", "put a row", "remove a checkpoint", "remove a fence", "revoke a lease",
			"rewrap a row's data key under a KEK of this stack", "set the head of the chain back, as a whole item", "start an emergency", "take the lock",
			"turn a row's data key into a canary's, which more roles may unwrap", "unwrap a row's data key", "write a KEK's state", "write a copy of a data key", "write the anchor's state",
		),
	}
	who := map[string][]iam.Policy{}
	for name, policies := range people {
		for _, id := range policies {
			who[name] = append(who[name], tpl.parse(t, id, at[object](t, tpl.Resources, id, "Properties")["PolicyDocument"]))
		}
	}
	ofKeys, ofBucket := tpl.resourcePolicies(t)
	more := []attempt{
		{what: "pause a rotation", takes: []iam.Access{onItem("PutItem", "PAUSE#x")}},
		{what: "delete a data key's record", takes: []iam.Access{onKeys("DeleteItem")}},
		{what: "delete the event bus's rule", takes: []iam.Access{access("events:DeleteRule", fmt.Sprintf(arnOf, "events", "rule/page"))}},
	}
	for _, name := range slices.Sorted(maps.Keys(people)) {
		for _, mfa := range []bool{false, true} {
			got := []string{}
			for _, a := range slices.Concat(attempts, more) {
				takes := slices.Clone(a.takes)
				for i := range takes {
					takes[i].Context = maps.Clone(takes[i].Context)
					takes[i].Context["aws:multifactorauthpresent"] = []string{fmt.Sprint(mfa)}
				}
				if allowed(who[name], ofKeys, ofBucket, takes) {
					got = append(got, a.what)
				}
			}
			slices.Sort(got)
			want := slices.Sorted(slices.Values(may[name]))
			if name == "break glass" && !mfa {
				want = may["auditor"]
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s, MFA %t (-want +got):\n%s", name, mfa, d)
			}
		}
	}
}
