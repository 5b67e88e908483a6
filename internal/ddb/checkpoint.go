package ddb

import (
	"context"
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// checkpointPK returns the partition key of the checkpoints of one pass over one source.
// The pass is its last part, so that the IAM condition dynamodb:LeadingKeys can limit a
// function's role to the passes of its own step.
func checkpointPK(rotationID, source, pass string) string {
	return pkCheckpoint + rotationID + "#" + source + "#" + pass
}

// LoadCheckpoint implements [rotation.Checkpoints].
func (s *Store) LoadCheckpoint(ctx context.Context, rotationID, source, pass string, segment int) (rotation.Checkpoint, error) {
	i, err := getItem(ctx, s.client, s.table, checkpointPK(rotationID, source, pass), checkpointSK(segment))
	if err != nil {
		return rotation.Checkpoint{}, err
	}
	return decodeCheckpoint(i, rotation.Checkpoint{RotationID: rotationID, Source: source, Pass: pass, Segment: segment})
}

// SaveCheckpoint implements [rotation.Checkpoints]. If the answer to a save is lost, the SDK
// repeats the save, which fails its own condition: the caller gets [kek.ErrConflict], loads
// the checkpoint again and finds this save or a later one.
func (s *Store) SaveCheckpoint(ctx context.Context, c rotation.Checkpoint) error {
	saved, err := s.putAtRevision(ctx, encodeCheckpoint(c), c.Rev)
	if err == nil && !saved {
		err = fmt.Errorf("save checkpoint %s %s %d at revision %d: %w", c.Source, c.Pass, c.Segment, c.Rev, kek.ErrConflict)
	}
	return err
}

// putAtRevision puts an item if the stored one has revision rev; 0 means that there must be
// none. It returns false if the stored item has another revision.
func (s *Store) putAtRevision(ctx context.Context, i item, rev int64) (bool, error) {
	c := ifRevision(rev)
	names, params := controltable.Expression(c.expr, c.values)
	_, err := s.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &s.table, Item: i, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: params,
	})
	if failedCondition(err) {
		return false, nil
	}
	if err != nil {
		return false, wrapError("PutItem "+attr.Text(i["pk"]), err)
	}
	return true, nil
}

// ListCheckpoints implements [rotation.Checkpoints], in order of segment.
func (s *Store) ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]rotation.Checkpoint, error) {
	items, err := s.queryItems(ctx, checkpointPK(rotationID, source, pass), "")
	if err != nil {
		return nil, err
	}
	var out []rotation.Checkpoint
	for _, i := range items {
		r := attr.Reader{Item: i}
		n, err := strconv.Atoi(r.Str("sk"))
		if err != nil {
			return nil, fmt.Errorf("checkpoint %s: %w", r.Str("sk"), err)
		}
		c, err := decodeCheckpoint(i, rotation.Checkpoint{RotationID: rotationID, Source: source, Pass: pass, Segment: n})
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// encodeCheckpoint returns the item of c's next revision:
//
//	rev          N  revision; every save is conditional on it
//	cursor       S  where the driver continues; its form is the driver's, absent at the start
//	done         BOOL  the segment was read to its end
//	saved_at     S  when the page that it ends with was read; absent if the pass begins again
//	scanned, rewrapped, other, declared, unwrapped, quarantined
//	             N  see [rotation.Tally]
//	keyed, exposed, unusable
//	             N  likewise, absent for 0
//	poison       L of S  ids of the first quarantined rows, each with its reason
//	by_kek       M of N  rows by the KEK that they name
//	by_kind      M of N  unaccounted items by kind
//	data_keys    B  see [rotation.Sketch]
//	mac          B  see [rotation.SealCheckpoints]
func encodeCheckpoint(c rotation.Checkpoint) item {
	i := attr.Set(controltable.Key(checkpointPK(c.RotationID, c.Source, c.Pass), checkpointSK(c.Segment)),
		"rev", c.Rev+1, "cursor", c.Cursor, "scanned", c.Tally.Scanned, "rewrapped", c.Tally.Rewrapped,
		"other", c.Tally.Other, "declared", c.Tally.Declared, "unwrapped", c.Tally.Unwrapped, "quarantined", c.Tally.Quarantined, "saved_at", c.SavedAt)
	i["done"] = attr.Bool(c.Done)
	for name, n := range map[string]int64{"keyed": c.Tally.Keyed, "exposed": c.Tally.Exposed, "unusable": c.Tally.Unusable} {
		if n > 0 {
			i[name] = attr.Num(n)
		}
	}
	if len(c.MAC) > 0 {
		i["mac"] = &types.AttributeValueMemberB{Value: c.MAC}
	}
	if len(c.Tally.DataKeys) > 0 {
		i["data_keys"] = &types.AttributeValueMemberB{Value: c.Tally.DataKeys}
	}
	if len(c.Tally.Poison) > 0 {
		list := make([]types.AttributeValue, len(c.Tally.Poison))
		for n, p := range c.Tally.Poison {
			list[n] = attr.Str(p)
		}
		i["poison"] = &types.AttributeValueMemberL{Value: list}
	}
	if len(c.Tally.ByKEK) > 0 {
		i["by_kek"] = encodeCounts(c.Tally.ByKEK)
	}
	if len(c.Tally.ByKind) > 0 {
		i["by_kind"] = encodeCounts(c.Tally.ByKind)
	}
	return i
}

// decodeCheckpoint fills in the checkpoint c, whose fields of the key are set. An item that
// is absent decodes to a checkpoint at the start of the segment, with revision 0.
func decodeCheckpoint(i item, c rotation.Checkpoint) (rotation.Checkpoint, error) {
	r := attr.Reader{Item: i}
	c.Rev = r.Num("rev")
	c.Cursor = r.Str("cursor")
	c.Done = r.Bool("done")
	c.SavedAt = r.Time("saved_at")
	c.MAC = r.Bytes("mac")
	c.Tally = rotation.Tally{
		Scanned: r.Num("scanned"), Rewrapped: r.Num("rewrapped"), Other: r.Num("other"), Declared: r.Num("declared"),
		Quarantined: r.Num("quarantined"), Unwrapped: r.Num("unwrapped"), Keyed: r.Num("keyed"), Exposed: r.Num("exposed"), Unusable: r.Num("unusable"), Poison: r.Strs("poison"),
		ByKEK: r.Counts("by_kek"), ByKind: r.Counts("by_kind"), DataKeys: r.Bytes("data_keys"),
	}
	return c, damagedIf(r.Err, checkpointPK(c.RotationID, c.Source, c.Pass))
}
