package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// Mint makes the new KEK and registers it as pending (spec: Mint).
//
// KMS CreateKey has no idempotency token, so two duplicates may each create a key. The
// rotation's record at phase started is the intent. Each key is tagged with the rotation
// and then claims the alias of the attempt, which KMS gives to one key only. A call that
// loses the alias disables its own key. If a call dies between the two, its key is found by
// the tag later and disabled.
func (s *Steps) Mint(ctx context.Context, in StepInput) (out MintOutput, err error) {
	v, r, err := s.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return MintOutput{}, err
	}
	defer func() { err = s.retryWhileKeyIsYoung(r.UpdatedAt, err) }()
	var minted keyring.Key
	if r.Phase == kek.Started {
		if _, err := v.Mint(kek.KEK{}, s.Journal.Now()); err != nil { // refuse before a key is created, which cannot be undone
			return MintOutput{}, journal.ExplainRefusal(err)
		}
		if minted, err = s.claimKey(ctx, r); err != nil {
			return MintOutput{}, err
		}
	}
	v, err = s.Journal.Transition(ctx, "mint", r.ID, func(v kek.View) (kek.Change, error) {
		if v.Rotation != nil && v.Rotation.Attempt != r.Attempt {
			return kek.Change{}, fmt.Errorf("attempt %d is over, the rotation is at %d", r.Attempt, v.Rotation.Attempt)
		}
		if minted.ID == "" && v.Rotation != nil && v.Rotation.Phase == kek.Started {
			return kek.Change{}, journal.WrapUnavailable("control table", errors.New("the rotation's record has gone back to started: the table was restored"))
		}
		return v.Mint(kek.KEK{
			ID: minted.ID, ARN: minted.ARN, Label: r.Label, FenceShards: r.Settings.FenceShards, CreatedAt: s.Journal.Now(),
		}, s.Journal.Now())
	}, nil)
	if err != nil {
		return MintOutput{}, errors.Join(err, s.disableLoserKeys(ctx, r.ID))
	}
	return MintOutput{NewKEK: string(v.Rotation.NewKEK), Attempt: v.Rotation.Attempt}, s.disableLoserKeys(ctx, r.ID)
}

// claimKey returns the one key of this attempt. It creates a key if none owns the alias.
func (s *Steps) claimKey(ctx context.Context, r kek.Rotation) (keyring.Key, error) {
	owner, err := s.Keys.Admin.Claim(ctx, r.ID, r.Attempt, "")
	if err != nil {
		return keyring.Key{}, journal.WrapUnavailable("KMS alias", err)
	}
	if owner == "" {
		old, err := s.Keys.Admin.Describe(ctx, r.OldKEK)
		if err != nil {
			return keyring.Key{}, journal.WrapUnavailable("KMS DescribeKey", err)
		}
		made, err := s.Keys.Admin.Create(ctx, r.ID, r.Attempt, r.Label, old)
		if err != nil {
			return keyring.Key{}, journal.WrapUnavailable(fieldCreate, err)
		}
		if owner, err = s.Keys.Admin.Claim(ctx, r.ID, r.Attempt, made.ID); err != nil {
			return keyring.Key{}, journal.WrapUnavailable("KMS alias", err)
		}
		if owner != made.ID {
			if err := s.Keys.Admin.Disable(ctx, made.ID); err != nil {
				return keyring.Key{}, journal.WrapUnavailable("KMS DisableKey", err)
			}
		}
	}
	k, err := s.Keys.Admin.Describe(ctx, owner)
	if err != nil { // a new key may not be known everywhere yet
		return keyring.Key{}, journal.WrapUnavailable("KMS DescribeKey", err)
	}
	if !k.Enabled || !k.Usable {
		return keyring.Key{}, &journal.Error{
			Kind: journal.KeyUnusable, Field: string(owner), Msg: fmt.Sprintf("the minted key is in state %q", k.State),
			Next: journal.Next{Say: "find out who changed it; the rotation is rolled back"},
		}
	}
	return k, nil
}

// disableLoserKeys disables the stray keys without an alias. Mint and verify may not disable
// a key that has an alias, since the KEK in use has one. A stray that owns the alias of its
// attempt is left to the function retire.
func (s *Steps) disableLoserKeys(ctx context.Context, id string) error {
	return s.disableStrayKeys(ctx, id, true)
}

// disableOrphanKeys disables every stray key of a rotation.
func (s *Steps) disableOrphanKeys(ctx context.Context, id string) error {
	return s.disableStrayKeys(ctx, id, false)
}

// disableStrayKeys disables the keys that carry the rotation's tag but are not its new KEK:
// keys that lost the alias and whose maker died, and keys that own an alias but were never
// registered. The keys are listed before the record is read, so that a key of a later
// attempt cannot be mistaken for a stray of this one. While a mint is under way (no new KEK
// yet, and not final) nothing is disabled. A denial is retried while the keys are young.
func (s *Steps) disableStrayKeys(ctx context.Context, id string, losersOnly bool) error {
	tagged, err := s.Keys.Admin.Tagged(ctx, id)
	if err != nil {
		return journal.WrapUnavailable("tagged keys", err)
	}
	v, err := s.Journal.Load(ctx, id)
	if err != nil || v.Rotation == nil {
		return err
	}
	r := *v.Rotation
	if r.NewKEK == "" && !r.Phase.Final() {
		return nil
	}
	made := r.UpdatedAt // the strays were made then or earlier
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
		if slices.Contains(keep, k) || v.KEKs[k].State.Resolves() { // rows may be under it: doctor has found that it was in use
			continue
		}
		if v.Pointer == nil { // the KEK in use could not be told from a stray
			return journal.ExplainRefusal(kek.ErrNoPointer)
		}
		if err := s.Journal.CheckSetBack(ctx); err != nil {
			return err
		}
		// The listing is eventually consistent: a stray that a person has deleted may still be in it.
		err := s.Keys.Admin.Disable(ctx, k)
		if losersOnly && errors.Is(err, journal.ErrDenied) {
			continue
		}
		if err != nil && (!errors.Is(err, journal.ErrNoKey) || s.isKeyYoung(made)) {
			return s.retryWhileKeyIsYoung(made, journal.WrapUnavailable("KMS DisableKey", err))
		}
	}
	return nil
}
