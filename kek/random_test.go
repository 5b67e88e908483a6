package kek

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestRandomSchedules runs random transitions of several rotations, and changes of the
// registry beside them, from views of random age, as crashed, repeated and paused steps
// would, and checks after each write what must hold at every moment. A failure names
// its seed.
func TestRandomSchedules(t *testing.T) {
	events, conflicts, changed := map[string]int{}, 0, 0
	for seed := range uint64(600) {
		s := newSchedule(t, seed)
		for i := range 500 {
			event, err := s.step()
			switch {
			case errors.Is(err, ErrConflict):
				conflicts++
			case errors.Is(err, ErrChanged):
				changed++
			case err == nil && event != "":
				events[event]++
			}
			if why := s.broken(); why != "" {
				t.Fatalf("seed %d, step %d, %s: %s", seed, i, event, why)
			}
		}
		events["joined"] += s.joined
		events["several olds retired"] += s.several
		for _, r := range s.rotations {
			switch {
			case r.Phase == Superseded && r.Mode == Emergency:
				events["an emergency superseded"]++
			case r.Phase == Superseded:
				events["superseded"]++
			case r.EndedBy != "":
				events["rolled back by an emergency"]++
			}
		}
		events["several olds sealed"] += s.sealed
	}
	for _, event := range []string{
		"rotation_started", "rows_counted", "kek_minted", "rows_rehearsed", "dual_unwrap_passed", "pointer_switched", "old_kek_sealed",
		"rows_rewrapped", "old_kek_retired", "kms_rotation_completed", "rolled_back", "reminted", "rotation_resumed",
		"source_added", "source_removed", "mark_removed", "kek_registered", "joined", "several olds retired",
		"emergency_took_over", "superseded", "rolled back by an emergency", "an emergency superseded", "several olds sealed",
	} {
		if events[event] < 30 {
			t.Errorf("%s happened %d times: the schedules prove little", event, events[event])
		}
	}
	if conflicts < 1000 || changed < 100 {
		t.Errorf("%d conflicts, %d looks that came too late: the schedules prove little", conflicts, changed)
	}
}

type schedule struct {
	*table
	rand    *rand.Rand
	views   []View // read at some time, not yet acted on
	ids     []string
	minted  int
	past    int
	at      time.Time
	joined  int // sources that joined a rotation
	several int // retirements of more than one KEK
	sealed  int // seals that were not the last of their rotation

	retired map[ID]bool
	final   map[string]Phase // of rotations that are over
	epoch   int64
	rev     int64                        // of the registry
	frozen  map[string]string            // by rotation, at its start
	places  map[string]map[string]bool   // by rotation: the places that it has ever had
	looked  map[string]map[string]string // by rotation: definitions seen in this pass, by source and generation
	lookRev map[string]int64             // and the revision they were seen at
	applied string                       // event of the last write
	by      string                       // rotation of the last write
}

func newSchedule(t *testing.T, seed uint64) *schedule {
	t.Helper()
	return &schedule{
		table: genesis(t), rand: rand.New(rand.NewPCG(seed, 1)), at: now, retired: map[ID]bool{}, final: map[string]Phase{}, frozen: map[string]string{}, places: map[string]map[string]bool{},
		looked: map[string]map[string]string{}, lookRev: map[string]int64{},
	}
}

// step reads a view, lets a writer leave a mark, or computes and applies a change from
// a view that was read before.
func (s *schedule) step() (string, error) {
	s.applied, s.by = "", ""
	if s.rand.IntN(60) == 0 {
		name := fmt.Sprintf("table-%s", s.source())
		s.marks[name] = Mark{Table: name}
	}
	if len(s.views) == 0 || s.rand.IntN(2) == 0 {
		if len(s.ids) == 0 || s.rand.IntN(8) == 0 {
			s.ids = append(s.ids, fmt.Sprintf("r%d", len(s.ids)))
		}
		id := s.ids[len(s.ids)-1-s.rand.IntN(min(len(s.ids), 3))]
		if s.rand.IntN(4) > 0 { // mostly the one that runs
			id = ""
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
	if err = s.apply(c); err == nil {
		s.note(c)
	}
	return c.Event, err
}

// source is the name of one of a few sources.
func (s *schedule) source() string {
	return []string{"orders", "users", "carts", "invoices"}[s.rand.IntN(4)]
}

// note keeps what [schedule.broken] compares with.
func (s *schedule) note(c Change) {
	s.applied = c.Event
	if c.Rotation == nil {
		return
	}
	s.by = c.Rotation.After.ID
	switch c.Event {
	case "rotation_started", "emergency_took_over":
		if s.frozen[s.by] = names(c.Rotation.After.Sources); s.frozen[s.by] != names(s.view("").Sources) {
			s.applied = "froze other sources than are registered"
		}
	case "source_added":
		if c.Rotation.After.Phase != KEKRetired {
			s.joined++
		}
	case "old_kek_sealed":
		if c.Rotation.After.Phase == Switched {
			s.sealed++
		}
	case "old_kek_retired":
		if len(c.KEKs) > 1 {
			s.several++
		}
	}
}

// look does a pass over every row of a rotation's sources, as v knows them. What was
// seen of the same generation before need not be looked at again.
func (s *schedule) look(v View) int64 {
	if v.Rotation == nil {
		return 0
	}
	id := v.Rotation.ID
	if s.looked[id] == nil {
		s.looked[id] = map[string]string{}
	}
	for _, src := range v.Rotation.Sources {
		key := fmt.Sprintf("%s~%d", src.Name, src.Generation)
		if _, ok := s.looked[id][key]; !ok {
			s.looked[id][key] = src.Definition
		}
	}
	if s.rand.IntN(2) == 0 { // it concludes from this look, or from an earlier one
		s.lookRev[id] = v.Rotation.Rev
	}
	return s.lookRev[id]
}

func (s *schedule) transition(v View) (Change, error) {
	s.at = s.at.Add(time.Second)
	switch s.choose(v) {
	case 0:
		mode := []Mode{Normal, Emergency}[s.rand.IntN(2)]
		r := Rotation{ID: s.ids[len(s.ids)-1], Mode: mode}
		return v.Start(r, s.at)
	case 17:
		return v.TakeOver(Rotation{ID: s.ids[len(s.ids)-1], Mode: Emergency}, s.rand.IntN(2) == 0, s.at)
	case 1:
		s.minted++
		return v.Mint(KEK{ID: ID(fmt.Sprintf("kek-%d", s.minted)), FenceShards: 1}, s.at)
	case 2:
		return v.Test(nil, s.at)
	case 3:
		return v.Switch(s.at)
	case 4:
		if v.Rotation != nil {
			for _, id := range v.Draining() {
				if s.keks[id].State == Draining && s.rand.IntN(4) > 0 {
					s.fences[id] = "sealed"
				}
			}
		}
		return v.Seal(s.at)
	case 5:
		return v.Rewrap(s.look(v), s.at)
	case 6:
		return v.Retire(s.look(v), s.at, s.at)
	case 7:
		return v.Complete(s.look(v), s.at)
	case 8:
		return v.PreSwitchFailure("random", s.at)
	case 9:
		return v.Count(s.at)
	case 10:
		return v.Rehearse(s.at)
	case 11:
		return v.PutSource(src(s.source(), fmt.Sprint(s.rand.IntN(4))), s.at)
	case 12:
		return v.RemoveSource(s.source(), s.at)
	case 13:
		return v.ForgetMark("table-"+s.source(), s.at)
	case 14:
		if s.rand.IntN(2) == 0 {
			s.past++
		}
		return v.RegisterKEK(KEK{ID: ID(fmt.Sprintf("past-%d", s.past)), FenceShards: 1}, s.at)
	case 15:
		return v.Resume(s.at)
	default:
		failed := s.rand.IntN(limit + 1)
		if v.Rotation != nil && s.rand.IntN(2) == 0 {
			failed = v.Rotation.Attempt
		}
		return v.Remint(failed, limit, "random", s.at)
	}
}

// choose picks a transition, more often than not the one that comes next.
func (s *schedule) choose(v View) int {
	next := map[Phase]int{Started: 1, Minted: 2, Tested: 3, Switched: 4, Drained: 5, Rewrapped: 6, KEKRetired: 7}
	if r := v.Rotation; r != nil && s.rand.IntN(4) > 0 {
		switch n, ok := next[r.Phase]; {
		case r.Phase.PreSwitch() && s.rand.IntN(8) == 0: // it fails
			return map[Mode]int{Normal: 8, Emergency: 16}[r.Mode]
		case ok && r.Phase == Started && !r.Counted && s.rand.IntN(3) > 0:
			return 9
		case ok && r.Phase == Minted && r.Rehearsed != r.NewKEK && s.rand.IntN(3) > 0:
			return 10
		case ok:
			return n
		}
	}
	if v.Rotation == nil && v.Lock != "" && (!s.rotations[v.Lock].Phase.PreSwitch() || s.rand.IntN(3) > 0) {
		return 17
	}
	return s.rand.IntN(18)
}

// broken names the invariant that does not hold, if any.
func (s *schedule) broken() string {
	for _, check := range []func() string{s.brokenKeys, s.brokenRotations, s.brokenSources} {
		if why := check(); why != "" {
			return why
		}
	}
	return ""
}

func (s *schedule) brokenKeys() string {
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
	case p.Epoch < s.epoch || s.fences[p.KEKID] != "open":
		return fmt.Sprintf("EpochMonotone: %d after %d; fence: %s", p.Epoch, s.epoch, s.fences[p.KEKID])
	default:
		s.epoch = p.Epoch
	}
	moved := map[ID]bool{}
	for _, r := range s.rotations {
		for _, id := range r.Olds {
			moved[id] = moved[id] || r.Epoch > 0 && (r.Phase.Reached(KEKRetired) || r.Phase == Superseded)
		}
	}
	for id, k := range s.keks {
		if k.State == Retired && (!k.SwitchedAt.IsZero() || s.fences[id] != "") && !moved[id] {
			return fmt.Sprintf("RetireAfterSwitch: %s", id)
		}
		if k.State == Sealed && s.fences[id] != "sealed" {
			return fmt.Sprintf("%s is sealed, its fence %q", id, s.fences[id])
		}
	}
	return ""
}

func (s *schedule) brokenRotations() string {
	running := ""
	for id, r := range s.rotations {
		if !r.Phase.Final() {
			if running != "" {
				return "AtMostOneRotation: " + running + " and " + id
			}
			running = id
		}
		switch {
		case r.Phase == RolledBack && (r.Epoch > 0 || r.Mode == Emergency):
			return "PsfNeverAfterSwitch, EmergencyForward: " + id
		case r.Attempt > limit:
			return fmt.Sprintf("%s is at attempt %d", id, r.Attempt)
		case s.final[id] != "" && r.Phase != s.final[id]:
			return fmt.Sprintf("%s was %s and is %s", id, s.final[id], r.Phase)
		case r.EndedBy != "" && !r.Phase.Final():
			return fmt.Sprintf("%s was ended by %s and is %s", id, r.EndedBy, r.Phase)
		case r.Epoch > 0 && !r.Phase.Final() && s.keks[r.NewKEK].State != Active:
			return fmt.Sprintf("%s has switched to %s, which is %s", id, r.NewKEK, s.keks[r.NewKEK].State)
		case r.NewKEK != "" && r.Mode == Normal && !r.Counted:
			return id + " has minted without a census"
		case r.Phase.Reached(Tested) && r.Rehearsed != r.NewKEK:
			return fmt.Sprintf("%s has tested %s and rehearsed with %q", id, r.NewKEK, r.Rehearsed)
		}
		if r.Phase.Final() {
			s.final[id] = r.Phase
		}
		if !r.Phase.Reached(KEKRetired) {
			continue
		}
		if why := s.leftBehind(r); why != "" {
			return why
		}
		for _, old := range r.Olds {
			if s.keks[old].State != Retired {
				return fmt.Sprintf("%s is %s, its old KEK %s is %s", id, r.Phase, old, s.keks[old].State)
			}
		}
	}
	if s.lock != running {
		return fmt.Sprintf("the lock is %q, the running rotation %q", s.lock, running)
	}
	for id, k := range s.keks { // the next rotation leaves every KEK that a row may be under
		if r, ok := s.rotations[s.lock]; ok && k.State.Resolves() && id != r.NewKEK && !slices.Contains(r.Olds, id) {
			return fmt.Sprintf("%s does not leave %s, which is %s", s.lock, id, k.State)
		}
	}
	return ""
}

// leftBehind names a KEK that a rotation which r has ended would leave enabled in KMS:
// every one that it left or made is either left by r or among its leftovers.
func (s *schedule) leftBehind(r Rotation) string {
	for _, ended := range r.TookOver {
		other, ok := s.rotations[ended]
		if !ok {
			continue
		}
		for _, id := range append(slices.Clone(other.Olds), other.NewKEK) {
			if id != "" && !slices.Contains(r.Olds, id) && !slices.Contains(r.Leftover, id) {
				return fmt.Sprintf("%s ended %s and forgets KEK %s", r.ID, ended, id)
			}
		}
	}
	return ""
}

// brokenSources looks at what a rotation knows of where rows are.
func (s *schedule) brokenSources() string {
	if s.registry < s.rev {
		return fmt.Sprintf("the registry's revision went from %d to %d", s.rev, s.registry)
	}
	s.rev = s.registry
	if s.applied == "froze other sources than are registered" {
		return s.applied
	}
	r, ok := s.rotations[s.lock]
	if ok && r.Phase.PreSwitch() {
		if names(r.Sources) != s.frozen[s.lock] {
			return fmt.Sprintf("%s counted %s and has %s", s.lock, s.frozen[s.lock], names(r.Sources))
		}
		for _, src := range r.Sources {
			if s.sources[src.Name].Definition != src.Definition {
				return "a source was changed before the switch: " + src.Name
			}
		}
	}
	if s.applied == "rows_rewrapped" || s.applied == "old_kek_retired" || s.applied == "kms_rotation_completed" {
		for _, src := range s.rotations[s.by].Sources {
			seen, ok := s.looked[s.by][fmt.Sprintf("%s~%d", src.Name, src.Generation)]
			if !ok || seen != src.Definition {
				return fmt.Sprintf("%s of %s concludes for source %s, of which it has seen %q", s.applied, s.by, names([]Source{src}), seen)
			}
		}
	}
	if ok { // a removal takes nothing from a rotation
		have := map[string]bool{}
		for _, src := range r.Sources {
			have[src.Place] = true
		}
		for place := range s.places[r.ID] {
			if !have[place] {
				return r.ID + " has lost " + place
			}
		}
		s.places[r.ID] = have
	}
	if ok && !r.Phase.PreSwitch() && !r.Phase.Reached(KEKRetired) {
		for _, src := range s.sources { // what is registered is moved before the old KEKs are retired
			if !slices.ContainsFunc(r.Sources, func(f Source) bool { return f.Name == src.Name && f.Definition == src.Definition }) {
				return fmt.Sprintf("%s is at %s without source %s", r.ID, r.Phase, src.Name)
			}
		}
	}
	return ""
}
