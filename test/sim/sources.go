package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// Which rows there are: rows that somebody has written past the client and that name
// no KEK, tables that become sources or cease to be, and the person who adopts the
// former and registers the latter.

const (
	lateTable = "late"
	againID   = "r3" // starts when rows are accounted for that another rotation was refused for
)

// The definitions of the late table: with one comes a row of long before.
const (
	withHistory = "{}"
	nothingYet  = `{"payloads":"opaque"}`
)

func lateSource(definition string) kek.Source {
	return kek.Source{Name: lateTable, Kind: memstore.KindTable, Definition: definition, Place: lateTable}
}

func isLate(s kek.Source) bool { return s.Name == lateTable }

// tables are all that there are, sources or not.
func (p place) tables() [2]rows { return [2]rows{p.table, p.late} }

// open opens the table of a definition's name.
func (r *run) open(def kek.Source) (source.Driver, error) {
	of := r.table
	if def.Name == lateTable {
		of = r.late
	}
	rows := &scheduledSource{rows: of, r: r, known: def.Kind == memstore.KindCorpus}
	if r.keyed != nil {
		return r.keyed.open(def, rows), nil
	}
	return rows, nil
}

// old is the KEK that rows may still come to be under past the fence: that of a
// rotation at one of the phases, which are such that it looks at every row later.
func (a *actors) old(phases ...kek.Phase) kek.ID {
	all, err := a.run.store.Rotations(ctx)
	a.run.must(err)
	for _, rot := range all {
		if slices.Contains(phases, rot.Phase) {
			return rot.OldKEK
		}
	}
	return ""
}

// current is the KEK that the pointer names.
func (a *actors) current() kek.ID {
	v, err := a.run.store.Load(ctx, "")
	a.run.must(err)
	return v.Pointer.KEKID
}

// foreign writes a row that does not name its KEK.
func (a *actors) foreign(how int) {
	under, kind := a.current(), source.NoKEK
	switch how {
	case 1:
		if under = a.old(kek.Switched, kek.Drained); under == "" {
			return
		}
	case 2:
		kind = source.UnknownForm
	}
	a.made++
	a.plant(a.run.table, fmt.Sprintf("foreign-%d", a.made), under, kind)
}

// plant writes a row past the fence. Nobody but whoever wrote it knows of it.
func (a *actors) plant(in rows, id string, under kek.ID, kind source.Defect) {
	rec, err := a.seal(id, id, under, 1)
	if err != nil {
		a.run.violated("NoKeyOrphans", "KEK %s, under which there are rows, is not usable: %v", under, err)
		return
	}
	rec.Version, rec.Kind = 1, kind
	in.Plant(id, rec)
	a.want[id] = id
	a.run.tell("somebody writes row %s under %s, which %s", id, under, map[bool]string{true: "it names", false: "it does not name"}[kind == ""])
}

// newTable lets an application begin to write into the late table, which may be no
// source. It leaves its mark first.
func (a *actors) newTable(foreign bool) {
	if a.run.removing > 0 && a.run.marked() {
		return // whoever removes a source has stopped those who write into it first (spec: Unused)
	}
	a.made++
	id := fmt.Sprintf("%s-%d", lateTable, a.made)
	a.run.check.marked()
	a.want[id] = id
	a.apps.join(id)
	a.run.tell("an application writes row %s", id)
	if foreign {
		a.made++
		a.plant(a.run.late, fmt.Sprintf("%s-foreign-%d", lateTable, a.made), a.current(), source.NoKEK)
	}
}

// marked reports whether the late table has a mark.
func (r *run) marked() bool {
	was := r.mine
	r.mine = true
	v, err := r.store.LoadAll(ctx, "")
	r.must(err)
	r.mine = was
	return v.Marked(lateTable)
}

// added puts a row into the late table as soon as that is a source, as if it had been
// there for long: under the KEK that the rotation which runs leaves, if it has not
// concluded from its rows yet.
func (a *actors) added() {
	under := a.old(kek.Switched, kek.Drained, kek.Rewrapped)
	if under == "" {
		under = a.current()
	}
	a.made++
	a.plant(a.run.late, fmt.Sprintf("%s-old-%d", lateTable, a.made), under, "")
}

// sourceCallList is what a person does about rows and tables.
func sourceCallList() []operatorCall {
	call := func(name string, do func(context.Context, *rotation.Steps) error) operatorCall {
		return operatorCall{name, do, true}
	}
	out := []operatorCall{
		call("source add "+lateTable, addLate(withHistory)),
		call("source add "+lateTable+" (nothing in it yet)", addLate(nothingYet)),
		call("source remove rows", func(c context.Context, s *rotation.Steps) error { return s.RemoveSource(c, "rows", "") }),
		call(removeLate, func(c context.Context, s *rotation.Steps) error { return s.RemoveSource(c, lateTable, "") }),
		call("source remove by force "+lateTable, func(c context.Context, s *rotation.Steps) error {
			return s.RemoveSource(c, lateTable, "nobody needs it")
		}),
		call("mark remove "+lateTable, func(c context.Context, s *rotation.Steps) error { return s.ForgetMark(c, lateTable, "nobody needs it") }),
		call("take a census", func(c context.Context, s *rotation.Steps) error {
			_, err := s.TakeCensus(c, "", nil)
			return err
		}),
	}
	for _, name := range []string{"rows", lateTable} {
		out = append(out, call("adopt "+name, adoption(name, true)), call("adopt "+name+dryRun, adoption(name, false)))
	}
	return out
}

func addLate(definition string) func(context.Context, *rotation.Steps) error {
	return func(c context.Context, s *rotation.Steps) error {
		_, err := s.AddSource(c, lateSource(definition))
		return err
	}
}

const (
	dryRun     = " (dry run)"
	removeLate = "source remove " + lateTable
	putBack    = "put records back"
)

func adoption(name string, write bool) func(context.Context, *rotation.Steps) error {
	return func(c context.Context, s *rotation.Steps) error {
		_, err := s.Adopt(c, s.Journal.Registry.(journal.Recorder), rotation.AdoptInput{Source: name, Write: write}) //nolint:forcetypeassert // both are the control table
		return err
	}
}

// unaccounted reports whether a rotation does not go on because of rows or tables that
// a person must care for.
func unaccounted(kind journal.Kind) bool {
	switch kind {
	case journal.RowsUnaccounted, journal.RehearsalFailed, journal.SourceForgotten, journal.RowsQuarantined, journal.OrphansFound,
		journal.CorpusCorrupted: // the rows are the corpus too
		return true
	default:
		return false
	}
}

// accountForRows is what an operator does whom a rotation has told of such rows or
// tables: register the table, and adopt the rows of each source, after a look. What
// fails is tried again; faults may strike here too.
func (r *run) accountForRows() {
	if !r.blocked || r.failed != nil {
		return
	}
	r.blocked = false
	do := func(name string, f func(context.Context, *rotation.Steps) error) {
		for range 3 {
			err := r.command(name, f)
			if err == nil || r.failed != nil {
				return
			}
		}
	}
	was := r.mine
	r.mine = true
	v, err := r.store.LoadAll(ctx, "")
	r.mine = was
	r.must(err)
	missing := len(kek.Forgotten(v.Marks, v.Sources)) > 0
	if v.Rotation != nil && !slices.ContainsFunc(v.Sources, isLate) { // only the rows of a source can be adopted
		missing = missing || slices.ContainsFunc(v.Rotation.Sources, isLate)
	}
	if missing {
		do("source add "+lateTable, addLate(withHistory))
		v.Sources = append(v.Sources, lateSource(withHistory))
	}
	if r.keyed != nil {
		do(putBack, r.keyed.repair)
		return
	}
	for _, def := range v.Sources {
		do("adopt "+def.Name+dryRun, adoption(def.Name, false))
		do("adopt "+def.Name, adoption(def.Name, true))
	}
}

// command is what a person types. No two do anything at the same moment: their records
// are told apart by it.
func (r *run) command(name string, do func(context.Context, *rotation.Steps) error) error {
	_, err, _ := r.invoke(nil, "operator: "+name, func(c context.Context) (answer, error) {
		moment := func() {
			r.actors.made++
			r.pass(time.Second + time.Duration(r.actors.made)*time.Microsecond)
		}
		moment()
		defer moment()
		if name == removeLate {
			r.removing++
			defer func() { r.removing-- }()
		}
		return answer{}, do(c, r.steps)
	})
	return err
}

// restarted accounts for rows that a rotation was refused or rolled back for, and
// starts another.
func (r *run) restarted() bool {
	if r.again || !r.blocked {
		return false
	}
	r.again = true
	r.outage, r.skew = 0, 0
	r.accountForRows()
	r.tell("another rotation starts")
	r.main = newMachine(r, againID, r.main.in)
	if r.main.in.Resume != "" {
		r.main.in = rotation.ExecutionInput{}
	}
	return true
}

// registered: what the chain says of sources. Of rows that a person gave up, those go
// with the next KEK that no rotation moves them from.
func (c *checker) registered(event string, body map[string]string) {
	switch event {
	case "source_added":
		c.isSource, c.forgotten, c.joined = true, false, body["definition"] == withHistory
	case "source_removed":
		if body["source"] == "rows" {
			c.r.violated("SourceKept", "source rows, which is in use, was removed")
		}
		c.isSource, c.forgotten = false, false
		if body["forced"] != "" {
			c.giveUp()
		}
	case "mark_removed":
		c.forgotten = false
		c.giveUp()
	case "rotation_started":
		if body["mode"] != string(kek.Normal) {
			return
		}
		if c.forgotten && c.applier != nil && c.applier.from > c.since {
			c.r.violated("ForgottenRefused", "a rotation starts though an application writes into %s, which is no source", lateTable)
		}
		clear(c.uncounted)
		for id := range c.unlabelled {
			if !strings.HasPrefix(id, lateTable) {
				c.uncounted[id] = true
			}
		}
	case "rows_counted":
		for id := range c.uncounted {
			if c.unlabelled[id] {
				c.r.violated("CensusSees", "rows are counted, and row %s, which has been there since before the start, cannot be accounted for", id)
			}
		}
	}
}

// marked notes that an application writes into the late table from now on.
func (c *checker) marked() {
	if !c.isSource && !c.forgotten {
		c.forgotten, c.since = true, c.r.call
	}
}

func (c *checker) giveUp() {
	c.r.late.Each(func(id string, _ memstore.Record) { c.givenUp[id] = true })
}

// orphaned is a row under a KEK that is not usable. A person may have given it up:
// then no rotation was to move it.
func (c *checker) orphaned(id string, under kek.ID) {
	r := c.r
	all, err := r.store.Rotations(ctx)
	r.must(err)
	for _, rot := range all {
		if slices.Contains(rot.Olds, under) && rot.Phase.Reached(kek.KEKRetired) && !slices.ContainsFunc(rot.Sources, isLate) && c.givenUp[id] {
			r.must(r.late.Delete(ctx, id))
			delete(r.want, id)
			r.tell("row %s is gone with its KEK %s: a person gave it up", id, under)
			return
		}
	}
	r.violated("NoKeyOrphans", "row %s is under %s, which is %q in the registry", id, under, c.states[under])
}
