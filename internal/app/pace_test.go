package app

import "testing"

// TestSlowPace: a process that may send few requests to KMS reads no page ahead, so that
// what a pass concludes from is never as old as the pages that wait.
func TestSlowPace(t *testing.T) {
	const segments, pages, rows, tooOld = 4, 4, 500, 600 // seconds
	for rate := 1.; rate <= 1000; rate++ {
		p := PaceAt(rate)
		if p.PagesAhead > 0 && segments*pages*rows/rate >= tooOld {
			t.Errorf("%g requests a second: pages are read ahead", rate)
		}
		if rate >= 250 && p != pace {
			t.Errorf("%g requests a second: %+v", rate, p)
		}
	}
}
