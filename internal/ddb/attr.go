package ddb

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
)

// The items of the control table by partition key. Package controltable defines those that
// applications and a restore read or write too. Only a rotation and the tool use the rest:
//
//	pk                             sk          attributes
//	CHECKPOINT#<rotation>#<source>#<pass>
//	                               000 …       see encodeCheckpoint
//	REGISTRY                       -           rev N: counts the changes of sources and historic KEKs
//	SOURCE                         <name>      kind S, definition S, place S, generation N, added_at S, added_by S
//	AUDIT                          12 digits   record B: canonical JSON, hash S: its SHA-256 in hex
//	AUDIT_HEAD                     -           see chainHead
//	ANCHOR                         -           see pkAnchor
//	ANNOUNCEMENT#, DRILL#, APPROVAL#, HEALTH#  see pkAnnouncement
//	ROTATION#<id>                  -           see encodeRotation
//
// The numbers in sort keys have leading zeros, because DynamoDB compares strings byte by
// byte and a query must return records and segments in numerical order.
const (
	pkPointer  = controltable.PKPointer
	pkLock     = controltable.PKLock
	pkKEK      = controltable.PKKEK
	pkFence    = controltable.PKFence // of rows
	pkKeyFence = keyrecord.PKFence    // of records of data keys
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

// auditSK returns the sort key of a record.
func auditSK(seq int64) string { return fmt.Sprintf("%012d", seq) }

// checkpointSK returns the sort key of a segment's checkpoint.
func checkpointSK(n int) string { return fmt.Sprintf("%03d", n) }

type (
	item   = attr.Item
	values = attr.Item // of an expression, by name
)

// decodeAll decodes items and sorts them. It stops at the first that is damaged: a list
// from which one KEK or source is missing must not look complete.
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

// compareByTime orders by time, then by id, so that equal times have one order in every call.
func compareByTime(a, b time.Time, x, y string) int {
	if c := a.Compare(b); c != 0 {
		return c
	}
	return cmp.Compare(x, y)
}
