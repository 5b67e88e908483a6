package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/source"
)

// sampleSize is how many items Check looks at.
const sampleSize = 1000

// correct is what a person does about a definition that is wrong.
const correct = "correct the definition: matter ops source add --file DEFINITION.json --confirm"

// Check implements [source.Driver]. It describes the table and reads up to 1,000 of its items.
// An error of [source.Unaccounted] reports an unaccounted item: a rotation does not start with
// it, but the source can be registered, because adopting and counting its rows needs that. A
// table in which no item is an envelope passes; the census decides about it.
func (t *Table) Check(ctx context.Context) (notes []string, err error) {
	d, err := t.describeTable(ctx)
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return nil, errMisconfigured("table", fmt.Sprintf("there is no table %q", t.cfg.Table), "create it, or "+correct)
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
	return t.noteTraits(d), t.checkSample(ctx, keys)
}

// checkPlace refuses a table that is named by an ARN of another account or Region. A fenced
// write is one transaction with the control table, and DynamoDB has no transactions across
// accounts or Regions (API reference, TransactWriteItems). It looks the bare name up here: if
// that is another table, or none, the ARN is elsewhere.
func (t *Table) checkPlace(ctx context.Context, d *types.TableDescription) error {
	if t.cfg.TableName() == t.cfg.Table {
		return nil
	}
	name := t.cfg.TableName()
	here, err := t.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &name})
	var missing *types.ResourceNotFoundException
	if err != nil {
		err = remote.WrapError("dynamodb DescribeTable "+name, err)
	}
	switch {
	case err == nil && aws.ToString(here.Table.TableArn) == aws.ToString(d.TableArn):
		return nil
	case err != nil && !errors.As(err, &missing) && !errors.Is(err, source.ErrDenied):
		return err
	}
	return errMisconfigured("table", fmt.Sprintf("%s is in another account or Region, where no transaction reaches it together with the fence", t.cfg.Table),
		"deploy the stack in that account and Region")
}

// checkTable checks what DynamoDB says of the table and returns its key.
func (t *Table) checkTable(d *types.TableDescription) ([]keyAttribute, error) {
	// A table whose throughput or index is being changed is UPDATING and can be used.
	if s := d.TableStatus; s != types.TableStatusActive && s != types.TableStatusUpdating {
		return nil, errMisconfigured("table", fmt.Sprintf("table %q is %s", t.cfg.Table, s), "wait until it is ACTIVE")
	}
	// Between the Regions of a global table the last writer wins, whatever its condition was.
	// One with multi-Region strong consistency does not support transactions (DynamoDB
	// developer guide, "How DynamoDB global tables work"). So neither the fence nor the
	// condition of a rewrap would hold.
	if len(d.Replicas) > 0 || aws.ToString(d.GlobalTableVersion) != "" {
		return nil, errMisconfigured("table", fmt.Sprintf("table %q is a global table: conditional writes of another Region could bring rows back under the old KEK", t.cfg.Table),
			"rotate it without replicas, and add them afterwards")
	}
	keys, err := keySchema(d)
	if err != nil {
		return nil, errMisconfigured("table", err.Error(), correct)
	}
	for _, k := range keys {
		for _, a := range t.cfg.Attributes() {
			if a.Name == k.name {
				return nil, errMisconfigured(a.Field, fmt.Sprintf("attribute %q is part of the table's key, which a rewrap cannot change", k.name), correct)
			}
		}
	}
	return keys, nil
}

// noteTraits returns what an operator should know about the table before a rotation.
func (t *Table) noteTraits(d *types.TableDescription) []string {
	var notes []string
	if s := d.StreamSpecification; s != nil && aws.ToBool(s.StreamEnabled) {
		notes = append(notes, "its stream is enabled: readers of it see every "+t.describeChanges()+" as a change")
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

// describeChanges says which rows a rotation writes.
func (t *Table) describeChanges() string {
	if t.cfg.HoldsEmbedded() {
		return "rewrapped row"
	}
	return "row that an emergency re-encrypts"
}

// sample counts what the first items of a table have.
type sample struct {
	rows      int            // items with any of the envelope's attributes
	embedded  int            // rows that do not name a data key
	bound     int            // rows that are bound to a context; Tink's are not
	have      map[string]int // how many of the rows have an attribute
	first     *flaw          // of the first row that is not a sound envelope
	firstItem string
}

// checkSample reads the first items. An attribute that none of the rows has is a mistake in
// the definition. The attribute of the KEK is an exception: rows that were written without
// this project may not have it until they are adopted.
func (t *Table) checkSample(ctx context.Context, keys []keyAttribute) error {
	s, err := t.readSample(ctx, keys)
	if err != nil || s.rows == 0 {
		return err
	}
	for _, a := range t.cfg.Attributes()[1:3] { // the wrapped DEK and the ciphertext
		if t.cfg.Format == rowschema.FormatTink && a.Name == t.cfg.WrappedDEK {
			continue // Tink's rows have it in the ciphertext
		}
		if s.embedded == 0 && a.Name == t.cfg.WrappedDEK {
			continue // keyed rows have none
		}
		if a.Name != "" && s.have[a.Name] == 0 {
			return errMisconfigured(a.Field, fmt.Sprintf("none of the %d rows looked at has the attribute %q", s.rows, a.Name),
				correct+`; for payloads that Tink or KMS itself encrypted, say "format": "tink" or "kms"`)
		}
	}
	for _, m := range t.cfg.Bound() {
		for _, k := range slices.Sorted(maps.Keys(m.Values)) {
			if a, ok := rowschema.ContextAttribute(m.Values[k]); ok && s.have[a] == 0 && s.bound > 0 {
				return errMisconfigured(m.Field, fmt.Sprintf("%q is the attribute %q, which none of the %d rows looked at has", k, a, s.rows), correct)
			}
		}
	}
	if s.first == nil {
		return nil
	}
	return &source.Error{
		Problem: source.Unaccounted, Field: s.first.field, Msg: "an item: " + s.first.text,
		Rows: []string{s.firstItem},
		Next: "matter ops census shows every such item; matter ops adopt brings in rows that were written without this project; or " + correct,
	}
}

// readSample reads the first items of the table.
func (t *Table) readSample(ctx context.Context, keys []keyAttribute) (sample, error) {
	s := sample{have: map[string]int{}}
	in := t.scanInput(keys, source.ScanRequest{Total: 1, Limit: sampleSize})
	for items := 0; items < sampleSize; {
		out, err := t.client.Scan(ctx, in)
		if err != nil {
			return s, remote.WrapError("dynamodb Scan "+t.cfg.Table, err)
		}
		items += len(out.Items)
		for _, i := range out.Items {
			row, f, ok := readRow(t.cfg, i, keys, false, false)
			if !ok {
				continue
			}
			s.rows++
			if i[t.cfg.DEKID] == nil {
				s.embedded++
			}
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

// errMisconfigured reports a field of the definition that a person has to correct.
func errMisconfigured(field, msg, next string) error {
	return &source.Error{Problem: source.Misconfigured, Field: field, Msg: msg, Next: next}
}
