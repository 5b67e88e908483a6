package rotation

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// shelf is an audit bucket. An object that is nil does not answer.
type shelf struct {
	journal.AuditBucket
	objects map[string][]byte
}

func (b shelf) Get(_ context.Context, key string) ([]byte, error) {
	object, ok := b.objects[key]
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: %w", key, journal.ErrNoRecord)
	case object == nil:
		return nil, errShelf
	}
	return object, nil
}

// TestFindCompletion: the newest record of a rotation's completion is found, also behind
// records that are lost; a bucket that does not answer or a record that cannot be read is an
// error, not the lack of a record.
func TestFindCompletion(t *testing.T) {
	line := audit.Line{Chain: "line"}
	record := func(seq int64, rotation, event string) []byte {
		e, err := audit.Next(line.Chain, audit.Head{Seq: seq - 1, Hash: strings.Repeat("0", 64)}, midnight, audit.Event{ID: fmt.Sprint(seq), Rotation: rotation, Type: event})
		if err != nil {
			t.Fatal(err)
		}
		return e.Bytes
	}
	objects := map[string][]byte{
		line.RecordKey(1): []byte("garbage"),
		line.RecordKey(2): record(2, "first", kek.EventRotationCompleted),
		line.RecordKey(3): record(3, "second", kek.EventRotationCompleted),
		line.RecordKey(4): record(4, "second", kek.EventRotationStarted),
		// record 5 is lost
		line.RecordKey(6): nil,
	}
	s := &Steps{Journal: &journal.Journal{AuditBucket: shelf{objects: objects}}}
	for _, tc := range []struct {
		last int64
		id   string
		seq  int64
		says string
	}{
		{5, "second", 3, ""},
		{5, "first", 2, ""},
		{2, "second", 0, "audit record 1: "},
		{6, "second", 0, "audit record 6"},
		{0, "second", 0, ""},
	} {
		r, err := s.findCompletion(t.Context(), line, tc.last, tc.id)
		if r.Seq != tc.seq || (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s, up to %d: record %d, %v", tc.id, tc.last, r.Seq, err)
		}
	}
}
