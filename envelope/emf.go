package envelope

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// EMF writes a client's counts in CloudWatch's embedded metric format: one line of JSON in
// the log, from which CloudWatch makes metrics (CloudWatch user guide, "Specification:
// Embedded metric format"). It is not safe for concurrent use.
type EMF struct {
	w     io.Writer
	stack string
	now   func() time.Time
	last  Stats
}

// The namespace and the dimension of the metrics. The alarms of template.yaml name them.
const (
	emfNamespace = "Matter"
	emfDimension = "stack"
)

// NewEMF returns a writer of metrics; w is os.Stdout in Lambda. stack is the name of the
// stack that rotates the KEKs: its alarms watch the metrics.
func NewEMF(w io.Writer, stack string, now func() time.Time) *EMF {
	return &EMF{w: w, stack: stack, now: now}
}

// The names of the metrics, in EMF and, after a prefix, in package prom.
const (
	MetricInFlight      = "in_flight_references"
	MetricCacheHits     = "dek_cache_hits"
	MetricCacheMisses   = "dek_cache_misses"
	MetricRefusedWrites = "refused_writes"
	MetricOrphanedKey   = "orphaned_key_reference"
	MetricRevokedLeases = "revoked_leases"
	MetricPointerErrors = "pointer_errors"
)

type emfMetric struct {
	Name string `json:"Name"`
	Unit string `json:"Unit"`
}

// Flush writes the counts since the last Flush. It writes zeros too, because an alarm
// treats a missing value differently from a zero. Call it at the end of an invocation.
func (e *EMF) Flush(s Stats) error {
	line := map[string]any{}
	for name, v := range map[string]int64{
		MetricInFlight:      s.InFlight, // a level, not a count
		MetricCacheHits:     s.CacheHits - e.last.CacheHits,
		MetricCacheMisses:   s.CacheMisses - e.last.CacheMisses,
		MetricRefusedWrites: s.RefusedWrites - e.last.RefusedWrites,
		MetricOrphanedKey:   s.OrphanedKeys - e.last.OrphanedKeys,
		MetricRevokedLeases: s.RevokedLeases - e.last.RevokedLeases,
		MetricPointerErrors: s.PointerErrors - e.last.PointerErrors,
	} {
		line[name] = v
	}
	metrics := make([]emfMetric, 0, len(line))
	for _, name := range slices.Sorted(maps.Keys(line)) {
		metrics = append(metrics, emfMetric{Name: name, Unit: "Count"})
	}
	line[emfDimension] = e.stack
	line["_aws"] = map[string]any{
		"Timestamp": e.now().UnixMilli(),
		"CloudWatchMetrics": []any{map[string]any{
			"Namespace": emfNamespace, "Metrics": metrics, "Dimensions": [][]string{{emfDimension}},
		}},
	}
	b, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if _, err := e.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	e.last = s
	return nil
}
