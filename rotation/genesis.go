package rotation

import (
	"context"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
)

// Genesis registers the first KEK of a deployment and points at it, once: the KMS
// key that the rows are wrapped under already. The key must carry the stack's tag,
// which the roles of the functions are conditioned on. A repeated call with the
// same key succeeds; with another it is refused, since only a rotation moves the
// pointer. (Spec: Init.)
func (s *Steps) Genesis(ctx context.Context, id kek.ID, label string) (kek.Pointer, error) {
	if err := kek.CheckLabel(label); err != nil {
		return kek.Pointer{}, invalid("label", err.Error(), "choose another label")
	}
	k, err := s.Keys.Describe(ctx, id)
	if err != nil {
		return kek.Pointer{}, unavailable("KMS DescribeKey", err)
	}
	if !k.Enabled || !k.Usable {
		return kek.Pointer{}, &Error{
			Kind: KeyUnusable, Field: "kek_id", Msg: fmt.Sprintf("KMS key %s is in state %q", id, k.State),
			Next: "choose an enabled symmetric KMS key of usage ENCRYPT_DECRYPT",
		}
	}
	v, err := s.transition(ctx, "genesis", "", func(v kek.View) (kek.Change, error) {
		return v.Genesis(kek.KEK{ID: k.ID, ARN: k.ARN, Label: label, FenceShards: s.FenceShards}, s.Now())
	}, nil)
	if err != nil {
		return kek.Pointer{}, err
	}
	return *v.Pointer, nil
}
