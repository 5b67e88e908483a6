package ddb

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
)

// The items of the control table by partition key: those that package controltable
// defines, and those that nothing but a rotation touches.
const (
	pkPointer  = controltable.PKPointer
	pkLock     = controltable.PKLock
	pkKEK      = controltable.PKKEK
	pkFence    = controltable.PKFence
	pkRotation = controltable.PKRotation
	pkLease    = controltable.PKLease
	pkMark     = controltable.PKMark
	noSK       = controltable.NoSK

	pkCheckpoint = "CHECKPOINT#"
	pkRegistry   = "REGISTRY" // counts the changes of sources and historic KEKs
	pkSource     = "SOURCE"   // sk: the source's name
	pkAudit      = "AUDIT"
	pkAuditHead  = "AUDIT_HEAD"
)

func auditSK(seq int64) string  { return fmt.Sprintf("%012d", seq) }
func checkpointSK(n int) string { return fmt.Sprintf("%03d", n) }

// SourceConfig is the definition of a table whose rows are envelopes.
type SourceConfig = rowschema.Schema

// OtherItems declares items that are not rows.
type OtherItems = rowschema.OtherItems

type (
	item   = attr.Item
	values = attr.Item // of an expression, by name
)

func decodeAll[T any](items []item, decode func(item) (T, error), order func(a, b T) int) ([]T, error) {
	out := make([]T, 0, len(items))
	for _, i := range items {
		v, err := decode(i)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, order)
	return out, nil
}

// later orders by time, then by id.
func later(a, b time.Time, x, y string) int {
	if c := a.Compare(b); c != 0 {
		return c
	}
	return cmp.Compare(x, y)
}
