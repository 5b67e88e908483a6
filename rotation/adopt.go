package rotation

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// EventAdopted is the type of the two records of rows that are labelled: one before the
// first of them, and one with what was done.
const EventAdopted = "rows_adopted"

// AdoptInput asks to bring the rows of one source in that were written without this
// project.
type AdoptInput struct {
	Source string
	Write  bool             // false only looks
	Seen   func(rows int64) // told how many items were read; may be nil
}

// Adoption is what was found and done, by class of item.
type Adoption struct {
	Source  string           `json:"source"`
	Sound   int64            `json:"sound"`        // envelopes that need nothing
	Other   int64            `json:"other"`        // items that are no envelopes
	Found   map[string]int64 `json:"found"`        // items that can be labelled, by kind and the KEK that KMS names
	Written int64            `json:"written"`      // of them, labelled by this call
	Changed int64            `json:"changed"`      // of them, changed by somebody else meanwhile: run it again
	Left    map[string]int64 `json:"left"`         // items that cannot be adopted, by reason
	First   []string         `json:"first_left"`   // the first few of them
	Unknown []kek.ID         `json:"unknown_keks"` // KEKs that rows are under and the registry does not know
}

// Adopt reads every item of a registered source. Where an item carries a key or a
// whole payload that KMS has wrapped, but does not name its KEK by id, KMS is asked
// which key unwraps it with the row's context, and with Write the row is given that
// key's id. Rows under a KEK that the registry does not know are left, and the KEK is
// named. Nothing but the label is written, each row on condition that it still is what
// was read, so that adopting may go on beside live traffic, be repeated, and stop
// anywhere.
func (s *Steps) Adopt(ctx context.Context, to Recorder, in AdoptInput) (out Adoption, err error) {
	out = Adoption{Source: in.Source, Found: map[string]int64{}, Left: map[string]int64{}}
	v, err := s.loadAll(ctx, "")
	if err != nil {
		return out, err
	}
	src, err := s.registered(v, in.Source)
	if err != nil {
		return out, err
	}
	labeler, ok := src.Source.(Labeler)
	if !ok {
		return out, invalid("source", fmt.Sprintf("rows of source %s cannot be adopted", in.Source), "adopt a table")
	}
	record := func(ctx context.Context, done string) error {
		return s.Record(ctx, to, audit.Event{
			ID: fmt.Sprintf("%s/%s/%d/%s", EventAdopted, in.Source, s.Now().UnixNano(), done), Type: EventAdopted, Step: "adopt",
			Body: map[string]string{"source": in.Source, "state": done, "rows": fmt.Sprint(out.Written), "found": cut(counted(out.Found))},
		})
	}
	a := adopter{
		steps: s, src: src, to: labeler, view: v, write: in.Write, out: &out,
		begin: sync.OnceValue(func() error { return record(ctx, "begun") }),
	}
	defer func() {
		if out.Written > 0 { // also of a run that ended early, because it was interrupted
			err = errors.Join(err, record(context.WithoutCancel(ctx), "done"))
		}
	}()
	cursor, items := "", int64(0)
	for {
		page, err := src.Scan(ctx, ScanRequest{Total: 1, Cursor: cursor})
		if err != nil {
			return out, unavailable("source "+src.Name(), err)
		}
		for _, row := range page.Rows {
			if err := a.adopt(ctx, row); err != nil {
				return out, err
			}
		}
		out.Other += int64(page.Other + page.Declared)
		if items += int64(len(page.Rows) + page.Other + page.Declared); in.Seen != nil {
			in.Seen(items)
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	return out, nil
}

// registered opens a source of the registry by name.
func (s *Steps) registered(v kek.View, name string) (frozen, error) {
	for _, def := range v.Sources {
		if def.Name == name {
			opened, err := s.openSources([]kek.Source{def})
			if err != nil {
				return frozen{}, err
			}
			return opened[0], nil
		}
	}
	return frozen{}, invalid("source", fmt.Sprintf("%q is not registered", name), "matter ops source list")
}

// adopter adopts the rows of one source.
type adopter struct {
	steps *Steps
	src   frozen
	to    Labeler
	view  kek.View
	write bool
	begin func() error // records that rows will be labelled
	out   *Adoption
}

func (a adopter) adopt(ctx context.Context, row Row) error {
	for range maxTries {
		if row.Defect == "" && row.KeyARN == "" {
			a.keep(row)
			return nil
		}
		adoptable := row.Kind == NoKEK || row.Kind == UnknownForm || row.Defect == "" // a key ARN is sound, the plain id is better
		if !adoptable || len(row.WrappedDEK) == 0 {
			a.leave(row, string(row.Kind))
			return nil
		}
		id, arn, err := a.steps.KMS.Identify(ctx, row.WrappedDEK, row.Context)
		switch {
		case errors.Is(err, ErrUnwrap):
			a.leave(row, "KMS does not unwrap it with the context of the source's definition")
			return nil
		case errors.Is(err, ErrKeyDisabled) || errors.Is(err, ErrNoKey) || errors.Is(err, ErrDenied):
			a.leave(row, "its key cannot be used: "+err.Error())
			return nil
		case err != nil:
			return unavailable("KMS Decrypt", err)
		}
		k, known := a.view.KEKs[id]
		switch {
		case !known:
			a.unknown(id)
			a.leave(row, fmt.Sprintf("KEK %s is not registered: matter ops kms-register-kek --kek-id %s --confirm", arn, id))
			return nil
		case k.ARN != arn:
			a.leave(row, fmt.Sprintf("it is under key %s, but the registry's KEK of that id is %s", arn, k.ARN))
			return nil
		case !k.State.Resolves():
			a.leave(row, fmt.Sprintf("it is under KEK %s, which is %s: restore it from a backup under the current one", id, k.State))
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
		done, err := a.to.Label(ctx, row, id)
		if errors.Is(err, ErrRejected) || errors.Is(err, ErrDenied) { // of this one row
			a.leave(row, "AWS does not write its label: "+err.Error())
			return nil
		}
		if err != nil {
			return unavailable("source "+a.src.Name(), err)
		}
		if done {
			a.out.Found[kind+" under "+string(id)]++
			a.out.Written++
			return nil
		}
		again, ok, err := a.src.Reread(ctx, row, false)
		if err != nil {
			return unavailable("source "+a.src.Name(), err)
		}
		if !ok {
			return nil // deleted meanwhile
		}
		row = again
	}
	a.out.Changed++
	return nil
}

// keep counts a row that names its KEK by id.
func (a adopter) keep(row Row) {
	err := registryRoster(a.view).judge(row)
	if err == nil {
		a.out.Sound++
		return
	}
	if _, known := a.view.KEKs[row.KEK]; !known {
		a.unknown(row.KEK)
	}
	a.leave(row, err.Error())
}

func (a adopter) leave(row Row, reason string) {
	a.out.Left[reason]++
	if len(a.out.First) < maxPoison {
		a.out.First = append(a.out.First, fmt.Sprintf("%s: %s", row.ID, orDefect(row, reason)))
	}
}

func orDefect(row Row, reason string) string {
	if row.Defect != "" {
		return row.Defect
	}
	return reason
}

func (a adopter) unknown(id kek.ID) {
	for _, k := range a.out.Unknown {
		if k == id {
			return
		}
	}
	a.out.Unknown = append(a.out.Unknown, id)
}
