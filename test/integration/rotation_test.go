package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	tagtypes "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

// enabledKEKs lists the KMS keys that carry the stack's tag and are enabled.
func (w *world) enabledKEKs(t *testing.T) []string {
	t.Helper()
	client := resourcegroupstaggingapi.NewFromConfig(w.AWSConfig())
	var out []string
	pages := resourcegroupstaggingapi.NewGetResourcesPaginator(client, &resourcegroupstaggingapi.GetResourcesInput{
		ResourceTypeFilters: []string{"kms:key"},
		TagFilters:          []tagtypes.TagFilter{{Key: aws.String(awskms.TagStack), Values: []string{w.Name}}},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.ResourceTagMappingList {
			arn := aws.ToString(r.ResourceARN)
			k, err := w.Deployment.Steps.Keys.Admin.Describe(t.Context(), kek.ID(arn[strings.LastIndexByte(arn, '/')+1:]))
			if err != nil {
				t.Fatal(err)
			}
			if k.Enabled {
				out = append(out, string(k.ID))
			}
		}
	}
	return out
}

// TestRotation rotates once to the end, as a blank scheduled start does.
func TestRotation(t *testing.T) {
	w := up(t, nil)
	w.traced(t)
	before := w.view(t, "").Pointer
	ledger := w.readRows(t)
	o := w.rotate(t, "green", "{}")
	if o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	v := w.view(t, "green")
	if v.Rotation.Phase != kek.Completed || v.Lock != "" || v.Pointer.Epoch != before.Epoch+1 || v.Pointer.KEKID == before.KEKID {
		t.Errorf("rotation %+v, pointer %+v (before %+v), lock %q", v.Rotation, v.Pointer, before, v.Lock)
	}
	w.mustHold(t)
	w.rowsHold(t, ledger, "green")
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(v.Pointer.KEKID)}) {
		t.Errorf("enabled KMS keys %v, want the pointer's alone", got)
	}
	w.recordsLocked(t)
}

// TestRotationWhileKMSLags: a rotation completes where each host of KMS learns by itself
// of new keys, their tags and disabled keys.
func TestRotationWhileKMSLags(t *testing.T) {
	w := up(t, nil)
	w.SetKMSLag(3 * time.Second)
	before := w.view(t, "").Pointer
	if o := w.rotate(t, "lag", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	v := w.view(t, "lag")
	if v.Rotation.Phase != kek.Completed || v.Pointer.KEKID == before.KEKID {
		t.Errorf("rotation %+v, pointer %+v (before %+v)", v.Rotation, v.Pointer, before)
	}
	w.mustHold(t)
	time.Sleep(4 * time.Second) // until every host has heard of the last change
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(v.Pointer.KEKID)}) {
		t.Errorf("enabled KMS keys %v, want the pointer's alone", got)
	}
}

// TestRollBackWhileKMSLags: a rotation that fails before its switch is rolled back and
// nobody is paged, though its new KEK is disabled before every host of KMS knows of it.
func TestRollBackWhileKMSLags(t *testing.T) {
	w := up(t, nil)
	const lag = 8 * time.Second
	w.SetKMSLag(lag)
	before := w.view(t, "").Pointer
	if _, err := w.Set.CorruptCorpus(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := w.rotate(t, "lag", "{}")
	if o.Status != types.ExecutionStatusFailed || o.Error != "CorpusCorrupted" || slices.Contains(o.States, "HaltedBeforeSwitch") {
		t.Fatal(describe(o))
	}
	if v := w.view(t, "lag"); *v.Pointer != *before || v.Rotation.Phase != kek.RolledBack || v.Lock != "" {
		t.Errorf("pointer %+v, rotation %+v, lock %q", v.Pointer, v.Rotation, v.Lock)
	}
	time.Sleep(lag + time.Second) // until every host has heard of the last change
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(before.KEKID)}) {
		t.Errorf("enabled KMS keys %v, want the old one alone", got)
	}
}

// recordsLocked checks that the bucket holds one version of every record, each
// under COMPLIANCE retention.
func (w *world) recordsLocked(t *testing.T) {
	t.Helper()
	client, bucket := s3.NewFromConfig(w.AWSConfig()), w.Env()["MATTER_AUDIT_BUCKET"]
	_, head, err := w.Deployment.Table.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{
		Bucket: &bucket, Prefix: aws.String("v1/" + w.Name + "/records/"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(out.Versions)) != head.Seq || len(out.DeleteMarkers) > 0 {
		t.Errorf("%d versions and %d delete markers for %d records", len(out.Versions), len(out.DeleteMarkers), head.Seq)
	}
	for _, v := range out.Versions {
		r, err := client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &bucket, Key: v.Key, VersionId: v.VersionId})
		if err != nil || r.Retention.Mode != s3types.ObjectLockRetentionModeCompliance {
			t.Errorf("%s: retention %+v, %v", aws.ToString(v.Key), r, err)
		}
	}
}

// TestTwoRotationsAtOnce: of two executions started at once one completes; the
// other is refused in preflight, and one key is minted.
func TestTwoRotationsAtOnce(t *testing.T) {
	w := up(t, nil)
	w.traced(t)
	arns := []string{"", ""}
	var wg sync.WaitGroup
	for i := range arns {
		wg.Go(func() { arns[i] = w.start(t, fmt.Sprintf("rival-%d", i), "{}") })
	}
	wg.Wait()
	outcomes := []console.Outcome{w.finish(t, arns[0]), w.finish(t, arns[1])}
	slices.SortFunc(outcomes, func(a, b console.Outcome) int { return len(b.States) - len(a.States) })
	if o := outcomes[0]; o.Status != types.ExecutionStatusSucceeded {
		t.Error(describe(o))
	}
	if o := outcomes[1]; o.Status != types.ExecutionStatusFailed || o.Error != "RotationInProgress" || slices.Contains(o.States, "Mint") {
		t.Error(describe(o))
	}
	if n := w.calls(t, "kms", "CreateKey"); n != 1 {
		t.Errorf("%d keys were minted", n)
	}
	w.mustHold(t)
}

// TestPreSwitchFailure: a corrupted known cipher rolls the rotation back.
func TestPreSwitchFailure(t *testing.T) {
	w := up(t, nil)
	w.traced(t)
	before := w.view(t, "").Pointer
	restore, err := w.Set.CorruptCorpus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := w.rotate(t, "corrupt", "{}")
	if o.Status != types.ExecutionStatusFailed || o.Error != "CorpusCorrupted" || !slices.Contains(o.States, "PreSwitchFailure") {
		t.Fatal(describe(o))
	}
	if err := restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := w.view(t, "corrupt")
	if *v.Pointer != *before || v.Rotation.Phase != kek.RolledBack || v.Lock != "" {
		t.Errorf("pointer %+v, rotation %+v, lock %q", v.Pointer, v.Rotation, v.Lock)
	}
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(before.KEKID)}) {
		t.Errorf("enabled KMS keys %v, want the old one alone", got)
	}
	w.mustHold(t)
}

// TestKeyInUse: a KEK that others have a grant on is not disabled under them. The
// rotation halts with every row moved, and is resumed once the grant is gone.
func TestKeyInUse(t *testing.T) {
	w := up(t, nil)
	w.traced(t)
	keys, old := kms.NewFromConfig(w.AWSConfig()), string(w.view(t, "").Pointer.KEKID)
	const grantee = "arn:aws:iam::123456789012:role/reports"
	grant, err := keys.CreateGrant(t.Context(), &kms.CreateGrantInput{
		KeyId: &old, GranteePrincipal: aws.String(grantee), Operations: []kmstypes.GrantOperation{kmstypes.GrantOperationDecrypt},
	})
	if err != nil {
		t.Fatal(err)
	}
	arn := w.start(t, "shared", "{}")
	o := w.finish(t, arn)
	if o.Status != types.ExecutionStatusFailed || o.Error != "Halted" || !slices.Contains(o.States, "Retire") {
		t.Fatal(describe(o))
	}
	if told := w.told(t, arn); told.Event != journal.NotifyHalted || told.Error != string(journal.KeyInUse) || !strings.Contains(told.Cause, grantee) {
		t.Errorf("people were told %+v", told)
	}
	if got := w.enabledKEKs(t); len(got) != 2 || !slices.Contains(got, old) {
		t.Errorf("enabled KMS keys %v, want the old one among them", got)
	}
	if _, err := keys.RevokeGrant(t.Context(), &kms.RevokeGrantInput{KeyId: &old, GrantId: grant.GrantId}); err != nil {
		t.Fatal(err)
	}
	if o := w.rotate(t, "resumed", `{"resume":"shared"}`); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	if v := w.view(t, "shared"); v.Rotation.Phase != kek.Completed || v.Lock != "" {
		t.Errorf("rotation %+v, lock %q", v.Rotation, v.Lock)
	}
	w.mustHold(t)
}

// TestEmergency: when the first dual unwrap of an emergency fails there is no
// PreSwitchFailure; a second KEK is minted and the rotation completes. Payloads
// are under fresh DEKs afterwards.
func TestEmergency(t *testing.T) {
	w := up(t, nil)
	end := w.record(t)
	ledger, letters := w.readRows(t), w.letters(t)
	w.inject(t, map[string]any{"service": "kms", "operation": "Decrypt", "function": "dualunwrap", "mode": "error"})
	o := w.rotate(t, "emergency", `{"mode":"emergency","reason":"key material seen in a paste"}`)
	if o.Status != types.ExecutionStatusSucceeded || slices.Contains(o.States, "PreSwitchFailure") || !slices.Contains(o.States, "Remint") {
		t.Fatal(describe(o))
	}
	if n := w.calls(t, "kms", "CreateKey"); n != 2 {
		t.Errorf("%d keys were minted, want 2", n)
	}
	v := w.view(t, "emergency")
	if v.Rotation.Attempt != 2 || v.Rotation.Phase != kek.Completed {
		t.Errorf("rotation %+v", v.Rotation)
	}
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(v.Pointer.KEKID)}) {
		t.Errorf("enabled KMS keys %v, want the pointer's alone", got)
	}
	w.mustHold(t)
	w.rowsHold(t, ledger, "emergency")
	tracetest.Accepted(t, end())
	letters.rowCheckBites(ledger, "emergency")
}
