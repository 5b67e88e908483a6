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

// checkpointPK ends in the pass, so that a role can be held to the passes of its step.
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

// SaveCheckpoint implements [rotation.Checkpoints]. A save whose answer the SDK
// lost and repeated is a [kek.ErrConflict]: what is then loaded is this save or a
// later one.
func (s *Store) SaveCheckpoint(ctx context.Context, c rotation.Checkpoint) error {
	saved, err := s.putAtRev(ctx, encodeCheckpoint(c), c.Rev)
	if err == nil && !saved {
		err = fmt.Errorf("save checkpoint %s %s %d at revision %d: %w", c.Source, c.Pass, c.Segment, c.Rev, kek.ErrConflict)
	}
	return err
}

// putAtRev puts an item if the stored one has revision rev, 0 being none; false if not.
func (s *Store) putAtRev(ctx context.Context, i item, rev int64) (bool, error) {
	c := atRev(rev)
	names, params := controltable.Expression(c.expr, c.values)
	_, err := s.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &s.table, Item: i, ConditionExpression: &c.expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: params,
	})
	if failedCondition(err) {
		return false, nil
	}
	if err != nil {
		return false, wrap("PutItem "+attr.Text(i["pk"]), err)
	}
	return true, nil
}

// ListCheckpoints implements [rotation.Checkpoints], in order of segment.
func (s *Store) ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]rotation.Checkpoint, error) {
	items, err := s.query(ctx, checkpointPK(rotationID, source, pass), "")
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

// encodeCheckpoint is the item of c's next revision.
func encodeCheckpoint(c rotation.Checkpoint) item {
	i := attr.Set(controltable.Key(checkpointPK(c.RotationID, c.Source, c.Pass), checkpointSK(c.Segment)),
		"rev", c.Rev+1, "cursor", c.Cursor, "scanned", c.Tally.Scanned, "rewrapped", c.Tally.Rewrapped,
		"other", c.Tally.Other, "declared", c.Tally.Declared, "unwrapped", c.Tally.Unwrapped, "quarantined", c.Tally.Quarantined, "saved_at", c.SavedAt)
	i["done"] = attr.Bool(c.Done)
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

// decodeCheckpoint fills in c, which has its key.
func decodeCheckpoint(i item, c rotation.Checkpoint) (rotation.Checkpoint, error) {
	r := attr.Reader{Item: i}
	c.Rev = r.Num("rev")
	c.Cursor = r.Str("cursor")
	c.Done = r.Bool("done")
	c.SavedAt = r.Time("saved_at")
	c.Tally = rotation.Tally{
		Scanned: r.Num("scanned"), Rewrapped: r.Num("rewrapped"), Other: r.Num("other"), Declared: r.Num("declared"),
		Quarantined: r.Num("quarantined"), Unwrapped: r.Num("unwrapped"), Poison: r.Strs("poison"),
		ByKEK: r.Counts("by_kek"), ByKind: r.Counts("by_kind"),
	}
	return c, damagedIf(r.Err, checkpointPK(c.RotationID, c.Source, c.Pass))
}
