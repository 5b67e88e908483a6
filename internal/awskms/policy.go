package awskms

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// The actions that the key policy of a new KEK lets the account's IAM policies grant.
// Nobody can do any other action, above all ScheduleKeyDeletion and CreateGrant, without a
// change of the policy, which CloudTrail shows (docs/adr/0013-key-policy.md).
var (
	adminActions = []string{
		"kms:CancelKeyDeletion",
		"kms:CreateAlias",
		"kms:DeleteAlias",
		"kms:DescribeKey",
		"kms:DisableKey",
		"kms:DisableKeyRotation",
		"kms:EnableKey",
		"kms:EnableKeyRotation",
		"kms:GetKeyLastUsage",
		"kms:GetKeyPolicy",
		"kms:GetKeyRotationStatus",
		"kms:ListGrants",
		"kms:ListKeyPolicies",
		"kms:ListKeyRotations",
		"kms:ListResourceTags",
		"kms:PutKeyPolicy",
		"kms:RevokeGrant",
		"kms:TagResource",
		"kms:UntagResource",
		"kms:UpdateAlias",
		"kms:UpdateKeyDescription",
	}
	multiRegionActions = []string{"kms:ReplicateKey", "kms:UpdatePrimaryRegion"}

	// Applications that wrap data keys, or whole payloads, by themselves need Encrypt.
	useActions = []string{
		"kms:Decrypt",
		"kms:Encrypt",
		"kms:GenerateDataKey",
		"kms:GenerateDataKeyWithoutPlaintext",
		"kms:ReEncryptFrom",
		"kms:ReEncryptTo",
	}
)

type object = map[string]any

// KeyPolicy returns the key policy of a KEK that replaces old. The account's IAM policies
// say who administers and who uses the key, within the lists above. The principal is the
// account, in old's partition. Roles are not named: a key policy refers to a role by its
// internal id, so a role that is deleted and created again loses its access (IAM user
// guide, "AWS JSON policy elements: Principal"), and applications' roles are not known
// here.
func KeyPolicy(old keyring.Key) (string, error) {
	root, err := accountRoot(old.ARN)
	if err != nil {
		return "", err
	}
	statement := func(sid string, actions []string) object {
		return object{"Sid": sid, "Effect": "Allow", "Principal": object{"AWS": root}, "Action": actions, "Resource": "*"}
	}
	b, err := json.Marshal(object{"Version": "2012-10-17", "Statement": []object{
		statement("AccountAdministers", listAdminActions(old.Multi)), statement("AccountUses", useActions),
	}})
	return string(b), err
}

// listAdminActions returns the administrative actions of a key; a multi-Region key has more.
func listAdminActions(multiRegion bool) []string {
	if multiRegion {
		return slices.Concat(adminActions, multiRegionActions)
	}
	return adminActions
}

// accountRoot returns the principal that stands for the account of a key.
func accountRoot(keyARN string) (string, error) {
	key, err := arn.Parse(keyARN)
	if err != nil {
		return "", fmt.Errorf("the account of KMS key %q is not known: %w", keyARN, err)
	}
	return "arn:" + key.Partition + ":iam::" + key.AccountID + ":root", nil
}

// readPolicy returns the key policy of a key and the account that its ARN is of.
func (a *Admin) readPolicy(ctx context.Context, key keyring.Key) (keyPolicy, error) {
	op := "GetKeyPolicy " + string(key.ID)
	out, err := a.client.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: aws.String(string(key.ID)), PolicyName: aws.String("default")})
	if err != nil {
		return keyPolicy{}, classifyError(op, err)
	}
	p, err := parseKeyPolicy(aws.ToString(out.Policy), key)
	if err != nil {
		return p, fmt.Errorf("kms %s: read the policy: %w", op, err)
	}
	return p, nil
}

// PolicyDifferences implements [keyring.Admin].
func (a *Admin) PolicyDifferences(ctx context.Context, id kek.ID) ([]string, error) {
	key, err := a.Describe(ctx, id)
	if err != nil {
		return nil, err
	}
	p, err := a.readPolicy(ctx, key)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range p.beyond {
		out = append(out, "it has "+name)
	}
	for _, action := range slices.Concat(listAdminActions(key.Multi), useActions) {
		if !containsAction(p.granted, action) {
			out = append(out, "it lacks "+action)
		}
	}
	return out, nil
}

// keyPolicy is a key policy compared with the policy that [Admin.Create] sets.
type keyPolicy struct {
	// beyond names the statements that the policy of a new key does not have, by Sid, or by
	// number if there is none. A statement that lets the account's IAM policies grant
	// actions is one of them only if the policy of a new key omits some of these actions,
	// which are named.
	beyond  []string
	granted []string // actions that it lets the account's IAM policies grant
}

// parseKeyPolicy compares the policy of a key with the policy that [Admin.Create] sets.
func parseKeyPolicy(document string, key keyring.Key) (keyPolicy, error) {
	var out keyPolicy
	root, err := accountRoot(key.ARN)
	if err != nil {
		return out, err
	}
	var policy struct{ Statement any }
	if err := json.Unmarshal([]byte(document), &policy); err != nil {
		return out, err
	}
	statements, ok := policy.Statement.([]any)
	if !ok && policy.Statement != nil {
		statements = []any{policy.Statement} // one statement need not be in a list
	}
	for i, s := range statements {
		statement, ok := s.(object)
		if !ok {
			return out, fmt.Errorf("statement %d is not an object", i+1)
		}
		sid, _ := statement["Sid"].(string)
		name := cmp.Or(sid, fmt.Sprintf("statement %d", i+1))
		if actions, ok := delegatedActions(statement, root); ok {
			out.granted = append(out.granted, actions...)
			missing := missingActions(actions, key.Multi)
			if missing == "" {
				continue
			}
			name += " (" + missing + ")"
		}
		out.beyond = append(out.beyond, name)
	}
	return out, nil
}

// delegatedActions returns the actions of a statement that lets the account's IAM policies
// grant them; ok is false if the statement does anything else. Its Sid does not matter.
func delegatedActions(statement object, root string) ([]string, bool) {
	got := object{}
	for name, value := range statement {
		if name != "Sid" {
			got[name] = unwrapList(value)
		}
	}
	principal, _ := got["Principal"].(object)
	if account := strings.Split(root, ":")[4]; len(principal) == 1 {
		if got["Principal"] = unwrapList(principal["AWS"]); got["Principal"] == account { // short for its root
			got["Principal"] = root
		}
	}
	delete(got, "Action")
	if !reflect.DeepEqual(got, object{"Effect": "Allow", "Principal": root, "Resource": "*"}) {
		return nil, false
	}
	var actions []string
	list, ok := statement["Action"].([]any)
	if !ok {
		list = []any{statement["Action"]}
	}
	for _, a := range list {
		action, ok := a.(string)
		if !ok {
			return nil, false
		}
		actions = append(actions, action)
	}
	return actions, true
}

// missingActions returns which of the actions the policy of a new key does not let IAM
// policies grant; "" if there are none.
func missingActions(actions []string, multiRegion bool) string {
	kept := slices.Concat(listAdminActions(multiRegion), useActions)
	var missing []string
	for _, action := range actions {
		if action == "kms:*" {
			return "of kms:* kms:ScheduleKeyDeletion, kms:CreateGrant and whatever else a KEK is not used for"
		}
		if !containsAction(kept, action) {
			missing = append(missing, action)
		}
	}
	return strings.Join(missing, ", ")
}

// containsAction reports whether an action is listed. IAM ignores the case of actions.
func containsAction(list []string, action string) bool {
	return slices.ContainsFunc(list, func(a string) bool { return strings.EqualFold(a, action) })
}

// unwrapList returns the value in a list of one, which means the same in a policy.
func unwrapList(value any) any {
	if list, _ := value.([]any); len(list) == 1 {
		return list[0]
	}
	return value
}
