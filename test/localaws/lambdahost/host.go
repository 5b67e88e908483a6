// Package lambdahost runs Lambda functions as Lambda does, from their built
// binaries: it serves the Lambda Runtime API to one process per concurrent
// invocation, keeps idle processes warm, kills what runs into its timeout, and
// answers invocations in Lambda's words.
package lambdahost

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/proc"
)

// Function is a function as it was deployed.
type Function struct {
	Name     string // physical name
	Short    string // name of its folder; names it in faults, call counts and logs
	ARN      string
	Role     string // ARN
	Program  string // path of the bootstrap
	Env      map[string]string
	Timeout  time.Duration
	MemoryMB int
	Reserved int // reserved concurrency, 0 for none
}

// Options are what a Host needs to know.
type Options struct {
	Address  string // host:port at which the functions reach [Host.ServeHTTP]
	Endpoint string // AWS_ENDPOINT_URL of the functions
	Region   string
	LogDir   string // gets <short name>.log per function
}

// RuntimePath is the URL path below which a Host serves the Runtime API.
const RuntimePath = "/_runtime/"

// Host runs functions.
type Host struct {
	o      Options
	ctx    context.Context // of all processes
	cancel context.CancelFunc

	mu        sync.Mutex
	functions map[string]*pool   // by physical name
	workers   map[string]*worker // by access key id
	started   int
	closed    bool
	wg        sync.WaitGroup // asynchronous invocations
}

// pool is a function and its processes.
type pool struct {
	Function
	log  *os.File
	idle []*worker // newest last
	busy int
}

// New returns a host without functions.
func New(o Options) (*Host, error) {
	if err := os.MkdirAll(o.LogDir, 0o750); err != nil {
		return nil, err
	}
	h := &Host{o: o, functions: map[string]*pool{}, workers: map[string]*worker{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// Add makes a function known. Its program must exist.
func (h *Host) Add(f Function) error {
	if info, err := os.Stat(f.Program); err != nil || info.IsDir() {
		return fmt.Errorf("function %s: no program at %s: run make build", f.Name, f.Program)
	}
	log, err := os.OpenFile(filepath.Join(h.o.LogDir, f.Short+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.functions[f.Name]; ok {
		return errors.Join(fmt.Errorf("function %s exists", old.Name), log.Close())
	}
	h.functions[f.Name] = &pool{Function: f, log: log}
	return nil
}

// Functions returns the functions by name.
func (h *Host) Functions() []Function {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]Function, 0, len(h.functions))
	for _, name := range slices.Sorted(maps.Keys(h.functions)) {
		out = append(out, h.functions[name].Function)
	}
	return out
}

// Lookup returns the function of a name or ARN, with or without a qualifier.
func (h *Host) Lookup(nameOrARN string) (Function, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.functions[Name(nameOrARN)]
	if !ok {
		return Function{}, false
	}
	return p.Function, true
}

// Name returns the physical name in a name or ARN, with or without a qualifier.
func Name(nameOrARN string) string {
	name := nameOrARN
	if _, after, ok := strings.Cut(name, ":function:"); ok {
		name = after
	}
	name, _, _ = strings.Cut(name, ":")
	return name
}

// Caller returns the function whose process has the access key.
func (h *Host) Caller(accessKey string) (Function, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w, ok := h.workers[accessKey]
	if !ok {
		return Function{}, false
	}
	return w.pool.Function, true
}

// Kill kills the process that has the access key, and waits until it is gone.
func (h *Host) Kill(accessKey string) {
	h.mu.Lock()
	w := h.workers[accessKey]
	h.mu.Unlock()
	if w != nil {
		w.process.Kill()
	}
}

// Close kills every process and waits for them and for asynchronous invocations.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	h.cancel()
	workers := slices.Collect(maps.Values(h.workers))
	h.mu.Unlock()
	for _, w := range workers {
		w.process.Kill()
	}
	h.wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.functions {
		_ = p.log.Close() // appended lines are written already
	}
}

// errThrottled reports that a function runs as often at once as it may.
var errThrottled = errors.New("reserved concurrency is used up")

// take returns a process for one invocation: an idle one, or a new one.
func (h *Host) take(p *pool) (*worker, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errors.New("the local AWS is closed")
	}
	if p.Reserved > 0 && p.busy >= p.Reserved {
		return nil, errThrottled
	}
	for len(p.idle) > 0 {
		w := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if !w.exited() {
			p.busy++
			return w, nil
		}
	}
	w, err := h.start(p)
	if err == nil {
		p.busy++
	}
	return w, err
}

// release gives a process back after an invocation; reuse says that it answered.
func (h *Host) release(w *worker, reuse bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.pool.busy--
	if reuse && !w.exited() {
		w.pool.idle = append(w.pool.idle, w)
	}
}

// start starts a process of a function. h.mu is held.
func (h *Host) start(p *pool) (*worker, error) {
	h.started++
	w := &worker{
		host: h, pool: p, work: make(chan *invocation, 1),
		key: "LOCAL" + strings.ToUpper(p.Short) + fmt.Sprintf("%06d", h.started),
	}
	cmd := exec.CommandContext(h.ctx, p.Program)
	cmd.Dir = filepath.Dir(p.Program)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.Env = h.environment(p.Function, w.key)
	process, err := proc.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start function %s: %w", p.Name, err)
	}
	w.process = process
	h.workers[w.key] = w
	go func() {
		<-process.Done()
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.workers, w.key)
	}()
	return w, nil
}

// environment returns what Lambda gives a process. Nothing of this process's own
// environment but PATH, HOME and GODEBUG gets there.
func (h *Host) environment(f Function, accessKey string) []string {
	env := map[string]string{}
	for _, k := range []string{"PATH", "HOME", "GODEBUG"} {
		if v, ok := os.LookupEnv(k); ok {
			env[k] = v
		}
	}
	maps.Copy(env, f.Env)
	maps.Copy(env, map[string]string{
		"AWS_LAMBDA_RUNTIME_API":          h.o.Address + RuntimePath + accessKey,
		"AWS_ENDPOINT_URL":                h.o.Endpoint,
		"AWS_REGION":                      h.o.Region,
		"AWS_DEFAULT_REGION":              h.o.Region,
		"AWS_ACCESS_KEY_ID":               accessKey,
		"AWS_SECRET_ACCESS_KEY":           backend.Secret,
		"AWS_EC2_METADATA_DISABLED":       "true",
		"AWS_LAMBDA_FUNCTION_NAME":        f.Name,
		"AWS_LAMBDA_FUNCTION_VERSION":     "$LATEST",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(f.MemoryMB),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_LAMBDA_LOG_GROUP_NAME":       "/aws/lambda/" + f.Name,
		"AWS_LAMBDA_LOG_STREAM_NAME":      accessKey,
		"LAMBDA_TASK_ROOT":                filepath.Dir(f.Program),
		"_HANDLER":                        filepath.Base(f.Program),
		"TZ":                              ":UTC",
	})
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}
