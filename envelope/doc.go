// Package envelope is the data plane: applications import it to write and read
// encrypted rows while the key-encryption key (KEK) is rotated, without a pause.
//
// A [Client] knows the KEK that the pointer names, with a delay of at most about ten
// seconds. It holds a lease on that KEK, which says how many references are in flight, so
// that a rotation can wait for them. A [Table] reads and writes rows.
//
// The client's own items in the control table (package internal/controltable has all):
//
//	pk              sk        attributes
//	LEASE#<kek>     <holder>  refs N, expires_at N (Unix time in milliseconds), host S, pid N
//	MARK            <table>   holder S, seen_at S
//
// A row is embedded or keyed, as the table's definition says. The attributes of an embedded
// row, under names that the definition chooses:
//
//	kek_id_attribute       S  the KEK: a KMS key id
//	wrapped_dek_attribute  B  the data key (DEK), wrapped by KMS under that KEK
//	ciphertext_attribute   B  the payload, encrypted under the DEK: see package aead
//	epoch_attribute        N  the pointer's epoch when the DEK was wrapped
//	version_attribute      N  counts the writes of the row; optional
//
// A keyed row has a dek_id_attribute (S, the id of its data key) in the place of the first
// two, and its epoch is that in which the data key was made. The data key has a record in
// the key table (package internal/keyrecord), which is never deleted.
//
// Invariants (spec/rotation.tla):
//
//   - NoKeyOrphans does not depend on leases or clocks. A row is inserted in one
//     transaction with a check that the fence of its KEK is open. It is updated on
//     condition that its payload is the one that was read and that it was not wrapped in
//     a later epoch. A process that was paused, however long, cannot leave a row under a
//     KEK that is gone: its write is refused, sealed again under the current KEK and
//     tried again.
//   - The same holds for keyed rows without a transaction. A data key's copy is in the audit
//     bucket before its record exists, the record is created in one transaction with a
//     check of the fence for records, and a row names the data key after that. A process
//     that was paused writes under a data key whose record has been rewrapped meanwhile. No
//     update brings a row from a data key of a later epoch back to one of an earlier.
//   - RowIntegrity: the KEK id, the wrapped DEK, the epoch and the ciphertext of a
//     row are written together or not at all.
//   - After a write without an error, a read returns the plaintext and the attributes
//     that were written: an item that DynamoDB would change is refused.
//   - KMS is called only with KEKs that the pointer or the registry names: a person who
//     can write to a table cannot make a process use another key.
//   - Every table that a process may write envelopes into is marked in the control
//     table, so that no rotation forgets it.
//   - A data key seals only as many records as its bounds allow; that of an embedded row
//     only under the epoch in which it was made. At an emergency switch every cached data
//     key is dropped.
//   - A payload of a keyed row opens only in the row that it was written into, and under the
//     epoch and the encryption context with which its data key was made.
//
// Each encryption context has a data key of its own. Use one context for all rows of a
// table, or of a tenant, and bind the row's key by [TableConfig].Bind. With the row's key
// in Context, every row costs a call to KMS when it is written and another one when it is
// read.
//
// Errors and metrics never carry a key, a plaintext or an encryption context.
// docs/format.md describes the bytes.
package envelope
