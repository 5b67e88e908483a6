package rotation_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// snapshot is everything that a step could change.
type snapshot struct {
	Pointer     kek.Pointer
	Lock        string
	Registry    int64
	Sources     []kek.Source
	Marks       []kek.Mark
	KEKs        []kek.KEK
	Rotations   []kek.Rotation
	Chain       []audit.Entry
	Unpublished []audit.Entry
	Bucket      map[int64]string
	Keys        map[kek.ID]keyring.Key
	Fences      map[kek.ID]map[int]string
	KeyFences   map[kek.ID]map[int]string
	Leases      map[kek.ID][]rotation.Lease
	Checkpoints []rotation.Checkpoint
	Rows        map[string]memstore.Record
	Gates       any // announcements, drills, approvals, health
}

// rows returns every envelope of every table.
func (s *site) rows() map[place]memstore.Record {
	out := map[place]memstore.Record{}
	for _, table := range s.tables {
		table.Each(func(id string, r memstore.Record) {
			if !r.Other && !r.Declared {
				out[place{table, id}] = r
			}
		})
	}
	return out
}

// keys lists every key that KMS ever made.
func (s *site) keys() []kek.ID {
	s.t.Helper()
	var out []kek.ID
	for i := 1; ; i++ {
		id := kek.ID(fmt.Sprintf("kek-%04d", i))
		_, err := s.kms.Describe(s.t.Context(), id)
		if errors.Is(err, journal.ErrNoKey) {
			return out
		}
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, id)
	}
}

// must returns a value that a look at the world cannot fail to get.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// snapshot takes everything, behind the hook's back.
func (s *site) snapshot() snapshot {
	s.t.Helper()
	ctx := s.t.Context()
	v := must(s.store.LoadAll(ctx, looking))
	out := snapshot{
		Pointer: *v.Pointer, Lock: v.Lock, Registry: v.Registry, Sources: v.Sources, Marks: v.Marks, KEKs: must(s.store.KEKs(ctx)), Rotations: must(s.store.Rotations(ctx)),
		Chain:  must(s.store.AuditEntries(ctx, 1)),
		Bucket: map[int64]string{}, Keys: map[kek.ID]keyring.Key{}, Fences: map[kek.ID]map[int]string{}, KeyFences: map[kek.ID]map[int]string{},
		Leases: map[kek.ID][]rotation.Lease{}, Rows: map[string]memstore.Record{}, Gates: s.store.Gates(),
	}
	waiting, at, err := s.store.Unpublished(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	out.Unpublished = waiting
	for _, e := range out.Chain {
		b, err := s.vault.Get(ctx, at.RecordKey(e.Record.Seq))
		if err == nil {
			out.Bucket[e.Record.Seq] = string(b)
		}
	}
	for _, id := range s.keys() {
		out.Keys[id] = must(s.kms.Describe(ctx, id))
		out.Fences[id], out.KeyFences[id] = s.store.Fences(id), s.store.KeyFences(id)
		out.Leases[id] = must(s.store.Leases(ctx, id))
	}
	for _, r := range out.Rotations {
		for _, src := range r.Sources {
			for _, pass := range []string{"census", "rewrap", "confirm", "verify"} {
				out.Checkpoints = append(out.Checkpoints, must(s.store.ListCheckpoints(ctx, r.ID, rotation.ProgressName(src), pass))...)
			}
		}
	}
	for p, r := range s.rows() {
		out.Rows[p.table.Name()+"/"+p.id] = r
	}
	return out
}

var wholeBytes = cmp.FilterValues(func(a, b []byte) bool { return len(a)+len(b) > 0 }, cmp.Comparer(bytes.Equal))

// diff compares the world with how it was; "" if nothing changed.
func (s *site) diff(was snapshot) string {
	s.t.Helper()
	return cmp.Diff(was, s.snapshot(), cmpopts.EquateEmpty(), wholeBytes)
}

// stable is a step's output without what a repeated call cannot know: how much
// work the first one did.
func stable(t *testing.T, out []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	for _, work := range []string{"tally", "canaries", "corpus_entries", "checks"} {
		delete(m, work)
	}
	return m
}
