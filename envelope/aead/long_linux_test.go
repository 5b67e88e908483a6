package aead_test

import (
	"errors"
	"syscall"
	"testing"

	"github.com/matter-ops/kms-rotation/envelope/aead"
)

// TestTooLong: AES-GCM seals 2³⁶-32 bytes under one nonce, and its counter would begin
// again after them. The plaintext is memory that cannot be read, so nothing looks at
// it.
func TestTooLong(t *testing.T) {
	const limit = 1<<36 - 32
	plain, err := syscall.Mmap(-1, 0, 1<<36, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		t.Skip("no address space for 64 GiB: ", err)
	}
	defer syscall.Munmap(plain) //nolint:errcheck // the process ends
	if out, err := (aead.Cipher{}).Seal(dek, plain[:limit+1], nil); !errors.Is(err, aead.ErrTooLong) || out != nil {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}
