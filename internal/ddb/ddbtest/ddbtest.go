// Package ddbtest runs the official DynamoDB Local for tests: one process per test
// binary, started when the first test asks for it, on a free port of the loopback
// interface, in memory. It needs Java and the jars, in the directory that
// MATTER_DYNAMODB_LOCAL names, else in build/dynamodb-local/lib of this module.
//
// Without them tests are skipped, or fail if CI=true or MATTER_REQUIRE_LOCAL=1.
package ddbtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// Region is the region that clients are configured for.
const Region = "eu-central-1"

const (
	startTries   = 3 // the free port may be taken before the server binds it
	startTimeout = 30 * time.Second
)

// errNoJars reports that DynamoDB Local is not installed.
var errNoJars = errors.New("DynamoDB Local is not installed: set MATTER_DYNAMODB_LOCAL to the directory of its jars, or fetch them (tools/dynamodb-local)")

var server struct {
	once     sync.Once
	err      error
	endpoint string
	stop     func()
	tables   atomic.Int64
}

// Main runs the tests and then stops the server; a TestMain calls it.
func Main(m *testing.M) {
	code := m.Run()
	if server.stop != nil {
		server.stop()
	}
	os.Exit(code)
}

// Endpoint returns the URL of DynamoDB Local, which it starts the first time.
func Endpoint(t testing.TB) string {
	t.Helper()
	server.once.Do(func() { server.endpoint, server.stop, server.err = start() })
	switch {
	case errors.Is(server.err, errNoJars) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1":
		t.Skip(server.err)
	case server.err != nil:
		t.Fatal(server.err)
	}
	return server.endpoint
}

// Client returns a client of DynamoDB Local.
func Client(t testing.TB, options ...func(*dynamodb.Options)) *dynamodb.Client {
	t.Helper()
	return dynamodb.New(dynamodb.Options{
		BaseEndpoint: aws.String(Endpoint(t)), Region: Region,
		Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	}, options...)
}

// Key is one attribute of a table's primary key.
type Key struct {
	Name string
	Type types.ScalarAttributeType
}

// ControlTable makes an empty control table and returns its name.
func ControlTable(t testing.TB, client *dynamodb.Client) string {
	t.Helper()
	return Table(t, client, Key{"pk", types.ScalarAttributeTypeS}, Key{"sk", types.ScalarAttributeTypeS})
}

// Table makes an empty table with a hash key and perhaps a range key, and returns
// its name.
func Table(t testing.TB, client *dynamodb.Client, keys ...Key) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", server.tables.Add(1))
	in := &dynamodb.CreateTableInput{TableName: &name, BillingMode: types.BillingModePayPerRequest}
	for i, k := range keys {
		in.AttributeDefinitions = append(in.AttributeDefinitions, types.AttributeDefinition{AttributeName: &k.Name, AttributeType: k.Type})
		kind := []types.KeyType{types.KeyTypeHash, types.KeyTypeRange}[i]
		in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: &k.Name, KeyType: kind})
	}
	if _, err := client.CreateTable(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := client.DeleteTable(context.WithoutCancel(t.Context()), &dynamodb.DeleteTableInput{TableName: &name})
		var gone *types.ResourceNotFoundException
		if err != nil && !errors.As(err, &gone) {
			t.Error(err)
		}
	})
	return name
}

// start launches the server and waits until it answers.
func start() (endpoint string, stop func(), err error) {
	lib, err := jars()
	if err != nil {
		return "", nil, err
	}
	for range startTries {
		if endpoint, stop, err = launch(lib); err == nil {
			return endpoint, stop, nil
		}
	}
	return "", nil, err
}

// jars returns the directory of the jars as an absolute path.
func jars() (string, error) {
	dir := os.Getenv("MATTER_DYNAMODB_LOCAL")
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, "build", "dynamodb-local", "lib")
	}
	found, err := filepath.Glob(filepath.Join(dir, "DynamoDBLocal-*.jar"))
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%w; looked in %s", errNoJars, dir)
	}
	return filepath.Abs(dir)
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

func launch(lib string) (endpoint string, stop func(), err error) {
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	//nolint:gosec // the arguments are this file's own
	cmd := exec.CommandContext(ctx, "java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Djava.library.path="+lib, "-cp", filepath.Join(lib, "*"), "software.amazon.dynamodb.services.local.main.ServerRunner",
		"-inMemory", "-sharedDb", "-port", strconv.Itoa(port), "-disableTelemetry")
	cmd.Dir = os.TempDir()
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		cancel()
		return "", nil, fmt.Errorf("start DynamoDB Local: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stop = func() {
		cancel()
		<-exited
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	deadline := time.After(startTimeout)
	for {
		if c, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			return "http://" + address, stop, c.Close()
		}
		select {
		case err := <-exited:
			cancel()
			return "", nil, fmt.Errorf("DynamoDB Local ended: %w\n%s", err, output.Bytes())
		case <-deadline:
			stop()
			return "", nil, fmt.Errorf("DynamoDB Local does not answer\n%s", output.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // it is TCP
	return port, l.Close()
}
