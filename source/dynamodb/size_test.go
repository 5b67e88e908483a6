package dynamodb_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

// TestSize: what a table takes a second, and what sees each rewrap beside it.
func TestSize(t *testing.T) {
	client := ddbtest.Client(t)
	table := idTable(t, client)
	cfg := sourceConfig(table) // its attributes: key, wrapped.dek, data, kek_epoch, version
	index := func(name string, p types.ProjectionType, more ...string) types.GlobalSecondaryIndexDescription {
		return types.GlobalSecondaryIndexDescription{
			IndexName: &name, KeySchema: []types.KeySchemaElement{{AttributeName: aws.String("user"), KeyType: types.KeyTypeHash}},
			Projection: &types.Projection{ProjectionType: p, NonKeyAttributes: more},
		}
	}
	byKEK := index("by-kek", types.ProjectionTypeKeysOnly)
	byKEK.KeySchema[0].AttributeName = aws.String("key")
	for name, c := range map[string]struct {
		change func(*types.TableDescription)
		want   source.Size
	}{
		"nothing said": {func(*types.TableDescription) {}, source.Size{}},
		"counts":       {func(d *types.TableDescription) { d.ItemCount, d.TableSizeBytes = aws.Int64(10), aws.Int64(1000) }, source.Size{Items: 10, Bytes: 1000}},
		"on demand": {func(d *types.TableDescription) {
			d.WarmThroughput = &types.TableWarmThroughputDescription{ReadUnitsPerSecond: aws.Int64(12000), WriteUnitsPerSecond: aws.Int64(4000)}
		}, source.Size{WritesPerSecond: 4000, ReadsPerSecond: 12000}},
		"provisioned": {func(d *types.TableDescription) {
			d.ProvisionedThroughput = &types.ProvisionedThroughputDescription{ReadCapacityUnits: aws.Int64(50), WriteCapacityUnits: aws.Int64(20)}
			d.WarmThroughput = &types.TableWarmThroughputDescription{ReadUnitsPerSecond: aws.Int64(12000), WriteUnitsPerSecond: aws.Int64(4000)}
		}, source.Size{WritesPerSecond: 20, ReadsPerSecond: 50}},
		"indexes": {func(d *types.TableDescription) {
			d.GlobalSecondaryIndexes = []types.GlobalSecondaryIndexDescription{
				index("all", types.ProjectionTypeAll), index("keys", types.ProjectionTypeKeysOnly), byKEK,
				index("others", types.ProjectionTypeInclude, "user"), index("version", types.ProjectionTypeInclude, "user", "version"),
			}
			d.LocalSecondaryIndexes = []types.LocalSecondaryIndexDescription{{IndexName: aws.String("local"), Projection: &types.Projection{ProjectionType: types.ProjectionTypeAll}}}
		}, source.Size{Copies: []source.Copy{
			{Name: "index all", Times: 1}, {Name: "index by-kek", Times: 2}, {Name: "index version", Units: 1, Times: 1}, {Name: "index local", Times: 1},
		}}},
		"replica": {func(d *types.TableDescription) {
			d.Replicas = []types.ReplicaDescription{{RegionName: aws.String("eu-west-1")}}
		}, source.Size{Copies: []source.Copy{{Name: "replica in eu-west-1", Times: 1}}}},
		"stream": {func(d *types.TableDescription) {
			d.StreamSpecification, d.LatestStreamLabel = &types.StreamSpecification{StreamEnabled: aws.Bool(true)}, aws.String("2026-04-01")
		}, source.Size{Readers: []string{"DynamoDB stream 2026-04-01"}}},
	} {
		bare := func(d *types.TableDescription) {
			d.ItemCount, d.TableSizeBytes, d.ProvisionedThroughput, d.WarmThroughput = nil, nil, nil, nil
			c.change(d)
		}
		got, err := open(t, described{client, bare}, cfg).Size(t.Context())
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	if c := open(t, client, cfg).Traits(); c.PageItems < 1 || c.PageBytes != 1<<20 {
		t.Errorf("%+v", c)
	}
}
