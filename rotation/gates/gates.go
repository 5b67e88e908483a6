// Package gates holds the checks that may refuse a normal rotation, although the state of the
// control table would allow it: the off-peak window, the announcement, the failure drill, the
// canary of the past days, and the second person. An emergency overrides them. A drill, which
// never switches, needs only some of them.
package gates

import (
	"context"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Rules are what a deployment requires of a normal rotation; 0 and false require nothing.
type Rules struct {
	Window           Window        // off-peak hours in which it may start
	AnnounceDays     int           // customers were told of the window so long ago
	DrillFreshDays   int           // the failure drill has passed within these
	HealthDays       int           // the hourly canary was green for so long
	ApprovalRequired bool          // a second person agrees before the switch
	ApprovalWait     time.Duration // how long the switch waits for that person
}

// Gates records and checks what the rules require.
type Gates struct {
	Rules         Rules
	Journal       *journal.Journal
	Announcers    []Announcer // channels to customers; none: only the notifier's readers learn of a window
	Announcements Announcements
	Drills        Drills
	HealthLog     HealthLog
	Approvals     Approvals
	Pauses        Pauses // nil: nobody can pause a rotation
}

// Gate is a check that a deployment may leave out, that an emergency overrides, and that a
// drill does not need.
type Gate struct {
	Name    string
	Green   string // what it says if it passes
	Check   func(context.Context) error
	Skipped string // why it is not checked; "" if it is
}

// Overridden begins the detail of a failed check that an emergency overrides.
const Overridden = "overridden"

// The detail of a gate that is not checked.
const (
	skippedByEmergency = Overridden + ": emergency"
	skippedByDrill     = "not needed: a drill does not switch"
)

// Request is the rotation that the gates are asked about.
type Request struct {
	Rotation kek.Rotation
	Window   Window // in which it may start

	// Days before the rotation, not at its start: customers are told of the window that is
	// open at From (default: the next one that the notice allows), for the rotations of Label.
	Ahead bool
	From  *time.Time
	Label string
}

// ListGates lists the gates that the deployment requires, in the order of the runbook.
func (g *Gates) ListGates(in Request) []Gate {
	r := in.Rotation
	w := in.Window
	ahead := in.Ahead
	var out []Gate
	add := func(demanded bool, gate Gate) {
		switch {
		case !demanded:
			return
		case r.Mode == kek.Emergency:
			gate.Skipped = skippedByEmergency
		case r.Drill != "":
			gate.Skipped = skippedByDrill
		}
		out = append(out, gate)
	}
	at := g.Journal.Now()
	if ahead && in.From != nil {
		at = *in.From
	}
	announced := Gate{Name: "announcement", Green: fmt.Sprintf("%d days ago or more", g.Rules.AnnounceDays), Check: func(ctx context.Context) error {
		return g.CheckAnnouncement(ctx, r.Label)
	}}
	if ahead {
		announced.Green = "made"
		announced.Check = func(ctx context.Context) error {
			a := AnnounceInput{Label: in.Label}
			if in.From != nil {
				a.From = *in.From
			}
			_, err := g.AnnounceWindow(ctx, a)
			return err
		}
	}
	hours := Gate{Name: "off-peak window", Green: w.String(), Check: func(context.Context) error { return g.checkWindow(w, at) }}
	if w.From == w.To { // an always-open window cannot be overridden
		out = append(out, hours)
	}
	add(w.From != w.To, hours)
	add(g.Rules.AnnounceDays > 0 || ahead, announced)
	add(g.Rules.DrillFreshDays > 0, Gate{Name: "failure drill", Green: fmt.Sprintf("passed within %d days", g.Rules.DrillFreshDays), Check: g.CheckDrill})
	canary := fmt.Sprintf("green for %d days", g.Rules.HealthDays)
	if ahead {
		canary = "has not failed; before the rotation it must be " + canary
	}
	add(g.Rules.HealthDays > 0, Gate{Name: "KMS canary", Green: canary, Check: func(ctx context.Context) error {
		return g.checkHealth(ctx, ahead)
	}})
	if g.Rules.ApprovalRequired && r.Mode == kek.Emergency {
		out = append(out, Gate{Name: "second person", Skipped: skippedByEmergency})
	}
	return out
}

// CheckAwake refuses to switch outside the window that the rotation was started in: while it
// waited for its approval, the window may have closed.
func (g *Gates) CheckAwake(r kek.Rotation) error {
	if r.Mode == kek.Emergency || !g.NeedsApproval(r) {
		return nil
	}
	w, err := ParseWindow(r.Settings.Window, g.Rules.Window.Zone)
	if err != nil {
		return &journal.Error{Kind: journal.Misconfigured, Field: "ROTATION#" + r.ID + ".window", Msg: "the rotation's record has no window that can be read", Err: err, Next: journal.Next{Do: journal.RunDoctor}}
	}
	if w.Open(g.Journal.Now()) {
		return nil
	}
	return &journal.Error{
		Kind: journal.WindowClosed, Field: "window", Msg: fmt.Sprintf("it is %s, outside %s, in which this rotation may switch", g.Journal.Now().In(w.Zone).Format("15:04 MST"), w),
		Next: journal.Next{Say: "approve within the window; or reject it, and start it again with another window"},
	}
}

// checkWindow refuses a moment outside a window.
func (g *Gates) checkWindow(w Window, at time.Time) error {
	if w.Open(at) {
		return nil
	}
	return &journal.Error{
		Kind: journal.WindowClosed, Field: "window", Msg: fmt.Sprintf("it is %s, outside %s", at.In(w.Zone).Format("15:04 MST"), w),
		Next: journal.Next{Say: `wait for the window, or start with {"window": "any"} if you accept peak load`},
	}
}
