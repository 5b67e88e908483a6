package awskms

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Use implements [rotation.KeyAdmin]. Aliases of this stack's KEKs are left out;
// those of another stack's are somebody else's. KMS is eventually consistent: what
// was granted or used a moment ago may be missing.
func (a *Admin) Use(ctx context.Context, id kek.ID) (rotation.KeyUse, error) {
	key, regions, err := a.describe(ctx, id)
	if err != nil {
		return rotation.KeyUse{}, err
	}
	use := rotation.KeyUse{MultiRegion: key.Multi}
	if regions != nil && regions.MultiRegionKeyType == types.MultiRegionKeyTypePrimary {
		for _, r := range regions.ReplicaKeys {
			use.Replicas = append(use.Replicas, aws.ToString(r.Region))
		}
		slices.Sort(use.Replicas)
	}
	if use.Grants, err = a.listGrants(ctx, key.ID); err != nil {
		return rotation.KeyUse{}, err
	}
	if use.Aliases, err = a.listForeignAliases(ctx, key.ID); err != nil {
		return rotation.KeyUse{}, err
	}
	policy, err := a.readPolicy(ctx, key)
	if err != nil {
		return rotation.KeyUse{}, err
	}
	use.Policy = policy.beyond
	if err := a.readLastUsage(ctx, key.ID, &use); err != nil {
		return rotation.KeyUse{}, err
	}
	return use, nil
}

func (a *Admin) listGrants(ctx context.Context, id kek.ID) ([]string, error) {
	pages := kms.NewListGrantsPaginator(a.client, &kms.ListGrantsInput{KeyId: aws.String(string(id))})
	var lines []string
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, wrap("ListGrants "+string(id), err)
		}
		for _, g := range page.Grants {
			lines = append(lines, describeGrant(g))
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// describeGrant is a grant in one line, which follows the word "grant": the grantee,
// the operations, the constraints if any, and what revokes it.
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

// nameContext lists the names in a grant's encryption context, and the values of
// those that AWS reserves: they say which table or volume a service has the grant
// for. Other values are an application's own business.
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

func (a *Admin) listForeignAliases(ctx context.Context, id kek.ID) ([]string, error) {
	pages := kms.NewListAliasesPaginator(a.client, &kms.ListAliasesInput{KeyId: aws.String(string(id))})
	var names []string
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, wrap("ListAliases "+string(id), err)
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

// unknownOperations are the codes with which an endpoint says that it has no such
// operation. InvalidAction is the one among the common errors of the AWS KMS API reference.
var unknownOperations = map[string]bool{
	"InvalidAction": true, "UnknownOperationException": true, "UnknownOperation": true, "UnsupportedOperationException": true, "UnsupportedOperation": true,
}

// readLastUsage fills in the last use of a key. KMS has GetKeyLastUsage since April
// 2026 (AWS KMS API reference, GetKeyLastUsage and KeyLastUsageData): the last
// successful cryptographic operation, ReEncrypt for both its keys; an empty object if
// there was none since KMS began to keep it. Endpoints that are older leave use as it
// is.
func (a *Admin) readLastUsage(ctx context.Context, id kek.ID, use *rotation.KeyUse) error {
	out, err := a.client.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: aws.String(string(id))})
	if unknownOperations[awserr.Code(err)] {
		return nil
	}
	if err != nil {
		return wrap("GetKeyLastUsage "+string(id), err)
	}
	if last := out.KeyLastUsage; last != nil {
		use.LastUse, use.LastUseAt = string(last.Operation), aws.ToTime(last.Timestamp)
		use.LastUseBy = aws.ToString(last.CloudTrailEventId)
	}
	return nil
}
