package replay

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
)

// action is what the records of one type are. take checks that the record is that step of the
// specification and makes it; its error says what forbids it.
type action struct {
	name string // in spec/evidence.tla; "" of a record that changes nothing there
	take func(s *state, rec audit.Record, c claims) error
}

// repair is a record of doctor: what it says of lost or damaged items is taken as it is, but for
// what no repair may do.
const repair = "Repair"

// actions are all types of records that a deployment appends.
var actions = map[string]action{
	"kek_genesis":            {"Init", (*state).begin},
	"rotation_started":       {"Start", (*state).start},
	"emergency_took_over":    {"TakeOver", (*state).takeOver},
	"kek_registered":         {"Register", (*state).register},
	"source_added":           {"AddSource", (*state).addSource},
	"source_removed":         {"RemoveSource", (*state).removeSource},
	"mark_removed":           {"", func(s *state, _ audit.Record, _ claims) error { return s.settled() }},
	"rows_counted":           {"Count", (*state).count},
	"kek_minted":             {"Mint", (*state).mint},
	"rows_rehearsed":         {"Rehearse", (*state).rehearse},
	"dual_unwrap_passed":     {"DualUnwrap", (*state).dualUnwrap},
	"rolled_back":            {"PreSwitchFailure", (*state).rollBack},
	"reminted":               {"Remint", (*state).remint},
	"pointer_switched":       {"Switch", (*state).switchPointer},
	"old_kek_sealed":         {"Seal", (*state).seal},
	"rows_rewrapped":         {"Rewrapped", (*state).rewrap},
	"old_kek_retired":        {"Retire", (*state).retire},
	"kms_rotation_completed": {"Complete", (*state).complete},
	"control_repaired":       {repair, (*state).repair},

	"rotation_resumed":   {"", (*state).runs},
	"reading_restarted":  {"", (*state).runs},
	"rotation_paused":    {"", (*state).runs},
	"rotation_continued": {"", (*state).runs},
	"approval_wanted":    {"", (*state).wantApproval},
	"approval_given":     {"", (*state).approve},
	"approval_refused":   {"", (*state).refuseApproval},
	"lease_revoked":      {"", (*state).revokeLease},
	"drill_passed":       {"", (*state).passDrill},

	"rows_adopted": {"", changeNothing}, "rows_converted": {"", changeNothing},
	"rows_restore_started": {"", changeNothing}, "rows_restored": {"", changeNothing}, "data_keys_put_back": {"", changeNothing}, "window_announced": {"", changeNothing},
	"anchor_heartbeat": {"", changeNothing}, "anchor_canary": {"", changeNothing}, "control_items_archived": {"", changeNothing},
	"audit_generation_begun": {"", changeNothing}, "audit_record_lost": {"", changeNothing},
}

func changeNothing(*state, audit.Record, claims) error { return nil }

// begin is genesis (spec: Init).
func (s *state) begin(rec audit.Record, c claims) error {
	epoch, err := strconv.ParseInt(c.epoch, 10, 64)
	switch {
	case s.pointer != "":
		return fmt.Errorf("the pointer is KEK %s already: a second genesis would bring an old KEK and an old epoch back", s.pointer)
	case c.pointer == "" || err != nil || epoch < 1:
		return fmt.Errorf("it names no KEK and epoch: %q and %q", c.pointer, c.epoch)
	}
	s.pointer, s.epoch, s.keks = c.pointer, epoch, map[string]string{c.pointer: "active"}
	s.rotations, s.sources = map[string]rotation{}, map[string]bool{}
	for k := range rec.Body {
		if name, ok := strings.CutPrefix(k, "source."); ok {
			s.sources[name] = true
		}
	}
	return nil
}

// newRotation is a rotation that begins now.
func (s *state) newRotation(rec audit.Record, mode string) (rotation, error) {
	if _, known := s.rotations[rec.Rotation]; known || rec.Rotation == "" {
		return rotation{}, errors.New("a rotation of this id has begun before, or it has none")
	}
	if s.keks[s.pointer] != "active" {
		return rotation{}, errors.New("the pointer names no active KEK")
	}
	return rotation{phase: "started", mode: mode, old: s.pointer, olds: s.registered(), sources: maps.Clone(s.sources), requester: rec.Body["requested_by"]}, nil
}

func (s *state) start(rec audit.Record, _ claims) error {
	mode := rec.Body["mode"]
	n, err := s.newRotation(rec, mode)
	switch {
	case err != nil:
		return err
	case s.lock != "":
		return fmt.Errorf("the lock is that of rotation %s", s.lock)
	case mode != "normal" && mode != "emergency":
		return fmt.Errorf("its mode is %q", mode)
	}
	s.rotations[rec.Rotation], s.lock = n, rec.Rotation
	return nil
}

func (s *state) takeOver(rec audit.Record, _ claims) error {
	n, err := s.newRotation(rec, "emergency")
	if err != nil {
		return err
	}
	if s.lock == "" {
		return errors.New("the lock is free: there is nothing to take over")
	}
	if ended := rec.Body["ended"]; ended != s.lock {
		return fmt.Errorf("the lock is that of rotation %s, and the record ends %q", s.lock, ended)
	}
	other := s.rotations[s.lock]
	was := other.phase
	other.counted, other.rehearsed = false, ""
	other.phase = "superseded"
	if isPreSwitch(was) {
		s.giveUp(other)
		if other.mode == "normal" {
			other.phase = "rolledback"
		}
	}
	if at := rec.Body["ended_at"]; at != "" && (at != was || rec.Body["ended_as"] != other.phase) {
		return fmt.Errorf("rotation %s was %s and is %s now, and the record says %q and %q", s.lock, was, other.phase, at, rec.Body["ended_as"])
	}
	s.rotations[s.lock] = other
	s.rotations[rec.Rotation], s.lock = n, rec.Rotation
	return nil
}

// giveUp retires the new KEK of a rotation that does not get to its switch (spec: GivenUp).
func (s *state) giveUp(n rotation) {
	if n.made != "" {
		s.keks[n.made] = "retired"
	}
}

func (s *state) register(rec audit.Record, _ claims) error {
	id := rec.Body["kek_id"]
	switch {
	case s.pointer == "":
		return errors.New("there is no pointer yet")
	case id == "":
		return errors.New("it names no KEK")
	case s.keks[id] != "":
		return fmt.Errorf("KEK %s is %s already", id, s.keks[id])
	case s.lock != "":
		return fmt.Errorf("rotation %s runs, and has begun without this KEK", s.lock)
	}
	s.keks[id] = "sealed"
	return nil
}

func (s *state) addSource(rec audit.Record, _ claims) error {
	name := rec.Body["source"]
	if name == "" || s.pointer == "" {
		return errors.New("it names no source, or there is no pointer yet")
	}
	if err := s.settled(); err != nil || s.sources[name] { // a source may get a new definition
		return err
	}
	s.sources[name] = true
	if n, ok := s.rotations[s.lock]; ok && s.lock != "" && n.phase != "retired" {
		n.sources = maps.Clone(n.sources)
		n.sources[name] = true
		s.rotations[s.lock] = n
	}
	return nil
}

func (s *state) removeSource(rec audit.Record, _ claims) error {
	name := rec.Body["source"]
	if !s.sources[name] {
		return fmt.Errorf("%q is not a source", name)
	}
	if err := s.settled(); err != nil {
		return err
	}
	delete(s.sources, name)
	return nil
}

// advance makes a step of a rotation that holds the lock and stands in phase from.
func (s *state) advance(rec audit.Record, from, to string, change func(*rotation) error) error {
	n, err := s.at(rec, from)
	if err != nil {
		return err
	}
	if err := change(&n); err != nil {
		return err
	}
	n.phase = to
	s.rotations[rec.Rotation] = n
	return nil
}

func (s *state) count(rec audit.Record, _ claims) error {
	return s.advance(rec, "started", "started", func(n *rotation) error {
		n.counted = n.mode == "normal"
		return n.namesSources(rec)
	})
}

func (s *state) mint(rec audit.Record, _ claims) error {
	return s.advance(rec, "started", "minted", func(n *rotation) error {
		id := rec.Body["new_kek_id"]
		switch {
		case n.mode == "normal" && !n.counted:
			return errors.New("no census has counted the rows")
		case id == "" || s.keks[id] != "":
			return fmt.Errorf("KEK %q is not new: it is %q", id, s.keks[id])
		}
		s.keks[id], n.made = "pending", id
		return nil
	})
}

func (s *state) rehearse(rec audit.Record, _ claims) error {
	return s.advance(rec, "minted", "minted", func(n *rotation) error {
		if n.rehearsed == n.made {
			return fmt.Errorf("KEK %s was rehearsed before", n.made)
		}
		n.rehearsed = n.made
		return nil
	})
}

func (s *state) dualUnwrap(rec audit.Record, _ claims) error {
	return s.advance(rec, "minted", "tested", func(n *rotation) error {
		if n.rehearsed != n.made {
			return fmt.Errorf("real rows were not tried under KEK %s", n.made)
		}
		return nil
	})
}

func (s *state) rollBack(rec audit.Record, _ claims) error {
	n, err := s.at(rec, "started", "minted", "tested")
	if err != nil {
		return err
	}
	if n.mode != "normal" {
		return errors.New("an emergency never goes back to the KEK that may be compromised")
	}
	s.giveUp(n)
	n.phase, n.counted, n.rehearsed = "rolledback", false, ""
	s.rotations[rec.Rotation], s.lock = n, ""
	return nil
}

func (s *state) remint(rec audit.Record, _ claims) error {
	n, err := s.at(rec, "started", "minted", "tested")
	if err != nil {
		return err
	}
	if n.mode != "emergency" {
		return errors.New("a normal rotation is rolled back, not minted again")
	}
	s.giveUp(n)
	n.phase, n.made = "started", ""
	s.rotations[rec.Rotation] = n
	return nil
}

func (s *state) switchPointer(rec audit.Record, _ claims) error {
	return s.advance(rec, "tested", "switched", func(n *rotation) error {
		switch {
		case s.pointer != n.old || s.keks[n.old] != "active":
			return fmt.Errorf("the pointer is KEK %s, not %s that the rotation leaves", s.pointer, n.old)
		case s.keks[n.made] != "pending":
			return fmt.Errorf("KEK %s is %s, not pending", n.made, s.keks[n.made])
		case n.plan != "" && !n.approved:
			return fmt.Errorf("plan %s waits for a second person, and none has approved it", n.plan)
		}
		s.keks[n.made], s.keks[n.old] = "active", "draining"
		s.pointer, s.epoch = n.made, s.epoch+1
		return nil
	})
}

func (s *state) seal(rec audit.Record, c claims) error {
	n, err := s.at(rec, "switched")
	if err != nil {
		return err
	}
	ids := slices.Collect(maps.Keys(c.keks))
	if len(ids) != 1 || !slices.Contains(n.olds, ids[0]) || s.keks[ids[0]] != "draining" {
		return fmt.Errorf("it seals %q, which is not an old KEK of the rotation that drains", strings.Join(ids, ", "))
	}
	s.keks[ids[0]] = "sealed"
	if !slices.ContainsFunc(n.olds, func(id string) bool { return s.keks[id] == "draining" }) {
		n.phase = "drained"
	}
	s.rotations[rec.Rotation] = n
	return nil
}

func (s *state) rewrap(rec audit.Record, _ claims) error {
	return s.advance(rec, "drained", "rewrapped", func(n *rotation) error { return n.namesSources(rec) })
}

func (s *state) retire(rec audit.Record, _ claims) error {
	return s.advance(rec, "rewrapped", "retired", func(n *rotation) error {
		for _, id := range n.olds {
			if id == s.pointer || s.keks[id] != "sealed" {
				return fmt.Errorf("KEK %s is %s: it can be retired only when it is sealed and the pointer has left it", id, s.keks[id])
			}
		}
		for _, id := range n.olds {
			s.keks[id] = "retired"
		}
		return nil
	})
}

func (s *state) complete(rec audit.Record, _ claims) error {
	err := s.advance(rec, "retired", "completed", func(n *rotation) error { return n.namesSources(rec) })
	if err == nil {
		s.lock = ""
	}
	return err
}

// namesSources requires that a record of a pass says of every source of the rotation what the
// pass saw there.
func (n rotation) namesSources(rec audit.Record) error {
	for _, name := range slices.Sorted(maps.Keys(n.sources)) {
		if rec.Body["source."+name] == "" {
			return fmt.Errorf("it says nothing of source %s, which the rotation has", name)
		}
	}
	return nil
}

// repair takes over what doctor says of items, but for what no repair may do: retire the KEK
// that the pointer names, set the epoch back, bring a rotation forward (spec/doctor.tla). A KEK may come back retired:
// the control table was set back, and the records that it has forgotten say so.
func (s *state) repair(rec audit.Record, c claims) error {
	if c.pointer != "" {
		epoch, err := strconv.ParseInt(c.epoch, 10, 64)
		if err != nil || epoch < s.epoch {
			return fmt.Errorf("it sets the epoch from %d to %q", s.epoch, c.epoch)
		}
	}
	p := cmp.Or(c.pointer, s.pointer)
	if cmp.Or(c.keks[p], s.keks[p]) == "retired" {
		return fmt.Errorf("it retires KEK %s, which the pointer names", p)
	}
	for id, to := range c.keks {
		if to == "active" && id != p {
			return fmt.Errorf("it makes KEK %s active, which the pointer does not name", id)
		}
	}
	for k, phase := range rec.Body {
		if id, ok := strings.CutPrefix(k, "rotation."); ok && !isFinal(phase) {
			return fmt.Errorf("it makes rotation %s %s: a repair can only end one", id, phase)
		}
	}
	s.force(rec, c)
	for k, phase := range rec.Body {
		id, ok := strings.CutPrefix(k, "rotation.")
		if !ok {
			continue
		}
		n := s.rotations[id]
		n.phase = phase
		s.rotations[id] = n
		if isFinal(phase) && s.lock == id {
			s.lock = ""
		}
	}
	return nil
}

// runs requires that the rotation holds the lock.
func (s *state) runs(rec audit.Record, _ claims) error {
	_, err := s.at(rec, "started", "minted", "tested", "switched", "drained", "rewrapped", "retired")
	return err
}

func (s *state) wantApproval(rec audit.Record, _ claims) error {
	return s.note(rec, func(n *rotation) error {
		n.plan, n.approved = rec.Body["plan"], false
		return nil
	})
}

func (s *state) approve(rec audit.Record, _ claims) error {
	return s.note(rec, func(n *rotation) error {
		if n.requester != "" && n.requester == rec.Body["approver"] {
			return fmt.Errorf("%s has approved what %[1]s asked for", n.requester)
		}
		n.plan, n.approved = rec.Body["plan"], true
		return nil
	})
}

func (s *state) refuseApproval(rec audit.Record, _ claims) error {
	return s.note(rec, func(n *rotation) error {
		n.plan, n.approved = rec.Body["plan"], false
		return nil
	})
}

// note changes what is known of a rotation beyond the specification.
func (s *state) note(rec audit.Record, change func(*rotation) error) error {
	n, ok := s.rotations[rec.Rotation]
	if !ok {
		return errors.New("the chain has no start of this rotation")
	}
	if err := change(&n); err != nil {
		return err
	}
	s.rotations[rec.Rotation] = n
	return nil
}

func (s *state) revokeLease(rec audit.Record, _ claims) error {
	if id := rec.Body["kek_id"]; id != "" && id == s.pointer {
		return fmt.Errorf("it revokes a lease on KEK %s, which the pointer names", id)
	}
	return nil
}

// passDrill is the end of a drill, which has retired the KEK that it made.
func (s *state) passDrill(rec audit.Record, c claims) error {
	for id, st := range c.keks {
		if s.keks[id] != st {
			return fmt.Errorf("KEK %s is %s", id, s.keks[id])
		}
	}
	if p := rec.Body["pointer"]; p != s.pointer {
		return fmt.Errorf("the pointer is KEK %s, and the record says %q", s.pointer, p)
	}
	return nil
}
