package envelope

import (
	"context"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// Control is the data plane's view of the control table, for the test that holds
// it to internal/ddb's.
type Control struct{ t *controlTable }

// NewControl returns the view of the control table of that name.
func NewControl(client ControlAPI, table string) Control {
	return Control{&controlTable{client: client, table: table}}
}

// Pointer reads the pointer.
func (c Control) Pointer(ctx context.Context) (kek.Pointer, error) { return c.t.pointer(ctx) }

// KEK reads a registry entry.
func (c Control) KEK(ctx context.Context, id kek.ID) (kek.KEK, error) { return c.t.kek(ctx, id) }

// Mode reads a rotation's mode.
func (c Control) Mode(ctx context.Context, id string) (kek.Mode, error) { return c.t.mode(ctx, id) }

// PutLease puts a lease.
func (c Control) PutLease(ctx context.Context, id kek.ID, holder, host string, pid int, refs int64, expires time.Time) error {
	return c.t.putLease(ctx, lease{kek: id, holder: holder, host: host, pid: pid, refs: refs, expires: expires})
}

// RenewLease renews a lease.
func (c Control) RenewLease(ctx context.Context, id kek.ID, holder string, refs int64, expires time.Time) (bool, error) {
	return c.t.renewLease(ctx, lease{kek: id, holder: holder, refs: refs, expires: expires})
}

// DropLease drops a lease.
func (c Control) DropLease(ctx context.Context, id kek.ID, holder string) error {
	return c.t.dropLease(ctx, lease{kek: id, holder: holder})
}

// Bound makes what a row is bound to.
func (c TableConfig) Bound(i Item) (encctx, bind map[string]string, err error) { return c.bound(i) }

// Decode reads an item as a row.
func (c TableConfig) Decode(i Item) (Sealed, error) {
	s, err := c.withDefaults().decode(i)
	return s.Sealed, err
}

// ExpandTink reads a DEK of Tink's.
func ExpandTink(dek []byte) error {
	_, err := expandTink(dek)
	return err
}

// SameNumber reports whether two texts are one number.
func SameNumber(a, b string) bool { return sameNumber(a, b) }

// Config is the description of the table.
func (t *Table) Config() TableConfig { return t.cfg }
