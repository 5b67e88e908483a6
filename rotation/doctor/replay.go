package doctor

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// replayedState is the state of the control table after the records that were replayed. The
// body of a record names what its transition has changed (package kek, events.go):
//
//	kek.<id>        the KEK's new state
//	pointer, epoch  the pointer's KEK and epoch, if it moved
//	phase, …        the rotation's phase and its other fields
//	ended, ended_as the rotation that an emergency ended, and its phase
//	source, kind, place, definition
//	                a source that was added; source alone if it was removed
//	rotation.<id>, registry
//	                what doctor has repaired
type replayedState struct {
	pointer   *kek.Pointer
	keks      map[kek.ID]kek.KEK
	order     []kek.ID        // KEKs in the order in which they were first named
	fenced    map[kek.ID]bool // KEKs that were in use, and so have a fence
	rotations map[string]kek.Rotation
	running   string // the rotation that holds the lock; "" for none
	sources   map[string]replayedSource
	registry  int64          // the registry's revision
	lost      map[int64]bool // records that are declared lost
}

// replayedSource is a registered source as far as the chain tells.
type replayedSource struct {
	kek.Source
	whole bool // kind, place and definition are known
}

func newReplayedState() *replayedState {
	return &replayedState{
		keks: map[kek.ID]kek.KEK{}, fenced: map[kek.ID]bool{}, rotations: map[string]kek.Rotation{}, sources: map[string]replayedSource{}, lost: map[int64]bool{},
	}
}

// replayRecord applies one record to the state.
func (t *replayedState) replayRecord(r audit.Record) {
	at, _ := time.Parse(time.RFC3339Nano, r.Time) // a wrong time must not stop the replay
	for _, name := range slices.Sorted(maps.Keys(r.Body)) {
		v := r.Body[name]
		if id, ok := strings.CutPrefix(name, "kek."); ok {
			t.replayKEK(r, kek.ID(id), kek.State(v), at)
		}
		if id, ok := strings.CutPrefix(name, "rotation."); ok {
			known := t.rotations[id]
			known.ID, known.Phase = id, kek.Phase(v)
			t.replayRotation(known)
		}
	}
	if epoch, err := strconv.ParseInt(r.Body["epoch"], 10, 64); err == nil && r.Body["pointer"] != "" {
		k := t.keks[kek.ID(r.Body["pointer"])]
		t.pointer = &kek.Pointer{KEKID: kek.ID(r.Body["pointer"]), KeyARN: k.ARN, Epoch: epoch, RotationID: k.RotationID, SwitchedAt: k.SwitchedAt}
	}
	if r.Rotation != "" && r.Body["phase"] != "" {
		t.replayPhase(r, at)
	}
	t.replaySources(r, at)
	if seq, err := strconv.ParseInt(r.Body["seq"], 10, 64); r.Type == EventRecordLost && err == nil {
		t.lost[seq] = true
	}
}

// replayKEK applies the new state of a KEK.
func (t *replayedState) replayKEK(r audit.Record, id kek.ID, state kek.State, at time.Time) {
	k, known := t.keks[id]
	if !known {
		t.order = append(t.order, id)
		k = kek.KEK{ID: id, CreatedAt: at, Label: r.Body["label"]}
	}
	again := k.State == state // a record of doctor repeats it: keep when, and by which rotation, it became so
	switch k.State = state; {
	case again:
	case state == kek.Pending:
		k.RotationID, k.Label = r.Rotation, r.Body["label"]
	case state == kek.Active:
		k.SwitchedAt, k.RotationID = at, firstNonEmpty(k.RotationID, r.Rotation)
	case state == kek.Retired:
		k.RetiredAt, k.Reason = at, "rotated by "+firstNonEmpty(r.Rotation, "a rotation that is not known")
	}
	t.keks[id] = k
	t.fenced[id] = t.fenced[id] || state.Resolves()
}

// replayPhase applies what a record says of its rotation.
func (t *replayedState) replayPhase(r audit.Record, at time.Time) {
	v := t.rotations[r.Rotation]
	if v.ID == "" {
		v = kek.Rotation{ID: r.Rotation, StartedAt: at, Attempt: 1, Rev: 1}
	}
	b := r.Body
	v.Mode = kek.Mode(b["mode"])
	v.Phase = kek.Phase(b["phase"])
	v.Label = b["label"]
	v.Reason = b["reason"]
	v.OldKEK = kek.ID(b["old_kek_id"])
	v.NewKEK = kek.ID(b["new_kek_id"])
	v.Execution = b["execution"]
	v.Err = b["error"]
	v.Requester = b["requested_by"]
	v.Drill = b["drill"]
	v.Actor = r.Actor
	v.UpdatedAt = at
	v.Rev++
	if v.OldKEK != "" && len(v.Olds) == 0 {
		v.Olds = []kek.ID{v.OldKEK}
	}
	if r.Type == kek.EventOldKEKSealed || r.Type == kek.EventOldKEKRetired {
		for name := range b {
			if id, ok := strings.CutPrefix(name, "kek."); ok && !slices.Contains(v.Olds, kek.ID(id)) {
				v.Olds = append(v.Olds, kek.ID(id))
			}
		}
		slices.Sort(v.Olds[1:])
	}
	if epoch, err := strconv.ParseInt(b["epoch"], 10, 64); err == nil {
		v.Epoch, v.SwitchedAt = epoch, at
	}
	if ended := b["ended"]; ended != "" {
		other := t.rotations[ended]
		other.ID = ended
		other.Phase = kek.Phase(b["ended_as"])
		other.EndedBy = r.Rotation
		if other.Phase == "" { // its record was already lost when it was ended
			other.Phase = kek.Superseded
		}
		t.replayRotation(other)
	}
	t.replayRotation(v)
}

// replayRotation keeps a rotation, and which one holds the lock: one that is not over.
func (t *replayedState) replayRotation(r kek.Rotation) {
	t.rotations[r.ID] = r
	switch {
	case !r.Phase.Final():
		t.running = r.ID
	case t.running == r.ID:
		t.running = ""
	}
}

// replaySources applies what a record says of sources and of the registry's revision.
func (t *replayedState) replaySources(r audit.Record, at time.Time) {
	b := r.Body
	switch r.Type {
	case kek.EventGenesis:
		for name, definition := range b {
			if name, ok := strings.CutPrefix(name, "source."); ok {
				src := kek.Source{Name: name, Kind: b["kind."+name], Place: b["place."+name], Definition: definition, AddedAt: at, AddedBy: r.Actor}
				t.sources[name] = replayedSource{src, src.Kind != ""}
			}
		}
		t.registry = 1
		return
	case kek.EventSourceAdded:
		was, again := t.sources[b["source"]]
		src := kek.Source{Name: b["source"], Kind: b["kind"], Place: b["place"], Definition: b["definition"], AddedAt: at, AddedBy: r.Actor}
		if again && was.Definition != src.Definition {
			src.Generation = was.Generation + 1
		}
		t.sources[src.Name] = replayedSource{src, true}
	case kek.EventSourceRemoved:
		delete(t.sources, b["source"])
	case kek.EventMarkRemoved, kek.EventKEKRegistered:
	case EventRepaired:
		if rev, err := strconv.ParseInt(b["registry"], 10, 64); err == nil {
			t.registry = max(t.registry, rev)
		}
		return
	default:
		return
	}
	rev, _ := strconv.ParseInt(r.ID[strings.LastIndexByte(r.ID, '/')+1:], 10, 64) // see repeatable
	t.registry = max(t.registry+1, rev)
}

// isNewest reports whether every KEK that was in use and was minted after id is disabled in
// KMS.
func (t *replayedState) isNewest(id kek.ID, keys map[kek.ID]keyring.Key) bool {
	for _, later := range t.order[slices.Index(t.order, id)+1:] {
		if t.keks[later].State != kek.Pending && keys[later].Enabled {
			return false
		}
	}
	return slices.Contains(t.order, id)
}
