package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/limits"
)

// account is an AWS account that bounds a rotation: the quota of KMS, the partitions of each
// table, and the processors of functions. It counts what it is asked.
type account struct {
	kms       *limits.KMS
	tables    map[string]*limits.Table
	rowCPU    time.Duration
	writeRate float64 // of all processes in each table; 0: not limited
}

// limitShapes are data and deployments that run into each of the limits.
var limitShapes = rapid.Custom(func(t *rapid.T) dataShape {
	s := shapes.Draw(t, "shape")
	s.Pace = rotation.Pace{RowsInFlight: 64, PagesAhead: 2, SaveEvery: 5 * time.Second}
	s.Spread = true
	s.Rate = rapid.SampledFrom([]float64{60, 200, 1000}).Draw(t, "KMS requests a second")
	s.Limits = &limitsShape{
		RowCPU:     rapid.SampledFrom([]time.Duration{0, 200 * time.Microsecond, 550 * time.Microsecond, 2 * time.Millisecond}).Draw(t, "processor"),
		WriteRate:  rapid.SampledFrom([]float64{100, 300, 800, 40_000}).Draw(t, "write units a second"),
		Partitions: rapid.IntRange(1, 4).Draw(t, "partitions"),
	}
	return s
})

// limitsShape is what bounds a shape.
type limitsShape struct {
	RowCPU     time.Duration
	WriteRate  float64
	Partitions int
}

// function is the memory of the functions that work on rows.
var function = estimate.Functions["Rewrap"]

func newAccount(s dataShape) *account {
	dice := limits.NewDice(3)
	a := &account{
		kms:    &limits.KMS{Quota: limits.QuotaMostRegions, Latency: limits.Latency{Typical: s.Latency.KMS}, Dice: dice},
		tables: map[string]*limits.Table{}, rowCPU: s.Limits.RowCPU, writeRate: s.Limits.WriteRate,
	}
	for i := range s.Sources {
		table := limits.NewOnDemand(s.Limits.Partitions, limits.WarmWrites, limits.WarmReads)
		table.Latency, table.Dice = limits.Latency{Typical: s.Latency.Write}, dice
		a.tables[fmt.Sprintf("table-%d", i)] = table
	}
	return a
}

// budgetedKMS is the account's KMS as one process asks it: within its budget.
type budgetedKMS struct {
	keyring.Wrapper
	kms    *limits.KMS
	budget *budget.Budget
}

func (b budgetedKMS) ask(ctx context.Context) error {
	for {
		if err := b.budget.Spend(ctx); err != nil {
			return err
		}
		err := b.kms.Request()
		if !errors.Is(err, limits.ErrThrottled) {
			return err
		}
		b.budget.Refuse()
	}
}

func (b budgetedKMS) ReEncrypt(ctx context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	if err := b.ask(ctx); err != nil {
		return nil, err
	}
	return b.Wrapper.ReEncrypt(ctx, from, to, wrapped, encctx)
}

func (b budgetedKMS) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	if err := b.ask(ctx); err != nil {
		return nil, err
	}
	return b.Wrapper.Decrypt(ctx, id, wrapped, encctx)
}

func (b budgetedKMS) GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	if err := b.ask(ctx); err != nil {
		return nil, nil, err
	}
	return b.Wrapper.GenerateDataKey(ctx, id, encctx)
}

// budgetedTable is a source as one process writes into it.
type budgetedTable struct {
	source.Driver
	table  *limits.Table
	budget *budget.Budget
	cpu    *limits.CPU
	rowCPU time.Duration
}

func (b budgetedTable) Replace(ctx context.Context, old source.Row, with source.Rewrapped) (bool, error) {
	b.cpu.Work(b.rowCPU)
	h := fnv.New32a()
	h.Write([]byte(old.ID))
	for {
		if err := b.budget.Spend(ctx); err != nil {
			return false, err
		}
		err := b.table.Write(float64(h.Sum32())/(1<<32), 700)
		if err == nil {
			return b.Driver.Replace(ctx, old, with)
		}
		b.budget.Refuse()
	}
}

// limitProcess has a process work within the account's limits.
func (m *measuredSite) limitProcess(s *rotation.Steps) {
	a, workers := m.account, m.shape.Concurrency
	s.Keys.Wrapper = budgetedKMS{m.kms, a.kms, budget.New(budget.Params{Ceiling: m.shape.Rate * float64(workers), Workers: workers, Now: time.Now})}
	cpu := &limits.CPU{MemoryMB: float64(function.Memory)}
	budgets := map[string]*budget.Budget{}
	for name := range a.tables {
		budgets[name] = budget.New(budget.Params{Ceiling: min(a.writeRate, budget.StartRate), Workers: workers, Parts: true, Now: time.Now})
	}
	s.OpenSource = func(def kek.Source) (source.Driver, error) {
		src, err := m.world.Open(def)
		if table := a.tables[def.Name]; table != nil && err == nil {
			return budgetedTable{src, table, budgets[def.Name], cpu, a.rowCPU}, nil
		}
		return src, err
	}
}

// TestEstimateBesideLimits: what is planned for random data is within 5 % of what a simulator of
// AWS's limits then counts: requests, writes, the time of each pass that moves or proves rows,
// and what they cost. The time may differ by edges of a second too, which do not grow with the
// rows. (TestMachineCounts compares the events and transitions.)
func TestEstimateBesideLimits(t *testing.T) {
	n := 40
	if more, err := strconv.Atoi(os.Getenv("MATTER_SHAPES")); err == nil {
		n = more
	}
	binds := map[estimate.Bind]int{}
	for seed := range n {
		var off []string
		synctest.Test(t, func(t *testing.T) { off = compareWithLimits(t, limitShapes.Example(seed), binds) })
		for _, text := range off {
			t.Errorf("seed %d: %s", seed, text)
		}
	}
	t.Logf("%d shapes; rewraps are bound by %v", n, binds)
	if len(binds) < 3 {
		t.Errorf("too few limits were met: %v", binds)
	}
}

func compareWithLimits(t *testing.T, shape dataShape, binds map[estimate.Bind]int) (off []string) {
	t.Helper()
	m := newMeasuredSite(t, shape)
	m.account = newAccount(shape)
	for i := range m.planned[1:] {
		m.planned[i+1].Billing = estimate.DynamoDBByUnit
		m.planned[i+1].ItemBytes = 700
	}
	set := m.settings()
	set.KMSRate = min(set.KMSRate, budget.StartRate)
	set.WriteRate = min(shape.Limits.WriteRate, budget.StartRate)
	set.RowCPU = shape.Limits.RowCPU
	plan := estimate.Compute(m.walk(), estimate.Machine{}, set, m.planned)
	got := m.rotate()
	lat, planned, counted := shape.Latency, 0.0, 0.0
	for _, ph := range plan.Phases {
		g := got[ph.Name]
		if ph.Pages == 0 || ph.Name == estimate.Census {
			continue
		}
		requests := g.of["KMS.ReEncrypt"] + g.of["KMS.Decrypt"] + g.of["KMS.GenerateDataKey"]
		if byChance(shape, ph.Name) && differs(ph.KMS.Sum(), requests, 0.05, 1) { // see compareWithPlan
			continue
		}
		compare := func(what string, planned, counted, part, edge float64) {
			if differs(planned, counted, part, edge) {
				off = append(off, fmt.Sprintf("%s: %s: planned %.2f, counted %.2f, bound by %s: %+v %+v", ph.Name, what, planned, counted, ph.Binds, shape, *shape.Limits))
			}
		}
		compare("requests", ph.KMS.Sum(), requests, 0.05, 1)
		compare("writes", ph.Writes, g.of["Table.Replace"], 0.05, 0)
		part := 0.05
		if byChance(shape, ph.Name) {
			part = 0.15
		}
		// The edges of a walk, and rows that wait for KMS in all slots while others could be written.
		edge := (lat.Scan + lat.KMS + lat.Write + 2*lat.Control + 100*time.Millisecond).Seconds() + float64(shape.Pace.RowsInFlight)*float64(shape.Concurrency)/set.KMSRate
		compare("seconds", ph.Time.Seconds(), g.took.Seconds(), 0, part*g.took.Seconds()+edge)
		if ph.Name == estimate.Rewrap {
			binds[ph.Binds]++
		}
		planned += cost(ph.KMS.Sum(), ph.WriteUnits, ph.GBSeconds)
		counted += cost(requests, g.of["Table.Replace"]-float64(shape.Corpus)*min(1, g.of["Table.Replace"]), g.busy.Seconds()*float64(function.Memory)/1024)
	}
	if differs(planned, counted, 0.05, 0.1*cost(0, 0, float64(function.Memory)/1024*float64(shape.Concurrency))) { // the burst
		off = append(off, fmt.Sprintf("cost: planned %.6f, counted %.6f: %+v %+v", planned, counted, shape, *shape.Limits))
	}
	return off
}

// cost is what requests of KMS, write units and GB-seconds of Lambda cost at list prices
// (cmd/matter/prices.json).
func cost(requests, writes, gbSeconds float64) float64 {
	return requests*0.03/1e4 + writes*0.625/1e6 + gbSeconds*0.0000133334
}
