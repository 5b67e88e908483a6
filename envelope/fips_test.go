package envelope_test

import (
	"bytes"
	"crypto/fips140"
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/test/fips"
)

// TestFIPS: what applications do with keyed and embedded rows, rows that Tink wrote and payloads of
// their own uses approved cryptography only.
func TestFIPS(t *testing.T) {
	fips.RunTests(t, "Example", "Example_embedded", "ExampleClient_Begin", "TestTinkRows", "TestVectorsContext",
		"TestVectorsPayload", "TestVectorsBind", "TestVectorsKeyed", "TestVectorsRecord", "TestStreamInStrictMode")
}

// TestStreamInStrictMode: a stream is refused in strict mode, and not called altered.
func TestStreamInStrictMode(t *testing.T) {
	want := map[bool]error{true: envelope.ErrNotApproved}[fips140.Enforced()]
	key := envelope.NewStreamKey()
	var object bytes.Buffer
	if _, err := envelope.NewEncryptingWriter(&object, key, streamContext); !errors.Is(err, want) {
		t.Errorf("write: %v, want %v", err, want)
	}
	if _, err := envelope.NewDecryptingReader(bytes.NewReader(encryptAnyhow(t, key)), key, streamContext); !errors.Is(err, want) {
		t.Errorf("read: %v, want %v", err, want)
	}
}

// encryptAnyhow is a stream that was written outside of strict mode.
func encryptAnyhow(t *testing.T, key []byte) (stream []byte) {
	t.Helper()
	fips140.WithoutEnforcement(func() { stream = encrypt(t, key, []byte("a large report")) })
	return stream
}
