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
	"github.com/matter-ops/kms-rotation/rotation"
)

// The actions that the key policy of a new KEK lets the account's IAM policies grant.
// What is in neither list nobody may do before somebody has changed the policy, which
// CloudTrail shows: ScheduleKeyDeletion and CreateGrant above all
// (docs/adr/0013-key-policy.md).
var (
	administration = []string{
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
	ofMultiRegion = []string{"kms:ReplicateKey", "kms:UpdatePrimaryRegion"}

	// Encrypt is for applications that wrap data keys, or whole payloads, by themselves.
	use = []string{
		"kms:Decrypt",
		"kms:Encrypt",
		"kms:GenerateDataKey",
		"kms:GenerateDataKeyWithoutPlaintext",
		"kms:ReEncryptFrom",
		"kms:ReEncryptTo",
	}
)

type object = map[string]any

// KeyPolicy is the key policy of a KEK that follows old: the account's IAM policies
// say who administers it and who uses it, each within the lists above. The principal is
// the account, in old's partition: a role that is named in a key policy is lost to it
// when the role is made anew, and applications' roles are not known here.
func KeyPolicy(old rotation.Key) (string, error) {
	root, err := rootOf(old.ARN)
	if err != nil {
		return "", err
	}
	statement := func(sid string, actions []string) object {
		return object{"Sid": sid, "Effect": "Allow", "Principal": object{"AWS": root}, "Action": actions, "Resource": "*"}
	}
	b, err := json.Marshal(object{"Version": "2012-10-17", "Statement": []object{
		statement("AccountAdministers", administrationOf(old.Multi)), statement("AccountUses", use),
	}})
	return string(b), err
}

func administrationOf(multiRegion bool) []string {
	if multiRegion {
		return slices.Concat(administration, ofMultiRegion)
	}
	return administration
}

// rootOf is the principal that stands for the account of a key.
func rootOf(keyARN string) (string, error) {
	key, err := arn.Parse(keyARN)
	if err != nil {
		return "", fmt.Errorf("the account of KMS key %q is not known: %w", keyARN, err)
	}
	return "arn:" + key.Partition + ":iam::" + key.AccountID + ":root", nil
}

// readPolicy returns the key policy of a key and the account that its ARN is of.
func (a *Admin) readPolicy(ctx context.Context, key rotation.Key) (keyPolicy, error) {
	op := "GetKeyPolicy " + string(key.ID)
	out, err := a.client.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: aws.String(string(key.ID)), PolicyName: aws.String("default")})
	if err != nil {
		return keyPolicy{}, wrap(op, err)
	}
	p, err := parseKeyPolicy(aws.ToString(out.Policy), key)
	if err != nil {
		return p, fmt.Errorf("kms %s: read the policy: %w", op, err)
	}
	return p, nil
}

// PolicyDifferences implements [rotation.KeyAdmin].
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
	for _, action := range slices.Concat(administrationOf(key.Multi), use) {
		if !containsAction(p.granted, action) {
			out = append(out, "it lacks "+action)
		}
	}
	return out, nil
}

// keyPolicy is a key policy as it compares with the one that a key made by [Admin.Create]
// has.
type keyPolicy struct {
	// beyond are the statements that such a key would not have, by Sid, or by number where
	// there is none. A statement that lets the account's IAM policies grant actions is here
	// only if such a key leaves some of them out, which are named.
	beyond  []string
	granted []string // actions that it lets the account's IAM policies grant
}

func parseKeyPolicy(document string, key rotation.Key) (keyPolicy, error) {
	var out keyPolicy
	root, err := rootOf(key.ARN)
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
			return out, fmt.Errorf("statement %d is no object", i+1)
		}
		sid, _ := statement["Sid"].(string)
		name := cmp.Or(sid, fmt.Sprintf("statement %d", i+1))
		if actions, ok := delegated(statement, root); ok {
			out.granted = append(out.granted, actions...)
			missing := leftOut(actions, key.Multi)
			if missing == "" {
				continue
			}
			name += " (" + missing + ")"
		}
		out.beyond = append(out.beyond, name)
	}
	return out, nil
}

// delegated returns the actions of a statement, whatever its Sid, that lets the
// account's IAM policies grant them and says nothing else.
func delegated(statement object, root string) ([]string, bool) {
	got := object{}
	for name, value := range statement {
		if name != "Sid" {
			got[name] = unlist(value)
		}
	}
	principal, _ := got["Principal"].(object)
	if account := strings.Split(root, ":")[4]; len(principal) == 1 {
		if got["Principal"] = unlist(principal["AWS"]); got["Principal"] == account { // short for its root
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

// leftOut says which of some actions the policy of a new key does not let IAM policies
// grant, "" for none.
func leftOut(actions []string, multiRegion bool) string {
	kept := slices.Concat(administrationOf(multiRegion), use)
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

// containsAction reports whether an action is listed; IAM's actions have no case.
func containsAction(list []string, action string) bool {
	return slices.ContainsFunc(list, func(a string) bool { return strings.EqualFold(a, action) })
}

// unlist takes a value out of a list of one, which says the same in a policy.
func unlist(value any) any {
	if list, _ := value.([]any); len(list) == 1 {
		return list[0]
	}
	return value
}
