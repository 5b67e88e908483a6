package ddb_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/ddb/ddbtest"
	"github.com/matter-ops/kms-rotation/internal/storetest"
	"github.com/matter-ops/kms-rotation/rotation"
)

func TestAnchorStore(t *testing.T) {
	everywhere(t, func(t *testing.T, client dynamo) {
		t.Helper()
		storetest.TestAnchorStore(t, func(t *testing.T) rotation.AnchorStore {
			t.Helper()
			return ddb.New(client, ddbtest.ControlTable(t, client), "test", storetest.Clock())
		})
	})
}
