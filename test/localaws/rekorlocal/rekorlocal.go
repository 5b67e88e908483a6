// Package rekorlocal runs a real Rekor v2 log on this machine: the server of
// rekor-tiles on POSIX files, and before it one URL for both halves of the API, as
// a public instance has it: uploads go to the server, reads to its tiles.
//
// The server is the program that MATTER_REKOR_SERVER names, else
// build/rekor/rekor-server of the module, which make rekor-server builds from
// tools/rekor/go.mod.
package rekorlocal

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/proc"
)

// Origin is the log's name unless Options say otherwise.
const Origin = "rekor.local"

const (
	startTries   = 3 // a free port may be taken before the server binds it
	startTimeout = 20 * time.Second
	pollEvery    = 10 * time.Millisecond
)

// Options are the choices for [Start].
type Options struct {
	Dir      string        // keeps the log's key and its tiles; a log goes on from what is there
	Origin   string        // default: [Origin]
	Interval time.Duration // between checkpoints; default 1 s
}

// Log is a running log. Its server dies with this process.
type Log struct {
	URL string // without a trailing slash

	origin  string
	key     ed25519.PublicKey
	process *proc.Process
	front   *http.Server
}

// Trust is the log as a trust list names it.
func (l *Log) Trust() audit.Log {
	der, err := x509.MarshalPKIXPublicKey(l.key)
	if err != nil {
		panic(err) // an Ed25519 key can always be encoded
	}
	return audit.Log{URL: l.URL, Origin: l.origin, Key: der}
}

// Pid returns the id of the server's process.
func (l *Log) Pid() int { return l.process.Pid() }

// Done is closed when the server has exited.
func (l *Log) Done() <-chan struct{} { return l.process.Done() }

// Stop kills the server, as a crash would; it may be called again. What was
// answered is in the tiles.
func (l *Log) Stop() {
	_ = l.front.Close() // its only error is that of a listener closed before
	l.process.Kill()
}

// Start runs a log; ctx bounds only the start.
func Start(ctx context.Context, o Options) (*Log, error) {
	program, err := server()
	if err != nil {
		return nil, err
	}
	if o.Origin == "" {
		o.Origin = Origin
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	keyFile := filepath.Join(o.Dir, "key.pem")
	key, err := loadKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("key of the transparency log: %w", err)
	}
	var failure error
	for range startTries {
		l, err := launch(ctx, program, keyFile, o)
		if err == nil {
			l.origin, l.key = o.Origin, key
			return l, nil
		}
		if failure = fmt.Errorf("start the transparency log: %w", err); ctx.Err() != nil {
			break
		}
	}
	return nil, failure
}

func server() (string, error) {
	program := os.Getenv("MATTER_REKOR_SERVER")
	if program == "" {
		root, err := backend.Root()
		if err != nil {
			return "", err
		}
		program = filepath.Join(root, "build", "rekor", "rekor-server")
	}
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("the transparency log's server is %w at %s: run make rekor-server, or set MATTER_REKOR_SERVER to the program", backend.ErrNotInstalled, program)
	}
	return filepath.Abs(program)
}

// loadKey reads the log's key, or makes one.
func loadKey(file string) (ed25519.PublicKey, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return makeKey(file)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file", file)
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := private.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is no Ed25519 key", file)
	}
	public, _ := key.Public().(ed25519.PublicKey)
	return public, nil
}

func makeKey(file string) (ed25519.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	return public, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// launch starts the server and waits until it answers.
func launch(ctx context.Context, program, keyFile string, o Options) (*Log, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var ports [3]int // HTTP, gRPC, metrics
	for i := range ports {
		var err error
		if ports[i], err = backend.FreePort(); err != nil {
			return nil, err
		}
	}
	tiles := filepath.Join(o.Dir, "tiles")
	if err := os.MkdirAll(tiles, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "serve",
		"--hostname", o.Origin, "--signer-filepath", keyFile, "--storage-dir", tiles, "--persistent-antispam",
		"--checkpoint-interval", o.Interval.String(), "--log-level", "warn",
		"--http-port", strconv.Itoa(ports[0]), "--grpc-port", strconv.Itoa(ports[1]), "--http-metrics-port", strconv.Itoa(ports[2]))
	cmd.Env = []string{"HOME=" + o.Dir, "PATH=" + os.Getenv("PATH")}
	cmd.Dir = o.Dir
	logFile, err := os.Create(filepath.Join(o.Dir, "log"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	process, err := proc.Start(cmd)
	if err := errors.Join(err, logFile.Close()); err != nil {
		return nil, err
	}
	direct := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	if err := await(ctx, process, direct+"/healthz", logFile.Name()); err != nil {
		process.Kill()
		return nil, err
	}
	l := &Log{process: process}
	if err := l.serve(ctx, direct, tiles); err != nil {
		process.Kill()
		return nil, err
	}
	return l, nil
}

func await(ctx context.Context, p *proc.Process, url, logFile string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			if err := resp.Body.Close(); err != nil {
				return err
			}
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-p.Done():
			text, _ := os.ReadFile(logFile)
			return fmt.Errorf("it ended: %w\n%s", p.Err(), text)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// serve opens the one URL: uploads to the server, reads from the tiles.
func (l *Log) serve(ctx context.Context, direct, tiles string) error {
	target, err := url.Parse(direct)
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	files := http.StripPrefix("/api/v2/", http.FileServerFS(os.DirFS(tiles)))
	mux := http.NewServeMux()
	mux.Handle("POST /api/v2/log/entries", httputil.NewSingleHostReverseProxy(target))
	mux.Handle("GET /api/v2/checkpoint", files)
	mux.Handle("GET /api/v2/tile/", files)
	l.front = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	l.URL = "http://" + listener.Addr().String()
	go func() { _ = l.front.Serve(listener) }() // ends with Close
	return nil
}
