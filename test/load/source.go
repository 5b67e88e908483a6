package load

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
)

// DynamoDB is what a source under load needs of the DynamoDB client beside what
// the envelope client uses of it.
type DynamoDB interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
}

// groups is how many partitions the rows of a run are in, where the table has a
// sort key: a context made of the partition key then shares data keys.
const groups = 4

// source is a table of the deployment.
type source struct {
	*envelope.Table
	dynamo   DynamoDB
	cfg      envelope.TableConfig
	keyTable string                   // "" if there is none
	key      []types.KeySchemaElement // partition key first
	kinds    map[string]types.ScalarAttributeType
}

// newTarget makes a table of the deployment a target. Its rows are told from others'
// by their partition key, so that must be a string.
func newTarget(ctx context.Context, client *envelope.Client, s *source, run string) (Target, error) {
	cfg := s.cfg
	s.kinds = map[string]types.ScalarAttributeType{}
	out, err := s.dynamo.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &cfg.Table})
	if err != nil {
		return Target{}, fmt.Errorf("dynamodb DescribeTable %s: %w", cfg.Table, err)
	}
	s.key = out.Table.KeySchema
	for _, d := range out.Table.AttributeDefinitions {
		s.kinds[aws.ToString(d.AttributeName)] = d.AttributeType
	}
	if s.kinds[s.name(0)] != types.ScalarAttributeTypeS {
		return Target{}, fmt.Errorf("table %s: the load needs a partition key of type S", cfg.Table)
	}
	s.Table, err = client.Table(ctx, cfg)
	return Target{Rows: s, Name: cfg.Name, Item: func(n int) envelope.Item { return s.item(run, n) }}, err
}

func (s *source) name(n int) string { return aws.ToString(s.key[n].AttributeName) }

// item is a new row: its key and the attributes that it is bound to.
func (s *source) item(run string, n int) envelope.Item {
	i := envelope.Item{}
	for _, bound := range []map[string]string{s.cfg.Context, s.cfg.Bind} {
		for _, v := range bound {
			if strings.HasPrefix(v, "$") && !strings.HasPrefix(v, "$$") {
				i[v[1:]] = &types.AttributeValueMemberS{Value: "load"}
			}
		}
	}
	if len(s.key) == 1 {
		i[s.name(0)] = &types.AttributeValueMemberS{Value: fmt.Sprintf("%s%s/%d", Prefix, run, n)}
		return i
	}
	i[s.name(0)] = &types.AttributeValueMemberS{Value: fmt.Sprintf("%s%s/%d", Prefix, run, n%groups)}
	text := strconv.Itoa(n)
	switch s.kinds[s.name(1)] {
	case types.ScalarAttributeTypeN:
		i[s.name(1)] = &types.AttributeValueMemberN{Value: text}
	case types.ScalarAttributeTypeB:
		i[s.name(1)] = &types.AttributeValueMemberB{Value: []byte(text)}
	case types.ScalarAttributeTypeS:
		i[s.name(1)] = &types.AttributeValueMemberS{Value: text}
	}
	return i
}

func (s *source) keyOf(i envelope.Item) envelope.Item {
	k := maps.Clone(i)
	maps.DeleteFunc(k, func(name string, _ types.AttributeValue) bool {
		return name != s.name(0) && (len(s.key) == 1 || name != s.name(1))
	})
	return k
}

// GetLate implements [Rows].
func (s *source) GetLate(ctx context.Context, key envelope.Item, held func()) (envelope.Row, kek.ID, error) {
	out, err := s.dynamo.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &s.cfg.Table, Key: s.keyOf(key), ConsistentRead: aws.Bool(true),
	})
	switch {
	case err != nil:
		return envelope.Row{}, "", fmt.Errorf("dynamodb GetItem %s: %w", s.cfg.Table, err)
	case out.Item == nil:
		return envelope.Row{}, "", envelope.ErrNotFound
	}
	id, err := s.kekOf(ctx, out.Item)
	if err != nil {
		return envelope.Row{}, "", err
	}
	held()
	row, err := s.Open(ctx, out.Item)
	return row, id, err
}

// kekOf returns the KEK that a row names or, of a keyed row, the one that its data key's record
// names.
func (s *source) kekOf(ctx context.Context, row envelope.Item) (kek.ID, error) {
	dek, ok := row[cmp.Or(s.cfg.DEKID, rowschema.DefaultDEKID)].(*types.AttributeValueMemberS)
	if !ok {
		id, _ := row[s.cfg.KEKID].(*types.AttributeValueMemberS)
		if id == nil {
			return "", nil
		}
		return kek.ID(id.Value), nil
	}
	out, err := s.dynamo.GetItem(ctx, &dynamodb.GetItemInput{TableName: &s.keyTable, Key: keyrecord.Key(dek.Value), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return "", fmt.Errorf("dynamodb GetItem %s: %w", s.keyTable, err)
	}
	if out.Item == nil {
		return "", fmt.Errorf("%w: a row names data key %s, which has no record", errWrong, dek.Value)
	}
	r, err := keyrecord.Decode(out.Item)
	return r.KEKID, err
}

// Delete implements [Rows].
func (s *source) Delete(ctx context.Context, key envelope.Item) error {
	_, err := s.dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &s.cfg.Table, Key: s.keyOf(key)})
	if err != nil {
		return fmt.Errorf("dynamodb DeleteItem %s: %w", s.cfg.Table, err)
	}
	return nil
}
