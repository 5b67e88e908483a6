package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/rekorlocal"
)

// Options are the choices for [Up].
type Options struct {
	localaws.Options
	Rows   int      // rows to seed in the two tables; 0 for all there are
	Tables []string // more tables, each STACK-name, that the functions may use
}

// Local is the shipped stack on the local AWS, with the data set sealed under its
// first KEK.
type Local struct {
	*localaws.Stack
	Set        *Set
	Deployment *operate.Deployment
	Rows       int // as asked for
	Seeded     int // rows there are, corpus included
	Log        *rekorlocal.Log
}

// Close ends the local AWS and its transparency log; it may be called again.
func (l *Local) Close() {
	l.Stack.Close()
	l.Log.Stop()
}

// Up starts the local AWS, deploys the shipped template, registers the first KEK
// and sources, and seeds the data set. The caller closes it.
func Up(ctx context.Context, o Options) (*Local, error) {
	l := &Local{Rows: o.Rows}
	asked := o.Parameters
	o.Prepare = func(ctx context.Context, s *localaws.Stack) error {
		l.Set = newLocalSet(s)
		if err := l.Set.Create(ctx); err != nil {
			return err
		}
		s.SetParameters(l.Set.parameters(o.Tables))
		s.SetParameters(map[string]string{"TransparencyLogs": string(mustJSON(audit.Trust{
			Logs: []audit.Log{l.Log.Trust()}, AnchorKeys: []audit.PinnedKey{},
		}))})
		s.SetParameters(asked) // over what the data set and a laptop want
		return nil
	}
	root, err := backend.Root()
	if err != nil {
		return nil, err
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(root, ".local")
	}
	if l.Log, err = rekorlocal.Start(ctx, rekorlocal.Options{Dir: filepath.Join(o.Dir, "rekor")}); err != nil {
		return nil, err
	}
	if l.Stack, err = localaws.Start(ctx, o.Options); err != nil {
		l.Log.Stop()
		return nil, err
	}
	if err := l.populate(ctx); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// newLocalSet is the data set of a local stack, which no quota holds back.
func newLocalSet(s *localaws.Stack) *Set {
	cfg := s.AWSConfig()
	wrapper := awskms.NewWrapper(kms.NewFromConfig(cfg), nil)
	return New(s.Name, backend.Account, cfg, wrapper)
}

// parameters are the template's parameters that describe the data set and more tables
// that the functions may use, and such as make a rotation on a laptop quick.
func (s *Set) parameters(more []string) map[string]string {
	var sources []json.RawMessage
	var tables, arns []string
	for _, src := range s.Sources() {
		sources = append(sources, json.RawMessage(src.Source().Definition))
		tables = append(tables, src.Table)
	}
	for _, name := range append([]string{Notes}, more...) {
		tables = append(tables, s.Stack+"-"+name)
	}
	for _, table := range tables {
		arns = append(arns, fmt.Sprintf("arn:aws:dynamodb:%s:%s:table/%s", s.S3.Options().Region, backend.Account, table))
	}
	return map[string]string{
		"Sources": string(mustJSON(sources)), "SourceTableArns": strings.Join(arns, ","),
		"CorpusBucket": s.Bucket, "CorpusPrefix": corpusPrefix,
		"Window": "any", "DrainPollSeconds": "5", "Segments": "2", "RewrapConcurrency": "4", "KmsRate": "1000", "KeySettleSeconds": "0",
		"AnnounceDays": "0", "DrillFreshDays": "0", "HealthDays": "0", "ApprovalRequired": "false",
	}
}

func (l *Local) populate(ctx context.Context) error {
	env := l.Env()
	c, err := app.FromEnv(func(name string) string { return env[name] })
	if err != nil {
		return err
	}
	if l.Deployment, err = operate.Wire(c, l.AWSConfig(), "local"); err != nil {
		return err
	}
	first, err := kms.NewFromConfig(l.AWSConfig()).CreateKey(ctx, &kms.CreateKeyInput{
		Description: aws.String("the first KEK of " + l.Name),
		KeySpec:     kmstypes.KeySpecSymmetricDefault, KeyUsage: kmstypes.KeyUsageTypeEncryptDecrypt, // moto has no default
	})
	if err != nil {
		return fmt.Errorf("create the first KEK: %w", err)
	}
	id := kek.ID(aws.ToString(first.KeyMetadata.KeyId))
	if err := l.Deployment.TagKey(ctx, id); err != nil {
		return err
	}
	sources, err := app.Seed(func(name string) string { return env[name] })
	if err != nil {
		return err
	}
	p, err := l.Deployment.Steps.Genesis(ctx, id, "genesis", sources)
	if err != nil {
		return err
	}
	if _, err := l.Deployment.Steps.Anchor.AnchorChain(ctx, anchor.Input{}); err != nil { // as the schedule would within the hour
		return err
	}
	l.Seeded, err = l.Set.Seed(ctx, p, l.Rows)
	return err
}
