package mutation

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// motoTest starts moto for the tests that import it; motoURL is the variable that names
// it one that runs already.
const (
	motoTest = "github.com/matter-ops/kms-rotation/test/mototest"
	motoURL  = "MATTER_MOTO_URL"
)

// startsMoto reports whether a package's tests start moto.
func startsMoto(ctx context.Context, root, dir string) (bool, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-test", "./"+dir) //nolint:gosec // a package of this module
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return false, fmt.Errorf("go list -test ./%s: %w", dir, err)
	}
	return slices.Contains(strings.Fields(string(out)), motoTest), nil
}

// servers are those of one worker: moto, which would take longer to start than the
// tests to run. dynoxide starts in milliseconds, with each run.
type servers struct{ moto *backend.Server }

// environment returns what tells the tests of the servers that outlive them. It starts
// moto, and starts it again when it has died.
func (s *servers) environment(ctx context.Context, moto bool) ([]string, error) {
	if !moto {
		return nil, nil
	}
	if s.moto == nil || s.dead() {
		var err error
		if s.moto, err = backend.Moto(ctx, backend.MotoOptions{}); err != nil {
			return nil, err
		}
	}
	return []string{motoURL + "=" + s.moto.URL}, empty(ctx, s.moto.URL)
}

func (s *servers) dead() bool {
	select {
	case <-s.moto.Done():
		return true
	default:
		return false
	}
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
	if s.moto != nil {
		s.moto.Stop()
	}
}
