// Package acceptance runs the whole life of a deployment on an AWS: deploy, genesis, adopt,
// drill, rotate under load, halt and resume, emergency, evidence, delete, deploy again,
// uninstall. It works as an operator would, by the operator's tool and AWS's own API, and
// knows nothing of what is behind the endpoint; so the same run is made on AWS, for anyone
// with an account (make aws-acceptance), and in CI on the local ones.
package acceptance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Target is an AWS, and the means to have a stack on it.
type Target interface {
	// AWS is the configuration of an administrator of the account.
	AWS() aws.Config
	// Deploy makes or updates the stack and returns the environment in which the
	// operator's tool works against it.
	Deploy(ctx context.Context, stack string, parameters map[string]string) ([]string, error)
	// Delete deletes the stack; [errors.ErrUnsupported] if this AWS cannot.
	Delete(ctx context.Context, stack string) error
}

// Options are the choices of a run.
type Options struct {
	Stack    string            // its name, which no other stack may have
	Account  string            // id
	Region   string            //
	Tool     string            // path of the operator's tool
	Evidence string            // directory that gets reports, the audit chain and the table
	Load     time.Duration     // of the traffic during a rotation
	Without  map[string]string // stages that this AWS cannot do, and why
	Out      io.Writer         // what happens, as it happens
	Poll     time.Duration     // between two looks
	Lease    time.Duration     // of the writer that is stopped: long enough for a switch, and waited for
	Settings map[string]string // parameters over those of the run
}

// Stage is what became of one stage.
type Stage struct {
	Name    string  `json:"stage"`
	Outcome string  `json:"outcome"` // passed, failed, left out, not reached
	Seconds float64 `json:"seconds"`
	Detail  string  `json:"detail"`
}

// Outcomes.
const (
	Passed     = "passed"
	Failed     = "failed"
	LeftOut    = "left out"
	NotReached = "not reached"
)

const letters = 12 // rows that KMS itself encrypted

// run is one run.
type run struct {
	Options
	target Target
	dynamo *dynamodb.Client
	kms    *kms.Client
	env    []string
	first  string // the KEK that the deployment begins with
	left   Left
}

// stages in their order. Each leaves the deployment such that the next can run.
func (r *run) stages() []struct {
	name string
	do   func(context.Context) (string, error)
} {
	return []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"deploy", r.deploy},
		{"genesis", r.genesis},
		{"adopt", r.adopt},
		{"drill", r.drill},
		{"rotate under load", r.rotateUnderLoad},
		{"halt and resume", r.haltAndResume},
		{"emergency", r.emergency},
		{"evidence", r.evidence},
		{"delete", r.delete},
		{"deploy again", r.deployAgain},
		{"uninstall", r.delete},
	}
}

// Names are the stages in their order.
func Names() []string {
	var out []string
	for _, s := range new(run).stages() {
		out = append(out, s.name)
	}
	return out
}

// Run makes the run and writes the table of its stages. The first stage that fails ends it;
// the error says which. [Clean] removes what is left then.
func Run(ctx context.Context, target Target, o Options) ([]Stage, Left, error) {
	for name := range o.Without {
		if !slices.Contains(Names(), name) {
			return nil, Left{}, fmt.Errorf("without %q: no such stage; there are %s", name, strings.Join(Names(), ", "))
		}
	}
	tool, err := filepath.Abs(o.Tool)
	if err != nil {
		return nil, Left{}, err
	}
	o.Tool = tool
	if err := os.MkdirAll(o.Evidence, 0o700); err != nil {
		return nil, Left{}, err
	}
	r := &run{Options: o, target: target, dynamo: dynamodb.NewFromConfig(target.AWS()), kms: kms.NewFromConfig(target.AWS()), left: Left{Stack: o.Stack}}
	var table []Stage
	var failed error
	for _, s := range r.stages() {
		row := Stage{Name: s.name, Outcome: NotReached}
		begun := time.Now()
		switch why, out := o.Without[s.name]; {
		case failed != nil:
		case out:
			row.Outcome, row.Detail = LeftOut, why
		default:
			fmt.Fprintf(o.Out, "== %s\n", s.name)
			row.Outcome = Passed
			if row.Detail, err = s.do(ctx); err != nil {
				row.Outcome, row.Detail = Failed, err.Error()
				failed = fmt.Errorf("%s: %w", s.name, err)
			}
			row.Seconds = time.Since(begun).Round(100 * time.Millisecond).Seconds()
			fmt.Fprintf(o.Out, "   %s: %s\n", row.Outcome, row.Detail)
		}
		table = append(table, row)
	}
	b, err := json.MarshalIndent(table, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(o.Evidence, "acceptance.json"), append(b, '\n'), 0o600)
	}
	return table, r.left, errors.Join(failed, err)
}

// Print writes the table for people.
func Print(w io.Writer, table []Stage) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "stage\toutcome\tseconds\t")
	for _, s := range table {
		detail, _, _ := strings.Cut(s.Detail, "\n")
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%s\n", s.Name, s.Outcome, s.Seconds, detail)
	}
	return t.Flush()
}

// result is what a command of the operator's tool said.
type result struct {
	exit int
	out  string
	err  string
}

// matter runs the operator's tool.
func (r *run) matter(ctx context.Context, args ...string) (result, error) {
	cmd := exec.CommandContext(ctx, r.Tool, args...)
	cmd.Env = append(os.Environ(), r.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	fmt.Fprintf(r.Out, "   $ matter %s\n", strings.Join(args, " "))
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return result{}, err
	}
	return result{exit: cmd.ProcessState.ExitCode(), out: out.String(), err: errs.String()}, nil
}

// must runs the operator's tool, which must exit with 0, and decodes its JSON if into is
// not nil.
func (r *run) must(ctx context.Context, into any, args ...string) error {
	if into != nil {
		args = append(args, "-o", "json")
	}
	got, err := r.matter(ctx, args...)
	if err != nil {
		return err
	}
	if got.exit != 0 {
		return fmt.Errorf("matter %s: exit %d: %s%s", strings.Join(args, " "), got.exit, got.err, got.out)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal([]byte(got.out), into); err != nil {
		return fmt.Errorf("matter %s: %w in %s", strings.Join(args, " "), err, got.out)
	}
	return nil
}

// state is what kms-status says that the run looks at.
type state struct {
	Pointer struct {
		KEK   string `json:"kek_id"`
		Epoch int64  `json:"epoch"`
	} `json:"pointer"`
	Lock string `json:"lock"`
	KEKs []struct {
		ID     string `json:"kek_id"`
		State  string `json:"state"`
		Leases int    `json:"leases"`
	} `json:"keks"`
	Rotations []struct {
		ID string `json:"rotation_id"`
	} `json:"rotations"`
}

func (r *run) status(ctx context.Context) (state, error) {
	var s state
	err := r.must(ctx, &s, "ops", "kms-status")
	return s, err
}

// moved checks that the pointer has left a KEK, that nothing holds the lock, that every old
// KEK is retired and its KMS key disabled, and that every letter opens.
func (r *run) moved(ctx context.Context, from string) (state, error) {
	s, err := r.status(ctx)
	if err != nil {
		return s, err
	}
	if s.Pointer.KEK == from || s.Lock != "" {
		return s, fmt.Errorf("the pointer names %s, the lock is %q", s.Pointer.KEK, s.Lock)
	}
	for _, k := range s.KEKs {
		d, err := r.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &k.ID})
		if err != nil {
			return s, fmt.Errorf("KEK %q of %+v: %w", k.ID, s.KEKs, err)
		}
		if live := k.ID == s.Pointer.KEK; (k.State == "active") != live || d.KeyMetadata.Enabled != live {
			return s, fmt.Errorf("KEK %s is %s and its key %s", k.ID, k.State, d.KeyMetadata.KeyState)
		}
	}
	return s, r.readLetters(ctx, s.Pointer.KEK)
}

func (r *run) table(name string) string { return r.Stack + "-" + name }

func (r *run) tableARN(name string) string {
	partition := "aws"
	switch {
	case strings.HasPrefix(r.Region, "us-gov-"):
		partition = "aws-us-gov"
	case strings.HasPrefix(r.Region, "cn-"):
		partition = "aws-cn"
	}
	return fmt.Sprintf("arn:%s:dynamodb:%s:%s:table/%s", partition, r.Region, r.Account, r.table(name))
}

// deploy makes the source tables and the stack.
func (r *run) deploy(ctx context.Context) (string, error) {
	for name, key := range map[string]string{"orders": "id", "letters": "id"} {
		if err := r.createTable(ctx, r.table(name), key); err != nil {
			return "", err
		}
	}
	return r.deployStack(ctx)
}

func (r *run) deployStack(ctx context.Context) (string, error) {
	parameters := map[string]string{
		"SourceTableArns": r.tableARN("orders") + "," + r.tableARN("letters"),
		"ScheduleState":   "DISABLED", "Window": "any", "RetentionDays": "1", "Segments": "2", "DrainPollSeconds": "5",
		// A fresh account has announced nothing, drilled nothing, and no week of health.
		"AnnounceDays": "0", "DrillFreshDays": "0", "HealthDays": "0",
	}
	for k, v := range r.Settings {
		parameters[k] = v
	}
	env, err := r.target.Deploy(ctx, r.Stack, parameters)
	if err != nil {
		return "", err
	}
	r.env = env
	control := r.variable("MATTER_CONTROL_TABLE")
	if slices.Contains(r.left.ControlTables, control) {
		return "", errors.New("the second stack has the control table of the first")
	}
	r.left.ControlTables = append(r.left.ControlTables, control)
	r.left.Buckets = append(r.left.Buckets, r.variable("MATTER_AUDIT_BUCKET"))
	r.left.AnchorKeys = append(r.left.AnchorKeys, r.variable("MATTER_ANCHOR_KEY"))
	return fmt.Sprintf("stack %s in %s", r.Stack, r.Region), nil
}

func (r *run) createTable(ctx context.Context, name, key string) error {
	_, err := r.dynamo.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: &name, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: &key, AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: &key, KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		return fmt.Errorf("create table %s: %w", name, err)
	}
	return dynamodb.NewTableExistsWaiter(r.dynamo).Wait(ctx, &dynamodb.DescribeTableInput{TableName: &name}, 2*time.Minute)
}

// genesis makes the first KEK, letters under it that only KMS knows of, and the pointer.
func (r *run) genesis(ctx context.Context) (string, error) {
	k, err := r.kms.CreateKey(ctx, &kms.CreateKeyInput{
		Description: aws.String("first KEK of " + r.Stack), KeySpec: kmstypes.KeySpecSymmetricDefault, KeyUsage: kmstypes.KeyUsageTypeEncryptDecrypt,
	})
	if err != nil {
		return "", err
	}
	r.first = aws.ToString(k.KeyMetadata.KeyId)
	if err := r.writeLetters(ctx); err != nil {
		return "", err
	}
	return r.begin(ctx, r.first)
}

// begin registers the sources and points at a KEK.
func (r *run) begin(ctx context.Context, id string) (string, error) {
	definitions := []map[string]any{
		{
			"name": "orders", "table": r.table("orders"), "kek_id_attribute": "kek_id", "wrapped_dek_attribute": "wrapped_dek", "ciphertext_attribute": "ciphertext",
			"context": map[string]string{"table": "orders"}, "bind": map[string]string{"id": "$id"},
		},
		{
			"name": "letters", "table": r.table("letters"), "format": "kms", "kek_id_attribute": "kek_id", "ciphertext_attribute": "body",
			"context": map[string]string{"table": "letters", "id": "$id"},
		},
	}
	b, err := json.MarshalIndent(definitions, "", "  ")
	if err != nil {
		return "", err
	}
	file := filepath.Join(r.Evidence, "sources.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return "", err
	}
	if err := r.must(ctx, nil, "ops", "kms-genesis", "--kek-id", id, "--sources", file, "--confirm"); err != nil {
		return "", err
	}
	s, err := r.status(ctx)
	if err == nil && s.Pointer.KEK != id {
		err = fmt.Errorf("the pointer names %q", s.Pointer.KEK)
	}
	return "pointer at " + id, err
}

func letter(n int) (key map[string]types.AttributeValue, encctx map[string]string, plain []byte) {
	id := fmt.Sprintf("letter-%03d", n)
	return map[string]types.AttributeValue{"id": &types.AttributeValueMemberS{Value: id}},
		map[string]string{"table": "letters", "id": id}, fmt.Appendf(nil, "letter %d of the days before", n)
}

// writeLetters writes rows as an application does that knows KMS alone.
func (r *run) writeLetters(ctx context.Context) error {
	for n := range letters {
		item, encctx, plain := letter(n)
		c, err := r.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &r.first, Plaintext: plain, EncryptionContext: encctx})
		if err != nil {
			return err
		}
		item["body"] = &types.AttributeValueMemberB{Value: c.CiphertextBlob}
		name := r.table("letters")
		if _, err := r.dynamo.PutItem(ctx, &dynamodb.PutItemInput{TableName: &name, Item: item}); err != nil {
			return err
		}
	}
	return nil
}

// readLetters reads every letter by KMS alone, and finds it under the KEK.
func (r *run) readLetters(ctx context.Context, under string) error {
	for n := range letters {
		key, encctx, plain := letter(n)
		name := r.table("letters")
		got, err := r.dynamo.GetItem(ctx, &dynamodb.GetItemInput{TableName: &name, Key: key, ConsistentRead: aws.Bool(true)})
		if err != nil {
			return err
		}
		body, _ := got.Item["body"].(*types.AttributeValueMemberB)
		if body == nil {
			return fmt.Errorf("letter %d is gone: %v", n, got.Item)
		}
		d, err := r.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: body.Value, EncryptionContext: encctx})
		if err != nil {
			return fmt.Errorf("letter %d: %w", n, err)
		}
		if !bytes.Equal(d.Plaintext, plain) || !strings.HasSuffix(aws.ToString(d.KeyId), "/"+under) {
			return fmt.Errorf("letter %d is another text, or under %s", n, aws.ToString(d.KeyId))
		}
	}
	return nil
}

// adopt has the census refuse the letters, brings them in, and has it pass.
func (r *run) adopt(ctx context.Context) (string, error) {
	refused, err := r.matter(ctx, "ops", "census")
	if err != nil {
		return "", err
	}
	if refused.exit == 0 || !strings.Contains(refused.out+refused.err, "letters") {
		return "", fmt.Errorf("the census takes rows that name no KEK: exit %d: %s%s", refused.exit, refused.out, refused.err)
	}
	for _, args := range [][]string{
		{"ops", "adopt", "--source", "letters"}, {"ops", "adopt", "--source", "letters", "--confirm"}, {"ops", "census"},
	} {
		if err := r.must(ctx, nil, args...); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d rows that KMS had encrypted without us", letters), nil
}

func (r *run) drill(ctx context.Context) (string, error) {
	before, err := r.status(ctx)
	if err != nil {
		return "", err
	}
	if err := r.must(ctx, nil, "ops", "drill", "run", "kms_rotation_failure", "--poll", r.Poll.String()); err != nil {
		return "", err
	}
	after, err := r.status(ctx)
	if err == nil && (after.Pointer != before.Pointer || after.Lock != "") {
		err = fmt.Errorf("the pointer was %+v and is %+v, the lock %q", before.Pointer, after.Pointer, after.Lock)
	}
	return "rolled back before the switch by itself", err
}

// load starts live traffic on the orders, by the program that is built beside the tool.
func (r *run) load(ctx context.Context, d time.Duration, args ...string) (*exec.Cmd, *bytes.Buffer, error) {
	args = append([]string{"load", "--source", "orders", "--duration", d.String(), "--rate", "20", "--keep", "-o", "json"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(r.Tool), "matter-local"), args...)
	cmd.Env = append(os.Environ(), r.env...)
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	fmt.Fprintf(r.Out, "   $ matter-local %s &\n", strings.Join(args, " "))
	return cmd, out, cmd.Start()
}

func (r *run) rotate(ctx context.Context, args ...string) error {
	return r.must(ctx, nil, append([]string{"ops", "kms-rotate", "--watch", "--poll", r.Poll.String()}, args...)...)
}

func (r *run) rotateUnderLoad(ctx context.Context) (string, error) {
	before, err := r.status(ctx)
	if err != nil {
		return "", err
	}
	traffic, out, err := r.load(ctx, r.Load)
	if err != nil {
		return "", err
	}
	err = r.rotate(ctx)
	if waited := traffic.Wait(); waited != nil {
		err = errors.Join(err, fmt.Errorf("the traffic noticed: %w: %s", waited, out))
	}
	if err != nil {
		return "", err
	}
	s, err := r.moved(ctx, before.Pointer.KEK)
	return fmt.Sprintf("to %s, epoch %d; no read was wrong", s.Pointer.KEK, s.Pointer.Epoch), err
}

// haltAndResume stops a writer, so that the drain waits for its lease, plants a row that
// nobody can move behind the census, and has the rotation halt on it.
func (r *run) haltAndResume(ctx context.Context) (string, error) {
	before, err := r.status(ctx)
	if err != nil {
		return "", err
	}
	traffic, out, err := r.load(ctx, r.Load, "--lease-ttl", r.Lease.String(), "--pointer-age", (r.Lease / 3).String())
	if err != nil {
		return "", err
	}
	defer func() { _ = resume(traffic); _ = traffic.Wait() }()
	if err := r.await(ctx, 2*time.Minute, func(s state) bool {
		for _, k := range s.KEKs {
			if k.Leases > 0 {
				return true
			}
		}
		return false
	}); err != nil {
		return "", fmt.Errorf("the traffic took no lease: %w: %s", err, out)
	}
	if err := stop(traffic); err != nil {
		return "", err
	}
	var started struct {
		Name string `json:"execution_name"`
	}
	if err := r.must(ctx, &started, "ops", "kms-rotate", "--label", "halt and resume"); err != nil {
		return "", err
	}
	if err := r.await(ctx, 10*time.Minute, func(s state) bool { return s.Pointer.KEK != before.Pointer.KEK }); err != nil {
		return "", fmt.Errorf("no switch: %w", err)
	}
	odd := map[string]types.AttributeValue{
		"id": &types.AttributeValueMemberS{Value: "odd"}, "kek_id": &types.AttributeValueMemberS{Value: "a-key-of-another-team"},
		"body": &types.AttributeValueMemberB{Value: []byte("?")},
	}
	name := r.table("letters")
	if _, err := r.dynamo.PutItem(ctx, &dynamodb.PutItemInput{TableName: &name, Item: odd}); err != nil {
		return "", err
	}
	halted, err := r.matter(ctx, "ops", "kms-rotate", "--watch", "--poll", r.Poll.String(), "--execution", started.Name)
	if err != nil {
		return "", err
	}
	if halted.exit != 1 && halted.exit != 4 {
		return "", fmt.Errorf("it did not halt: exit %d: %s%s", halted.exit, halted.out, halted.err)
	}
	if _, err := r.dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &name, Key: map[string]types.AttributeValue{"id": odd["id"]}}); err != nil {
		return "", err
	}
	if err := r.must(ctx, nil, "ops", "resume", "--watch", "--poll", r.Poll.String()); err != nil {
		return "", err
	}
	s, err := r.moved(ctx, before.Pointer.KEK)
	return fmt.Sprintf("halted with every row readable, went on to %s", s.Pointer.KEK), err
}

// await looks until the status is so.
func (r *run) await(ctx context.Context, limit time.Duration, so func(state) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		s, err := r.status(ctx)
		if err != nil {
			return err
		}
		if so(s) {
			return nil
		}
		select {
		case <-time.After(max(r.Poll, time.Second)):
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", limit, ctx.Err())
		}
	}
}

func (r *run) emergency(ctx context.Context) (string, error) {
	before, err := r.status(ctx)
	if err != nil {
		return "", err
	}
	if err := r.rotate(ctx, "--emergency", "--reason", "acceptance: a key may be compromised"); err != nil {
		return "", err
	}
	s, err := r.moved(ctx, before.Pointer.KEK)
	return fmt.Sprintf("to %s", s.Pointer.KEK), err
}

// evidence keeps the report of each rotation and a verified copy of the audit chain.
func (r *run) evidence(ctx context.Context) (string, error) {
	s, err := r.status(ctx)
	if err != nil {
		return "", err
	}
	for _, one := range s.Rotations {
		if err := r.must(ctx, nil, "ops", "report", "--rotation", one.ID, "--out", filepath.Join(r.Evidence, one.ID+".html")); err != nil {
			return "", err
		}
	}
	copied := filepath.Join(r.Evidence, "audit")
	if err := r.must(ctx, nil, "ops", "audit", "export", "--to", copied); err != nil {
		return "", err
	}
	if err := r.must(ctx, nil, "ops", "audit", "verify"); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d reports and the audit chain in %s", len(s.Rotations), r.Evidence), nil
}

// delete deletes the stack and finds what must outlive it.
func (r *run) delete(ctx context.Context) (string, error) {
	s, err := r.status(ctx)
	if err != nil {
		return "", err
	}
	control := r.variable("MATTER_CONTROL_TABLE")
	if err := r.target.Delete(ctx, r.Stack); err != nil {
		return "", err
	}
	if _, err := r.dynamo.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &control}); err != nil {
		return "", fmt.Errorf("the control table did not outlive the stack: %w", err)
	}
	r.first = s.Pointer.KEK
	return "the control table " + control + " and every key are there", r.readLetters(ctx, s.Pointer.KEK)
}

// deployAgain gives the name of the stack a second life, with the KEK of its first.
func (r *run) deployAgain(ctx context.Context) (string, error) {
	if _, err := r.deployStack(ctx); err != nil {
		return "", err
	}
	if _, err := r.begin(ctx, r.first); err != nil {
		return "", err
	}
	if err := r.rotate(ctx); err != nil {
		return "", err
	}
	s, err := r.moved(ctx, r.first)
	return fmt.Sprintf("rotated to %s", s.Pointer.KEK), err
}

func (r *run) variable(name string) string {
	for _, v := range r.env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}
