package memstore_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func TestGates(t *testing.T) {
	storetest.TestGates(t, func(*testing.T) storetest.GateStore { return memstore.New("test", storetest.Clock()).Store() })
}
