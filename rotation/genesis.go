package rotation

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/matter-ops/kms-rotation/kek"
)

// Genesis registers the first KEK of a deployment and points at it, once: the KMS
// key that the rows are wrapped under already. The key must carry the stack's tag,
// which the roles of the functions are conditioned on. A repeated call with the
// same key succeeds; with another it is refused, since only a rotation moves the
// pointer. sources are the first registered ones, which may be none: more are added
// with [Steps.AddSource]. (Spec: Init.)
func (s *Steps) Genesis(ctx context.Context, id kek.ID, label string, sources []kek.Source) (kek.Pointer, error) {
	return s.GenesisAfter(ctx, id, label, sources, 0)
}

// GenesisAfter is Genesis of rows that an earlier deployment has moved. last is the highest
// epoch that any of them carries, see [Steps.LastEpoch].
func (s *Steps) GenesisAfter(ctx context.Context, id kek.ID, label string, sources []kek.Source, last int64) (kek.Pointer, error) {
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
		body["source."+name] = sources[i].Definition
		body["kind."+name] = sources[i].Kind
		body["place."+name] = sources[i].Place
	}
	v, err := s.transitionAll(ctx, "genesis", "", func(v kek.View) (kek.Change, error) {
		return v.GenesisAfter(kek.KEK{ID: k.ID, ARN: k.ARN, Label: label, FenceShards: s.FenceShards}, sources, last, s.Now())
	}, body)
	if err != nil {
		return kek.Pointer{}, err
	}
	return *v.Pointer, nil
}

// maxFirstEpoch bounds the epochs of rows that a deployment may begin with: a higher one is
// no count of rotations, and the next ones must not overflow.
const maxFirstEpoch = math.MaxInt32

// LastEpoch reads every row of the sources and returns the highest epoch that one carries: 0
// if none has been written or moved by this project.
func (s *Steps) LastEpoch(ctx context.Context, sources []kek.Source) (int64, error) {
	if len(sources) == 0 {
		return 0, nil
	}
	opened, err := s.openSources(sources)
	if err != nil {
		return 0, err
	}
	var last int64
	for _, src := range opened {
		for req := (ScanRequest{Total: 1}); ; {
			page, err := src.Scan(ctx, req)
			if err != nil {
				return 0, unavailable("source "+src.Name(), err)
			}
			for _, row := range page.Rows {
				if row.Epoch > maxFirstEpoch {
					return 0, &Error{
						Kind: RowsUnaccounted, Field: "sources[" + src.Name() + "]", Msg: fmt.Sprintf("item %s: epoch %d is no count of rotations", row.ID, row.Epoch),
						Next: "correct the item's epoch attribute, or the name of that attribute in the source's definition",
					}
				}
				last = max(last, row.Epoch)
			}
			if req.Cursor = page.Next; req.Cursor == "" {
				break
			}
		}
	}
	return last, nil
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
