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
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sns"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/internal/auditbucket"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source/deks"
)

const (
	requestTimeout = 20 * time.Second // of one HTTP request; every function's timeout is longer
	requestTries   = 5                // by the SDK, the first one included
)

// Steps wires the steps of a Lambda function from its environment.
func Steps(ctx context.Context) (*rotation.Steps, error) {
	collectSeldom(os.Getenv)
	c, err := FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	s, err := Wire(c, cfg, journal.LambdaActor+os.Getenv("AWS_LAMBDA_FUNCTION_NAME"))
	if err == nil {
		s.Journal.Meter = &meter{w: os.Stdout, stack: c.Stack, now: time.Now}
	}
	return s, err
}

// Notifier wires the one step that must work even if the rest of the configuration is wrong:
// telling people. It reads only the topic and the event bus, and customers are told only if their channels are
// configured correctly. Of the returned steps only Notify may be called.
func Notifier(ctx context.Context) (*rotation.Steps, error) {
	topic := os.Getenv("MATTER_TOPIC_ARN")
	if topic == "" {
		return nil, &journal.Error{
			Kind: journal.Misconfigured, Field: "MATTER_TOPIC_ARN", Msg: "is required",
			Next: journal.Next{Say: "deploy template.yaml again"},
		}
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	j := &journal.Journal{Notifier: wireNotifier(cfg, os.Getenv("MATTER_STACK"), topic, os.Getenv("MATTER_EVENT_BUS")), Now: time.Now}
	s := &rotation.Steps{Journal: j, Gates: gates.Gates{Journal: j}}
	table := os.Getenv("MATTER_CONTROL_TABLE")
	if a, err := parseAnnounce(os.Getenv("MATTER_ANNOUNCE")); err == nil && table != "" {
		s.Gates.Announcements = ddb.New(dynamodb.NewFromConfig(cfg), table, os.Getenv("MATTER_STACK"), time.Now)
		s.Gates.Announcers = wireAnnouncers(a, cfg)
	}
	return s, nil
}

// wireNotifier returns what tells operators: a notifier for the topic and one for the event bus,
// each unless its name is ""; nil if both are.
func wireNotifier(cfg aws.Config, stack, topic, bus string) journal.Notifier {
	var all notify.Several
	if topic != "" {
		all = append(all, notify.NewTopic(sns.NewFromConfig(cfg), topic, stack))
	}
	if bus != "" {
		all = append(all, notify.NewEventBus(eventbridge.NewFromConfig(cfg), bus, stack, time.Now))
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

// Gates wires the gates of a Lambda function.
func Gates(ctx context.Context) (*gates.Gates, error) {
	s, err := Steps(ctx)
	if err != nil {
		return nil, err
	}
	return &s.Gates, nil
}

// AWSConfig loads region and credentials. The adaptive retry mode slows the whole client down
// after throttled calls, and a request that hangs is given up. A single write that is refused
// because a transaction holds its item (TransactionConflictException) is retried: DynamoDB has
// written nothing then, and the SDK does not retry it by itself (developer guide, "Transaction
// conflict handling in DynamoDB").
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

// pace keeps the processor of a function busy. With calls of 5 ms to KMS and 4 ms to DynamoDB,
// 64 rows in flight are 7,000 rows a second, which is more than a function of 1,024 MB can
// process (docs/performance.md). A page has at most 1 MB; a segment holds at most seven.
var pace = rotation.Pace{RowsInFlight: 64, PagesAhead: 2, SaveEvery: 5 * time.Second}

// leastAheadRate is the fewest KMS requests a second of a process that reads pages ahead. A
// slower one would work longer on the rows that it holds than a pass may be old when a
// conclusion is drawn from it (ten minutes): up to 4 segments of 4 pages of 500 rows, each
// with a request.
const leastAheadRate = 50

// PaceAt is the pace of a process that may send so many KMS requests a second.
func PaceAt(rate float64) rotation.Pace {
	p := pace
	if rate < leastAheadRate {
		p.PagesAhead = 0
	}
	return p
}

// awsClient keeps an idle connection for each request that may be in flight. With the SDK's
// default of 10 for each host, every page of rows would begin with TLS handshakes, which are
// expensive on part of a processor. A connection that the service has closed while Lambda had
// frozen the process costs one retry, which the SDK makes. A host that does not answer is
// given up in seconds, within the shortest timeout of a function.
func awsClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTimeout(requestTimeout).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = 3 * time.Second }).
		WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConnsPerHost = pace.RowsInFlight
			t.MaxIdleConns = 4 * pace.RowsInFlight // for DynamoDB, KMS, S3 and one more host
			t.TLSHandshakeTimeout = 5 * time.Second
		})
}

// Wire builds the steps on real adapters. actor is the identity that the audit chain names.
func Wire(c Config, cfg aws.Config, actor string) (*rotation.Steps, error) {
	dynamo := dynamodb.NewFromConfig(cfg)
	keys := kms.NewFromConfig(cfg)
	objects := s3.NewFromConfig(cfg)
	store := ddb.New(dynamo, c.ControlTable, c.Stack, time.Now)
	bucket := auditbucket.New(objects, c.AuditBucket, c.Retention, time.Now)
	j := &journal.Journal{
		Registry: store, Outbox: store, AuditBucket: bucket, Notifier: wireNotifier(cfg, c.Stack, c.Topic, c.EventBus), Now: time.Now, Actor: actor,
	}
	return &rotation.Steps{
		Config: c.Config, Journal: j,
		Gates: gates.Gates{
			Rules: c.Rules, Journal: j, Announcers: wireAnnouncers(c.Announce, cfg),
			Announcements: store, Drills: store, HealthLog: store, Approvals: store, Pauses: store,
		},
		Anchor: wireAnchor(c, cfg, j, store, bucket),
		Keys: keyring.Keyring{
			Admin:   awskms.NewAdmin(keys, resourcegroupstaggingapi.NewFromConfig(cfg), c.Stack, c.ControlTable),
			Wrapper: awskms.NewWrapper(keys, requestBudget(c, cfg)),
			Cipher:  aead.Cipher{},
			Random:  func(b []byte) { _, _ = rand.Read(b) }, // never fails, see crypto/rand
		},
		Machine: flow.DescribeMachine(), AtBest: c.BestSettings(),
		Pace: PaceAt(c.KMSRate / float64(c.Concurrency)), Memory: rotation.NewMemory(rotation.MemoryBytes),
		OpenSource: newRegistry(cfg, deks.Places{ControlTable: c.ControlTable, Bucket: c.AuditBucket}, writeBudgets(c, cfg)).Open, Drainage: store, Checkpoints: rotation.SealCheckpoints(store, awskms.NewCheckpointKeys(keys, c.CheckpointKey, c.Stack)), Archive: store,
	}, nil
}
