package main

import (
	"context"
	"fmt"
	"reflect"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/sample"
)

// noteText is the plaintext of the keyed row that nobody writes again.
const noteText = "written once"

// openNotes opens the table of keyed rows with the client of the traffic.
func (d *demo) openNotes(ctx context.Context) (*envelope.Table, string, error) {
	site, err := d.Site(ctx)
	if err != nil {
		return nil, "", err
	}
	cfg, err := site.Table(sample.Notes)
	if err != nil {
		return nil, "", err
	}
	table, err := d.load.client.Table(ctx, cfg)
	return table, cfg.Table, err
}

func noteKey() envelope.Item {
	return envelope.Item{"note": &types.AttributeValueMemberS{Value: load.Prefix + "once"}}
}

// writeNote writes a keyed row and reads it as it is stored.
func (d *demo) writeNote(ctx context.Context) error {
	table, name, err := d.openNotes(ctx)
	if err != nil {
		return err
	}
	if err := table.Insert(ctx, noteKey(), []byte(noteText)); err != nil {
		return err
	}
	d.note, err = d.storedNote(ctx, name)
	return err
}

func (d *demo) storedNote(ctx context.Context, table string) (envelope.Item, error) {
	out, err := d.Set.Dynamo.GetItem(ctx, &dynamodb.GetItemInput{TableName: &table, Key: noteKey(), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, fmt.Errorf("dynamodb GetItem %s: %w", table, err)
	}
	return out.Item, nil
}

// readNote claims that the rotation moved the keyed row to the current KEK without writing it.
func (d *demo) readNote(ctx context.Context, about string, id kek.ID) error {
	table, name, err := d.openNotes(ctx)
	if err != nil {
		return err
	}
	now, err := d.storedNote(ctx, name)
	if err != nil {
		return err
	}
	row, err := table.Get(ctx, noteKey())
	if err != nil {
		return err
	}
	dek, ok := now["dek_id"].(*types.AttributeValueMemberS)
	if !ok {
		return fmt.Errorf("row %v of %s names no data key", noteKey(), name)
	}
	record, _, _, err := d.Set.Records.FindKey(ctx, dek.Value)
	if err != nil {
		return err
	}
	d.proof.claim(about, "a keyed row is byte for byte what it was, and opens: the record of its data key was rewrapped instead",
		reflect.DeepEqual(now, d.note) && string(row.Plaintext) == noteText && record.KEK == id, fmt.Sprintf("data key %s under KEK %s", record.ID, record.KEK))
	return nil
}
