package prom_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/prom"
)

type stats envelope.Stats

func (s *stats) Stats() envelope.Stats { return envelope.Stats(*s) }

func TestCollector(t *testing.T) {
	source := &stats{InFlight: 1, CacheHits: 2, CacheMisses: 3, RefusedWrites: 4, OrphanedKeys: 5, RevokedLeases: 6, PointerErrors: 7}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(prom.NewCollector(source, prometheus.Labels{"client": "a"}))
	r.MustRegister(prom.NewCollector(&stats{}, prometheus.Labels{"client": "b"}))
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			if m.Label[0].GetValue() == "a" {
				got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	want := map[string]float64{
		"matter_envelope_in_flight_references": 1, "matter_envelope_dek_cache_hits_total": 2, "matter_envelope_dek_cache_misses_total": 3,
		"matter_envelope_refused_writes_total": 4, "matter_envelope_orphaned_key_reference_total": 5,
		"matter_envelope_revoked_leases_total": 6, "matter_envelope_pointer_errors_total": 7,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
