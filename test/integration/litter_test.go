package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestLitterInTheBucket: an object that is no part of the chain lies in the audit bucket
// for as long as its lock lasts, which nobody can shorten. It keeps no rotation from its
// end; the completion's record and every verification name it.
func TestLitterInTheBucket(t *testing.T) {
	w := up(t, nil)
	put := func(key string) error {
		_, err := s3.NewFromConfig(w.AWSConfig(), func(o *s3.Options) { o.UsePathStyle = true }).PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: aws.String(w.Env()["MATTER_AUDIT_BUCKET"]), Key: &key, Body: strings.NewReader("x"),
			IfNoneMatch: aws.String("*"), ChecksumAlgorithm: s3types.ChecksumAlgorithmSha256,
		})
		return err
	}
	if err := put("notes.txt"); err == nil || !strings.Contains(err.Error(), "NothingBesideTheChain") {
		t.Errorf("an object beside the chain's prefix: %v", err)
	}
	if err := put("v1/" + w.Name + "/notes.txt"); err != nil {
		t.Fatal(err)
	}
	if o := w.rotate(t, "littered", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	entries, err := w.Deployment.Table.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, e := range entries {
		if e.Record.Type == "kms_rotation_completed" {
			said = e.Record.Body["audit_litter"]
		}
	}
	if !strings.Contains(said, "notes.txt") {
		t.Errorf("the completion says %q", said)
	}
	r, err := w.Deployment.Steps.Anchor.VerifyAudit(t.Context(), anchor.AuditOptions{})
	if err != nil || r.Result != audit.Tampered || len(r.Findings) != 1 || r.Findings[0].Kind != audit.StrayObject {
		t.Errorf("verification: %+v, %v", r, err)
	}
}

// TestForeignRecordPages: somebody's object lies where the chain's next record goes. The
// rotation completes, and the function that met the object has counted it for the alarm.
func TestForeignRecordPages(t *testing.T) {
	w := up(t, nil)
	entries, err := w.Deployment.Table.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s3.NewFromConfig(w.AWSConfig(), func(o *s3.Options) { o.UsePathStyle = true }).PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(w.Env()["MATTER_AUDIT_BUCKET"]), Key: aws.String(audit.ObjectKey(w.Name, int64(len(entries)+1))),
		Body: strings.NewReader("foreign"), IfNoneMatch: aws.String("*"), ChecksumAlgorithm: s3types.ChecksumAlgorithmSha256,
	})
	if err != nil {
		t.Fatal(err)
	}
	if o := w.rotate(t, "planted", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	r, err := w.Deployment.Steps.Anchor.VerifyAudit(t.Context(), anchor.AuditOptions{})
	if err != nil || r.Result != audit.Green || len(r.Generations) != 1 {
		t.Errorf("verification: %+v, %v", r, err)
	}
	logs, err := filepath.Glob(filepath.Join(w.dir, "logs", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	counted := 0
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		counted += strings.Count(string(b), `"`+journal.MetricGeneration+`":1`)
	}
	if counted == 0 {
		t.Errorf("none of %d functions has counted %s", len(logs), journal.MetricGeneration)
	}
}
