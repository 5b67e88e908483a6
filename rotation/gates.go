package rotation

import (
	"context"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
)

// LambdaActor begins the actor of a step that a function runs: it is nobody's
// identity.
const LambdaActor = "lambda/"

// gate is a check that a deployment may do without, an emergency overrides, and a
// drill, which never switches, does not need.
type gate struct {
	name   string
	green  string // what it says when it holds
	check  func(context.Context) error
	spared string // why it is not checked; "" if it is
}

// The detail of a gate that is not checked.
const (
	sparedEmergency = overridden + ": emergency"
	sparedDrill     = "not needed: a drill does not switch"
)

// gates lists those that the deployment demands, in the order of the runbook.
func (s *Steps) gates(in PreflightInput, r kek.Rotation, w Window) []gate {
	var out []gate
	add := func(demanded bool, g gate) {
		switch {
		case !demanded:
			return
		case r.Mode == kek.Emergency:
			g.spared = sparedEmergency
		case r.Drill != "":
			g.spared = sparedDrill
		}
		out = append(out, g)
	}
	ahead := in.CheckOnly && in.Announce // days before the rotation, not at its start
	at := s.Now()
	if ahead && in.AnnounceFrom != nil {
		at = *in.AnnounceFrom
	}
	announced := gate{name: "announcement", green: fmt.Sprintf("%d days ago or more", s.AnnounceDays), check: func(ctx context.Context) error {
		return s.checkAnnouncement(ctx, r.Label)
	}}
	if ahead {
		announced.green = "made"
		announced.check = func(ctx context.Context) error {
			a := AnnounceInput{Label: in.Input.Label}
			if in.AnnounceFrom != nil {
				a.From = *in.AnnounceFrom
			}
			_, err := s.Announce(ctx, a)
			return err
		}
	}
	hours := gate{name: "off-peak window", green: w.String(), check: func(context.Context) error { return s.checkWindow(w, at) }}
	if w.From == w.To { // any time is nothing to go past
		out = append(out, hours)
	}
	add(w.From != w.To, hours)
	add(s.AnnounceDays > 0 || ahead, announced)
	add(s.DrillFreshDays > 0, gate{name: "failure drill", green: fmt.Sprintf("passed within %d days", s.DrillFreshDays), check: s.checkDrill})
	canary := fmt.Sprintf("green for %d days", s.HealthDays)
	if ahead {
		canary = "has not failed; before the rotation it must be " + canary
	}
	add(s.HealthDays > 0, gate{name: "KMS canary", green: canary, check: func(ctx context.Context) error {
		return s.checkHealth(ctx, ahead)
	}})
	if s.ApprovalRequired && r.Mode == kek.Emergency {
		out = append(out, gate{name: "second person", spared: sparedEmergency})
	}
	return out
}

// overridden begins the detail of a check that an emergency goes past.
const overridden = "overridden"

// overrides is what the record of the start says of the checks that an emergency went
// past.
func overrides(checks []Check) map[string]string {
	var names []string
	for _, c := range checks {
		if strings.HasPrefix(c.Detail, overridden) {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return map[string]string{"overrides": strings.Join(names, ", ")}
}
