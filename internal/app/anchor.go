package app

import (
	"context"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/auditbucket"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// How the chain is anchored. The schedule calls the function every hour.
const (
	heartbeatEvery = 24 * time.Hour   // after so long a chain without new records is anchored again
	canaryDeadline = 45 * time.Second // how long preflight waits for a log; public logs publish a checkpoint every few seconds
)

// Anchorer wires the anchor function. It uses neither KEKs nor sources, so its role needs no
// permission for them.
func Anchorer(ctx context.Context) (*anchor.Anchor, error) {
	c, err := FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	store := ddb.New(dynamodb.NewFromConfig(cfg), c.ControlTable, c.Stack, time.Now)
	bucket := auditbucket.New(s3.NewFromConfig(cfg), c.AuditBucket, c.Retention, time.Now)
	j := &journal.Journal{
		Outbox: store, AuditBucket: bucket, Now: time.Now, Actor: journal.LambdaActor + os.Getenv("AWS_LAMBDA_FUNCTION_NAME"),
		Meter: &meter{w: os.Stdout, stack: c.Stack, now: time.Now},
	}
	return wireAnchor(c, cfg, j, store, bucket), nil
}

// wireAnchor returns nil if the deployment has no transparency log.
func wireAnchor(c Config, cfg aws.Config, j *journal.Journal, store *ddb.Store, bucket *auditbucket.Bucket) *anchor.Anchor {
	if len(c.Trust.Logs) == 0 {
		return nil
	}
	return &anchor.Anchor{
		Journal: j,
		Store:   store, Objects: bucket, Recorder: store, Bucket: bucket,
		Signer: awskms.NewSigner(kms.NewFromConfig(cfg), c.AnchorKey),
		Log:    rekor.New(httpClient(rekor.Timeout)),
		Trust:  c.Trust, Retention: c.Retention,
		Heartbeat: heartbeatEvery, MaxTail: audit.DefaultMaxTail, Deadline: canaryDeadline,
	}
}

// readTrust reads a trust list, the transparency logs and keys that are believed; an empty
// variable means that there is none.
func (e *env) readTrust(name string) audit.Trust {
	v := e.get(name)
	if v == "" {
		return audit.Trust{}
	}
	t, err := audit.ParseTrust([]byte(v))
	if err != nil {
		e.addFault(name, err)
	}
	return t
}
