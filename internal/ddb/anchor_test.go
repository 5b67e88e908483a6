package ddb_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func TestAnchorStore(t *testing.T) {
	everywhere(t, func(t *testing.T, client dynamo) {
		t.Helper()
		storetest.TestAnchorStore(t, func(t *testing.T) anchor.Store {
			t.Helper()
			return ddb.New(client, ddbtest.ControlTable(t, client), "test", storetest.Clock())
		})
	})
}
