package rotation

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// EventAdopted is the type of the two records of an adoption: one before the first row is
// labelled, and one at the end with the counts.
const EventAdopted = "rows_adopted"

// AdoptInput asks to adopt the rows of one source that were written without this project.
type AdoptInput struct {
	Source string
	Write  bool             // false only looks
	Seen   func(rows int64) // told how many items were read; may be nil
}

// Adoption is what was found and done, by class of item.
type Adoption struct {
	Source  string           `json:"source"`
	Sound   int64            `json:"sound"`        // envelopes that need nothing
	Other   int64            `json:"other"`        // items that are not envelopes
	Found   map[string]int64 `json:"found"`        // items that can be labelled, by kind and the KEK that KMS names
	Keyed   bool             `json:"keyed"`        // the source's definition says that keyed rows are written
	Written int64            `json:"written"`      // of them, labelled or made keyed rows by this call
	Changed int64            `json:"changed"`      // of them, changed by another writer meanwhile: run it again
	Left    map[string]int64 `json:"left"`         // items that cannot be adopted, by reason
	First   []string         `json:"first_left"`   // the first few of them
	Unknown []kek.ID         `json:"unknown_keks"` // KEKs that rows are under and the registry does not know
}

// Adopt reads every item of a registered source. If an item carries a key or a whole
// payload that KMS has wrapped, but does not name its KEK by id, KMS is asked which key
// unwraps it with the row's context. With Write, the row is labelled with that key's id.
// Rows under a KEK that the registry does not know are left alone, and the KEK is named.
//
// Only the label is written, on condition that the row is still what was read. So adoption
// can run beside live traffic, can stop anywhere and can be repeated. If the definition says
// that keyed rows are written, such a row becomes a keyed one at once, as by [Steps.Convert],
// except for one that Tink wrote.
func (s *Steps) Adopt(ctx context.Context, to journal.Recorder, in AdoptInput) (out Adoption, err error) {
	out = Adoption{Source: in.Source, Found: map[string]int64{}, Left: map[string]int64{}}
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return out, err
	}
	src, err := s.openRegistered(v, in.Source)
	if err != nil {
		return out, err
	}
	labeler, ok := src.Driver.(source.Labeler)
	if !ok {
		return out, journal.RejectInput("source", fmt.Sprintf("rows of source %s cannot be adopted", in.Source), "adopt a table")
	}
	record := func(ctx context.Context, done string) error {
		return s.Journal.RecordEvent(ctx, to, audit.Event{
			ID: fmt.Sprintf("%s/%s/%d/%s", EventAdopted, in.Source, s.Journal.Now().UnixNano(), done), Type: EventAdopted, Step: "adopt",
			Body: map[string]string{"source": in.Source, "state": done, "rows": fmt.Sprint(out.Written), "found": journal.CutText(formatCounts(out.Found))},
		})
	}
	keyed, err := s.openKeyed(ctx, src)
	if err != nil {
		return out, err
	}
	out.Keyed = keyed != nil
	defer keyed.wipe()
	a := adopter{
		steps: s, src: src, to: labeler, keyed: keyed, view: v, write: in.Write, out: &out,
		begin: sync.OnceValue(func() error { return record(ctx, "begun") }),
	}
	defer func() {
		if out.Written > 0 { // also if the run was interrupted
			err = errors.Join(err, record(context.WithoutCancel(ctx), "done"))
		}
	}()
	cursor, items := "", int64(0)
	for {
		page, err := src.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor, Payload: out.Keyed})
		if err != nil {
			return out, journal.WrapUnavailable("source "+src.Name(), err)
		}
		for _, row := range page.Rows {
			if err := a.adoptRow(ctx, row); err != nil {
				return out, err
			}
		}
		out.Sound += int64(len(page.Keyed))
		out.Other += int64(page.Other + page.Declared)
		if items += int64(len(page.Rows) + len(page.Keyed) + page.Other + page.Declared); in.Seen != nil {
			in.Seen(items)
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	return out, nil
}

// openRegistered opens a source of the registry by name.
func (s *Steps) openRegistered(v kek.View, name string) (frozenSource, error) {
	for _, def := range v.Sources {
		if def.Name == name {
			opened, err := s.openSources([]kek.Source{def})
			if err != nil {
				return frozenSource{}, err
			}
			return opened[0], nil
		}
	}
	return frozenSource{}, &journal.Error{Kind: journal.InvalidInput, Field: "source", Msg: fmt.Sprintf("%q is not registered", name), Next: journal.Next{Do: journal.ListSources}}
}

// adopter adopts the rows of one source.
type adopter struct {
	steps *Steps
	src   frozenSource
	to    source.Labeler
	keyed *converter // nil: rows stay embedded
	view  kek.View
	write bool
	begin func() error // records that rows will be labelled
	out   *Adoption
}

// adoptRow classifies one row and labels it if it can. A row that another writer changes
// meanwhile is read again, a bounded number of times.
func (a adopter) adoptRow(ctx context.Context, row source.Row) error {
	for range journal.MaxTries {
		if row.Defect == "" && row.KeyARN == "" {
			a.countSound(row)
			return nil
		}
		adoptable := row.Kind == source.NoKEK || row.Kind == source.UnknownForm || row.Defect == "" // a key ARN is sound, the plain id is better
		if !adoptable || len(row.WrappedDEK) == 0 {
			a.leaveRow(row, string(row.Kind))
			return nil
		}
		id, arn, err := a.steps.Keys.Wrapper.Identify(ctx, row.WrappedDEK, row.Context)
		switch {
		case errors.Is(err, journal.ErrUnwrap):
			a.leaveRow(row, "KMS does not unwrap it with the context of the source's definition")
			return nil
		case errors.Is(err, journal.ErrKeyDisabled) || errors.Is(err, journal.ErrNoKey) || errors.Is(err, journal.ErrDenied):
			a.leaveRow(row, "its key cannot be used: "+err.Error())
			return nil
		case err != nil:
			return journal.WrapUnavailable("KMS Decrypt", err)
		}
		k, known := a.view.KEKs[id]
		switch {
		case !known:
			a.addUnknown(id)
			a.leaveRow(row, fmt.Sprintf("KEK %s is not registered", arn))
			return nil
		case k.ARN != arn:
			a.leaveRow(row, fmt.Sprintf("it is under key %s, but the registry's KEK of that id is %s", arn, k.ARN))
			return nil
		case !k.State.Resolves():
			a.leaveRow(row, fmt.Sprintf("it is under KEK %s, which is %s: restore it from a backup under the current one", id, k.State))
			return nil
		}
		kind := string(row.Kind)
		if row.Defect == "" {
			kind = "kek_id_arn"
		}
		if !a.write {
			a.out.Found[kind+" under "+string(id)]++
			return nil
		}
		if err := a.begin(); err != nil {
			return err
		}
		done, err := a.writeRow(ctx, row, id)
		if isRowError(err) { // of this row only: the others can still be written
			if reason := err.Error(); errors.Is(err, errOpen) {
				a.leaveRow(row, reason)
			} else {
				a.leaveRow(row, "AWS does not write it: "+reason)
			}
			return nil
		}
		if err != nil {
			return journal.WrapUnavailable("source "+a.src.Name(), err)
		}
		if done {
			a.out.Found[kind+" under "+string(id)]++
			a.out.Written++
			return nil
		}
		again, ok, err := a.src.Reread(ctx, row, a.out.Keyed)
		if err != nil {
			return journal.WrapUnavailable("source "+a.src.Name(), err)
		}
		if !ok {
			return nil // deleted meanwhile
		}
		row = again
	}
	a.out.Changed++
	return nil
}

// openKeyed returns what makes adopted rows keyed ones; nil if the source's definition does not
// say that keyed rows are written.
func (s *Steps) openKeyed(ctx context.Context, src frozenSource) (*converter, error) {
	if to, ok := src.Driver.(source.Converter); !ok || !to.WritesKeyed() {
		return nil, nil
	}
	return s.newConverter(ctx, ConvertInput{Source: src.Name()})
}

// writeRow labels a row, or makes it a keyed one. False means that it is not what was read.
func (a adopter) writeRow(ctx context.Context, row source.Row, id kek.ID) (bool, error) {
	if a.keyed == nil || row.Whole {
		return a.to.Label(ctx, row, id)
	}
	if err := a.keyed.look(ctx); err != nil {
		return false, err
	}
	row.KEK = id // KMS says so
	row.KeyARN = ""
	row.Kind = ""
	row.Defect = ""
	done, err := a.keyed.moveRow(ctx, row)
	if passes(err) {
		return false, nil
	}
	return done, err
}

// countSound counts a row that names its KEK by id.
func (a adopter) countSound(row source.Row) {
	err := registryRoster(a.view).checkRow(row)
	if err == nil {
		a.out.Sound++
		return
	}
	if _, known := a.view.KEKs[row.KEK]; !known {
		a.addUnknown(row.KEK)
	}
	a.leaveRow(row, err.Error())
}

// leaveRow counts a row that cannot be adopted, by reason, and keeps the ids of the first.
func (a adopter) leaveRow(row source.Row, reason string) {
	a.out.Left[reason]++
	if len(a.out.First) < maxPoison {
		a.out.First = append(a.out.First, fmt.Sprintf("%s: %s", row.ID, orDefect(row, reason)))
	}
}

func orDefect(row source.Row, reason string) string {
	if row.Defect != "" {
		return row.Defect
	}
	return reason
}

// addUnknown keeps the id of a KEK that the registry does not know, once.
func (a adopter) addUnknown(id kek.ID) {
	for _, k := range a.out.Unknown {
		if k == id {
			return
		}
	}
	a.out.Unknown = append(a.out.Unknown, id)
}
