package estimate

import (
	"fmt"
	"time"
)

// Prices are what AWS asks, in dollars unless Currency says otherwise. They change: the file
// says of when and where they are. A price that is absent is not known.
type Prices struct {
	AsOf     string            `json:"as_of"`
	Region   string            `json:"region"`
	Currency string            `json:"currency"`
	Sources  map[string]string `json:"sources,omitempty"` // page of each price, by its name here

	KMSKeyMonth    *float64 `json:"kms_key_month"`
	KMSPer10000    *float64 `json:"kms_requests_per_10000"`
	ReadsPerM      *float64 `json:"dynamodb_read_units_per_million"`
	WritesPerM     *float64 `json:"dynamodb_write_units_per_million"`
	BackupGBMonth  *float64 `json:"dynamodb_pitr_gb_month"`
	PutsPer1000    *float64 `json:"s3_puts_per_1000"`
	GetsPer1000    *float64 `json:"s3_gets_per_1000"`
	ObjectGBMonth  *float64 `json:"s3_gb_month"`
	LambdaGBSecond *float64 `json:"lambda_gb_second"`
	LambdaPerM     *float64 `json:"lambda_requests_per_million"`
	StepsPer1000   *float64 `json:"state_transitions_per_1000"`
	AlarmMonth     *float64 `json:"cloudwatch_alarm_metric_month"`
}

// IsOld reports whether the prices are of more than a year before now, or do not say of when.
func (p Prices) IsOld(now time.Time) bool {
	for _, form := range []string{time.DateOnly, "2006-01", "2006"} {
		if of, err := time.Parse(form, p.AsOf); err == nil {
			return now.After(of.AddDate(1, 0, 0))
		}
	}
	return true
}

// Cost is one line of the bill.
type Cost struct {
	What   string   `json:"what"`
	Amount *float64 `json:"amount"` // null: a price or a count is not known
}

// priced returns the cost of n units, of which so many have the price.
func priced(what string, n, per float64, price *float64) Cost {
	if price == nil {
		return Cost{what, nil}
	}
	amount := n / per * *price
	return Cost{what, &amount}
}

// SumCosts adds costs up; whole is false if one of them is not known.
func SumCosts(costs []Cost) (sum float64, whole bool) {
	whole = true
	for _, c := range costs {
		if c.Amount == nil {
			whole = false
			continue
		}
		sum += *c.Amount
	}
	return sum, whole
}

// PriceWork returns the bill of the rotation, once.
func (p Plan) PriceWork(pr Prices) []Cost {
	t := p.Total
	reads := priced(fmt.Sprintf("%.0f DynamoDB read units of the sources", t.ReadUnits), t.ReadUnits, 1e6, pr.ReadsPerM)
	for _, src := range p.sources {
		if src.Billing == DynamoDBByUnit && src.ItemBytes == 0 && src.Rows > 0 {
			reads = Cost{What: "DynamoDB read units: not known, DescribeTable tells no size yet"}
		}
	}
	costs := []Cost{
		priced(fmt.Sprintf("%.0f KMS requests", t.KMS.Sum()), t.KMS.Sum(), 1e4, pr.KMSPer10000),
		reads,
		priced(fmt.Sprintf("%.0f DynamoDB write units of the sources", t.WriteUnits), t.WriteUnits, 1e6, pr.WritesPerM),
	}
	if t.ExtraUnits > 0 {
		costs = append(costs, priced(fmt.Sprintf("%.0f DynamoDB write units of indexes and replicas", t.ExtraUnits), t.ExtraUnits, 1e6, pr.WritesPerM))
	}
	return append(costs,
		addCosts(fmt.Sprintf("%.0f read units and %.0f write units of the control table", p.Control.ReadUnits, p.Control.WriteUnits),
			priced("", p.Control.ReadUnits, 1e6, pr.ReadsPerM), priced("", p.Control.WriteUnits, 1e6, pr.WritesPerM)),
		addCosts(fmt.Sprintf("%.0f S3 reads and %.0f writes", t.ObjectReads+p.Control.AuditGets, t.ObjectPuts+p.Control.AuditPuts),
			priced("", t.ObjectReads+p.Control.AuditGets, 1e3, pr.GetsPer1000), priced("", t.ObjectPuts+p.Control.AuditPuts, 1e3, pr.PutsPer1000)),
		addCosts(fmt.Sprintf("%.0f GB-seconds of Lambda in %.0f calls", t.GBSeconds, t.Calls),
			priced("", t.GBSeconds, 1, pr.LambdaGBSecond), priced("", t.Calls, 1e6, pr.LambdaPerM)),
		priced(fmt.Sprintf("%.0f state transitions", p.Transitions), p.Transitions, 1e3, pr.StepsPer1000),
	)
}

func addCosts(what string, costs ...Cost) Cost {
	sum, whole := SumCosts(costs)
	if !whole {
		return Cost{What: what}
	}
	return Cost{what, &sum}
}

// Standing is what a deployment has all the time.
type Standing struct {
	Keys         int     // KMS keys: of the KEKs, retired ones too, and of the anchor
	ControlBytes float64 // of the control table
	AuditRecords float64
}

// What the template deploys that is paid for each month. TestStandingIsTheTemplates counts it.
const (
	alarmMetrics   = 42               // metrics of all alarms
	scheduledCalls = 730 + 730 + 2920 // calls of functions by the clock in a month: two an hour, one each quarter of an hour
	canaryRequests = 3 * 730          // KMS requests of the hourly canary
	recordBytes    = 1500             // of an audit record, about
)

// PriceMonth returns the bill of a month without a rotation.
func (s Standing) PriceMonth(pr Prices) []Cost {
	const gb = 1 << 30
	return []Cost{
		priced(fmt.Sprintf("%d KMS keys, retired ones too", s.Keys), float64(s.Keys), 1, pr.KMSKeyMonth),
		priced(fmt.Sprintf("%d metrics of alarms", alarmMetrics), alarmMetrics, 1, pr.AlarmMonth),
		addCosts(fmt.Sprintf("%d scheduled calls of Lambda, of a second each", scheduledCalls),
			priced("", scheduledCalls*0.25, 1, pr.LambdaGBSecond), priced("", scheduledCalls, 1e6, pr.LambdaPerM)),
		priced(fmt.Sprintf("%d KMS requests of the hourly canary", canaryRequests), canaryRequests, 1e4, pr.KMSPer10000),
		priced("point-in-time recovery of the control table", s.ControlBytes/gb, 1, pr.BackupGBMonth),
		priced(fmt.Sprintf("%.0f audit records in S3", s.AuditRecords), s.AuditRecords*recordBytes/gb, 1, pr.ObjectGBMonth),
	}
}
