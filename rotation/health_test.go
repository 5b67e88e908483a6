package rotation_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// counts is a meter.
type counts map[string][]int64

func (c counts) Count(name string, n int64) { c[name] = append(c[name], n) }

// TestHealth checks that a canary is counted and metered whatever it shows, and that
// people are told of the first red of a day.
func TestHealth(t *testing.T) {
	s := newSite(t)
	meter := counts{}
	s.Journal.Meter = meter
	out, err := s.Health(t.Context(), rotation.HealthInput{})
	want := rotation.HealthOutput{KEK: string(s.first), OK: true, Detail: "the canary opened", Day: "2026-04-01", Green: 1}
	if err != nil || out != want {
		t.Fatalf("%+v, %v; want %+v", out, err, want)
	}
	s.must(s.kms.Disable(t.Context(), s.first))
	for i := range 2 {
		out, err := s.Health(t.Context(), rotation.HealthInput{})
		if err != nil || out.OK || out.Red != int64(i+1) || out.Green != 1 || !strings.Contains(out.Detail, "disabled") {
			t.Errorf("%+v, %v", out, err)
		}
	}
	s.clock.pass(24 * time.Hour)
	if out, err := s.Health(t.Context(), rotation.HealthInput{}); err != nil || out.Red != 1 || out.Day != "2026-04-02" {
		t.Errorf("%+v, %v", out, err)
	}
	if diff := cmp.Diff([]string{"KMS canary failed", "KMS canary failed"}, s.mail); diff != "" {
		t.Errorf("mail (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(counts{rotation.MetricCanaryGreen: {1, 0, 0, 0}, rotation.MetricCanaryRed: {0, 1, 1, 1}}, meter); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// TestHealthCannotCount: what cannot be counted is an error, so that it is tried again.
func TestHealthCannotCount(t *testing.T) {
	for op, kind := range map[string]journal.Kind{"Store.CountHealth": journal.Transient, "Store.Load": journal.Transient} {
		s := newSite(t)
		s.world.SetHook(func(got string, _ ...any) (bool, error) { return got != op, errors.New("no answer") })
		_, err := s.Health(t.Context(), rotation.HealthInput{})
		wantKind(t, err, kind)
	}
	s := newSite(t)
	alter(func(v *kek.View) { v.Pointer = nil })(s)
	_, err := s.Health(t.Context(), rotation.HealthInput{})
	wantKind(t, err, journal.PointerInvalid)
}
