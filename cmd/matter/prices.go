package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"

	"github.com/matter-ops/kms-rotation/internal/console"
)

//go:embed prices.json
var listPrices []byte

// prices are what AWS asks, in dollars unless Currency says otherwise. They
// change: the file says of when and where they are.
type prices struct {
	AsOf           string  `json:"as_of"`
	Region         string  `json:"region"`
	Currency       string  `json:"currency"`
	KMSKeyMonth    float64 `json:"kms_key_month"`
	KMSPer10000    float64 `json:"kms_requests_per_10000"`
	ReadsPerM      float64 `json:"dynamodb_read_units_per_million"`
	WritesPerM     float64 `json:"dynamodb_write_units_per_million"`
	PutsPer1000    float64 `json:"s3_puts_per_1000"`
	GetsPer1000    float64 `json:"s3_gets_per_1000"`
	LambdaGBSecond float64 `json:"lambda_gb_second"`
	LambdaGB       float64 `json:"lambda_memory_gb"`
	StepsPer1000   float64 `json:"state_transitions_per_1000"`
}

// loadPrices reads a price table; "" is the one built in.
func loadPrices(path string) (prices, error) {
	b := listPrices
	if path != "" {
		var err error
		if b, err = os.ReadFile(path); err != nil {
			return prices{}, console.UsageError{Err: fmt.Errorf("--prices: %w", err)}
		}
	}
	var p prices
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, console.UsageError{Err: fmt.Errorf("--prices %s: %w; see cmd/matter/prices.json for the form", path, err)}
	}
	return p, nil
}

// cost is one line of the bill.
type cost struct {
	What   string  `json:"what"`
	Amount float64 `json:"amount"`
}

// work is what a rotation does, as far as it is paid for.
type work struct {
	kms           float64 // requests
	reads, writes float64 // DynamoDB request units
	unsized       bool    // a table's size is not known
	puts, gets    float64 // S3 requests
	seconds       float64 // of Lambda functions, all together
	transitions   float64
}

func (p prices) bill(w work) []cost {
	return []cost{
		{fmt.Sprintf("%.0f KMS requests", w.kms), w.kms / 1e4 * p.KMSPer10000},
		{w.readText(), w.reads / 1e6 * p.ReadsPerM},
		{fmt.Sprintf("%.0f DynamoDB write units", w.writes), w.writes / 1e6 * p.WritesPerM},
		{fmt.Sprintf("%.0f S3 reads and %.0f writes", w.gets, w.puts), w.gets/1e3*p.GetsPer1000 + w.puts/1e3*p.PutsPer1000},
		{fmt.Sprintf("%.0f s of Lambda", w.seconds), w.seconds * p.LambdaGB * p.LambdaGBSecond},
		{fmt.Sprintf("%.0f state transitions", w.transitions), w.transitions / 1e3 * p.StepsPer1000},
	}
}

// add adds the work on one source. Each row is read in four full scans (census, rewrap,
// the second scan, the last) and written once; a data key that rows share is rewrapped
// once.
func (w *work) add(c sourcePlan) {
	const scans = 4
	rows, size := float64(c.Rows), float64(max(c.RowBytes, 1))
	w.kms += float64(c.KMSRequests + c.ProofRequests)
	if !c.Table {
		w.gets += scans * rows
		w.puts += rows
		return
	}
	w.unsized = w.unsized || c.Rows > 0 && c.RowBytes == 0
	w.reads += scans * rows * size / 4096 // strongly consistent: a unit per 4 KiB
	perRow := float64((max(c.RowBytes, 1) + 1023) / 1024)
	w.writes += rows * perRow
}

// readText is how much is read. DynamoDB tells a table's size some six hours late
// (DescribeTable, TableSizeBytes): of a new table it is not known.
func (w work) readText() string {
	if w.unsized {
		return "DynamoDB read units: not known, DescribeTable tells no size yet"
	}
	return fmt.Sprintf("%.0f DynamoDB read units", w.reads)
}
