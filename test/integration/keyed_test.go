package integration

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/sample"
)

// TestKeyedTraffic rotates while traffic works on embedded and keyed rows, and while processes
// are stopped between seal and write. Those that continue after a normal rotation write what they
// sealed, without a refusal: the record of their data key was rewrapped. One that continues after
// a later emergency inserts under the exposed data key, and its update is refused and sealed
// again under a later one. Every row opens.
func TestKeyedTraffic(t *testing.T) {
	w := up(t, nil)
	if err := w.AddKeyed(t.Context()); err != nil {
		t.Fatal(err)
	}
	g, client, err := load.Start(t.Context(), w.site(t), mix("keyed"), "characters", sample.Notes)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var traffic sync.WaitGroup
	traffic.Go(func() { g.Run(ctx) })
	defer traffic.Wait()
	defer cancel()
	pause := func(run string) (all []pausedWriter) {
		for _, how := range []string{keyedInsert, keyedUpdate} {
			all = append(all, w.pauseWriter(t, run, how, ""))
		}
		return all
	}
	soon, late := pause("soon"), pause("late")
	first := w.view(t, "").Pointer.KEKID
	if o := w.rotate(t, "planned", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	second := w.view(t, "").Pointer.KEKID
	w.goOn(t, soon, 0, 0)
	if o := w.rotate(t, "urgent", `{"mode":"emergency","reason":"key material seen in a paste"}`); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	now := w.view(t, "").Pointer.KEKID
	w.goOn(t, late, 0, 1)
	cancel()
	traffic.Wait()
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	r := g.Report()
	if !r.Clean() || len(r.Rows) != 1 || r.Rows[now] == 0 {
		t.Errorf("%d wrong reads, %d errors, rows %v: %q", r.WrongReads, r.Errors, r.Rows, r.Problems)
	}
	w.mustHold(t)
	report, err := w.Set.Check(t.Context(), w.Rows)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Wrong) > 0 || report.Under(first)+report.Under(second) > 0 || report.Guests[now] != r.Rows[now]+4 {
		t.Errorf("rows by KEK %v and %v, the traffic knows of %v; wrong %q", report.ByKEK, report.Guests, r.Rows, report.Wrong)
	}
	w.readPaused(t, "soon", "late")
}

// goOn continues writers, of which the insert and the update are refused as often as given.
func (w *world) goOn(t *testing.T, writers []pausedWriter, inserts, updates int) {
	t.Helper()
	for _, p := range writers {
		refused := inserts
		if p.how == keyedUpdate {
			refused = updates
		}
		want := append(slices.Repeat([]attempt{{Refused: true}}, refused), attempt{})
		if done := p.goOn(t); done.Err != "" || !slices.Equal(done.Attempts, want) {
			t.Errorf("%s: attempts %+v, want %+v; the application was told %q", p.how, done.Attempts, want, done.Err)
		}
	}
}

// openNotes opens the table of keyed rows with a client of its own.
func (w *world) openNotes(t *testing.T, s load.Site) (*envelope.Client, *envelope.Table) {
	t.Helper()
	cfg, err := s.Table(sample.Notes)
	if err != nil {
		t.Fatal(err)
	}
	client, _, err := s.Client(t.Context(), dynamodb.NewFromConfig(s.AWS))
	if err != nil {
		t.Fatal(err)
	}
	table, err := client.Table(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client, table
}

// readPaused reads what paused writers have written.
func (w *world) readPaused(t *testing.T, runs ...string) {
	t.Helper()
	client, table := w.openNotes(t, w.site(t))
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, run := range runs {
		for _, how := range []string{keyedInsert, keyedUpdate} {
			row, err := table.Get(t.Context(), pausedRow(run, how))
			if err != nil || string(row.Plaintext) != afterPause {
				t.Errorf("%s, %s: the row holds %q, %v", run, how, row.Plaintext, err)
			}
		}
	}
}
