// Package ddbtest runs dynoxide, a DynamoDB, for tests: one process per test binary,
// started when the first test asks for it; see package backend for what it needs.
// Without it tests are skipped, or fail if CI=true or MATTER_REQUIRE_LOCAL=1.
package ddbtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// Region is the region that clients are configured for.
const Region = "eu-central-1"

var server struct {
	once    sync.Once
	err     error
	running *backend.Server
	tables  atomic.Int64
}

// Main runs the tests and then stops the server; a TestMain calls it.
func Main(m *testing.M) {
	code := m.Run()
	if server.running != nil {
		server.running.Stop()
	}
	os.Exit(code)
}

// Endpoint returns the URL of dynoxide, which it starts the first time.
func Endpoint(tb testing.TB) string {
	tb.Helper()
	server.once.Do(func() { server.running, server.err = backend.DynamoDB(tb.Context()) })
	switch {
	case errors.Is(server.err, backend.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1":
		tb.Skip(server.err)
	case server.err != nil:
		tb.Fatal(server.err)
	}
	return server.running.URL
}

// Client returns a client of dynoxide.
func Client(tb testing.TB, options ...func(*dynamodb.Options)) *dynamodb.Client {
	tb.Helper()
	return dynamodb.New(dynamodb.Options{
		BaseEndpoint: aws.String(Endpoint(tb)), Region: Region,
		Credentials: credentials.NewStaticCredentialsProvider("local", backend.Secret, ""),
	}, options...)
}

// Key is one attribute of a table's primary key.
type Key struct {
	Name string
	Type types.ScalarAttributeType
}

// Tables is what makes and removes tables: a client of the SDK, or a DynamoDB in
// memory.
type Tables interface {
	CreateTable(context.Context, *dynamodb.CreateTableInput, ...func(*dynamodb.Options)) (*dynamodb.CreateTableOutput, error)
	DeleteTable(context.Context, *dynamodb.DeleteTableInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteTableOutput, error)
}

// ControlTable makes an empty control table and returns its name.
func ControlTable(tb testing.TB, client Tables) string {
	tb.Helper()
	return Table(tb, client, Key{"pk", types.ScalarAttributeTypeS}, Key{"sk", types.ScalarAttributeTypeS})
}

// Table makes an empty table with a hash key and perhaps a range key, and returns
// its name.
func Table(tb testing.TB, client Tables, keys ...Key) string {
	tb.Helper()
	name := fmt.Sprintf("test-%d", server.tables.Add(1))
	in := &dynamodb.CreateTableInput{TableName: &name, BillingMode: types.BillingModePayPerRequest}
	for i, k := range keys {
		in.AttributeDefinitions = append(in.AttributeDefinitions, types.AttributeDefinition{AttributeName: &k.Name, AttributeType: k.Type})
		kind := []types.KeyType{types.KeyTypeHash, types.KeyTypeRange}[i]
		in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: &k.Name, KeyType: kind})
	}
	if _, err := client.CreateTable(tb.Context(), in); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_, err := client.DeleteTable(context.WithoutCancel(tb.Context()), &dynamodb.DeleteTableInput{TableName: &name})
		var gone *types.ResourceNotFoundException
		if err != nil && !errors.As(err, &gone) {
			tb.Error(err)
		}
	})
	return name
}
