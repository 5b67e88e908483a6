package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
)

//go:embed prices.json
var listPrices []byte

// loadPrices reads a price table; "" is the one built in.
func loadPrices(path string) (estimate.Prices, error) {
	b := listPrices
	if path != "" {
		var err error
		if b, err = os.ReadFile(path); err != nil {
			return estimate.Prices{}, console.UsageError{Err: fmt.Errorf("--prices: %w", err)}
		}
	}
	var p estimate.Prices
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, console.UsageError{Err: fmt.Errorf("--prices %s: %w; see cmd/matter/prices.json for the form", path, err)}
	}
	return p, nil
}

// warnOfOldPrices warns of prices that may have changed since.
func warnOfOldPrices(warnings io.Writer, p estimate.Prices, now time.Time) {
	if p.IsOld(now) {
		fmt.Fprintf(warnings, "warning: the prices are of %s, more than a year ago; give those of today: --prices FILE, in the form of cmd/matter/prices.json\n", cmp.Or(p.AsOf, "an unknown date"))
	}
}
