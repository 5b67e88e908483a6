package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// frozenSource is a source with its driver, by the definition that a rotation has frozen.
type frozenSource struct {
	source.Driver
	def kek.Source
}

// progressName is [ProgressName] of the source's definition.
func (f frozenSource) progressName() string { return ProgressName(f.def) }

// ProgressName returns the name of a source in the keys of checkpoints. What was seen under
// an earlier definition does not count, so each definition has its own name.
func ProgressName(def kek.Source) string {
	if def.Generation == 0 {
		return def.Name
	}
	return fmt.Sprintf("%s~%d", def.Name, def.Generation)
}

// openSources opens the sources of definitions. It refuses an empty list: a rotation without
// sources would find no rows and retire the KEK that they are under.
func (s *Steps) openSources(defs []kek.Source) ([]frozenSource, error) {
	if len(defs) == 0 {
		return nil, &journal.Error{
			Kind: journal.SourceMisconfigured, Field: "sources", Msg: "no source is registered: retiring the old KEK would orphan every row",
			Next: journal.Next{Do: journal.AddSource},
		}
	}
	out := make([]frozenSource, 0, len(defs))
	for _, def := range defs {
		src, err := s.OpenSource(def)
		if err != nil {
			return nil, &journal.Error{
				Kind: journal.SourceMisconfigured, Field: "sources[" + def.Name + "]", Msg: "its definition cannot be used", Err: err,
				Next: journal.Next{Do: journal.CorrectSource},
			}
		}
		out = append(out, frozenSource{Driver: src, def: def})
	}
	return out, nil
}

// holdsKeyedAlone reports a source whose definition allows keyed rows and no others.
func holdsKeyedAlone(src frozenSource) bool {
	k, ok := src.Driver.(source.Keyer)
	if !ok {
		return false
	}
	keyed, embedded := k.Kinds()
	return keyed && !embedded
}

// holdsKeyed reports a source whose definition allows keyed rows.
func holdsKeyed(src frozenSource) bool {
	k, ok := src.Driver.(source.Keyer)
	if !ok {
		return false
	}
	keyed, _ := k.Kinds()
	return keyed
}

// checkKeyTable refuses sources with keyed rows without a key table among them: a rotation
// would leave the records of their data keys under the old KEK.
func checkKeyTable(sources []frozenSource) error {
	i := slices.IndexFunc(sources, holdsKeyed)
	if i < 0 || slices.ContainsFunc(sources, func(src frozenSource) bool { return src.Traits().DataKeys }) {
		return nil
	}
	return &journal.Error{
		Kind: journal.SourceMisconfigured, Field: "sources[" + sources[i].Name() + "]", Msg: "its rows name data keys of the key table, which is not a source",
		Next: journal.Next{Do: journal.AddSource},
	}
}

// takesRecordsAlone reports that no source may hold rows that carry their data key behind the
// control table's fence, and that some hold keyed ones: the KEK that is switched to need take
// records alone.
func takesRecordsAlone(sources []frozenSource) bool {
	keyed := false
	for _, src := range sources {
		if src.Traits().Fencing != source.ControlTable() || src.Traits().DataKeys {
			continue
		}
		if !holdsKeyedAlone(src) {
			return false
		}
		keyed = true
	}
	return keyed
}

// openRead opens the sources that a rotation reads. A normal rotation that leaves only KEKs
// whose fence of rows was never opened reads no source of keyed rows alone: no row in it can
// carry a data key that is under one of them (spec: RowsLooked). Which KEKs the rows' data
// keys are under, their records say.
func (s *Steps) openRead(r kek.Rotation) (read []frozenSource, unread []string, err error) {
	sources, err := s.openSources(r.Sources)
	if err == nil {
		err = checkKeyTable(sources)
	}
	if err != nil || !r.RecordsOnly || r.Mode != kek.Normal {
		return sources, nil, err
	}
	for _, src := range sources {
		if holdsKeyedAlone(src) {
			unread = append(unread, src.Name())
		} else {
			read = append(read, src)
		}
	}
	return read, unread, nil
}

// notRead is what records say of a source that a rotation need not read.
const notRead = "not read: no row can carry a data key under a KEK that the rotation leaves"

// recordUnread says in the body of a record which sources were not read.
func (s *Steps) recordUnread(r kek.Rotation, body map[string]string) error {
	if !r.RecordsOnly || r.Mode != kek.Normal {
		return nil
	}
	_, unread, err := s.openRead(r)
	for _, name := range unread {
		body["source."+name] = notRead
	}
	return err
}

// listCorpora lists the sources whose rows are known ciphers.
func listCorpora(sources []frozenSource) []frozenSource {
	var out []frozenSource
	for _, src := range sources {
		if src.Traits().KnownPlaintexts {
			out = append(out, src)
		}
	}
	return out
}

// CheckSource runs the driver's check of a source. If a person has to correct something, the
// error is a [*journal.Error] that names the source.
func CheckSource(ctx context.Context, src source.Driver) (notes []string, err error) {
	notes, err = src.Check(ctx)
	var found *source.Error
	if !errors.As(err, &found) {
		return notes, err
	}
	out := &journal.Error{Kind: journal.SourceMisconfigured, Field: "sources[" + src.Name() + "]", Msg: found.Msg, Next: journal.Next{Say: found.Next}, Err: found.Err, Rows: found.Rows}
	if found.Problem == source.Unaccounted {
		out.Kind = journal.RowsUnaccounted
	}
	if found.Field != "" {
		out.Field += "." + found.Field
	}
	return notes, out
}

// AddSource registers a source, or gives the source of that name another definition, after
// the driver has checked it (spec: AddSource). Items that cannot be accounted for are only
// noted here, because counting and adopting them needs the source; no rotation starts before
// they are accounted for. While a rotation runs, AddSource is refused before the switch;
// after it the source joins the rotation. It returns notes for the operator.
func (s *Steps) AddSource(ctx context.Context, def kek.Source) (notes []string, err error) {
	if err := kek.CheckSourceName(def.Name); err != nil {
		return nil, journal.RejectInput("name", err.Error(), "choose another name")
	}
	opened, err := s.openSources([]kek.Source{def})
	if err != nil {
		return nil, err
	}
	if err := s.checkKeyTableFor(ctx, opened[0]); err != nil {
		return nil, err
	}
	notes, err = CheckSource(ctx, opened[0])
	var typed *journal.Error
	if errors.As(err, &typed) && typed.Kind == journal.RowsUnaccounted { // counting and adopting its items needs the source
		notes, err = append(notes, typed.Error()), nil
	}
	if err != nil {
		return notes, journal.WrapUnavailable("source "+def.Name, err)
	}
	def.AddedBy = s.Journal.Actor
	_, err = s.applyRegistryChange(ctx, func(v kek.View) (kek.Change, error) {
		c, err := v.PutSource(def, s.Journal.Now())
		if err == nil {
			err = joinFence(ctx, opened[0], v, &c)
		}
		return c, err
	},
		map[string]string{"source": def.Name, "kind": def.Kind, "place": def.Place, "definition": def.Definition})
	return notes, err
}

// checkKeyTableFor refuses a source with keyed rows while no key table is registered.
func (s *Steps) checkKeyTableFor(ctx context.Context, src frozenSource) error {
	if !holdsKeyed(src) {
		return nil
	}
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return err
	}
	all := []frozenSource{src}
	if len(v.Sources) > 0 {
		registered, err := s.openSources(v.Sources)
		if err != nil {
			return err
		}
		all = append(all, registered...)
	}
	return checkKeyTable(all)
}

// RemoveSource removes a source from the registry (spec: RemoveSource). It is refused while
// any item of the source is an envelope under a KEK that is not retired, or cannot be
// accounted for: the next rotation would leave those rows under a disabled KEK. With force,
// which is the reason and is kept in the audit chain, the rows are not looked at.
func (s *Steps) RemoveSource(ctx context.Context, name, force string) error {
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return err
	}
	body := map[string]string{"source": name}
	unmarked := "" // the table, if its items are read and no writer had left a mark before; no mark has the name ""
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
	_, err = s.applyRegistryChange(ctx, func(v kek.View) (kek.Change, error) {
		if v.Marked(unmarked) {
			return kek.Change{}, fmt.Errorf("%w: a process has begun to write into the table", kek.ErrChanged)
		}
		for _, def := range v.Sources {
			if def.Name == name && (def.Definition != looked.Definition || !def.AddedAt.Equal(looked.AddedAt)) {
				return kek.Change{}, fmt.Errorf("%w: source %s has been registered", kek.ErrChanged, name)
			}
		}
		return v.RemoveSource(name, s.Journal.Now())
	}, body)
	return err
}

// checkUnused reads the items of a source until it finds a row that would be orphaned.
func (s *Steps) checkUnused(ctx context.Context, v kek.View, def kek.Source) error {
	used := func(msg string) error {
		return &journal.Error{
			Kind: journal.Refused, Field: "sources[" + def.Name + "]", Msg: msg,
			Next: journal.Next{Do: journal.MoveSourceRows, Name: def.Name},
		}
	}
	opened, err := s.openSources([]kek.Source{def})
	if err != nil {
		return used("it cannot be read: " + err.Error())
	}
	cursor := ""
	for {
		page, err := opened[0].Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor})
		if err != nil {
			return used("it cannot be read: " + err.Error())
		}
		for _, row := range page.Rows {
			if row.Defect != "" || v.KEKs[row.KEK].State != kek.Retired {
				return used(fmt.Sprintf("it holds rows, the first %s under KEK %q", row.ID, row.KEK))
			}
		}
		if len(page.Keyed) > 0 {
			return used(fmt.Sprintf("it holds keyed rows, the first %s", page.Keyed[0].ID))
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}

// ForgetMark removes the mark of a table that is not a source, because nothing writes into it
// any more. The audit chain keeps the reason.
func (s *Steps) ForgetMark(ctx context.Context, table, reason string) error {
	_, err := s.applyRegistryChange(ctx, func(v kek.View) (kek.Change, error) { return v.ForgetMark(table, s.Journal.Now()) },
		map[string]string{"table": table, "reason": reason})
	return err
}

// RegisterKEK registers a historic KEK: rows were written under it before this deployment,
// or without this project (spec: Register). It must carry the stack's tag. The next rotation
// moves its rows and retires it.
func (s *Steps) RegisterKEK(ctx context.Context, id kek.ID, label string) error {
	if err := kek.CheckLabel(label); err != nil {
		return journal.RejectInput("label", err.Error(), "choose another label")
	}
	k, err := s.Keys.DescribeUsable(ctx, id)
	if err != nil {
		return err
	}
	_, err = s.applyRegistryChange(ctx, func(v kek.View) (kek.Change, error) {
		return v.RegisterKEK(kek.KEK{ID: k.ID, ARN: k.ARN, Label: label, FenceShards: s.Config.FenceShards}, s.Journal.Now())
	}, map[string]string{"kek_id": string(k.ID), "label": label})
	return err
}

// applyRegistryChange applies one change of the registry, as [journal.Journal.Transition]
// does for a rotation: if its conditions fail, it reads again and decides again.
func (s *Steps) applyRegistryChange(ctx context.Context, next func(kek.View) (kek.Change, error), body map[string]string) (kek.View, error) {
	return s.Journal.ApplyChange(ctx, "register", func() (kek.View, error) { return s.Journal.LoadAll(ctx, "") }, next, body)
}
