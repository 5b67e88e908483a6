package lambdahost

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// MaxPayload is the largest payload of a synchronous invocation, and answer.
const MaxPayload = 6 << 20

// initTimeout is how long a process may take to ask for its first invocation.
// Lambda gives 10 s on a machine of its own.
const initTimeout = time.Minute

// Result is the outcome of an invocation that Lambda accepted.
type Result struct {
	Payload       []byte
	FunctionError string // "Unhandled" if the function failed, else ""
}

// FunctionFailed returns the result of a function that failed with an error.
func FunctionFailed(errorType, message string) Result {
	b, _ := json.Marshal(map[string]string{"errorType": errorType, "errorMessage": message}) // of strings: cannot fail
	return Result{Payload: b, FunctionError: "Unhandled"}
}

// Killing says whether a fault kills the process of an invocation, and when.
type Killing int

// The ways to kill.
const (
	NotKilled   Killing = iota
	KilledFirst         // when the process has got the invocation
	KilledLast          // when the process has answered, before anybody hears of it
)

// invocation is one invocation on its way through a process.
type invocation struct {
	id       string
	payload  []byte
	kill     Killing
	began    chan struct{} // closed when a process takes it
	answered chan Result   // buffered
	deadline time.Time     // set before began is closed
}

func (in *invocation) started() bool {
	select {
	case <-in.began:
		return true
	default:
		return false
	}
}

// Invoke runs a function. A failure of the function is a Result; the error, always
// a [*wire.Error], is Lambda's own.
//
// It does not end with its caller: Lambda runs on when nobody listens.
func (h *Host) Invoke(nameOrARN string, payload []byte, kill Killing) (Result, error) {
	h.mu.Lock()
	p, ok := h.functions[Name(nameOrARN)]
	h.mu.Unlock()
	if !ok {
		return Result{}, &wire.Error{
			Status: http.StatusNotFound, Code: "ResourceNotFoundException",
			Message: "Function not found: " + nameOrARN,
		}
	}
	if len(payload) == 0 {
		payload = []byte("{}")
	}
	if !json.Valid(payload) {
		return Result{}, &wire.Error{
			Status: http.StatusBadRequest, Code: "InvalidRequestContentException",
			Message: "Could not parse request body into json",
		}
	}
	for {
		result, began, err := h.once(p, payload, kill)
		if began || err != nil {
			return result, err
		}
		// An idle process died before it took the invocation: nothing has happened.
	}
}

// once runs a function in one process. began is false if the process, which was
// idle, died without taking the invocation.
func (h *Host) once(p *pool, payload []byte, kill Killing) (result Result, began bool, err error) {
	w, err := h.take(p)
	if errors.Is(err, errThrottled) {
		return Result{}, false, &wire.Error{Status: http.StatusTooManyRequests, Code: "TooManyRequestsException", Message: "Rate Exceeded."}
	}
	if err != nil {
		return Result{}, false, &wire.Error{Status: http.StatusInternalServerError, Code: "ServiceException", Message: err.Error()}
	}
	in := &invocation{
		id: wire.RequestID(), payload: payload, kill: kill,
		began: make(chan struct{}), answered: make(chan Result, 1),
	}
	fresh := !w.used
	w.used = true
	w.work <- in // the process is idle or new: there is room
	initialised := time.NewTimer(initTimeout)
	defer initialised.Stop()
	select {
	case <-in.began:
	case <-initialised.C:
		w.process.Kill()
	case <-w.process.Done():
	}
	select {
	case <-in.began:
	case <-w.process.Done():
		if !in.started() {
			h.release(w, false)
			return exitError(in.id, w.process.Err()), fresh, nil
		}
	}
	result, reuse := w.await(in)
	h.release(w, reuse)
	return result, true, nil
}

// await waits until the process has answered, died, or run out of time.
func (w *worker) await(in *invocation) (result Result, reuse bool) {
	timer := time.NewTimer(time.Until(in.deadline))
	defer timer.Stop()
	select {
	case result = <-in.answered:
		if in.kill == KilledLast {
			w.process.Kill()
			return exitError(in.id, w.process.Err()), false
		}
		return result, true
	case <-w.process.Done():
		select {
		case result = <-in.answered: // a panic is posted, then the process exits
			return result, false
		default:
			return exitError(in.id, w.process.Err()), false
		}
	case <-timer.C:
		w.process.Kill()
		return timedOut(in.id, w.pool.Timeout), false
	}
}

// timedOut is the result of a process that was killed for taking too long.
func timedOut(id string, after time.Duration) Result {
	return FunctionFailed("Sandbox.Timedout", fmt.Sprintf("RequestId: %s Error: Task timed out after %.2f seconds", id, after.Seconds()))
}

// exitError is the result of a process that exited without an answer.
func exitError(id string, err error) Result {
	if err == nil {
		return FunctionFailed("Runtime.ExitError", "RequestId: "+id+" Error: Runtime exited without providing a reason")
	}
	return FunctionFailed("Runtime.ExitError", "RequestId: "+id+" Error: Runtime exited with error: "+err.Error())
}

// ServeInvoke answers Lambda's Invoke with what invoke returns.
func (h *Host) ServeInvoke(w http.ResponseWriter, r *http.Request, c wire.Call, kill Killing) {
	payload, err := wire.Body(r, MaxPayload)
	if err != nil {
		c.Write(w, &wire.Error{
			Status: http.StatusRequestEntityTooLarge, Code: "RequestTooLargeException",
			Message: err.Error(),
		})
		return
	}
	switch r.Header.Get("X-Amz-Invocation-Type") {
	case "DryRun":
		w.WriteHeader(http.StatusNoContent)
	case "Event":
		h.wg.Go(func() {
			// Lambda would try twice more, after a minute and two; here once.
			_, _ = h.Invoke(c.Function, payload, kill)
		})
		w.WriteHeader(http.StatusAccepted)
	default:
		result, err := h.Invoke(c.Function, payload, kill)
		var refused *wire.Error
		if errors.As(err, &refused) {
			c.Write(w, refused)
			return
		}
		WriteResult(w, result)
	}
}

// WriteResult answers a synchronous invocation.
func WriteResult(w http.ResponseWriter, result Result) {
	if len(result.Payload) > MaxPayload {
		result = FunctionFailed("Function.ResponseSizeTooLarge",
			fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", MaxPayload))
	}
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("X-Amzn-Requestid", wire.RequestID())
	header.Set("X-Amz-Executed-Version", "$LATEST")
	if result.FunctionError != "" {
		header.Set("X-Amz-Function-Error", result.FunctionError)
	}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(result.Payload) // the caller may be gone
}
