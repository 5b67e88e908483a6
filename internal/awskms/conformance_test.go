package awskms_test

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/keystest"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

func TestMain(m *testing.M) { mototest.Main(m) }

var stacks atomic.Int64

// service returns the keys of a fresh stack.
func service(cfg aws.Config) keystest.Service {
	client := kms.NewFromConfig(cfg)
	stack := fmt.Sprintf("stack-%d", stacks.Add(1))
	return keystest.Service{
		Keys: awskms.NewAdmin(client, resourcegroupstaggingapi.NewFromConfig(cfg), stack, "table"),
		KMS:  awskms.NewWrapper(client, nil),
		Grant: func(t *testing.T, id kek.ID, grantee string) {
			_, err := client.CreateGrant(t.Context(), &kms.CreateGrantInput{
				KeyId: aws.String(string(id)), GranteePrincipal: &grantee, Operations: []types.GrantOperation{types.GrantOperationDecrypt},
			})
			done(t, err)
		},
		Alias: func(t *testing.T, id kek.ID, name string) {
			_, err := client.CreateAlias(t.Context(), &kms.CreateAliasInput{TargetKeyId: aws.String(string(id)), AliasName: &name})
			done(t, err)
		},
		Replicate: func(t *testing.T, id kek.ID, region string) {
			_, err := client.ReplicateKey(t.Context(), &kms.ReplicateKeyInput{KeyId: aws.String(string(id)), ReplicaRegion: &region})
			done(t, err)
		},
		SetPolicy: func(t *testing.T, id kek.ID, statements []string) {
			policy, err := client.GetKeyPolicy(t.Context(), &kms.GetKeyPolicyInput{KeyId: aws.String(string(id)), PolicyName: aws.String("default")})
			done(t, err)
			var document struct {
				Version   string
				Statement []any
			}
			done(t, json.Unmarshal([]byte(*policy.Policy), &document))
			for _, sid := range statements {
				document.Statement = append(document.Statement, map[string]any{
					"Sid": sid, "Effect": "Allow", "Principal": map[string]any{"AWS": "arn:aws:iam::210987654321:root"},
					"Action": "kms:Decrypt", "Resource": "*",
				})
			}
			text, err := json.Marshal(document)
			done(t, err)
			_, err = client.PutKeyPolicy(t.Context(), &kms.PutKeyPolicyInput{
				KeyId: aws.String(string(id)), PolicyName: aws.String("default"), Policy: aws.String(string(text)),
			})
			done(t, err)
		},
	}
}

func done(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newService(t *testing.T) keystest.Service {
	t.Helper()
	return service(mototest.Config(t))
}

func TestKeyAdmin(t *testing.T) { keystest.TestKeyAdmin(t, newService) }
func TestWrapper(t *testing.T)  { keystest.TestWrapper(t, newService) }
