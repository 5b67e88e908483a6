package audit_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/test/fips"
)

// TestFIPS: hash chain, the log's inclusion and consistency proofs and its signatures, of Ed25519
// and of ECDSA, are verified with approved cryptography only.
func TestFIPS(t *testing.T) {
	fips.RunTests(t, "TestVersion1", "TestVerifyConsistency", "TestAnchorFormat", "TestSigstoreFiles", "TestTrustInVerification")
}
