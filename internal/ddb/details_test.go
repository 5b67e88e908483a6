package ddb

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestRotationItem: a rotation's record is read as it was written, with all that it may
// hold, with one of each list and with none.
func TestRotationItem(t *testing.T) {
	at := func(minutes int) time.Time { return time.Date(2026, 4, 1, 2, minutes, 0, 0, time.UTC) }
	full := kek.Rotation{
		ID: "r", Mode: kek.Emergency, Phase: kek.Drained, Label: "l", Reason: "because", OldKEK: "a", Olds: []kek.ID{"a", "b"}, NewKEK: "c", Attempt: 2, Epoch: 3,
		Probes: map[kek.ID][]byte{"a": []byte("p"), "b": []byte("q")}, Segments: 4, Settings: kek.Settings{MaxMints: 3, Deep: true},
		Sources: []kek.Source{{Name: "s", Kind: "dynamodb", Definition: "{}", Place: "t", Generation: 1}, {Name: "u", Kind: "corpus", Definition: "{}", Place: "v"}},
		Counted: true, Rehearsed: "c", Rev: 5, Execution: "e", Actor: "me", Requester: "you", Drill: "d", Approval: true, StartedAt: at(0), UpdatedAt: at(1), SwitchedAt: at(2),
		SealedAt: at(3), ResumedAt: at(4), Err: "why", TookOver: []string{"q", "p"}, Leftover: []kek.ID{"x", "y"}, EndedBy: "z",
	}
	one := full
	one.Olds, one.TookOver, one.Leftover, one.Sources = full.Olds[:1], full.TookOver[:1], full.Leftover[:1], full.Sources[:1]
	for _, want := range []kek.Rotation{full, one, {ID: "r", Mode: kek.Normal, Phase: kek.Started}} {
		got, err := decodeRotation(encodeRotation(want))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	}
}

// TestEntriesThatAreGarbage: a record that cannot be parsed says so.
func TestEntriesThatAreGarbage(t *testing.T) {
	_, err := decodeEntry(item{"sk": attr.Str("1"), "hash": attr.Str("h"), "record": attr.Blob([]byte("garbage"))})
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.AuditTampered || !strings.Contains(err.Error(), "audit record: ") {
		t.Error(err)
	}
}

// TestListsThatAreDamaged: a source or a mark that cannot be read is an error, and no list.
func TestListsThatAreDamaged(t *testing.T) {
	s := New(&fixed{items: []item{{"pk": attr.Str("SOURCES"), "sk": attr.Num(1)}}}, "t", "c", time.Now)
	if list, err := s.Sources(t.Context()); err == nil {
		t.Errorf("sources %+v", list)
	}
	if list, err := s.Marks(t.Context()); err == nil {
		t.Errorf("marks %+v", list)
	}
}
