package envelope_test

import (
	"context"
	"maps"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

// metered adds up the capacity that DynamoDB charges.
type metered struct {
	dynamoDB
	write, read float64
}

func (m *metered) charge(write bool, c ...ddbtypes.ConsumedCapacity) {
	for _, c := range c {
		if write {
			m.write += aws.ToFloat64(c.CapacityUnits)
		} else {
			m.read += aws.ToFloat64(c.CapacityUnits)
		}
	}
}

func (m *metered) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	in.ReturnConsumedCapacity = ddbtypes.ReturnConsumedCapacityTotal
	out, err := m.dynamoDB.PutItem(ctx, in, o...)
	if err == nil {
		m.charge(true, *out.ConsumedCapacity)
	}
	return out, err
}

func (m *metered) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	in.ReturnConsumedCapacity = ddbtypes.ReturnConsumedCapacityTotal
	out, err := m.dynamoDB.UpdateItem(ctx, in, o...)
	if err == nil {
		m.charge(true, *out.ConsumedCapacity)
	}
	return out, err
}

func (m *metered) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	in.ReturnConsumedCapacity = ddbtypes.ReturnConsumedCapacityTotal
	out, err := m.dynamoDB.GetItem(ctx, in, o...)
	if err == nil {
		m.charge(false, *out.ConsumedCapacity)
	}
	return out, err
}

func (m *metered) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	in.ReturnConsumedCapacity = ddbtypes.ReturnConsumedCapacityTotal
	out, err := m.dynamoDB.TransactWriteItems(ctx, in, o...)
	if err == nil {
		m.charge(true, out.ConsumedCapacity...)
	}
	return out, err
}

// BenchmarkFence compares the client's writes of 512 bytes, of embedded rows, which are
// fenced, and of keyed ones, with the same writes without fence, version and epoch, on
// dynoxide in memory: loopback HTTP and a store that is not DynamoDB, so the differences
// count, not the figures.
func BenchmarkFence(bench *testing.B) {
	ks := newKeyedSite(bench, ddbtest.Client(bench), mixedDefinition)
	w, m := ks.site, &metered{dynamoDB: ks.dynamo}
	client := ks.client(slow, func(c *envelope.Config) { c.DynamoDB = m })
	keyed := w.open(client)
	w.def.Envelope = envelope.EnvelopeEmbedded
	table := w.open(client)
	plain := make([]byte, 512)
	sealed := item{"key": &s{Value: "kek-0001"}, "wrapped.dek": &b{Value: make([]byte, 60)}, "data": &b{Value: make([]byte, 541)}}
	run := func(name string, op func(ctx context.Context, i int) error) {
		bench.Run(name, func(b *testing.B) {
			m.write, m.read = 0, 0
			i := 0
			for ; b.Loop(); i++ {
				if err := op(b.Context(), i); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(m.write/float64(i), "WCU/op")
			b.ReportMetric(m.read/float64(i), "RCU/op")
		})
	}
	batch := func(prefix string, i int) (rows []envelope.Row) {
		for n := range 25 {
			rows = append(rows, envelope.Row{Item: row(prefix + name(i*25+n)), Plaintext: plain})
		}
		return rows
	}
	run("insert/unfenced", func(ctx context.Context, i int) error {
		it := row("u" + name(i))
		maps.Copy(it, sealed)
		_, err := m.PutItem(ctx, &dynamodb.PutItemInput{TableName: &w.table, Item: it, ConditionExpression: aws.String("attribute_not_exists(id)")})
		return err
	})
	run("insert/fenced", func(ctx context.Context, i int) error { return table.Insert(ctx, row("f"+name(i)), plain) })
	run("insert/keyed", func(ctx context.Context, i int) error { return keyed.Insert(ctx, row("k"+name(i)), plain) })
	run("insert of 25/unfenced", func(ctx context.Context, i int) error {
		in := &dynamodb.TransactWriteItemsInput{}
		for _, r := range batch("ub", i) {
			maps.Copy(r.Item, sealed)
			in.TransactItems = append(in.TransactItems, ddbtypes.TransactWriteItem{Put: &ddbtypes.Put{
				TableName: &w.table, Item: r.Item, ConditionExpression: aws.String("attribute_not_exists(id)"),
			}})
		}
		_, err := m.TransactWriteItems(ctx, in)
		return err
	})
	run("insert of 25/fenced", func(ctx context.Context, i int) error { return table.InsertAll(ctx, batch("fb", i)) })
	run("insert of 25/keyed", func(ctx context.Context, i int) error { return keyed.InsertAll(ctx, batch("kb", i)) })
	w.must("put", table.Put(bench.Context(), row("one"), plain))
	run("update/unfenced", func(ctx context.Context, _ int) error {
		_, err := m.GetItem(ctx, &dynamodb.GetItemInput{TableName: &w.table, Key: rowKey("one"), ConsistentRead: aws.Bool(true)})
		if err != nil {
			return err
		}
		_, err = m.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: &w.table, Key: rowKey("one"), UpdateExpression: aws.String("SET #d = :d, #k = :k, #w = :w"),
			ExpressionAttributeNames:  map[string]string{"#d": "data", "#k": "key", "#w": "wrapped.dek"},
			ExpressionAttributeValues: item{":d": sealed["data"], ":k": sealed["key"], ":w": sealed["wrapped.dek"]},
		})
		return err
	})
	w.must("put", table.Put(bench.Context(), row("two"), plain))
	run("update/fenced", func(ctx context.Context, _ int) error {
		return table.Update(ctx, rowKey("two"), func(*envelope.Row) error { return nil })
	})
	w.must("put", keyed.Put(bench.Context(), row("three"), plain))
	run("update/keyed", func(ctx context.Context, _ int) error {
		return keyed.Update(ctx, rowKey("three"), func(*envelope.Row) error { return nil })
	})
}
