package source

import (
	"maps"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
)

// Row is one item of a source that has any of the envelope's attributes. With a Defect
// it is unaccounted: it cannot be rewrapped, and it blocks the switch.
type Row struct {
	ID         string            // printable key, for reports
	Handle     any               // the adapter's own key and condition
	KEK        kek.ID            // the KEK it says it is wrapped under
	KeyARN     string            // as the row says it; "" if it names its KEK by id alone
	Epoch      int64             // pointer epoch of its last wrap, of a keyed row that in which its data key was made; 0 if unknown
	WrappedDEK []byte            // KMS ciphertext blob; of format kms the data itself
	Ciphertext []byte            // only when the scan asked for payloads, and never of a whole row
	DEKID      string            // the data key that a keyed row names, which then has no KEK and no WrappedDEK; "" for an embedded row
	PlainSHA   string            // hex SHA-256 of the plaintext, corpus entries only; "" if it is not a known cipher
	Context    map[string]string // KMS encryption context
	Bound      map[string]string // associated data of the payload: the context and what is bound beside it
	KeyBound   map[string]string // of an embedded row that may become keyed: what Bound would have beside it, without the data key
	Whole      bool              // it has no payload in this project's format: an emergency rewraps only the wrapped bytes
	Missing    bool              // a copy of a record that is not in the place; [Driver].Replace puts the record back
	Defect     string            // why it cannot be rewrapped; "" if it can
	Kind       Defect            // the kind of the defect, for counts
}

// boundReserved is how the keys begin under which only keyed rows bind something, and
// boundDEKID the one of the data key.
const (
	boundReserved = "matter:"
	boundDEKID    = boundReserved + "dek_id"
)

// BoundUnder returns the associated data of the row's payload under another data key of the
// key table, for an embedded row under its first.
func (r Row) BoundUnder(dekID string) map[string]string {
	out := maps.Clone(r.Bound)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, r.KeyBound)
	out[boundDEKID] = dekID
	return out
}

// BoundEmbedded returns the associated data of the row's payload as that of an embedded row:
// without what only keyed rows bind.
func (r Row) BoundEmbedded() map[string]string {
	out := maps.Clone(r.Bound)
	maps.DeleteFunc(out, func(k, _ string) bool { return strings.HasPrefix(k, boundReserved) })
	return out
}

// Defect is a kind of unaccounted item.
type Defect string

// The kinds of unaccounted items.
const (
	NoKEK         Defect = "no_kek_id"        // an envelope that names no KEK
	NoWrappedDEK  Defect = "no_wrapped_dek"   // without a data key
	NoCiphertext  Defect = "no_ciphertext"    // without a payload where the source has one
	CipherAlone   Defect = "ciphertext_only"  // a payload and nothing that says how to open it
	EpochAlone    Defect = "epoch_only"       // an epoch and no envelope
	WrongType     Defect = "wrong_type"       // an attribute of another type, such as base64 text
	UnknownForm   Defect = "kek_id_form"      // an alias, or text that is not a key id or key ARN
	UnknownKEK    Defect = "unknown_kek"      // the registry does not know the KEK
	RetiredKEK    Defect = "retired_kek"      // the registry says it is retired or was never used
	NoContext     Defect = "no_context"       // an attribute of the context is missing or cannot be bound
	NoRoom        Defect = "no_room"          // the item would pass 400 KB
	ForeignNumber Defect = "version_not_ours" // the version attribute is not a whole number
	Damaged       Defect = "damaged"          // its content cannot be decoded
	BothKinds     Defect = "both_kinds"       // it names a data key and a KEK, or names one and carries another
	DEKIDForm     Defect = "dek_id_form"      // text that is not the id of a data key
	NoRecord      Defect = "no_record"        // a keyed row whose data key has no record
	NoEpoch       Defect = "no_epoch"         // a keyed row without the epoch of its data key
)

// Rewrapped is what replaces a row's wrapping. Ciphertext is nil unless the
// payload was re-encrypted under a fresh DEK (emergency). With a DEKID the row becomes, or
// stays, a keyed one: Epoch is then that in which the data key was made, Ciphertext is the
// payload under that key, and KEK and WrappedDEK are empty.
type Rewrapped struct {
	DEKID      string
	KEK        kek.ID
	Epoch      int64
	WrappedDEK []byte
	Ciphertext []byte
}

// ScanRequest asks for one page of a source, read consistently.
type ScanRequest struct {
	Segment, Total int    // which of how many parts
	Cursor         string // "" starts; else what the page before returned
	Limit          int    // rows at most, 0 for the adapter's choice
	Payload        bool   // return ciphertexts too
	Whole          bool   // read whole items, so that one without room for a rewrap is a defect
	Spread         bool   // the caller writes to the rows: let them come from all over the source, so that no part of it takes all writes
	Missing        bool   // also read the copies of what is missing; see [Row].Missing
}

// Page is one page of a scan. Every item of it is one of Rows or Keyed, or counted in Other
// or Declared: none is left out.
type Page struct {
	Rows     []Row  // embedded rows, and everything unaccounted
	Keyed    []Row  // sound keyed rows: a normal rotation rewraps the records of their data keys and leaves them
	Other    int    // items that have none of the envelope's attributes
	Declared int    // items that the source's definition declares to be something else
	Next     string // cursor; "" at the end
}

// Backup is an item of a backup, and the row that it decodes to.
type Backup struct {
	Row  Row
	Item any // the driver's own
}
