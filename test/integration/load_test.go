package integration

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/sample"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

// loadTime is how long the load runs at least; the rotations end when they end.
func loadTime(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("MATTER_LOAD_SECONDS")
	if v == "" {
		return 15 * time.Second
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("MATTER_LOAD_SECONDS=%q", v)
	}
	return time.Duration(n) * time.Second
}

// site is a deployment as its applications know it. Their leases are short, so
// that drain need not wait for long.
func site(t *testing.T, c app.Config, cfg aws.Config, getenv func(string) string) load.Site {
	t.Helper()
	sources, err := app.Seed(getenv)
	if err != nil {
		t.Fatal(err)
	}
	if text := getenv(keyedSources); text != "" {
		var keyed []kek.Source
		if err := json.Unmarshal([]byte(text), &keyed); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, keyed...)
	}
	return load.Site{
		AWS: cfg, ControlTable: c.ControlTable, AuditBucket: c.AuditBucket, Sources: sources, PointerAge: 3 * time.Second, LeaseTTL: 10 * time.Second,
	}
}

// keyedSources tells a child process the sources that the template does not name.
const keyedSources = "MATTER_TEST_SOURCES"

// site is the stack's.
func (w *world) site(t *testing.T) load.Site {
	t.Helper()
	env := w.Env()
	env[keyedSources] = w.keyedSources(t)
	return site(t, w.Deployment.Config, w.ApplicationConfig(), func(name string) string { return env[name] })
}

// keyedSources is the registered sources of keyed rows and their key table.
func (w *world) keyedSources(t *testing.T) string {
	t.Helper()
	all, err := w.Deployment.Sources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(slices.DeleteFunc(all, func(s kek.Source) bool { return s.Name != sample.Notes && s.Name != sample.Keys }))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// childSite is the site of a child process.
func childSite(t *testing.T) load.Site {
	t.Helper()
	c, err := app.FromEnv(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := app.AWSConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return site(t, c, cfg, os.Getenv)
}

func mix(run string) load.Config {
	return load.Config{
		Run: run, Writers: 2, Updaters: 3, Deleters: 1, Readers: 4, Rows: 32, MinSize: 0, MaxSize: 4000, Rate: 40,
		Held: 2 * time.Second, Now: time.Now,
	}
}

var loaded = []string{"characters", "symbols"}

// reexec starts this test binary again, for one test in the environment of the
// stack. Fd 3 of the child is what the reader reads; it gets role in
// MATTER_TEST_ROLE.
func (w *world) reexec(t *testing.T, test, role string) (*exec.Cmd, io.WriteCloser, io.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), "MATTER_TEST_ROLE="+role)
	for k, v := range w.Env() {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Env = append(cmd.Env, "AWS_ACCESS_KEY_ID="+localaws.ApplicationKey, keyedSources+"="+w.keyedSources(t))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, child, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stderr, os.Stderr, []*os.File{child}
	err = cmd.Start()
	_ = child.Close() // the child has it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	return cmd, in, out
}

// TestTrafficProcess is no test but the load as a process of its own: it runs
// until its standard input ends.
func TestTrafficProcess(t *testing.T) {
	if os.Getenv("MATTER_TEST_ROLE") != "traffic" {
		t.Skip("TestLoad starts it")
	}
	g, client, err := load.Start(t.Context(), childSite(t), mix("there"), loaded...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	g.Run(ctx)
	if err := errors.Join(client.Close(), json.NewEncoder(os.NewFile(3, "report")).Encode(g.Report())); err != nil {
		t.Fatal(err)
	}
}

// TestLoad: traffic of two processes goes on through a rotation and an emergency
// rotation. It sees no wrong read, no error and no orphan, and nothing stays under
// a KEK that is gone.
func TestLoad(t *testing.T) {
	w := up(t, nil)
	end := time.Now().Add(loadTime(t))
	g, client, err := load.Start(t.Context(), w.site(t), mix("here"), loaded...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var here sync.WaitGroup
	here.Go(func() { g.Run(ctx) })
	defer here.Wait()
	defer cancel()
	cmd, in, out := w.reexec(t, "TestTrafficProcess", "traffic")
	w.awaitLeases(t, 2)

	gone := []kek.ID{w.view(t, "").Pointer.KEKID}
	end1 := w.record(t)
	if o := w.rotate(t, "planned", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Error(describe(o))
	}
	planned := end1()
	gone = append(gone, w.view(t, "").Pointer.KEKID)
	end2 := w.record(t)
	if o := w.rotate(t, "urgent", `{"mode":"emergency","reason":"key material seen in a paste"}`); o.Status != types.ExecutionStatusSucceeded {
		t.Error(describe(o))
	}
	urgent := end2()
	time.Sleep(time.Until(end))

	cancel()
	here.Wait()
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	var there load.Report
	if err := errors.Join(in.Close(), json.NewDecoder(out).Decode(&there), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	w.judge(t, []load.Report{g.Report(), there}, gone)
	w.mustHold(t)
	tracetest.Accepted(t, planned, urgent)
}

// awaitLeases waits until so many processes hold a lease on the pointer's KEK.
func (w *world) awaitLeases(t *testing.T, n int) {
	t.Helper()
	id := w.view(t, "").Pointer.KEKID
	for limit := time.Now().Add(time.Minute); ; time.Sleep(watchEvery) {
		leases, err := w.Deployment.Table.Leases(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if len(leases) >= n {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d leases on KEK %s, want %d", len(leases), id, n)
		}
	}
}

// judge checks what loads have seen, and that no row names a KEK that is gone.
func (w *world) judge(t *testing.T, reports []load.Report, gone []kek.ID) {
	t.Helper()
	current := w.view(t, "").Pointer.KEKID
	rows := 0
	for _, r := range reports {
		t.Logf("%s: %d operations in %s, %.0f/s, %d wrong reads, %d errors; %+v", r.Run, r.Count, r.Elapsed, r.PerSecond, r.WrongReads, r.Errors, r.Client)
		for _, o := range r.Operations {
			t.Logf("  %s: %d, p50 %s, p99 %s, max %s", o.Kind, o.Count, o.P50, o.P99, o.Max)
		}
		if !r.Clean() {
			t.Errorf("%s: %d wrong reads, %d errors, %d orphans, done %v: %q", r.Run, r.WrongReads, r.Errors, r.Client.OrphanedKeys, r.Done, r.Problems)
		}
		if len(r.Rows) != 1 || r.Rows[current] == 0 {
			t.Errorf("%s: rows by KEK %v, want all under %s", r.Run, r.Rows, current)
		}
		rows += r.Rows[current]
	}
	report, err := w.Set.Check(t.Context(), w.Rows)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range gone {
		if n := report.Under(id); n > 0 || id == current {
			t.Errorf("%d rows under KEK %s, which is retired", n, id)
		}
	}
	if report.Guests[current] != rows {
		t.Errorf("%d rows of the loads in the tables, they know of %d", report.Guests[current], rows)
	}
}
