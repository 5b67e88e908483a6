package sim

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestTakeOvers begins an emergency at every call of a normal rotation: at every phase,
// before the switch as when a person is asked, and wherever an execution may have halted.
// Each single fault strikes the emergency at each of its calls. It completes, and every
// promise holds meanwhile. It is a sample, another one every day; with MATTER_SIM_BUDGET
// all of them (make sim-takeovers).
func TestTakeOvers(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	share, seed := 0.03/float64(raced), uint64(time.Now().Unix()/86400)
	if os.Getenv("MATTER_SIM_BUDGET") != "" {
		share = 1
	}
	if text := os.Getenv("MATTER_SIM_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%.1f %% of the schedules, seed %d", 100*share, seed)
	if n := hold(t, seconds(t, "MATTER_SIM_BUDGET", 0), TakeOvers(share, seed)); n < 100 {
		t.Errorf("only %d schedules", n)
	}
}
