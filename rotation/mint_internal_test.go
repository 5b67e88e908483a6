package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// reaper is KMS in which keys carry a rotation's tag. It notes what is disabled.
type reaper struct {
	keyring.Admin
	tagged   []kek.ID
	err      error // of Disable
	disabled *[]kek.ID
}

func (r reaper) Tagged(context.Context, string) ([]kek.ID, error) { return r.tagged, nil }

func (r reaper) Disable(_ context.Context, id kek.ID) error {
	*r.disabled = append(*r.disabled, id)
	return r.err
}

// reaping are steps that find keys with the tag of a rotation.
func reaping(keys reaper, v kek.View) *Steps {
	return &Steps{
		Journal: &journal.Journal{
			Registry: ledger{views: map[string]kek.View{"id": v}}, Outbox: young{}, AuditBucket: young{}, Now: func() time.Time { return at(60) },
		},
		Keys: keyring.Keyring{Admin: keys},
	}
}

// TestReapSpares: of the keys that carry a rotation's tag those alone are disabled that
// nothing speaks for: no field of its record, not the pointer, nor a registry that says that
// rows may be under it. Each of these is enough, whatever else was lost.
func TestReapSpares(t *testing.T) {
	keys := []kek.ID{"first", "former", "new", "pointed", "sealed", "retired", "stray"}
	rest := map[kek.ID]kek.KEK{"sealed": {State: kek.Sealed}, "retired": {State: kek.Retired}}
	pointer := &kek.Pointer{KEKID: "pointed"}
	for name, tc := range map[string]struct {
		v    kek.View
		want []kek.ID
	}{
		"a rotation that runs": {
			kek.View{Rotation: &kek.Rotation{Phase: kek.Minted, OldKEK: "first", Olds: []kek.ID{"first", "former"}, NewKEK: "new"}, Pointer: pointer, KEKs: rest},
			[]kek.ID{"retired", "stray"},
		},
		"its record lists no old KEKs": {
			kek.View{Rotation: &kek.Rotation{Phase: kek.Minted, OldKEK: "first", NewKEK: "new"}, Pointer: pointer, KEKs: rest},
			[]kek.ID{"former", "retired", "stray"},
		},
		"it was rolled back": {
			kek.View{Rotation: &kek.Rotation{Phase: kek.RolledBack, OldKEK: "first", Olds: []kek.ID{"first", "former"}, NewKEK: "new"}, Pointer: pointer, KEKs: rest},
			[]kek.ID{"new", "retired", "stray"},
		},
		"the registry is lost": {
			kek.View{Rotation: &kek.Rotation{Phase: kek.Completed, OldKEK: "first", Olds: []kek.ID{"first", "former"}, NewKEK: "new"}, Pointer: pointer},
			[]kek.ID{"sealed", "retired", "stray"},
		},
		"a mint is under way":  {kek.View{Rotation: &kek.Rotation{Phase: kek.Started, OldKEK: "first"}, Pointer: pointer, KEKs: rest}, nil},
		"there is no rotation": {kek.View{Pointer: pointer, KEKs: rest}, nil},
	} {
		var disabled []kek.ID
		if err := reaping(reaper{tagged: keys, disabled: &disabled}, tc.v).disableOrphanKeys(t.Context(), "id"); err != nil || !slices.Equal(disabled, tc.want) {
			t.Errorf("%s: disabled %v, want %v; %v", name, disabled, tc.want, err)
		}
	}
}

// TestReapWithoutAPointer: without a pointer the KEK in use cannot be told from a stray, if
// its entry in the registry is lost too. Nothing is disabled.
func TestReapWithoutAPointer(t *testing.T) {
	var disabled []kek.ID
	v := kek.View{Rotation: &kek.Rotation{Phase: kek.Completed, OldKEK: "first", NewKEK: "new"}}
	err := reaping(reaper{tagged: []kek.ID{"first", "in use"}, disabled: &disabled}, v).disableOrphanKeys(t.Context(), "id")
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.PointerInvalid || disabled != nil {
		t.Errorf("disabled %v, %v", disabled, err)
	}
}

// TestReapOfYoungKeys: a denial is repeated while the keys are young, by the new KEK's age
// or, where none was registered, by the record's.
func TestReapOfYoungKeys(t *testing.T) {
	now, before := at(60), at(60).Add(-tagDelay)
	for name, tc := range map[string]struct {
		r    kek.Rotation
		keks map[kek.ID]kek.KEK
		kind journal.Kind
	}{
		"a young KEK":            {kek.Rotation{Phase: kek.Minted, NewKEK: "new", UpdatedAt: before}, map[kek.ID]kek.KEK{"new": {CreatedAt: now}}, journal.Transient},
		"an old KEK":             {kek.Rotation{Phase: kek.Minted, NewKEK: "new", UpdatedAt: now}, map[kek.ID]kek.KEK{"new": {CreatedAt: before}}, journal.AccessDenied},
		"no KEK, just now":       {kek.Rotation{Phase: kek.RolledBack, UpdatedAt: now}, nil, journal.Transient},
		"no KEK, ten minutes on": {kek.Rotation{Phase: kek.RolledBack, UpdatedAt: before}, nil, journal.AccessDenied},
	} {
		var disabled []kek.ID
		keys := reaper{tagged: []kek.ID{"stray"}, disabled: &disabled, err: fmt.Errorf("disable key: %w", journal.ErrDenied)}
		isError(t, name, reaping(keys, kek.View{Rotation: &tc.r, Pointer: &kek.Pointer{KEKID: "in use"}, KEKs: tc.keks}).disableOrphanKeys(t.Context(), "id"), tc.kind, "KMS DisableKey")
	}
}
