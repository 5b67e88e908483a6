package kek

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestRandomSchedules runs random transitions of several rotations from views of
// random age, as crashed, repeated and paused steps would, and checks after each
// write what must hold at every moment. A failure names its seed.
func TestRandomSchedules(t *testing.T) {
	events, conflicts := map[string]int{}, 0
	for seed := range uint64(400) {
		s := &schedule{table: genesis(t), rand: rand.New(rand.NewPCG(seed, 1)), retired: map[ID]bool{}}
		for i := range 400 {
			event, err := s.step()
			switch {
			case errors.Is(err, ErrConflict):
				conflicts++
			case err == nil && event != "":
				events[event]++
			}
			if why := s.broken(); why != "" {
				t.Fatalf("seed %d, step %d, %s: %s", seed, i, event, why)
			}
		}
	}
	for _, event := range []string{
		"rotation_started", "kek_minted", "dual_unwrap_passed", "pointer_switched", "old_kek_sealed", "rows_rewrapped",
		"old_kek_retired", "kms_rotation_completed", "rolled_back", "reminted",
	} {
		if events[event] < 30 {
			t.Errorf("%s happened %d times: the schedules prove little", event, events[event])
		}
	}
	if conflicts < 1000 {
		t.Errorf("%d conflicts: the schedules prove little", conflicts)
	}
}

type schedule struct {
	*table
	rand    *rand.Rand
	views   []View // read at some time, not yet acted on
	ids     []string
	minted  int
	retired map[ID]bool
	epoch   int64
}

// step reads a view, or computes and applies a change from one read before.
func (s *schedule) step() (string, error) {
	if len(s.views) == 0 || s.rand.IntN(2) == 0 {
		if len(s.ids) == 0 || s.rand.IntN(8) == 0 {
			s.ids = append(s.ids, fmt.Sprintf("r%d", len(s.ids)))
		}
		id := s.ids[len(s.ids)-1-s.rand.IntN(min(len(s.ids), 3))]
		if s.lock != "" && s.rand.IntN(4) > 0 { // mostly the one that runs
			id = s.lock
		}
		s.views = append(s.views, s.view(id))
		return "", nil
	}
	i := len(s.views) - 1 - s.rand.IntN(min(len(s.views), 6))
	v := s.views[i]
	if s.rand.IntN(3) > 0 { // else the same view acts again
		s.views = append(s.views[:i], s.views[i+1:]...)
	}
	c, err := s.transition(v)
	if err != nil {
		return "", err
	}
	return c.Event, s.apply(c)
}

func (s *schedule) transition(v View) (Change, error) {
	at := now.Add(time.Duration(s.rand.IntN(100)) * time.Second)
	switch s.choose(v) {
	case 0:
		mode := []Mode{Normal, Emergency}[s.rand.IntN(2)]
		return v.Start(Rotation{ID: s.ids[len(s.ids)-1], Mode: mode}, at)
	case 1:
		s.minted++
		return v.Mint(KEK{ID: ID(fmt.Sprintf("kek-%d", s.minted)), FenceShards: 1}, at)
	case 2:
		return v.Test(nil, at)
	case 3:
		return v.Switch(at)
	case 4:
		if v.Rotation != nil && s.keks[v.Rotation.OldKEK].State == Draining {
			s.sealed[v.Rotation.OldKEK] = true
		}
		return v.Seal(at)
	case 5:
		return v.Rewrap(at)
	case 6:
		return v.Retire(at, at)
	case 7:
		return v.Complete(at)
	case 8:
		return v.PreSwitchFailure("random", at)
	default:
		failed := s.rand.IntN(limit + 1)
		if v.Rotation != nil && s.rand.IntN(2) == 0 {
			failed = v.Rotation.Attempt
		}
		return v.Remint(failed, limit, "random", at)
	}
}

// choose picks a transition, more often than not the one that comes next.
func (s *schedule) choose(v View) int {
	next := map[Phase]int{Started: 1, Minted: 2, Tested: 3, Switched: 4, Drained: 5, Rewrapped: 6, KEKRetired: 7}
	if v.Rotation != nil && s.rand.IntN(5) > 0 {
		if n, ok := next[v.Rotation.Phase]; ok {
			return n
		}
	}
	return s.rand.IntN(10)
}

// broken names the invariant that does not hold, if any.
func (s *schedule) broken() string {
	active := 0
	for id, k := range s.keks {
		if k.State == Active {
			active++
		}
		if s.retired[id] && k.State != Retired {
			return fmt.Sprintf("NoResurrection: %s is %s", id, k.State)
		}
		s.retired[id] = k.State == Retired
	}
	switch p := s.pointer; {
	case s.keks[p.KEKID].State != Active || active != 1:
		return fmt.Sprintf("PointerAlwaysUsable: %s is %s, %d are active", p.KEKID, s.keks[p.KEKID].State, active)
	case p.Epoch < s.epoch || !s.opened[p.KEKID]:
		return fmt.Sprintf("EpochMonotone: %d after %d; fence open: %t", p.Epoch, s.epoch, s.opened[p.KEKID])
	default:
		s.epoch = p.Epoch
	}
	running := ""
	moved := map[ID]bool{}
	for id, r := range s.rotations {
		if !r.Phase.Final() {
			if running != "" {
				return "AtMostOneRotation: " + running + " and " + id
			}
			running = id
		}
		moved[r.OldKEK] = moved[r.OldKEK] || r.Epoch > 0 && r.Phase.Reached(KEKRetired)
		switch {
		case r.Phase == RolledBack && (r.Epoch > 0 || r.Mode == Emergency):
			return "PsfNeverAfterSwitch, EmergencyForward: " + id
		case r.Attempt > limit:
			return fmt.Sprintf("%s is at attempt %d", id, r.Attempt)
		case r.Epoch > 0 && !r.Phase.Final() && s.keks[r.NewKEK].State != Active:
			return fmt.Sprintf("%s has switched to %s, which is %s", id, r.NewKEK, s.keks[r.NewKEK].State)
		}
	}
	if s.lock != running {
		return fmt.Sprintf("the lock is %q, the running rotation %q", s.lock, running)
	}
	for id, k := range s.keks {
		if k.State == Retired && !k.SwitchedAt.IsZero() && !moved[id] {
			return fmt.Sprintf("RetireAfterSwitch: %s", id)
		}
	}
	return ""
}
