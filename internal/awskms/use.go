package awskms

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// Use implements [keyring.Admin]. It leaves out aliases of this stack's KEKs; an alias
// of another stack counts as a use by others. KMS is eventually consistent, so the newest
// grants and uses may be missing.
func (a *Admin) Use(ctx context.Context, id kek.ID) (keyring.Use, error) {
	key, regions, err := a.describeKey(ctx, id)
	if err != nil {
		return keyring.Use{}, err
	}
	use := keyring.Use{MultiRegion: key.Multi}
	if regions != nil && regions.MultiRegionKeyType == types.MultiRegionKeyTypePrimary {
		for _, r := range regions.ReplicaKeys {
			use.Replicas = append(use.Replicas, aws.ToString(r.Region))
		}
		slices.Sort(use.Replicas)
	}
	if use.Grants, err = a.listGrants(ctx, key.ID); err != nil {
		return keyring.Use{}, err
	}
	if use.Aliases, err = a.listForeignAliases(ctx, key.ID); err != nil {
		return keyring.Use{}, err
	}
	policy, err := a.readPolicy(ctx, key)
	if err != nil {
		return keyring.Use{}, err
	}
	use.Policy = policy.beyond
	if err := a.readLastUsage(ctx, key.ID, &use); err != nil {
		return keyring.Use{}, err
	}
	return use, nil
}

// listGrants returns the grants on a key, one line each, sorted.
func (a *Admin) listGrants(ctx context.Context, id kek.ID) ([]string, error) {
	pages := kms.NewListGrantsPaginator(a.client, &kms.ListGrantsInput{KeyId: aws.String(string(id))})
	var lines []string
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, classifyError("ListGrants "+string(id), err)
		}
		for _, g := range page.Grants {
			lines = append(lines, describeGrant(g))
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// describeGrant describes a grant in one line, to follow the word "grant": the grantee,
// the operations, the constraints if any, and the id, which revokes it.
func describeGrant(g types.GrantListEntry) string {
	grantee := cmp.Or(aws.ToString(g.GranteePrincipal), aws.ToString(g.GranteeServicePrincipal), "that names no grantee")
	operations := make([]string, len(g.Operations))
	for i, o := range g.Operations {
		operations[i] = string(o)
	}
	line := grantee + " may " + strings.Join(operations, ", ")
	if c := g.Constraints; c != nil {
		if names := append(nameContext(c.EncryptionContextEquals), nameContext(c.EncryptionContextSubset)...); len(names) > 0 {
			line += ", only with context " + strings.Join(names, " ")
		}
		if c.SourceArn != nil {
			line += ", only for " + *c.SourceArn
		}
	}
	if by := cmp.Or(aws.ToString(g.RetiringPrincipal), aws.ToString(g.RetiringServicePrincipal)); by != "" {
		line += ", may be retired by " + by
	}
	return line + ", id " + aws.ToString(g.GrantId)
}

// nameContext returns the names in a grant's encryption context, with the values of those
// that AWS reserves: they say for which table or volume a service has the grant. Other
// values are an application's data and are left out.
func nameContext(encctx map[string]string) []string {
	var names []string
	for name, value := range encctx {
		if strings.HasPrefix(name, "aws:") {
			name += "=" + value
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// listForeignAliases returns the aliases of a key that are not those of this stack's KEKs.
func (a *Admin) listForeignAliases(ctx context.Context, id kek.ID) ([]string, error) {
	pages := kms.NewListAliasesPaginator(a.client, &kms.ListAliasesInput{KeyId: aws.String(string(id))})
	var names []string
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, classifyError("ListAliases "+string(id), err)
		}
		for _, alias := range page.Aliases {
			if name := aws.ToString(alias.AliasName); !strings.HasPrefix(name, a.aliasPrefix()) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// unknownOperations are the codes with which an endpoint answers an operation that it does
// not have. InvalidAction is the one of the KMS API reference, "Common errors".
var unknownOperations = map[string]bool{
	"InvalidAction": true, "UnknownOperationException": true, "UnknownOperation": true, "UnsupportedOperationException": true, "UnsupportedOperation": true,
}

// readLastUsage sets the last use of a key: the last successful cryptographic operation,
// ReEncrypt for both its keys; KMS returns an empty object if there was none since it
// began to record this (KMS API reference, GetKeyLastUsage and KeyLastUsageData). KMS has
// the operation since April 2026; with an older endpoint, use is not changed.
func (a *Admin) readLastUsage(ctx context.Context, id kek.ID, use *keyring.Use) error {
	out, err := a.client.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: aws.String(string(id))})
	if unknownOperations[remote.ErrorCode(err)] {
		return nil
	}
	if err != nil {
		return classifyError("GetKeyLastUsage "+string(id), err)
	}
	if last := out.KeyLastUsage; last != nil {
		use.LastUse, use.LastUseAt = string(last.Operation), aws.ToTime(last.Timestamp)
		use.LastUseBy = aws.ToString(last.CloudTrailEventId)
	}
	return nil
}
