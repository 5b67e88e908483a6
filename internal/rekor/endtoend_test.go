package rekor_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/auditbucket"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

func TestMain(m *testing.M) { ddbtest.Main(m) } // moto ends with the process

const (
	chain     = "matter"
	retention = 365 * 24 * time.Hour
)

// deployment is the real adapters on the local servers.
func deployment(t *testing.T) (*anchor.Anchor, *ddb.Store) {
	t.Helper()
	cfg := mototest.Config(t)
	objects := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })
	bucket := "anchored-audit"
	if _, err := objects.CreateBucket(t.Context(), &s3.CreateBucketInput{
		Bucket: &bucket, ObjectLockEnabledForBucket: aws.Bool(true),
		CreateBucketConfiguration: &s3types.CreateBucketConfiguration{LocationConstraint: mototest.Region},
	}); err != nil {
		t.Fatal(err)
	}
	keys := kms.NewFromConfig(cfg)
	key, err := keys.CreateKey(t.Context(), &kms.CreateKeyInput{
		KeySpec: kmstypes.KeySpecEccNistP256, KeyUsage: kmstypes.KeyUsageTypeSignVerify,
	})
	if err != nil {
		t.Fatal(err)
	}
	client := ddbtest.Client(t)
	store := ddb.New(client, ddbtest.ControlTable(t, client), chain, time.Now)
	records := auditbucket.New(objects, bucket, retention, time.Now)
	return &anchor.Anchor{
		Journal: &journal.Journal{Outbox: store, AuditBucket: records, Now: time.Now, Actor: "test"},
		Store:   store, Objects: records, Recorder: store, Bucket: records,
		Signer: awskms.NewSigner(keys, aws.ToString(key.KeyMetadata.KeyId)),
		Log:    rekor.New(&http.Client{Timeout: rekor.Timeout}), Retention: retention,
		Heartbeat: time.Hour, MaxTail: time.Hour, Deadline: time.Minute,
	}, store
}

// TestEndToEnd anchors through every real adapter and the real log, which is killed
// and started again on the way, and lets an auditor with a copy and a trust list of
// his own come to the same verdict.
func TestEndToEnd(t *testing.T) {
	dir := t.TempDir()
	log := realLog(t, dir)
	s, store := deployment(t)
	s.Trust.Logs = []audit.Log{log.Trust()}
	record := func(what string) {
		t.Helper()
		if err := store.Record(t.Context(), audit.Event{ID: what, Type: what, Step: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	record("one")
	if out, err := s.AnchorChain(t.Context(), anchor.Input{}); err != nil || out.Anchor != 1 || out.Records != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	log.Stop()
	record("two")
	var typed *journal.Error
	if _, err := s.AnchorChain(t.Context(), anchor.Input{}); !errors.As(err, &typed) || typed.Kind != journal.Transient {
		t.Fatalf("with a dead log: %v, want Transient", err)
	}
	log = realLog(t, dir)
	s.Trust.Logs = []audit.Log{log.Trust()}
	detail, err := s.CheckAnchoring(t.Context())
	if err != nil || detail != "3 records, anchor 3 at log index 2 of rekor.local" {
		t.Fatalf("%q, %v", detail, err)
	}
	r, err := s.VerifyAnchored(t.Context())
	if err != nil || r.String() != "audit: 3 records, 3 anchored at log index 2 of rekor.local, verified" {
		t.Fatalf("%s, %v %v", r, err, r.Findings)
	}
	if got := audited(t, s, log.Trust(), *r.Last); got.String() != r.String() || len(got.Unchecked) != 2 {
		t.Errorf("the auditor says %s %v, not checked %q", got, got.Findings, got.Unchecked)
	}
}

// audited is what an auditor says who has a copy of the bucket, the log's key, the
// anchor key, and has seen one anchor before.
func audited(t *testing.T, s *anchor.Anchor, log audit.Log, seen audit.Known) audit.Report {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), s.Bucket, dir); err != nil {
		t.Fatal(err)
	}
	key, err := s.Signer.PublicKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := audit.OpenDir(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Verify(t.Context(), b, audit.Policy{
		Chain: chain, Retention: retention, Now: time.Now(), Known: []audit.Known{seen},
		Trust: audit.Trust{Logs: []audit.Log{log}, AnchorKeys: []audit.PinnedKey{{Key: key}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
