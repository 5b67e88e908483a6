package memstore_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func TestAnchorStore(t *testing.T) {
	storetest.TestAnchorStore(t, func(*testing.T) rotation.AnchorStore { return memstore.New("test", storetest.Clock()).Store() })
}

func TestAnchorVault(t *testing.T) {
	storetest.TestAnchorVault(t, func(*testing.T) rotation.AnchorVault { return memstore.New("test", storetest.Clock()).Vault() })
}
