package memstore_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func TestAnchorStore(t *testing.T) {
	storetest.TestAnchorStore(t, func(*testing.T) anchor.Store { return memstore.New("test", storetest.Clock()).Store() })
}

func TestAnchorVault(t *testing.T) {
	storetest.TestAnchorVault(t, func(*testing.T) anchor.ObjectStore { return memstore.New("test", storetest.Clock()).Vault() })
}
