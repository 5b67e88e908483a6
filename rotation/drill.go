package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// DrillFailure is the drill of a canary that fails: the rotation must roll back with
// the pointer where it was and the new key dead.
const DrillFailure = "kms_rotation_failure"

// What became of a drill, see [RetireOutput].
const (
	DrillPassed = "passed"
	DrillFailed = "failed"
)

// EventDrillPassed is the type of the record of a drill that passed.
const EventDrillPassed = "drill_passed"

// Drill is the last time that a drill passed, with its evidence.
type Drill struct {
	Name     string
	Rev      int64 // grows with every save; a save conditions on it
	PassedAt time.Time
	Rotation string // the rotation that was made to fail
	Pointer  kek.ID // which the pointer named before and after
	Retired  kek.ID // the new KEK: retired in the registry, its KMS key disabled
	Error    string // what the rotation was rolled back for
	Actor    string
}

// Drills keeps when each drill last passed.
type Drills interface {
	// LoadDrill returns one without a revision if it never passed.
	LoadDrill(ctx context.Context, name string) (Drill, error)
	// SaveDrill stores d with Rev+1 if the stored revision is d.Rev, else
	// [kek.ErrConflict], and appends ev to the outbox in the same transaction.
	SaveDrill(ctx context.Context, d Drill, ev audit.Event) error
}

// Freshness is whether a drill still tells anything.
type Freshness string

// How fresh a drill is.
const (
	Fresh Freshness = "fresh"
	Stale Freshness = "stale"
	Never Freshness = "never"
)

// Freshness is d's at a moment, if it counts for so many days; 0: for ever.
func (d Drill) Freshness(now time.Time, days int) Freshness {
	switch {
	case d.Rev == 0:
		return Never
	case days > 0 && now.After(d.PassedAt.AddDate(0, 0, days)):
		return Stale
	default:
		return Fresh
	}
}

// checkDrill refuses a rotation whose way back was not tried lately.
func (s *Steps) checkDrill(ctx context.Context) error {
	d, err := s.Drills.LoadDrill(ctx, DrillFailure)
	if err != nil {
		return unavailable("drill", err)
	}
	msg := "it never passed"
	switch d.Freshness(s.Now(), s.DrillFreshDays) {
	case Fresh:
		return nil
	case Stale:
		msg = fmt.Sprintf("it passed last at %s, more than %d days ago", d.PassedAt.UTC().Format(time.RFC3339), s.DrillFreshDays)
	case Never:
	}
	return &Error{Kind: DrillStale, Field: DrillFailure, Msg: msg, Next: "matter ops drill run " + DrillFailure}
}

// drilled says what became of a drill that was rolled back, and records one that
// passed. It passed if the canary is what failed, the pointer names what it named
// before, and the new KEK is retired in the registry and disabled in KMS.
func (s *Steps) drilled(ctx context.Context, v kek.View) (string, error) {
	r := *v.Rotation
	if r.Drill == "" {
		return "", nil
	}
	for range maxTries {
		was, err := s.Drills.LoadDrill(ctx, r.Drill)
		if err != nil {
			return "", unavailable("drill", err)
		}
		if was.Rotation == r.ID {
			return DrillPassed, s.publish(ctx)
		}
		untouched := v.Pointer != nil && v.Pointer.KEKID == r.OldKEK
		if !untouched || v.KEKs[r.NewKEK].State != kek.Retired || !strings.HasPrefix(r.Err, string(CanaryFailed)) {
			return DrillFailed, nil
		}
		k, err := s.Keys.Describe(ctx, r.NewKEK)
		if err != nil {
			return "", unavailable("KMS DescribeKey", err)
		}
		if k.Enabled { // KMS is eventually consistent
			return "", &Error{Kind: Transient, Field: string(r.NewKEK), Msg: "KMS says that the new key is still enabled", Next: "it is looked at again"}
		}
		d := Drill{
			Name: r.Drill, Rev: was.Rev, PassedAt: s.Now(), Rotation: r.ID, Pointer: r.OldKEK, Retired: r.NewKEK, Error: r.Err, Actor: s.Actor,
		}
		err = s.Drills.SaveDrill(ctx, d, d.event(k))
		if errors.Is(err, kek.ErrConflict) {
			continue
		}
		if err != nil {
			return "", unavailable("control table", err)
		}
		return DrillPassed, s.publish(ctx)
	}
	return "", unavailable("drill", kek.ErrConflict)
}

func (d Drill) event(k Key) audit.Event {
	ev := audit.Event{
		ID: d.Rotation + "/" + EventDrillPassed, Type: EventDrillPassed, Rotation: d.Rotation, Step: "retire", Actor: d.Actor,
		Body: map[string]string{"drill": d.Name, "pointer": string(d.Pointer), "kek." + string(d.Retired): string(kek.Retired)},
	}
	put(ev.Body, "kms_state", k.State, "error", d.Error)
	return ev
}
