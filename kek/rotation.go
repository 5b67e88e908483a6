package kek

import (
	"fmt"
	"regexp"
	"time"
)

// Mode says why a rotation runs, and so what a failure before the switch does.
type Mode string

// The modes of a rotation.
const (
	Normal    Mode = "normal"    // a failure before the switch rolls back (PreSwitchFailure)
	Emergency Mode = "emergency" // the old KEK may be compromised: never roll back to it
)

// Phase is how far a rotation has come: started → minted → tested → switched →
// drained → rewrapped → retired → completed, or started|minted|tested → rolledback. An
// emergency that starts meanwhile ends it: rolledback before the switch, superseded after.
type Phase string

// The phases of a rotation.
const (
	Started    Phase = "started"
	Minted     Phase = "minted"
	Tested     Phase = "tested"
	Switched   Phase = "switched"
	Drained    Phase = "drained"
	Rewrapped  Phase = "rewrapped"
	KEKRetired Phase = "retired"
	Completed  Phase = "completed"
	RolledBack Phase = "rolledback"
	Superseded Phase = "superseded" // an emergency has taken over, see [View.TakeOver]
)

var order = map[Phase]int{
	Started: 1, Minted: 2, Tested: 3, Switched: 4, Drained: 5,
	Rewrapped: 6, KEKRetired: 7, Completed: 8,
}

// Reached reports whether p is other or comes after it on the way to completed.
// RolledBack and Superseded reach nothing but themselves.
func (p Phase) Reached(other Phase) bool {
	if other == RolledBack || other == Superseded {
		return p == other
	}
	return order[p] >= order[other] && order[p] > 0
}

// Final reports whether the rotation is over.
func (p Phase) Final() bool { return p == Completed || p == RolledBack || p == Superseded }

// PreSwitch reports whether the pointer has not moved yet: only then may
// PreSwitchFailure run.
func (p Phase) PreSwitch() bool { return p == Started || p == Minted || p == Tested }

// Rotation is the record of one rotation.
type Rotation struct {
	ID          string // also the Step Functions execution name
	Mode        Mode
	Phase       Phase
	Label       string
	Reason      string        // required in emergency mode
	OldKEK      ID            // the pointer's KEK when the rotation started
	Olds        []ID          // every KEK whose rows it moves and that it retires: OldKEK first, then the others that resolved at the start
	NewKEK      ID            // "" until minted
	Attempt     int           // 1, then one more for every emergency re-mint
	Epoch       int64         // the pointer's epoch since this rotation switched it; 0 before
	Probes      map[ID][]byte // a DEK wrapped under each old KEK; verify shows that it no longer unwraps
	Segments    int           // scan segments per table, fixed at the start
	Settings    Settings      // fixed at the start
	Sources     []Source      // frozen at the start; one that is added after the switch joins them
	RecordsOnly bool          // every KEK of Olds is RecordsOnly: keyed rows need not be read; fixed at the start
	Counted     bool          // a census has looked at every item of every source, before the mint
	Rehearsed   ID            // the new KEK that real rows were rewrapped under in rehearsal; "" before
	Rev         int64         // grows by one with every change; every change conditions on it
	Execution   string        // ARN of the execution, "" when run from the CLI
	Actor       string        // who wrote the record
	Requester   string        // who asked for it, as the start of the execution says; "" if it does not
	Drill       string        // name of the drill that it is, "" for a real rotation; a drill never switches
	Approval    bool          // a second person must agree before the switch; fixed at the start
	StartedAt   time.Time
	UpdatedAt   time.Time
	SwitchedAt  time.Time
	SealedAt    time.Time // when no row could be inserted under OldKEK any more; zero before
	ResumedAt   time.Time // when a person last resumed it; zero if nobody has
	Err         string    // why it was rolled back, last re-minted

	// An emergency that took over from another rotation, and that rotation.
	TookOver []string // the rotations that it ended, and those that they had ended
	Leftover []ID     // KEKs that these have retired: their KMS keys may still be enabled
	EndedBy  string   // the emergency that ended it; ""
}

var (
	rotationID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$`)
	labelText  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._/-]{0,79}$`)
)

// CheckRotationID refuses an id that cannot be at once an execution name, part
// of a KMS alias and part of a table key.
func CheckRotationID(id string) error {
	if !rotationID.MatchString(id) {
		return fmt.Errorf("rotation id %q: use 1 to 80 letters, digits, - and _, starting with a letter or digit", id)
	}
	return nil
}

// CheckLabel refuses a label that cannot be shown and tagged as it stands.
func CheckLabel(label string) error {
	if !labelText.MatchString(label) {
		return fmt.Errorf("label %q: use 1 to 80 letters, digits, spaces and . _ / -, starting with a letter or digit", label)
	}
	return nil
}

// EmergencyLabel is the label of an emergency that nobody has named, to the second of UTC, e.g.
// emergency-2026-04-01-031500, which no quarter has.
func EmergencyLabel(t time.Time) string {
	return "emergency-" + t.UTC().Format("2006-01-02-150405")
}

// QuarterLabel is the label of a scheduled rotation, e.g. Q2-2026-rotation.
func QuarterLabel(t time.Time) string {
	return fmt.Sprintf("Q%d-%d-rotation", (int(t.Month())-1)/3+1, t.Year())
}
