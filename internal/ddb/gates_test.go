package ddb_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func TestGates(t *testing.T) {
	everywhere(t, func(t *testing.T, client dynamo) {
		t.Helper()
		storetest.TestGates(t, func(t *testing.T) storetest.GateStore {
			t.Helper()
			return ddb.New(client, ddbtest.ControlTable(t, client), "test", storetest.Clock())
		})
	})
}
