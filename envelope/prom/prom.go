// Package prom serves the counts of an envelope client to Prometheus. It is separate from
// package envelope so that only programs that use it depend on the Prometheus library.
package prom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/matter-ops/kms-rotation/envelope"
)

// Source is where the counts come from: an [envelope.Client].
type Source interface{ Stats() envelope.Stats }

// metric is one metric and how to read it from the counts.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(envelope.Stats) int64
}

// collector implements [prometheus.Collector].
type collector struct {
	source  Source
	metrics []metric
}

// NewCollector returns a collector to register. It reads the counts at each scrape. labels
// separate the clients of one process; a single client needs none.
//
//	matter_envelope_in_flight_references          gauge
//	matter_envelope_dek_cache_hits_total          counter
//	matter_envelope_dek_cache_misses_total        counter
//	matter_envelope_refused_writes_total          counter
//	matter_envelope_orphaned_key_reference_total  counter, alarm above 0
//	matter_envelope_revoked_leases_total          counter
//	matter_envelope_pointer_errors_total          counter
func NewCollector(source Source, labels prometheus.Labels) prometheus.Collector {
	c := &collector{source: source}
	add := func(name, help string, kind prometheus.ValueType, value func(envelope.Stats) int64) {
		name = "matter_envelope_" + name
		if kind == prometheus.CounterValue {
			name += "_total"
		}
		c.metrics = append(c.metrics, metric{prometheus.NewDesc(name, help, nil, labels), kind, value})
	}
	add(envelope.MetricInFlight, "References to a KEK held now.", prometheus.GaugeValue,
		func(s envelope.Stats) int64 { return s.InFlight })
	add(envelope.MetricCacheHits, "Data keys that needed no call to KMS.", prometheus.CounterValue,
		func(s envelope.Stats) int64 { return s.CacheHits })
	add(envelope.MetricCacheMisses, "Data keys that needed a call to KMS.", prometheus.CounterValue,
		func(s envelope.Stats) int64 { return s.CacheMisses })
	add(envelope.MetricRefusedWrites, "Writes refused by the fence or by another write, sealed and tried again.", prometheus.CounterValue,
		func(s envelope.Stats) int64 { return s.RefusedWrites })
	add(envelope.MetricOrphanedKey, "Rows read whose KEK is retired or unknown.", prometheus.CounterValue,
		func(s envelope.Stats) int64 { return s.OrphanedKeys })
	add(envelope.MetricRevokedLeases, "Leases that a rotation took away.", prometheus.CounterValue,
		func(s envelope.Stats) int64 { return s.RevokedLeases })
	add(envelope.MetricPointerErrors, "Reads of the pointer or of leases that failed.", prometheus.CounterValue,
		func(s envelope.Stats) int64 { return s.PointerErrors })
	return c
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		out <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.source.Stats()
	for _, m := range c.metrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(s)))
	}
}
