package awskms_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/localaws/iam"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

// minted returns the key policy that CreateKey is sent for a key that follows old.
func minted(t *testing.T, old keyring.Key) (document string) {
	t.Helper()
	d, admin := doubled()
	d.keys["new"] = &types.KeyMetadata{KeyId: aws.String("k")}
	if _, err := admin.Create(t.Context(), "r", 1, "l", old); err != nil {
		t.Fatal(err)
	}
	if !d.create.BypassPolicyLockoutSafetyCheck {
		t.Error("KMS checks whether the caller may change the policy, and mint may not")
	}
	return aws.ToString(d.create.Policy)
}

// TestNewKeyPolicy: a new KEK is administered and used as the account's IAM policies
// say. Nobody, whatever IAM allows, schedules its deletion or grants it before the
// policy is changed, and the policy can be changed.
func TestNewKeyPolicy(t *testing.T) {
	for partition, region := range map[string]string{"aws": "eu-central-1", "aws-us-gov": "us-gov-west-1", "aws-cn": "cn-north-1"} {
		for _, multi := range []bool{false, true} {
			document := minted(t, keyring.Key{ARN: fmt.Sprintf("arn:%s:kms:%s:123456789012:key/old", partition, region), Multi: multi})
			var parsed struct {
				Version   string
				Statement []struct {
					Sid, Effect, Resource string
					Principal             map[string]string
					Action                []string
				}
			}
			if err := json.Unmarshal([]byte(document), &parsed); err != nil {
				t.Fatal(err)
			}
			root := map[string]string{"AWS": "arn:" + partition + ":iam::123456789012:root"}
			for _, s := range parsed.Statement {
				if d := cmp.Diff(root, s.Principal); d != "" || s.Effect != "Allow" || s.Resource != "*" || s.Sid == "" {
					t.Errorf("%+v (-want +got):\n%s", s, d)
				}
				for _, a := range s.Action {
					if strings.Contains(a, "*") {
						t.Errorf("%s has %s: write the actions out", s.Sid, a)
					}
				}
			}
			p, err := iam.Parse("key", []byte(document))
			if err != nil {
				t.Fatal(err)
			}
			for action, want := range map[string]bool{
				"Decrypt": true, "Encrypt": true, "GenerateDataKey": true, "GenerateDataKeyWithoutPlaintext": true, "ReEncryptFrom": true, "ReEncryptTo": true,
				"DescribeKey": true, "GetKeyPolicy": true, "GetKeyLastUsage": true, "ListGrants": true, "DisableKey": true, "EnableKey": true, "CreateAlias": true,
				"TagResource": true, "PutKeyPolicy": true, "CancelKeyDeletion": true, "RevokeGrant": true, "ReplicateKey": multi, "UpdatePrimaryRegion": multi,
				"ScheduleKeyDeletion": false, "CreateGrant": false, "Sign": false, "GenerateMac": false, "GenerateDataKeyPair": false,
				"DeleteImportedKeyMaterial": false, "ImportKeyMaterial": false, "DeriveSharedSecret": false,
			} {
				got, _ := iam.Decide([]iam.Policy{p}, iam.Access{Action: "kms:" + action, Resource: "arn:aws:kms:eu-central-1:123456789012:key/new"})
				if (got == iam.Allowed) != want {
					t.Errorf("%s, multi-Region %t: %s is allowed: %t", partition, multi, action, !want)
				}
			}
		}
	}
}

// TestNewKeyPolicyWrittenOut: the policy of a minted KEK, word for word, for the person who reviews
// it: an action more or less is a change of this file.
func TestNewKeyPolicyWrittenOut(t *testing.T) {
	for file, multi := range map[string]bool{"key-policy.json": false, "key-policy-multi-region.json": true} {
		var got bytes.Buffer
		if err := json.Indent(&got, []byte(minted(t, keyring.Key{ARN: "arn:aws:kms:eu-central-1:123456789012:key/old", Multi: multi})), "", "  "); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("testdata", file))
		if d := cmp.Diff(strings.TrimSpace(string(want)), got.String()); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", file, err, d)
		}
	}
}

// TestPolicyUnread: a policy that cannot be read is not a policy without differences.
func TestPolicyUnread(t *testing.T) {
	for _, op := range []string{"DescribeKey", "GetKeyPolicy"} {
		d, admin := doubled()
		d.keys["k"] = &types.KeyMetadata{KeyId: aws.String("k"), Arn: aws.String("arn:aws:kms:eu-central-1:123456789012:key/k")}
		d.fail[op] = refused("AccessDeniedException")
		if got, err := admin.PolicyDifferences(t.Context(), "k"); !errors.Is(err, journal.ErrDenied) || got != nil {
			t.Errorf("%s denied: %v, %v", op, got, err)
		}
	}
}

// TestNewKeyLacksNothingOfANewKey: the key that follows a key of ours has all that it
// has, so that no rotation warns of its own policy.
func TestNewKeyLacksNothingOfANewKey(t *testing.T) {
	for _, multi := range []bool{false, true} {
		document := minted(t, keyring.Key{ARN: old.ARN, Multi: multi})
		use, err := useOf(
			t, script("GetKeyPolicy", func(map[string]any) any { return m{"Policy": document} }),
			script("DescribeKey", func(map[string]any) any {
				return m{"KeyMetadata": m{"KeyId": "k", "Arn": old.ARN, "MultiRegion": multi}}
			}),
		)
		if err != nil || len(use.Policy) != 0 {
			t.Errorf("multi-Region %t: %v, %v", multi, use.Policy, err)
		}
	}
}

// TestPolicyDifferences: order, case, lists of one and the names of statements say nothing;
// whatever lets somebody do more, or less, is named.
func TestPolicyDifferences(t *testing.T) {
	document := minted(t, old)
	var base struct{ Statement []m }
	if err := json.Unmarshal([]byte(document), &base); err != nil {
		t.Fatal(err)
	}
	actions := slices.Concat(base.Statement[0]["Action"].([]any), base.Statement[1]["Action"].([]any))
	allow := func(principal, action any) m {
		return m{"Effect": "Allow", "Principal": m{"AWS": principal}, "Action": action, "Resource": "*"}
	}
	const account = "arn:aws:iam::123456789012:root"
	slices.Reverse(actions)
	for name, c := range map[string]struct {
		statements any
		want       []string
	}{
		"as it was made":          {base.Statement, nil},
		"in one statement":        {allow([]any{"123456789012"}, actions), nil},
		"in capitals":             {[]any{base.Statement[0], allow(account, []any{"KMS:decrypt", "kms:encrypt", "kms:generatedatakey", "kms:generatedatakeywithoutplaintext", "kms:reencryptfrom", "kms:reencryptto"})}, nil},
		"somebody may destroy it": {[]any{base.Statement[0], base.Statement[1], allow(account, "kms:ScheduleKeyDeletion")}, []string{"it has statement 3 (kms:ScheduleKeyDeletion)"}},
		"a role may destroy it":   {[]any{base.Statement[0], base.Statement[1], allow("arn:aws:iam::123456789012:role/r", "kms:ScheduleKeyDeletion")}, []string{"it has statement 3"}},
		"another account uses it": {[]any{base.Statement[0], base.Statement[1], allow("arn:aws:iam::210987654321:root", "kms:Decrypt")}, []string{"it has statement 3"}},
		"nobody may change it":    {[]any{base.Statement[1], allow(account, slices.DeleteFunc(slices.Clone(actions), func(a any) bool { return a == "kms:PutKeyPolicy" }))}, []string{"it lacks kms:PutKeyPolicy"}},
		"a denial":                {[]any{base.Statement[0], base.Statement[1], m{"Sid": "No", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}}, []string{"it has No"}},
		"under a condition":       {[]any{base.Statement[0], m{"Sid": "Use", "Effect": "Allow", "Principal": m{"AWS": account}, "Action": base.Statement[1]["Action"], "Resource": "*", "Condition": m{"Bool": m{"aws:MultiFactorAuthPresent": "true"}}}}, []string{"it has Use", "it lacks kms:Decrypt", "it lacks kms:Encrypt", "it lacks kms:GenerateDataKey", "it lacks kms:GenerateDataKeyWithoutPlaintext", "it lacks kms:ReEncryptFrom", "it lacks kms:ReEncryptTo"}},
	} {
		text, err := json.Marshal(m{"Statement": c.statements})
		if err != nil {
			t.Fatal(err)
		}
		got, err := service(mototest.Config(
			t, script("DescribeKey", func(map[string]any) any { return m{"KeyMetadata": m{"KeyId": "k", "Arn": old.ARN}} }),
			script("GetKeyPolicy", func(map[string]any) any { return m{"Policy": string(text)} }),
		)).Keys.PolicyDifferences(t.Context(), "k")
		if d := cmp.Diff(c.want, got); err != nil || d != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
}

// TestNoAccountNoKey: without an account to name in its policy no key is made.
func TestNoAccountNoKey(t *testing.T) {
	d, admin := doubled()
	d.keys["new"] = &types.KeyMetadata{KeyId: aws.String("k")}
	if k, err := admin.Create(t.Context(), "r", 1, "l", keyring.Key{}); err == nil || k != (keyring.Key{}) || d.create != nil {
		t.Errorf("%v, %v", k, err)
	}
}
