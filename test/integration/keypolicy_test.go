package integration

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/kek"
)

// TestForeignKeyPolicy: a new KEK that one role may schedule for deletion is refused before
// the switch, by hand and by the function, under the function's role. The rotation rolls back.
func TestForeignKeyPolicy(t *testing.T) {
	w := up(t, nil)
	sh := w.shell(nil)
	var minted struct {
		New string `json:"new_kek_id"`
	}
	sh.decode(t, &minted, 0, "kms-mint-kek", "--label", "foreign")
	client := kms.NewFromConfig(w.AWSConfig())
	got, err := client.GetKeyPolicy(t.Context(), &kms.GetKeyPolicyInput{KeyId: &minted.New, PolicyName: aws.String("default")})
	if err != nil {
		t.Fatal(err)
	}
	var policy struct {
		Version   string
		Statement []any
	}
	if err := json.Unmarshal([]byte(aws.ToString(got.Policy)), &policy); err != nil {
		t.Fatal(err)
	}
	policy.Statement = append(policy.Statement, map[string]any{
		"Sid": "Destroy", "Effect": "Allow", "Principal": map[string]any{"AWS": "arn:aws:iam::123456789012:role/janitor"},
		"Action": "kms:ScheduleKeyDeletion", "Resource": "*",
	})
	b, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.PutKeyPolicy(t.Context(), &kms.PutKeyPolicyInput{KeyId: &minted.New, PolicyName: aws.String("default"), Policy: aws.String(string(b))}); err != nil {
		t.Fatal(err)
	}
	before := w.view(t, "").Pointer
	const says = "its key policy is not the one that mint gives a KEK: it has Destroy"
	if said := sh.matter(t, "kms-dual-unwrap", "--kek-id", minted.New); said.exit != 1 || !strings.Contains(said.String(), says) {
		t.Errorf("by hand: exit %d, %s", said.exit, said)
	}
	o := w.rotate(t, "resumed", `{"resume":"foreign"}`)
	if o.Error != "KeyUnusable" || !strings.Contains(o.Cause, says) || !slices.Contains(o.States, "RolledBack") {
		t.Error(describe(o))
	}
	if v := w.view(t, "foreign"); v.Rotation.Phase != kek.RolledBack || *v.Pointer != *before || v.Lock != "" {
		t.Errorf("%+v, pointer %+v, lock %q", v.Rotation, v.Pointer, v.Lock)
	}
	w.mustHold(t)
}
