package load

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	keytable "github.com/matter-ops/kms-rotation/source/deks"
)

// Site is a deployment as an application knows it.
type Site struct {
	AWS          aws.Config
	ControlTable string
	AuditBucket  string        // holds the copies of data keys' records; "" if no table has keyed rows
	Sources      []kek.Source  // that are registered
	PointerAge   time.Duration // of the client; 0: its default
	LeaseTTL     time.Duration // likewise
}

// ErrNoTable reports a source that is no table of the deployment.
var ErrNoTable = errors.New("no registered table")

// Table is the source of that name as an application is configured with it: by the same
// text.
func (s Site) Table(name string) (envelope.TableConfig, error) {
	var names []string
	for _, def := range s.Sources {
		if def.Kind != rowschema.Kind {
			continue
		}
		if def.Name == name {
			var c envelope.TableConfig
			if err := strictjson.Unmarshal([]byte(def.Definition), &c); err != nil {
				return c, fmt.Errorf("definition of source %s: %w", name, err)
			}
			c.Name = name
			return c, nil
		}
		names = append(names, def.Name)
	}
	return envelope.TableConfig{}, fmt.Errorf("%q: %w: %s", name, ErrNoTable, strings.Join(names, ", "))
}

// keys is the key table, if one is registered.
func (s Site) keys() (*envelope.KeyTable, error) {
	for _, def := range s.Sources {
		if def.Kind != keytable.KindName {
			continue
		}
		var c keytable.Config
		if err := strictjson.Unmarshal([]byte(def.Definition), &c); err != nil {
			return nil, fmt.Errorf("definition of source %s: %w", def.Name, err)
		}
		objects := s3.NewFromConfig(s.AWS, func(o *s3.Options) { o.UsePathStyle = true })
		return &envelope.KeyTable{Table: c.Table, Bucket: s.AuditBucket, S3: objects, MaxUses: keyUses}, nil
	}
	return nil, nil
}

// keyUses is how many payloads are sealed under a data key of the key table: few, so that a run
// has several.
const keyUses = 16

// Client returns an envelope client of the site, and the name of its key table; "" for none.
func (s Site) Client(ctx context.Context, dynamo envelope.DynamoDB) (client *envelope.Client, keyTable string, err error) {
	keys, err := s.keys()
	if err != nil {
		return nil, "", err
	}
	if keys != nil {
		keyTable = keys.Table
	}
	client, err = envelope.New(ctx, envelope.Config{
		ControlTable: s.ControlTable, DynamoDB: dynamo, KMS: kms.NewFromConfig(s.AWS), Keys: keys, PointerAge: s.PointerAge, LeaseTTL: s.LeaseTTL,
	})
	return client, keyTable, err
}

// Start makes an envelope client, which the caller closes, and a run over the
// named tables, which the caller runs.
func Start(ctx context.Context, s Site, c Config, names ...string) (*Generator, *envelope.Client, error) {
	dynamo := dynamodb.NewFromConfig(s.AWS)
	client, keyTable, err := s.Client(ctx, dynamo)
	if err != nil {
		return nil, nil, err
	}
	c.Stats = client.Stats
	var targets []Target
	for _, name := range names {
		t, err := s.Table(name)
		var target Target
		if err == nil {
			target, err = newTarget(ctx, client, &source{dynamo: dynamo, cfg: t, keyTable: keyTable}, c.Run)
		}
		if err != nil {
			return nil, nil, errors.Join(err, client.Close())
		}
		targets = append(targets, target)
	}
	g, err := New(c, targets...)
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return g, client, nil
}
