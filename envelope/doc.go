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
//     condition that its payload is the one read and that it was not wrapped in a
//     later epoch. A process that was paused, however long, cannot leave a row
//     under a KEK that is gone: its write is refused, sealed again under the
//     current KEK and tried again.
//   - RowIntegrity: the KEK id, the wrapped DEK, the epoch and the ciphertext of a
//     row are written together or not at all.
//   - A write returns an error or a read returns the plaintext and the attributes
//     that were written: an item that DynamoDB would give back otherwise is refused.
//   - KMS is asked for a KEK by what the pointer or the registry says of it, and for no
//     other: a person who can write to a table cannot make a process use another key.
//   - Every table that a process may write envelopes into is marked in the control
//     table, so that no rotation forgets it.
//   - A data key seals under the epoch in which it was made and under no other, and
//     as many records as its bounds allow; at an emergency switch every cached data
//     key is dropped.
//
// A data key is made for each encryption context. Keep that the same for all rows of a
// table, or of a tenant, and bind the row's key by [TableConfig].Bind: with the row's
// key in its Context every row costs a call to KMS when it is written and another one
// when it is read.
//
// Errors and metrics never carry a key, a plaintext or an encryption context.
// docs/format.md describes the bytes.
package envelope
