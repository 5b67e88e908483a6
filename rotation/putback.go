package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// EventPutBack is the type of the two records of a call that puts records of data keys back:
// one before the first, and one at the end.
const EventPutBack = "data_keys_put_back"

// LostRecords says what is wrong with the records of a key table.
type LostRecords struct {
	Source  string
	Missing int64    // records that only copies are left of
	Stale   int64    // records under a KEK that does not resolve, such as one that was restored
	Damaged int64    // items that are not records
	Lost    int64    // of the missing and stale ones, those of which no copy unwraps
	PutBack int64    // of them, put back by this call
	First   []string // ids of the first few that are not put back
}

// PutBackRecords looks at every record of every registered key table, and at the copies of
// those that are missing. With write it puts back what is missing or under a KEK that does not
// resolve, from the newest copy that unwraps, rewrapped to the pointer's KEK, behind that
// KEK's fence (spec: PutBackRead, PutBackWrite). Each put-back is conditional on what was
// read, so it can run beside live traffic and rotations, stop anywhere and be repeated.
//
// A record all of whose copies are under KEKs that do not resolve is left out: its creation
// failed at the fence, and no row names it.
func (s *Steps) PutBackRecords(ctx context.Context, to journal.Recorder, write bool) ([]LostRecords, error) {
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil || len(v.Sources) == 0 {
		return nil, err
	}
	sources, err := s.openSources(v.Sources)
	if err != nil {
		return nil, err
	}
	var out []LostRecords
	for _, src := range sources {
		if !src.Traits().DataKeys {
			continue
		}
		keeper, ok := src.Driver.(source.Keeper)
		if !ok {
			return out, fmt.Errorf("source %s holds data keys, and its driver cannot put them back", src.Name())
		}
		if write && v.Pointer == nil {
			return out, journal.ExplainRefusal(kek.ErrNoPointer)
		}
		r := recordRepair{steps: s, view: v, src: src, keeper: keeper, to: to, write: write, seen: map[string]bool{}}
		r.out.Source = src.Name()
		err := r.run(ctx)
		if r.begun {
			err = errors.Join(err, r.record(context.WithoutCancel(ctx), "done"))
		}
		if out = append(out, r.out); err != nil {
			return out, err
		}
	}
	return out, nil
}

// recordRepair is one call over one key table.
type recordRepair struct {
	steps  *Steps
	view   kek.View
	src    frozenSource
	keeper source.Keeper
	to     journal.Recorder
	write  bool
	begun  bool            // a put-back was recorded
	seen   map[string]bool // missing records that were looked at
	out    LostRecords
}

// record appends a record of what is done.
func (r *recordRepair) record(ctx context.Context, state string) error {
	return r.steps.Journal.RecordEvent(ctx, r.to, audit.Event{
		ID: fmt.Sprintf("%s/%s/%d/%s", EventPutBack, r.src.Name(), r.steps.Journal.Now().UnixNano(), state), Type: EventPutBack, Step: "doctor",
		Body: map[string]string{
			"source": r.src.Name(), "state": state, "missing": fmt.Sprint(r.out.Missing), "stale": fmt.Sprint(r.out.Stale), "put_back": fmt.Sprint(r.out.PutBack),
		},
	})
}

func (r *recordRepair) run(ctx context.Context) error {
	cursor := ""
	for {
		page, err := r.src.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor, Missing: true})
		if err != nil {
			return journal.WrapUnavailable("source "+r.src.Name(), err)
		}
		for _, row := range page.Rows {
			if err := r.examine(ctx, row); err != nil {
				return err
			}
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}

// examine judges a record, or a copy of one that is missing.
func (r *recordRepair) examine(ctx context.Context, row source.Row) error {
	switch {
	case row.Defect != "":
		r.out.Damaged++
		r.name(row)
		return nil
	case row.Missing && r.seen[row.ID], !row.Missing && r.view.KEKs[row.KEK].State.Resolves():
		return nil
	}
	r.seen[row.ID] = true
	copies, err := r.keeper.ListCopies(ctx, row)
	if err != nil {
		return journal.WrapUnavailable("copies of "+r.src.Name(), err)
	}
	copies = slices.DeleteFunc(copies, func(c source.Row) bool { return !r.view.KEKs[c.KEK].State.Resolves() })
	switch {
	case row.Missing && len(copies) == 0:
		return nil
	case row.Missing:
		r.out.Missing++
	default:
		r.out.Stale++
	}
	if len(copies) > 0 && !r.write {
		r.name(row)
		return nil
	}
	slices.Reverse(copies)
	return r.putBack(ctx, row, copies)
}

// putBack puts a record back from the first of its copies that unwraps.
func (r *recordRepair) putBack(ctx context.Context, row source.Row, copies []source.Row) error {
	p := r.view.Pointer
	for _, c := range copies {
		wrapped, err := r.steps.Keys.Wrapper.ReEncrypt(ctx, c.KEK, p.KEKID, c.WrappedDEK, c.Context)
		if errors.Is(err, journal.ErrUnwrap) {
			continue
		}
		if err != nil {
			return r.steps.Keys.ExplainError(c.KEK, err)
		}
		if !r.begun { // the record comes before the first change
			if err := r.record(ctx, "begun"); err != nil {
				return err
			}
			r.begun = true
		}
		done, err := r.keeper.PutBack(ctx, row, c, source.Rewrapped{KEK: p.KEKID, Epoch: p.Epoch, WrappedDEK: wrapped})
		if err != nil {
			return journal.WrapUnavailable("source "+r.src.Name(), err)
		}
		if done {
			r.out.PutBack++
			return nil
		}
		if row.Missing { // another writer has put it back meanwhile
			r.out.Missing--
		} else {
			r.out.Stale--
		}
		return nil
	}
	r.out.Lost++
	r.name(row)
	return nil
}

// name keeps the ids of the first few records that are not put back.
func (r *recordRepair) name(row source.Row) {
	if len(r.out.First) < maxPoison {
		r.out.First = append(r.out.First, row.ID)
	}
}

// String says what is wrong, for people.
func (l LostRecords) String() string {
	var parts []string
	for _, c := range []struct {
		n    int64
		text string
	}{
		{l.Missing, "%d records of data keys are missing"},
		{l.Stale, "%d are under a KEK that is retired or unknown"},
		{l.Damaged, "%d items are not records"},
		{l.Lost, "no copy unwraps of %d of them"},
	} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf(c.text, c.n))
		}
	}
	s := strings.Join(parts, "; ")
	if len(l.First) > 0 {
		s += ", the first " + strings.Join(l.First, ", ")
	}
	return s
}
