package worm

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

// BucketAPI is what [Vault.Check] uses of the S3 client.
type BucketAPI interface {
	GetBucketVersioning(context.Context, *s3.GetBucketVersioningInput, ...func(*s3.Options)) (*s3.GetBucketVersioningOutput, error)
	GetObjectLockConfiguration(context.Context, *s3.GetObjectLockConfigurationInput, ...func(*s3.Options)) (*s3.GetObjectLockConfigurationOutput, error)
}

// slack is how far the clocks of the processes may be apart.
const slack = 24 * time.Hour

// Check implements [rotation.Vault]. Whether the bucket's default retention is set
// does not matter: every record brings its own.
func (v *Vault) Check(ctx context.Context) error {
	versioning, err := v.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &v.bucket})
	if err != nil {
		return v.checkError("GetBucketVersioning", err)
	}
	if versioning.Status != types.BucketVersioningStatusEnabled {
		return v.unlocked("has no versioning", "aws s3api put-bucket-versioning --bucket "+v.bucket+" --versioning-configuration Status=Enabled")
	}
	locking, err := v.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &v.bucket})
	if err != nil && awserr.Code(err) != "ObjectLockConfigurationNotFoundError" {
		return v.checkError("GetObjectLockConfiguration", err)
	}
	if err != nil || locking.ObjectLockConfiguration == nil ||
		locking.ObjectLockConfiguration.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		return v.unlocked("has no Object Lock",
			"aws s3api put-object-lock-configuration --bucket "+v.bucket+" --object-lock-configuration ObjectLockEnabled=Enabled")
	}
	return nil
}

func (v *Vault) unlocked(what, next string) *rotation.Error {
	return &rotation.Error{
		Kind: rotation.AuditUnlocked, Field: "MATTER_AUDIT_BUCKET", Msg: fmt.Sprintf("bucket %q %s", v.bucket, what), Next: next,
	}
}

func (v *Vault) checkError(op string, err error) error {
	if awserr.Code(err) == "NoSuchBucket" {
		e := v.unlocked("does not exist", "deploy template.yaml, which makes it, or correct MATTER_AUDIT_BUCKET")
		e.Err = err
		return e
	}
	return awserr.Wrap("s3 "+op+" "+v.bucket, err)
}

// checkLock makes sure that a record which was there already is locked as this vault
// would have locked it.
func (v *Vault) checkLock(key, version string, is lock, e audit.Entry) error {
	made, err := time.Parse(time.RFC3339, e.Record.Time)
	if err != nil {
		return fmt.Errorf("time of record %d: %w", e.Record.Seq, err)
	}
	until := made.Add(v.retention).Truncate(time.Second)
	if is.mode == types.ObjectLockModeCompliance && !is.until.Before(until.Add(-slack)) {
		return nil
	}
	what := fmt.Sprintf("locked in mode %s until %s only", is.mode, is.until.UTC().Format(time.RFC3339))
	if is.mode == "" {
		what = "not locked, or s3:GetObjectRetention is missing"
	}
	return &rotation.Error{
		Kind: rotation.AuditUnlocked, Field: key, Msg: fmt.Sprintf("version %s of this record is %s", version, what),
		Next: fmt.Sprintf("find out who put it (CloudTrail), then aws s3api put-object-retention --bucket %s --key %s --version-id %s "+
			"--retention Mode=COMPLIANCE,RetainUntilDate=%s", v.bucket, key, version, until.UTC().Format(time.RFC3339)),
	}
}
