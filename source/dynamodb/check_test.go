package dynamodb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
)

// TestCheck: a wrong definition is named by its JSON field, and an item that is
// unaccounted by its key.
func TestCheck(t *testing.T) { everywhere(t, testCheck) }

func testCheck(t *testing.T, client dynamo) {
	t.Helper()
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	for i := range 3 {
		id := fmt.Sprint(i)
		put(t, client, table, envelopeItem(item{"id": &s{Value: id}}, id, sourcetest.Envelope{KEK: "k", WrappedDEK: []byte("d"), Ciphertext: []byte("c")}))
		put(t, client, table, item{"id": &s{Value: "other-" + id}, "stray": &s{Value: "x"}})
	}
	const misconfigured, unaccounted = source.Misconfigured, source.Unaccounted
	for _, c := range []struct {
		kind           source.Problem
		field, mention string
		change         func(*dynamosource.Config)
	}{
		{"", "", "", func(*dynamosource.Config) {}},
		{"", "", "", func(c *dynamosource.Config) { c.Context = map[string]string{"id": "$id"} }},
		{"", "", "", func(c *dynamosource.Config) { c.KEKID, c.WrappedDEK, c.Ciphertext, c.Epoch = "a", "b", "c", "d" }}, // the census decides
		{misconfigured, "table", "no-such-table", func(c *dynamosource.Config) { c.Table = "no-such-table" }},
		{misconfigured, "kek_id_attribute", "part of the table's key", func(c *dynamosource.Config) { c.KEKID = "id" }},
		{misconfigured, "version_attribute", "part of the table's key", func(c *dynamosource.Config) { c.Version = "id" }},
		{misconfigured, "wrapped_dek_attribute", "wrapped_dek", func(c *dynamosource.Config) { c.WrappedDEK = "wrapped_dek" }},
		{misconfigured, "ciphertext_attribute", "payload", func(c *dynamosource.Config) { c.Ciphertext = "payload" }},
		{misconfigured, "context", "customer", func(c *dynamosource.Config) { c.Context = map[string]string{"who": "$customer"} }},
		{misconfigured, "context", "stray", func(c *dynamosource.Config) { c.Context = map[string]string{"who": "$stray"} }},
		{misconfigured, "bind", "stray", func(c *dynamosource.Config) { c.Bind = map[string]string{"who": "$stray"} }},
		{unaccounted, "kek_id_attribute", "keyid", func(c *dynamosource.Config) { c.KEKID = "keyid" }}, // or they are to be adopted
		{unaccounted, "version_attribute", "attribute note", func(c *dynamosource.Config) { c.Version = "note" }},
		{unaccounted, "epoch_attribute", "attribute note is of type S, not N", func(c *dynamosource.Config) { c.Epoch = "note" }},
	} {
		cfg := sourceConfig(table)
		c.change(&cfg)
		notes, err := open(t, watch(t, client), cfg).Check(t.Context())
		if c.kind == "" {
			if err != nil || len(notes) > 0 {
				t.Errorf("%+v: %q, %v", cfg, notes, err)
			}
			continue
		}
		var typed *source.Error
		if !errors.As(err, &typed) || typed.Problem != c.kind || typed.Field != c.field ||
			!strings.Contains(typed.Msg, c.mention) || typed.Next == "" {
			t.Errorf("%s: %v", c.field, err)
		}
		if named := typed != nil && len(typed.Rows) == 1 && strings.HasPrefix(typed.Rows[0], "id="); named != (c.kind == unaccounted) || strings.Contains(err.Error(), "id=") {
			t.Errorf("%s: %v: an unaccounted item is named by its key, to a person's terminal alone", c.field, err)
		}
	}
}

// onePaged is a DynamoDB whose pages have one item.
type onePaged struct{ dynamo }

func (p onePaged) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	own := *in
	own.Limit = aws.Int32(1)
	return p.dynamo.Scan(ctx, &own, o...)
}

// TestCheckPages: an item that comes after an empty page is looked at too.
func TestCheckPages(t *testing.T) {
	client := ddbtest.Client(t)
	table := idTable(t, client)
	for _, id := range []string{"a", "b", "c", "d"} {
		put(t, client, table, item{"id": &s{Value: id}})
	}
	all, err := client.Scan(t.Context(), &dynamodb.ScanInput{TableName: &table})
	if err != nil {
		t.Fatal(err)
	}
	last := all.Items[3]
	last["kek_epoch"] = &n{Value: "1"}
	put(t, client, table, last)
	_, err = open(t, watch(t, onePaged{client}), sourceConfig(table)).Check(t.Context())
	var typed *source.Error
	if !errors.As(err, &typed) || typed.Field != "wrapped_dek_attribute" {
		t.Errorf("%v", err)
	}
}

// described is a DynamoDB that describes its tables otherwise.
type described struct {
	dynamo
	change func(*types.TableDescription)
}

func (d described) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	out, err := d.dynamo.DescribeTable(ctx, in, o...)
	if err == nil {
		d.change(out.Table)
	}
	return out, err
}

// TestCheckTable: what DynamoDB says of a table beyond its key.
func TestCheckTable(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	for name, c := range map[string]struct {
		change  func(*types.TableDescription)
		mention string // of the error
		note    string
	}{
		"as it is":     {func(*types.TableDescription) {}, "", ""},
		"updating":     {func(d *types.TableDescription) { d.TableStatus = types.TableStatusUpdating }, "", ""},
		"archived":     {func(d *types.TableDescription) { d.TableStatus = types.TableStatusArchived }, "ARCHIVED", ""},
		"replicated":   {func(d *types.TableDescription) { d.Replicas = []types.ReplicaDescription{{}} }, "global table", ""},
		"of a version": {func(d *types.TableDescription) { d.GlobalTableVersion = aws.String("2017.11.29") }, "global table", ""},
		"an odd key":   {func(d *types.TableDescription) { d.KeySchema = nil }, "key schema", ""},
		"a stream": {func(d *types.TableDescription) {
			d.StreamSpecification = &types.StreamSpecification{StreamEnabled: aws.Bool(true)}
		}, "", "stream"},
		"a stream's rest": {func(d *types.TableDescription) {
			d.StreamSpecification = &types.StreamSpecification{StreamEnabled: aws.Bool(false)}
		}, "", ""},
	} {
		notes, err := open(t, described{client, c.change}, sourceConfig(table)).Check(t.Context())
		var typed *source.Error
		if c.mention == "" && err != nil || c.mention != "" && (!errors.As(err, &typed) || typed.Problem != source.Misconfigured ||
			typed.Field != "table" || !strings.Contains(typed.Msg, c.mention)) {
			t.Errorf("%s: %v", name, err)
		}
		if all := strings.Join(notes, "; "); (all == "") != (c.note == "") || !strings.Contains(all, c.note) {
			t.Errorf("%s: notes %q", name, notes)
		}
	}
	for note, change := range map[string]func(*dynamosource.Config){
		"opaque":                  func(c *dynamosource.Config) { c.Payloads = "opaque" },
		"format kms":              func(c *dynamosource.Config) { c.Format, c.WrappedDEK, c.Bind = "kms", "", nil },
		"format tink":             func(c *dynamosource.Config) { c.Format = "tink" },
		"no ciphertext_attribute": func(c *dynamosource.Config) { c.Ciphertext = "" },
	} {
		cfg := sourceConfig(table)
		change(&cfg)
		if notes, err := open(t, client, cfg).Check(t.Context()); err != nil || len(notes) != 1 || !strings.Contains(notes[0], note) {
			t.Errorf("%s: %q, %v", note, notes, err)
		}
	}
}

// elsewhere is a DynamoDB in which a table is known by its ARN, and by its name as said.
type elsewhere struct {
	dynamo
	name   string
	byName func() (*dynamodb.DescribeTableOutput, error)
}

func (e elsewhere) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if aws.ToString(in.TableName) == e.name {
		return e.byName()
	}
	out, err := e.dynamo.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &e.name}, o...)
	if err == nil {
		out.Table.TableArn = in.TableName
	}
	return out, err
}

// TestTableOfAnotherAccount: a table that the stack's account and Region do not have under
// its name is refused: no transaction reaches it together with the fence.
func TestTableOfAnotherAccount(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	arn := "arn:aws:dynamodb:eu-central-1:222222222222:table/" + table
	known := func(arn string) func() (*dynamodb.DescribeTableOutput, error) {
		return func() (*dynamodb.DescribeTableOutput, error) {
			return &dynamodb.DescribeTableOutput{Table: &types.TableDescription{TableArn: &arn}}, nil
		}
	}
	fails := func(err error) func() (*dynamodb.DescribeTableOutput, error) {
		return func() (*dynamodb.DescribeTableOutput, error) { return nil, err }
	}
	for name, c := range map[string]struct {
		byName  func() (*dynamodb.DescribeTableOutput, error)
		kind    source.Problem // "" for a table that is in order
		another bool           // another error
	}{
		"here":            {known(arn), "", false},
		"none here":       {fails(&types.ResourceNotFoundException{}), source.Misconfigured, false},
		"another here":    {known("arn:aws:dynamodb:eu-central-1:111111111111:table/" + table), source.Misconfigured, false},
		"not allowed":     {fails(&smithy.GenericAPIError{Code: "AccessDeniedException"}), source.Misconfigured, false},
		"cannot be asked": {fails(errors.New("connection refused")), "", true},
	} {
		cfg := sourceConfig(table)
		cfg.Name, cfg.Table = "orders", arn
		driver := open(t, elsewhere{client, table, c.byName}, cfg)
		_, err := driver.Check(t.Context())
		var typed *source.Error
		is := errors.As(err, &typed) && typed.Problem == c.kind && strings.Contains(typed.Msg, "another account or Region")
		if c.kind != "" && !is || c.another && (err == nil || errors.As(err, &typed) || !strings.Contains(err.Error(), "dynamodb DescribeTable "+table+": connection refused")) {
			t.Errorf("%s: %v", name, err)
		}
		if c.kind == "" && !c.another && err != nil && strings.Contains(err.Error(), "another account") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEncryptedBy: DynamoDB says which key encrypts a table; it is asked each time.
func TestEncryptedBy(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	key := ""
	driver := open(t, described{client, func(d *types.TableDescription) {
		if d.SSEDescription = nil; key != "" {
			d.SSEDescription = &types.SSEDescription{SSEType: types.SSETypeKms, KMSMasterKeyArn: &key}
		}
	}}, sourceConfig(table))
	for _, want := range []string{"", "arn:aws:kms:eu-central-1:123456789012:key/k"} {
		key = want
		if got, err := driver.EncryptedBy(t.Context()); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	missing := sourceConfig("no-such-table")
	if got, err := open(t, client, missing).EncryptedBy(t.Context()); err == nil {
		t.Errorf("no table: %q", got)
	}
}

// TestClassify: what each odd item is, by attribute.
func TestClassify(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	text := func(v string) types.AttributeValue { return &s{Value: v} }
	for _, c := range []struct {
		name    string
		kind    source.Defect // "" for a sound envelope
		mention string
		change  item // nil values are removed
	}{
		{"sound", "", "", nil},
		{"never wrapped again", "", "", item{"kek_epoch": nil, "version": nil}},
		{"kek as number", source.WrongType, "key is of type N, not S", item{"key": &n{Value: "1"}}},
		{"kek empty", source.NoKEK, "key", item{"key": text("")}},
		{"kek an alias ARN", source.UnknownForm, "alias", item{"key": text("arn:aws:kms:eu-central-1:123456789012:alias/a")}},
		{"dek as string", source.WrongType, "wrapped.dek is of type S, not B", item{"wrapped.dek": text("d")}},
		{"dek as string, no kek", source.WrongType, "wrapped.dek", item{"wrapped.dek": text("d"), "key": nil}},
		{"dek empty", source.NoWrappedDEK, "wrapped.dek", item{"wrapped.dek": &b{Value: []byte{}}}},
		{"kek alone", source.NoWrappedDEK, "wrapped.dek", item{"wrapped.dek": nil, "data": nil, "kek_epoch": nil, "version": nil}},
		{"dek alone", source.NoCiphertext, "data", item{"key": nil, "data": nil, "kek_epoch": nil, "version": nil}},
		{"payload as string", source.WrongType, "data is of type S, not B", item{"data": text("c")}},
		{"payload empty", source.NoCiphertext, "data", item{"data": &b{Value: []byte{}}}},
		{"payload alone", source.CipherAlone, "data", item{"key": nil, "wrapped.dek": nil, "kek_epoch": nil}},
		{"payload alone, as string", source.CipherAlone, "data", item{"key": nil, "wrapped.dek": nil, "data": text("c")}},
		{"epoch as string", source.WrongType, "kek_epoch is of type S, not N", item{"kek_epoch": text("1")}},
		{"epoch with fraction", source.WrongType, "kek_epoch", item{"kek_epoch": &n{Value: "1.5"}}},
		{"epoch alone", source.EpochAlone, "kek_epoch", item{"key": nil, "wrapped.dek": nil, "data": nil}},
		{"version as string", source.ForeignNumber, "version", item{"version": text("v1")}},
		{"version with fraction", source.ForeignNumber, "version", item{"version": &n{Value: "1.5"}}},
		{"context as binary", source.NoContext, "name", item{"name": &b{Value: []byte("x")}}},
		{"context missing", source.NoContext, "name", item{"name": nil}},
		{"bound missing", source.NoContext, "user", item{"user": nil}},
		{"declared, with a DEK", source.NoKEK, "key", item{"type": text("session"), "key": nil, "data": &b{Value: []byte("c")}}},
		{"declared, sound", "", "", item{"type": text("session")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := envelopeItem(item{"id": text("a")}, "a", sourcetest.Envelope{KEK: "k", Epoch: 1, Version: 1, WrappedDEK: []byte("d"), Ciphertext: []byte("c")})
			for name, v := range c.change {
				if i[name] = v; v == nil {
					delete(i, name)
				}
			}
			put(t, client, table, i)
			page, err := open(t, client, sourceConfig(table)).Scan(t.Context(), source.ScanRequest{Total: 1})
			if err != nil || len(page.Rows) != 1 || page.Other+page.Declared != 0 {
				t.Fatalf("%+v, %v", page, err)
			}
			r := page.Rows[0]
			if r.Kind != c.kind || !strings.Contains(r.Defect, c.mention) || r.ID != "id=a" {
				t.Errorf("%s: kind %q, %q, want %q", r.ID, r.Kind, r.Defect, c.kind)
			}
		})
	}
	for name, c := range map[string]struct {
		item            item
		other, declared int
	}{
		"declared":              {item{"type": text("lock")}, 0, 1},
		"declared, a payload":   {item{"type": text("lock"), "data": &b{Value: []byte("plain")}}, 0, 1}, // nothing of it names a key
		"declared of no type S": {item{"type": &b{Value: []byte("lock")}}, 1, 0},
		"of another value":      {item{"type": text("locks")}, 1, 0},
		"with a version":        {item{"version": &n{Value: "2"}}, 1, 0}, // the application's own
	} {
		c.item["id"] = text("a")
		put(t, client, table, c.item)
		page, err := open(t, client, sourceConfig(table)).Scan(t.Context(), source.ScanRequest{Total: 1})
		if err != nil || len(page.Rows) != 0 || page.Other != c.other || page.Declared != c.declared {
			t.Errorf("%s: %+v, %v", name, page, err)
		}
	}
}
