package memstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// What a refused row write reports. The data plane seals again under the current
// KEK and writes again.
var (
	ErrFenced  = errors.New("the fence of the row's KEK is not open")
	ErrExists  = errors.New("the row exists")
	ErrChanged = errors.New("the row changed since it was read, is gone, or is of a later epoch")
)

// Record is one row as the data plane sees it.
type Record struct {
	KEK        kek.ID
	KeyARN     string // the row names its KEK by this ARN; "" for the id
	Epoch      int64
	Version    int64 // set by the table: 1, then one more for every write
	WrappedDEK []byte
	Ciphertext []byte
	PlainSHA   string
	Context    map[string]string
	Bind       map[string]string // bound to the payload beside the context
	Whole      bool              // no payload of ours stands behind the wrapped bytes
	Kind       source.Defect     // a scan reports the row as unaccounted; NoRoom only a scan of whole items does
	Defect     string            // the words for it, Kind's name by default; without a Kind it is Damaged
	Other      bool              // it has none of the envelope's attributes
	Declared   bool              // the definition says that it is something else
}

type record struct {
	Record
	hash uint32 // of the id: which segment it falls into
}

// handle is a row's place in a table, and how it named its KEK.
type handle struct {
	table *Table
	id    string
	named naming
}

// naming is how a row names its KEK, for conditions.
type naming struct {
	kek    kek.ID
	keyARN string
	not    source.Defect // NoKEK or UnknownForm if it does not
}

func (r *record) naming() naming {
	n := naming{kek: r.KEK, keyARN: r.KeyARN}
	if r.Kind == source.NoKEK || r.Kind == source.UnknownForm {
		n.not = r.Kind
	}
	return n
}

// Table is a table of rows: a [source.Driver], and the data plane's writes with
// the fence.
type Table struct {
	w           *World
	name        string
	rows        map[string]*record
	order       []string // sorted ids
	checked     error
	notes       []string
	encryptedBy string
	emptyPages  bool
	fence       ownFence // nil: the rows are under the control table's
}

const pageSize = 100

// The kinds that [World.Open] knows.
const (
	KindTable  = "dynamodb"
	KindCorpus = "corpus" // its rows are known ciphers
)

// corpus is a table whose rows are known ciphers.
type corpus struct{ *Table }

// Traits implements [source.Driver].
func (c corpus) Traits() source.Traits {
	t := c.Table.Traits()
	t.KnownPlaintexts = true
	return t
}

// Traits implements [source.Driver]. Both kinds are under the control table's fence, as
// [Table.Insert] is.
func (t *Table) Traits() source.Traits {
	return source.Traits{Noun: "table", Fencing: source.ControlTable(), PageItems: pageSize}
}

// Name implements [source.Driver].
func (t *Table) Name() string { return t.name }

// Segments implements [source.Driver].
func (t *Table) Segments(n int) int { return max(n, 1) }

// Source is the definition that [World.Open] opens the table by, of kind
// [KindTable]; a corpus has its Kind replaced.
func (t *Table) Source() kek.Source {
	return kek.Source{Name: t.name, Kind: KindTable, Definition: "{}", Place: t.name}
}

// Check implements [source.Driver].
func (t *Table) Check(ctx context.Context) (notes []string, err error) {
	err = t.w.call(ctx, "Table.Check", func() error {
		notes = slices.Clone(t.notes)
		return t.checked
	}, t.name)
	return notes, err
}

// FailCheck makes Check return err.
func (t *Table) FailCheck(err error) { t.set(func() { t.checked = err }) }

// SetNotes makes Check return notes.
func (t *Table) SetNotes(notes ...string) { t.set(func() { t.notes = notes }) }

// SetEncryptedBy makes EncryptedBy return arn.
func (t *Table) SetEncryptedBy(arn string) { t.set(func() { t.encryptedBy = arn }) }

// SetEmptyPages makes a scan return an empty page before every page but the first, as
// DynamoDB may.
func (t *Table) SetEmptyPages(on bool) { t.set(func() { t.emptyPages = on }) }

func (t *Table) set(change func()) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	change()
}

// EncryptedBy implements [source.Driver].
func (t *Table) EncryptedBy(ctx context.Context) (arn string, err error) {
	err = t.w.call(ctx, "Table.EncryptedBy", func() error {
		arn = t.encryptedBy
		return nil
	}, t.name)
	return arn, err
}

// Scan implements [source.Driver]. The cursor is "after:" and the last id read, or
// "then:" and that id if an empty page came in between.
func (t *Table) Scan(ctx context.Context, req source.ScanRequest) (p source.Page, err error) {
	err = t.w.answer(ctx, "Table.Scan", func() (any, error) {
		var err error
		p, err = t.scan(req)
		return p, err
	}, t.name, req)
	if err != nil {
		return source.Page{}, err
	}
	return p, nil
}

func (t *Table) scan(req source.ScanRequest) (source.Page, error) {
	if req.Total < 1 || req.Segment < 0 || req.Segment >= req.Total {
		return source.Page{}, fmt.Errorf("scan %s: segment %d of %d", t.name, req.Segment, req.Total)
	}
	limit := req.Limit
	if limit <= 0 {
		limit = pageSize
	}
	start := 0
	if req.Cursor != "" {
		what, last, _ := strings.Cut(req.Cursor, ":")
		if what != "after" && what != "then" || last == "" {
			return source.Page{}, fmt.Errorf("scan %s: cursor %q", t.name, req.Cursor)
		}
		if t.emptyPages && what == "after" {
			return source.Page{Next: "then:" + last}, nil
		}
		var found bool
		if start, found = slices.BinarySearch(t.order, last); found {
			start++
		}
	}
	var p source.Page
	for _, id := range t.order[start:] {
		r := t.rows[id]
		if int(r.hash%uint32(req.Total)) != req.Segment { //nolint:gosec // small
			continue
		}
		switch {
		case r.Other:
			p.Other++
		case r.Declared:
			p.Declared++
		default:
			p.Rows = append(p.Rows, t.row(id, r, req.Payload, req.Whole))
		}
		if limit--; limit == 0 {
			p.Next = "after:" + id
			break
		}
	}
	return p, nil
}

func (t *Table) row(id string, r *record, payload, whole bool) source.Row {
	row := source.Row{
		ID: id, Handle: handle{t, id, r.naming()}, KEK: r.KEK, KeyARN: r.KeyARN, Epoch: r.Epoch, WrappedDEK: bytes.Clone(r.WrappedDEK),
		PlainSHA: r.PlainSHA, Context: maps.Clone(r.Context), Bound: maps.Clone(r.Context), Whole: r.Whole,
	}
	if len(r.Bind) > 0 {
		row.Bound = maps.Clone(r.Bind)
		maps.Copy(row.Bound, r.Context)
	}
	if payload && !r.Whole {
		row.Ciphertext = bytes.Clone(r.Ciphertext)
	}
	if row.Kind = r.kind(); row.Kind == source.NoRoom && !whole {
		row.Kind = ""
	}
	if row.Kind != "" {
		row.Defect = cmp.Or(r.Defect, string(row.Kind))
	}
	if r.naming().not != "" {
		row.KEK = "" // only the record knows it
	}
	return row
}

// kind is what is wrong with a row; "" if nothing is.
func (r *record) kind() source.Defect {
	if r.Kind == "" && r.Defect != "" {
		return source.Damaged
	}
	return r.Kind
}

// find returns the record of a row that was read, if it still is what was read.
func (t *Table) find(what string, old source.Row) (*record, error) {
	h, ok := old.Handle.(handle)
	if !ok || h.table != t {
		return nil, fmt.Errorf("%s %s: the row is not of source %s", what, old.ID, t.name)
	}
	r := t.rows[h.id]
	if r == nil || r.Other || r.Declared || r.naming() != h.named || !bytes.Equal(r.WrappedDEK, old.WrappedDEK) {
		return nil, nil
	}
	return r, nil
}

// Replace implements [source.Driver]. A row without room is refused, as AWS does.
func (t *Table) Replace(ctx context.Context, old source.Row, with source.Rewrapped) (done bool, err error) {
	err = t.w.answer(ctx, "Table.Replace", func() (any, error) {
		r, err := t.find("replace", old)
		switch {
		case err != nil:
			return nil, err
		case old.Defect != "":
			return nil, fmt.Errorf("replace %s: it is not a sound envelope: %s", old.ID, old.Defect)
		case with.Ciphertext != nil && old.Ciphertext == nil:
			return nil, fmt.Errorf("replace %s: a payload cannot be replaced that was not read", old.ID)
		case r == nil || with.Ciphertext != nil && !bytes.Equal(r.Ciphertext, old.Ciphertext):
			return false, nil
		case r.Kind == source.NoRoom:
			return nil, fmt.Errorf("replace %s: %w: item size to update has exceeded the maximum allowed size", old.ID, journal.ErrRejected)
		}
		r.KEK, r.KeyARN, r.Epoch, r.WrappedDEK = with.KEK, "", with.Epoch, bytes.Clone(with.WrappedDEK)
		if with.Ciphertext != nil {
			r.Ciphertext = bytes.Clone(with.Ciphertext)
		}
		r.Version++
		done = true
		return true, nil
	}, t.name, old, with)
	return done && err == nil, err
}

// Label implements [source.Labeler].
func (t *Table) Label(ctx context.Context, old source.Row, id kek.ID) (done bool, err error) {
	err = t.w.answer(ctx, "Table.Label", func() (any, error) {
		r, err := t.find("label", old)
		switch {
		case err != nil:
			return nil, err
		case len(old.WrappedDEK) == 0:
			return nil, fmt.Errorf("label %s: it is not a sound envelope: %s", old.ID, old.Defect)
		case r == nil:
			return false, nil
		}
		r.KEK, r.KeyARN = id, ""
		if r.naming().not != "" {
			r.Kind, r.Defect = "", ""
		}
		done = true
		return true, nil
	}, t.name, old, id)
	return done && err == nil, err
}

// Rehearse implements [source.Driver]: a hook says whether writes are allowed.
func (t *Table) Rehearse(ctx context.Context, old source.Row) error {
	return t.w.call(ctx, "Table.Rehearse", func() error {
		_, err := t.find("rehearse", old)
		return err
	}, t.name, old)
}

// Reread implements [source.Driver].
func (t *Table) Reread(ctx context.Context, old source.Row, payload bool) (row source.Row, ok bool, err error) {
	err = t.w.call(ctx, "Table.Reread", func() error {
		h, mine := old.Handle.(handle)
		if !mine || h.table != t {
			return fmt.Errorf("reread %s: the row is not of source %s", old.ID, t.name)
		}
		var r *record
		if r, ok = t.rows[h.id]; ok && !r.Other && !r.Declared {
			row = t.row(h.id, r, payload, false)
		} else {
			ok = false
		}
		return nil
	}, t.name, old)
	return row, ok && err == nil, err
}

// Insert writes a new row if its KEK's fence shard n is open, in one transaction:
// [ErrFenced] or [ErrExists] if nothing was written.
func (t *Table) Insert(ctx context.Context, id string, r Record, n int) error {
	return t.w.call(ctx, "Table.Insert", func() error {
		if !t.fenceOpen(shard{r.KEK, n}) {
			return fmt.Errorf("insert %s under %s: %w", id, r.KEK, ErrFenced)
		}
		if t.rows[id] != nil {
			return fmt.Errorf("insert %s: %w", id, ErrExists)
		}
		r.Version = 1
		t.plant(id, r)
		return nil
	}, t.name, id, r, n)
}

// Update replaces the row that was read, if it still has that version and no later
// epoch than the new one: else [ErrChanged]. It needs no fence: rewrap raises the
// epoch, so a late writer under an older KEK is refused here.
func (t *Table) Update(ctx context.Context, id string, read int64, r Record) error {
	return t.w.call(ctx, "Table.Update", func() error {
		was := t.rows[id]
		if was == nil || was.Version != read || was.Epoch > r.Epoch {
			return fmt.Errorf("update %s: %w", id, ErrChanged)
		}
		r.Version = read + 1
		t.plant(id, r)
		return nil
	}, t.name, id, read, r)
}

// Delete removes a row. It is idempotent.
func (t *Table) Delete(ctx context.Context, id string) error {
	return t.w.call(ctx, "Table.Delete", func() error {
		if i, ok := slices.BinarySearch(t.order, id); ok {
			t.order = slices.Delete(t.order, i, i+1)
			delete(t.rows, id)
		}
		return nil
	}, t.name, id)
}

// Get reads a row; false if there is none.
func (t *Table) Get(ctx context.Context, id string) (out Record, ok bool, err error) {
	err = t.w.call(ctx, "Table.Get", func() error {
		var r *record
		if r, ok = t.rows[id]; ok {
			out = r.clone()
		}
		return nil
	}, t.name, id)
	return out, ok && err == nil, err
}

// Plant writes a row past fence and conditions, as a restored backup would. The
// hook does not see it, an observer does.
func (t *Table) Plant(id string, r Record) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	t.plant(id, r)
	if t.w.seen != nil {
		t.w.seen(person, "Table.Plant", nil, nil, t.name, id, r)
	}
}

func (t *Table) plant(id string, r Record) {
	stored := &record{Record: r}
	stored.Record = stored.clone()
	if was := t.rows[id]; was != nil {
		stored.hash = was.hash
	} else {
		h := fnv.New32a()
		h.Write([]byte(id))
		stored.hash = h.Sum32()
		i, _ := slices.BinarySearch(t.order, id)
		t.order = slices.Insert(t.order, i, id)
	}
	t.rows[id] = stored
}

func (r *record) clone() Record {
	out := r.Record
	out.WrappedDEK, out.Ciphertext = bytes.Clone(out.WrappedDEK), bytes.Clone(out.Ciphertext)
	out.Context, out.Bind = maps.Clone(out.Context), maps.Clone(out.Bind)
	return out
}

// Each calls f for every row in order of id, under the mutex, for the checks of
// invariants: f must not call back. The hook does not see it.
func (t *Table) Each(f func(id string, r Record)) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	for _, id := range t.order {
		f(id, t.rows[id].Record)
	}
}
