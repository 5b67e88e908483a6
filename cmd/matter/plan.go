package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
)

// planFlags are the flags of kms-plan.
type planFlags struct {
	mintFlags
	prices string
	sample int64
	rate   float64

	rows, deks            float64 // what if: one table with so many rows and data keys
	itemBytes, writes     float64
	segments, concurrency int
	kms, table            time.Duration
	proof                 string
}

// newPlanCommand returns the command matter ops kms-plan.
func newPlanCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "kms-plan",
		Short: "Say what a rotation would do, how long it takes and what it costs; start nothing",
		Long: `Counts the rows of every registered source and walks them in a model of the rotation,
with the constants of the functions: requests of KMS, reads and writes, checkpoints,
calls, state transitions and events, the time of each phase with what binds it, the
cost by a table of prices, and the cost of a month without a rotation. What would not
end within a limit is named with the parameter to change. It shows every check of
preflight with its state, and facts about a source that matter, such as a stream or an
index that receives every rewrap. Like kms-preflight it writes one record, a canary that
it anchors in the transparency log if all other checks pass, and nothing else. Big tables are sampled: the first --sample items are
read and the rest is DynamoDB's own count, which is up to six hours old; a census reads
all of them.

With --rows it plans for one table of so many rows instead, without AWS.

The latencies of KMS and DynamoDB are assumptions; give those that you have measured.
The exit code says whether the plan could be made; kms-preflight's says whether a
rotation may start.`,
		Example: `  matter ops kms-plan
  matter ops kms-plan --emergency --reason drill --sample 1000 -o json
  matter ops kms-plan --rows 1e9 --deks 1e6 --segments 40 --concurrency 40 --kms-rate 10000`,
	}
	f.addFlags(cmd)
	flags, d := cmd.Flags(), estimate.DefaultSettings()
	flags.StringVar(&f.prices, "prices", "", "price table to use instead of the built-in one, such as another Region's")
	flags.Int64Var(&f.sample, "sample", 100000, "items to read per source; 0 for all")
	flags.Float64Var(&f.rate, "kms-rate", 0, "KMS requests per second of all functions; default: what they make before CloudWatch has shown that more are free")
	flags.Float64Var(&f.rows, "rows", 0, "plan for a table of so many rows, without AWS")
	flags.Float64Var(&f.deks, "deks", 0, "with --rows: distinct data keys; default: one for each row")
	flags.Float64Var(&f.itemBytes, "item-bytes", 1024, "with --rows: mean size of an item")
	flags.Float64Var(&f.writes, "write-units", 0, "write units a second that each table takes; default: what DescribeTable says, else 1000")
	flags.IntVar(&f.segments, "segments", 0, "parameter Segments; default: the deployment's")
	flags.IntVar(&f.concurrency, "concurrency", 0, "parameter RewrapConcurrency; default: the deployment's")
	flags.DurationVar(&f.kms, "kms-latency", d.Latency.KMS, "time of one request of KMS")
	flags.DurationVar(&f.table, "table-latency", d.Latency.Write, "time of one request of DynamoDB for an item")
	flags.StringVar(&f.proof, "verify-data-keys", "", "parameter VerifyDataKeys, every or sample; default: the deployment's")
	newAdvisedCommand(cmd, func(ctx context.Context, o *operator) error { return o.planRotation(ctx, f) })
	deployed := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !flags.Changed("rows") {
			return deployed(cmd, args)
		}
		return planAssumed(console.Console{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), JSON: cmd.Flag("output").Value.String() == "json"}, f)
	}
	return cmd
}

// plan is what kms-plan prints.
type plan struct {
	Mode        string                `json:"mode"`
	Sources     []operate.SourceCount `json:"sources"`
	Rows        int64                 `json:"rows"`
	KMSRequests int64                 `json:"kms_requests"`
	Deep        bool                  `json:"every_data_key"` // the proof unwraps every distinct data key, not a sample
	Rate        float64               `json:"kms_requests_per_second"`
	Concurrency int                   `json:"rewrap_concurrency"`
	Segments    int                   `json:"segments"`
	Estimate    estimate.Plan         `json:"estimate"`
	Excesses    []estimate.Excess     `json:"cannot_end"` // limits that the rotation would exceed
	Prices      estimate.Prices       `json:"prices"`
	Costs       []estimate.Cost       `json:"costs"` // of the rotation
	Total       float64               `json:"total"`
	Month       []estimate.Cost       `json:"month"` // of a month without a rotation, the new KEK's key included
	MonthTotal  float64               `json:"month_total"`
	Checks      []rotation.Check      `json:"checks"`
	Ready       bool                  `json:"ready"`
	Next        string                `json:"next"`
}

// checkNumbers refuses numbers that make no plan.
func (f planFlags) checkNumbers() error {
	if f.sample < 0 || f.rate < 0 || f.rows < 0 || f.deks < 0 || f.itemBytes <= 0 || f.writes < 0 || f.segments < 0 || f.concurrency < 0 || f.kms < 0 || f.table < 0 {
		return console.UsageError{Err: errors.New("--sample, --kms-rate and the other numbers must not be negative")}
	}
	if f.proof != "" && f.proof != "every" && f.proof != "sample" {
		return console.UsageError{Err: fmt.Errorf("--verify-data-keys %q: use every or sample", f.proof)}
	}
	if f.deks > f.rows {
		return console.UsageError{Err: fmt.Errorf("--deks %g: a table of %g rows has no more data keys than rows", f.deks, f.rows)}
	}
	return f.checkFlags()
}

// applyTo changes the settings of the estimate as the flags say.
func (f planFlags) applyTo(s estimate.Settings) estimate.Settings {
	s.Emergency = f.emergency
	if f.segments > 0 {
		s.Segments = f.segments
	}
	if f.concurrency > 0 {
		s.Concurrency = f.concurrency
	}
	if f.proof != "" {
		s.Deep = f.proof == "every"
	}
	if f.rate > 0 {
		s.KMSRate = f.rate
	}
	s.Latency.KMS = f.kms
	s.Latency.Write = f.table
	s.Latency.Control = f.table
	return s
}

// computePlan computes the plan of sources under settings.
func (f planFlags) computePlan(s estimate.Settings, sources []estimate.Source, inputBytes int) (plan, error) {
	prices, err := loadPrices(f.prices)
	if err != nil {
		return plan{}, err
	}
	for i := range sources {
		if sources[i].Billing == estimate.DynamoDBByUnit {
			sources[i].WritesPerSecond = cmp.Or(f.writes, sources[i].WritesPerSecond, budget.StartRate)
		}
	}
	s = f.applyTo(s)
	p := plan{
		Mode: "normal", Sources: []operate.SourceCount{}, Deep: s.Deep, Rate: s.KMSRate, Concurrency: s.Concurrency, Segments: s.Segments,
		Prices: prices, Checks: []rotation.Check{}, Month: []estimate.Cost{}, Next: f.rotateCommand(),
	}
	if f.emergency {
		p.Mode = "emergency"
	}
	for _, src := range sources {
		p.Rows += int64(src.Rows)
	}
	p.Estimate = estimate.Compute(rotation.DescribeWalk(app.PaceAt(s.KMSRate/float64(max(s.Concurrency, 1)))), flow.DescribeMachine(), s, sources)
	p.KMSRequests = int64(p.Estimate.Total.KMS.Sum() + 0.5)
	p.Excesses = append([]estimate.Excess{}, p.Estimate.FindExcesses(estimate.Bounds{InputBytes: inputBytes})...)
	p.Costs = p.Estimate.PriceWork(prices)
	p.Total, _ = estimate.SumCosts(p.Costs)
	return p, nil
}

// planAssumed plans for a table that need not exist, without AWS.
func planAssumed(c console.Console, f planFlags) error {
	if err := f.checkNumbers(); err != nil {
		return err
	}
	if f.deks == 0 {
		f.deks = f.rows
	}
	src := estimate.Source{
		Name: "table", Items: f.rows, Rows: f.rows, ItemBytes: f.itemBytes, Billing: estimate.DynamoDBByUnit,
		PageItems: app.TableTraits.PageItems, PageBytes: float64(app.TableTraits.PageBytes),
	}
	if f.rows > 0 {
		src.Shares = []estimate.Share{{Each: f.rows / f.deks, DEKs: f.deks}}
	}
	p, err := f.computePlan(estimate.DefaultSettings(), []estimate.Source{src}, 0)
	if err != nil {
		return err
	}
	p.Next = ""
	warnOfOldPrices(c.Err, p.Prices, time.Now())
	return c.PrintResult(p, p.textLines()...)
}

// planRotation estimates the rotation and adds preflight's checks. It exits with 0 also where
// a rotation would be refused: the plan was made all the same.
func (o *operator) planRotation(ctx context.Context, f planFlags) error {
	if err := f.checkNumbers(); err != nil {
		return err
	}
	if _, err := loadPrices(f.prices); err != nil {
		return err
	}
	counted, sources, err := o.countSources(ctx, f.sample, f.emergency)
	if err != nil {
		return err
	}
	settings, standing, err := o.readStanding(ctx)
	if err != nil {
		return err
	}
	checked, refusal, err := o.runChecks(ctx, f.mintFlags)
	if err != nil {
		return err
	}
	p, err := f.computePlan(settings, sources, checked.InputBytes())
	if err != nil {
		return err
	}
	warnOfOldPrices(o.console.Err, p.Prices, o.stack.Steps.Journal.Now())
	p.Sources = counted
	standing.Keys++ // the new KEK's
	p.Month = standing.PriceMonth(p.Prices)
	p.MonthTotal, _ = estimate.SumCosts(p.Month)
	p.Checks, p.Ready = checked.Checks, refusal == nil && len(p.Excesses) == 0
	if !p.Ready {
		p.Next = "fix what the checks name; matter ops kms-preflight"
	}
	lines := append(append(p.textLines(), "checks"), o.checkLines(p.Checks)...)
	return o.console.PrintResult(p, append(lines, nextLine(p.Next))...)
}

// countSources counts the rows of each registered source.
func (o *operator) countSources(ctx context.Context, sample int64, emergency bool) (counted []operate.SourceCount, sources []estimate.Source, err error) {
	line := console.NewStatusLine(o.console.Err)
	defer line.End()
	defs, err := o.stack.Table.Sources(ctx)
	if err != nil {
		return nil, nil, err
	}
	drivers, err := o.openSources(defs)
	if err != nil {
		return nil, nil, err
	}
	census, err := o.stack.Steps.LastCensus(ctx)
	if err != nil {
		return nil, nil, err
	}
	counted = []operate.SourceCount{}
	for _, src := range drivers {
		c, err := o.stack.CountRows(ctx, src, sample, func(n int64) { line.ShowItems(src.Name(), n) })
		if err != nil {
			return nil, nil, err
		}
		c.UseCensus(census[src.Name()])
		counted, sources = append(counted, c), append(sources, c.Describe(emergency))
	}
	return counted, sources, nil
}

// readStanding reads what the deployment has: its parameters, its KEKs, the control table and
// the audit chain.
func (o *operator) readStanding(ctx context.Context) (estimate.Settings, estimate.Standing, error) {
	s, st := o.stack.Config.EstimateSettings(), estimate.Standing{}
	keks, err := o.stack.Table.KEKs(ctx)
	if err != nil {
		return s, st, err
	}
	st.Keys, s.OldKEKs = len(keks)+1, 0 // the anchor has a key too
	for _, k := range keks {
		if k.State.Resolves() {
			s.OldKEKs++
		}
	}
	_, head, err := o.stack.Table.Head(ctx)
	if err != nil {
		return s, st, err
	}
	s.AuditRecords, st.AuditRecords = float64(head.Seq), float64(head.Seq)
	st.ControlBytes, err = o.stack.ControlBytes(ctx)
	return s, st, err
}

// textLines is a plan as text, without the checks.
func (p plan) textLines() []string {
	lines := []string{fmt.Sprintf("%s rotation of %d rows; Segments %d, RewrapConcurrency %d, %.0f KMS requests/s", p.Mode, p.Rows, p.Segments, p.Concurrency, p.Rate)}
	for _, s := range p.Sources {
		lines = append(lines, sourceLines(s)...)
	}
	lines = append(lines, p.proofLine(), fmt.Sprintf("%-12s  %12s  %-18s  %12s  %12s  %12s  %11s  %6s", "phase", "time", "bound by", "KMS requests", "pages", "row writes", "checkpoints", "calls"))
	for _, ph := range append(p.Estimate.Phases, p.Estimate.Total) {
		lines = append(lines, fmt.Sprintf("%-12s  %12s  %-18s  %12.0f  %12.0f  %12.0f  %11.0f  %6.0f",
			ph.Name, estimate.FormatDays(ph.Time), ph.Binds, ph.KMS.Sum(), ph.Pages, ph.Writes, ph.Checkpoints, ph.Calls))
	}
	e := p.Estimate
	lines = append(lines,
		fmt.Sprintf("time  %s, and %s at most with a drain that takes as long as it may", estimate.FormatDays(e.Total.Time), estimate.FormatDays(e.AtMost)),
		fmt.Sprintf("KMS   %.0f ReEncrypt, %.0f Decrypt, %.0f GenerateDataKey", e.Total.KMS.ReEncrypt, e.Total.KMS.Decrypt, e.Total.KMS.GenerateDataKey),
		fmt.Sprintf("flow  %.0f state transitions, %.0f of %d events in the execution's history, %.0f in the longest child's", e.Transitions, e.Events, estimate.MaxEvents, e.ChildEvents))
	for _, x := range p.Excesses {
		lines = append(lines, "CANNOT END  "+x.String())
	}
	lines = append(lines, fmt.Sprintf("cost  about %.2f %s, at list prices of %s in %s", p.Total, p.Prices.Currency, p.Prices.AsOf, p.Prices.Region))
	lines = append(lines, costLines(p.Costs)...)
	if len(p.Month) > 0 {
		lines = append(lines, fmt.Sprintf("month without a rotation  about %.2f %s, and one KMS key more with each rotation, until a person deletes it", p.MonthTotal, p.Prices.Currency))
		lines = append(lines, costLines(p.Month)...)
	}
	lines = append(lines, "not in these figures")
	for _, u := range e.Unknown {
		lines = append(lines, "  "+u)
	}
	return lines
}

// sourceLines says what a source has, and who else sees its rewraps.
func sourceLines(s operate.SourceCount) []string {
	how := "counted"
	if !s.Exact {
		how = fmt.Sprintf("about; %d items read, the rest is DynamoDB's count of up to six hours ago", s.Items())
		if s.Describe(false).Billing != estimate.DynamoDBByUnit {
			how = fmt.Sprintf("at least; %d items read", s.Items())
		}
	}
	if s.Counted {
		how += "; data keys by the last census"
	}
	lines := []string{fmt.Sprintf("  %-16s %10d rows  %10d data keys  %s", s.Source, s.Rows, s.DataKeys, how)}
	if s.Defects > 0 {
		lines = append(lines, fmt.Sprintf("  %-16s %10d of the items read cannot be accounted for: no rotation starts with them (matter ops census)", "", s.Defects))
	}
	if s.Keyed > 0 {
		lines = append(lines, fmt.Sprintf("  %-16s %10d of the rows read are keyed: only an emergency writes them, a normal rotation rewraps the records of their data keys", "", s.Keyed))
	}
	for _, c := range s.Copies {
		lines = append(lines, fmt.Sprintf("  %-16s each rewrap is also written to %s", "", c))
	}
	for _, r := range s.Readers {
		lines = append(lines, fmt.Sprintf("  %-16s each rewrap is also seen by readers of the %s; what they cost is not known", "", r))
	}
	return lines
}

// costLines is a bill as text.
func costLines(costs []estimate.Cost) []string {
	var lines []string
	for _, c := range costs {
		amount := "unknown"
		if c.Amount != nil {
			amount = fmt.Sprintf("%.4f", *c.Amount)
		}
		lines = append(lines, fmt.Sprintf("  %12s  %s", amount, c.What))
	}
	return lines
}

// proofLine says what it costs to show that rows are under the KEK that they name.
func (p plan) proofLine() string {
	if p.Deep {
		return "proof every distinct data key is unwrapped under the new KEK in the second scan and in the last (MATTER_VERIFY_DATA_KEYS=every)"
	}
	return "proof a sample of data keys of each scanned part is unwrapped under the new KEK (MATTER_VERIFY_DATA_KEYS=sample)"
}
