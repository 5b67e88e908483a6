package sample

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
)

const (
	corpusPrefix  = "forensics/known-cipher-corpus/"
	corpusEntries = 24
	sealsInFlight = 8
)

// Set is the data set of one stack.
type Set struct {
	Stack  string
	Bucket string // of the corpus
	Dynamo *dynamodb.Client
	S3     *s3.Client
	KMS    keyring.Wrapper

	Records source.Keeper // the key table, once there are keyed rows ([Local.AddKeyed])
}

// New returns the data set of a stack. Its tables and bucket carry its name.
func New(stack, account string, cfg aws.Config, kms keyring.Wrapper) *Set {
	return &Set{
		Stack: stack, Bucket: fmt.Sprintf("%s-corpus-%s", stack, account),
		Dynamo: dynamodb.NewFromConfig(cfg), S3: s3.NewFromConfig(cfg), KMS: kms,
	}
}

// Sources describes the two tables, as MATTER_SOURCES. In the first the row's key is
// part of the encryption context, so every row has a DEK of its own; in the second the
// context is constant and the key is bound beside it, so rows share DEKs.
func (s *Set) Sources() []dynamosource.Config {
	return []dynamosource.Config{
		{
			Name: "characters", Table: s.Stack + "-characters", KEKID: "kek_id", WrappedDEK: "wrapped_dek", Ciphertext: "ciphertext",
			Epoch: "kek_epoch", Version: "version", Context: map[string]string{"table": "characters", "codepoint": "$codepoint"},
		},
		{
			Name: "symbols", Table: s.Stack + "-symbols", KEKID: "key_ref", WrappedDEK: "edek", Ciphertext: "body",
			Epoch: "key_epoch", Context: map[string]string{"table": "symbols"}, Bind: map[string]string{"block": "$block", "number": "$number"},
		},
	}
}

// Corpus is the corpus as MATTER_CORPUS.
func (s *Set) Corpus() string { return "s3://" + s.Bucket + "/" + corpusPrefix }

// Create makes the tables and the bucket, if they are not there.
func (s *Set) Create(ctx context.Context) error {
	keys := [][]types.AttributeDefinition{
		{attribute("codepoint", types.ScalarAttributeTypeS)},
		{attribute("block", types.ScalarAttributeTypeS), attribute("number", types.ScalarAttributeTypeN)},
	}
	for i, src := range s.Sources() {
		in := &dynamodb.CreateTableInput{TableName: &src.Table, BillingMode: types.BillingModePayPerRequest, AttributeDefinitions: keys[i]}
		for n, k := range keys[i] {
			kind := []types.KeyType{types.KeyTypeHash, types.KeyTypeRange}[n]
			in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: k.AttributeName, KeyType: kind})
		}
		_, err := s.Dynamo.CreateTable(ctx, in)
		var exists *types.ResourceInUseException
		if err != nil && !errors.As(err, &exists) {
			return fmt.Errorf("create table %s: %w", src.Table, err)
		}
	}
	_, err := s.S3.CreateBucket(ctx, &s3.CreateBucketInput{
		Bucket: &s.Bucket,
		CreateBucketConfiguration: &s3types.CreateBucketConfiguration{
			LocationConstraint: s3types.BucketLocationConstraint(s.S3.Options().Region),
		},
	})
	var owned *s3types.BucketAlreadyOwnedByYou
	if err != nil && !errors.As(err, &owned) {
		return fmt.Errorf("create bucket %s: %w", s.Bucket, err)
	}
	return nil
}

func attribute(name string, kind types.ScalarAttributeType) types.AttributeDefinition {
	return types.AttributeDefinition{AttributeName: &name, AttributeType: kind}
}

// Seed seals the records under the pointer's KEK, one row each: at most rows rows
// in the two tables together (0: all of them), and the corpus. It returns how many
// rows there are now, corpus included.
func (s *Set) Seed(ctx context.Context, p kek.Pointer, rows int) (int, error) {
	letters, symbols := s.chosen(rows)
	cache := &deks{kms: s.KMS, kek: p.KEKID, made: map[string]*dek{}}
	src := s.Sources()
	if err := s.seedTable(ctx, src[0], p, letters, cache); err != nil {
		return 0, err
	}
	if err := s.seedTable(ctx, src[1], p, symbols, cache); err != nil {
		return 0, err
	}
	known := pick(letters, corpusEntries)
	for _, c := range known {
		if err := s.seedKnown(ctx, p, c, cache); err != nil {
			return 0, err
		}
	}
	return len(letters) + len(symbols) + len(known), nil
}

func (s *Set) chosen(rows int) (letters, symbols []character) {
	letters, symbols = characters()
	return pick(letters, rows/2), pick(symbols, rows-rows/2)
}

func (s *Set) seedTable(ctx context.Context, src dynamosource.Config, p kek.Pointer, all []character, cache *deks) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(sealsInFlight)
	for _, c := range all {
		g.Go(func() error {
			item := key(src, c)
			encctx, err := src.ContextOf(item)
			if err != nil {
				return err
			}
			bound, err := src.BoundOf(item)
			if err != nil {
				return err
			}
			wrapped, sealed, err := cache.seal(gctx, c.plain, encctx, bound)
			if err != nil {
				return err
			}
			item[src.KEKID] = &types.AttributeValueMemberS{Value: string(p.KEKID)}
			item[src.WrappedDEK] = &types.AttributeValueMemberB{Value: wrapped}
			item[src.Ciphertext] = &types.AttributeValueMemberB{Value: sealed}
			item[src.Epoch] = number(p.Epoch)
			if src.Version != "" {
				item[src.Version] = number(1)
			}
			if _, err := s.Dynamo.PutItem(gctx, &dynamodb.PutItemInput{TableName: &src.Table, Item: item}); err != nil {
				return fmt.Errorf("seed %s: %w", src.Table, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// key is the primary key of a character's row in a source.
func key(src dynamosource.Config, c character) map[string]types.AttributeValue {
	if src.Name == "characters" {
		return map[string]types.AttributeValue{"codepoint": &types.AttributeValueMemberS{Value: c.id()}}
	}
	return map[string]types.AttributeValue{
		"block": &types.AttributeValueMemberS{Value: c.block}, "number": number(int64(c.code)),
	}
}

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func (s *Set) seedKnown(ctx context.Context, p kek.Pointer, c character, cache *deks) error {
	encctx := map[string]string{"corpus": "known-cipher", "codepoint": c.id()}
	wrapped, sealed, err := cache.seal(ctx, c.plain, encctx, encctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(c.plain)
	err = s.corpus().Put(ctx, knownName(c), s3source.Entry{
		V: s3source.Version, KEK: p.KEKID, Epoch: p.Epoch, Version: 1, WrappedDEK: wrapped, Ciphertext: sealed,
		Context: encctx, PlaintextSHA256: hex.EncodeToString(sum[:]),
	})
	if errors.Is(err, s3source.ErrExists) { // seeded again
		return nil
	}
	return err
}

// knownName is the name of a known cipher in the corpus.
func knownName(c character) string { return fmt.Sprintf("%04X.json", c.code) }

func (s *Set) corpus() *s3source.Corpus { return s3source.New(s.S3, s.Bucket, corpusPrefix) }

// CorruptCorpus flips a bit of one known cipher, as bit rot or a bad restore would,
// and returns what undoes it.
func (s *Set) CorruptCorpus(ctx context.Context) (restore func(context.Context) error, err error) {
	letters, _ := characters()
	name := corpusPrefix + knownName(pick(letters, corpusEntries)[0])
	out, err := s.S3.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.Bucket, Key: &name})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	good, err := io.ReadAll(out.Body)
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	entry, err := s3source.Decode(good)
	if err != nil {
		return nil, err
	}
	entry.Ciphertext[len(entry.Ciphertext)-1] ^= 1
	bad, err := entry.Encode()
	if err != nil {
		return nil, err
	}
	overwrite := func(ctx context.Context, b []byte) error {
		_, err := s.S3.PutObject(ctx, &s3.PutObjectInput{Bucket: &s.Bucket, Key: &name, Body: bytes.NewReader(b)})
		return err
	}
	return func(ctx context.Context) error { return overwrite(ctx, good) }, overwrite(ctx, bad)
}
