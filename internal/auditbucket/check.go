package auditbucket

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// SettingsAPI is the part of the S3 client that [Bucket.Check] uses.
type SettingsAPI interface {
	GetBucketVersioning(context.Context, *s3.GetBucketVersioningInput, ...func(*s3.Options)) (*s3.GetBucketVersioningOutput, error)
	GetObjectLockConfiguration(context.Context, *s3.GetObjectLockConfigurationInput, ...func(*s3.Options)) (*s3.GetObjectLockConfigurationOutput, error)
}

// clockSkew is how far the clocks of two processes may be apart.
const clockSkew = 24 * time.Hour

// Check implements [journal.AuditBucket]. The bucket's default retention does not matter:
// every record brings its own.
func (b *Bucket) Check(ctx context.Context) error {
	versioning, err := b.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &b.name})
	if err != nil {
		return b.errSettings("GetBucketVersioning", err)
	}
	if versioning.Status != types.BucketVersioningStatusEnabled {
		return b.errUnlocked("has no versioning", "aws s3api put-bucket-versioning --bucket "+b.name+" --versioning-configuration Status=Enabled")
	}
	locking, err := b.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &b.name})
	if err != nil && remote.ErrorCode(err) != "ObjectLockConfigurationNotFoundError" {
		return b.errSettings("GetObjectLockConfiguration", err)
	}
	if err != nil || locking.ObjectLockConfiguration == nil ||
		locking.ObjectLockConfiguration.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		return b.errUnlocked("has no Object Lock",
			"aws s3api put-object-lock-configuration --bucket "+b.name+" --object-lock-configuration ObjectLockEnabled=Enabled")
	}
	return nil
}

// errUnlocked returns the error for a bucket that does not protect records, with the
// command that fixes it.
func (b *Bucket) errUnlocked(what, next string) *journal.Error {
	return &journal.Error{
		Kind: journal.AuditUnlocked, Field: "MATTER_AUDIT_BUCKET", Msg: fmt.Sprintf("bucket %q %s", b.name, what), Next: journal.Next{Say: next},
	}
}

// errSettings classifies a failed read of the bucket's settings.
func (b *Bucket) errSettings(op string, err error) error {
	if remote.ErrorCode(err) == "NoSuchBucket" {
		e := b.errUnlocked("does not exist", "deploy template.yaml, which makes it, or correct MATTER_AUDIT_BUCKET")
		e.Err = err
		return e
	}
	return remote.WrapError("s3 "+op+" "+b.name, err)
}

// checkRetention makes sure that a version which another call made is locked for as
// long as this bucket would have locked it, less the clock skew between the two.
func (b *Bucket) checkRetention(key, version string, has lock, e audit.Entry) error {
	made, err := time.Parse(time.RFC3339, e.Record.Time)
	if err != nil {
		return fmt.Errorf("time of record %d: %w", e.Record.Seq, err)
	}
	until := made.Add(b.retention).Truncate(time.Second)
	if has.mode == types.ObjectLockModeCompliance && !has.until.Before(until.Add(-clockSkew)) {
		return nil
	}
	what := fmt.Sprintf("locked in mode %s until %s only", has.mode, has.until.UTC().Format(time.RFC3339))
	if has.mode == "" {
		what = "not locked, or s3:GetObjectRetention is missing"
	}
	return &journal.Error{
		Kind: journal.AuditUnlocked, Field: key, Msg: fmt.Sprintf("version %s of this record is %s", version, what),
		Next: journal.Next{Say: fmt.Sprintf("find out who put it (CloudTrail), then aws s3api put-object-retention --bucket %s --key %s --version-id %s "+
			"--retention Mode=COMPLIANCE,RetainUntilDate=%s", b.name, key, version, until.UTC().Format(time.RFC3339))},
	}
}
