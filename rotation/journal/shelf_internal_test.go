package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
)

const line = "line" // the name of the chain

var errShelf = errors.New("the shelf is closed")

// shelf is an audit bucket.
type shelf struct {
	objects map[string][]byte
	broken  string // Get of this key fails
}

func (s *shelf) Put(context.Context, string, audit.Entry) error { return errShelf }

func (s *shelf) Check(context.Context) error { return errShelf }

func (s *shelf) Get(_ context.Context, key string) ([]byte, error) {
	if key == s.broken {
		return nil, errShelf
	}
	b, ok := s.objects[key]
	if !ok {
		return nil, ErrNoRecord
	}
	return b, nil
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
func isError(t *testing.T, name string, err error, kind Kind, field string) {
	t.Helper()
	var typed *Error
	if !errors.As(err, &typed) || typed.Kind != kind || typed.Field != field {
		t.Errorf("%s: %v, want %s of %s", name, err, kind, field)
	}
}

func at(minute int) time.Time { return midnight.Add(time.Duration(minute) * time.Minute) }

var midnight = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
