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
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/internal/worm"
	"github.com/matter-ops/kms-rotation/rotation"
)

// How the chain is anchored. The schedule runs every hour.
const (
	heartbeatEvery = 24 * time.Hour   // of a quiet chain
	canaryDeadline = 45 * time.Second // public logs publish a checkpoint every few seconds
)

// Anchorer wires the anchor function, which links nothing of the data plane.
func Anchorer(ctx context.Context) (*rotation.Steps, error) {
	c, err := FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	store := ddb.New(dynamodb.NewFromConfig(cfg), c.ControlTable, c.Stack, time.Now)
	vault := worm.New(s3.NewFromConfig(cfg), c.AuditBucket, c.Retention, time.Now)
	return &rotation.Steps{Config: c.Config, Deps: rotation.Deps{
		Outbox: store, Vault: vault, Anchoring: anchoring(c, cfg, store, vault),
		Now: time.Now, Actor: rotation.LambdaActor + os.Getenv("AWS_LAMBDA_FUNCTION_NAME"),
	}}, nil
}

// anchoring is nil for a deployment that names no log.
func anchoring(c Config, cfg aws.Config, store *ddb.Store, vault *worm.Vault) *rotation.Anchoring {
	if len(c.Trust.Logs) == 0 {
		return nil
	}
	return &rotation.Anchoring{
		Store: store, Vault: vault, Ledger: store, Bucket: vault,
		Signer: awskms.NewSigner(kms.NewFromConfig(cfg), c.AnchorKey),
		Log:    rekor.New(httpClient(rekor.Timeout)),
		Trust:  c.Trust, Retention: c.Retention,
		Heartbeat: heartbeatEvery, MaxTail: audit.DefaultMaxTail, Deadline: canaryDeadline,
	}
}

// trust reads a trust list; "" is none.
func (e *env) trust(name string) audit.Trust {
	v := e.get(name)
	if v == "" {
		return audit.Trust{}
	}
	t, err := audit.ParseTrust([]byte(v))
	if err != nil {
		e.fault(name, err)
	}
	return t
}
