package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/localaws"
)

const (
	rowsHere   = 3000 // rows without MATTER_ROWS
	rowsOfKey  = 100  // rows of a data key
	killsOfAll = 2
)

// TestManyRows rotates as many rows as MATTER_ROWS says through the shipped stack. All workers are
// killed with SIGKILL twice while they rewrap: no write is redone, no row is left out, and the
// memory of the workers does not grow with the rows. It prints how long each half took:
//
//	MATTER_ROWS=512000 go test ./test/integration -run TestManyRows -v -timeout 2h
func TestManyRows(t *testing.T) {
	n := rowsHere
	if more, err := strconv.Atoi(os.Getenv("MATTER_ROWS")); err == nil {
		n = more
	}
	// Nothing runs beside it: it kills every worker that this process has started.
	w := alone(t, localaws.Options{Parameters: map[string]string{"Segments": "8", "KmsRate": "100000", "VerifyDataKeys": "every"}}, "many")
	cfg := dynamosource.Config{
		Name: "many", Table: w.Name + "-many", KEKID: "kek_id", WrappedDEK: "wrapped_dek", Ciphertext: "ciphertext",
		Epoch: "kek_epoch", Version: "version", Context: map[string]string{"table": "many"},
	}
	w.newTable(t, cfg.Table)
	w.fillTable(t, cfg, n)
	w.define(t, cfg)
	arn := w.start(t, "many", "{}")
	began := time.Now()
	p := w.followRewrap(t, arn, int64(n))
	if p.status != types.ExecutionStatusSucceeded {
		t.Fatalf("%s after %s", p.status, time.Since(began))
	}
	t.Logf("%d rows in %.0f s: the first half of the rewrap took %.1f s, the second %.1f s; workers had %d MiB at half and %d MiB at most; %d workers were killed",
		n, time.Since(began).Seconds(), p.half.Seconds(), (p.whole - p.half).Seconds(), p.atHalf>>20, p.peak>>20, p.killed)
	if p.killed < killsOfAll {
		t.Errorf("only %d workers were killed", p.killed)
	}
	if p.peak > 512<<20 {
		t.Errorf("a worker had %d MiB", p.peak>>20)
	}
	if n >= 100_000 && (p.whole-p.half).Seconds() > 1.3*p.half.Seconds() {
		t.Errorf("the second half took %s, the first %s", p.whole-p.half, p.half)
	}
	w.writtenOnce(t, cfg, n, w.view(t, "many").Rotation.NewKEK)
	w.mustHold(t)
}

// fillTable writes rows as an application of before has, some of each data key.
func (w *world) fillTable(t *testing.T, cfg dynamosource.Config, n int) {
	t.Helper()
	old := w.view(t, "").Pointer
	first := make(chan int)
	var all sync.WaitGroup
	var failed atomic.Pointer[error]
	fail := func(err error) { failed.CompareAndSwap(nil, &err) }
	for range 4 {
		all.Go(func() {
			for at := range first {
				dek, wrapped, err := w.Set.KMS.GenerateDataKey(t.Context(), old.KEKID, map[string]string{"table": "many"})
				if err != nil {
					fail(err)
					continue
				}
				clear(dek)
				var puts []ddbtypes.WriteRequest
				for i := at; i < min(at+rowsOfKey, n); i++ {
					puts = append(puts, ddbtypes.WriteRequest{PutRequest: &ddbtypes.PutRequest{Item: item{
						"id": text(fmt.Sprintf("row-%07d", i)), cfg.KEKID: text(string(old.KEKID)), cfg.WrappedDEK: &ddbtypes.AttributeValueMemberB{Value: wrapped},
						cfg.Ciphertext: &ddbtypes.AttributeValueMemberB{Value: make([]byte, 256)}, // no payload is opened
						cfg.Epoch:      digits(old.Epoch), cfg.Version: digits(1),
					}}})
				}
				for len(puts) > 0 {
					some := min(25, len(puts))
					if _, err := w.Set.Dynamo.BatchWriteItem(t.Context(), &dynamodb.BatchWriteItemInput{RequestItems: map[string][]ddbtypes.WriteRequest{cfg.Table: puts[:some]}}); err != nil {
						fail(err)
					}
					puts = puts[some:]
				}
			}
		})
	}
	for at := 0; at < n; at += rowsOfKey {
		first <- at
	}
	close(first)
	all.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
}

func digits(n int64) ddbtypes.AttributeValue {
	return &ddbtypes.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

// rewrapped is what was seen of a rewrap.
type rewrapped struct {
	status       types.ExecutionStatus
	half, whole  time.Duration // until so much was rewrapped
	atHalf, peak int64         // bytes of the largest worker
	killed       int
}

// followRewrap looks at a rotation until it ends, and kills all workers of the rewrap at one and
// at two thirds.
func (w *world) followRewrap(t *testing.T, arn string, rows int64) (r rewrapped) {
	t.Helper()
	var began time.Time
	kills := 0
	for ; ; time.Sleep(20 * time.Millisecond) {
		d, err := w.sfn.DescribeExecution(t.Context(), &sfn.DescribeExecutionInput{ExecutionArn: &arn})
		if err != nil {
			t.Fatal(err)
		}
		if d.Status != types.ExecutionStatusRunning {
			r.status = d.Status
			return r
		}
		v, err := w.Deployment.Table.Load(t.Context(), "many")
		if err != nil {
			t.Fatal(err)
		}
		if v.Rotation == nil || v.Rotation.Phase != kek.Drained {
			if !began.IsZero() && r.whole == 0 {
				r.whole = time.Since(began)
			}
			continue
		}
		if began.IsZero() {
			began = time.Now()
		}
		moved := w.countMoved(t)
		workers := listWorkers(t, "rewrap")
		for _, p := range workers {
			r.peak = max(r.peak, p.bytes)
		}
		if moved >= rows/2 && r.half == 0 {
			r.half = time.Since(began)
			r.atHalf = r.peak
		}
		if kills < killsOfAll && moved > rows*int64(kills+1)/int64(killsOfAll+1) {
			kills++
			for _, p := range workers {
				if syscall.Kill(p.pid, syscall.SIGKILL) == nil {
					r.killed++
				}
			}
		}
	}
}

// countMoved returns how many rows the rewrap has seen, by its checkpoints.
func (w *world) countMoved(t *testing.T) int64 {
	t.Helper()
	tally, _, err := console.SumCheckpoints(t.Context(), w.Deployment.Table, func(context.Context, rotation.Checkpoint) (rotation.Proof, error) {
		return rotation.Proven, nil // progress alone
	}, *w.view(t, "many").Rotation, rotation.PassRewrap)
	if err != nil {
		t.Fatal(err)
	}
	return tally.Scanned
}

// worker is a process of a function that this test's AWS has started.
type worker struct {
	pid   int
	bytes int64 // of its memory that is resident, at most so far
}

// listWorkers lists the processes of a function: children of this process.
func listWorkers(t *testing.T, function string) []worker {
	t.Helper()
	var out []worker
	entries, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range entries {
		target, err := os.Readlink(exe)
		if err != nil || !strings.HasSuffix(target, filepath.Join(function, "bootstrap")) {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(exe), "status"))
		if err != nil || statusField(status, "PPid") != int64(os.Getpid()) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
		out = append(out, worker{pid, statusField(status, "VmHWM") << 10})
	}
	return out
}

// statusField returns a number of /proc/<pid>/status; 0 if it is not there.
func statusField(status []byte, name string) int64 {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return n
		}
	}
	return 0
}

// writtenOnce checks that each row is under a KEK, and was written once since it was made.
func (w *world) writtenOnce(t *testing.T, cfg dynamosource.Config, n int, under kek.ID) {
	t.Helper()
	found, wrong := 0, 0
	pages := dynamodb.NewScanPaginator(w.Set.Dynamo, &dynamodb.ScanInput{
		TableName: &cfg.Table, ConsistentRead: aws.Bool(true), ProjectionExpression: aws.String("kek_id, version"),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.Items {
			version, _ := i["version"].(*ddbtypes.AttributeValueMemberN)
			if found++; stringIn(i["kek_id"]) != string(under) || version == nil || version.Value != "2" {
				if wrong++; wrong < 4 {
					t.Errorf("a row is under %s, version %v", stringIn(i["kek_id"]), version)
				}
			}
		}
	}
	if found != n || wrong > 0 {
		t.Errorf("%d of %d rows, of which %d are not under the new KEK or were written twice", found, n, wrong)
	}
}
