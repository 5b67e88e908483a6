package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q", name, text)
	}
	return n
}

// disturbed are the calls at which TestChaos strikes, beside those of effects.
var disturbed = []struct{ function, service, operation string }{
	{"preflight", "dynamodb", "TransactGetItems"},
	{"mint", "kms", "CreateAlias"},
	{"mint", "kms", "DescribeKey"},
	{"dualunwrap", "kms", "Decrypt"},
	{"dualunwrap", "kms", "ReEncrypt"},
	{"switch", "s3", "PutObject"},
	{"drain", "dynamodb", "Query"},
	{"rewrap", "kms", "ReEncrypt"},
	{"rewrap", "kms", "Decrypt"},
	{"rewrap", "dynamodb", "Scan"},
	{"retire", "dynamodb", "Scan"},
	{"retire", "dynamodb", "PutItem"},
	{"retire", "dynamodb", "UpdateItem"},
	{"verify", "s3", "GetObject"},
	{"verify", "kms", "Decrypt"},
}

// strike is a fault at a random call of a random function: mostly its process is
// killed, by SIGKILL, or an answer is lost, now and then the call is rejected.
func strike(r *rand.Rand) map[string]any {
	at := r.IntN(len(effects) + len(disturbed))
	f := map[string]any{"nth": 1 + r.IntN(3)}
	if at < len(effects) {
		f["function"], f["service"], f["operation"] = effects[at].function, effects[at].service, effects[at].operation
		f["nth"] = 1 + r.IntN(2)
	} else {
		d := disturbed[at-len(effects)]
		f["function"], f["service"], f["operation"] = d.function, d.service, d.operation
	}
	switch r.IntN(8) {
	case 0, 1:
		f["mode"], f["when"] = "kill-function", "before"
	case 2, 3:
		f["mode"], f["when"] = "kill-function", "after"
	case 4, 5:
		f["mode"] = "drop-response"
	case 6: // nobody retries it: the rotation is rolled back, or halts
		f["mode"] = "error"
	default:
		f["mode"], f["times"] = "throttle", 1+r.IntN(3)
	}
	return f
}

// TestChaos rotates again and again, one rotation after the other on one stack,
// beside applications that write, while the functions' processes are killed and
// answers are lost at random. An observer reads rows, registry and KMS from outside
// all the time. Each rotation completes, or is rolled back, or halts and completes
// when it is resumed. MATTER_CHAOS_RUNS says how many, MATTER_CHAOS_SEED repeats the
// faults of a run: on real processes, not their timing.
func TestChaos(t *testing.T) {
	w := up(t, nil)
	runs, seed := number(t, "MATTER_CHAOS_RUNS", 1), number(t, "MATTER_CHAOS_SEED", uint64(time.Now().UnixNano()))
	t.Logf("MATTER_CHAOS_SEED=%d", seed)
	cfg := mix("chaos")
	cfg.Rate = 15
	g, client, err := load.Start(t.Context(), w.site(t), cfg, loaded...)
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{world: w}
	ctx, cancel := context.WithCancel(t.Context())
	var beside sync.WaitGroup
	beside.Go(func() { g.Run(ctx) })
	beside.Go(func() { o.run(ctx) })
	defer beside.Wait()
	defer cancel()

	ends, fired := map[string]int{}, map[string]int{}
	for i := range runs {
		r := rand.New(rand.NewPCG(seed, i))
		w.rampage(t, r, fmt.Sprintf("chaos-%d", i), ends, fired)
		if o.report(t); t.Failed() {
			break
		}
	}
	cancel()
	beside.Wait()
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if report := g.Report(); !report.Clean() {
		t.Errorf("traffic: %d wrong reads, %d errors, %d orphans: %q", report.WrongReads, report.Errors, report.Client.OrphanedKeys, report.Problems)
	}
	w.mustHold(t)
	t.Logf("%d runs ended %v; faults that fired: %v; the observer looked %d times at %d rows, %d of them twice",
		runs, ends, fired, o.looks, o.rows, o.again)
}

// rampage is one rotation under random faults.
func (w *world) rampage(t *testing.T, r *rand.Rand, name string, ends, fired map[string]int) {
	t.Helper()
	var struck []string
	for range 4 + r.IntN(6) {
		f := strike(r)
		struck = append(struck, fmt.Sprint(f))
		w.inject(t, f)
	}
	input := "{}"
	if r.IntN(4) == 0 {
		input = `{"mode":"emergency","reason":"chaos"}`
	}
	recorded := w.record(t)
	o := w.rotate(t, name, input)
	for _, f := range w.faults(t) {
		if f.Fired > 0 {
			fired[f.Function]++
		}
	}
	w.control(t, http.MethodDelete, "/_local/faults", nil)
	v := w.view(t, name)
	end := "refused"
	if v.Rotation != nil {
		end = string(v.Rotation.Phase)
	}
	if v.Lock == name { // it halted, and a person resumes it
		end = "halted at " + end
		o = w.rotate(t, name+"-resumed", fmt.Sprintf(`{"resume":%q}`, name))
		if v = w.view(t, name); v.Rotation.Phase != kek.Completed {
			t.Errorf("%s was resumed and is at %s: %s", name, v.Rotation.Phase, describe(o))
		}
	}
	ends[end]++
	if v.Lock != "" || v.Rotation != nil && !v.Rotation.Phase.Final() {
		t.Errorf("%s: rotation %+v, lock %q: %s", name, v.Rotation, v.Lock, describe(o))
	}
	if o.Status == types.ExecutionStatusSucceeded && v.Rotation.Phase != kek.Completed {
		t.Errorf("%s: the execution succeeded, the rotation is %s", name, v.Rotation.Phase)
	}
	w.mustHold(t)
	t.Logf("%s %s: %s", name, input, end)
	tracetest.Accepted(t, recorded())
	if t.Failed() {
		t.Logf("it had the faults\n%s", strings.Join(struck, "\n"))
	}
}

// observer looks for orphans from outside while a rotation runs.
//
// It cannot read a row, the registry and KMS at one moment. So it reads the row,
// then what its KEK is, and if that is not usable the row again: KEKs only go
// forward, and so do keys that nobody enables by hand, so a row that still names
// the KEK after that KEK was seen dead was an orphan when it was read the second
// time. No alarm is false; an orphan that lives less than a look is not seen.
type observer struct {
	*world
	mu                 sync.Mutex
	problems           []string
	looks, rows, again int
}

func (o *observer) cry(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.problems = append(o.problems, fmt.Sprintf(format, args...))
}

func (o *observer) report(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.problems {
		t.Error(p)
	}
	if o.looks == 0 {
		t.Error("the observer has not looked once")
	}
}

func (o *observer) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := o.pointer(ctx)
		var defs []kek.Source
		if err == nil {
			defs, err = o.Deployment.Sources(ctx)
		}
		for _, def := range defs {
			var src source.Driver
			if err == nil {
				src, err = o.Deployment.Steps.OpenSource(def)
			}
			if err == nil {
				err = o.source(ctx, src)
			}
		}
		if err != nil && ctx.Err() == nil {
			o.cry("the observer cannot read: %v", err)
			return
		}
		o.mu.Lock()
		o.looks++
		o.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// usable says what is wrong with a KEK as one that rows may name; "" is nothing.
func (o *observer) usable(ctx context.Context, id kek.ID) (string, error) {
	keks, err := o.Deployment.Table.KEKs(ctx)
	if err != nil {
		return "", err
	}
	state := kek.State("")
	for _, k := range keks {
		if k.ID == id {
			state = k.State
		}
	}
	k, err := o.Deployment.Steps.Keys.Admin.Describe(ctx, id)
	switch {
	case err != nil:
		return "", err
	case !state.Resolves() || !k.Enabled:
		return fmt.Sprintf("%q in the registry, %s in KMS", state, k.State), nil
	}
	return "", nil
}

// pointer checks PointerUsable.
func (o *observer) pointer(ctx context.Context) error {
	before, err := o.Deployment.Table.Load(ctx, "")
	if err != nil {
		return err
	}
	wrong, err := o.usable(ctx, before.Pointer.KEKID)
	if err != nil || wrong == "" {
		return err
	}
	after, err := o.Deployment.Table.Load(ctx, "")
	if err == nil && after.Pointer.KEKID == before.Pointer.KEKID {
		o.cry("PointerUsable: the pointer names %s, which is %s", before.Pointer.KEKID, wrong)
	}
	return err
}

// source checks NoKeyOrphans. The KEKs of a page are looked up after the page was
// read, each once.
func (o *observer) source(ctx context.Context, src source.Driver) error {
	for cursor := ""; ; {
		page, err := src.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor})
		if err != nil {
			return err
		}
		verdicts := map[kek.ID]string{}
		for _, row := range page.Rows {
			wrong, known := verdicts[row.KEK]
			if !known {
				if wrong, err = o.usable(ctx, row.KEK); err != nil {
					return err
				}
				verdicts[row.KEK] = wrong
			}
			if wrong != "" {
				if err := o.lookAgain(ctx, src, row, wrong); err != nil {
					return err
				}
			}
		}
		o.mu.Lock()
		o.rows += len(page.Rows)
		o.mu.Unlock()
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}

func (o *observer) lookAgain(ctx context.Context, src source.Driver, row source.Row, wrong string) error {
	now, there, err := src.Reread(ctx, row, false)
	if err != nil {
		return err
	}
	o.mu.Lock()
	o.again++
	o.mu.Unlock()
	if there && now.KEK == row.KEK {
		same := "the same"
		if !bytes.Equal(now.WrappedDEK, row.WrappedDEK) {
			same = "another"
		}
		o.cry("NoKeyOrphans: row %s of %s is under %s, which is %s (%s data key)", row.ID, src.Name(), row.KEK, wrong, same)
	}
	return nil
}
