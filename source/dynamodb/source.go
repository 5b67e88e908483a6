// Package dynamodb is the driver of DynamoDB tables whose items are envelopes.
//
// Invariants (spec/rotation.tla): every read is strongly consistent; a row is replaced only
// if it still is what was read, and never created, so that NoKeyOrphans cannot break by
// bringing back a deleted row. If the answer to a write is lost, the SDK repeats it, which
// fails its own condition: the caller reads again and finds that its effect is made.
//
// Retries and timeouts are those of the client passed in.
package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// API is what [Table] uses of the DynamoDB client.
type API interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// pageSize is how many items a page has if the caller does not say: a few seconds of work at
// the rate of KMS, so that a crash repeats little.
const pageSize = 500

// pageBytes is what one Scan reads at most (DynamoDB API reference, Scan).
const pageBytes = 1 << 20

var (
	_ source.Driver    = (*Table)(nil)
	_ source.Labeler   = (*Table)(nil)
	_ source.Sizer     = (*Table)(nil)
	_ source.Converter = (*Table)(nil)
)

// Config is the definition of a table whose rows are envelopes.
type Config = rowschema.Schema

type item = attr.Item

// Table is a table whose rows are envelopes. It is safe for concurrent use.
type Table struct {
	client  API
	cfg     Config
	control string // the control table, which has the fence of rows; "": no keyed row becomes embedded

	mu         sync.Mutex
	keys       []keyAttribute // nil until the table was described
	partitions bool           // it takes more writes than one partition does
}

// New returns the source that cfg describes; cfg must be valid.
func New(client API, cfg Config) (*Table, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Table{client: client, cfg: cfg.WithDefaults()}, nil
}

// Kind returns the kind of source for the tables that client can reach. controlTable is the
// deployment's, which has the fence of rows.
func Kind(client API, controlTable string) source.Kind {
	return source.Kind{
		Name: rowschema.Kind, Parse: parseDefinition,
		Open: func(def kek.Source) (source.Driver, error) {
			t, err := Open(client, def)
			if err != nil {
				return nil, err
			}
			return t.FencedBy(controlTable), nil
		},
	}
}

// parseDefinition reads a definition as a person writes it.
func parseDefinition(text []byte) (kek.Source, error) {
	var d struct {
		Kind string `json:"kind"`
		Config
	}
	if err := strictjson.Unmarshal(text, &d); err != nil {
		return kek.Source{}, err
	}
	return d.Source(), d.Validate()
}

// Open returns the driver of a definition of kind [rowschema.Kind], under the name
// that it is registered by.
func Open(client API, def kek.Source) (*Table, error) {
	cfg, err := rowschema.Parse([]byte(def.Definition))
	if err != nil {
		return nil, err
	}
	if cfg.Name != "" && cfg.Name != def.Name {
		return nil, fmt.Errorf("name: the definition is of source %q, not %q", cfg.Name, def.Name)
	}
	cfg.Name = def.Name
	return New(client, cfg)
}

// FencedBy sets the control table that has the fence of rows, and returns t. Without one no
// keyed row becomes embedded.
func (t *Table) FencedBy(controlTable string) *Table {
	t.control = controlTable
	return t
}

// Name implements [source.Driver].
func (t *Table) Name() string { return t.cfg.Name }

// Traits implements [source.Driver]. An insert of package envelope is a transaction of the
// row and of a fence item of the control table.
func (t *Table) Traits() source.Traits {
	return source.Traits{Noun: "table", Fencing: source.ControlTable(), Billing: source.DynamoDBByUnit, PageItems: pageSize, PageBytes: pageBytes}
}

// Kinds implements [source.Keyer].
func (t *Table) Kinds() (keyed, embedded bool) { return t.cfg.HoldsKeyed(), t.cfg.HoldsEmbedded() }

// WritesKeyed implements [source.Converter].
func (t *Table) WritesKeyed() bool { return t.cfg.Keyed() }

// Segments implements [source.Driver]: a table scans in any number of parts.
func (t *Table) Segments(n int) int { return max(n, 1) }

// Scan implements [source.Driver]. Limit counts items of any kind.
func (t *Table) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	keys, err := t.primaryKey(ctx)
	if err != nil {
		return source.Page{}, err
	}
	if strings.HasPrefix(req.Cursor, spreadPrefix) || req.Spread && req.Cursor == "" && t.hasPartitions() {
		return t.scanSpread(ctx, keys, req)
	}
	return t.scanPage(ctx, keys, req)
}

// scanPage reads a page of one part of the table.
func (t *Table) scanPage(ctx context.Context, keys []keyAttribute, req source.ScanRequest) (source.Page, error) {
	start, err := decodeCursor(req.Cursor, keys)
	if err != nil {
		return source.Page{}, fmt.Errorf("scan %s: %w", t.cfg.Name, err)
	}
	in := t.scanInput(keys, req)
	in.ExclusiveStartKey = start
	out, err := t.client.Scan(ctx, in)
	if err != nil {
		return source.Page{}, remote.WrapError("dynamodb Scan "+t.cfg.Table, err)
	}
	page := source.Page{Rows: make([]source.Row, 0, len(out.Items))}
	for _, i := range out.Items {
		row, _, ok := readRow(t.cfg, i, keys, req.Payload, req.Whole)
		switch {
		case ok && row.DEKID != "" && row.Defect == "":
			page.Keyed = append(page.Keyed, row)
		case ok:
			page.Rows = append(page.Rows, row)
		case t.cfg.Other.Declares(i):
			page.Declared++
		default:
			page.Other++
		}
	}
	// A page without items is not the last one if it has a LastEvaluatedKey.
	page.Next, err = encodeCursor(out.LastEvaluatedKey, keys)
	return page, err
}

// scanInput returns a consistent scan of one page. A whole scan has no projection: only then
// is the size of an item known.
func (t *Table) scanInput(keys []keyAttribute, req source.ScanRequest) *dynamodb.ScanInput {
	limit := req.Limit
	if limit <= 0 {
		limit = pageSize
	}
	in := &dynamodb.ScanInput{
		TableName: &t.cfg.Table, ConsistentRead: aws.Bool(true),
		Segment: aws.Int32(int32(req.Segment)), TotalSegments: aws.Int32(int32(req.Total)), //nolint:gosec // at most rotation.MaxSegments
		Limit: aws.Int32(int32(limit)),
	}
	if !req.Whole {
		in.ProjectionExpression, in.ExpressionAttributeNames = t.projectRow(keys)
	}
	return in
}

// projectRow names what a scan reads: the key, the envelope's attributes, those that
// a payload is bound to, and the one that declares other items.
func (t *Table) projectRow(keys []keyAttribute) (*string, map[string]string) {
	var attrs []string
	for _, k := range keys {
		attrs = append(attrs, k.name)
	}
	for _, a := range t.cfg.Attributes() {
		attrs = append(attrs, a.Name)
	}
	for _, m := range t.cfg.Bound() {
		for _, v := range m.Values {
			a, _ := rowschema.ContextAttribute(v) // "" of a literal
			attrs = append(attrs, a)
		}
	}
	if t.cfg.Other != nil {
		attrs = append(attrs, t.cfg.Other.Attribute)
	}
	seen, names := map[string]bool{"": true}, map[string]string{}
	var expr []string
	for _, a := range attrs {
		if !seen[a] {
			seen[a] = true
			n := fmt.Sprintf("#p%d", len(expr))
			names[n] = a
			expr = append(expr, n)
		}
	}
	return aws.String(strings.Join(expr, ", ")), names
}

// change is a conditional update of one row.
type change struct {
	key          item
	update, cond string
	names        map[string]string
	values       item
}

var (
	errNoPayload = errors.New("a payload cannot be replaced that was not read or is not of this project's format")
	errDefect    = errors.New("it is not a sound envelope")
)

// handleOf returns the handle of a row. It refuses a row of another kind of source.
func (t *Table) handleOf(what string, row source.Row) (handle, error) {
	h, ok := row.Handle.(handle)
	if !ok {
		return h, fmt.Errorf("%s a row: it is not of source %s", what, t.cfg.Name)
	}
	return h, nil
}

// changeIfUnchanged begins a change of a row on condition that it still names the KEK exactly
// as it did and has the wrapped bytes that were read. The condition holds only for an existing
// item, so the update never creates one.
func (t *Table) changeIfUnchanged(h handle) change {
	c := change{
		key: h.key, names: map[string]string{"#kek": t.cfg.KEKID, "#held": h.holder}, values: item{":oldheld": attr.Blob(h.held)},
		cond: "#held = :oldheld AND attribute_not_exists(#kek)",
	}
	if h.kek != nil {
		c.cond, c.values[":oldkek"] = "#held = :oldheld AND #kek = :oldkek", h.kek
	}
	if h.tink {
		c.cond += " AND attribute_not_exists(#dek)"
		c.names["#dek"] = t.cfg.WrappedDEK
	}
	return c
}

// rewrapRow returns the change that replaces a row's wrapping. If the payload changes too, the
// condition covers the old ciphertext: a writer with a cached DEK may have written another
// payload under the same wrapped DEK, and that write would be lost.
func (t *Table) rewrapRow(h handle, old source.Row, with source.Rewrapped) (change, error) {
	held, err := heldAfter(h, with)
	if err != nil {
		return change{}, err
	}
	c := t.changeIfUnchanged(h)
	c.update = "SET #kek = :kek, #held = :held, #epoch = :epoch"
	c.names["#epoch"] = t.cfg.Epoch
	c.values[":kek"] = attr.Str(string(with.KEK))
	c.values[":held"] = attr.Blob(held)
	c.values[":epoch"] = attr.Num(with.Epoch)
	t.countWrite(&c)
	if with.Ciphertext != nil {
		if old.Ciphertext == nil {
			return change{}, errNoPayload
		}
		c.update, c.cond = c.update+", #payload = :payload", c.cond+" AND #payload = :oldpayload"
		c.names["#payload"] = t.cfg.Ciphertext
		c.values[":payload"], c.values[":oldpayload"] = attr.Blob(with.Ciphertext), attr.Blob(old.Ciphertext)
	}
	return c, nil
}

var errUnkeyed = errors.New("a keyed row becomes embedded only in a transaction with the fence of its KEK")

// rekeyRow returns the change that puts a payload under a data key of the key table. The row
// was keyed or embedded. A row that a writer has put under a data key of a later epoch keeps it:
// it may be younger than the emergency that this change belongs to.
func (t *Table) rekeyRow(h handle, old source.Row, with source.Rewrapped) (change, error) {
	switch {
	case with.DEKID == "":
		return change{}, errUnkeyed
	case old.Ciphertext == nil && !h.tink || len(with.Ciphertext) == 0:
		return change{}, errNoPayload
	}
	c := change{
		key:    h.key,
		update: "SET #dekid = :dekid, #payload = :payload, #epoch = :epoch", cond: "#payload = :oldpayload",
		names: map[string]string{"#dekid": t.cfg.DEKID, "#payload": t.cfg.Ciphertext, "#epoch": t.cfg.Epoch},
		values: item{
			":dekid": attr.Str(with.DEKID), ":payload": attr.Blob(with.Ciphertext), ":epoch": attr.Num(with.Epoch), ":oldpayload": attr.Blob(old.Ciphertext),
		},
	}
	if h.dek != nil {
		c.cond += " AND #dekid = :olddekid AND #epoch <= :epoch"
		c.values[":olddekid"] = h.dek
	} else {
		unchanged := t.changeIfUnchanged(h)
		c.cond = unchanged.cond + " AND #payload = :oldpayload AND attribute_not_exists(#dekid) AND (attribute_not_exists(#epoch) OR #epoch <= :epoch)"
		maps.Copy(c.names, unchanged.names)
		maps.Copy(c.values, unchanged.values)
		if h.tink {
			c.values[":oldpayload"] = attr.Blob(h.held)
		}
	}
	var remove []string
	for name, attribute := range map[string]string{"#kek": t.cfg.KEKID, "#dek": t.cfg.WrappedDEK} {
		if attribute != "" && h.dek == nil {
			c.names[name] = attribute
			remove = append(remove, name)
		}
	}
	t.countWrite(&c)
	if slices.Sort(remove); len(remove) > 0 {
		c.update += " REMOVE " + strings.Join(remove, ", ")
	}
	return c, nil
}

// countWrite adds to a change that the version counts it.
func (t *Table) countWrite(c *change) {
	if t.cfg.Version == "" {
		return
	}
	c.update += ", #version = if_not_exists(#version, :zero) + :one"
	c.names["#version"] = t.cfg.Version
	c.values[":zero"], c.values[":one"] = attr.Num(0), attr.Num(1)
}

// Replace implements [source.Driver].
func (t *Table) Replace(ctx context.Context, old source.Row, with source.Rewrapped) (bool, error) {
	c, err := t.replaceRow("replace", old, with)
	if err != nil {
		return false, err
	}
	return t.updateItem(ctx, c)
}

// replaceRow is rewrapRow for a row that must be a sound envelope of this source.
func (t *Table) replaceRow(what string, old source.Row, with source.Rewrapped) (change, error) {
	h, err := t.handleOf(what, old)
	if err != nil {
		return change{}, err
	}
	if old.Defect != "" {
		return change{}, fmt.Errorf("%s a row: %w: %s", what, errDefect, old.Defect)
	}
	rewrap := t.rewrapRow
	if with.DEKID != "" || old.DEKID != "" {
		rewrap = t.rekeyRow
	}
	c, err := rewrap(h, old, with)
	if err != nil {
		return c, fmt.Errorf("%s a row: %w", what, err)
	}
	return c, nil
}

// Rehearse implements [source.Driver]. It sends the update that a rewrap of the row sends,
// with one more condition that cannot hold: that an attribute of the key is missing, while the
// other conditions require the item to exist. AWS decides from the request alone whether it is
// allowed, before the service carries it out (IAM user guide, "Policy evaluation logic"). So a
// failed condition shows the permission, also under policies that list attributes. If the row
// was read with its payload, the update sets the payload too, as an emergency does.
func (t *Table) Rehearse(ctx context.Context, old source.Row) error {
	c, err := t.replaceRow("rehearse", old, source.Rewrapped{
		DEKID: old.DEKID, KEK: old.KEK, Epoch: old.Epoch, WrappedDEK: old.WrappedDEK, Ciphertext: old.Ciphertext,
	})
	if err != nil {
		return err
	}
	keys, err := t.primaryKey(ctx)
	if err != nil {
		return err
	}
	c.cond += " AND attribute_not_exists(#pk)"
	c.names["#pk"] = keys[0].name
	done, err := t.updateItem(ctx, c)
	if done {
		return errors.New("rehearse a row: a write whose condition cannot hold was made")
	}
	return err
}

// Label implements [source.Labeler].
func (t *Table) Label(ctx context.Context, old source.Row, id kek.ID) (bool, error) {
	h, err := t.handleOf("label", old)
	if err != nil {
		return false, err
	}
	if _, ok := h.kek.(*types.AttributeValueMemberS); !ok && h.kek != nil || len(h.held) == 0 {
		return false, fmt.Errorf("label a row: %w: %s", errDefect, old.Defect)
	}
	c := t.changeIfUnchanged(h)
	c.update = "SET #kek = :kek"
	c.values[":kek"] = attr.Str(string(id))
	return t.updateItem(ctx, c)
}

// updateItem updates a row on a condition; false if that failed.
func (t *Table) updateItem(ctx context.Context, c change) (bool, error) {
	_, err := t.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &t.cfg.Table, Key: c.key, UpdateExpression: &c.update, ConditionExpression: &c.cond,
		ExpressionAttributeNames: c.names, ExpressionAttributeValues: c.values,
	})
	if failed := (*types.ConditionalCheckFailedException)(nil); errors.As(err, &failed) {
		return false, nil
	}
	if controltable.Busy(err) {
		return false, fmt.Errorf("dynamodb UpdateItem %s: %w: %w", t.cfg.Table, source.ErrBusy, err)
	}
	if err != nil {
		return false, remote.WrapError("dynamodb UpdateItem "+t.cfg.Table, err)
	}
	return true, nil
}

// Reread implements [source.Driver]. An item that no longer has any of the envelope's
// attributes counts as deleted, and so does a row of the other kind.
func (t *Table) Reread(ctx context.Context, old source.Row, payload bool) (source.Row, bool, error) {
	h, err := t.handleOf("reread", old)
	if err != nil {
		return source.Row{}, false, err
	}
	keys, err := t.primaryKey(ctx)
	if err != nil {
		return source.Row{}, false, err
	}
	projection, names := t.projectRow(keys)
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &t.cfg.Table, Key: h.key, ConsistentRead: aws.Bool(true),
		ProjectionExpression: projection, ExpressionAttributeNames: names,
	})
	if err != nil {
		return source.Row{}, false, remote.WrapError("dynamodb GetItem "+t.cfg.Table, err)
	}
	row, _, ok := readRow(t.cfg, out.Item, keys, payload, false)
	if ok && row.Defect == "" && old.DEKID == "" != (row.DEKID == "") {
		return source.Row{}, false, nil
	}
	return row, ok, nil
}

// EncryptedBy implements [source.Driver] by DescribeTable: the KMS key of the table's
// encryption at rest.
func (t *Table) EncryptedBy(ctx context.Context) (string, error) {
	d, err := t.describeTable(ctx)
	if err != nil || d.SSEDescription == nil {
		return "", err
	}
	return aws.ToString(d.SSEDescription.KMSMasterKeyArn), nil
}

// primaryKey returns the table's primary key. It asks DynamoDB once.
func (t *Table) primaryKey(ctx context.Context) ([]keyAttribute, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys != nil {
		return t.keys, nil
	}
	d, err := t.describeTable(ctx)
	if err != nil {
		return nil, err
	}
	t.keys, err = keySchema(d)
	t.partitions = hasPartitions(d)
	return t.keys, err
}

// hasPartitions reports what primaryKey has learned of the table's capacity.
func (t *Table) hasPartitions() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.partitions
}

func (t *Table) describeTable(ctx context.Context) (*types.TableDescription, error) {
	out, err := t.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &t.cfg.Table})
	if err != nil {
		return nil, remote.WrapError("dynamodb DescribeTable "+t.cfg.Table, err)
	}
	return out.Table, nil
}
