package access

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/matter-ops/kms-rotation/test/localaws/iam"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// kmsRequest is what requests of KMS say that authorisation is about.
type kmsRequest struct {
	KeyId, TargetKeyId, SourceKeyId, DestinationKeyId string //nolint:revive // the names on the wire
	AliasName                                         string
	CiphertextBlob                                    []byte
	EncryptionContext                                 map[string]string
	SourceEncryptionContext                           map[string]string
	DestinationEncryptionContext                      map[string]string
	KeySpec, CustomerMasterKeySpec, KeyUsage          string
	MultiRegion                                       bool
	SigningAlgorithm, MessageType, MacAlgorithm       string
	Tags                                              []struct{ TagKey, TagValue string }
}

func (d Reader) kms(r *http.Request, c wire.Call) ([]iam.Access, error) {
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, err
	}
	var in kmsRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	ctx := r.Context()
	switch c.Operation {
	case "ListAliases", "ListKeys", "GenerateRandom":
		return []iam.Access{{Action: "kms:" + c.Operation, Resource: "*"}}, nil
	case "CreateKey":
		return d.createKey(in), nil
	case "ReEncrypt":
		from, err := d.key(ctx, "ReEncryptFrom", cmp.Or(in.SourceKeyId, wrappedUnder(in.CiphertextBlob)), in.SourceEncryptionContext)
		if err != nil {
			return nil, err
		}
		to, err := d.key(ctx, "ReEncryptTo", in.DestinationKeyId, in.DestinationEncryptionContext)
		return []iam.Access{from, to}, err
	case "CreateAlias", "DeleteAlias", "UpdateAlias":
		return d.alias(ctx, c.Operation, in)
	}
	a, err := d.key(ctx, c.Operation, cmp.Or(in.KeyId, wrappedUnder(in.CiphertextBlob)), in.EncryptionContext)
	if err != nil {
		return nil, err
	}
	if c.Operation == "TagResource" {
		tags(a.Context, in.tags())
	}
	for key, value := range map[string]string{"kms:signingalgorithm": in.SigningAlgorithm, "kms:messagetype": in.MessageType, "kms:macalgorithm": in.MacAlgorithm} {
		if value != "" {
			a.Context[key] = []string{value}
		}
	}
	return []iam.Access{a}, nil
}

func (in kmsRequest) tags() map[string]string {
	out := map[string]string{}
	for _, t := range in.Tags {
		out[t.TagKey] = t.TagValue
	}
	return out
}

// wrappedUnder is the key that moto wrapped a ciphertext under: its id comes first.
func wrappedUnder(ciphertext []byte) string {
	const idBytes = 36
	if len(ciphertext) < idBytes {
		return ""
	}
	return string(ciphertext[:idBytes])
}

// key is the access of an operation on a key.
func (d Reader) key(ctx context.Context, operation, id string, encryption map[string]string) (iam.Access, error) {
	k, err := d.Key(ctx, id)
	if err != nil {
		return iam.Access{}, err
	}
	if k.ARN == "" { // denied or not found: both are KMS's answers
		k.ARN = d.arn("kms", "key/"+id)
	}
	a := iam.Access{Action: "kms:" + operation, Resource: k.ARN, Context: map[string][]string{}}
	for name, value := range k.Tags {
		a.Context["aws:resourcetag/"+strings.ToLower(name)] = []string{value}
	}
	if len(k.Aliases) > 0 {
		a.Context["kms:resourcealiases"] = k.Aliases
	}
	for name, value := range encryption {
		a.Context["kms:encryptioncontext:"+strings.ToLower(name)] = []string{value}
		a.Context["kms:encryptioncontextkeys"] = append(a.Context["kms:encryptioncontextkeys"], name)
	}
	return a, nil
}

// createKey is authorised without a resource; its tags as those of some key. Who makes
// a multi-Region key must be allowed to make the role by which KMS synchronises it (KMS
// developer guide, "Create multi-Region primary keys"); whether KMS still asks once the
// role is there, the guide does not say: here it does.
func (d Reader) createKey(in kmsRequest) []iam.Access {
	keys := map[string][]string{
		"kms:keyspec":  {cmp.Or(in.KeySpec, in.CustomerMasterKeySpec, "SYMMETRIC_DEFAULT")},
		"kms:keyusage": {cmp.Or(in.KeyUsage, "ENCRYPT_DECRYPT")},
	}
	tags(keys, in.tags())
	out := []iam.Access{{Action: "kms:CreateKey", Resource: "*", Context: keys}}
	if len(in.Tags) > 0 {
		tagged := map[string][]string{}
		tags(tagged, in.tags())
		out = append(out, iam.Access{Action: "kms:TagResource", Resource: d.arn("kms", "key/new"), Context: tagged})
	}
	if in.MultiRegion {
		const service = "mrk.kms.amazonaws.com"
		out = append(out, iam.Access{
			Action:   "iam:CreateServiceLinkedRole",
			Resource: "arn:aws:iam::" + d.Account + ":role/aws-service-role/" + service + "/AWSServiceRoleForKeyManagementServiceMultiRegionKeys",
			Context:  map[string][]string{"iam:awsservicename": {service}},
		})
	}
	return out
}

// alias is authorised on the alias and on every key that it names or named.
func (d Reader) alias(ctx context.Context, operation string, in kmsRequest) ([]iam.Access, error) {
	out := []iam.Access{{Action: "kms:" + operation, Resource: d.arn("kms", in.AliasName)}}
	ids := []string{in.TargetKeyId}
	if operation != "CreateAlias" {
		ids = append(ids, in.AliasName)
	}
	for _, id := range ids {
		if id == "" {
			continue
		}
		a, err := d.key(ctx, operation, id, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}
