package replay

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
)

// state is the state of spec/evidence.tla. The zero value is that of before genesis.
type state struct {
	pointer   string
	epoch     int64
	keks      map[string]string // state, by id; absent: none
	lock      string            // id of the rotation that holds it
	rotations map[string]rotation
	sources   map[string]bool // by name
}

// rotation is the record of a rotation: rot[n] of the specification.
type rotation struct {
	phase, mode string
	old         string
	olds        []string // KEKs that it leaves
	sources     map[string]bool
	counted     bool
	made        string // its new KEK
	rehearsed   string

	// Beyond the specification: who asked for it, and what a second person said of which plan.
	requester, plan string
	approved        bool
}

// clone copies what the actions change. They never change the maps and lists of a rotation in place.
func (s state) clone() state {
	s.keks, s.rotations, s.sources = maps.Clone(s.keks), maps.Clone(s.rotations), maps.Clone(s.sources)
	return s
}

func isPreSwitch(phase string) bool {
	return phase == "started" || phase == "minted" || phase == "tested"
}

// resolves reports whether rows may be under a KEK in this state.
func resolves(kek string) bool { return kek == "active" || kek == "draining" || kek == "sealed" }

// registered lists the KEKs that rows may be under.
func (s *state) registered() []string {
	var ids []string
	for id, st := range s.keks {
		if resolves(st) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// settled reports whether no rotation is between its census and its switch.
func (s *state) settled() error {
	if n := s.rotations[s.lock]; s.lock != "" && isPreSwitch(n.phase) {
		return fmt.Errorf("rotation %s is %s: between its census and its switch no source joins or leaves", s.lock, n.phase)
	}
	return nil
}

// at returns the rotation of a record, which must hold the lock and stand in one of the phases.
func (s *state) at(rec audit.Record, phases ...string) (rotation, error) {
	n, ok := s.rotations[rec.Rotation]
	switch {
	case rec.Rotation == "":
		return n, errors.New("it names no rotation")
	case !ok:
		return n, errors.New("the chain has no start of this rotation")
	case s.lock != rec.Rotation:
		return n, fmt.Errorf("the rotation is %s and does not hold the lock, which %s", n.phase, describeHolder(s.lock))
	case !slices.Contains(phases, n.phase):
		return n, fmt.Errorf("the rotation is %s, not %s", n.phase, strings.Join(phases, " or "))
	}
	return n, nil
}

func describeHolder(lock string) string {
	if lock == "" {
		return "is free"
	}
	return "is that of rotation " + lock
}

// force takes over what a record that is not a step says, so that the records after it are
// judged by it.
func (s *state) force(rec audit.Record, c claims) {
	if s.keks == nil {
		s.keks, s.rotations, s.sources = map[string]string{}, map[string]rotation{}, map[string]bool{}
	}
	if epoch, err := strconv.ParseInt(c.epoch, 10, 64); err == nil && c.pointer != "" {
		s.pointer, s.epoch = c.pointer, epoch
	}
	maps.Copy(s.keks, c.keks)
	phase := rec.Body["phase"]
	if rec.Rotation == "" || phase == "" {
		return
	}
	n, known := s.rotations[rec.Rotation]
	if !known {
		n.olds, n.sources = s.registered(), maps.Clone(s.sources)
	}
	n.phase, n.mode, n.old, n.made = phase, rec.Body["mode"], rec.Body["old_kek_id"], rec.Body["new_kek_id"]
	n.counted, n.rehearsed = n.phase != "started", n.made
	s.rotations[rec.Rotation] = n
	switch {
	case !isFinal(phase):
		s.lock = rec.Rotation
	case s.lock == rec.Rotation:
		s.lock = ""
	}
}

func isFinal(phase string) bool {
	return phase == "completed" || phase == "rolledback" || phase == "superseded"
}
