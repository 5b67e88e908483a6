package rotation_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/test/fips"
)

// TestFIPS: whole rotations, with the MACs of their checkpoints and the payloads that an emergency
// encrypts again, use approved cryptography only.
func TestFIPS(t *testing.T) {
	fips.RunTests(t, "TestNormalRotation", "TestEmergencyRotation", "TestEmergencyRekeys", "TestConvert",
		"TestAdopt", "TestSealedCheckpoints", "TestCheckpointMAC", "TestForgedCheckpoints")
}
