package envelope

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/kek"
)

// ControlAPI is what the client uses of DynamoDB for the control table.
type ControlAPI interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
}

// Item is a DynamoDB item.
type Item = map[string]types.AttributeValue

// The items of the control table that the data plane touches; internal/ddb has
// them all, and a test holds the two together.
const (
	pkPointer  = "POINTER"
	pkKEK      = "KEK#"
	pkFence    = "FENCE#"
	pkRotation = "ROTATION#"
	pkLease    = "LEASE#"
	pkMark     = "MARK"
	noSK       = "-"
	fenceOpen  = "open"

	timeFormat = "2006-01-02T15:04:05.000Z"
)

// control is the control table as a process of the data plane sees it.
type control interface {
	// pointer reads the pointer consistently; [kek.ErrNoPointer] if there is none.
	pointer(ctx context.Context) (kek.Pointer, error)
	// kek reads a KEK's entry; one that is not in the registry has no state.
	kek(ctx context.Context, id kek.ID) (kek.KEK, error)
	// mode reads why a rotation ran; "" if it has no record.
	mode(ctx context.Context, rotation string) (kek.Mode, error)
	putLease(ctx context.Context, l lease) error
	// renewLease reports false if the lease was revoked.
	renewLease(ctx context.Context, l lease) (bool, error)
	dropLease(ctx context.Context, l lease) error
	// putMark says that holder may write envelopes into a table of that name.
	putMark(ctx context.Context, table, holder string, at time.Time) error
}

// lease is a process's promise that it may write under a KEK.
type lease struct {
	kek     kek.ID
	holder  string
	host    string
	pid     int
	refs    int64
	expires time.Time
}

type controlTable struct {
	client ControlAPI
	table  string
}

func (t *controlTable) get(ctx context.Context, pk string) (Item, error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &t.table, Key: controlKey(pk, noSK), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, fmt.Errorf("dynamodb GetItem %s: %w", pk, err)
	}
	return out.Item, nil
}

func (t *controlTable) pointer(ctx context.Context) (kek.Pointer, error) {
	i, err := t.get(ctx, pkPointer)
	if err != nil {
		return kek.Pointer{}, err
	}
	epoch, err := number(i["epoch"])
	p := kek.Pointer{
		KEKID: kek.ID(text(i["kek_id"])), KeyARN: text(i["key_arn"]), Epoch: epoch, RotationID: text(i["rotation_id"]),
	}
	if err != nil || p.KEKID == "" || p.Epoch < 1 {
		return kek.Pointer{}, fmt.Errorf("read the pointer: %w", errors.Join(kek.ErrNoPointer, err))
	}
	return p, nil
}

func (t *controlTable) kek(ctx context.Context, id kek.ID) (kek.KEK, error) {
	i, err := t.get(ctx, pkKEK+string(id))
	if err != nil {
		return kek.KEK{}, err
	}
	shards, err := number(i["fence_shards"])
	if err != nil {
		return kek.KEK{}, fmt.Errorf("control table item %s%s: fence_shards: %w", pkKEK, id, err)
	}
	return kek.KEK{ID: id, ARN: text(i["key_arn"]), State: kek.State(text(i["state"])), FenceShards: int(shards)}, nil
}

func (t *controlTable) mode(ctx context.Context, rotation string) (kek.Mode, error) {
	i, err := t.get(ctx, pkRotation+rotation)
	return kek.Mode(text(i["mode"])), err
}

func (t *controlTable) putLease(ctx context.Context, l lease) error {
	i := controlKey(pkLease+string(l.kek), l.holder)
	i["refs"], i["expires_at"], i["pid"] = numeric(l.refs), numeric(l.expires.UnixMilli()), numeric(int64(l.pid))
	if l.host != "" {
		i["host"] = str(l.host)
	}
	_, err := t.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &t.table, Item: i})
	if err != nil {
		return fmt.Errorf("dynamodb PutItem %s%s: %w", pkLease, l.kek, err)
	}
	return nil
}

func (t *controlTable) renewLease(ctx context.Context, l lease) (bool, error) {
	_, err := t.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &t.table, Key: controlKey(pkLease+string(l.kek), l.holder),
		UpdateExpression:    aws.String("SET refs = :refs, expires_at = :expires_at"),
		ConditionExpression: aws.String("attribute_exists(pk)"),
		ExpressionAttributeValues: Item{
			":refs": numeric(l.refs), ":expires_at": numeric(l.expires.UnixMilli()),
		},
	})
	var revoked *types.ConditionalCheckFailedException
	if errors.As(err, &revoked) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("dynamodb UpdateItem %s%s: %w", pkLease, l.kek, err)
	}
	return true, nil
}

func (t *controlTable) dropLease(ctx context.Context, l lease) error {
	_, err := t.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: &t.table, Key: controlKey(pkLease+string(l.kek), l.holder),
	})
	if err != nil {
		return fmt.Errorf("dynamodb DeleteItem %s%s: %w", pkLease, l.kek, err)
	}
	return nil
}

func (t *controlTable) putMark(ctx context.Context, table, holder string, at time.Time) error {
	i := controlKey(pkMark, table)
	i["holder"], i["seen_at"] = str(holder), str(at.UTC().Format(timeFormat))
	_, err := t.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &t.table, Item: i})
	if err != nil {
		return fmt.Errorf("dynamodb PutItem %s %s: %w", pkMark, table, err)
	}
	return nil
}

// fenceCheck is the condition that a KEK's fence is open, on one of its shards.
func fenceCheck(table string, id kek.ID, shard int) types.TransactWriteItem {
	return types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName: &table, Key: controlKey(pkFence+string(id), fmt.Sprintf("%02d", shard)),
		ConditionExpression:       aws.String("#state = :open"),
		ExpressionAttributeNames:  map[string]string{"#state": "state"},
		ExpressionAttributeValues: Item{":open": str(fenceOpen)},
	}}
}

func controlKey(pk, sk string) Item      { return Item{"pk": str(pk), "sk": str(sk)} }
func str(s string) types.AttributeValue  { return &types.AttributeValueMemberS{Value: s} }
func blob(b []byte) types.AttributeValue { return &types.AttributeValueMemberB{Value: b} }
func numeric(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

// text is the value of a string attribute; "" if it is no string.
func text(v types.AttributeValue) string {
	s, ok := v.(*types.AttributeValueMemberS)
	if !ok {
		return ""
	}
	return s.Value
}

// number is the value of a numeric attribute; 0 if there is none.
func number(v types.AttributeValue) (int64, error) {
	switch n := v.(type) {
	case nil:
		return 0, nil
	case *types.AttributeValueMemberN:
		return strconv.ParseInt(n.Value, 10, 64)
	default:
		return 0, fmt.Errorf("%T is not a number", v)
	}
}
