package mutation

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"strings"

	"github.com/matter-ops/kms-rotation/internal/localaws/backend"
)

// Packages that start a server for the tests that import them, and the variables
// that name them a server that runs already.
const (
	module      = "github.com/matter-ops/kms-rotation"
	motoTest    = module + "/internal/mototest"
	dynamoTest  = module + "/internal/ddb/ddbtest"
	motoURL     = "MATTER_MOTO_URL"
	dynamoDBURL = "MATTER_DYNAMODB_URL"
)

// serversOf lists the packages of a package's tests that start servers.
func serversOf(ctx context.Context, root, dir string) (found []string, err error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-test", "./"+dir) //nolint:gosec // a package of this module
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -test ./%s: %w", dir, err)
	}
	for _, p := range strings.Fields(string(out)) {
		if p == motoTest || p == dynamoTest {
			found = append(found, p)
		}
	}
	return found, nil
}

// servers are those of one worker. They outlive the tests, which would take longer
// to start them than to run.
type servers struct{ moto, dynamo *backend.Server }

// environment returns what tells the tests of the servers, which it starts, and
// starts again when they have died.
func (s *servers) environment(ctx context.Context, needed []string) (env []string, err error) {
	for _, p := range needed {
		switch p {
		case motoTest:
			if err := restart(&s.moto, func() (*backend.Server, error) { return backend.Moto(ctx, backend.MotoOptions{}) }); err != nil {
				return nil, err
			}
			if err := empty(ctx, s.moto.URL); err != nil {
				return nil, err
			}
			env = append(env, motoURL+"="+s.moto.URL)
		case dynamoTest:
			if err := restart(&s.dynamo, func() (*backend.Server, error) { return backend.DynamoDBLocal(ctx) }); err != nil {
				return nil, err
			}
			env = append(env, dynamoDBURL+"="+s.dynamo.URL)
		}
	}
	return env, nil
}

func restart(s **backend.Server, start func() (*backend.Server, error)) (err error) {
	if *s != nil {
		select {
		case <-(*s).Done():
		default:
			return nil
		}
	}
	*s, err = start()
	return err
}

// empty removes everything from moto: tests use the same names again.
func empty(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/moto-api/reset", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("empty moto: %w", err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("empty moto: %s, %w", resp.Status, err)
	}
	return nil
}

func (s *servers) stop() {
	for _, b := range []*backend.Server{s.moto, s.dynamo} {
		if b != nil {
			b.Stop()
		}
	}
}
