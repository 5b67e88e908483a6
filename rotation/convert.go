package rotation

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// EventConverted is the type of the two records of a conversion: one before the first row is
// converted, and one at the end with the counts.
const EventConverted = "rows_converted"

// ConvertInput asks to convert the rows of one source.
type ConvertInput struct {
	Source   string
	Embedded bool // keyed rows become embedded ones, not the other way
	Write    bool // false only looks

	// The epoch of the last emergency's switch; 0: there was none. Keyed rows whose data key was
	// made before it go under a fresh one. It is of no use with Embedded.
	ExposedBefore int64

	Seen func(rows int64) // told how many items were read; may be nil
}

// Conversion is what was found and done.
type Conversion struct {
	Source    string           `json:"source"`
	To        string           `json:"to"` // keyed or embedded
	Keyed     int64            `json:"keyed"`
	Embedded  int64            `json:"embedded"`
	Exposed   int64            `json:"exposed"`   // of the keyed ones, those whose data key was made before the last emergency's switch
	Other     int64            `json:"other"`     // items that are not envelopes
	Work      ConversionWork   `json:"work"`      // about what the conversion of all these rows takes
	Tried     int64            `json:"tried"`     // rows that a dry run has opened
	Converted int64            `json:"converted"` // by this call
	DataKeys  int64            `json:"data_keys"` // made by this call
	Retried   int64            `json:"retried"`   // writes that were refused because another writer came first, and tried again
	Meanwhile int64            `json:"meanwhile"` // rows that others have converted or deleted meanwhile
	Changed   int64            `json:"changed"`   // rows that changed each time: run it again
	Left      map[string]int64 `json:"left"`      // items that cannot be converted, by reason
	First     []string         `json:"first_left"`
}

// ConversionWork is about what a conversion takes.
type ConversionWork struct {
	Rows       int64   `json:"rows"`
	Unwraps    int64   `json:"unwraps"`     // KMS requests: one for each data key that rows are under
	DataKeys   int64   `json:"data_keys"`   // KMS requests: one for each data key that is made
	WriteUnits float64 `json:"write_units"` // of DynamoDB; 0: the size of the rows is not known
}

// Convert reads every item of a registered source and moves embedded rows under data keys of
// the key table, or keyed rows under data keys of their own. It opens each payload and seals
// it again in memory, because a payload is bound to its data key.
//
// Each write is conditional on the row that was read, and a data key is never of an earlier
// epoch than the row (spec/keyed.tla: WalkRead, WalkWrite). So a conversion can run beside
// live traffic and rotations, stop anywhere and be repeated: the rows themselves say which of
// them are left. Without Write it opens the first few rows and writes nothing.
//
// With ExposedBefore it is the sweep after an emergency too: a writer that slept may insert a
// keyed row under an exposed data key at any later time (spec/keyed.tla: Sweep, ExposedGone).
func (s *Steps) Convert(ctx context.Context, to journal.Recorder, in ConvertInput) (out Conversion, err error) {
	out = Conversion{Source: in.Source, To: kindName(in.Embedded), Left: map[string]int64{}}
	c, err := s.newConverter(ctx, in)
	if err != nil {
		return out, err
	}
	defer c.wipe()
	c.out = &out
	began := false
	c.begin = sync.OnceValue(func() error {
		err := c.record(ctx, to, "begun")
		began = err == nil
		return err
	})
	err = c.walk(ctx, in.Seen)
	out.DataKeys = c.stock.count()
	if began { // also if the run was interrupted
		err = errors.Join(err, c.record(context.WithoutCancel(ctx), to, "done"))
	}
	return out, err
}

// record appends a record of what is done.
func (c *converter) record(ctx context.Context, to journal.Recorder, state string) error {
	j := c.steps.Journal
	c.mu.Lock()
	body := map[string]string{
		"source": c.out.Source, "state": state, "to": c.out.To,
		"rows": fmt.Sprint(c.out.Converted), "data_keys": fmt.Sprint(c.stock.count()), "left": journal.CutText(formatCounts(c.out.Left)),
	}
	c.mu.Unlock()
	return j.RecordEvent(ctx, to, audit.Event{
		ID: fmt.Sprintf("%s/%s/%d/%s", EventConverted, c.out.Source, j.Now().UnixNano(), state), Type: EventConverted, Step: "convert", Body: body,
	})
}

// kindName is how definitions name a kind of rows.
func kindName(embedded bool) string {
	if embedded {
		return "embedded"
	}
	return "keyed"
}

// converter converts the rows of one source.
type converter struct {
	steps    *Steps
	in       ConvertInput
	src      frozenSource
	to       source.Converter
	keeper   source.Keeper
	view     atomic.Pointer[kek.View] // as it was read last
	stock    keyStock
	unwraps  *Memory      // data keys that rows are under
	shards   atomic.Int64 // draws a shard of a fence for each check
	begin    func() error // records that rows will be converted
	contexts Sketch       // of the rows to convert
	dataKeys Sketch       // of the rows to convert

	mu  sync.Mutex // of out, while rows are worked on
	out *Conversion
}

// The bounds of a data key are those of writers (package envelope): of one with a record, and
// of one that rows carry.
const (
	keyedUses     = 1 << 20
	keyedBytes    = 64 << 30
	embeddedUses  = 1 << 16
	embeddedBytes = 4 << 30
)

// newConverter opens a source for a conversion, and checks what must be so.
func (s *Steps) newConverter(ctx context.Context, in ConvertInput) (*converter, error) {
	c := &converter{steps: s, in: in, unwraps: NewMemory(MemoryBytes)}
	c.stock = keyStock{make: c.makeKey, uses: keyedUses, bytes: keyedBytes}
	if in.Embedded {
		c.stock.uses = embeddedUses
		c.stock.bytes = embeddedBytes
	}
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return nil, err
	}
	if c.src, err = s.openRegistered(v, in.Source); err != nil {
		return nil, err
	}
	to, ok := c.src.Driver.(source.Converter)
	if !ok {
		return nil, journal.RejectInput("source", fmt.Sprintf("rows of source %s cannot be converted", in.Source), "convert a table")
	}
	c.to = to
	if err := c.checkDefinition(); err != nil {
		return nil, err
	}
	sources, err := s.openSources(v.Sources)
	if err != nil {
		return nil, err
	}
	if err := checkKeyTable(sources); err != nil {
		return nil, err
	}
	if c.keeper, err = s.openKeeper(kek.Rotation{Sources: v.Sources}); err != nil {
		return nil, err
	}
	return c, c.useView(v)
}

// checkDefinition refuses a definition that does not allow both kinds of rows, or by which
// writers still write the other kind: the conversion would not end.
func (c *converter) checkDefinition() error {
	refuse := func(msg, next string) error {
		return &journal.Error{Kind: journal.SourceMisconfigured, Field: "sources[" + c.src.Name() + "]", Msg: msg, Next: journal.Next{Say: next}}
	}
	keyed, embedded := c.to.Kinds()
	switch {
	case !keyed:
		return refuse("its definition has no keyed rows",
			`deploy clients whose definition has a "dek_id_attribute", then clients with "envelope": "keyed", and register that definition`)
	case !embedded && c.in.ExposedBefore > 0 && !c.in.Embedded: // there may be exposed rows
		return nil
	case !embedded:
		return refuse("its definition has keyed rows alone", `if there are embedded rows, name their "kek_id_attribute" and "wrapped_dek_attribute" in it`)
	case c.to.WritesKeyed() == c.in.Embedded:
		return refuse(fmt.Sprintf("its definition says that %s rows are written", kindName(!c.in.Embedded)),
			fmt.Sprintf(`deploy clients with "envelope": %q, then register that definition`, kindName(c.in.Embedded)))
	}
	return nil
}

// useView judges what was read of the registry, and keeps it. Data keys under another pointer
// than before are dropped (spec: Renew).
func (c *converter) useView(v kek.View) error {
	if v.Pointer == nil {
		return journal.ExplainRefusal(kek.ErrNoPointer)
	}
	if c.in.Embedded && v.KEKs[v.Pointer.KEKID].RecordsOnly {
		return &journal.Error{
			Kind: journal.Refused, Field: string(v.Pointer.KEKID), Msg: "the pointer's KEK takes keyed rows alone: its fence of embedded rows was never opened",
			Next: journal.Next{Do: journal.RotateNow},
		}
	}
	if err := c.checkFrozen(v.Sources); err != nil {
		return err
	}
	if v.Holder != nil && !v.Holder.Phase.Final() {
		if err := c.checkFrozen(v.Holder.Sources); err != nil {
			return err
		}
	}
	c.mu.Lock()
	was := c.view.Load()
	if was != nil && was.Pointer.Epoch > v.Pointer.Epoch { // another row has looked later
		c.mu.Unlock()
		return nil
	}
	c.view.Store(&v)
	c.mu.Unlock()
	if was != nil && was.Pointer.Epoch != v.Pointer.Epoch {
		c.stock.drop()
	}
	return nil
}

// checkFrozen refuses to continue by a definition that the registry, or the rotation that runs,
// has not: that rotation would not account for the rows.
func (c *converter) checkFrozen(defs []kek.Source) error {
	i := slices.IndexFunc(defs, func(def kek.Source) bool { return def.Name == c.src.Name() })
	if i >= 0 && defs[i].Definition == c.src.def.Definition && slices.ContainsFunc(defs, func(def kek.Source) bool {
		src, err := c.steps.OpenSource(def)
		return err == nil && src.Traits().DataKeys
	}) {
		return nil
	}
	return &journal.Error{
		Kind: journal.RotationInProgress, Field: "sources[" + c.src.Name() + "]", Msg: "a rotation began, or the source was registered, with another definition or without the key table",
		Next: journal.Next{Say: "wait until that rotation is over, then run it again"},
	}
}

// look reads the registry again.
func (c *converter) look(ctx context.Context) error {
	v, err := c.steps.Journal.LoadAll(ctx, "")
	if err != nil {
		return err
	}
	return c.useView(v)
}

// wipe overwrites the data keys in memory. A nil converter has none.
func (c *converter) wipe() {
	if c == nil {
		return
	}
	c.stock.drop()
	c.unwraps.resetIfOther("wiped")
}

// walk reads all items. The registry is read after each page, so that it knows every KEK that
// rows of the page name.
func (c *converter) walk(ctx context.Context, seen func(int64)) error {
	slots := c.steps.Pace.newSlots()
	cursor, items := "", int64(0)
	for {
		page, err := c.src.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor, Payload: true})
		if err != nil {
			return journal.WrapUnavailable("source "+c.src.Name(), err)
		}
		if err := c.look(ctx); err != nil {
			return err
		}
		rows := c.countPage(page)
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(cap(slots))
		for _, row := range rows {
			g.Go(func() error { return c.convertRow(gctx, row) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if items += int64(len(page.Rows) + len(page.Keyed) + page.Other + page.Declared); seen != nil {
			seen(items)
		}
		if cursor = page.Next; cursor == "" {
			return c.weigh(ctx)
		}
	}
}

// countPage counts the items of a page by kind, and returns the rows to convert, or to look at.
func (c *converter) countPage(page source.Page) []source.Row {
	c.out.Other += int64(page.Other + page.Declared)
	c.out.Keyed += int64(len(page.Keyed))
	embedded := slices.DeleteFunc(slices.Clone(page.Rows), func(row source.Row) bool {
		if row.Defect != "" {
			c.leaveRow(row, string(row.Kind))
		}
		return row.Defect != ""
	})
	c.out.Embedded += int64(len(embedded))
	rows := embedded
	switch {
	case c.in.Embedded:
		rows = page.Keyed
	case c.in.ExposedBefore > 0:
		rows = slices.Concat(embedded, page.Keyed)
	}
	for _, row := range rows {
		if row.DEKID != "" && !c.in.Embedded && row.Epoch >= c.in.ExposedBefore { // as the row says
			continue
		}
		c.out.Work.Rows++
		key := row
		key.WrappedDEK = append([]byte(row.DEKID), row.WrappedDEK...)
		c.dataKeys = c.dataKeys.addRow(key)
		c.contexts = c.contexts.addRow(source.Row{Context: row.Context})
	}
	return rows
}

// weigh says about what the conversion of the rows that were found takes. A row takes a write
// unit for each kilobyte of an average item, in a transaction twice that and two for the check
// of the fence; a record of a data key takes four.
func (c *converter) weigh(ctx context.Context) error {
	w := &c.out.Work
	if w.Rows == 0 {
		return nil
	}
	w.Unwraps = min(int64(math.Round(c.dataKeys.Count())), w.Rows)
	w.DataKeys = min(int64(math.Round(c.contexts.Count()))+w.Rows/c.stock.uses, w.Rows)
	sizer, ok := c.src.Driver.(source.Sizer)
	if !ok {
		return nil
	}
	size, err := sizer.Size(ctx)
	if err != nil {
		return journal.WrapUnavailable("source "+c.src.Name(), err)
	}
	units := float64(1)
	if size.Items > 0 {
		units = float64((size.Bytes/size.Items + 1023) / 1024)
	}
	w.WriteUnits = float64(w.Rows)*max(units, 1) + 4*float64(w.DataKeys)
	if c.in.Embedded {
		w.WriteUnits = float64(w.Rows) * (2*max(units, 1) + 2)
	}
	for _, copied := range size.Copies {
		each := copied.Units
		if each == 0 {
			each = max(units, 1)
		}
		w.WriteUnits += float64(w.Rows) * each * copied.Times
	}
	return nil
}
