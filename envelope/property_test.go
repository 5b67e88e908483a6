package envelope_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

// TestAnyItem: whatever the table's definition, the item and the change, a write
// returns an error and has changed nothing, or a read returns the plaintext and the
// attributes that were written. More: -rapid.checks=10000.
func TestAnyItem(t *testing.T) {
	ks := newKeyedSite(t, ddbtest.Client(t))
	w, client := ks.site, ks.client(slow)
	tables := map[string]string{}
	for _, hash := range []ddbtypes.ScalarAttributeType{"S", "N", "B"} {
		for _, sort := range []ddbtypes.ScalarAttributeType{"", "S", "N", "B"} {
			keys := []ddbtest.Key{{Name: "id", Type: hash}, {Name: "at", Type: sort}}
			if sort == "" {
				keys = keys[:1]
			}
			tables[string(hash+sort)] = ddbtest.Table(t, w.dynamo, keys...)
		}
	}
	accepted := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		kinds := rapid.SampledFrom(slices.Sorted(maps.Keys(tables))).Draw(t, "key")
		cfg := drawDefinition(t)
		cfg.Table = tables[kinds]
		table, err := client.Table(t.Context(), cfg)
		if err != nil {
			return // the definition is refused
		}
		both := []*envelope.Table{table}
		if cfg.DEKID != "" && cfg.KEKID != "" { // rows of both kinds: write some of the other
			cfg.Envelope = map[string]string{"keyed": "embedded", "embedded": "keyed"}[cfg.Envelope]
			other, err := client.Table(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			both = append(both, other)
		}
		p := &property{site: w, table: table, any: table, cfg: table.Config(), kinds: kinds, rows: map[string]envelope.Row{}}
		if i := slices.IndexFunc(both, func(t *envelope.Table) bool { return t.Config().Envelope != envelope.EnvelopeKeyed }); i >= 0 {
			p.any = both[i]
		}
		defer p.clear(t)
		for range rapid.IntRange(1, 6).Draw(t, "writes") {
			p.table = rapid.SampledFrom(both).Draw(t, "table")
			did := p.write(t)
			accepted[did]++
			accepted[strings.TrimSpace(p.table.Config().Envelope+" "+did)]++
		}
	})
	t.Logf("outcomes: %v", accepted)
	for _, outcome := range []string{
		"insert", "put", "update", "insert refused", "put refused", "update refused",
		"keyed insert", "keyed put", "keyed update", "keyed update refused", "embedded insert", "embedded update",
	} {
		if accepted[outcome] == 0 {
			t.Errorf("no %s: what is generated tests nothing", outcome)
		}
	}
}

// property is a table and what must be in it.
type property struct {
	*site
	table *envelope.Table
	any   *envelope.Table // takes every row that was accepted: of two the embedded one, which takes any number in a key
	cfg   envelope.TableConfig
	kinds string                  // types of its key attributes
	rows  map[string]envelope.Row // by key, as they were written
}

// write makes one write and checks the table. It returns what the write came to.
func (p *property) write(t *rapid.T) string {
	kind := rapid.SampledFrom([]string{"insert", "put", "update", "update", "update"}).Draw(t, "kind")
	if kind == "update" && len(p.rows) == 0 {
		kind = "insert"
	}
	before := p.stored(t)
	var err error
	meddled, lost := false, false
	written := []envelope.Row{}
	switch kind {
	case "insert":
		written = append(written, envelope.Row{Item: p.drawItem(t), Plaintext: drawBytes.Draw(t, "plaintext")})
		if rapid.IntRange(0, 3).Draw(t, "in a batch") == 0 {
			written = append(written, envelope.Row{Item: p.drawItem(t), Plaintext: drawBytes.Draw(t, "plaintext")})
		}
		err = p.table.InsertAll(t.Context(), written)
	case "put":
		i := p.drawItem(t)
		if key, ok := p.drawKey(t); ok {
			maps.Copy(i, key)
		}
		written = append(written, envelope.Row{Item: i, Plaintext: drawBytes.Draw(t, "plaintext")})
		err = p.table.Put(t.Context(), i, written[0].Plaintext)
	case "update":
		key, _ := p.drawKey(t)
		var last envelope.Row
		meddle := rapid.IntRange(0, 3).Draw(t, "meddle") == 0
		change := p.drawChange(t)
		if rapid.IntRange(0, 3).Draw(t, "without an epoch") == 0 {
			p.strip(t, key)
			before = p.stored(t)
		}
		err = p.table.Update(t.Context(), key, func(r *envelope.Row) error {
			if was := p.rows[p.key(key)]; !bytes.Equal(was.Plaintext, r.Plaintext) || !sameItem(was.Item, r.Item) {
				t.Fatalf("the change is given %q with %v, there is %q with %v", r.Plaintext, show(r.Item), was.Plaintext, show(was.Item))
			}
			if lost = meddle; meddle {
				meddle, meddled = false, true
				p.replace(t, key)
			}
			change(r)
			last = envelope.Row{Item: maps.Clone(r.Item), Plaintext: bytes.Clone(r.Plaintext)}
			return nil
		})
		written = append(written, last)
	}
	if err == nil && lost {
		t.Fatal("an update was written over what came between its read and its write")
	}
	if err != nil {
		if after := p.stored(t); !meddled && !sameItems(before, after) {
			t.Fatalf("%s fails with %v and leaves %v, which was %v", kind, err, show(after...), show(before...))
		}
		kind += " refused"
		written = nil
	}
	for _, r := range written {
		p.rows[p.key(r.Item)] = r
	}
	p.check(t)
	return kind
}

// replace does to a row what others may do between an update's read and its write.
func (p *property) replace(t *rapid.T, key item) {
	row := p.rows[p.key(key)]
	if rapid.Bool().Draw(t, "deleted") {
		_, err := p.dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &p.cfg.Table, Key: key})
		if err != nil {
			t.Fatal(err)
		}
	}
	row.Plaintext = append([]byte("by another, after "), row.Plaintext...)
	if err := p.any.Put(t.Context(), row.Item, row.Plaintext); err != nil {
		t.Fatalf("a row that was accepted is refused: %v", err)
	}
	p.rows[p.key(key)] = row
}

// strip takes an embedded row's epoch away, as rows have none that were written without this
// package.
func (p *property) strip(t *rapid.T, key item) {
	_, err := p.dynamo.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
		TableName: &p.cfg.Table, Key: key, UpdateExpression: aws.String("REMOVE kek_epoch"), ConditionExpression: aws.String("attribute_not_exists(dek_id)"),
	})
	if keyed := (*ddbtypes.ConditionalCheckFailedException)(nil); err != nil && !errors.As(err, &keyed) {
		t.Fatal(err)
	}
}

// check reads every row that must be there, and no other.
func (p *property) check(t *rapid.T) {
	for _, want := range p.rows {
		got, err := p.table.Get(t.Context(), p.keyOf(want.Item))
		if err != nil {
			t.Fatalf("a row that was written does not open: %v; %v", err, show(want.Item))
		}
		if !bytes.Equal(got.Plaintext, want.Plaintext) || !sameItem(want.Item, got.Item) {
			t.Fatalf("wrote %q with %v, read %q with %v", want.Plaintext, show(want.Item), got.Plaintext, show(got.Item))
		}
	}
	if stored := p.stored(t); len(stored) != len(p.rows) {
		t.Fatalf("%d rows are stored, %d were written: %v", len(stored), len(p.rows), show(stored...))
	}
}

func (p *property) stored(t *rapid.T) []item {
	out, err := p.dynamo.Scan(t.Context(), &dynamodb.ScanInput{TableName: &p.cfg.Table, ConsistentRead: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	return out.Items
}

func (p *property) clear(t *rapid.T) {
	for _, i := range p.stored(t) {
		_, err := p.dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &p.cfg.Table, Key: p.keyOf(i)})
		if err != nil {
			t.Fatal(err)
		}
	}
}

var keyNames = []string{"id", "at"}

func (p *property) keyOf(i item) item {
	out := item{}
	for pos := range p.kinds {
		out[keyNames[pos]] = i[keyNames[pos]]
	}
	return out
}

// key writes the key of an item in one way.
func (p *property) key(i item) string {
	var out strings.Builder
	for pos := range p.kinds {
		switch v := i[keyNames[pos]].(type) {
		case *s:
			fmt.Fprintf(&out, "S%q", v.Value)
		case *b:
			fmt.Fprintf(&out, "B%q", v.Value)
		case *n:
			fmt.Fprintf(&out, "N%s", decimalOf(v.Value))
		}
	}
	return out.String()
}

// decimalOf is a number as dynoxide writes it. Only numbers that it has taken
// get here.
func decimalOf(number string) string {
	for _, known := range drawnNumbers {
		if envelope.SameNumber(known, number) {
			return known
		}
	}
	return number
}

func drawDefinition(t *rapid.T) envelope.TableConfig {
	cfg := envelope.TableConfig{
		KEKID: "kek_id", WrappedDEK: "wrapped_dek", Ciphertext: "ciphertext",
		Version: rapid.SampledFrom([]string{"", "", "version"}).Draw(t, "version"),
		Format:  rapid.SampledFrom([]string{"", envelope.FormatTink}).Draw(t, "format"),
	}
	switch rapid.IntRange(0, 3).Draw(t, "envelope") {
	case 1:
		cfg.Envelope, cfg.KEKID, cfg.WrappedDEK = envelope.EnvelopeKeyed, "", ""
	case 2:
		cfg.Envelope, cfg.DEKID = envelope.EnvelopeKeyed, "dek_id"
	case 3:
		cfg.Envelope, cfg.DEKID = envelope.EnvelopeEmbedded, "dek_id"
	}
	bound := rapid.MapOfN(
		rapid.SampledFrom([]string{"table", "id", "at", "tenant", "size", "version"}),
		mostly(
			rapid.SampledFrom([]string{"orders", "$$x", "$id", "$at", "$tenant", "$size"}),
			rapid.SampledFrom([]string{"$version", "$note", "x\xff"}),
		), 0, 2,
	)
	cfg.Context, cfg.Bind = bound.Draw(t, "context"), bound.Draw(t, "bind")
	for k := range cfg.Context {
		delete(cfg.Bind, k)
	}
	if rapid.IntRange(0, 4).Draw(t, "other") == 0 {
		cfg.Other = &envelope.OtherItems{Attribute: "note", Values: []string{"", "x"}}
	}
	return cfg
}

var (
	drawBytes  = rapid.SliceOfN(rapid.Byte(), 0, 40)
	drawString = mostly(
		rapid.OneOf(
			rapid.SampledFrom([]string{"a", "acme", "\ufffd", "\x00", "ü", "$tenant", "\U0010ffff", "line\nline\u2028"}),
			rapid.StringN(1, 10, 40),
		),
		rapid.SampledFrom([]string{"", "x", "\xff", "a\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80"}),
	)
	drawnNumbers = []string{
		"0", "1", "-1", "17.5", "100", "1234567890123456789012345678901234567", "-0.00001", "9e125", "1e-130",
	}
	drawNumber = mostly(
		rapid.SampledFrom(drawnNumbers),
		rapid.OneOf(
			rapid.SampledFrom([]string{"-0", "1.0", "01", "1e0", "+1", "1.", ".0", "17.50", "1e2", "100.00", "-1e-5", "90e124"}),
			rapid.SampledFrom([]string{"", " 1", "1_0", "0x1", "NaN", "1e400", "123456789012345678901234567890123456789", "1\xff"}),
		),
	)
	drawName = mostly(
		rapid.SampledFrom([]string{"tenant", "size", "note", "tags", "#n0", ":v0", "a.b", "version "}),
		rapid.SampledFrom([]string{"kek_id", "wrapped_dek", "ciphertext", "kek_epoch", "version", "dek_id", "", "n\xff", "id", "at"}),
	)
)

// mostly draws what is usual, and now and then what is not.
func mostly(usual, odd *rapid.Generator[string]) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if rapid.IntRange(0, 15).Draw(t, "odd") == 7 {
			return odd.Draw(t, "odd one")
		}
		return usual.Draw(t, "usual one")
	})
}

// drawScalar draws a value of the kind that a key attribute has, mostly.
func drawScalar(t *rapid.T, kind byte) ddbtypes.AttributeValue {
	if rapid.IntRange(0, 31).Draw(t, "another kind") == 17 {
		return drawValue(t, 2)
	}
	switch kind {
	case 'S':
		return &s{Value: drawString.Draw(t, "text")}
	case 'N':
		return &n{Value: drawNumber.Draw(t, "number")}
	default:
		return &b{Value: drawBytes.Draw(t, "binary")}
	}
}

func drawValue(t *rapid.T, depth int) ddbtypes.AttributeValue {
	kinds := []string{"S", "N", "B", "S", "N", "B", "BOOL", "NULL", "SS", "NS", "BS", "nil"}
	if depth > 0 {
		kinds = append(kinds, "L", "M", "L", "M")
	}
	switch rapid.SampledFrom(kinds).Draw(t, "type") {
	case "S":
		return drawScalar(t, 'S')
	case "N":
		return drawScalar(t, 'N')
	case "B":
		return drawScalar(t, 'B')
	case "BOOL":
		return &ddbtypes.AttributeValueMemberBOOL{Value: rapid.Bool().Draw(t, "bool")}
	case "NULL":
		return &ddbtypes.AttributeValueMemberNULL{Value: true}
	case "SS":
		return &ddbtypes.AttributeValueMemberSS{Value: rapid.SliceOfNDistinct(drawString, 1, 3, rapid.ID).Draw(t, "texts")}
	case "NS":
		return &ddbtypes.AttributeValueMemberNS{Value: rapid.SliceOfNDistinct(drawNumber, 1, 3, rapid.ID).Draw(t, "numbers")}
	case "BS":
		return &ddbtypes.AttributeValueMemberBS{Value: rapid.SliceOfNDistinct(drawBytes, 1, 3, func(b []byte) string { return string(b) }).Draw(t, "binaries")}
	case "L":
		out := &ddbtypes.AttributeValueMemberL{}
		for range rapid.IntRange(0, 3).Draw(t, "elements") {
			out.Value = append(out.Value, drawValue(t, depth-1))
		}
		return out
	case "M":
		out := &ddbtypes.AttributeValueMemberM{Value: item{}}
		for range rapid.IntRange(0, 3).Draw(t, "entries") {
			out.Value[drawString.Draw(t, "name")] = drawValue(t, depth-1)
		}
		return out
	default:
		return nil
	}
}

// drawItem draws an item that mostly has a key, and what the definition binds.
func (p *property) drawItem(t *rapid.T) item {
	i := item{"tenant": drawScalar(t, 'S'), "size": drawScalar(t, 'N')}
	if rapid.IntRange(0, 15).Draw(t, "bare") == 7 {
		clear(i)
	}
	for pos, kind := range p.kinds {
		i[keyNames[pos]] = drawScalar(t, byte(kind)) // S, N or B
	}
	for range rapid.IntRange(0, 3).Draw(t, "attributes") {
		i[drawName.Draw(t, "name")] = drawValue(t, 2)
	}
	for _, m := range []map[string]string{p.cfg.Context, p.cfg.Bind} {
		for _, v := range m {
			if name := strings.TrimPrefix(v, "$"); v == "$version" || v == "$note" {
				i[name] = drawScalar(t, rapid.SampledFrom([]byte("SN")).Draw(t, "kind"))
			}
		}
	}
	return i
}

// drawKey draws the key of a row that is there, a number in it perhaps written
// otherwise.
func (p *property) drawKey(t *rapid.T) (item, bool) {
	if len(p.rows) == 0 {
		return nil, false
	}
	key := p.keyOf(p.rows[rapid.SampledFrom(slices.Sorted(maps.Keys(p.rows))).Draw(t, "row")].Item)
	for name, v := range key {
		if number, ok := v.(*n); ok && rapid.Bool().Draw(t, "otherwise") {
			key[name] = &n{Value: cmp.Or(map[string]string{"0": "-0", "1": "1.0", "100": "1e2", "17.5": "17.50"}[number.Value], number.Value)}
		}
	}
	return key, true
}

// drawChange draws what an update does to a row.
func (p *property) drawChange(t *rapid.T) func(*envelope.Row) {
	var steps []func(*envelope.Row)
	for range rapid.IntRange(0, 3).Draw(t, "changes") {
		name := drawName.Draw(t, "changed")
		var to ddbtypes.AttributeValue
		switch rapid.IntRange(0, 15).Draw(t, "change") {
		case 15:
			steps = append(steps, func(r *envelope.Row) { r.Item = nil })
		case 1, 2:
			steps = append(steps, func(r *envelope.Row) { delete(r.Item, name) })
		case 3, 4, 5, 6, 7, 8:
			to = drawScalar(t, rapid.SampledFrom([]byte("SN")).Draw(t, "kind"))
		default:
			to = drawValue(t, 2)
		}
		if to != nil {
			steps = append(steps, func(r *envelope.Row) {
				if r.Item != nil {
					r.Item[name] = to
				}
			})
		}
	}
	plain := drawBytes.Draw(t, "plaintext")
	return func(r *envelope.Row) {
		for _, step := range steps {
			step(r)
		}
		r.Plaintext = append(r.Plaintext, plain...)
	}
}

func show(items ...item) string {
	var out []string
	for _, i := range items {
		for name, v := range i {
			out = append(out, fmt.Sprintf("%q: %+v", name, v))
		}
	}
	return "{" + strings.Join(out, ", ") + "}"
}

func sameItems(a, b []item) bool { return gocmp.Equal(a, b, ignoreAll) }

// sameItem reports whether DynamoDB may give back got for given.
func sameItem(given, got item) bool {
	return maps.EqualFunc(given, got, sameValue)
}

func sameValue(given, got ddbtypes.AttributeValue) bool {
	switch x := given.(type) {
	case *s:
		y, ok := got.(*s)
		return ok && x.Value == y.Value
	case *n:
		y, ok := got.(*n)
		return ok && envelope.SameNumber(x.Value, y.Value)
	case *b:
		y, ok := got.(*b)
		return ok && bytes.Equal(x.Value, y.Value)
	case *ddbtypes.AttributeValueMemberBOOL:
		y, ok := got.(*ddbtypes.AttributeValueMemberBOOL)
		return ok && x.Value == y.Value
	case *ddbtypes.AttributeValueMemberNULL:
		_, ok := got.(*ddbtypes.AttributeValueMemberNULL)
		return ok
	case *ddbtypes.AttributeValueMemberSS:
		y, ok := got.(*ddbtypes.AttributeValueMemberSS)
		return ok && sameSet(x.Value, y.Value, func(a, b string) bool { return a == b })
	case *ddbtypes.AttributeValueMemberNS:
		y, ok := got.(*ddbtypes.AttributeValueMemberNS)
		return ok && sameSet(x.Value, y.Value, envelope.SameNumber)
	case *ddbtypes.AttributeValueMemberBS:
		y, ok := got.(*ddbtypes.AttributeValueMemberBS)
		return ok && sameSet(x.Value, y.Value, bytes.Equal)
	case *ddbtypes.AttributeValueMemberL:
		y, ok := got.(*ddbtypes.AttributeValueMemberL)
		return ok && slices.EqualFunc(x.Value, y.Value, sameValue)
	case *ddbtypes.AttributeValueMemberM:
		y, ok := got.(*ddbtypes.AttributeValueMemberM)
		return ok && sameItem(x.Value, y.Value)
	default:
		return false
	}
}

func sameSet[T any](a, b []T, same func(x, y T) bool) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x T) bool {
		return !slices.ContainsFunc(b, func(y T) bool { return same(x, y) })
	})
}
