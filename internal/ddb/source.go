package ddb

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TableAPI is what [TableSource] uses of the DynamoDB client.
type TableAPI interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
}

// pageSize is how many items a page has when the caller does not say: a few
// seconds' work at KMS's pace, so that a checkpoint is never far away.
const pageSize = 500

var (
	_ rotation.Source  = (*TableSource)(nil)
	_ rotation.Labeler = (*TableSource)(nil)
)

// TableSource is a table whose rows are envelopes. It is safe for concurrent use.
type TableSource struct {
	client TableAPI
	cfg    SourceConfig

	mu   sync.Mutex
	keys []keyAttribute // nil until the table was described
}

// NewTableSource returns the source that cfg describes; cfg must be valid.
func NewTableSource(client TableAPI, cfg SourceConfig) (*TableSource, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &TableSource{client: client, cfg: cfg.WithDefaults()}, nil
}

// OpenTable returns the source of a definition of kind [kek.KindDynamoDB], under the
// name that it is registered by.
func OpenTable(client TableAPI, def kek.Source) (*TableSource, error) {
	cfg, err := rowschema.Parse([]byte(def.Definition))
	if err != nil {
		return nil, err
	}
	if cfg.Name != "" && cfg.Name != def.Name {
		return nil, fmt.Errorf("name: the definition is of source %q, not %q", cfg.Name, def.Name)
	}
	cfg.Name = def.Name
	return NewTableSource(client, cfg)
}

// Name implements [rotation.Source].
func (t *TableSource) Name() string { return t.cfg.Name }

// Segments implements [rotation.Source]: a table scans in any number of parts.
func (t *TableSource) Segments(n int) int { return max(n, 1) }

// Scan implements [rotation.Source]. Limit counts items, whatever they are.
func (t *TableSource) Scan(ctx context.Context, req rotation.ScanRequest) (rotation.Page, error) {
	keys, err := t.schema(ctx)
	if err != nil {
		return rotation.Page{}, err
	}
	start, err := decodeCursor(req.Cursor, keys)
	if err != nil {
		return rotation.Page{}, fmt.Errorf("scan %s: %w", t.cfg.Name, err)
	}
	in := t.scanInput(keys, req)
	in.ExclusiveStartKey = start
	out, err := t.client.Scan(ctx, in)
	if err != nil {
		return rotation.Page{}, awserr.Wrap("dynamodb Scan "+t.cfg.Table, err)
	}
	page := rotation.Page{Rows: make([]rotation.Row, 0, len(out.Items))}
	for _, i := range out.Items {
		row, _, ok := readRow(t.cfg, i, keys, req.Payload, req.Whole)
		switch {
		case ok:
			page.Rows = append(page.Rows, row)
		case t.cfg.Other.Declares(i):
			page.Declared++
		default:
			page.Other++
		}
	}
	// A page without items is not the last if it has a last key.
	page.Next, err = encodeCursor(out.LastEvaluatedKey, keys)
	return page, err
}

func (t *TableSource) scanInput(keys []keyAttribute, req rotation.ScanRequest) *dynamodb.ScanInput {
	limit := req.Limit
	if limit <= 0 {
		limit = pageSize
	}
	in := &dynamodb.ScanInput{
		TableName: &t.cfg.Table, ConsistentRead: aws.Bool(true),
		Segment: aws.Int32(int32(req.Segment)), TotalSegments: aws.Int32(int32(req.Total)), //nolint:gosec // at most 40
		Limit: aws.Int32(int32(limit)),
	}
	if !req.Whole {
		in.ProjectionExpression, in.ExpressionAttributeNames = t.projection(keys)
	}
	return in
}

// projection names what a scan reads: the key, the envelope's attributes, those that
// a payload is bound to, and the one that declares other items.
func (t *TableSource) projection(keys []keyAttribute) (*string, map[string]string) {
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

// handleOf returns the handle of a row of this source.
func (t *TableSource) handleOf(what string, row rotation.Row) (handle, error) {
	h, ok := row.Handle.(handle)
	if !ok {
		return h, fmt.Errorf("%s a row: it is not of source %s", what, t.cfg.Name)
	}
	return h, nil
}

// changeIfUnchanged begins a change of a row on condition that it still has the KEK, to the
// byte, and the wrapped bytes that were read: so the row exists, and none is created.
func (t *TableSource) changeIfUnchanged(h handle) change {
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

// rewrapRow makes the change that replaces a row's wrapping. When the payload changes, its
// condition covers the old ciphertext too: a writer with a cached DEK may have written
// another payload under the same wrapped DEK, and its write would be lost.
func (t *TableSource) rewrapRow(h handle, old rotation.Row, with rotation.Rewrapped) (change, error) {
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
	if t.cfg.Version != "" {
		c.update += ", #version = if_not_exists(#version, :zero) + :one"
		c.names["#version"] = t.cfg.Version
		c.values[":zero"], c.values[":one"] = attr.Num(0), attr.Num(1)
	}
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

// Replace implements [rotation.Source].
func (t *TableSource) Replace(ctx context.Context, old rotation.Row, with rotation.Rewrapped) (bool, error) {
	c, err := t.replaceRow("replace", old, with)
	if err != nil {
		return false, err
	}
	return t.updateItem(ctx, c)
}

// replaceRow is rewrapRow for a row that must be a sound envelope of this source.
func (t *TableSource) replaceRow(what string, old rotation.Row, with rotation.Rewrapped) (change, error) {
	h, err := t.handleOf(what, old)
	if err != nil {
		return change{}, err
	}
	if old.Defect != "" {
		return change{}, fmt.Errorf("%s a row: %w: %s", what, errDefect, old.Defect)
	}
	c, err := t.rewrapRow(h, old, with)
	if err != nil {
		return c, fmt.Errorf("%s a row: %w", what, err)
	}
	return c, nil
}

// Rehearse implements [rotation.Source]. It sends the update that a rewrap of the row
// sends, with a condition added that cannot hold: that an attribute of the key is
// missing from the item that the others ask for. AWS decides whether a request is
// allowed from the request alone, before the service carries it out (IAM user guide,
// "Policy evaluation logic"), so a failed condition shows the permission, for policies
// that list attributes too. If the row was read with its payload, the update sets the
// payload as well, as an emergency does.
func (t *TableSource) Rehearse(ctx context.Context, old rotation.Row) error {
	c, err := t.replaceRow("rehearse", old, rotation.Rewrapped{KEK: old.KEK, Epoch: old.Epoch, WrappedDEK: old.WrappedDEK, Ciphertext: old.Ciphertext})
	if err != nil {
		return err
	}
	keys, err := t.schema(ctx)
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

// Label implements [rotation.Labeler].
func (t *TableSource) Label(ctx context.Context, old rotation.Row, id kek.ID) (bool, error) {
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
func (t *TableSource) updateItem(ctx context.Context, c change) (bool, error) {
	_, err := t.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &t.cfg.Table, Key: c.key, UpdateExpression: &c.update, ConditionExpression: &c.cond,
		ExpressionAttributeNames: c.names, ExpressionAttributeValues: c.values,
	})
	if failedCondition(err) {
		return false, nil
	}
	if err != nil {
		return false, awserr.Wrap("dynamodb UpdateItem "+t.cfg.Table, err)
	}
	return true, nil
}

// Reread implements [rotation.Source]. An item that has none of the envelope's
// attributes any more is gone.
func (t *TableSource) Reread(ctx context.Context, old rotation.Row, payload bool) (rotation.Row, bool, error) {
	h, err := t.handleOf("reread", old)
	if err != nil {
		return rotation.Row{}, false, err
	}
	keys, err := t.schema(ctx)
	if err != nil {
		return rotation.Row{}, false, err
	}
	projection, names := t.projection(keys)
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &t.cfg.Table, Key: h.key, ConsistentRead: aws.Bool(true),
		ProjectionExpression: projection, ExpressionAttributeNames: names,
	})
	if err != nil {
		return rotation.Row{}, false, awserr.Wrap("dynamodb GetItem "+t.cfg.Table, err)
	}
	row, _, ok := readRow(t.cfg, out.Item, keys, payload, false)
	return row, ok, nil
}

// EncryptedBy implements [rotation.Source]: the KMS key of the table's encryption at
// rest, as DescribeTable says it.
func (t *TableSource) EncryptedBy(ctx context.Context) (string, error) {
	d, err := t.describe(ctx)
	if err != nil || d.SSEDescription == nil {
		return "", err
	}
	return aws.ToString(d.SSEDescription.KMSMasterKeyArn), nil
}

// schema is the table's primary key, asked for once.
func (t *TableSource) schema(ctx context.Context) ([]keyAttribute, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys != nil {
		return t.keys, nil
	}
	d, err := t.describe(ctx)
	if err != nil {
		return nil, err
	}
	t.keys, err = keySchema(d)
	return t.keys, err
}

func (t *TableSource) describe(ctx context.Context) (*types.TableDescription, error) {
	out, err := t.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &t.cfg.Table})
	if err != nil {
		return nil, awserr.Wrap("dynamodb DescribeTable "+t.cfg.Table, err)
	}
	return out.Table, nil
}
