// Package awskms keeps KEKs in AWS KMS: it creates and disables them, and wraps and
// unwraps DEKs under them.
//
// What identifies a KEK of a stack:
//
//	alias        alias/matter/kek/<stack>/<table id>/<rotation>/<attempt>: the key that won the attempt
//	tags         matter:stack, matter:rotation, matter:attempt, matter:label
//	description  KEK of <stack>, <label> (rotation <rotation>, attempt <n>, table <table id>)
//
// Invariants: exactly one of the keys made for an attempt of a rotation owns its alias,
// because KMS lets an alias be created once. Nothing here schedules a deletion. Every
// unwrap passes the whole encryption context and the KEK, so that KMS never chooses a key
// by what a blob says; the exception is [Wrapper.Identify], which returns no plaintext. No
// plaintext, blob or encryption context gets into an error.
//
// Retries and timeouts are those of the client passed in.
package awskms

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi/types"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// AdminAPI is the part of the KMS client that [Admin] uses.
type AdminAPI interface {
	CreateAlias(context.Context, *kms.CreateAliasInput, ...func(*kms.Options)) (*kms.CreateAliasOutput, error)
	CreateKey(context.Context, *kms.CreateKeyInput, ...func(*kms.Options)) (*kms.CreateKeyOutput, error)
	DescribeKey(context.Context, *kms.DescribeKeyInput, ...func(*kms.Options)) (*kms.DescribeKeyOutput, error)
	DisableKey(context.Context, *kms.DisableKeyInput, ...func(*kms.Options)) (*kms.DisableKeyOutput, error)
	GetKeyLastUsage(context.Context, *kms.GetKeyLastUsageInput, ...func(*kms.Options)) (*kms.GetKeyLastUsageOutput, error)
	GetKeyPolicy(context.Context, *kms.GetKeyPolicyInput, ...func(*kms.Options)) (*kms.GetKeyPolicyOutput, error)
	ListAliases(context.Context, *kms.ListAliasesInput, ...func(*kms.Options)) (*kms.ListAliasesOutput, error)
	ListGrants(context.Context, *kms.ListGrantsInput, ...func(*kms.Options)) (*kms.ListGrantsOutput, error)
}

// TagAPI is the part of the Resource Groups Tagging client that [Admin] uses. KMS itself
// cannot list keys by tag.
type TagAPI interface {
	GetResources(context.Context, *resourcegroupstaggingapi.GetResourcesInput, ...func(*resourcegroupstaggingapi.Options)) (*resourcegroupstaggingapi.GetResourcesOutput, error)
}

// The tags of a KEK.
const (
	TagStack    = "matter:stack"
	TagRotation = "matter:rotation"
	TagAttempt  = "matter:attempt"
	TagLabel    = "matter:label"
)

var _ keyring.Admin = (*Admin)(nil)

// Admin creates and disables the KEKs of one stack. It is safe for concurrent use.
type Admin struct {
	client AdminAPI
	tags   TagAPI
	stack  string
	life   string
}

// NewAdmin returns the key administration of a stack with its control table. Aliases and
// keys outlive a stack, and a rotation of a later stack may have the name of an earlier
// one. The table's name separates them, because CloudFormation generates a new one for
// each stack.
func NewAdmin(client AdminAPI, tags TagAPI, stack, table string) *Admin {
	sum := sha256.Sum256([]byte(table))
	return &Admin{client: client, tags: tags, stack: stack, life: hex.EncodeToString(sum[:4])}
}

// Create implements [keyring.Admin]. If the answer is lost, a key may be left behind.
// It has the rotation's tags, so [Admin.Tagged] finds it.
//
// KMS refuses a key policy under which the caller could not change the policy again,
// unless that check is bypassed. The role that creates KEKs must not change key policies,
// so the check is bypassed: the account's administrators can change this one (KMS API
// reference, CreateKey, BypassPolicyLockoutSafetyCheck. It does not say whether the
// caller's IAM policies count; users report that they do). A multi-Region key also needs
// the permission iam:CreateServiceLinkedRole, until the account has the role of AWS KMS
// that synchronises such keys (KMS developer guide, "Create multi-Region primary keys").
func (a *Admin) Create(ctx context.Context, rotationID string, attempt int, label string, old keyring.Key) (keyring.Key, error) {
	policy, err := KeyPolicy(old)
	if err != nil {
		return keyring.Key{}, err
	}
	out, err := a.client.CreateKey(ctx, &kms.CreateKeyInput{
		Description: aws.String(a.descriptionPrefix() + label + fmt.Sprintf(" (rotation %s, attempt %d%s", rotationID, attempt, a.descriptionSuffix())),
		KeySpec:     types.KeySpecSymmetricDefault, KeyUsage: types.KeyUsageTypeEncryptDecrypt,
		MultiRegion: &old.Multi, Policy: &policy, BypassPolicyLockoutSafetyCheck: true,
		Tags: []types.Tag{
			newTag(TagStack, a.stack), newTag(TagRotation, rotationID), newTag(TagAttempt, strconv.Itoa(attempt)), newTag(TagLabel, label),
		},
	})
	if err != nil {
		return keyring.Key{}, classifyError("CreateKey", err)
	}
	return decodeKey(out.KeyMetadata)
}

// descriptionPrefix returns the beginning of the description of each key of this stack.
func (a *Admin) descriptionPrefix() string { return "KEK of " + a.stack + ", " }

// descriptionSuffix returns the end of the description of each key of this control table.
func (a *Admin) descriptionSuffix() string { return ", table " + a.life + ")" }

// isMadeFor reports whether a description is the one that Create gave a key of a rotation.
func (a *Admin) isMadeFor(rotationID, description string) bool {
	return strings.HasPrefix(description, a.descriptionPrefix()) && strings.Contains(description, " (rotation "+rotationID+", attempt ") &&
		strings.HasSuffix(description, a.descriptionSuffix())
}

func newTag(name, value string) types.Tag { return types.Tag{TagKey: &name, TagValue: &value} }

// errUnseen reports an alias that exists but whose key KMS does not show yet.
var errUnseen = errors.New("the alias is taken, and KMS does not show its owner yet")

// Claim implements [keyring.Admin]. CreateAlias decides which key wins, because it
// succeeds once. A claim that is repeated because its answer was lost finds that its own
// key is the owner. KMS is eventually consistent (KMS developer guide, "AWS KMS eventual
// consistency"): a loser that cannot see the owner yet gets a transient error, never the
// answer that there is no owner. A key that was just created may not be found yet; the
// call is repeated then, because after an error the step would create another key.
func (a *Admin) Claim(ctx context.Context, rotationID string, attempt int, id kek.ID) (kek.ID, error) {
	alias := fmt.Sprintf("%s%s/%s/%d", a.aliasPrefix(), a.life, rotationID, attempt)
	if id != "" {
		err := a.createAlias(ctx, alias, id)
		if err == nil {
			return id, nil
		}
		var taken *types.AlreadyExistsException
		if !errors.As(err, &taken) {
			return "", err
		}
	}
	owner, err := a.Describe(ctx, kek.ID(alias))
	switch {
	case err == nil:
		return owner.ID, nil
	case !errors.Is(err, journal.ErrNoKey):
		return "", err
	case id != "":
		return "", fmt.Errorf("kms DescribeKey %s: %w", alias, errUnseen)
	}
	return "", nil
}

// repeatNotFound makes the SDK repeat a call whose key is not found.
func repeatNotFound(o *kms.Options) {
	o.Retryer = retry.AddWithErrorCodes(o.Retryer, (*types.NotFoundException)(nil).ErrorCode())
}

// aliasPrefix returns the beginning of the aliases of the stack's KEKs.
func (a *Admin) aliasPrefix() string { return "alias/matter/kek/" + a.stack + "/" }

// aliasTries is how often an alias is asked for whose key denies it, within some five
// seconds.
const aliasTries = 6

// createAlias gives an alias to a key that was made a moment ago. The permission is
// conditional on the key's tag, which may take five minutes to affect authorization (KMS
// developer guide, "Authorization for tag changes"), so a denial is tried again here for a
// few seconds: a caller that gives up makes another key next time, whose tag is as young.
func (a *Admin) createAlias(ctx context.Context, alias string, id kek.ID) error {
	var err error
	for n := range aliasTries {
		if remote.WaitForTry(ctx, n, 250*time.Millisecond, 2*time.Second) != nil {
			return err
		}
		_, err = a.client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: aws.String(string(id))}, repeatNotFound)
		if err == nil {
			return nil
		}
		if err = classifyError("CreateAlias "+alias+" for "+string(id), err); !errors.Is(err, journal.ErrDenied) {
			return err
		}
	}
	return err
}

// Describe implements [keyring.Admin].
func (a *Admin) Describe(ctx context.Context, id kek.ID) (keyring.Key, error) {
	key, _, err := a.describeKey(ctx, id)
	return key, err
}

// describeKey also returns the replicas of a multi-Region key; nil for any other key.
func (a *Admin) describeKey(ctx context.Context, id kek.ID) (keyring.Key, *types.MultiRegionConfiguration, error) {
	out, err := a.client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String(string(id))})
	if err != nil {
		return keyring.Key{}, nil, classifyError("DescribeKey "+string(id), err)
	}
	key, err := decodeKey(out.KeyMetadata)
	if err != nil {
		return keyring.Key{}, nil, err
	}
	return key, out.KeyMetadata.MultiRegionConfiguration, nil
}

// decodeKey decodes KMS's metadata of a key. A key is usable as a KEK if it is symmetric,
// for encryption, and in a state from which it can be enabled.
func decodeKey(m *types.KeyMetadata) (keyring.Key, error) {
	if m == nil || aws.ToString(m.KeyId) == "" {
		return keyring.Key{}, errors.New("kms: the answer describes no key")
	}
	k := keyring.Key{
		ID: kek.ID(*m.KeyId), ARN: aws.ToString(m.Arn), State: string(m.KeyState),
		Enabled: m.KeyState == types.KeyStateEnabled, Multi: aws.ToBool(m.MultiRegion),
	}
	switch m.KeyState {
	case types.KeyStateEnabled, types.KeyStateDisabled, types.KeyStateUpdating:
		k.Usable = m.KeySpec == types.KeySpecSymmetricDefault && m.KeyUsage == types.KeyUsageTypeEncryptDecrypt
	case types.KeyStateCreating, types.KeyStatePendingDeletion, types.KeyStatePendingImport,
		types.KeyStatePendingReplicaDeletion, types.KeyStateUnavailable:
	}
	return k, nil
}

// Disable implements [keyring.Admin]. A key that a person has scheduled for deletion
// cannot be disabled and need not be: KMS refuses to use it, and leaves it disabled if the
// deletion is cancelled (KMS API reference, CancelKeyDeletion).
func (a *Admin) Disable(ctx context.Context, id kek.ID) error {
	_, err := a.client.DisableKey(ctx, &kms.DisableKeyInput{KeyId: aws.String(string(id))})
	if err == nil {
		return nil
	}
	var state *types.KMSInvalidStateException
	if errors.As(err, &state) {
		if k, _ := a.Describe(ctx, id); k.State == string(types.KeyStatePendingDeletion) {
			return nil
		}
	}
	return classifyError("DisableKey "+string(id), err)
}

// Tagged implements [keyring.Admin]. A new key is not listed at once.
func (a *Admin) Tagged(ctx context.Context, rotationID string) ([]kek.ID, error) {
	pages := resourcegroupstaggingapi.NewGetResourcesPaginator(a.tags, &resourcegroupstaggingapi.GetResourcesInput{
		ResourceTypeFilters: []string{"kms:key"},
		TagFilters: []tagging.TagFilter{
			{Key: aws.String(TagStack), Values: []string{a.stack}},
			{Key: aws.String(TagRotation), Values: []string{rotationID}},
		},
	})
	var ids []kek.ID
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, remote.WrapError("tagging GetResources", err)
		}
		for _, r := range page.ResourceTagMappingList {
			arn := aws.ToString(r.ResourceARN)
			_, id, ok := strings.Cut(arn, ":key/")
			if !ok {
				return nil, fmt.Errorf("tagging GetResources: %q is not a KMS key", arn)
			}
			ours, err := a.ownsKey(ctx, rotationID, id)
			if err != nil {
				return nil, err
			}
			if ours {
				ids = append(ids, kek.ID(id))
			}
		}
	}
	return ids, nil
}

// ownsKey reports whether a key with a rotation's tags was made for it, by its
// description. Tags are not enough: a template or a person may copy them to other keys,
// and the caller of Tagged may disable what it returns. The description is set by
// CreateKey, and a person who may only tag keys cannot change it.
func (a *Admin) ownsKey(ctx context.Context, rotationID, id string) (bool, error) {
	out, err := a.client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id})
	var gone *types.NotFoundException
	switch {
	case errors.As(err, &gone): // the listing is older
		return false, nil
	case err != nil:
		return false, classifyError("DescribeKey "+id, err)
	}
	return out.KeyMetadata != nil && a.isMadeFor(rotationID, aws.ToString(out.KeyMetadata.Description)), nil
}
