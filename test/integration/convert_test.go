package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/source/deks"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

const (
	parcelRows = 600
	parcelKill = 60 // rows that the first process has converted when it is killed
)

// parcels is a table that is converted.
type parcels struct {
	*world
	t       *testing.T
	cfg     rowschema.Schema
	updates [parcelRows]atomic.Int64
}

// definition is the definition of the table, as an operator and an application write it.
func (p *parcels) definition(envelope string) string {
	cfg := p.cfg
	cfg.Envelope = envelope
	return cfg.Source().Definition
}

// register gives the source another definition by the tool.
func (p *parcels) register(sh shell, envelope string) {
	p.t.Helper()
	sh.must(p.t, 0, "source", "add", "--file", definitionFile(p.t, []byte(p.definition(envelope))), "--confirm")
}

// open returns the table for an application process that writes rows of a kind.
func (p *parcels) open(kind string) (*envelope.Client, *envelope.Table) {
	p.t.Helper()
	cfg := p.ApplicationConfig()
	c, err := envelope.New(p.t.Context(), envelope.Config{
		ControlTable: p.Env()["MATTER_CONTROL_TABLE"], DynamoDB: dynamodb.NewFromConfig(cfg), KMS: kms.NewFromConfig(cfg), PointerAge: 3 * time.Second, LeaseTTL: 10 * time.Second,
		Keys: &envelope.KeyTable{
			Table: p.Outputs["KeyTableName"], Bucket: p.Outputs["AuditBucketName"], S3: s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }),
		},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	var def envelope.TableConfig
	if err := strictjson.Unmarshal([]byte(p.definition(kind)), &def); err != nil {
		p.t.Fatal(err)
	}
	table, err := c.Table(p.t.Context(), def)
	if err != nil {
		p.t.Fatal(err)
	}
	return c, table
}

// use lets a process of an application use the table while f runs: it updates and reads rows.
func (p *parcels) use(kind string, f func()) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.t.Context())
	c, table := p.open(kind)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			n := i * 37 % parcelRows
			key := item{"id": text(rowName(n))}
			err := table.Update(p.t.Context(), key, func(r *envelope.Row) error { r.Plaintext = append(r.Plaintext, '+'); return nil })
			if errors.Is(err, envelope.ErrContended) {
				continue
			}
			var row envelope.Row
			if err == nil {
				p.updates[n].Add(1)
				row, err = table.Get(p.t.Context(), key)
			}
			if err != nil || string(row.Plaintext) != p.want(n) {
				p.t.Errorf("%s holds %q, %v; want %q", rowName(n), row.Plaintext, err, p.want(n))
				return
			}
		}
	})
	f()
	cancel()
	wg.Wait()
	if err := c.Close(); err != nil {
		p.t.Error(err)
	}
}

func (p *parcels) want(n int) string {
	return rowName(n) + strings.Repeat("+", int(p.updates[n].Load()))
}

// check opens every row.
func (p *parcels) check(kind string) {
	p.t.Helper()
	c, table := p.open(kind)
	defer func() { _ = c.Close() }()
	for n := range parcelRows {
		if row, err := table.Get(p.t.Context(), item{"id": text(rowName(n))}); err != nil || string(row.Plaintext) != p.want(n) {
			p.t.Fatalf("%s holds %q, %v; want %q", rowName(n), row.Plaintext, err, p.want(n))
		}
	}
}

// count counts the keyed rows and the embedded ones.
func (p *parcels) count() (keyed, embedded int) {
	p.t.Helper()
	pages := dynamodb.NewScanPaginator(p.Set.Dynamo, &dynamodb.ScanInput{TableName: &p.cfg.Table, ConsistentRead: aws.Bool(true)})
	for pages.HasMorePages() {
		out, err := pages.NextPage(p.t.Context())
		if err != nil {
			p.t.Fatal(err)
		}
		for _, i := range out.Items {
			if i[p.cfg.DEKID] != nil {
				keyed++
			} else {
				embedded++
			}
		}
	}
	return keyed, embedded
}

// killed starts a conversion and kills its process with SIGKILL once some rows are converted.
func (p *parcels) killed(sh shell) {
	p.t.Helper()
	root, err := backend.Root()
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(root, "bin", "matter"), "ops", "convert", "--source", "parcels", "--confirm")
	cmd.Env = os.Environ()
	env := p.Env()
	maps.Copy(env, sh.over)
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		byClients := 1 // and those whose update is under way
		for n := range p.updates {
			byClients += int(min(p.updates[n].Load(), 1))
		}
		if keyed, _ := p.count(); keyed-byClients >= parcelKill {
			break
		}
		if time.Now().After(deadline) {
			p.t.Fatal("nothing is converted")
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = cmd.Wait()
}

// person is a shell of somebody who has the rights of examples/convert and no others.
func (p *parcels) person() shell {
	p.t.Helper()
	out, err := iam.NewFromConfig(p.AWSConfig()).CreatePolicy(p.t.Context(), &iam.CreatePolicyInput{PolicyName: aws.String("convert"), PolicyDocument: aws.String(p.policyText())})
	if err != nil {
		p.t.Fatal(err)
	}
	cfg, err := p.ConfigWith(p.t.Context(), aws.ToString(out.Policy.Arn))
	if err != nil {
		p.t.Fatal(err)
	}
	who, err := cfg.Credentials.Retrieve(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return p.shell(map[string]string{"AWS_ACCESS_KEY_ID": who.AccessKeyID, "AWS_SECRET_ACCESS_KEY": who.SecretAccessKey})
}

// policyText is the policy of examples/convert, filled in for the stack.
func (p *parcels) policyText() string {
	p.t.Helper()
	root, err := backend.Root()
	if err != nil {
		p.t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "examples", "convert", "policy.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.NewReplacer(
		"REGION", p.Region, "ACCOUNT", backend.Account, "STACK", p.Name, "AUDIT_BUCKET", p.Outputs["AuditBucketName"],
		"KEY_TABLE", p.Outputs["KeyTableName"], "CONTROL_TABLE", p.Env()["MATTER_CONTROL_TABLE"], "TABLE", p.cfg.Table,
	).Replace(string(b))
}

// TestConvert: the tool that ships converts a table that an application uses. It is killed half
// way and run again, a rotation runs beside it, an emergency after it, and it converts back: no
// row is wrong, no update is lost. It does all that with the rights of examples/convert.
func TestConvert(t *testing.T) {
	w := upWith(t, localaws.Options{}, "parcels")
	p := &parcels{world: w, t: t, cfg: rowschema.Schema{
		Name: "parcels", Table: w.Name + "-parcels", KEKID: "kek_id", WrappedDEK: "dek", DEKID: "dek_id", Ciphertext: "data", Version: "version",
		Context: map[string]string{"table": "parcels"}, Bind: map[string]string{"id": "$id"},
	}}
	w.newTable(t, p.cfg.Table)
	def := deks.Config{Table: w.Outputs["KeyTableName"]}.Source()
	def.Name = "keys"
	if _, err := w.Deployment.Steps.AddSource(t.Context(), def); err != nil {
		t.Fatal(err)
	}
	sh := w.shell(nil)
	p.register(sh, "embedded")
	c, table := p.open("embedded")
	for n := 0; n < parcelRows; n += 60 {
		var rows []envelope.Row
		for i := n; i < n+60; i++ {
			rows = append(rows, envelope.Row{Item: item{"id": text(rowName(i))}, Plaintext: []byte(rowName(i))})
		}
		if err := table.InsertAll(t.Context(), rows); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	mentions(t, "convert", sh.must(t, 1, "convert", "--source", "parcels"), "its definition says that embedded rows are written", "then register that definition")
	p.register(sh, "keyed")
	before := w.dump(t, p.cfg.Table)
	person := p.person()
	dry := person.must(t, 0, "convert", "--source", "parcels")
	mentions(t, "a dry run", dry, fmt.Sprintf("%10d  embedded rows", parcelRows), fmt.Sprintf("%10d  rows would be sealed under data keys of keyed rows", parcelRows),
		"         1  data keys would be made, about", "write units, about, about $0.00", "nothing was written: this was a dry run", "next: matter ops convert --source parcels --confirm")
	if w.dump(t, p.cfg.Table) != before {
		t.Error("a dry run has written")
	}

	p.use("keyed", func() {
		p.killed(person)
		keyed, embedded := p.count()
		if embedded == 0 {
			t.Error("it was not killed before its end")
		}
		t.Logf("killed after %d of %d rows", keyed, keyed+embedded)
		arn := w.start(t, "beside", "{}")
		person.must(t, 0, "convert", "--source", "parcels", "--confirm")
		if o := w.finish(t, arn); o.Status != types.ExecutionStatusSucceeded {
			t.Fatal(describe(o))
		}
	})
	if keyed, embedded := p.count(); embedded > 0 {
		t.Errorf("%d keyed rows, %d embedded", keyed, embedded)
	}
	p.check("keyed")
	var records []struct {
		Type string            `json:"type"`
		Body map[string]string `json:"body"`
	}
	sh.decode(t, &records, 0, "audit", "show", "-o", "json")
	var states []string
	for _, r := range records {
		if r.Type == rotation.EventConverted {
			states = append(states, r.Body["state"])
		}
	}
	if got := strings.Join(states, " "); got != "begun begun done" {
		t.Errorf("the records of the conversions say %q", got)
	}

	if o := w.rotate(t, "emergency", `{"mode":"emergency","reason":"key material seen in a paste"}`); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	p.check("keyed")

	// A row that names no KEK becomes a keyed one by adoption.
	bare := w.get(t, p.cfg.Table, rowName(0))
	wrapped, sealed := w.sealRow(t, w.view(t, "").Pointer.KEKID, p.want(0), p.cfg.Context, map[string]string{"table": "parcels", "id": rowName(0)})
	delete(bare, "dek_id")
	delete(bare, "kek_epoch")
	bare["dek"], bare["data"] = blob(wrapped), blob(sealed)
	w.put(t, p.cfg.Table, bare)
	mentions(t, "adopt", sh.must(t, 0, "adopt", "--source", "parcels", "--confirm"), "1 rows are keyed ones now")
	p.check("keyed")

	p.register(sh, "embedded")
	p.use("embedded", func() {
		arn := w.start(t, "back", "{}")
		person.must(t, 0, "convert", "--source", "parcels", "--to", "embedded", "--confirm")
		if o := w.finish(t, arn); o.Status != types.ExecutionStatusSucceeded {
			t.Fatal(describe(o))
		}
	})
	if keyed, embedded := p.count(); keyed > 0 {
		t.Errorf("%d keyed rows, %d embedded", keyed, embedded)
	}
	p.check("embedded")
	if o := w.rotate(t, "after", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	p.check("embedded")
}
