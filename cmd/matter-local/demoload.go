package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/sample"
)

// The traffic of the demo leaves the machine's two cores to the rotation.
const (
	demoLoadRows = 48
	demoLoadRate = 60
	demoP99      = 5 * time.Second // a writer that waits for the rotation would take longer
)

// demoLoad is traffic that runs through both rotations of the demo.
type demoLoad struct {
	*traffic
	flags loadFlags
	stop  func() load.Report // ends it; once it has, only reports

	mu   sync.Mutex
	at   time.Time // of the last lap
	text string
}

func startDemoLoad(ctx context.Context, d *operate.Deployment) (*demoLoad, error) {
	l := &demoLoad{flags: loadFlags{
		Config: load.Config{
			Run: "demo", Rate: demoLoadRate, Rows: demoLoadRows, Writers: 2, Updaters: 3, Deleters: 1, Readers: 4,
			MinSize: 100, MaxSize: 2000, Held: time.Second,
		},
		sources: []string{"characters", "symbols", sample.Notes}, pointerAge: 4 * time.Second, leaseTTL: 10 * time.Second,
	}}
	var err error
	if l.traffic, err = startTraffic(ctx, d, l.flags); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	l.stop = sync.OnceValue(func() load.Report {
		cancel()
		<-done
		_ = l.client.Close() // its lease runs out by itself
		return l.Report()
	})
	return l, nil
}

func (l *demoLoad) String() string {
	c := l.flags.Config
	return fmt.Sprintf("%d writers, %d updaters, %d deleters and %d readers, %.0f operations a second on embedded and keyed rows, through package envelope, every read checked",
		c.Writers, c.Updaters, c.Deleters, c.Readers, c.Rate)
}

// now is the progress of the load, printed every second.
func (l *demoLoad) now() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.at) >= time.Second {
		l.at, l.text = now, describeLap(l.Lap())
	}
	return l.text
}

// traffic claims what the load has seen.
func (d *demo) traffic(r load.Report, current kek.Pointer) {
	const about = "traffic"
	c := r.Client
	d.proof.claim(about, "applications worked through both rotations: 0 wrong reads, 0 errors, 0 orphaned rows met", r.Clean(),
		fmt.Sprintf("%d operations, %.0f/s; %d wrong, %d errors, %d orphaned%s", r.Count, r.PerSecond, r.WrongReads, r.Errors, c.OrphanedKeys, problem(r)))
	slowest, times := time.Duration(0), []string{}
	for _, k := range r.Operations {
		times = append(times, fmt.Sprintf("%s %s and %s", k.Kind, millis(k.P50), millis(k.P99)))
		slowest = max(slowest, k.P99)
	}
	d.proof.claim(about, fmt.Sprintf("99 of 100 operations of each kind took less than %s", demoP99), slowest < demoP99, "p50 and p99: "+strings.Join(times, ", "))
	total := 0
	for _, n := range r.Rows {
		total += n
	}
	d.proof.claim(about, "of the rows it wrote none is under another KEK than the pointer's",
		total > 0 && r.Rows[current.KEKID] == total, fmt.Sprintf("%d rows, %d under %s; %d writes refused and sealed again, unseen by the writers",
			total, r.Rows[current.KEKID], current.KEKID, c.RefusedWrites))
}

func problem(r load.Report) string {
	if len(r.Problems) == 0 {
		return ""
	}
	return "; first: " + r.Problems[0]
}
