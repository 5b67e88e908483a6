package app

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
	_ "time/tzdata" // the Lambda runtime has no zone database

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"golang.org/x/time/rate"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/snsnotify"
	"github.com/matter-ops/kms-rotation/internal/worm"
	"github.com/matter-ops/kms-rotation/rotation"
)

const (
	requestTimeout = 20 * time.Second // of one HTTP request; the steps' own deadlines are longer
	requestTries   = 5
)

// Steps wires the steps of a Lambda function from its environment.
func Steps(ctx context.Context) (*rotation.Steps, error) {
	c, err := FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	s, err := Wire(c, cfg, rotation.LambdaActor+os.Getenv("AWS_LAMBDA_FUNCTION_NAME"))
	if err == nil {
		s.Meter = &meter{w: os.Stdout, stack: c.Stack, now: time.Now}
	}
	return s, err
}

// Notifier wires the one step that must work however wrong the rest of the
// configuration is: telling people. Customers are told only if that is configured well.
func Notifier(ctx context.Context) (*rotation.Steps, error) {
	topic := os.Getenv("MATTER_TOPIC_ARN")
	if topic == "" {
		return nil, &rotation.Error{
			Kind: rotation.Misconfigured, Field: "MATTER_TOPIC_ARN", Msg: "is required",
			Next: "deploy template.yaml again",
		}
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	s := &rotation.Steps{Deps: rotation.Deps{Notifier: snsnotify.New(sns.NewFromConfig(cfg), topic), Now: time.Now}}
	table := os.Getenv("MATTER_CONTROL_TABLE")
	if a, err := parseAnnounce(os.Getenv("MATTER_ANNOUNCE")); err == nil && table != "" {
		s.Announcements = ddb.New(dynamodb.NewFromConfig(cfg), table, os.Getenv("MATTER_STACK"), time.Now)
		s.Announcers = announcers(a, cfg)
	}
	return s, nil
}

// AWSConfig loads region and credentials. Throttled calls back off and slow the
// whole client down; a hung request is given up. A single write of an item that a
// transaction holds is repeated: DynamoDB has written nothing then, and the SDK does not
// repeat it by itself (developer guide, "Transaction conflict handling in DynamoDB").
func AWSConfig(ctx context.Context) (aws.Config, error) {
	cfg, err := config.LoadDefaultConfig(ctx,
		config.WithHTTPClient(awsClient()),
		config.WithRetryer(func() aws.Retryer {
			return retry.AddWithErrorCodes(retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) {
				o.StandardOptions = append(o.StandardOptions, func(s *retry.StandardOptions) { s.MaxAttempts = requestTries })
			}), (*types.TransactionConflictException)(nil).ErrorCode())
		}))
	if err != nil {
		return cfg, fmt.Errorf("load the AWS configuration: %w", err)
	}
	cfg.APIOptions = append(cfg.APIOptions, refuseWrongClock)
	return cfg, nil
}

// awsClient keeps an idle connection for each request that may be in flight: with the SDK's
// default of 10 a host each page of rows begins with TLS handshakes, on part of a processor.
// A connection that the service has closed while Lambda had the process frozen costs one
// more try, which the SDK makes. A host that does not answer is given up in seconds, within
// the shortest timeout of a function.
func awsClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTimeout(requestTimeout).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = 3 * time.Second }).
		WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConnsPerHost = rotation.MaxInFlight
			t.MaxIdleConns = 4 * rotation.MaxInFlight // DynamoDB, KMS, S3 and one more
			t.TLSHandshakeTimeout = 5 * time.Second
		})
}

// Wire builds the steps on real adapters. actor is who acts, for the audit chain.
func Wire(c Config, cfg aws.Config, actor string) (*rotation.Steps, error) {
	dynamo := dynamodb.NewFromConfig(cfg)
	keys := kms.NewFromConfig(cfg)
	objects := s3.NewFromConfig(cfg)
	store := ddb.New(dynamo, c.ControlTable, c.Stack, time.Now)
	vault := worm.New(objects, c.AuditBucket, c.Retention, time.Now)
	s := &rotation.Steps{
		Config: c.Config,
		Deps: rotation.Deps{
			Registry: store, Items: store, Outbox: store, Drainage: store, Checkpoints: store,
			Announcements: store, Announcers: announcers(c.Announce, cfg), Drills: store, HealthLog: store, Approvals: store,
			Vault: vault, Anchoring: anchoring(c, cfg, store, vault),
			Keys:   awskms.NewAdmin(keys, resourcegroupstaggingapi.NewFromConfig(cfg), c.Stack, c.ControlTable),
			KMS:    awskms.NewWrapper(keys, rate.NewLimiter(rate.Limit(c.KMSRate), max(1, int(c.KMSRate/10)))),
			Cipher: aead.Cipher{}, OpenSource: sourceOpener(dynamo, objects),
			Random: func(b []byte) { _, _ = rand.Read(b) }, // never fails, see crypto/rand
			Now:    time.Now,
			Actor:  actor,
		},
	}
	if c.Topic != "" {
		s.Notifier = snsnotify.New(sns.NewFromConfig(cfg), c.Topic)
	}
	return s, nil
}
