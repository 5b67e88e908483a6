package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/sample"
	"github.com/matter-ops/kms-rotation/test/trace"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

// What a paused writer does.
const (
	byInsert = "insert"
	byUpdate = "update"
	byPut    = "put" // without the fence, as no application may

	keyedInsert = "keyed-insert"
	keyedUpdate = "keyed-update"

	afterPause = "written after the pause"
)

// attempt is one write of a paused writer, as it went to DynamoDB.
type attempt struct {
	KEK     kek.ID `json:"kek_id"`
	Refused bool   `json:"refused"`
}

// told is what a paused writer tells its parent: first what it is about to write,
// then how it went.
type told struct {
	About    kek.ID         `json:"about,omitempty"` // the KEK of the row about to be written
	Attempts []attempt      `json:"attempts,omitempty"`
	Err      string         `json:"err,omitempty"` // what the application was told
	Stats    envelope.Stats `json:"stats"`
}

// gate is the DynamoDB client of a paused writer. Before the first write of a row
// once it is armed, it tells what will be written and waits for a line on standard
// input.
type gate struct {
	*dynamodb.Client
	table    string
	armed    bool
	tell     *json.Encoder
	attempts []attempt
}

func (g *gate) pass(item map[string]ddbtypes.AttributeValue) error {
	var id kek.ID
	for _, v := range item { // the key id is the one string that is a UUID
		if s, ok := v.(*ddbtypes.AttributeValueMemberS); ok && len(s.Value) == 36 && strings.Count(s.Value, "-") == 4 {
			id = kek.ID(s.Value)
		}
	}
	g.attempts = append(g.attempts, attempt{KEK: id})
	if len(g.attempts) > 1 {
		return nil
	}
	if err := g.tell.Encode(told{About: id}); err != nil {
		return err
	}
	_, err := os.Stdin.Read(make([]byte, 1))
	return err
}

func (g *gate) passed(err error) {
	g.attempts[len(g.attempts)-1].Refused = err != nil
}

// TransactWriteItems is how embedded rows and records of data keys are inserted.
func (g *gate) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if !g.armed || aws.ToString(in.TransactItems[0].Put.TableName) != g.table {
		return g.Client.TransactWriteItems(ctx, in, o...)
	}
	if err := g.pass(in.TransactItems[0].Put.Item); err != nil {
		return nil, err
	}
	out, err := g.Client.TransactWriteItems(ctx, in, o...)
	g.passed(err)
	return out, err
}

// PutItem is how keyed rows are inserted.
func (g *gate) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if aws.ToString(in.TableName) != g.table || !g.armed { // marks are put, too
		return g.Client.PutItem(ctx, in, o...)
	}
	if err := g.pass(in.Item); err != nil {
		return nil, err
	}
	out, err := g.Client.PutItem(ctx, in, o...)
	g.passed(err)
	return out, err
}

// UpdateItem is how rows are updated, and leases renewed.
func (g *gate) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	if aws.ToString(in.TableName) != g.table || !g.armed { // the background work renews leases meanwhile
		return g.Client.UpdateItem(ctx, in, o...)
	}
	if err := g.pass(in.ExpressionAttributeValues); err != nil {
		return nil, err
	}
	out, err := g.Client.UpdateItem(ctx, in, o...)
	g.passed(err)
	return out, err
}

// pausedRow is the row that a paused writer writes. It counts as a load's.
func pausedRow(run, how string) envelope.Item {
	if strings.HasPrefix(how, "keyed-") {
		return envelope.Item{"note": &ddbtypes.AttributeValueMemberS{Value: load.Prefix + run + "/" + how}}
	}
	return envelope.Item{
		"block":  &ddbtypes.AttributeValueMemberS{Value: load.Prefix + run + "/" + how},
		"number": &ddbtypes.AttributeValueMemberN{Value: "1"},
	}
}

// TestPausedWriterProcess is no test but the writer that is stopped: it seals, is
// held just before its write, and writes when it is let go on.
func TestPausedWriterProcess(t *testing.T) {
	role, run, _ := strings.Cut(os.Getenv("MATTER_TEST_ROLE"), "/")
	how, ok := strings.CutPrefix(role, "paused-")
	if !ok {
		t.Skip("TestPausedWriters starts it")
	}
	s := childSite(t)
	name := "symbols"
	if strings.HasPrefix(how, "keyed-") {
		name = sample.Notes
	}
	cfg, err := s.Table(name)
	if err != nil {
		t.Fatal(err)
	}
	tell := json.NewEncoder(os.NewFile(3, "told"))
	g := &gate{Client: dynamodb.NewFromConfig(s.AWS), table: cfg.Table, tell: tell}
	s.PointerAge, s.LeaseTTL = time.Second, 3*time.Second
	client, _, err := s.Client(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	table, err := client.Table(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = pausedWrite(t.Context(), client, table, cfg, g, how, pausedRow(run, how))
	out := told{Attempts: g.attempts, Stats: client.Stats()}
	if err != nil {
		out.Err = err.Error()
	}
	if err := errors.Join(tell.Encode(out), client.Close()); err != nil {
		t.Fatal(err)
	}
}

func pausedWrite(ctx context.Context, client *envelope.Client, table *envelope.Table, cfg envelope.TableConfig, g *gate, how string, row envelope.Item) error {
	switch how {
	case byInsert, keyedInsert:
		g.armed = true
		return table.Insert(ctx, row, []byte(afterPause))
	case byUpdate, keyedUpdate:
		if err := table.Insert(ctx, row, []byte("written before the pause")); err != nil {
			return err
		}
		g.armed = true
		return table.Update(ctx, row, func(r *envelope.Row) error {
			r.Plaintext = []byte(afterPause)
			return nil
		})
	}
	ref, err := client.Begin(ctx)
	if err != nil {
		return err
	}
	defer ref.End()
	sealed, err := ref.Seal(ctx, []byte(afterPause), cfg.Context)
	if err != nil {
		return err
	}
	row[cfg.KEKID] = &ddbtypes.AttributeValueMemberS{Value: string(sealed.KEKID)}
	row[cfg.WrappedDEK] = &ddbtypes.AttributeValueMemberB{Value: sealed.WrappedDEK}
	row[cfg.Ciphertext] = &ddbtypes.AttributeValueMemberB{Value: sealed.Ciphertext}
	row[cfg.Epoch] = &ddbtypes.AttributeValueMemberN{Value: fmt.Sprint(sealed.Epoch)}
	if err := g.pass(row); err != nil {
		return err
	}
	_, err = g.PutItem(ctx, &dynamodb.PutItemInput{TableName: &cfg.Table, Item: row})
	g.passed(err)
	return err
}

// pausedWriter is such a process as its parent holds it.
type pausedWriter struct {
	how string
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// pauseWriter starts a writer and stops it just before its write. It is told to go
// on at once, but it is stopped.
func (w *world) pauseWriter(t *testing.T, run, how string, under kek.ID) pausedWriter {
	t.Helper()
	cmd, in, out := w.reexec(t, "TestPausedWriterProcess", "paused-"+how+"/"+run)
	p := pausedWriter{how, cmd, in, json.NewDecoder(out)}
	var about told
	if err := p.out.Decode(&about); err != nil || about.About != under {
		t.Fatalf("%s: it is about to write under KEK %q, want %q: %v %s", how, about.About, under, err, about.Err)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("%s: it is not stopped: %v, %v", how, status, err)
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	return p
}

// goOn continues the writer and returns how its write went.
func (p pausedWriter) goOn(t *testing.T) told {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var end told
	if err := errors.Join(p.out.Decode(&end), p.cmd.Wait()); err != nil {
		t.Fatalf("%s: %v", p.how, err)
	}
	return end
}

// TestPausedWriters stops real processes between seal and write, rotates to the
// end, so that the KEK they sealed under is retired and disabled, and lets them go
// on. The fence refuses the insert and the row's epoch the update; both are sealed
// anew under the new KEK and succeed, and the application notices nothing. One that
// writes without the fence leaves an orphan: that is what the test looks for.
func TestPausedWriters(t *testing.T) {
	w := up(t, nil)
	for _, c := range []struct{ run, input string }{
		{"planned", "{}"},
		{"urgent", `{"mode":"emergency","reason":"key material seen in a paste"}`},
	} {
		t.Run(c.run, func(t *testing.T) { w.pauseThrough(t, c.run, c.input) })
	}
}

func (w *world) pauseThrough(t *testing.T, run, input string) {
	t.Helper()
	old := w.view(t, "").Pointer.KEKID
	end := w.record(t)
	var writers []pausedWriter
	for _, how := range []string{byInsert, byUpdate, byPut} {
		writers = append(writers, w.pauseWriter(t, run, how, old))
	}
	if o := w.rotate(t, "paused-"+run, input); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	now := w.view(t, "").Pointer.KEKID
	if leases, err := w.Deployment.Table.Leases(t.Context(), old); err != nil || len(leases) > 0 {
		t.Errorf("leases on KEK %s: %+v, %v; want them revoked", old, leases, err)
	}
	if k, err := w.Deployment.Steps.Keys.Admin.Describe(t.Context(), old); err != nil || k.Enabled {
		t.Errorf("KEK %s: %+v, %v; want it disabled", old, k, err)
	}
	for _, p := range writers {
		done := p.goOn(t)
		want := []attempt{{old, true}, {now, false}}
		if p.how == byPut {
			want = []attempt{{old, false}}
		}
		if done.Err != "" || !slices.Equal(done.Attempts, want) {
			t.Errorf("%s: attempts %+v, want %+v; the application was told %q", p.how, done.Attempts, want, done.Err)
		}
		if p.how != byPut && done.Stats.RefusedWrites != 1 {
			t.Errorf("%s: %d refused writes are counted", p.how, done.Stats.RefusedWrites)
		}
	}
	orphaned(t, end())
	w.oneOrphan(t, run, old)
	w.mustHold(t)
	report, err := w.Set.Check(t.Context(), w.Rows)
	if err != nil {
		t.Fatal(err)
	}
	if report.Under(old) != 0 || report.Guests[now] < 2 {
		t.Errorf("rows by KEK %v, of paused writers %v; want none under %s", report.ByKEK, report.Guests, old)
	}
}

// orphaned requires that the model explains a run up to the write without a fence,
// which breaks NoKeyOrphans.
func orphaned(t *testing.T, events []trace.Event) {
	t.Helper()
	v := tracetest.Check(t, events)[0]
	if v.Violated != "NoKeyOrphans" || v.Event.Effect != trace.Plant || !strings.Contains(v.Event.Row, byPut) {
		t.Errorf("%s\n%+v\nwant the row written past the fence; the run is in %s", v, v.Event, tracetest.Keep(t, events))
	}
}

// oneOrphan reads what the writers wrote: the one without the fence has left an
// orphan, which is reported as such and then removed.
func (w *world) oneOrphan(t *testing.T, run string, old kek.ID) {
	t.Helper()
	s := w.site(t)
	cfg, err := s.Table("symbols")
	if err != nil {
		t.Fatal(err)
	}
	dynamo := dynamodb.NewFromConfig(s.AWS)
	client, err := envelope.New(t.Context(), envelope.Config{ControlTable: s.ControlTable, DynamoDB: dynamo, KMS: kms.NewFromConfig(s.AWS)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	table, err := client.Table(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{byInsert, byUpdate} {
		row, err := table.Get(t.Context(), pausedRow(run, how))
		if err != nil || string(row.Plaintext) != afterPause {
			t.Errorf("%s: the row holds %q, %v", how, row.Plaintext, err)
		}
	}
	orphan := pausedRow(run, byPut)
	if _, err := table.Get(t.Context(), orphan); !errors.Is(err, envelope.ErrOrphanedKey) || client.Stats().OrphanedKeys != 1 {
		t.Errorf("the row written past the fence: %v, %d orphans counted", err, client.Stats().OrphanedKeys)
	}
	report, err := w.Set.Check(t.Context(), w.Rows)
	if err != nil {
		t.Fatal(err)
	}
	if report.Under(old) != 1 || len(report.Wrong) != 1 {
		t.Errorf("%d rows under the retired KEK, wrong %q: the check does not see an orphan", report.Under(old), report.Wrong)
	}
	if _, err := dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &cfg.Table, Key: orphan}); err != nil {
		t.Fatal(err)
	}
}
