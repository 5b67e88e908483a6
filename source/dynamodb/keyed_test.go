package dynamodb_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

var (
	firstDEK  = keyrecord.NewID([16]byte{1})
	secondDEK = keyrecord.NewID([16]byte{2})

	sameAttributes = cmpopts.IgnoreUnexported(types.AttributeValueMemberS{}, types.AttributeValueMemberN{}, types.AttributeValueMemberB{})
)

// keyedConfig is sourceConfig of a keyed table in which embedded rows are left.
func keyedConfig(table string) dynamosource.Config {
	c := sourceConfig(table)
	c.Envelope, c.DEKID, c.Context = "keyed", "dek.id", map[string]string{"table": "orders"}
	return c
}

func keyedItem(id string) item {
	return item{
		"id": &s{Value: id}, "size": attr.Num(7), "user": &s{Value: "user of " + id}, "note": &s{Value: "not our business"},
		"dek.id": &s{Value: firstDEK}, "data": attr.Blob([]byte("payload of " + id)), "kek_epoch": attr.Num(3), "version": attr.Num(4),
	}
}

func embeddedItem(id string) item {
	i := keyedItem(id)
	delete(i, "dek.id")
	i["key"], i["wrapped.dek"] = &s{Value: "kek-0"}, attr.Blob([]byte("dek"))
	return i
}

func keyOfItem(id string) item { return item{"id": &s{Value: id}, "size": attr.Num(7)} }

// keyedTable makes a table of both kinds of rows.
func keyedTable(t *testing.T, client dynamo) (string, *dynamosource.Table) {
	t.Helper()
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: "S"}, ddbtest.Key{Name: "size", Type: "N"})
	return table, open(t, watch(t, client), keyedConfig(table))
}

// TestKeyedRows: a scan reports keyed rows apart from embedded ones, and each with what its
// payload is bound to.
func TestKeyedRows(t *testing.T) {
	everywhere(t, testKeyedRows)
}

func testKeyedRows(t *testing.T, client dynamo) {
	t.Helper()
	table, driver := keyedTable(t, client)
	put(t, client, table, keyedItem("a"))
	put(t, client, table, embeddedItem("b"))
	put(t, client, table, item{"id": &s{Value: "c"}, "size": attr.Num(7), "version": attr.Num(1)})
	for _, payload := range []bool{false, true} {
		p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: payload, Whole: !payload})
		if err != nil || len(p.Rows) != 1 || len(p.Keyed) != 1 || p.Other != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		want := source.Row{
			ID: p.Keyed[0].ID, DEKID: firstDEK, Epoch: 3, Context: map[string]string{"table": "orders"},
			Bound: map[string]string{"table": "orders", "owner": "user of a", "matter:dek_id": firstDEK, "matter:key:id": "a", "matter:key:size": "7"},
		}
		if payload {
			want.Ciphertext = []byte("payload of a")
		}
		if d := cmp.Diff(want, p.Keyed[0], cmpopts.IgnoreFields(source.Row{}, "Handle")); d != "" || !strings.Contains(want.ID, "a") {
			t.Errorf("(-want +got):\n%s", d)
		}
		want.Bound["matter:dek_id"] = secondDEK
		if d := cmp.Diff(want.Bound, p.Keyed[0].BoundUnder(secondDEK)); d != "" {
			t.Errorf("bound under another data key (-want +got):\n%s", d)
		}
		if r := p.Rows[0]; r.KEK != "kek-0" || r.DEKID != "" || r.Defect != "" {
			t.Errorf("the embedded row is %+v", r)
		}
	}
	if keyed, embedded := driver.Kinds(); !keyed || !embedded {
		t.Errorf("kinds: %t, %t", keyed, embedded)
	}
	if _, err := driver.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestKeyedDefects: an item that is a keyed row in part, or both kinds at once, is
// unaccounted, and says why.
func TestKeyedDefects(t *testing.T) {
	only := func(c *dynamosource.Config) { c.KEKID, c.WrappedDEK = "", "" }
	for name, c := range map[string]struct {
		config func(*dynamosource.Config)
		change func(item)
		kind   source.Defect
		says   string
	}{
		"names a KEK too":     {nil, func(i item) { i["key"] = &s{Value: "kek-0"} }, source.BothKinds, "attribute key"},
		"carries a DEK too":   {nil, func(i item) { i["wrapped.dek"] = attr.Blob([]byte("dek")) }, source.BothKinds, "attribute wrapped.dek"},
		"id of another type":  {nil, func(i item) { i["dek.id"] = attr.Num(1) }, source.WrongType, "dek.id is of type N"},
		"no id of ours":       {nil, func(i item) { i["dek.id"] = &s{Value: "dek-1"} }, source.DEKIDForm, `"dek-1"`},
		"empty id":            {nil, func(i item) { i["dek.id"] = &s{} }, source.DEKIDForm, `""`},
		"no payload":          {nil, func(i item) { delete(i, "data") }, source.NoCiphertext, "data"},
		"payload as text":     {nil, func(i item) { i["data"] = &s{Value: "x"} }, source.WrongType, "data"},
		"no epoch":            {nil, func(i item) { delete(i, "kek_epoch") }, source.NoEpoch, "kek_epoch"},
		"epoch 0":             {nil, func(i item) { i["kek_epoch"] = attr.Num(0) }, source.NoEpoch, "kek_epoch"},
		"epoch as text":       {nil, func(i item) { i["kek_epoch"] = &s{Value: "3"} }, source.WrongType, "kek_epoch"},
		"version as text":     {nil, func(i item) { i["version"] = &s{Value: "3"} }, source.ForeignNumber, "version"},
		"not what it binds":   {nil, func(i item) { delete(i, "user") }, source.NoContext, "user"},
		"no room":             {nil, fill, source.NoRoom, "at most"},
		"only a payload":      {nil, func(i item) { remove(i, "dek.id", "kek_epoch") }, source.CipherAlone, "neither key nor wrapped.dek, nor dek.id"},
		"only a payload here": {only, func(i item) { remove(i, "dek.id", "kek_epoch") }, source.CipherAlone, "but no dek.id"},
		"only an epoch":       {only, func(i item) { remove(i, "dek.id", "data") }, source.EpochAlone, "kek_epoch"},
		"only an id":          {only, func(i item) { remove(i, "data", "kek_epoch") }, source.NoCiphertext, "data"},
		"declared, but a row": {nil, func(i item) { i["type"] = &s{Value: "session"}; delete(i, "data") }, source.NoCiphertext, "data"},
	} {
		t.Run(name, func(t *testing.T) {
			client := ddbtest.NewTwin(t)
			table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: "S"}, ddbtest.Key{Name: "size", Type: "N"})
			cfg := keyedConfig(table)
			if c.config != nil {
				c.config(&cfg)
			}
			i := keyedItem("a")
			c.change(i)
			put(t, client, table, i)
			driver := open(t, client, cfg)
			p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Whole: true})
			if err != nil || len(p.Rows) != 1 || len(p.Keyed)+p.Other+p.Declared > 0 {
				t.Fatalf("%+v, %v", p, err)
			}
			if r := p.Rows[0]; r.Kind != c.kind || !strings.Contains(r.Defect, c.says) {
				t.Errorf("%s: %s, want %s with %q", r.Kind, r.Defect, c.kind, c.says)
			}
			if ok, err := driver.Replace(t.Context(), p.Rows[0], source.Rewrapped{DEKID: secondDEK, Epoch: 4, Ciphertext: []byte("x")}); err == nil || ok {
				t.Errorf("it is replaced: %v, %v", ok, err)
			}
		})
	}
}

// TestForeignAttribute: in a table without keyed rows an attribute dek_id is the
// application's own.
func TestForeignAttribute(t *testing.T) {
	client := ddbtest.NewTwin(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: "S"}, ddbtest.Key{Name: "size", Type: "N"})
	cfg := keyedConfig(table)
	cfg.Envelope, cfg.DEKID = "", ""
	i := embeddedItem("a")
	i["dek_id"], i["dek.id"] = &s{Value: "7"}, &s{Value: "8"}
	put(t, client, table, i)
	put(t, client, table, item{"id": &s{Value: "b"}, "size": attr.Num(7), "dek_id": &s{Value: firstDEK}})
	driver := open(t, client, cfg)
	p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(p.Rows) != 1 || p.Rows[0].Defect != "" || p.Other != 1 || len(p.Keyed) > 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if keyed, embedded := driver.Kinds(); keyed || !embedded {
		t.Errorf("kinds: %t, %t", keyed, embedded)
	}
}

// TestReplaceKeyed: a row comes under another data key only if it still is what was read, and
// not if a writer has put it under one of a later epoch.
func TestReplaceKeyed(t *testing.T) {
	with := source.Rewrapped{DEKID: secondDEK, Epoch: 5, Ciphertext: []byte("fresh")}
	rekeyed := keyedItem("a")
	rekeyed["dek.id"], rekeyed["data"], rekeyed["kek_epoch"], rekeyed["version"] = &s{Value: secondDEK}, attr.Blob([]byte("fresh")), attr.Num(5), attr.Num(5)
	for name, c := range map[string]struct {
		before item // what the scan finds
		change func(item) item
		done   bool
	}{
		"as it was":                  {keyedItem("a"), nil, true},
		"another payload":            {keyedItem("a"), func(i item) item { i["data"] = attr.Blob([]byte("other")); return i }, false},
		"another data key":           {keyedItem("a"), func(i item) item { i["dek.id"] = &s{Value: secondDEK}; return i }, false},
		"of a later epoch":           {keyedItem("a"), func(i item) item { i["kek_epoch"] = attr.Num(6); return i }, false},
		"of the same epoch":          {keyedItem("a"), func(i item) item { i["kek_epoch"] = attr.Num(5); return i }, true},
		"deleted":                    {keyedItem("a"), func(item) item { return nil }, false},
		"embedded":                   {embeddedItem("a"), nil, true},
		"embedded, never an epoch":   {without(embeddedItem("a"), "kek_epoch"), nil, true},
		"embedded, another payload":  {embeddedItem("a"), func(i item) item { i["data"] = attr.Blob([]byte("other")); return i }, false},
		"embedded, another DEK":      {embeddedItem("a"), func(i item) item { i["wrapped.dek"] = attr.Blob([]byte("other")); return i }, false},
		"embedded, another KEK":      {embeddedItem("a"), func(i item) item { i["key"] = &s{Value: "kek-7"}; return i }, false},
		"embedded, a later epoch":    {embeddedItem("a"), func(i item) item { i["kek_epoch"] = attr.Num(6); return i }, false},
		"embedded, and keyed by now": {embeddedItem("a"), func(i item) item { i["dek.id"] = &s{Value: firstDEK}; return i }, false},
		"embedded, deleted":          {embeddedItem("a"), func(item) item { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			client := ddbtest.NewTwin(t)
			table, driver := keyedTable(t, client)
			put(t, client, table, c.before)
			p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
			rows := append(p.Rows, p.Keyed...)
			if err != nil || len(rows) != 1 || rows[0].Defect != "" {
				t.Fatalf("%+v, %v", p, err)
			}
			stored := maps.Clone(c.before)
			if c.change != nil {
				if stored = c.change(stored); stored == nil {
					if _, err := client.DeleteItem(t.Context(), deleteOf(table, keyOfItem("a"))); err != nil {
						t.Fatal(err)
					}
				} else {
					put(t, client, table, stored)
				}
			}
			done, err := driver.Replace(t.Context(), rows[0], with)
			if done != c.done || err != nil {
				t.Errorf("%t, %v", done, err)
			}
			want := stored
			if c.done {
				want = rekeyed
			}
			if d := cmp.Diff(want, get(t, client, table, keyOfItem("a")), sameAttributes); d != "" {
				t.Errorf("stored (-want +got):\n%s", d)
			}
			if again, err := driver.Replace(t.Context(), rows[0], with); again || err != nil {
				t.Errorf("again: %t, %v", again, err)
			}
		})
	}
}

// TestEmbed: a keyed row becomes an embedded one only if it still is what was read, is not of a
// later epoch, and the fence of the KEK is open.
func TestEmbed(t *testing.T) {
	with := source.Rewrapped{KEK: "kek-1", Epoch: 5, WrappedDEK: []byte("fresh dek"), Ciphertext: []byte("fresh")}
	embedded := without(keyedItem("a"), "dek.id")
	embedded["key"], embedded["wrapped.dek"], embedded["data"] = &s{Value: "kek-1"}, attr.Blob([]byte("fresh dek")), attr.Blob([]byte("fresh"))
	embedded["kek_epoch"], embedded["version"] = attr.Num(5), attr.Num(5)
	for name, c := range map[string]struct {
		change func(item) item
		fence  string
		err    error
		done   bool
	}{
		"as it was":         {nil, controltable.Open, nil, true},
		"another payload":   {func(i item) item { i["data"] = attr.Blob([]byte("other")); return i }, controltable.Open, nil, false},
		"another data key":  {func(i item) item { i["dek.id"] = &s{Value: secondDEK}; return i }, controltable.Open, nil, false},
		"of a later epoch":  {func(i item) item { i["kek_epoch"] = attr.Num(6); return i }, controltable.Open, nil, false},
		"of the same epoch": {func(i item) item { i["kek_epoch"] = attr.Num(5); return i }, controltable.Open, nil, true},
		"deleted":           {func(item) item { return nil }, controltable.Open, nil, false},
		"embedded":          {func(item) item { return embeddedItem("a") }, controltable.Open, nil, false},
		"both kinds":        {func(i item) item { i["key"] = &s{Value: "kek-0"}; return i }, controltable.Open, nil, false},
		"sealed":            {nil, controltable.Sealed, source.ErrFenced, false},
		"never opened":      {nil, "", source.ErrFenced, false},
	} {
		t.Run(name, func(t *testing.T) {
			client := ddbtest.NewTwin(t)
			table, _ := keyedTable(t, client)
			control := ddbtest.ControlTable(t, client)
			driver := open(t, client, keyedConfig(table)).FencedBy(control)
			put(t, client, table, keyedItem("a"))
			p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
			if err != nil || len(p.Keyed) != 1 {
				t.Fatalf("%+v, %v", p, err)
			}
			if c.fence != "" {
				put(t, client, control, controltable.EncodeFence(controltable.PKFence, "kek-1", 3, c.fence))
			}
			stored := keyedItem("a")
			if c.change != nil {
				if stored = c.change(stored); stored == nil {
					if _, err := client.DeleteItem(t.Context(), deleteOf(table, keyOfItem("a"))); err != nil {
						t.Fatal(err)
					}
				} else {
					put(t, client, table, stored)
				}
			}
			done, err := driver.Embed(t.Context(), p.Keyed[0], with, 3)
			if done != c.done || !errors.Is(err, c.err) || c.err == nil && err != nil {
				t.Errorf("%t, %v", done, err)
			}
			want := stored
			if c.done {
				want = embedded
			}
			if d := cmp.Diff(want, get(t, client, table, keyOfItem("a")), sameAttributes); d != "" {
				t.Errorf("stored (-want +got):\n%s", d)
			}
		})
	}
}

// TestEmbedRefuses: what does not become an embedded row.
func TestEmbedRefuses(t *testing.T) {
	client := ddbtest.NewTwin(t)
	table, unfenced := keyedTable(t, client)
	put(t, client, table, keyedItem("a"))
	put(t, client, table, embeddedItem("b"))
	p, err := unfenced.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
	if err != nil || len(p.Keyed) != 1 || len(p.Rows) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	driver := open(t, client, keyedConfig(table)).FencedBy(ddbtest.ControlTable(t, client))
	with := source.Rewrapped{KEK: "kek-1", Epoch: 5, WrappedDEK: []byte("fresh dek"), Ciphertext: []byte("fresh")}
	bare, unread := with, p.Keyed[0]
	bare.Ciphertext, unread.Ciphertext = nil, nil
	for name, c := range map[string]struct {
		driver *dynamosource.Table
		row    source.Row
		with   source.Rewrapped
	}{
		"no control table":            {unfenced, p.Keyed[0], with},
		"an embedded row":             {driver, p.Rows[0], with},
		"no payload":                  {driver, p.Keyed[0], bare},
		"a payload that was not read": {driver, unread, with},
		"a row of another source":     {driver, source.Row{ID: "a"}, with},
	} {
		if done, err := c.driver.Embed(t.Context(), c.row, c.with, 0); done || err == nil {
			t.Errorf("%s: %t, %v", name, done, err)
		}
	}
}

// TestBoundOfEmbedded: an embedded row of a table with keyed rows says what its payload would be
// bound to as a keyed one, to the byte, and a keyed row what as an embedded one.
func TestBoundOfEmbedded(t *testing.T) {
	client := ddbtest.NewTwin(t)
	table, driver := keyedTable(t, client)
	put(t, client, table, keyedItem("a"))
	i := embeddedItem("a")
	i["id"] = &s{Value: "b"}
	put(t, client, table, i)
	p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(p.Keyed) != 1 || len(p.Rows) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	want := maps.Clone(p.Keyed[0].Bound)
	want["matter:key:id"] = "b"
	if d := cmp.Diff(want, p.Rows[0].BoundUnder(firstDEK)); d != "" {
		t.Errorf("as a keyed row (-want +got):\n%s", d)
	}
	if d := cmp.Diff(p.Rows[0].Bound, p.Keyed[0].BoundEmbedded()); d != "" {
		t.Errorf("as an embedded row (-want +got):\n%s", d)
	}
	if !driver.WritesKeyed() {
		t.Error("its definition says that keyed rows are written")
	}
}

func deleteOf(table string, key item) *dynamodb.DeleteItemInput {
	return &dynamodb.DeleteItemInput{TableName: &table, Key: key}
}

func without(i item, names ...string) item {
	remove(i, names...)
	return i
}

// TestReplaceTinkByKeyed: a row that Tink wrote is converted on condition of all that it
// holds.
func TestReplaceTinkByKeyed(t *testing.T) {
	client := ddbtest.NewTwin(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: "S"}, ddbtest.Key{Name: "size", Type: "N"})
	cfg := keyedConfig(table)
	cfg.Format = rowschema.FormatTink
	driver := open(t, client, cfg)
	held := append([]byte{0, 0, 0, 3}, "dekand the payload, of some length"...)
	before := without(embeddedItem("a"), "wrapped.dek")
	before["data"] = attr.Blob(held)
	put(t, client, table, before)
	p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
	if err != nil || len(p.Rows) != 1 || p.Rows[0].Defect != "" {
		t.Fatalf("%+v, %v", p, err)
	}
	with := source.Rewrapped{DEKID: secondDEK, Epoch: 5, Ciphertext: []byte("fresh")}
	if done, err := driver.Replace(t.Context(), p.Rows[0], with); !done || err != nil {
		t.Fatalf("%t, %v", done, err)
	}
	p, err = driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: true})
	if err != nil || len(p.Keyed) != 1 || string(p.Keyed[0].Ciphertext) != "fresh" || p.Keyed[0].Epoch != 5 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestKeyedRefusals: what a keyed row is not replaced by.
func TestKeyedRefusals(t *testing.T) {
	client := ddbtest.NewTwin(t)
	table, driver := keyedTable(t, client)
	put(t, client, table, keyedItem("a"))
	row := func(payload bool) source.Row {
		p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: payload})
		if err != nil || len(p.Keyed) != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		return p.Keyed[0]
	}
	for name, c := range map[string]struct {
		row  source.Row
		with source.Rewrapped
	}{
		"a rewrap":                    {row(true), source.Rewrapped{KEK: "kek-1", Epoch: 5, WrappedDEK: []byte("dek"), Ciphertext: []byte("fresh")}},
		"no payload":                  {row(true), source.Rewrapped{DEKID: secondDEK, Epoch: 5}},
		"a payload that was not read": {row(false), source.Rewrapped{DEKID: secondDEK, Epoch: 5, Ciphertext: []byte("fresh")}},
	} {
		if done, err := driver.Replace(t.Context(), c.row, c.with); done || err == nil {
			t.Errorf("%s: %t, %v", name, done, err)
		}
	}
	if done, err := driver.Label(t.Context(), row(true), "kek-1"); done || err == nil {
		t.Errorf("label: %t, %v", done, err)
	}
	if err := driver.Rehearse(t.Context(), row(true)); err != nil {
		t.Errorf("rehearse: %v", err)
	}
	if d := cmp.Diff(keyedItem("a"), get(t, client, table, keyOfItem("a")), sameAttributes); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}
}

// TestRereadOtherKind: a row that was converted meanwhile is gone for the pass over rows of
// its old kind; one that is both kinds is there, with its defect.
func TestRereadOtherKind(t *testing.T) {
	client := ddbtest.NewTwin(t)
	table, driver := keyedTable(t, client)
	both := embeddedItem("a")
	both["dek.id"] = &s{Value: firstDEK}
	items := map[string]item{"keyed": keyedItem("a"), "embedded": embeddedItem("a"), "both": both}
	for was, before := range items {
		put(t, client, table, before)
		p, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1})
		rows := append(p.Rows, p.Keyed...)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		if was == "both" {
			continue
		}
		for is, after := range items {
			put(t, client, table, after)
			got, ok, err := driver.Reread(t.Context(), rows[0], true)
			if err != nil || ok != (is == was || is == "both") || ok && (got.Defect != "") != (is == "both") {
				t.Errorf("%s, then %s: %+v, %t, %v", was, is, got, ok, err)
			}
		}
	}
}

// TestBackupKeyed: a keyed row of a backup comes back as it is, or under another data key, and
// names no KEK.
func TestBackupKeyed(t *testing.T) {
	client := ddbtest.NewTwin(t)
	table, driver := keyedTable(t, client)
	b, err := driver.ReadBackup(t.Context(), keyedItem("a"))
	if err != nil || b.Row.Defect != "" || b.Row.DEKID != firstDEK || string(b.Row.Ciphertext) != "payload of a" {
		t.Fatalf("%+v, %v", b, err)
	}
	for _, with := range []source.Rewrapped{{DEKID: firstDEK, Epoch: 3}, {DEKID: secondDEK, Epoch: 5, Ciphertext: []byte("again")}} {
		want := keyedItem("a")
		want["dek.id"], want["kek_epoch"], want["version"] = &s{Value: with.DEKID}, attr.Num(with.Epoch), attr.Num(5)
		if with.Ciphertext != nil {
			want["data"] = attr.Blob(with.Ciphertext)
		}
		p, err := driver.InsertOf(b, with)
		if err != nil || *p.ConditionExpression != "attribute_not_exists(#pk)" {
			t.Fatalf("%+v, %v", p, err)
		}
		if diff := cmp.Diff(want, p.Item, sameAttributes); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	put(t, client, table, keyedItem("a"))
	now, ok, err := driver.ReadStored(t.Context(), b)
	if err != nil || !ok || now.Defect != "" || now.DEKID != firstDEK {
		t.Errorf("%+v, %t, %v", now, ok, err)
	}
	if u, err := driver.UpdateOf(now, source.Rewrapped{KEK: "kek-1", Epoch: 5, WrappedDEK: []byte("dek")}); err == nil {
		t.Errorf("update %+v", u)
	}
}
