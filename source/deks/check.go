package deks

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/source"
)

// sampleSize is how many items Check looks at.
const sampleSize = 1000

// Check implements [source.Driver]. It describes the table and reads up to 1,000 of its
// items.
func (t *Table) Check(ctx context.Context) (notes []string, err error) {
	d, err := t.describe(ctx)
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return nil, misconfigured(fmt.Sprintf("there is no table %q", t.table), "the stack's output KeyTable names its key table")
	}
	if err != nil {
		return nil, err
	}
	if err := t.checkTable(d); err != nil {
		return nil, err
	}
	return nil, t.checkSample(ctx)
}

// checkTable checks what DynamoDB says of the table.
func (t *Table) checkTable(d *types.TableDescription) error {
	keyed := len(d.KeySchema) == 1 && aws.ToString(d.KeySchema[0].AttributeName) == keyrecord.AttrPK
	for _, a := range d.AttributeDefinitions {
		keyed = keyed && (aws.ToString(a.AttributeName) != keyrecord.AttrPK || a.AttributeType == types.ScalarAttributeTypeS)
	}
	switch s := d.TableStatus; {
	case s != types.TableStatusActive && s != types.TableStatusUpdating: // one whose throughput is being changed can be used
		return misconfigured(fmt.Sprintf("table %q is %s", t.table, s), "wait until it is ACTIVE")
	case !keyed:
		return misconfigured(fmt.Sprintf("table %q is not a key table: its only key attribute must be %s, of type S", t.table, keyrecord.AttrPK), "use the stack's key table")
	case len(d.Replicas) > 0 || aws.ToString(d.GlobalTableVersion) != "": // as in source/dynamodb
		return misconfigured(fmt.Sprintf("table %q is a global table: writes of another Region could bring records back under the old KEK", t.table), "use a table without replicas")
	}
	return nil
}

// checkSample reads the first items. One that is not a record blocks every rotation.
func (t *Table) checkSample(ctx context.Context) error {
	cursor := ""
	for items := 0; items < sampleSize; {
		page, err := t.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor})
		if err != nil {
			return err
		}
		items += len(page.Rows)
		for _, row := range page.Rows {
			if row.Defect != "" {
				return &source.Error{
					Problem: source.Unaccounted, Field: "table", Msg: "an item: " + row.Defect, Rows: []string{row.ID},
					Next: "matter ops census shows every such item; restore the record from its copy in the audit bucket",
				}
			}
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
	return nil
}

func misconfigured(msg, next string) error {
	return &source.Error{Problem: source.Misconfigured, Field: "table", Msg: msg, Next: next}
}
