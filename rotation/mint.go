package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
)

// Mint makes the new KEK and registers it as pending (spec: Mint).
//
// KMS CreateKey has no idempotency token. The rotation's record at phase started
// is the intent; the key is tagged with the rotation and then claims the
// attempt's alias, of which KMS gives out one. Whoever loses disables its own
// key; a key whose maker died between the two calls is found by its tag.
func (s *Steps) Mint(ctx context.Context, in StepInput) (out MintOutput, err error) {
	v, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return MintOutput{}, err
	}
	defer func() { err = s.young(r.UpdatedAt, err) }()
	var minted Key
	if r.Phase == kek.Started {
		if _, err := v.Mint(kek.KEK{}, s.Now()); err != nil { // before a key is made, not after
			return MintOutput{}, refusal(err)
		}
		if minted, err = s.claimKey(ctx, r); err != nil {
			return MintOutput{}, err
		}
	}
	v, err = s.transition(ctx, "mint", r.ID, func(v kek.View) (kek.Change, error) {
		if v.Rotation != nil && v.Rotation.Attempt != r.Attempt {
			return kek.Change{}, fmt.Errorf("attempt %d is over, the rotation is at %d", r.Attempt, v.Rotation.Attempt)
		}
		if minted.ID == "" && v.Rotation != nil && v.Rotation.Phase == kek.Started {
			return kek.Change{}, unavailable("control table", errors.New("the rotation's record has gone back to started: the table was restored"))
		}
		return v.Mint(kek.KEK{
			ID: minted.ID, ARN: minted.ARN, Label: r.Label, FenceShards: r.Settings.FenceShards, CreatedAt: s.Now(),
		}, s.Now())
	}, nil)
	if err != nil {
		return MintOutput{}, errors.Join(err, s.reapLosers(ctx, r.ID))
	}
	return MintOutput{NewKEK: string(v.Rotation.NewKEK), Attempt: v.Rotation.Attempt}, s.reapLosers(ctx, r.ID)
}

// claimKey returns the one key of this attempt, making it if need be.
func (s *Steps) claimKey(ctx context.Context, r kek.Rotation) (Key, error) {
	owner, err := s.Keys.Claim(ctx, r.ID, r.Attempt, "")
	if err != nil {
		return Key{}, unavailable("KMS alias", err)
	}
	if owner == "" {
		old, err := s.Keys.Describe(ctx, r.OldKEK)
		if err != nil {
			return Key{}, unavailable("KMS DescribeKey", err)
		}
		made, err := s.Keys.Create(ctx, r.ID, r.Attempt, r.Label, old)
		if err != nil {
			return Key{}, unavailable(fieldCreate, err)
		}
		if owner, err = s.Keys.Claim(ctx, r.ID, r.Attempt, made.ID); err != nil {
			return Key{}, unavailable("KMS alias", err)
		}
		if owner != made.ID {
			if err := s.Keys.Disable(ctx, made.ID); err != nil {
				return Key{}, unavailable("KMS DisableKey", err)
			}
		}
	}
	k, err := s.Keys.Describe(ctx, owner)
	if err != nil { // a new key may not be known everywhere yet
		return Key{}, unavailable("KMS DescribeKey", err)
	}
	if !k.Enabled || !k.Usable {
		return Key{}, &Error{
			Kind: KeyUnusable, Field: string(owner), Msg: fmt.Sprintf("the minted key is in state %q", k.State),
			Next: "find out who changed it; the rotation is rolled back",
		}
	}
	return k, nil
}

// reapLosers is reap in the functions that may disable no key with an alias, as the live
// KEK has one: a stray that owns its attempt's alias is left to the function retire.
func (s *Steps) reapLosers(ctx context.Context, id string) error { return s.reapAll(ctx, id, true) }

func (s *Steps) reap(ctx context.Context, id string) error { return s.reapAll(ctx, id, false) }

// reapAll disables the keys that carry the rotation's tag but are not its new KEK:
// losers whose maker died, and claims that were never registered. The listing
// comes before the read, so a key of a later attempt cannot be mistaken for a
// stray of this one; while a mint is under way (no new KEK yet, not final)
// nothing is touched. A denial is repeated while the keys are young.
func (s *Steps) reapAll(ctx context.Context, id string, losersOnly bool) error {
	tagged, err := s.Keys.Tagged(ctx, id)
	if err != nil {
		return unavailable("tagged keys", err)
	}
	v, err := s.load(ctx, id)
	if err != nil || v.Rotation == nil {
		return err
	}
	r := *v.Rotation
	if r.NewKEK == "" && !r.Phase.Final() {
		return nil
	}
	made := r.UpdatedAt // or before, as were the strays
	if k, ok := v.KEKs[r.NewKEK]; ok {
		made = k.CreatedAt
	}
	keep := append([]kek.ID{r.OldKEK}, r.Olds...)
	if r.Phase != kek.RolledBack {
		keep = append(keep, r.NewKEK)
	}
	if v.Pointer != nil {
		keep = append(keep, v.Pointer.KEKID)
	}
	for _, k := range tagged {
		if slices.Contains(keep, k) || v.KEKs[k].State.Resolves() { // doctor has found that it was in use
			continue
		}
		if v.Pointer == nil { // the KEK in use could not be told from a stray
			return refusal(kek.ErrNoPointer)
		}
		if err := s.checkSetBack(ctx); err != nil {
			return err
		}
		// The listing lags: a stray that a person has deleted meanwhile is gone.
		err := s.Keys.Disable(ctx, k)
		if losersOnly && errors.Is(err, ErrDenied) {
			continue
		}
		if err != nil && (!errors.Is(err, ErrNoKey) || s.isYoung(made)) {
			return s.young(made, unavailable("KMS DisableKey", err))
		}
	}
	return nil
}
