package envelope

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// ControlAPI is the part of the DynamoDB client that is used for the control table.
type ControlAPI interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
}

// Item is a DynamoDB item.
type Item = attr.Item

// control is the control table as the data plane uses it. [controltable.Client] implements
// it.
type control interface {
	ReadPointer(ctx context.Context) (kek.Pointer, error)
	ReadKEK(ctx context.Context, id kek.ID) (kek.KEK, error)
	ReadMode(ctx context.Context, rotation string) (kek.Mode, error)
	PutLease(ctx context.Context, l controltable.Lease) error
	RenewLease(ctx context.Context, l controltable.Lease) (bool, error)
	DropLease(ctx context.Context, l controltable.Lease) error
	PutMark(ctx context.Context, m kek.Mark) error
}
