package rotation

import (
	"context"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// Switch moves the pointer to the new KEK, the one atomic step after which there
// is no way back (spec: Switch). Pointer, both registry entries, the new KEK's
// fence, the phase and the audit record are one transaction.
func (s *Steps) Switch(ctx context.Context, in StepInput) (_ SwitchOutput, err error) {
	defer func() { err = s.ended(ctx, in.RotationID, err) }()
	v, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return SwitchOutput{}, err
	}
	made := v.KEKs[r.NewKEK].CreatedAt
	if !r.Phase.Reached(kek.Tested) {
		return SwitchOutput{}, early(r, kek.Switched)
	}
	if r.Phase == kek.Tested { // PointerAlwaysUsable
		if err := s.checkApproval(ctx, r); err != nil {
			return SwitchOutput{}, err
		}
		if err := s.checkAwake(r); err != nil {
			return SwitchOutput{}, err
		}
		if left := s.settling(made); left > 0 {
			return SwitchOutput{}, &Error{
				Kind: Transient, Field: string(r.NewKEK), Msg: fmt.Sprintf("the new KEK is too young: applications may be denied on it for %s more", left.Round(time.Second)),
				Next: "it is tried again; by hand, wait as long",
			}
		}
		k, err := s.Keys.Describe(ctx, r.NewKEK)
		if err != nil {
			return SwitchOutput{}, s.young(made, unavailable("KMS DescribeKey", err))
		}
		if !k.Enabled || !k.Usable {
			return SwitchOutput{}, &Error{
				Kind: KeyUnusable, Field: string(r.NewKEK),
				Msg:  fmt.Sprintf("the new KEK is in KMS state %q; the pointer was left alone", k.State),
				Next: "find out who changed it, enable it, then redrive the execution",
			}
		}
	}
	v, err = s.transition(ctx, "switch", r.ID, func(v kek.View) (kek.Change, error) { return v.Switch(s.Now()) }, nil)
	if err != nil {
		return SwitchOutput{}, err
	}
	return SwitchOutput{KEK: string(v.Rotation.NewKEK), Epoch: v.Rotation.Epoch}, nil
}
