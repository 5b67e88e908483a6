package rotation_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// deleting is a source with a bug: it deletes the row that it should replace.
type deleting struct {
	source.Driver
	table *memstore.Table
}

func (d deleting) Replace(ctx context.Context, old source.Row, _ source.Rewrapped) (bool, error) {
	return true, d.table.Delete(ctx, old.ID)
}

// completed runs a rotation to its end and returns the body of its last record and what
// people were told of the completion.
func completed(t *testing.T, s *site, in rotation.ExecutionInput, before func(state string)) (map[string]string, journal.Notice) {
	t.Helper()
	d := newDriver(s)
	var told []journal.Notice
	d.before = func(c call) {
		if before != nil {
			before(c.state)
		}
		if c.state == "NotifyCompleted" {
			told = append(told, must(lambdastep.DecodePayload[journal.Notice](c.payload)))
		}
	}
	d.complete(spring, in)
	if len(told) != 1 {
		t.Fatalf("people were told %d times", len(told))
	}
	return s.body("kms_rotation_completed"), told[0]
}

// TestDeletingRewrapIsTold: a rewrap that deletes each row instead of replacing it leaves
// nothing that is wrong behind. The number of rows says so, in the record and to people.
func TestDeletingRewrapIsTold(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			open := s.OpenSource
			s.OpenSource = func(def kek.Source) (source.Driver, error) {
				src, err := open(def)
				if def.Name == "orders" {
					src = deleting{src, s.orders}
				}
				return src, err
			}
			body, told := completed(t, s, in, nil)
			const text = "orders: the number of rows fell from 4 in the rewrap pass to 0 in the last"
			if body["rows_missing"] != text || body["rows_fewer"] != text || told.Missing != text {
				t.Errorf("the record says %q, people were told %q", body, told.Missing)
			}
			census := map[string]string{"normal": "census 4, ", "emergency": ""}[name]
			if got, want := body["source.orders"], "rows scanned: "+census+"rewrap 4, confirm 0, verify 0"; got != want {
				t.Errorf("the record says %q, want %q", got, want)
			}
			if last := s.mail[len(s.mail)-1]; last != "KEK rotation completed, but rows are missing" {
				t.Errorf("the last message is %q", last)
			}
			again, err := s.Verify(t.Context(), verifyInput(spring)) // whose answer was lost
			if err != nil || !again.Done || again.Missing != text {
				t.Errorf("repeated, verify says %+v, %v", again, err)
			}
		})
	}
}

// TestFewerRowsAreRecorded: rows that an application deletes while a rotation runs are
// recorded and stop nothing, and people are told only if they are many.
func TestFewerRowsAreRecorded(t *testing.T) {
	for _, c := range []struct {
		name, at             string // the state before which rows are deleted
		rows, deleted, added int
		fewer                string // of orders
		told                 bool
	}{
		{name: "none", at: "Retire", rows: 8},
		{name: "as many come as go", at: "Retire", rows: 8, deleted: 5, added: 5},
		{name: "more come", at: "Retire", rows: 8, added: 3},
		{name: "one of many", at: "Retire", rows: 8, deleted: 1, fewer: "the number of rows fell from 8 in the rewrap pass to 7 in the last"},
		{name: "nearly half", at: "Retire", rows: 9, deleted: 4, fewer: "the number of rows fell from 9 in the rewrap pass to 5 in the last"},
		{name: "half", at: "Retire", rows: 8, deleted: 4, fewer: "the number of rows fell from 8 in the rewrap pass to 4 in the last", told: true},
		{name: "all, on purpose", at: "Retire", rows: 8, deleted: 8, fewer: "the number of rows fell from 8 in the rewrap pass to 0 in the last", told: true},
		{name: "a tenth of few", at: "Retire", rows: 99, deleted: 10, fewer: "the number of rows fell from 99 in the rewrap pass to 89 in the last"},
		{name: "a tenth of many", at: "Retire", rows: 100, deleted: 10, fewer: "the number of rows fell from 100 in the rewrap pass to 90 in the last", told: true},
		{name: "less than a tenth of many", at: "Retire", rows: 100, deleted: 9, fewer: "the number of rows fell from 100 in the rewrap pass to 91 in the last"},
		{name: "after the second scan", at: "Verify", rows: 8, deleted: 4, fewer: "the number of rows fell from 8 in the confirm pass to 4 in the last", told: true},
		{name: "after the census", at: "Mint", rows: 8, deleted: 4, fewer: "the number of rows fell from 8 in the census pass to 4 in the last", told: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			for i := 4; i < c.rows; i++ {
				s.insert(s.orders, fmt.Sprintf("o%d", i))
			}
			var once atomic.Bool
			body, told := completed(t, s, rotation.ExecutionInput{}, func(state string) {
				if state != c.at || once.Swap(true) {
					return
				}
				for i := range c.deleted {
					s.remove(s.orders, fmt.Sprintf("o%d", i))
				}
				for i := range c.added {
					s.insert(s.orders, fmt.Sprintf("new%d", i))
				}
			})
			want := map[string]string{"rows_fewer": "", "rows_missing": ""}
			if c.fewer != "" {
				want["rows_fewer"] = "orders: " + c.fewer
			}
			if c.told {
				want["rows_missing"] = want["rows_fewer"]
			}
			for field, text := range want {
				if body[field] != text {
					t.Errorf("%s is %q, want %q", field, body[field], text)
				}
			}
			if told.Missing != want["rows_missing"] {
				t.Errorf("people were told %q", told.Missing)
			}
			if !strings.HasSuffix(body["source.people"], "rewrap 4, confirm 4, verify 4") {
				t.Errorf("people: %q", body["source.people"])
			}
			s.settled()
		})
	}
}

// TestCountsOfPassesThatWereNotMade: a source that joined after the rewrap has no count of
// it, and is compared with the second scan; the other sources are not.
func TestCountsOfPassesThatWereNotMade(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
	late := s.newTable("late", s.first, "l1", "l2")
	s.add(late)
	s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
	s.remove(late, "l1")
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	body := s.body("kms_rotation_completed")
	if got := body["source.late"]; got != "rows scanned: confirm 2, verify 1" {
		t.Errorf("late: %q", got)
	}
	if got := body["rows_missing"]; got != "late: the number of rows fell from 2 in the confirm pass to 1 in the last" {
		t.Errorf("missing: %q", got)
	}
}

// TestRowsMissingIsOfACompletion: no other message may carry it.
func TestRowsMissingIsOfACompletion(t *testing.T) {
	s := newSite(t)
	_, err := s.Notify(t.Context(), journal.Notice{Event: journal.NotifyRolledBack, RotationID: spring, Missing: "orders"})
	wantKind(t, err, journal.InvalidInput)
	if len(s.mail) > 0 {
		t.Errorf("sent: %q", s.mail)
	}
}
