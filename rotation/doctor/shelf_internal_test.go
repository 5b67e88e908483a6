package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

const line = "line" // the name of the chain

var errShelf = errors.New("the shelf is closed")

// shelf is an audit bucket. It lists its objects the last key first: nothing may rest on
// another order than that of one key's versions.
type shelf struct {
	objects map[string][]byte
	broken  string // Get of this key, or "Versions", fails
	reads   int64
	open    atomic.Int64 // reads that are under way
	most    atomic.Int64
}

func (s *shelf) Put(context.Context, string, audit.Entry) error { return errShelf }

func (s *shelf) Check(context.Context) error { return errShelf }

func (s *shelf) Get(_ context.Context, key string) ([]byte, error) {
	if n := s.open.Add(1); n > s.most.Load() {
		s.most.Store(n)
	}
	defer s.open.Add(-1)
	atomic.AddInt64(&s.reads, 1)
	time.Sleep(time.Millisecond)
	if key == s.broken {
		return nil, errShelf
	}
	b, ok := s.objects[key]
	if !ok {
		return nil, journal.ErrNoRecord
	}
	return b, nil
}

func (s *shelf) PutAnchor(context.Context, string, []byte) ([]byte, error) { return nil, errShelf }

func (s *shelf) GetAnchor(ctx context.Context, key string) ([]byte, error) { return s.Get(ctx, key) }

func (s *shelf) Read(context.Context, audit.ObjectVersion) (audit.Object, error) {
	return audit.Object{}, errShelf
}

func (s *shelf) Versions(context.Context) ([]audit.ObjectVersion, error) {
	if s.broken == "Versions" {
		return nil, errShelf
	}
	var out []audit.ObjectVersion
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		out = append(out, audit.ObjectVersion{Key: key})
	}
	slices.Reverse(out)
	return out, nil
}

// chained makes records, one a minute, that follow a head. Each text is a body as
// "name=value name=value".
func chained(t *testing.T, from audit.Head, minute int, bodies ...string) []audit.Entry {
	t.Helper()
	var out []audit.Entry
	for i, text := range bodies {
		body := map[string]string{}
		for _, f := range strings.Fields(text) {
			name, v, _ := strings.Cut(f, "=")
			body[name] = v
		}
		e, err := audit.Next(line, from, at(minute+i), audit.Event{ID: fmt.Sprint("x/", minute+i), Type: "x", Body: body})
		if err != nil {
			t.Fatal(err)
		}
		out, from = append(out, e), e.Head()
	}
	return out
}

// generation is an id of one.
func generation(n int) string { return fmt.Sprintf("g%d-%016x", n, n) }

// keep puts records into the bucket, in a generation.
func (s *shelf) keep(id string, records ...audit.Entry) {
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	for _, e := range records {
		s.objects[keyIn(id, e.Record.Seq)] = e.Bytes
	}
}

func keyIn(id string, seq int64) string {
	l := audit.Line{Chain: line}
	if id != "" {
		l.Generations = audit.Generations("").With(audit.Generation{ID: id, From: 1})
	}
	return l.RecordKey(seq)
}

// isError fails the test unless err is of a kind, about a field.
func isError(t *testing.T, name string, err error, kind journal.Kind, field string) {
	t.Helper()
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != kind || typed.Field != field {
		t.Errorf("%s: %v, want %s of %s", name, err, kind, field)
	}
}

func at(minute int) time.Time { return midnight.Add(time.Duration(minute) * time.Minute) }

var midnight = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
