package gates

import (
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// HealthDay counts the canaries of one day, UTC.
type HealthDay struct {
	Day        string // 2006-01-02
	Green, Red int64
}

// HealthLog is the history of the canary under the pointer's KEK.
type HealthLog interface {
	// CountHealth adds one canary to its day and returns the day's counts. After a
	// lost answer one may be counted twice.
	CountHealth(ctx context.Context, day string, green bool) (HealthDay, error)
	// ListHealth returns the counts of the given days; days without data are omitted.
	ListHealth(ctx context.Context, days []string) ([]HealthDay, error)
}

// leastCanaries is how many of the 24 canaries of a day are needed for the day to count. A
// deployment may cost an hour, but a day on which the function did not run is not green.
const leastCanaries = 20

const dayFormat = "2006-01-02"

// CountCanary adds one canary to today, and returns the counts of today.
func (g *Gates) CountCanary(ctx context.Context, green bool) (HealthDay, error) {
	today := g.Journal.Now().UTC().Format(dayFormat)
	day, err := g.HealthLog.CountHealth(ctx, today, green)
	if err != nil {
		return HealthDay{Day: today}, journal.WrapUnavailable("health log", err)
	}
	return day, nil
}

// checkHealth refuses unless each of the required whole days was green, and today has been so
// far. In a check days ahead of a rotation, the days that will count are still to come, so
// only failed canaries are reported.
func (g *Gates) checkHealth(ctx context.Context, ahead bool) error {
	today := g.Journal.Now().UTC()
	days := make([]string, g.Rules.HealthDays+1)
	for i := range days {
		days[i] = today.AddDate(0, 0, -i).Format(dayFormat)
	}
	list, err := g.HealthLog.ListHealth(ctx, days)
	if err != nil {
		return journal.WrapUnavailable("health log", err)
	}
	known := map[string]HealthDay{}
	for _, d := range list {
		known[d.Day] = d
	}
	var faults []error
	for i, name := range days {
		switch d := known[name]; {
		case d.Red > 0:
			faults = append(faults, fmt.Errorf("%s: %d of %d canaries failed", name, d.Red, d.Red+d.Green))
		case i > 0 && d.Green < leastCanaries && !ahead:
			faults = append(faults, fmt.Errorf("%s: %d canaries, want %d", name, d.Green, leastCanaries))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &journal.Error{
		Kind: journal.HealthRed, Field: "HEALTH", Msg: fmt.Sprintf("the canary under the pointer's KEK was not green for %d days", g.Rules.HealthDays), Err: errors.Join(faults...),
		Next: journal.Next{Say: fmt.Sprintf("read the log of function health, fix it, and rotate once it is green for %d days", g.Rules.HealthDays)},
	}
}
