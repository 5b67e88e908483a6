package kek

// The types of the audit records that transitions append: one each, in the same
// transaction as its effect.
const (
	EventGenesis           = "kek_genesis"        // the first pointer
	EventRotationStarted   = "rotation_started"   // preflight took the lock
	EventRowsCounted       = "rows_counted"       // census: every item is accounted for
	EventKEKMinted         = "kek_minted"         // the new KEK is pending
	EventRowsRehearsed     = "rows_rehearsed"     // a sample of real rows can be rewrapped
	EventDualUnwrapPassed  = "dual_unwrap_passed" // the test before the switch
	EventPointerSwitched   = "pointer_switched"   // the point of no return
	EventOldKEKSealed      = "old_kek_sealed"     // nothing is written under this old KEK any more; one record for each
	EventRowsRewrapped     = "rows_rewrapped"     // every segment is done
	EventOldKEKRetired     = "old_kek_retired"    // after a second scan of every row
	EventRotationCompleted = "kms_rotation_completed"

	EventRolledBack        = "rolled_back"         // a failure before the switch
	EventReminted          = "reminted"            // an emergency gave its new KEK up, for another attempt
	EventRotationResumed   = "rotation_resumed"    // a person resumed a halted rotation
	EventReadingRestarted  = "reading_restarted"   // a pause outlived what was read: it is read again
	EventEmergencyTookOver = "emergency_took_over" // an emergency ended a rotation and holds the lock
	EventKEKRegistered     = "kek_registered"      // a KEK that rows name from before this project
	EventSourceAdded       = "source_added"
	EventSourceRemoved     = "source_removed"
	EventMarkRemoved       = "mark_removed" // of a table that is not a source
)
