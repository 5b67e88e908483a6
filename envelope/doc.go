// Package envelope is the data plane: applications import it to write and read
// encrypted rows while the key-encryption key (KEK) is rotated under them, at full
// speed and without noticing.
//
// A [Client] knows the KEK that the pointer names, at most about ten seconds late,
// and holds a lease on it that says how many references are in flight, so that a
// rotation can wait for them. A [Table] builds the writes.
//
// Invariants (spec/rotation.tla):
//
//   - NoKeyOrphans does not rest on leases or clocks. A row is inserted in one
//     transaction with a check that the fence of its KEK is open, and updated on
//     condition that its version is the one read and that it was not wrapped in a
//     later epoch. A process that was paused, however long, cannot leave a row
//     under a KEK that is gone: its write is refused, sealed anew under the
//     current KEK and tried again.
//   - RowIntegrity: the KEK id, the wrapped DEK, the epoch and the ciphertext of a
//     row are written together or not at all.
//   - A data key seals under the epoch in which it was made and under no other;
//     at an emergency switch every cached data key is dropped.
//
// Errors and metrics never carry a key, a plaintext or an encryption context.
// docs/format.md describes the bytes.
package envelope
