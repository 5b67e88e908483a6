package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/test/load"
)

type loadFlags struct {
	load.Config
	sources    []string
	size       string
	duration   time.Duration
	pointerAge time.Duration
	leaseTTL   time.Duration
	keep       bool
}

func newLoad() *cobra.Command {
	var f loadFlags
	cmd := &cobra.Command{
		Use:   "load --source NAME",
		Short: "Write, update, delete and read rows through package envelope, and check every read",
		Long: `Runs live traffic on rows of its own in a registered table, as an application
would: through the envelope client, with a lease, behind the write fence. Start it,
rotate, and see that nothing was noticed. Every read is checked against what was
written: a lost update, a write taken back, a deleted row that is there again and a
wrong payload are wrong reads.

Its rows are those whose partition key begins with matter-load/; they are deleted
at the end. Ctrl-C ends it as --duration does.

Exit code: 0 if every kind of operation was done and there was no wrong read, no
error and no orphaned row; else 1.`,
		Example: `  matter-local load --source symbols --duration 1m
  matter-local load --source symbols --source characters --rate 0 --duration 30s -o json`,
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.sources, "source", nil, "a registered table by name; may be repeated")
	fl.Float64Var(&f.Rate, "rate", 100, "operations per second of all workers together; 0 for as fast as they can")
	fl.DurationVar(&f.duration, "duration", time.Minute, "how long; 0 until Ctrl-C")
	fl.IntVar(&f.Writers, "writers", 2, "workers that insert rows")
	fl.IntVar(&f.Updaters, "updaters", 3, "workers that update rows")
	fl.IntVar(&f.Deleters, "deleters", 1, "workers that delete rows")
	fl.IntVar(&f.Readers, "readers", 4, "workers that read rows")
	fl.IntVar(&f.Rows, "rows", 64, "rows at most")
	fl.StringVar(&f.size, "size", "100-2000", "bytes of a payload, from-to")
	fl.DurationVar(&f.Held, "hold", time.Second, "how long at most every eighth read sits on a row before it opens it")
	fl.DurationVar(&f.Timeout, "timeout", 30*time.Second, "of one operation")
	fl.DurationVar(&f.pointerAge, "pointer-age", 10*time.Second, "of the envelope client: how old the pointer may be")
	fl.DurationVar(&f.leaseTTL, "lease-ttl", time.Minute, "of the envelope client: how long a rotation waits for this process if it dies")
	fl.BoolVar(&f.keep, "keep", false, "leave the rows in the table at the end")
	output := fl.StringP("output", "o", "text", "text or json")
	cmd.Args = console.RefuseArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "text" && *output != "json" {
			return console.UsageError{Err: fmt.Errorf("-o %q: use text or json", *output)}
		}
		d, err := operate.Deployed(cmd.Context())
		if err != nil {
			return err
		}
		return runLoad(cmd.Context(), d, console.Console{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), JSON: *output == "json"}, f)
	}
	return cmd
}

// runLoad runs the traffic and prints its report.
func runLoad(ctx context.Context, d *operate.Deployment, c console.Console, f loadFlags) error {
	if len(f.sources) == 0 {
		return console.UsageError{Err: errors.New("--source is required: a registered table (matter ops source list); see matter-local load --help")}
	}
	low, high, ok := strings.Cut(f.size, "-")
	if !ok {
		high = low
	}
	var lerr, herr error
	f.MinSize, lerr = strconv.Atoi(low)
	f.MaxSize, herr = strconv.Atoi(high)
	if lerr != nil || herr != nil {
		return console.UsageError{Err: fmt.Errorf("--size %q: use bytes as from-to, such as 100-2000", f.size)}
	}
	f.Run = time.Now().UTC().Format("20060102T150405.000")
	t, err := startTraffic(ctx, d, f)
	if err != nil {
		return err
	}
	defer t.client.Close() //nolint:errcheck // its lease runs out by itself
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	done := make(chan struct{})
	go func() { defer close(done); t.Run(ctx) }()
	watchLoad(c, t, done)
	r := t.Report()
	if !f.keep {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := t.Remove(clean); err != nil {
			return err
		}
	}
	if err := c.PrintResult(r, describeLoad(r)...); err != nil {
		return err
	}
	if !r.Clean() {
		return console.Exit(console.ExitFailed)
	}
	return nil
}

// traffic is a load with its envelope client.
type traffic struct {
	*load.Generator
	client *envelope.Client
}

// startTraffic makes the client and the load; it does not run it yet.
func startTraffic(ctx context.Context, d *operate.Deployment, f loadFlags) (*traffic, error) {
	f.Now = time.Now
	sources, err := d.Sources(ctx)
	if err != nil {
		return nil, err
	}
	g, client, err := load.Start(ctx, load.Site{
		AWS: d.AWS, ControlTable: d.Config.ControlTable, AuditBucket: d.Config.AuditBucket, Sources: sources, PointerAge: f.pointerAge, LeaseTTL: f.leaseTTL,
	}, f.Config, f.sources...)
	if errors.Is(err, load.ErrConfig) || errors.Is(err, load.ErrNoTable) {
		return nil, console.UsageError{Err: err}
	}
	return &traffic{g, client}, err
}

// watchLoad shows the progress of the load until it is done.
func watchLoad(out console.Console, t *traffic, done <-chan struct{}) {
	line := console.NewStatusLine(out.Err)
	defer line.End()
	every := console.QuietFor
	if line.Live {
		every = time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			line.Show(describeLap(t.Lap()), "")
		}
	}
}

func describeLap(l load.Lap) string {
	return fmt.Sprintf("load: %.0f ops/s, p99 %s, %d wrong, %d errors", l.PerSecond, millis(l.P99), l.Wrong, l.Errors)
}

func describeLoad(r load.Report) []string {
	lines := []string{fmt.Sprintf("%d operations in %.1f s, %.0f/s: %d wrong reads, %d errors", r.Count, r.Elapsed.Seconds(), r.PerSecond, r.WrongReads, r.Errors)}
	for _, k := range r.Operations {
		lines = append(lines, fmt.Sprintf("  %-7s %7d  p50 %-8s p99 %-8s max %s", k.Kind, k.Count, millis(k.P50), millis(k.P99), millis(k.Max)))
	}
	c := r.Client
	lines = append(lines, fmt.Sprintf("  %d writes refused and tried again, %d leases revoked, %d orphaned rows met, %d reads of the pointer failed, %d in flight",
		c.RefusedWrites, c.RevokedLeases, c.OrphanedKeys, c.PointerErrors, c.InFlight))
	for _, id := range slices.Sorted(maps.Keys(r.Rows)) {
		lines = append(lines, fmt.Sprintf("  %d rows at the end under KEK %s", r.Rows[id], id))
	}
	return append(lines, r.Problems...)
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
