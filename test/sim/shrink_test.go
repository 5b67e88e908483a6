package sim

import (
	"slices"
	"testing"
)

// TestShrink: of many faults just those are left that are needed together, and a
// schedule that breaks nothing stays as it is.
func TestShrink(t *testing.T) {
	needed := []Fault{{20, Pause, 7}, {31, Begin, 1}, {90, Finish, 0}}
	for seed := range uint64(300) {
		s := Random(seed)
		s.Faults = append(s.Faults, needed...)
		tries := 0
		got := shrink(s.sorted(), func(s Schedule) bool {
			tries++
			for _, f := range needed {
				if !slices.Contains(s.Faults, f) {
					return false
				}
			}
			return true
		})
		if !slices.Equal(got.Faults, needed) || got.Emergency != s.Emergency {
			t.Fatalf("seed %d: %s is left", seed, got)
		}
		if limit := (len(s.Faults) + 2) * (len(s.Faults) + 2); tries > limit {
			t.Errorf("seed %d: %d tries for %d faults", seed, tries, len(s.Faults))
		}
	}
	if s := Random(3); !slices.Equal(Shrink(s).Faults, s.Faults) {
		t.Error("a schedule that breaks nothing was shrunk")
	}
}
