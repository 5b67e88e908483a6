package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/acceptance"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/rekorlocal"
)

// localTarget is the local AWS as the acceptance sees it. It deploys once: it has no
// operation that deletes a stack.
type localTarget struct {
	stack   *localaws.Stack
	started chan map[string]string // the parameters, once they are known
	up      chan error
}

func (l *localTarget) AWS() aws.Config { return l.stack.AWSConfig() }

func (l *localTarget) Deploy(_ context.Context, _ string, parameters map[string]string) ([]string, error) {
	l.started <- parameters
	if err := <-l.up; err != nil {
		return nil, err
	}
	var env []string
	all := l.stack.Env()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		env = append(env, name+"="+all[name])
	}
	return env, nil
}

func (*localTarget) Delete(context.Context, string) error { return errors.ErrUnsupported }

// TestAcceptance makes the run of make aws-acceptance on the local AWS.
func TestAcceptance(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts servers")
	}
	t.Parallel()
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(root, "bin", "matter")
	if _, err := os.Stat(tool); err != nil && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip("the tool is not built: make build")
	}
	dir := t.TempDir()
	log, err := rekorlocal.Start(t.Context(), rekorlocal.Options{Dir: filepath.Join(dir, "rekor")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Stop)
	target := &localTarget{started: make(chan map[string]string), up: make(chan error, 1)}
	servers := make(chan *localaws.Stack, 1)
	go func() {
		stack, err := localaws.Start(t.Context(), localaws.Options{
			StackName: acceptance.Prefix + "local", Dir: dir,
			// The servers are up and the stack is not there: the run makes its tables.
			Prepare: func(_ context.Context, s *localaws.Stack) error {
				servers <- s
				parameters := <-target.started
				trust, err := json.Marshal(audit.Trust{Logs: []audit.Log{log.Trust()}, AnchorKeys: []audit.PinnedKey{}})
				parameters["TransparencyLogs"] = string(trust)
				s.SetParameters(parameters)
				return err
			},
		})
		if err == nil {
			t.Cleanup(stack.Close)
		}
		target.up <- err
	}()
	select {
	case target.stack = <-servers:
	case err := <-target.up:
		t.Fatal(err)
	}
	table, left, err := acceptance.Run(t.Context(), target, acceptance.Options{
		Stack: acceptance.Prefix + "local", Account: backend.Account, Region: target.stack.Region, Tool: tool, Evidence: filepath.Join(dir, "evidence"),
		Load: 8 * time.Second, Lease: 20 * time.Second, Poll: 250 * time.Millisecond, Out: testWriter{t},
		Settings: map[string]string{"KeySettleSeconds": "0"}, // tags are known at once here
		Without: map[string]string{
			"delete": "the local AWS deletes no stack", "deploy again": "the local AWS deletes no stack", "uninstall": "the local AWS deletes no stack",
		},
	})
	if err != nil {
		t.Error(err)
	}
	if len(table) != len(acceptance.Names()) {
		t.Errorf("%d stages of %d", len(table), len(acceptance.Names()))
	}
	var text bytes.Buffer
	if err := acceptance.Print(&text, table); err != nil {
		t.Error(err)
	}
	t.Log("\n" + text.String())
	lines, err := acceptance.Clean(t.Context(), target.AWS(), left)
	if err != nil || len(left.ControlTables) != 1 {
		t.Errorf("%+v, %v", left, err)
	}
	removed := 0
	for _, line := range lines {
		if t.Log(line); !strings.HasPrefix(line, "left: ") {
			removed++
		}
	}
	if removed != 10 { // two tables of rows, the control table, five KEKs, the anchor key, aliases
		t.Errorf("%d things were removed", removed)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}
