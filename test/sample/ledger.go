package sample

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/rowcheck"
)

// Ledger is what the rows of a set held when they were read, each payload and each data key
// unwrapped through KMS. Whatever an application writes or deletes afterwards is told to
// it, so that [Ledger.Check] knows what must be there after a rotation.
type Ledger struct {
	set  *Set
	rows *rowcheck.Checker
	want map[string]string // row → payload
}

// Read opens every row, of the corpus too. Rows of a load are left to the load.
func (s *Set) Read(ctx context.Context) (*Ledger, error) {
	l := &Ledger{set: s, rows: s.newChecker(), want: map[string]string{}}
	type read struct{ id, payload string }
	found := make(chan read)
	done := make(chan struct{})
	go func() {
		for r := range found {
			l.want[r.id] = r.payload
		}
		close(done)
	}()
	err := s.each(ctx, func(row source.Row) error {
		payload, err := l.rows.Open(ctx, row)
		if err != nil {
			return fmt.Errorf("%s under KEK %s: %w", row.ID, row.KEK, err)
		}
		if !strings.Contains(row.ID, "="+load.Prefix) {
			found <- read{row.ID, string(payload)}
		}
		return nil
	})
	close(found)
	<-done
	return l, err
}

// Rows is how many rows must be there.
func (l *Ledger) Rows() int { return len(l.want) }

// Wrote notes what an application has written into a row.
func (l *Ledger) Wrote(row, payload string) { l.want[row] = payload }

// Deleted notes that an application has deleted a row.
func (l *Ledger) Deleted(row string) { delete(l.want, row) }

// Check reads every row again, after the rotations given are completed, the last one last:
// each is there that was there or was written and not deleted, opens, has the payload that
// was written last and is under the last rotation's KEK. After an emergency no row has a
// data key that was seen under a KEK which it left. It returns all that is wrong.
func (l *Ledger) Check(ctx context.Context, rotations ...kek.Rotation) ([]string, error) {
	last := rotations[len(rotations)-1]
	l.rows.Forget()
	l.rows.KMS = l.set.askOnce() // which KEKs unwrap is another matter now
	report, err := l.set.check(ctx, l.rows, l.want)
	if err != nil {
		return nil, err
	}
	wrong := report.Wrong
	for id, n := range report.ByKEK {
		if id != last.NewKEK {
			wrong = append(wrong, fmt.Sprintf("CompletedRows: %d rows are under %s after %s, not under %s", n, id, last.ID, last.NewKEK))
		}
	}
	var left []kek.ID // by the rotations so far: what an earlier one left, a later emergency leaves as well
	for _, r := range rotations {
		left = append(left, r.Olds...)
		if r.Mode != kek.Emergency {
			continue
		}
		if f := l.rows.Exposed(r.ID, left, l.want); f != nil {
			wrong = append(wrong, f.String())
		}
	}
	slices.Sort(wrong)
	return wrong, nil
}
