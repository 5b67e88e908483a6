package ddb

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
)

var _ rotation.Archive = (*Store)(nil)

// ListSpent implements [rotation.Archive]. It is a filtered scan, as [Store.KEKs] is.
func (s *Store) ListSpent(ctx context.Context) ([]rotation.SpentItem, error) {
	expr := "begins_with(#pk, :checkpoint) OR begins_with(#pk, :fence) OR begins_with(#pk, :keyfence)"
	names, vals := controltable.Expression(expr, values{"checkpoint": attr.Str(pkCheckpoint), "fence": attr.Str(pkFence), "keyfence": attr.Str(pkKeyFence)})
	in := &dynamodb.ScanInput{
		TableName: &s.table, ConsistentRead: aws.Bool(true), FilterExpression: &expr, ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}
	var out []rotation.SpentItem
	for {
		page, err := s.client.Scan(ctx, in)
		if err != nil {
			return nil, wrapError("Scan "+s.table, err)
		}
		for _, i := range page.Items {
			if spent, ok := s.decodeSpent(i); ok {
				out = append(out, spent)
			}
		}
		if in.ExclusiveStartKey = page.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			rotation.SortSpent(out)
			return out, nil
		}
	}
}

// decodeSpent returns false for an item that is damaged, which doctor names.
func (s *Store) decodeSpent(i item) (rotation.SpentItem, bool) {
	read := s.decodeItem(i)
	out := rotation.SpentItem{Key: read.Key.String()}
	if read.Err != nil {
		return out, false
	}
	switch v := read.Value.(type) {
	case rotation.Checkpoint:
		out.Checkpoint = &v
		return out, v.CheckStored() == nil && checkpointPK(v.RotationID, v.Source, v.Pass) == read.Key.PK && checkpointSK(v.Segment) == read.Key.SK
	case doctor.FenceItem:
		out.KEK = v.KEK
		out.Shard = v.Shard
		out.Open = v.Open
		out.Records = v.Records
		return out, true
	}
	return out, false
}

// RemoveSpent implements [rotation.Archive].
func (s *Store) RemoveSpent(ctx context.Context, items []rotation.SpentItem, ev audit.Event) error {
	var actions []action
	checked := map[kek.ID]bool{}
	for _, i := range items {
		if c := i.Checkpoint; c != nil {
			k := controltable.Key(checkpointPK(c.RotationID, c.Source, c.Pass), checkpointSK(c.Segment))
			actions = append(actions, s.removeItem(i.Key, k, ifRevision(c.Rev)))
			continue
		}
		sealed := condition{"#state = :state", values{"state": attr.Str(controltable.Sealed)}}
		pk := pkFence
		if i.Records {
			pk = pkKeyFence
		}
		actions = append(actions, s.removeItem(i.Key, controltable.Key(pk+string(i.KEK), controltable.FenceSK(i.Shard)), sealed))
		if !checked[i.KEK] {
			checked[i.KEK] = true
			retired := condition{"#state = :state", values{"state": attr.Str(string(kek.Retired))}}
			actions = append(actions, s.checkItem(controltable.KEKPK(i.KEK), controltable.Key(controltable.KEKPK(i.KEK), noSK), retired))
		}
	}
	if err := s.commitWithRecord(ctx, actions, ev, nil); err != nil {
		return fmt.Errorf("archive %s and others: %w", items[0].Key, err)
	}
	return nil
}
