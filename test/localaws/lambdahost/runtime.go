package lambdahost

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/proc"
)

// worker is one process of a function.
type worker struct {
	host    *Host
	pool    *pool
	key     string // its access key id, and its name in the URL of the Runtime API
	process *proc.Process
	work    chan *invocation // its next invocation, at most one
	used    bool             // it was given an invocation; owned by who took the worker

	mu      sync.Mutex
	current *invocation // the one it works on
}

func (w *worker) exited() bool {
	select {
	case <-w.process.Done():
		return true
	default:
		return false
	}
}

// ServeHTTP serves the Runtime API: <RuntimePath><access key>/2018-06-01/runtime/….
func (h *Host) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	key, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, RuntimePath), "/")
	rest = strings.TrimPrefix(rest, "2018-06-01/runtime/")
	h.mu.Lock()
	w := h.workers[key]
	h.mu.Unlock()
	id, verb, _ := strings.Cut(strings.TrimPrefix(rest, "invocation/"), "/")
	switch {
	case w == nil:
		http.Error(rw, "no such process", http.StatusForbidden)
	case rest == "invocation/next" && r.Method == http.MethodGet:
		w.next(rw, r)
	case (verb == "response" || verb == "error") && r.Method == http.MethodPost:
		w.answer(rw, r, id, verb == "error")
	case rest == "init/error" && r.Method == http.MethodPost:
		rw.WriteHeader(http.StatusAccepted) // the process exits next, which is what counts
	default:
		http.NotFound(rw, r)
	}
}

// next hands the process its next invocation; the deadline counts from here.
func (w *worker) next(rw http.ResponseWriter, r *http.Request) {
	var in *invocation
	select {
	case in = <-w.work:
	case <-r.Context().Done():
		return
	case <-w.process.Done():
		return
	}
	w.mu.Lock()
	w.current = in
	w.mu.Unlock()
	in.deadline = time.Now().Add(w.pool.Timeout)
	close(in.began)
	if in.kill == KilledFirst {
		w.process.Kill()
		return
	}
	h := rw.Header()
	h.Set("Lambda-Runtime-Aws-Request-Id", in.id)
	h.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(in.deadline.UnixMilli(), 10))
	h.Set("Lambda-Runtime-Invoked-Function-Arn", w.pool.ARN)
	h.Set("Content-Type", "application/json")
	_, _ = rw.Write(in.payload) // a process that is gone is noticed by its exit
}

// answer takes the process's answer to its current invocation.
func (w *worker) answer(rw http.ResponseWriter, r *http.Request, id string, failed bool) {
	payload, err := io.ReadAll(io.LimitReader(r.Body, MaxPayload+1))
	if err != nil {
		return // cut off: the exit of the process is its answer
	}
	w.mu.Lock()
	in := w.current
	if in == nil || in.id != id {
		w.mu.Unlock()
		http.Error(rw, "not the current invocation", http.StatusBadRequest)
		return
	}
	w.current = nil
	w.mu.Unlock()
	result := Result{Payload: payload}
	if failed || r.Trailer.Get("Lambda-Runtime-Function-Error-Type") != "" {
		result.FunctionError = "Unhandled"
	}
	in.answered <- result
	rw.WriteHeader(http.StatusAccepted)
}
