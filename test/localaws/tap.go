package localaws

import (
	"context"
	"maps"
	"net/http"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/matter-ops/kms-rotation/test/localaws/lambdahost"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// maxTapped is more than the body of any call that a tap is shown.
const maxTapped = 64 << 20

// tap shows somebody the calls that matter, in the order of their effects.
type tap struct {
	order sync.RWMutex // held for reading by calls without an effect, and by those that nobody is shown
	see   func(wire.Exchange)
	one   sync.Mutex // calls without an effect are shown one at a time too
}

// Tap has calls that matter ([wire.Call.Matters]) served in an order from now on: one with
// an effect alone, those without one side by side between two of these. see is
// shown each of them with its answer, one at a time, also one that the caller never gets
// because of a fault or its death. begin runs before the first of them and while
// none is under way: what it reads is what these calls start from. Whatever it
// returns as an error is returned, and nothing is tapped.
func (s *Stack) Tap(begin func() error, see func(wire.Exchange)) error {
	t := &s.proxy.tap
	t.order.Lock()
	defer t.order.Unlock()
	if err := begin(); err != nil {
		return err
	}
	t.see = see
	return nil
}

// Untap ends what [Stack.Tap] began, after the call that is under way.
func (s *Stack) Untap() {
	s.proxy.tap.order.Lock()
	defer s.proxy.tap.order.Unlock()
	s.proxy.tap.see = nil
}

// Behind returns configurations of the SDK for DynamoDB, and for KMS and S3, that pass the
// endpoint by: such a call is not part of a run. No tap is shown it, no fault and no policy
// meets it, and it may be made while a tap is shown another. moto is held to AWS all the
// same.
func (s *Stack) Behind() (dynamo, others aws.Config) {
	dynamo, others = s.config(s.dynamo.URL), s.config(s.moto.URL)
	others.HTTPClient = &http.Client{Transport: s.proxy.behind}
	return dynamo, others
}

// forward passes a call on to where it is served.
func (p *proxy) forward(w http.ResponseWriter, r *http.Request, c wire.Call, kill lambdahost.Killing) {
	if !c.Matters() {
		p.pass(w, r, c, kill)
		return
	}
	p.tap.order.RLock()
	if p.tap.see == nil {
		defer p.tap.order.RUnlock()
		p.pass(w, r, c, kill)
		return
	}
	p.tap.order.RUnlock()
	p.showAndPass(w, r, c)
}

// showAndPass passes a call on by itself and shows it. Once the whole request is
// here it is carried out, whether the caller lives to see the answer or not: else
// nobody could tell whether it had an effect.
func (p *proxy) showAndPass(w http.ResponseWriter, r *http.Request, c wire.Call) {
	body, err := wire.Body(r, maxTapped)
	if err != nil {
		panic(http.ErrAbortHandler) // the caller died while it sent
	}
	e := wire.Exchange{Call: c, Caller: p.caller(c), Query: r.URL.Query(), Header: r.Header.Clone(), Body: body}
	answer := p.passInOrder(r.WithContext(context.WithoutCancel(r.Context())), e)
	maps.Copy(w.Header(), answer.header)
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body) // the caller may be gone
}

// caller names who signed a call.
func (p *proxy) caller(c wire.Call) string {
	if f, ok := p.host.Caller(c.AccessKey); ok {
		return f.Short
	}
	if c.AccessKey == ApplicationKey {
		return wire.Application
	}
	return wire.Person
}

func (p *proxy) passInOrder(r *http.Request, e wire.Exchange) *kept {
	if e.Reads() {
		p.tap.order.RLock()
		defer p.tap.order.RUnlock()
	} else {
		p.tap.order.Lock()
		defer p.tap.order.Unlock()
	}
	k := &kept{header: http.Header{}}
	defer func() {
		e.Status, e.AnsweredHeader, e.Answer = k.status, k.header, k.body
		p.tap.one.Lock()
		defer p.tap.one.Unlock()
		if p.tap.see != nil {
			p.tap.see(e)
		}
	}()
	p.pass(k, r, e.Call, lambdahost.NotKilled)
	return k
}

// kept is an answer that is read before it is given.
type kept struct {
	header http.Header
	status int
	body   []byte
}

// Header implements [http.ResponseWriter].
func (k *kept) Header() http.Header { return k.header }

// WriteHeader implements [http.ResponseWriter].
func (k *kept) WriteHeader(status int) {
	if k.status == 0 && status >= http.StatusOK {
		k.status = status
	}
}

// Write implements [http.ResponseWriter].
func (k *kept) Write(b []byte) (int, error) {
	k.WriteHeader(http.StatusOK)
	k.body = append(k.body, b...)
	return len(b), nil
}
