package ddb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/rotation"
)

// sampleSize is how many items Check looks at.
const sampleSize = 1000

// correct is what a person does about a definition that is wrong.
const correct = "correct the definition: matter ops source add --file DEFINITION.json --confirm"

// Check implements [rotation.Source]. It describes the table and reads up to 1,000 of
// its items. An error of kind SourceMisconfigured says that the table or the
// definition cannot be used. One of kind RowsUnaccounted says that an item which was
// read is unaccounted: a rotation does not start with it, but the source can be
// registered, which adopting and counting its rows need. A table in which no item is
// an envelope is in order; the census decides.
func (t *TableSource) Check(ctx context.Context) (notes []string, err error) {
	d, err := t.describe(ctx)
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return nil, t.misconfigured("table", fmt.Sprintf("there is no table %q", t.cfg.Table), "create it, or "+correct)
	}
	if err != nil {
		return nil, err
	}
	if err := t.checkPlace(ctx, d); err != nil {
		return nil, err
	}
	keys, err := t.checkTable(d)
	if err != nil {
		return nil, err
	}
	return t.notes(d), t.checkSample(ctx, keys)
}

// checkPlace refuses a table that is named by an ARN of another account or Region: a fenced
// write is one transaction, which DynamoDB does not span over them (API reference,
// TransactWriteItems). By its bare name there is another table here, or none.
func (t *TableSource) checkPlace(ctx context.Context, d *types.TableDescription) error {
	if t.cfg.TableName() == t.cfg.Table {
		return nil
	}
	name := t.cfg.TableName()
	here, err := t.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &name})
	var missing *types.ResourceNotFoundException
	if err != nil {
		err = awserr.Wrap("dynamodb DescribeTable "+name, err)
	}
	switch {
	case err == nil && aws.ToString(here.Table.TableArn) == aws.ToString(d.TableArn):
		return nil
	case err != nil && !errors.As(err, &missing) && !errors.Is(err, rotation.ErrDenied):
		return err
	}
	return t.misconfigured("table", fmt.Sprintf("%s is in another account or Region, where no transaction reaches it together with the fence", t.cfg.Table),
		"deploy the stack in that account and Region")
}

// checkTable checks what DynamoDB says of the table and returns its key.
func (t *TableSource) checkTable(d *types.TableDescription) ([]keyAttribute, error) {
	// A table that changes its throughput or an index is UPDATING and in full use.
	if s := d.TableStatus; s != types.TableStatusActive && s != types.TableStatusUpdating {
		return nil, t.misconfigured("table", fmt.Sprintf("table %q is %s", t.cfg.Table, s), "wait until it is ACTIVE")
	}
	// Between Regions the last writer wins, whatever its condition was, and a table of
	// strong consistency takes no transactions (DynamoDB developer guide, "How DynamoDB
	// global tables work"): neither the fence nor the rewrap's condition would hold.
	if len(d.Replicas) > 0 || aws.ToString(d.GlobalTableVersion) != "" {
		return nil, t.misconfigured("table", fmt.Sprintf("table %q is a global table: conditional writes of another Region could bring rows back under the old KEK", t.cfg.Table),
			"rotate it without replicas, and add them afterwards")
	}
	keys, err := keySchema(d)
	if err != nil {
		return nil, t.misconfigured("table", err.Error(), correct)
	}
	for _, k := range keys {
		for _, a := range t.cfg.Attributes() {
			if a.Name == k.name {
				return nil, t.misconfigured(a.Field, fmt.Sprintf("attribute %q is part of the table's key, which a rewrap cannot change", k.name), correct)
			}
		}
	}
	return keys, nil
}

// notes is what an operator should know of the table before a rotation.
func (t *TableSource) notes(d *types.TableDescription) []string {
	var notes []string
	if s := d.StreamSpecification; s != nil && aws.ToBool(s.StreamEnabled) {
		notes = append(notes, "its stream is enabled: readers of it see every rewrapped row as a change")
	}
	switch {
	case t.cfg.Format == rowschema.FormatKMS:
		notes = append(notes, "format kms: an emergency rewraps the data itself and cannot give it another data key")
	case t.cfg.Payloads == rowschema.PayloadsOpaque:
		notes = append(notes, "opaque payloads: an emergency rewraps only their data keys, which stay the same")
	case t.cfg.Ciphertext == "":
		notes = append(notes, "no ciphertext_attribute: an emergency cannot move its rows")
	case t.cfg.Format == rowschema.FormatTink:
		notes = append(notes, "format tink: an emergency rewraps only the data keys of rows that Tink wrote, which stay the same")
	}
	return notes
}

// sample is what the first items of a table have.
type sample struct {
	rows      int            // items with any of the envelope's attributes
	bound     int            // of them, those that are bound to a context: Tink's are not
	have      map[string]int // how many of the rows have an attribute
	first     *flaw          // of the first row that is not a sound envelope
	firstItem string
}

// checkSample reads the first items. An attribute that none of the rows has is a
// mistake in the definition, except the KEK's: rows that were written without this
// project may have none, and adopting brings it in.
func (t *TableSource) checkSample(ctx context.Context, keys []keyAttribute) error {
	s, err := t.sample(ctx, keys)
	if err != nil || s.rows == 0 {
		return err
	}
	for _, a := range t.cfg.Attributes()[1:3] { // the wrapped DEK and the ciphertext
		if t.cfg.Format == rowschema.FormatTink && a.Name == t.cfg.WrappedDEK {
			continue // Tink's rows have it in the ciphertext
		}
		if a.Name != "" && s.have[a.Name] == 0 {
			return t.misconfigured(a.Field, fmt.Sprintf("none of the %d rows looked at has the attribute %q", s.rows, a.Name),
				correct+`; for payloads that Tink or KMS itself encrypted, say "format": "tink" or "kms"`)
		}
	}
	for _, m := range t.cfg.Bound() {
		for _, k := range slices.Sorted(maps.Keys(m.Values)) {
			if a, ok := rowschema.ContextAttribute(m.Values[k]); ok && s.have[a] == 0 && s.bound > 0 {
				return t.misconfigured(m.Field, fmt.Sprintf("%q is the attribute %q, which none of the %d rows looked at has", k, a, s.rows), correct)
			}
		}
	}
	if s.first == nil {
		return nil
	}
	return &rotation.Error{
		Kind: rotation.RowsUnaccounted, Field: t.field(s.first.field), Msg: "an item: " + s.first.text,
		Rows: []string{s.firstItem},
		Next: "matter ops census shows every such item; matter ops adopt brings in rows that were written without this project; or " + correct,
	}
}

// sample reads the first items of the table.
func (t *TableSource) sample(ctx context.Context, keys []keyAttribute) (sample, error) {
	s := sample{have: map[string]int{}}
	in := t.scanInput(keys, rotation.ScanRequest{Total: 1, Limit: sampleSize})
	for items := 0; items < sampleSize; {
		out, err := t.client.Scan(ctx, in)
		if err != nil {
			return s, awserr.Wrap("dynamodb Scan "+t.cfg.Table, err)
		}
		items += len(out.Items)
		for _, i := range out.Items {
			row, f, ok := readRow(t.cfg, i, keys, false, false)
			if !ok {
				continue
			}
			s.rows++
			if !row.Handle.(handle).tink { //nolint:forcetypeassert // its own
				s.bound++
			}
			for a := range i {
				s.have[a]++
			}
			if f != nil && s.first == nil {
				s.first, s.firstItem = f, row.ID
			}
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			break
		}
	}
	return s, nil
}

func (t *TableSource) misconfigured(field, msg, next string) error {
	return &rotation.Error{Kind: rotation.SourceMisconfigured, Field: t.field(field), Msg: msg, Next: next}
}

// field names a field of the source's definition.
func (t *TableSource) field(name string) string {
	return fmt.Sprintf("sources[%s].%s", t.cfg.Name, name)
}
