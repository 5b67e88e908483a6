package rotation

import (
	"context"
	"errors"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// The outcomes of a drill, see [RetireOutput].
const (
	DrillPassed = "passed"
	DrillFailed = "failed"
)

// errDrillFailed says that a drill did not fail as it should.
var errDrillFailed = errors.New("the drill failed")

// settleDrill returns the outcome of a drill that was rolled back, and records the drill if
// it passed.
func (s *Steps) settleDrill(ctx context.Context, v kek.View) (string, error) {
	r := *v.Rotation
	if r.Drill == "" {
		return "", nil
	}
	err := s.Gates.RecordPassedDrill(ctx, r.Drill, r.ID, func() (gates.Drill, string, error) { return s.proveDrill(ctx, v) })
	switch {
	case errors.Is(err, errDrillFailed):
		return DrillFailed, nil
	case err != nil:
		return "", err
	}
	return DrillPassed, nil
}

// proveDrill returns the evidence of a drill that passed: the canary is what failed, the
// pointer names what it named before, and the new KEK is retired in the registry and
// disabled in KMS.
func (s *Steps) proveDrill(ctx context.Context, v kek.View) (d gates.Drill, kmsState string, err error) {
	r := *v.Rotation
	untouched := v.Pointer != nil && v.Pointer.KEKID == r.OldKEK
	if !untouched || v.KEKs[r.NewKEK].State != kek.Retired || !strings.HasPrefix(r.Err, string(journal.CanaryFailed)) {
		return d, "", errDrillFailed
	}
	k, err := s.Keys.Admin.Describe(ctx, r.NewKEK)
	if err != nil {
		return d, "", journal.WrapUnavailable("KMS DescribeKey", err)
	}
	if k.Enabled { // KMS is eventually consistent: DisableKey shows a while later
		return d, "", &journal.Error{Kind: journal.Transient, Field: string(r.NewKEK), Msg: "KMS says that the new key is still enabled", Next: journal.Next{Say: "it is looked at again"}}
	}
	return gates.Drill{Pointer: r.OldKEK, Retired: r.NewKEK, Error: r.Err}, k.State, nil
}
