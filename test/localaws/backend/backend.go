// Package backend runs the two servers that the local AWS is made of: dynoxide, a
// DynamoDB, and moto, each on a free port of the loopback interface, in memory.
//
// dynoxide is the program that MATTER_DYNOXIDE names, else build/dynoxide of the module,
// else the one in PATH.
// moto is the program that MATTER_MOTO_SERVER names, else .venv/bin/moto_server of
// the module. The module is the directory that MATTER_ROOT names, else the nearest
// one with a go.mod from the working directory upwards.
package backend

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/proc"
)

// ErrNotInstalled reports that a server is not on this machine; the error that
// wraps it names what to do.
var ErrNotInstalled = errors.New("not installed")

// Account is the AWS account that both servers play.
const Account = "123456789012"

// Secret is the secret access key of everyone; signatures are not checked. A shorter one is no
// key of an HMAC in FIPS 140-3 mode.
const Secret = "local-secret-access-key"

const (
	startTries   = 3 // the free port may be taken before the server binds it
	startTimeout = 60 * time.Second
	pollEvery    = 20 * time.Millisecond
	pollTimeout  = 2 * time.Second
)

// Server is a running server. It dies with this process.
type Server struct {
	// URL is its endpoint, without a trailing slash.
	URL string

	process *proc.Process
}

// Pid returns the id of the server's process.
func (s *Server) Pid() int { return s.process.Pid() }

// Stop kills the server and waits for its exit; it may be called again.
func (s *Server) Stop() { s.process.Kill() }

// Done is closed when the server has exited.
func (s *Server) Done() <-chan struct{} { return s.process.Done() }

// DynamoDB starts dynoxide; ctx bounds only the start.
func DynamoDB(ctx context.Context) (*Server, error) {
	program, err := dynoxide()
	if err != nil {
		return nil, err
	}
	return start(ctx, "dynoxide", probe{path: "/", server: "Dynoxide"}, func(port int) *exec.Cmd {
		return exec.CommandContext(context.WithoutCancel(ctx), program, "--host", "127.0.0.1", "--port", strconv.Itoa(port))
	})
}

// dynoxide returns the absolute path of the program.
func dynoxide() (string, error) {
	program, err := fromEnvOrRoot("MATTER_DYNOXIDE", "build", "dynoxide")
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	if found, err := exec.LookPath("dynoxide"); err == nil {
		return filepath.Abs(found)
	}
	return "", fmt.Errorf("dynoxide, the local DynamoDB, is %w as %s: run make dynoxide, or set MATTER_DYNOXIDE to the program", ErrNotInstalled, program)
}

func fromEnvOrRoot(variable string, path ...string) (string, error) {
	if v := os.Getenv(variable); v != "" {
		return filepath.Abs(v)
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(append([]string{root}, path...)...), nil
}

// Root returns the directory of the module.
func Root() (string, error) {
	if root := os.Getenv("MATTER_ROOT"); root != "" {
		return filepath.Abs(root)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", errors.New("no go.mod in the working directory or above: run this in the module, or set MATTER_ROOT")
		}
		dir = filepath.Dir(dir)
	}
}

// start launches a server, on another port if one was taken meanwhile.
func start(ctx context.Context, name string, p probe, command func(port int) *exec.Cmd) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var failure error
	for range startTries {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		s, err := launch(ctx, command(port), port, p)
		if err == nil {
			return s, nil
		}
		if failure = fmt.Errorf("start %s: %w", name, err); ctx.Err() != nil {
			break
		}
	}
	return nil, failure
}

// serverEnv is what a server gets of this process's environment: neither credentials nor
// HTTP proxies.
func serverEnv() (env []string) {
	for _, k := range []string{"PATH", "HOME", "TMPDIR", "LANG"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// launch starts the server and waits until it answers.
func launch(ctx context.Context, cmd *exec.Cmd, port int, p probe) (*Server, error) {
	cmd.Env = append(cmd.Env, serverEnv()...)
	cmd.Dir = os.TempDir()
	output := &tail{}
	cmd.Stdout, cmd.Stderr = output, output
	process, err := proc.Start(cmd)
	if err != nil {
		return nil, err
	}
	s := &Server{URL: "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), process: process}
	for !p.answers(ctx, s.URL) {
		select {
		case <-process.Done():
			return nil, fmt.Errorf("it ended: %w\n%s", process.Err(), output)
		case <-ctx.Done():
			s.Stop()
			return nil, fmt.Errorf("it does not answer: %w\n%s", ctx.Err(), output)
		case <-time.After(pollEvery):
		}
	}
	return s, nil
}

// probe tells a server by how it answers: whoever has taken the port meanwhile is
// another one.
type probe struct {
	path   string
	server string // how the header Server begins
}

// answers reports whether the server answers, with whatever status.
func (p probe) answers(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+p.path, nil)
	if err != nil {
		return false
	}
	// A transport of its own: no HTTP proxy, and no connection that outlives the probe.
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && strings.HasPrefix(resp.Header.Get("Server"), p.server)
}

// The ports of servers are below those that systems give to connections and to
// listeners that name none: nobody takes one by chance before the server binds it.
const (
	firstPort = 10_000
	ports     = 22_000
	portTries = 100
)

// FreePort returns a loopback port that was free a moment ago.
func FreePort() (int, error) {
	var faults error
	for range portTries {
		port := firstPort + rand.IntN(ports)
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
		faults = err
	}
	return 0, faults
}
