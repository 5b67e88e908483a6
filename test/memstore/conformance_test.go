package memstore_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/keystest"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

func newStore(*testing.T) storetest.RegistryHarness {
	s := memstore.New("test", storetest.Clock()).Store()
	return storetest.RegistryHarness{
		Store: s, Data: s, Chain: "test",
		Fences: func(_ *testing.T, id kek.ID, records bool) map[int]string {
			if records {
				return s.KeyFences(id)
			}
			return s.Fences(id)
		},
		Mark: func(t *testing.T, m kek.Mark) {
			t.Helper()
			if err := s.Mark(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestRegistry(t *testing.T)    { storetest.TestRegistry(t, newStore) }
func TestOutbox(t *testing.T)      { storetest.TestOutbox(t, newStore) }
func TestCheckpoints(t *testing.T) { storetest.TestCheckpoints(t, newStore) }
func TestDrainage(t *testing.T)    { storetest.TestDrainage(t, newStore) }
func TestArchive(t *testing.T)     { storetest.TestArchive(t, newStore) }

func TestVault(t *testing.T) {
	storetest.TestVault(t, func(*testing.T) journal.AuditBucket { return memstore.New("test", storetest.Clock()).Vault() })
}

func newService(*testing.T) keystest.Service {
	kms := memstore.New("test", storetest.Clock()).KMS()
	replicas := map[kek.ID][]string{}
	return keystest.Service{
		Keys: kms, KMS: kms,
		Grant: func(_ *testing.T, id kek.ID, grantee string) { kms.AddGrant(id, grantee+" may Decrypt") },
		Alias: func(_ *testing.T, id kek.ID, name string) { kms.AddAlias(id, name) },
		Replicate: func(_ *testing.T, id kek.ID, region string) {
			replicas[id] = append(replicas[id], region)
			kms.SetMultiRegion(id, replicas[id]...)
		},
		SetPolicy: func(_ *testing.T, id kek.ID, statements []string) { kms.SetPolicy(id, statements...) },
	}
}

func TestKeyAdmin(t *testing.T) { keystest.TestKeyAdmin(t, newService) }
func TestWrapper(t *testing.T)  { keystest.TestWrapper(t, newService) }
