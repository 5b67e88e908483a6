package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/app"
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
		Long: `Counts the rows of every source, estimates the time at the share of the KMS quota
that the deployment may use and the cost by a table of prices, and shows every
check of preflight with its state. Big tables are sampled: the first --sample rows
are read and the rest is DynamoDB's own count, which is up to six hours old.

The exit code says whether the plan could be made; kms-preflight's says whether a
rotation may start.`,
		Example: `  matter ops kms-plan
  matter ops kms-plan --emergency --reason drill --sample 1000 -o json`,
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.prices, "prices", "", "price table to use instead of the built-in one")
	cmd.Flags().Int64Var(&f.sample, "sample", 100000, "rows to read per source; 0 for all")
	cmd.Flags().Float64Var(&f.rate, "kms-rate", 0, "KMS requests per second; default: what the deployment may make")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.plan(ctx, f) })
}

// sourcePlan is the work on one source.
type sourcePlan struct {
	app.SourceCount
	Table       bool  `json:"table"`
	KMSRequests int64 `json:"kms_requests"`
}

type plan struct {
	Mode        string           `json:"mode"`
	Sources     []sourcePlan     `json:"sources"`
	Rows        int64            `json:"rows"`
	KMSRequests int64            `json:"kms_requests"`
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
		return usageError{errors.New("--sample and --kms-rate must not be negative")}
	}
	if err := f.check(); err != nil {
		return err
	}
	table, err := loadPrices(f.prices)
	if err != nil {
		return err
	}
	p := plan{Mode: "normal", Prices: table, Drain: o.Config.DrainMaxWait, Sources: []sourcePlan{}, Next: "matter ops kms-rotate --watch"}
	if f.emergency {
		p.Mode, p.Drain = "emergency", 0
		p.Next = fmt.Sprintf("matter ops kms-rotate --emergency --reason %q --watch", f.reason)
	}
	if err := o.planRows(ctx, &p, f); err != nil {
		return err
	}
	if err := o.planTime(ctx, &p, f.rate); err != nil {
		return err
	}
	p.price()
	checked, refusal, err := o.checks(ctx, f.mintFlags)
	if err != nil {
		return err
	}
	p.Checks, p.Ready = checked.Checks, refusal == nil
	if !p.Ready {
		p.Next = "mend what the checks name; matter ops kms-preflight"
	}
	return o.result(p, o.planLines(p)...)
}

func (o *operator) planRows(ctx context.Context, p *plan, f planFlags) error {
	line := &statusLine{out: o.err, live: isTerminal(o.err)}
	defer line.end()
	for _, src := range o.Steps.Sources {
		c, err := o.Count(ctx, src, f.sample, func(n int64) {
			if line.live {
				line.show(fmt.Sprintf("%s: %d rows read", src.Name(), n), "")
			}
		})
		if err != nil {
			return err
		}
		s := sourcePlan{SourceCount: c, Table: src != o.Steps.Corpus}
		switch {
		case f.emergency: // Decrypt and GenerateDataKey, each row
			s.KMSRequests = 2 * c.Rows
		case c.Seen > 0: // ReEncrypt, each data key that rows share
			s.KMSRequests = int64(float64(c.Rows) * float64(c.DEKs) / float64(c.Seen))
		}
		p.Sources = append(p.Sources, s)
		p.Rows += s.Rows
		p.KMSRequests += s.KMSRequests
	}
	return nil
}

// planTime estimates the rewrap at the rate that the state machine may reach.
func (o *operator) planTime(ctx context.Context, p *plan, rate float64) error {
	p.Concurrency = 1
	if o.Config.StateMachine != "" {
		m, err := o.Machine()
		if err != nil {
			return err
		}
		if p.Concurrency, err = m.Concurrency(ctx); err != nil {
			return err
		}
	}
	if p.Rate = rate; rate == 0 {
		p.Rate = o.Config.KMSRate * float64(max(p.Concurrency, 1))
	}
	p.Rewrap = time.Duration(float64(p.KMSRequests) / p.Rate * float64(time.Second))
	return nil
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
	lines := []string{fmt.Sprintf("a %s rotation of %d rows", p.Mode, p.Rows)}
	for _, s := range p.Sources {
		how := "counted"
		if !s.Exact {
			how = fmt.Sprintf("about; %d read, the rest is DynamoDB's count of up to six hours ago", s.Seen+s.Skipped)
			if !s.Table {
				how = fmt.Sprintf("at least; %d read", s.Seen+s.Skipped)
			}
		}
		lines = append(lines, fmt.Sprintf("  %-16s %10d rows  %10d KMS requests  %s", s.Source, s.Rows, s.KMSRequests, how))
		if s.Defects > 0 {
			lines = append(lines, fmt.Sprintf("  %-16s %10d of the rows read are no readable envelopes: they would be quarantined", "", s.Defects))
		}
	}
	lines = append(lines, fmt.Sprintf("time  rewrap %s or more, at %.0f KMS requests/s (%d at once); drain at most %s", short(p.Rewrap), p.Rate, p.Concurrency, short(p.Drain)))
	lines = append(lines, fmt.Sprintf("cost  about %.2f %s, at list prices of %s in %s", p.Total, p.Prices.Currency, p.Prices.AsOf, p.Prices.Region))
	for _, c := range p.Costs {
		lines = append(lines, fmt.Sprintf("  %10.4f  %s", c.Amount, c.What))
	}
	lines = append(append(lines, "checks"), o.checkLines(p.Checks)...)
	return append(lines, next(p.Next))
}
