package rotation

import (
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// frozen is a source as a rotation froze it, opened by its driver.
type frozen struct {
	Source
	def kek.Source
}

func (f frozen) progress() string { return ProgressName(f.def) }

// ProgressName is the name that checkpoints know a source by. What was seen under an
// earlier definition does not count, so each definition has its own.
func ProgressName(def kek.Source) string {
	if def.Generation == 0 {
		return def.Name
	}
	return fmt.Sprintf("%s~%d", def.Name, def.Generation)
}

// openSources opens what a rotation has frozen, or what is registered.
func (s *Steps) openSources(defs []kek.Source) ([]frozen, error) {
	if len(defs) == 0 {
		return nil, &Error{
			Kind: SourceMisconfigured, Field: "sources", Msg: "no source is registered: retiring the old KEK would orphan every row",
			Next: "matter ops source add --file DEFINITION.json --confirm",
		}
	}
	out := make([]frozen, 0, len(defs))
	for _, def := range defs {
		src, err := s.OpenSource(def)
		if err != nil {
			return nil, &Error{
				Kind: SourceMisconfigured, Field: "sources[" + def.Name + "]", Msg: "its definition cannot be used", Err: err,
				Next: "matter ops source list; correct it with matter ops source add --file DEFINITION.json --confirm",
			}
		}
		out = append(out, frozen{Source: src, def: def})
	}
	return out, nil
}

// known lists the corpora among the sources.
func known(sources []frozen) []frozen {
	var out []frozen
	for _, src := range sources {
		if src.def.Kind == kek.KindCorpus {
			out = append(out, src)
		}
	}
	return out
}

// loadAll reads the whole registry, and the record of the rotation or of the one that
// holds the lock.
func (s *Steps) loadAll(ctx context.Context, id string) (kek.View, error) {
	v, err := s.Registry.LoadAll(ctx, id)
	return v, loadError(err)
}

// AddSource registers a source, or gives the one of its name another definition, after
// the driver has checked it (spec: AddSource). Items that cannot be accounted for are a
// note here: no rotation starts before they are. While a rotation runs it is refused
// before the switch; after it the source joins the rotation. It returns what the
// operator should know of the place.
func (s *Steps) AddSource(ctx context.Context, def kek.Source) (notes []string, err error) {
	if err := kek.CheckSourceName(def.Name); err != nil {
		return nil, invalid("name", err.Error(), "choose another name")
	}
	opened, err := s.openSources([]kek.Source{def})
	if err != nil {
		return nil, err
	}
	notes, err = opened[0].Check(ctx)
	var typed *Error
	if errors.As(err, &typed) && typed.Kind == RowsUnaccounted { // counting and adopting its items needs the source
		notes, err = append(notes, typed.Error()), nil
	}
	if err != nil {
		return notes, unavailable("source "+def.Name, err)
	}
	def.AddedBy = s.Actor
	_, err = s.register(ctx, func(v kek.View) (kek.Change, error) { return v.PutSource(def, s.Now()) },
		map[string]string{"source": def.Name, "kind": def.Kind, "place": def.Place, "definition": def.Definition})
	return notes, err
}

// RemoveSource takes a source out of the registry (spec: RemoveSource). It is refused
// while any item of it is an envelope under a KEK that is not retired, or cannot be
// accounted for, unless force is the reason to go on, which the chain keeps: the next
// rotation would leave those rows under a disabled KEK.
func (s *Steps) RemoveSource(ctx context.Context, name, force string) error {
	v, err := s.loadAll(ctx, "")
	if err != nil {
		return err
	}
	body := map[string]string{"source": name}
	unmarked := "" // the table, if its items are read and nobody had left a mark of it before; no mark is of ""
	var looked kek.Source
	for _, def := range v.Sources {
		if def.Name != name {
			continue
		}
		looked = def
		if force != "" {
			body["forced"] = force
			continue
		}
		if !v.Marked(def.Place) {
			unmarked = def.Place
		}
		if err := s.checkUnused(ctx, v, def); err != nil {
			return err
		}
	}
	_, err = s.register(ctx, func(v kek.View) (kek.Change, error) {
		if v.Marked(unmarked) {
			return kek.Change{}, fmt.Errorf("%w: a process has begun to write into the table", kek.ErrChanged)
		}
		for _, def := range v.Sources {
			if def.Name == name && (def.Definition != looked.Definition || !def.AddedAt.Equal(looked.AddedAt)) {
				return kek.Change{}, fmt.Errorf("%w: source %s has been registered", kek.ErrChanged, name)
			}
		}
		return v.RemoveSource(name, s.Now())
	}, body)
	return err
}

// checkUnused reads every item of a source until it finds one that is in use.
func (s *Steps) checkUnused(ctx context.Context, v kek.View, def kek.Source) error {
	used := func(msg string) error {
		return &Error{
			Kind: Refused, Field: "sources[" + def.Name + "]", Msg: msg,
			Next: fmt.Sprintf(`move or delete its rows; or go on with: matter ops source remove --name %s --force --reason "why" --confirm`, def.Name),
		}
	}
	opened, err := s.openSources([]kek.Source{def})
	if err != nil {
		return used("it cannot be read: " + err.Error())
	}
	cursor := ""
	for {
		page, err := opened[0].Scan(ctx, ScanRequest{Total: 1, Cursor: cursor})
		if err != nil {
			return used("it cannot be read: " + err.Error())
		}
		for _, row := range page.Rows {
			if row.Defect != "" || v.KEKs[row.KEK].State != kek.Retired {
				return used(fmt.Sprintf("it holds rows, the first %s under KEK %q", row.ID, row.KEK))
			}
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}

// ForgetMark removes the mark of a table that is no source: its writers are gone, for
// the reason given, which the chain keeps.
func (s *Steps) ForgetMark(ctx context.Context, table, reason string) error {
	_, err := s.register(ctx, func(v kek.View) (kek.Change, error) { return v.ForgetMark(table, s.Now()) },
		map[string]string{"table": table, "reason": reason})
	return err
}

// RegisterKEK registers a historic KEK, under which rows were written before this
// deployment or without it (spec: Register). It must carry the stack's tag. The next
// rotation moves its rows and retires it.
func (s *Steps) RegisterKEK(ctx context.Context, id kek.ID, label string) error {
	if err := kek.CheckLabel(label); err != nil {
		return invalid("label", err.Error(), "choose another label")
	}
	k, err := s.usableKey(ctx, id)
	if err != nil {
		return err
	}
	_, err = s.register(ctx, func(v kek.View) (kek.Change, error) {
		return v.RegisterKEK(kek.KEK{ID: k.ID, ARN: k.ARN, Label: label, FenceShards: s.FenceShards}, s.Now())
	}, map[string]string{"kek_id": string(k.ID), "label": label})
	return err
}

// register drives one change of the registry to its end, as transition does for a
// rotation's.
func (s *Steps) register(ctx context.Context, next func(kek.View) (kek.Change, error), body map[string]string) (kek.View, error) {
	return s.drive(ctx, "register", func() (kek.View, error) { return s.loadAll(ctx, "") }, next, body)
}

// repeatable gives the record of a change that may happen more than once a number of
// its own: the registry's revision, or the rotation's.
func repeatable(ev *audit.Event, c kek.Change) {
	switch {
	case c.Registry != nil && c.Event != kek.EventGenesis:
		ev.ID = fmt.Sprintf("%s/%d", c.Event, c.Registry.Before+1)
	case c.Event == kek.EventOldKEKSealed && c.Rotation.After.Phase == kek.Switched: // not the last one
		ev.ID = fmt.Sprintf("%s/%s", ev.ID, c.Sealed)
	case c.Event == kek.EventRotationResumed, c.Event == kek.EventReadingRestarted:
		ev.ID = fmt.Sprintf("%s/%d", ev.ID, c.Rotation.After.Rev)
	}
}
