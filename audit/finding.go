package audit

import "fmt"

// Kind is the stable name of a kind of finding.
type Kind string

// The kinds of findings. Those of the second group leave the chain unproven;
// the others say that something was changed.
const (
	MissingRecord    Kind = "missing_record"      // a gap, or a deleted record
	UnreadableRecord Kind = "unreadable_record"   // not canonical, or no record at all
	MisplacedRecord  Kind = "misplaced_record"    // its key is that of another
	UnlinkedRecord   Kind = "unlinked_record"     // it does not commit to the one before
	ExtraVersion     Kind = "extra_version"       // a key was written twice
	DeleteMarker     Kind = "delete_marker"       // a key was deleted
	ShortRetention   Kind = "short_retention"     // no compliance lock, or too short a one
	StrayObject      Kind = "stray_object"        // not part of the chain
	WrongHead        Kind = "wrong_head"          // the control table remembers another chain
	MissingAnchor    Kind = "missing_anchor"      // a gap, or a deleted anchor
	UnreadableAnchor Kind = "unreadable_anchor"   // not canonical, or no anchor at all
	MisplacedAnchor  Kind = "misplaced_anchor"    // its key is that of another
	UnlinkedAnchor   Kind = "unlinked_anchor"     // it does not commit to the one before
	AnchorKeyUnknown Kind = "unpinned_anchor_key" // signed under a key that is not pinned
	WrongSignature   Kind = "wrong_signature"     // of the statement
	WrongEntry       Kind = "wrong_log_entry"     // the entry in the log is another
	WrongCheckpoint  Kind = "wrong_checkpoint"    // not signed by its log
	WrongInclusion   Kind = "wrong_inclusion"     // the entry is not in the tree
	ReusedEntry      Kind = "reused_log_entry"    // two anchors, one log entry; or log order against anchor order
	SplitLog         Kind = "split_log"           // the log signed two trees of one size
	AnchoredOther    Kind = "anchored_other"      // the public log holds another chain
	Rollback         Kind = "rollback"            // an anchor that is known from before is not there
	SplitChain       Kind = "split_chain"         // two generations follow one
	NamedOther       Kind = "named_other"         // what a record says of a generation is not so

	FutureTime         Kind = "future_time"           // dated after it was stored, or after the verifier's now
	TimeBackward       Kind = "time_backward"         // dated before what came before it
	Backdated          Kind = "backdated"             // S3 stored it too late for its date, its key or its log
	SupersededKey      Kind = "superseded_anchor_key" // signed after an anchor under the key's successor
	SupersededLog      Kind = "superseded_log"        // logged after an anchor in the log's successor
	MissingConsistency Kind = "missing_consistency"   // no proof that the log's tree has grown from the one before
	WrongConsistency   Kind = "wrong_consistency"     // the proof does not verify: a fork of the log, or an edited proof

	LogUnknown  Kind = "log_not_trusted" // the trust list does not name the log
	NoRecords   Kind = "no_records"      // nothing is there
	NotAnchored Kind = "not_anchored"    // no anchor proves anything
	TailTooOld  Kind = "tail_too_old"    // records have waited too long for an anchor

	GenerationUnproven Kind = "generation_not_anchored" // only an unanchored record says where the chain continues
)

// Tampering reports whether a finding shows tampering; else it only leaves the chain
// unproven.
func (k Kind) Tampering() bool {
	switch k {
	case LogUnknown, NoRecords, NotAnchored, TailTooOld, GenerationUnproven:
		return false
	default:
		return true
	}
}

// Finding is one fault that verification found.
type Finding struct {
	Kind   Kind   `json:"kind"`
	Object string `json:"object"` // key in the bucket, or what else it is about
	Detail string `json:"detail"`
}

// String returns the finding as one line.
func (f Finding) String() string {
	return Visible(fmt.Sprintf("%s: %s: %s", f.Object, f.Kind, f.Detail))
}

// Result is the verdict of a verification.
type Result string

// The verdicts.
const (
	Green    Result = "green"    // whole, linked, anchored
	Tampered Result = "tampered" // something was changed
	Unproven Result = "unproven" // no sign of tampering, but the proof is not complete
)
