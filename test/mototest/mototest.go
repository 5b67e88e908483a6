// Package mototest runs moto for tests: one server per test binary, started when
// the first test asks for it. Clients reach it through one [strict.Transport], so
// that what passes here holds on AWS.
//
// MATTER_MOTO_URL names a moto that runs already, and is empty, to be used instead.
// Where moto is not installed tests are skipped, or fail if CI=true or
// MATTER_REQUIRE_LOCAL=1.
package mototest

import (
	"context"
	"errors"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/strict"
)

// Region is the region that clients are configured for.
const Region = "eu-central-1"

var server struct {
	once sync.Once
	err  error
	moto *backend.Server // nil where it is not ours
	url  string
	wire *strict.Transport
}

// Main runs the tests and then stops the server; a TestMain calls it.
func Main(m *testing.M) {
	code := m.Run()
	if server.moto != nil {
		server.moto.Stop()
	}
	os.Exit(code)
}

// Endpoint returns the URL of moto, which it starts the first time. Requests to it
// should go through [Transport].
func Endpoint(t testing.TB) string {
	t.Helper()
	server.once.Do(func() {
		server.wire = strict.New(http.DefaultTransport)
		if server.url = os.Getenv("MATTER_MOTO_URL"); server.url != "" {
			return
		}
		if server.moto, server.err = backend.Moto(context.WithoutCancel(t.Context()), backend.MotoOptions{}); server.err == nil {
			server.url = server.moto.URL
		}
	})
	switch {
	case errors.Is(server.err, backend.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1":
		t.Skip(server.err)
	case server.err != nil:
		t.Fatal(server.err)
	}
	return server.url
}

// Transport returns the way to moto.
func Transport(t testing.TB) http.RoundTripper {
	t.Helper()
	Endpoint(t)
	return server.wire
}

// Config returns the configuration of SDK clients of moto. Requests go through the
// wires, the first of which sees them first, and then through [Transport]. A
// request is tried up to three times.
func Config(t testing.TB, wires ...Wire) aws.Config {
	t.Helper()
	way := Transport(t)
	for i := range wires {
		way = bound{wires[len(wires)-1-i], way}
	}
	endpoint := Endpoint(t)
	return aws.Config{
		BaseEndpoint: &endpoint, Region: Region, Credentials: credentials.NewStaticCredentialsProvider("local", backend.Secret, ""),
		HTTPClient: &http.Client{Transport: way},
		Retryer: func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = time.Millisecond })
		},
	}
}

// Wire sees every request of a client. next sends it on.
type Wire func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error)

type bound struct {
	wire Wire
	next http.RoundTripper
}

func (b bound) RoundTrip(r *http.Request) (*http.Response, error) { return b.wire(r, b.next.RoundTrip) }

// ErrBroken is the error of a broken wire.
var ErrBroken = errors.New("connection reset by test")

// Break breaks the first request that match selects: before it is sent or, with
// sent, after moto has answered, so that only the answer is lost.
func Break(match func(*http.Request) bool, sent bool) Wire {
	var once sync.Once
	return func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		broken := false
		if match(r) {
			once.Do(func() { broken = true })
		}
		if !broken {
			return next(r)
		}
		if !sent {
			return nil, ErrBroken
		}
		resp, err := next(r)
		if err != nil {
			return nil, err
		}
		return nil, errors.Join(ErrBroken, resp.Body.Close())
	}
}
