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

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/awserr"
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

// pageSize is how many rows a page has when the caller does not say: a few
// seconds' work at KMS's pace, so that a checkpoint is never far away.
const pageSize = 500

var _ rotation.Source = (*TableSource)(nil)

// TableSource is a table whose rows are envelopes. It is safe for concurrent use.
type TableSource struct {
	client TableAPI
	cfg    SourceConfig

	mu   sync.Mutex
	keys []keyAttribute // nil until the table was described
}

// handle is a row's primary key and, if Tink wrote the row, the whole of what it
// wrote: the wrapped DEK is inside.
type handle struct {
	key  item
	tink []byte
}

// NewTableSource returns the source that cfg describes; cfg must be valid.
func NewTableSource(client TableAPI, cfg SourceConfig) (*TableSource, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &TableSource{client: client, cfg: cfg.withDefaults()}, nil
}

// Name implements [rotation.Source].
func (t *TableSource) Name() string { return t.cfg.Name }

// Segments implements [rotation.Source]: a table scans in any number of parts.
func (t *TableSource) Segments(n int) int { return max(n, 1) }

// Scan implements [rotation.Source]. Limit counts items, Skipped ones too.
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
		if row, ok := t.row(i, keys); ok {
			page.Rows = append(page.Rows, row)
		} else {
			page.Skipped++
		}
	}
	page.Next, err = encodeCursor(out.LastEvaluatedKey, keys)
	return page, err
}

func (t *TableSource) scanInput(keys []keyAttribute, req rotation.ScanRequest) *dynamodb.ScanInput {
	limit := req.Limit
	if limit <= 0 {
		limit = pageSize
	}
	projection, names := t.projection(keys, req.Payload)
	return &dynamodb.ScanInput{
		TableName: &t.cfg.Table, ConsistentRead: aws.Bool(true),
		Segment: aws.Int32(int32(req.Segment)), TotalSegments: aws.Int32(int32(req.Total)), //nolint:gosec // at most 40
		Limit:                aws.Int32(int32(limit)),
		ProjectionExpression: &projection, ExpressionAttributeNames: names,
	}
}

// projection names what a scan reads: the key, the envelope's attributes, those
// of the encryption context, and the ciphertext only when it is asked for.
func (t *TableSource) projection(keys []keyAttribute, payload bool) (string, map[string]string) {
	var attrs []string
	for _, k := range keys {
		attrs = append(attrs, k.name)
	}
	attrs = append(attrs, t.cfg.KEKID, t.cfg.WrappedDEK, t.cfg.Epoch, t.cfg.Version)
	if t.cfg.Ciphertext != "" && (payload || t.cfg.Format == formatTink) {
		attrs = append(attrs, t.cfg.Ciphertext)
	}
	for _, v := range t.cfg.Context {
		if a, ok := contextAttribute(v); ok {
			attrs = append(attrs, a)
		}
	}
	seen, names := map[string]bool{}, map[string]string{}
	var expr []string
	for _, a := range attrs {
		if !seen[a] {
			seen[a] = true
			n := fmt.Sprintf("#p%d", len(expr))
			names[n] = a
			expr = append(expr, n)
		}
	}
	return strings.Join(expr, ", "), names
}

// row reads an item. False means that it is no envelope at all: it has neither a
// KEK id nor a wrapped DEK.
func (t *TableSource) row(i item, keys []keyAttribute) (rotation.Row, bool) {
	if i[t.cfg.KEKID] == nil && i[t.cfg.WrappedDEK] == nil {
		return rotation.Row{}, false
	}
	r := reader{item: i}
	row := rotation.Row{
		ID: rowID(i, keys), Handle: handle{key: keyOf(i, keys)},
		KEK: kek.ID(r.str(t.cfg.KEKID)), WrappedDEK: r.bytes(t.cfg.WrappedDEK), Epoch: r.num(t.cfg.Epoch),
	}
	r.num(t.cfg.Version) // a version that cannot be counted up would fail the update
	if t.cfg.Ciphertext != "" {
		row.Ciphertext = r.bytes(t.cfg.Ciphertext)
	}
	var err error
	if t.cfg.Format == formatTink && i[t.cfg.WrappedDEK] == nil {
		err = parseTink(&row, keyOf(i, keys))
	} else {
		row.Context, err = ContextOf(t.cfg, i)
	}
	if r.err == nil {
		r.err = err
	}
	switch {
	case r.err != nil:
		row.Defect = r.err.Error()
	case row.KEK == "":
		row.Defect = fmt.Sprintf("attribute %s is missing or empty", t.cfg.KEKID)
	case len(row.WrappedDEK) == 0:
		row.Defect = fmt.Sprintf("attribute %s is missing or empty", t.cfg.WrappedDEK)
	}
	return row, true
}

// parseTink takes the wrapped DEK out of what Tink wrote. Tink binds no encryption
// context to it. Its payload is not for an emergency to re-encrypt: only the
// application knows the associated data, and its next update of the row makes it
// one of format matter.
func parseTink(row *rotation.Row, key item) error {
	whole := row.Ciphertext
	row.Ciphertext, row.Context, row.Handle = nil, nil, handle{key: key, tink: whole}
	var err error
	row.WrappedDEK, _, err = aead.ParseTink(whole)
	return err
}

// replaceTink puts the same payload behind the DEK wrapped anew.
func (t *TableSource) replaceTink(ctx context.Context, h handle, old rotation.Row, with rotation.Rewrapped) (bool, error) {
	if with.Ciphertext != nil {
		return false, fmt.Errorf("replace %s: %w", old.ID, errNoPayload)
	}
	_, payload, err := aead.ParseTink(h.tink)
	if err != nil {
		return false, fmt.Errorf("replace %s: %w", old.ID, err)
	}
	whole, err := aead.JoinTink(with.WrappedDEK, payload)
	if err != nil {
		return false, fmt.Errorf("replace %s: %w", old.ID, err)
	}
	return t.write(ctx, h.key,
		"SET #kek = :kek, #payload = :payload, #epoch = :epoch, #version = if_not_exists(#version, :zero) + :one",
		"#kek = :oldkek AND #payload = :oldpayload AND attribute_not_exists(#dek)",
		map[string]string{
			"#kek": t.cfg.KEKID, "#payload": t.cfg.Ciphertext, "#dek": t.cfg.WrappedDEK,
			"#epoch": t.cfg.Epoch, "#version": t.cfg.Version,
		},
		item{
			":kek": str(string(with.KEK)), ":payload": blob(whole), ":epoch": num(with.Epoch), ":zero": num(0), ":one": num(1),
			":oldkek": str(string(old.KEK)), ":oldpayload": blob(h.tink),
		})
}

// Replace implements [rotation.Source]. The condition on the old values implies
// that the row exists, so it never creates one. When the payload changes, the
// condition covers the old ciphertext too: a writer with a cached DEK may have
// written another payload under the same wrapped DEK, and its write would be lost.
func (t *TableSource) Replace(ctx context.Context, old rotation.Row, with rotation.Rewrapped) (bool, error) {
	h, ok := old.Handle.(handle)
	if !ok {
		return false, fmt.Errorf("replace %s: the row is not of source %s", old.ID, t.cfg.Name)
	}
	if h.tink != nil {
		return t.replaceTink(ctx, h, old, with)
	}
	update := "SET #kek = :kek, #dek = :dek, #epoch = :epoch, #version = if_not_exists(#version, :zero) + :one"
	cond := "#kek = :oldkek AND #dek = :olddek"
	names := map[string]string{"#kek": t.cfg.KEKID, "#dek": t.cfg.WrappedDEK, "#epoch": t.cfg.Epoch, "#version": t.cfg.Version}
	vals := item{
		":kek": str(string(with.KEK)), ":dek": blob(with.WrappedDEK), ":epoch": num(with.Epoch), ":zero": num(0), ":one": num(1),
		":oldkek": str(string(old.KEK)), ":olddek": blob(old.WrappedDEK),
	}
	if with.Ciphertext != nil {
		if t.cfg.Ciphertext == "" || old.Ciphertext == nil {
			return false, fmt.Errorf("replace %s: %w", old.ID, errNoPayload)
		}
		update, cond = update+", #payload = :payload", cond+" AND #payload = :oldpayload"
		names["#payload"] = t.cfg.Ciphertext
		vals[":payload"], vals[":oldpayload"] = blob(with.Ciphertext), blob(old.Ciphertext)
	}
	return t.write(ctx, h.key, update, cond, names, vals)
}

// write updates a row on a condition; false if that failed.
func (t *TableSource) write(ctx context.Context, key item, update, cond string, names map[string]string, vals item) (bool, error) {
	_, err := t.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &t.cfg.Table, Key: key, UpdateExpression: &update, ConditionExpression: &cond,
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	})
	if failedCondition(err) {
		return false, nil
	}
	if err != nil {
		return false, awserr.Wrap("dynamodb UpdateItem "+t.cfg.Table, err)
	}
	return true, nil
}

var errNoPayload = errors.New("a payload cannot be replaced that was not read")

// Reread implements [rotation.Source]. A row that is no envelope any more is gone.
func (t *TableSource) Reread(ctx context.Context, old rotation.Row, payload bool) (rotation.Row, bool, error) {
	h, ok := old.Handle.(handle)
	if !ok {
		return rotation.Row{}, false, fmt.Errorf("reread %s: the row is not of source %s", old.ID, t.cfg.Name)
	}
	keys, err := t.schema(ctx)
	if err != nil {
		return rotation.Row{}, false, err
	}
	projection, names := t.projection(keys, payload)
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &t.cfg.Table, Key: h.key, ConsistentRead: aws.Bool(true),
		ProjectionExpression: &projection, ExpressionAttributeNames: names,
	})
	if err != nil {
		return rotation.Row{}, false, awserr.Wrap("dynamodb GetItem "+t.cfg.Table, err)
	}
	if out.Item == nil {
		return rotation.Row{}, false, nil
	}
	row, ok := t.row(out.Item, keys)
	return row, ok, nil
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
