// Package awskms keeps KEKs in AWS KMS: it mints and disables them, and wraps and
// unwraps DEKs with them.
//
// Invariants: of the keys made for one attempt of a rotation one owns its alias,
// for KMS gives an alias out once; nothing here schedules a deletion; every unwrap
// names the whole encryption context and, but for [Wrapper.Identify], which returns
// no plaintext, the KEK, so that KMS never picks a key by what a blob says; no
// plaintext, blob or context ever gets into an error.
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

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi/types"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// AdminAPI is what [Admin] uses of the KMS client.
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

// TagAPI is what [Admin] uses of the Resource Groups Tagging client. KMS itself
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

var _ rotation.KeyAdmin = (*Admin)(nil)

// Admin mints and disables the KEKs of one stack. It is safe for concurrent use.
type Admin struct {
	client AdminAPI
	tags   TagAPI
	stack  string
	life   string
}

// NewAdmin returns the key administration of a stack with its control table. Aliases and
// keys outlive a stack, and a rotation of a later stack may have the name of one of before:
// the table, which CloudFormation names anew, tells them apart.
func NewAdmin(client AdminAPI, tags TagAPI, stack, table string) *Admin {
	sum := sha256.Sum256([]byte(table))
	return &Admin{client: client, tags: tags, stack: stack, life: hex.EncodeToString(sum[:4])}
}

// Create implements [rotation.KeyAdmin]. A request whose answer is lost may leave a
// key behind, tagged, which the sweep over [Admin.Tagged] finds.
//
// KMS refuses a key policy under which the caller could not change it again, unless it
// is told to bypass that check; whether the caller's IAM policies count, its
// documentation does not say, but users report it. Whoever mints must not change key
// policies, so the check is bypassed: the account's administrators can change this one
// (KMS API reference, CreateKey, BypassPolicyLockoutSafetyCheck). A multi-Region key
// also takes the permission iam:CreateServiceLinkedRole, until the account has the
// role of AWS KMS that synchronises such keys (KMS developer guide, "Create
// multi-Region primary keys").
func (a *Admin) Create(ctx context.Context, rotationID string, attempt int, label string, old rotation.Key) (rotation.Key, error) {
	policy, err := KeyPolicy(old)
	if err != nil {
		return rotation.Key{}, err
	}
	out, err := a.client.CreateKey(ctx, &kms.CreateKeyInput{
		Description: aws.String(a.made() + label + fmt.Sprintf(" (rotation %s, attempt %d%s", rotationID, attempt, a.ofLife())),
		KeySpec:     types.KeySpecSymmetricDefault, KeyUsage: types.KeyUsageTypeEncryptDecrypt,
		MultiRegion: &old.Multi, Policy: &policy, BypassPolicyLockoutSafetyCheck: true,
		Tags: []types.Tag{
			tag(TagStack, a.stack), tag(TagRotation, rotationID), tag(TagAttempt, strconv.Itoa(attempt)), tag(TagLabel, label),
		},
	})
	if err != nil {
		return rotation.Key{}, wrap("CreateKey", err)
	}
	return keyOf(out.KeyMetadata)
}

// made begins the description of each key of this stack.
func (a *Admin) made() string { return "KEK of " + a.stack + ", " }

func (a *Admin) ofLife() string { return ", table " + a.life + ")" }

// madeFor reports whether a description is the one that Create gave a key of a rotation.
func (a *Admin) madeFor(rotationID, description string) bool {
	return strings.HasPrefix(description, a.made()) && strings.Contains(description, " (rotation "+rotationID+", attempt ") &&
		strings.HasSuffix(description, a.ofLife())
}

func tag(name, value string) types.Tag { return types.Tag{TagKey: &name, TagValue: &value} }

// errUnseen reports an alias that is taken but whose owner KMS does not show yet.
var errUnseen = errors.New("the alias is taken, and KMS does not show its owner yet")

// Claim implements [rotation.KeyAdmin]. CreateAlias is the arbiter; a claim that is
// repeated because its answer was lost finds its own key to be the owner. KMS is
// eventually consistent: a loser that cannot see the owner yet gets an error that
// is worth another try, never an answer that there is none. A key that was made a moment
// ago may not be found yet: asking again at once is better than a failure, after which the
// step makes another key.
func (a *Admin) Claim(ctx context.Context, rotationID string, attempt int, id kek.ID) (kek.ID, error) {
	alias := fmt.Sprintf("%s%s/%s/%d", a.aliasPrefix(), a.life, rotationID, attempt)
	if id != "" {
		_, err := a.client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: aws.String(string(id))}, repeatNotFound)
		if err == nil {
			return id, nil
		}
		var taken *types.AlreadyExistsException
		if !errors.As(err, &taken) {
			return "", wrap("CreateAlias "+alias+" for "+string(id), err)
		}
	}
	owner, err := a.Describe(ctx, kek.ID(alias))
	switch {
	case err == nil:
		return owner.ID, nil
	case !errors.Is(err, rotation.ErrNoKey):
		return "", err
	case id != "":
		return "", fmt.Errorf("kms DescribeKey %s: %w", alias, errUnseen)
	}
	return "", nil
}

// repeatNotFound has the SDK repeat a call that does not find its key.
func repeatNotFound(o *kms.Options) {
	o.Retryer = retry.AddWithErrorCodes(o.Retryer, (*types.NotFoundException)(nil).ErrorCode())
}

// aliasPrefix begins the aliases of the stack's KEKs.
func (a *Admin) aliasPrefix() string { return "alias/matter/kek/" + a.stack + "/" }

// Describe implements [rotation.KeyAdmin].
func (a *Admin) Describe(ctx context.Context, id kek.ID) (rotation.Key, error) {
	key, _, err := a.describe(ctx, id)
	return key, err
}

// describe also returns what KMS says of a multi-Region key's replicas, nil for
// another key.
func (a *Admin) describe(ctx context.Context, id kek.ID) (rotation.Key, *types.MultiRegionConfiguration, error) {
	out, err := a.client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String(string(id))})
	if err != nil {
		return rotation.Key{}, nil, wrap("DescribeKey "+string(id), err)
	}
	key, err := keyOf(out.KeyMetadata)
	if err != nil {
		return rotation.Key{}, nil, err
	}
	return key, out.KeyMetadata.MultiRegionConfiguration, nil
}

func keyOf(m *types.KeyMetadata) (rotation.Key, error) {
	if m == nil || aws.ToString(m.KeyId) == "" {
		return rotation.Key{}, errors.New("kms: the answer describes no key")
	}
	k := rotation.Key{
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

// Disable implements [rotation.KeyAdmin]. A key that somebody has scheduled for
// deletion cannot be disabled any more and need not be: it does nothing, and is
// disabled if the deletion is cancelled.
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
	return wrap("DisableKey "+string(id), err)
}

// Tagged implements [rotation.KeyAdmin]. A new key takes a while to be listed.
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
			return nil, awserr.Wrap("tagging GetResources", err)
		}
		for _, r := range page.ResourceTagMappingList {
			arn := aws.ToString(r.ResourceARN)
			_, id, ok := strings.Cut(arn, ":key/")
			if !ok {
				return nil, fmt.Errorf("tagging GetResources: %q is no KMS key", arn)
			}
			ours, err := a.ours(ctx, rotationID, id)
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

// ours reports whether a key that carries a rotation's tags was made for it. Tags are
// copied, by a template or a person, onto keys that have nothing to do with it, and what
// Tagged returns may be disabled. A description is given at CreateKey, and whoever may
// only tag keys cannot change it.
func (a *Admin) ours(ctx context.Context, rotationID, id string) (bool, error) {
	out, err := a.client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id})
	var gone *types.NotFoundException
	switch {
	case errors.As(err, &gone): // the listing lags
		return false, nil
	case err != nil:
		return false, wrap("DescribeKey "+id, err)
	}
	return out.KeyMetadata != nil && a.madeFor(rotationID, aws.ToString(out.KeyMetadata.Description)), nil
}
