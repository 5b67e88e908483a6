package rotation

import (
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
)

// Genesis registers the first KEK of a deployment and points at it, once: the KMS
// key that the rows are wrapped under already. The key must carry the stack's tag,
// which the roles of the functions are conditioned on. A repeated call with the
// same key succeeds; with another it is refused, since only a rotation moves the
// pointer. sources are the first registered ones, which may be none: more are added
// with [Steps.AddSource]. (Spec: Init.)
func (s *Steps) Genesis(ctx context.Context, id kek.ID, label string, sources []kek.Source) (kek.Pointer, error) {
	if err := kek.CheckLabel(label); err != nil {
		return kek.Pointer{}, invalid("label", err.Error(), "choose another label")
	}
	k, err := s.usableKey(ctx, id)
	if err != nil {
		return kek.Pointer{}, err
	}
	body := map[string]string{"label": label}
	for i := range sources {
		if sources[i].AddedBy == "" {
			sources[i].AddedAt, sources[i].AddedBy = s.Now(), s.Actor
		}
		name := sources[i].Name
		body["source."+name], body["kind."+name], body["place."+name] = sources[i].Definition, sources[i].Kind, sources[i].Place
	}
	v, err := s.transitionAll(ctx, "genesis", "", func(v kek.View) (kek.Change, error) {
		return v.Genesis(kek.KEK{ID: k.ID, ARN: k.ARN, Label: label, FenceShards: s.FenceShards}, sources, s.Now())
	}, body)
	if err != nil {
		return kek.Pointer{}, err
	}
	return *v.Pointer, nil
}

// usableKey describes a KMS key that can wrap data keys.
func (s *Steps) usableKey(ctx context.Context, id kek.ID) (Key, error) {
	k, err := s.Keys.Describe(ctx, id)
	if errors.Is(err, ErrNoKey) {
		return k, &Error{
			Kind: KeyUnusable, Field: "kek_id", Msg: fmt.Sprintf("KMS knows no key %q in this account and Region", id), Err: err,
			Next: "give the id of an enabled symmetric KMS key of usage ENCRYPT_DECRYPT",
		}
	}
	if err != nil {
		return k, unavailable("KMS DescribeKey", err)
	}
	if !k.Enabled || !k.Usable {
		return k, &Error{
			Kind: KeyUnusable, Field: "kek_id", Msg: fmt.Sprintf("KMS key %s is in state %q", id, k.State),
			Next: "choose an enabled symmetric KMS key of usage ENCRYPT_DECRYPT",
		}
	}
	return k, nil
}
