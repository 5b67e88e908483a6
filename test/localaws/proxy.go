package localaws

import (
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/fault"
	"github.com/matter-ops/kms-rotation/test/localaws/lambdahost"
	"github.com/matter-ops/kms-rotation/test/localaws/strict"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// proxy is the one endpoint of the local AWS. It counts and checks each call, lets
// faults happen, and passes it on: DynamoDB to dynoxide, Lambda's Invoke to
// the host of the functions, all else to moto.
type proxy struct {
	dynamo, moto *httputil.ReverseProxy
	motoURL      string
	behind       http.RoundTripper // of [Stack.Behind], which does not count as use of a key
	host         *lambdahost.Host
	control      http.Handler
	calls        counter
	faults       fault.Set
	serial       keyedMutex
	conflicts    conflicts
	lag          lag
	tap          tap
	ready        atomic.Bool
	now          func() time.Time
	access       atomic.Pointer[permissions] // nil for no checks
}

// newProxy returns a proxy before the two servers.
func newProxy(dynamoURL, motoURL string, host *lambdahost.Host) (*proxy, error) {
	p := &proxy{motoURL: motoURL, host: host, now: time.Now, conflicts: conflicts{url: dynamoURL}}
	var err error
	if p.dynamo, err = reverse(dynamoURL); err != nil {
		return nil, err
	}
	if p.moto, err = reverse(motoURL); err != nil {
		return nil, err
	}
	p.behind = strict.New(p.moto.Transport)
	p.moto.Transport = strict.New(p.moto.Transport)
	p.control = p.controlAPI()
	return p, nil
}

// reverse returns a proxy that changes neither Host nor headers: moto routes by
// them.
func reverse(target string) (*httputil.ReverseProxy, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{
			DisableCompression: true, MaxIdleConnsPerHost: 64,
			// Shorter than the servers': a connection must not be closed under a request.
			IdleConnTimeout: 3 * time.Second,
		},
		// The caller is gone, or a server is: no answer is the honest one.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}, nil
}

// ServeHTTP implements [http.Handler].
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/_local/"):
		p.control.ServeHTTP(w, r)
	case strings.HasPrefix(r.URL.Path, lambdahost.RuntimePath):
		p.host.ServeHTTP(w, r)
	case strings.HasPrefix(r.URL.Path, "/moto-api/"):
		p.moto.ServeHTTP(w, r)
	default:
		p.serveCall(w, r)
	}
}

// serveCall serves one AWS call.
func (p *proxy) serveCall(w http.ResponseWriter, r *http.Request) {
	// Else the server closes the request's body when the answer begins, which the
	// transport may just be reading to its end, and the answer is cut off.
	_ = http.NewResponseController(w).EnableFullDuplex() // a recorder has none
	c, err := wire.Parse(r)
	if err != nil {
		refuse(w, r, c, &wire.Error{Status: http.StatusBadRequest, Code: "IncompleteSignature", Message: err.Error()})
		return
	}
	if e := c.CheckAge(p.now()); e != nil {
		refuse(w, r, c, e)
		return
	}
	caller, isFunction := p.host.Caller(c.AccessKey)
	about := caller.Short
	if c.Function != "" {
		called, ok := p.host.Lookup(c.Function)
		about, isFunction = called.Short, ok
	}
	p.calls.add(c, about)
	if permissions := p.access.Load(); permissions != nil {
		if e := permissions.check(r, c, caller); e != nil {
			refuse(w, r, c, e)
			return
		}
		if c.Operation == "GetObject" || c.Operation == "HeadObject" {
			w = &objectWriter{
				ResponseWriter: w, call: c,
				noLock:   !permissions.may(r, c, caller, "GetObjectRetention"),
				noAbsent: !permissions.may(r, c, caller, "HeadBucket"),
			}
		}
		if changesKeys(c) {
			defer permissions.forgetKeys()()
		}
	}
	f, ok := p.faults.Next(c.Service, c.Operation, about, isFunction)
	if !ok {
		p.forward(w, r, c, lambdahost.NotKilled)
		return
	}
	p.fail(w, r, c, f)
}

// refuse answers with an error once the request is read: else the server resets the
// connection, on which the client may be sending its next request already.
func refuse(w http.ResponseWriter, r *http.Request, c wire.Call, e *wire.Error) {
	_, _ = io.Copy(io.Discard, r.Body) // the caller may be gone
	c.Write(w, e)
}

// fail serves a call as a fault has it.
func (p *proxy) fail(w http.ResponseWriter, r *http.Request, c wire.Call, f fault.Fault) {
	switch f.Mode {
	case fault.Throttle:
		refuse(w, r, c, c.Throttled())
	case fault.Delay:
		select {
		case <-time.After(time.Duration(f.DelayMS) * time.Millisecond):
			p.forward(w, r, c, lambdahost.NotKilled)
		case <-r.Context().Done():
		}
	case fault.DropResponse:
		p.forward(&discard{}, r, c, lambdahost.NotKilled)
		panic(http.ErrAbortHandler)
	case fault.Error:
		if f.When == fault.After {
			p.forward(&discard{}, r, c, lambdahost.NotKilled)
		}
		p.failWithError(w, r, c, f)
	case fault.KillFunction:
		p.kill(w, r, c, f.When)
	}
}

// failWithError answers with the error of a fault. A function that is called fails
// itself; it is not Lambda that refuses.
func (p *proxy) failWithError(w http.ResponseWriter, r *http.Request, c wire.Call, f fault.Fault) {
	if c.Function != "" && f.Status == 0 {
		code := f.ErrorCode
		if code == "" {
			code = "Internal"
		}
		lambdahost.WriteResult(w, lambdahost.FunctionFailed(code, "a fault of the local AWS"))
		return
	}
	// By default what no service answers, so that nothing takes it for a condition
	// that passes or that a step knows.
	e := &wire.Error{Status: http.StatusBadRequest, Code: fault.DefaultCode, Message: "a fault of the local AWS"}
	if f.ErrorCode != "" {
		e.Code = f.ErrorCode
	}
	if f.Status != 0 {
		e.Status = f.Status
	}
	refuse(w, r, c, e)
}

// kill kills the calling function, or the called one, on one side of the effect.
func (p *proxy) kill(w http.ResponseWriter, r *http.Request, c wire.Call, when fault.When) {
	if c.Function != "" {
		way := lambdahost.KilledFirst
		if when == fault.After {
			way = lambdahost.KilledLast
		}
		p.forward(w, r, c, way)
		return
	}
	if when == fault.After {
		p.forward(&discard{}, r, c, lambdahost.NotKilled)
	}
	p.host.Kill(c.AccessKey)
	panic(http.ErrAbortHandler)
}

// pass passes a call on.
func (p *proxy) pass(w http.ResponseWriter, r *http.Request, c wire.Call, kill lambdahost.Killing) {
	switch {
	case c.Service == "dynamodb":
		p.serveDynamoDB(w, r, c)
	case c.Function != "":
		p.host.ServeInvoke(w, r, c, kill)
	default:
		p.forwardMoto(w, r, c)
	}
}

// discard is the answer that nobody gets.
type discard struct{ header http.Header }

// Header implements [http.ResponseWriter].
func (d *discard) Header() http.Header {
	if d.header == nil {
		d.header = http.Header{}
	}
	return d.header
}

// Write implements [http.ResponseWriter].
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements [http.ResponseWriter].
func (d *discard) WriteHeader(int) {}
