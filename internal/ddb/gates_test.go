package ddb_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/ddb/ddbtest"
	"github.com/matter-ops/kms-rotation/internal/storetest"
)

func TestGates(t *testing.T) {
	storetest.TestGates(t, func(t *testing.T) storetest.GateStore {
		t.Helper()
		client := ddbtest.Client(t)
		return ddb.New(client, ddbtest.ControlTable(t, client), "test", storetest.Clock())
	})
}
