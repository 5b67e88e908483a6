package acceptance

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi/types"
)

// Prefix begins the names of the stacks of acceptance runs. [Clean] touches nothing else.
const Prefix = "matter-acceptance-"

// pendingDays is how long KMS waits before it deletes a key: the least there is.
const pendingDays = 7

// Left is what a run leaves: the environments of the stacks that it had.
type Left struct {
	Stack         string
	ControlTables []string
	Buckets       []string
	AnchorKeys    []string
}

// Clean removes what a run has left beside its stack: tables, and keys by scheduling their
// deletion. It goes on after a failure and returns a line for each thing: removed, or left
// and why.
func Clean(ctx context.Context, cfg aws.Config, left Left) ([]string, error) {
	if !strings.HasPrefix(left.Stack, Prefix) {
		return nil, fmt.Errorf("stack %q is none of an acceptance run: its name does not begin with %s", left.Stack, Prefix)
	}
	var lines []string
	say := func(what string, err error) {
		if err != nil {
			what = "left: " + what + ": " + err.Error()
		}
		lines = append(lines, what)
	}
	dynamo, keys := dynamodb.NewFromConfig(cfg), kms.NewFromConfig(cfg)
	for _, name := range append([]string{left.Stack + "-orders", left.Stack + "-letters"}, left.ControlTables...) {
		if slices.Contains(left.ControlTables, name) {
			// Without it the deletion says why it is refused.
			_, _ = dynamo.UpdateTable(ctx, &dynamodb.UpdateTableInput{TableName: &name, DeletionProtectionEnabled: aws.Bool(false)})
		}
		_, err := dynamo.DeleteTable(ctx, &dynamodb.DeleteTableInput{TableName: &name})
		say("table "+name, err)
	}
	ids, err := tagged(ctx, cfg, left.Stack)
	if err != nil {
		say("KEKs", err)
	}
	for _, id := range ids {
		say(fmt.Sprintf("KEK %s, deleted in %d days", id, pendingDays), removeKey(ctx, keys, id))
	}
	for _, id := range left.AnchorKeys {
		say(fmt.Sprintf("anchor key %s, deleted in %d days", id, pendingDays), removeKey(ctx, keys, id))
	}
	say("aliases", removeAliases(ctx, keys, "alias/matter/kek/"+left.Stack+"/"))
	for _, b := range left.Buckets {
		lines = append(lines, fmt.Sprintf("left: bucket %s, locked for a day: then aws s3api delete-objects for its versions, and aws s3 rb s3://%[1]s", b))
	}
	return lines, nil
}

// tagged lists the KEKs of a stack. Only mint and genesis tag keys so.
func tagged(ctx context.Context, cfg aws.Config, stack string) ([]string, error) {
	pages := resourcegroupstaggingapi.NewGetResourcesPaginator(resourcegroupstaggingapi.NewFromConfig(cfg), &resourcegroupstaggingapi.GetResourcesInput{
		ResourceTypeFilters: []string{"kms:key"}, TagFilters: []tagging.TagFilter{{Key: aws.String("matter:stack"), Values: []string{stack}}},
	})
	var ids []string
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return ids, err
		}
		for _, r := range page.ResourceTagMappingList {
			if _, id, ok := strings.Cut(aws.ToString(r.ResourceARN), ":key/"); ok {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// removeKey gives a key a policy that lets the account schedule its deletion, which neither
// mint's nor the template's does, and does so.
func removeKey(ctx context.Context, keys *kms.Client, id string) error {
	d, err := keys.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id})
	if err != nil {
		return err
	}
	id = aws.ToString(d.KeyMetadata.KeyId)
	parts := strings.SplitN(aws.ToString(d.KeyMetadata.Arn), ":", 6)
	if len(parts) < 6 {
		return fmt.Errorf("%q is no ARN", aws.ToString(d.KeyMetadata.Arn))
	}
	policy := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:%s:iam::%s:root"},"Action":"kms:*","Resource":"*"}]}`, parts[1], parts[4])
	if _, err := keys.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &id, PolicyName: aws.String("default"), Policy: &policy}); err != nil {
		return err
	}
	_, err = keys.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: aws.Int32(pendingDays)})
	return err
}

func removeAliases(ctx context.Context, keys *kms.Client, prefix string) error {
	pages := kms.NewListAliasesPaginator(keys, &kms.ListAliasesInput{})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, a := range page.Aliases {
			if strings.HasPrefix(aws.ToString(a.AliasName), prefix) {
				if _, err := keys.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: a.AliasName}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
