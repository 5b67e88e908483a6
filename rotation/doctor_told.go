package rotation

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// told is what the audit chain tells of the control table: the state after the records
// that were heard.
type told struct {
	pointer   *kek.Pointer
	keks      map[kek.ID]kek.KEK
	order     []kek.ID        // KEKs as they were first named
	fenced    map[kek.ID]bool // KEKs that were in use, and so have a fence
	rotations map[string]kek.Rotation
	running   string // the rotation that holds the lock; ""
	sources   map[string]toldSource
	registry  int64          // the registry's revision
	lost      map[int64]bool // records that are declared lost
}

// toldSource is a registered source as far as the chain says.
type toldSource struct {
	kek.Source
	whole bool // kind, place and definition are known
}

func newTold() *told {
	return &told{
		keks: map[kek.ID]kek.KEK{}, fenced: map[kek.ID]bool{}, rotations: map[string]kek.Rotation{}, sources: map[string]toldSource{}, lost: map[int64]bool{},
	}
}

// hear takes one record in.
func (t *told) hear(r audit.Record) {
	at, _ := time.Parse(time.RFC3339Nano, r.Time) // a time that is none is no reason to stop
	for _, name := range slices.Sorted(maps.Keys(r.Body)) {
		v := r.Body[name]
		if id, ok := strings.CutPrefix(name, "kek."); ok {
			t.hearKEK(r, kek.ID(id), kek.State(v), at)
		}
		if id, ok := strings.CutPrefix(name, "rotation."); ok {
			known := t.rotations[id]
			known.ID, known.Phase = id, kek.Phase(v)
			t.hearRotation(known)
		}
	}
	if epoch, err := strconv.ParseInt(r.Body["epoch"], 10, 64); err == nil && r.Body["pointer"] != "" {
		k := t.keks[kek.ID(r.Body["pointer"])]
		t.pointer = &kek.Pointer{KEKID: kek.ID(r.Body["pointer"]), KeyARN: k.ARN, Epoch: epoch, RotationID: k.RotationID, SwitchedAt: k.SwitchedAt}
	}
	if r.Rotation != "" && r.Body["phase"] != "" {
		t.hearPhase(r, at)
	}
	t.hearSources(r, at)
	if seq, err := strconv.ParseInt(r.Body["seq"], 10, 64); r.Type == EventRecordLost && err == nil {
		t.lost[seq] = true
	}
}

func (t *told) hearKEK(r audit.Record, id kek.ID, state kek.State, at time.Time) {
	k, known := t.keks[id]
	if !known {
		t.order = append(t.order, id)
		k = kek.KEK{ID: id, CreatedAt: at, Label: r.Body["label"]}
	}
	again := k.State == state // doctor says it again: when and by which rotation it became so is known
	switch k.State = state; {
	case again:
	case state == kek.Pending:
		k.RotationID, k.Label = r.Rotation, r.Body["label"]
	case state == kek.Active:
		k.SwitchedAt, k.RotationID = at, or(k.RotationID, r.Rotation)
	case state == kek.Retired:
		k.RetiredAt, k.Reason = at, "rotated by "+or(r.Rotation, "a rotation that is not known")
	}
	t.keks[id] = k
	t.fenced[id] = t.fenced[id] || state.Resolves()
}

// hearPhase takes in what a record says of its rotation.
func (t *told) hearPhase(r audit.Record, at time.Time) {
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
		if other.Phase == "" { // its record was lost then
			other.Phase = kek.Superseded
		}
		t.hearRotation(other)
	}
	t.hearRotation(v)
}

func (t *told) hearRotation(r kek.Rotation) {
	t.rotations[r.ID] = r
	switch {
	case !r.Phase.Final():
		t.running = r.ID
	case t.running == r.ID:
		t.running = ""
	}
}

func (t *told) hearSources(r audit.Record, at time.Time) {
	b := r.Body
	switch r.Type {
	case kek.EventGenesis:
		for name, definition := range b {
			if name, ok := strings.CutPrefix(name, "source."); ok {
				src := kek.Source{Name: name, Kind: b["kind."+name], Place: b["place."+name], Definition: definition, AddedAt: at, AddedBy: r.Actor}
				t.sources[name] = toldSource{src, src.Kind != ""}
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
		t.sources[src.Name] = toldSource{src, true}
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

// newest reports whether no KEK that was minted after id and was in use is enabled in KMS.
func (t *told) newest(id kek.ID, keys map[kek.ID]Key) bool {
	for _, later := range t.order[slices.Index(t.order, id)+1:] {
		if t.keks[later].State != kek.Pending && keys[later].Enabled {
			return false
		}
	}
	return slices.Contains(t.order, id)
}
