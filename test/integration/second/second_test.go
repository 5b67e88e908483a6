// Package second deploys what ships on an AWS that is not ours: ministack, by the real
// sam deploy, with the shipped template and the built functions, and rotates there. What
// ministack lacks is in lacks_test.go, and nowhere else.
package second

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	cfntypes "github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	sfntypes "github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/test/localaws/rekorlocal"
)

const (
	stack = "two"
	rows  = 40
)

// world is the second AWS with the stack, and the table of an application.
type world struct {
	*server
	dir     string            // where sam deploy runs
	outputs map[string]string // of the stack
	matter  []string          // what matter ops env says

	cfn    *cloudformation.Client
	dynamo *dynamodb.Client
	kms    *kms.Client
	s3     *s3.Client
	sfn    *sfn.Client
}

// install is docs/install.md, whose texts are run as they stand.
type install string

// block is the first block of code in a language that holds a text.
func (i install) block(t *testing.T, language, holds string) string {
	t.Helper()
	for _, m := range regexp.MustCompile("(?s)```(\\w+)\n(.*?)```").FindAllStringSubmatch(string(i), -1) {
		if m[1] == language && strings.Contains(m[2], holds) {
			return m[2]
		}
	}
	t.Fatalf("docs/install.md has no %s with %q", language, holds)
	return ""
}

// more are the parameters that this test needs besides, as sam deploy takes them. The later
// of two values counts.
func more(t *testing.T, log *rekorlocal.Log) []string {
	t.Helper()
	trust, err := json.Marshal(audit.Trust{Logs: []audit.Log{log.Trust()}, AnchorKeys: []audit.PinnedKey{}})
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"Architecture=" + map[string]string{"amd64": "x86_64", "arm64": "arm64"}[runtime.GOARCH],
		"Window=any", "DrainPollSeconds=5", "Segments=2", "RetentionDays=1", "AnnounceDays=0", "DrillFreshDays=0", "HealthDays=0", "KeySettleSeconds=0",
		`TransparencyLogs="` + strings.ReplaceAll(string(trust), `"`, `\"`) + `"`,
	}
}

// TestSecondAWS: genesis, rows of an application, a rotation, a drill and a rotation that
// roll back before the switch, the stack deleted and deployed again, and a rotation there.
func TestSecondAWS(t *testing.T) {
	t.Parallel() // it waits more than it works
	if testing.Short() {
		t.Skip("it starts a server")
	}
	s := start(t)
	log, err := rekorlocal.Start(t.Context(), rekorlocal.Options{Dir: filepath.Join(s.home, "rekor")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Stop)
	also := more(t, log)
	cfg := config(s.url)
	w := &world{
		server: s, dir: t.TempDir(), cfn: cloudformation.NewFromConfig(cfg), dynamo: dynamodb.NewFromConfig(cfg),
		kms: kms.NewFromConfig(cfg), s3: s3.NewFromConfig(cfg), sfn: sfn.NewFromConfig(cfg),
	}
	b, err := os.ReadFile(filepath.Join(s.root, "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := install(b)
	w.layOut(t)
	w.createOrders(t)

	// From samconfig.toml.
	w.write(t, "parameters.yaml", doc.block(t, "yaml", "Sources:"))
	config, err := os.ReadFile(filepath.Join(s.root, "samconfig.toml"))
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSuffix(strings.TrimSpace(doc.block(t, "toml", "parameter_overrides")), "]")
	for _, p := range slices.Concat(also, []string{"ApprovalRequired=true"}) {
		line += ", '" + p + "'"
	}
	w.write(t, "samconfig.toml", strings.Replace(string(config), "[default.deploy.parameters]", "[default.deploy.parameters]\n"+line+"]", 1))
	sam := filepath.Join(s.root, ".venv", "bin", "sam")
	deploy := "exec " + sam + " deploy --stack-name " + stack + " --no-confirm-changeset --no-progressbar"
	w.deployed(t, w.run(t, w.dir, nil, "bash", "-c", deploy))
	for _, l := range lacks {
		if err := l.lasts(t.Context(), w); err != nil {
			t.Errorf("ministack no longer lacks %s: %v", l.name, err)
		}
	}
	w.repair(t)

	first := w.createKey(t)
	w.ops(t, "kms-genesis", "--kek-id", first, "--confirm")
	w.insert(t)
	w.allUnder(t, first)
	w.ops(t, "census")
	const asked = `{"requested_by": "arn:aws:iam::111122223333:user/alice"}`
	o := w.rotate(t, "one", asked, "approve")
	if o.Status != sfntypes.ExecutionStatusSucceeded {
		t.Fatalf("rotation: %s, %s: %s\n%v", o.Status, o.Error, o.Cause, o.States)
	}
	second := w.pointer(t)
	w.allUnder(t, second)
	w.update(t)
	w.keyState(t, first, kmstypes.KeyStateDisabled)

	o = w.rotate(t, "drill", `{"drill": "kms_rotation_failure"}`)
	if o.Status != sfntypes.ExecutionStatusSucceeded || !slices.Contains(o.States, "PreSwitchFailure") || !slices.Contains(o.States, "DrillPassed") {
		t.Fatalf("drill: %s, %s: %s\n%v", o.Status, o.Error, o.Cause, o.States)
	}
	o = w.rotate(t, "rejected", asked, "reject", "--reason", "release tonight")
	if o.Status != sfntypes.ExecutionStatusFailed || o.Error != "ApprovalRejected" || !slices.Contains(o.States, "PreSwitchFailure") {
		t.Fatalf("rejected: %s, %s: %s\n%v", o.Status, o.Error, o.Cause, o.States)
	}
	if got := w.pointer(t); got != second {
		t.Fatalf("the pointer moved to %s", got)
	}
	w.allUnder(t, second)
	w.ops(t, "audit", "verify")

	w.delete(t)
	w.keyState(t, second, kmstypes.KeyStateEnabled)

	// From the command line, under the same name.
	w.template(t, "second")
	w.write(t, "samconfig.toml", string(config))
	command := strings.TrimSpace(doc.block(t, "sh", "--parameter-overrides"))
	command = strings.Replace(command, "sam deploy", deploy, 1)
	w.deployed(t, w.run(t, w.dir, nil, "bash", "-c", command+" '"+strings.Join(also, "' '")+"'"))
	w.repair(t)
	w.ops(t, "kms-genesis", "--kek-id", second, "--confirm")
	w.update(t) // of a row that the first life has moved
	o = w.rotate(t, "again", "{}")
	if o.Status != sfntypes.ExecutionStatusSucceeded {
		t.Fatalf("rotation after the second deployment: %s, %s: %s\n%v", o.Status, o.Error, o.Cause, o.States)
	}
	w.allUnder(t, w.pointer(t))
	w.update(t)
	w.keyState(t, second, kmstypes.KeyStateDisabled)
	w.ops(t, "audit", "verify")
}

// layOut makes the directory that sam deploy runs in: the template, and what CodeUri and
// DefinitionUri name.
func (w *world) layOut(t *testing.T) {
	t.Helper()
	w.template(t, "first")
	for link, to := range map[string]string{"statemachine.asl.json": "statemachine.asl.json", "build/functions": "build/local"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(w.dir, link)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(w.root, to), filepath.Join(w.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	w.quietSAM(t)
}

// template writes the template of one life of the stack.
func (w *world) template(t *testing.T, life string) {
	t.Helper()
	template, without := stripped(t, filepath.Join(w.root, "template.yaml"), life)
	t.Logf("the template of the %s life is without %s", life, strings.Join(without, ", "))
	w.write(t, "template.yaml", string(template))
}

func (w *world) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// deployed reads what sam deploy has made, and checks that the sources are the JSON that
// was meant and that an empty parameter is empty.
func (w *world) deployed(t *testing.T, said string) {
	t.Helper()
	out, err := w.cfn.DescribeStacks(t.Context(), &cloudformation.DescribeStacksInput{StackName: aws.String(stack)})
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	w.outputs = map[string]string{}
	for _, o := range out.Stacks[0].Outputs {
		w.outputs[aws.ToString(o.OutputKey)] = aws.ToString(o.OutputValue)
	}
	var got, want any
	if err := json.Unmarshal([]byte(w.outputs["SeedSources"]), &got); err != nil {
		t.Fatalf("Sources arrived as %q: %v", w.outputs["SeedSources"], err)
	}
	if err := json.Unmarshal([]byte(ordersJSON), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Sources (-want +got):\n%s", diff)
	}
	i := slices.IndexFunc(out.Stacks[0].Parameters, func(p cfntypes.Parameter) bool { return aws.ToString(p.ParameterKey) == "AlarmEmail" })
	if i < 0 || aws.ToString(out.Stacks[0].Parameters[i].ParameterValue) != "" {
		t.Errorf("the empty parameter is not empty: %v", out.Stacks[0].Parameters)
	}
	w.matter = nil
	exports := bufio.NewScanner(strings.NewReader(w.run(t, w.dir, nil, "bash", "-c",
		`eval "$(`+filepath.Join(w.root, "bin", "matter")+` ops env --stack `+stack+`)" && env -0 | tr '\n\0' ' \n'`)))
	exports.Buffer(nil, 1<<20)
	for exports.Scan() {
		if strings.HasPrefix(exports.Text(), "MATTER_") {
			w.matter = append(w.matter, exports.Text())
		}
	}
	if len(w.matter) == 0 {
		t.Fatal("matter ops env says nothing")
	}
}

func (w *world) repair(t *testing.T) {
	t.Helper()
	for _, l := range lacks {
		if l.repair == nil {
			continue
		}
		if err := l.repair(t.Context(), w); err != nil {
			t.Fatalf("%s: %v", l.name, err)
		}
	}
}

// ops runs the operator's tool.
func (w *world) ops(t *testing.T, args ...string) string {
	t.Helper()
	return w.run(t, w.dir, w.matter, filepath.Join(w.root, "bin", "matter"), append([]string{"ops"}, args...)...)
}

// pointer is the KEK that the pointer names.
func (w *world) pointer(t *testing.T) string {
	t.Helper()
	var status struct {
		Pointer struct {
			KEK string `json:"kek_id"`
		} `json:"pointer"`
	}
	if err := json.Unmarshal([]byte(w.ops(t, "kms-status", "-o", "json")), &status); err != nil {
		t.Fatal(err)
	}
	return status.Pointer.KEK
}

func (w *world) createKey(t *testing.T) string {
	t.Helper()
	out, err := w.kms.CreateKey(t.Context(), &kms.CreateKeyInput{Description: aws.String("the KEK of the application's rows")})
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.KeyMetadata.KeyId)
}

func (w *world) keyState(t *testing.T, id string, want kmstypes.KeyState) {
	t.Helper()
	out, err := w.kms.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.KeyMetadata.KeyState; got != want {
		t.Errorf("KMS key %s is %s, not %s", id, got, want)
	}
}

// ordersJSON is the source that docs/install.md describes.
const ordersJSON = `[{"table": "orders", "kek_id_attribute": "kek_id", "wrapped_dek_attribute": "wrapped_dek",
	"ciphertext_attribute": "ciphertext", "context": {"table": "orders"}, "bind": {"id": "$order_id"}}]`

func (w *world) createOrders(t *testing.T) {
	t.Helper()
	key := aws.String("order_id")
	if _, err := w.dynamo.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: aws.String("orders"), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: key, AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: key, KeyType: types.KeyTypeHash}},
	}); err != nil {
		t.Fatal(err)
	}
}

// orders is the application: package envelope, with the definition that is registered.
func (w *world) orders(t *testing.T) *envelope.Table {
	t.Helper()
	client, err := envelope.New(t.Context(), envelope.Config{ControlTable: w.outputs["ControlTableName"], DynamoDB: w.dynamo, KMS: w.kms})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	var cfg []envelope.TableConfig
	if err := json.Unmarshal([]byte(ordersJSON), &cfg); err != nil {
		t.Fatal(err)
	}
	table, err := client.Table(t.Context(), cfg[0])
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func order(i int) envelope.Item {
	return envelope.Item{"order_id": &types.AttributeValueMemberS{Value: fmt.Sprintf("o-%03d", i)}}
}

func (w *world) insert(t *testing.T) {
	t.Helper()
	orders := w.orders(t)
	for i := range rows {
		if err := orders.Insert(t.Context(), order(i), fmt.Appendf(nil, "%d apples", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// update writes a row again, as applications go on doing.
func (w *world) update(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := w.orders(t).Update(ctx, order(0), func(*envelope.Row) error { return nil }); err != nil {
		t.Error(err)
	}
}

// allUnder checks that every row names the KEK and opens to what was written.
func (w *world) allUnder(t *testing.T, id string) {
	t.Helper()
	orders := w.orders(t)
	for i := range rows {
		row, err := orders.Get(t.Context(), order(i))
		if err != nil || string(row.Plaintext) != fmt.Sprintf("%d apples", i) {
			t.Errorf("order %d: %q, %v", i, row.Plaintext, err)
		}
	}
	out, err := w.dynamo.Scan(t.Context(), &dynamodb.ScanInput{TableName: aws.String("orders"), ConsistentRead: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Items) != rows {
		t.Errorf("%d rows of %d", len(out.Items), rows)
	}
	for _, item := range out.Items {
		if v, ok := item["kek_id"].(*types.AttributeValueMemberS); !ok || v.Value != id {
			t.Fatalf("a row names %v, not %s", item["kek_id"], id)
		}
	}
}

// rotate runs an execution of the state machine to its end. answer is the command, approve
// or reject, with which the operator answers when it waits for a second person.
func (w *world) rotate(t *testing.T, name, input string, answer ...string) console.Outcome {
	t.Helper()
	machine := w.outputs["StateMachineArn"]
	x, err := w.sfn.StartExecution(t.Context(), &sfn.StartExecutionInput{StateMachineArn: &machine, Name: &name, Input: &input})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for deadline := time.Now().Add(time.Minute); ; {
		d, err := w.sfn.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: x.ExecutionArn})
		if err != nil {
			t.Fatal(err)
		}
		states, err := console.ListStates(ctx, w.sfn, aws.ToString(x.ExecutionArn))
		if err != nil {
			t.Fatal(err)
		}
		if d.Status != sfntypes.ExecutionStatusRunning {
			return console.Outcome{Status: d.Status, Error: aws.ToString(d.Error), Cause: aws.ToString(d.Cause), States: states}
		}
		if time.Now().After(deadline) {
			t.Fatalf("execution %s still runs: %v\n%s\n%s", name, states, w.outputs["ControlTableName"], w.ops(t, "kms-status"))
		}
		if len(answer) > 0 && w.asked(t, name) {
			if m := regexp.MustCompile(`--plan (\w+)`).FindStringSubmatch(w.ops(t, "kms-status")); m != nil {
				w.ops(t, append(answer, "--rotation", name, "--plan", m[1])...)
				answer = nil
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// asked tells whether the function approve has asked for an answer. One that is given before
// is right too, and is told to the state machine by an error of that function: see the list.
func (w *world) asked(t *testing.T, rotation string) bool {
	t.Helper()
	out, err := w.dynamo.Query(t.Context(), &dynamodb.QueryInput{
		TableName: aws.String(w.outputs["ControlTableName"]), ConsistentRead: aws.Bool(true), KeyConditionExpression: aws.String("pk = :pk"),
		ExpressionAttributeValues: map[string]types.AttributeValue{":pk": &types.AttributeValueMemberS{Value: "APPROVAL#" + rotation}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(out.Items) > 0
}

// delete deletes the stack and checks that what must outlive it does.
func (w *world) delete(t *testing.T) {
	t.Helper()
	if err := deleteStack(t.Context(), w.cfn, stack); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sfn.DescribeStateMachine(t.Context(), &sfn.DescribeStateMachineInput{StateMachineArn: aws.String(w.outputs["StateMachineArn"])}); err == nil {
		t.Error("the state machine outlives the stack")
	}
	if _, err := w.dynamo.DescribeTable(t.Context(), &dynamodb.DescribeTableInput{TableName: aws.String(w.outputs["ControlTableName"])}); err != nil {
		t.Errorf("the control table: %v", err)
	}
	if _, err := w.s3.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: aws.String(w.outputs["AuditBucketName"])}); err != nil {
		t.Errorf("the audit bucket: %v", err)
	}
	if _, err := w.s3.GetBucketPolicy(t.Context(), &s3.GetBucketPolicyInput{Bucket: aws.String(w.outputs["AuditBucketName"])}); err != nil {
		t.Errorf("its policy: %v", err)
	}
	arn := strings.Split(w.outputs["AnchorKeyArn"], "/")
	w.keyState(t, arn[len(arn)-1], kmstypes.KeyStateEnabled)
}
