package ddbtest

import (
	"context"

	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// DataPlane is the client of the control table that applications have, with the leases of
// package rotation.
type DataPlane struct{ client controltable.Client }

// NewDataPlane returns the client of the control table of that name.
func NewDataPlane(client controltable.API, table string) *DataPlane {
	return &DataPlane{controltable.Client{DynamoDB: client, Table: table}}
}

// PutLease registers a lease.
func (d *DataPlane) PutLease(ctx context.Context, l rotation.Lease) error {
	return d.client.PutLease(ctx, controltable.Lease(l))
}

// RenewLease writes a lease's references and expiry; false if it was revoked.
func (d *DataPlane) RenewLease(ctx context.Context, l rotation.Lease) (bool, error) {
	return d.client.RenewLease(ctx, controltable.Lease(l))
}

// DropLease gives a lease back.
func (d *DataPlane) DropLease(ctx context.Context, l rotation.Lease) error {
	return d.client.DropLease(ctx, controltable.Lease(l))
}

// Pointer reads the pointer.
func (d *DataPlane) Pointer(ctx context.Context) (kek.Pointer, error) {
	return d.client.ReadPointer(ctx)
}

// KEKState reads a KEK's state; "" if the registry does not know it.
func (d *DataPlane) KEKState(ctx context.Context, id kek.ID) (kek.State, error) {
	k, err := d.client.ReadKEK(ctx, id)
	return k.State, err
}
