package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

type planFlags struct {
	mintFlags
	prices string
	sample int64
	rate   float64
}

func newPlan() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "kms-plan",
		Short: "Say what a rotation would do, how long it takes and what it costs; start nothing",
		Long: `Counts the rows of every registered source, estimates the time at the share of the
KMS quota that the deployment may use and the cost by a table of prices, and shows
every check of preflight with its state, with what is to be known of a source, such as
a stream that sees every rewrap. Big tables are sampled: the first --sample items are
read and the rest is DynamoDB's own count, which is up to six hours old; a census reads
all of them.

The exit code says whether the plan could be made; kms-preflight's says whether a
rotation may start.`,
		Example: `  matter ops kms-plan
  matter ops kms-plan --emergency --reason drill --sample 1000 -o json`,
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.prices, "prices", "", "price table to use instead of the built-in one")
	cmd.Flags().Int64Var(&f.sample, "sample", 100000, "items to read per source; 0 for all")
	cmd.Flags().Float64Var(&f.rate, "kms-rate", 0, "KMS requests per second; default: what the deployment may make")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.plan(ctx, f) })
}

// sourcePlan is the work on one source.
type sourcePlan struct {
	app.SourceCount
	Table         bool  `json:"table"`
	KMSRequests   int64 `json:"kms_requests"`   // to move the rows
	ProofRequests int64 `json:"proof_requests"` // to show that they are under the new KEK
}

type plan struct {
	Mode        string           `json:"mode"`
	Sources     []sourcePlan     `json:"sources"`
	Rows        int64            `json:"rows"`
	KMSRequests int64            `json:"kms_requests"`
	Deep        bool             `json:"every_data_key"` // the proof unwraps every distinct data key, not a sample
	Proof       int64            `json:"proof_requests"`
	Rate        float64          `json:"kms_requests_per_second"`
	Concurrency int              `json:"rewrap_concurrency"`
	Rewrap      time.Duration    `json:"rewrap_ns"` // at that rate
	Drain       time.Duration    `json:"drain_at_most_ns"`
	Prices      prices           `json:"prices"`
	Costs       []cost           `json:"costs"`
	Total       float64          `json:"total"`
	Checks      []rotation.Check `json:"checks"`
	Ready       bool             `json:"ready"`
	Next        string           `json:"next"`
}

func (o *operator) plan(ctx context.Context, f planFlags) error {
	if f.sample < 0 || f.rate < 0 {
		return console.UsageError{Err: errors.New("--sample and --kms-rate must not be negative")}
	}
	if err := f.check(); err != nil {
		return err
	}
	table, err := loadPrices(f.prices)
	if err != nil {
		return err
	}
	p := plan{
		Mode: "normal", Prices: table, Drain: o.Config.DrainMaxWait, Sources: []sourcePlan{}, Deep: o.Config.Deep, Next: f.rotate(),
	}
	if f.emergency {
		p.Mode, p.Drain = "emergency", 0
	}
	if err := o.planRows(ctx, &p, f); err != nil {
		return err
	}
	o.planTime(&p, f.rate)
	p.price()
	checked, refusal, err := o.checks(ctx, f.mintFlags)
	if err != nil {
		return err
	}
	p.Checks, p.Ready = checked.Checks, refusal == nil
	if !p.Ready {
		p.Next = "fix what the checks name; matter ops kms-preflight"
	}
	return o.Result(p, o.planLines(p)...)
}

func (o *operator) planRows(ctx context.Context, p *plan, f planFlags) error {
	line := console.NewStatusLine(o.Err)
	defer line.End()
	defs, err := o.Table.Sources(ctx)
	if err != nil {
		return err
	}
	sources, err := o.open(defs)
	if err != nil {
		return err
	}
	for i, src := range sources {
		c, err := o.Count(ctx, src, f.sample, func(n int64) {
			if line.Live {
				line.Show(fmt.Sprintf("%s: %d items read", src.Name(), n), "")
			}
		})
		if err != nil {
			return err
		}
		s := sourcePlan{SourceCount: c, Table: defs[i].Kind == kek.KindDynamoDB}
		var deks int64 // that rows share
		if c.Seen > 0 {
			deks = int64(float64(c.Rows) * float64(c.DEKs) / float64(c.Seen))
		}
		s.KMSRequests = deks // ReEncrypt
		if f.emergency {     // Decrypt and GenerateDataKey, each row, which has a data key of its own then
			s.KMSRequests, deks = 2*c.Rows, c.Rows
		}
		if p.Deep { // ReEncrypt under the same KEK, in the second scan and in the last
			s.ProofRequests = 2 * deks
		}
		p.Sources = append(p.Sources, s)
		p.Rows += s.Rows
		p.KMSRequests += s.KMSRequests
		p.Proof += s.ProofRequests
	}
	return nil
}

// planTime estimates the rewrap at the rate that the state machine may reach.
func (o *operator) planTime(p *plan, rate float64) {
	p.Concurrency = o.Config.Concurrency
	if p.Rate = rate; rate == 0 {
		p.Rate = o.Config.KMSRate * float64(max(p.Concurrency, 1))
	}
	p.Rewrap = time.Duration(float64(p.KMSRequests) / p.Rate * float64(time.Second))
}

func (p *plan) price() {
	// Each segment takes some transitions, the rest of the machine about thirty.
	w := work{seconds: p.Rewrap.Seconds() * float64(p.Concurrency), transitions: 30}
	for _, s := range p.Sources {
		w.add(s)
	}
	p.Costs = p.Prices.bill(w)
	p.Costs = append(p.Costs, cost{"the new KEK, every month", p.Prices.KMSKeyMonth})
	for _, c := range p.Costs {
		p.Total += c.Amount
	}
}

func (o *operator) planLines(p plan) []string {
	lines := []string{fmt.Sprintf("%s rotation of %d rows", p.Mode, p.Rows)}
	for _, s := range p.Sources {
		how := "counted"
		if !s.Exact {
			how = fmt.Sprintf("about; %d items read, the rest is DynamoDB's count of up to six hours ago", s.Items())
			if !s.Table {
				how = fmt.Sprintf("at least; %d items read", s.Items())
			}
		}
		lines = append(lines, fmt.Sprintf("  %-16s %10d rows  %10d KMS requests  %s", s.Source, s.Rows, s.KMSRequests, how))
		if s.Defects > 0 {
			lines = append(lines, fmt.Sprintf("  %-16s %10d of the items read cannot be accounted for: no rotation starts with them (matter ops census)", "", s.Defects))
		}
	}
	lines = append(lines, p.proofLine())
	lines = append(lines, fmt.Sprintf("time  rewrap %s or more, at %.0f KMS requests/s (%d at once); drain at most %s", console.ShortDuration(p.Rewrap), p.Rate, p.Concurrency, console.ShortDuration(p.Drain)))
	lines = append(lines, fmt.Sprintf("cost  about %.2f %s, at list prices of %s in %s", p.Total, p.Prices.Currency, p.Prices.AsOf, p.Prices.Region))
	for _, c := range p.Costs {
		lines = append(lines, fmt.Sprintf("  %10.4f  %s", c.Amount, c.What))
	}
	lines = append(append(lines, "checks"), o.checkLines(p.Checks)...)
	return append(lines, next(p.Next))
}

// proofLine says what it costs to show that rows are under the KEK that they name.
func (p plan) proofLine() string {
	if p.Deep {
		return fmt.Sprintf("proof %d KMS requests more: every distinct data key is unwrapped under the new KEK in the second scan and in the last (MATTER_VERIFY_DATA_KEYS=every)", p.Proof)
	}
	return "proof a sample of data keys of each scanned part is unwrapped under the new KEK (MATTER_VERIFY_DATA_KEYS=sample)"
}
