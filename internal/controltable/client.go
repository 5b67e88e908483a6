package controltable

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/kek"
)

// API is the part of the DynamoDB client that a [Client] uses.
type API interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
}

// Client is the control table as a process of the data plane uses it. It depends on as few
// attributes as possible: a damaged attribute that a reader or writer of rows does not
// need must not stop an application. It is safe for concurrent use.
type Client struct {
	DynamoDB API
	Table    string
}

// getItem reads an item without a natural sort key consistently; nil if it does not exist.
func (c *Client) getItem(ctx context.Context, pk string) (attr.Item, error) {
	out, err := c.DynamoDB.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &c.Table, Key: Key(pk, NoSK), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, fmt.Errorf("dynamodb GetItem %s: %w", pk, err)
	}
	return out.Item, nil
}

// ReadPointer reads the pointer consistently. The error is [kek.ErrNoPointer] if there is none,
// or if it does not name a KEK and an epoch.
func (c *Client) ReadPointer(ctx context.Context) (kek.Pointer, error) {
	i, err := c.getItem(ctx, PKPointer)
	if err != nil {
		return kek.Pointer{}, err
	}
	p, err := DecodePointer(i)
	if p.KEKID == "" || p.Epoch < 1 {
		return kek.Pointer{}, fmt.Errorf("read the pointer: %w", errors.Join(kek.ErrNoPointer, err))
	}
	return p, nil
}

// ReadKEK reads a KEK's entry consistently. A KEK that is not in the registry has the state "".
func (c *Client) ReadKEK(ctx context.Context, id kek.ID) (kek.KEK, error) {
	i, err := c.getItem(ctx, KEKPK(id))
	if err != nil {
		return kek.KEK{}, err
	}
	if _, err := attr.Int(i[attrShards]); err != nil {
		return kek.KEK{}, fmt.Errorf("control table item %s: %s: %w", KEKPK(id), attrShards, err)
	}
	k, _ := DecodeKEK(i) // see Client
	k.ID = id
	return k, nil
}

// ReadMode reads the mode of a rotation; "" if it has no record.
func (c *Client) ReadMode(ctx context.Context, rotation string) (kek.Mode, error) {
	i, err := c.getItem(ctx, RotationPK(rotation))
	return kek.Mode(attr.Text(i[AttrMode])), err
}

// PutLease writes a lease. It replaces the holder's lease on the same KEK, if there is one.
func (c *Client) PutLease(ctx context.Context, l Lease) error {
	return c.putItem(ctx, LeasePK(l.KEK), EncodeLease(l))
}

// RenewLease writes the lease's references and expiry if the lease still exists. It
// returns false if the lease was revoked.
func (c *Client) RenewLease(ctx context.Context, l Lease) (bool, error) {
	_, err := c.DynamoDB.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &c.Table, Key: Key(LeasePK(l.KEK), l.Holder),
		UpdateExpression:    aws.String("SET refs = :refs, expires_at = :expires_at"),
		ConditionExpression: aws.String("attribute_exists(pk)"),
		ExpressionAttributeValues: attr.Item{
			":refs": attr.Num(l.Refs), ":expires_at": attr.Num(l.Expires.UnixMilli()),
		},
	})
	var revoked *types.ConditionalCheckFailedException
	if errors.As(err, &revoked) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("dynamodb UpdateItem %s: %w", LeasePK(l.KEK), err)
	}
	return true, nil
}

// DropLease deletes a lease. It is idempotent.
func (c *Client) DropLease(ctx context.Context, l Lease) error {
	_, err := c.DynamoDB.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &c.Table, Key: Key(LeasePK(l.KEK), l.Holder)})
	if err != nil {
		return fmt.Errorf("dynamodb DeleteItem %s: %w", LeasePK(l.KEK), err)
	}
	return nil
}

// PutMark writes the mark of a table, see [kek.Mark].
func (c *Client) PutMark(ctx context.Context, m kek.Mark) error {
	return c.putItem(ctx, PKMark+" "+m.Table, EncodeMark(m))
}

func (c *Client) putItem(ctx context.Context, what string, i attr.Item) error {
	_, err := c.DynamoDB.PutItem(ctx, &dynamodb.PutItemInput{TableName: &c.Table, Item: i})
	if err != nil {
		return fmt.Errorf("dynamodb PutItem %s: %w", what, err)
	}
	return nil
}
