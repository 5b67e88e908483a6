package rotation

import (
	"context"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Switch moves the pointer to the new KEK (spec: Switch). It is the one atomic step after
// which a rotation only goes forward. Pointer, both registry entries, the new KEK's fence,
// the phase and the audit record are written in one transaction. If no source may hold rows
// that carry their data key, the new KEK's fence of rows stays shut.
func (s *Steps) Switch(ctx context.Context, in StepInput) (_ SwitchOutput, err error) {
	defer func() { err = s.Journal.ExplainEnded(ctx, in.RotationID, err) }()
	v, r, err := s.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return SwitchOutput{}, err
	}
	made := v.KEKs[r.NewKEK].CreatedAt
	if !r.Phase.Reached(kek.Tested) {
		return SwitchOutput{}, errTooEarly(r, kek.Switched)
	}
	var sources []frozenSource
	if r.Phase == kek.Tested { // the last checks of PointerAlwaysUsable (spec/rotation.tla)
		if err := s.Gates.CheckApproval(ctx, r); err != nil {
			return SwitchOutput{}, err
		}
		if err := s.Gates.CheckAwake(r); err != nil {
			return SwitchOutput{}, err
		}
		if left := s.settleTime(made); left > 0 {
			return SwitchOutput{}, &journal.Error{
				Kind: journal.Transient, Field: string(r.NewKEK), Msg: fmt.Sprintf("the new KEK is too young: applications may be denied on it for %s more", left.Round(time.Second)),
				Next: journal.Next{Say: "it is tried again; by hand, wait as long"},
			}
		}
		if sources, err = s.openSources(r.Sources); err != nil {
			return SwitchOutput{}, err
		}
		k, err := s.Keys.Admin.Describe(ctx, r.NewKEK)
		if err != nil {
			return SwitchOutput{}, s.retryWhileKeyIsYoung(made, journal.WrapUnavailable("KMS DescribeKey", err))
		}
		if !k.Enabled || !k.Usable {
			return SwitchOutput{}, &journal.Error{
				Kind: journal.KeyUnusable, Field: string(r.NewKEK),
				Msg:  fmt.Sprintf("the new KEK is in KMS state %q; the pointer was left alone", k.State),
				Next: journal.Next{Say: "find out who changed it, enable it, then redrive the execution"},
			}
		}
	}
	v, err = s.Journal.Transition(ctx, "switch", r.ID, func(v kek.View) (kek.Change, error) {
		c, err := v.Switch(s.Journal.Now())
		if err == nil && takesRecordsAlone(sources) {
			c = c.TakeNoRows()
		}
		if err == nil {
			err = openFences(ctx, sources, v.KEKs[r.NewKEK])
		}
		return c, err
	}, nil)
	if err != nil {
		return SwitchOutput{}, err
	}
	return SwitchOutput{KEK: string(v.Rotation.NewKEK), Epoch: v.Rotation.Epoch}, nil
}
