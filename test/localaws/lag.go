package localaws

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// kmsHosts is how many answer for KMS while it lags. The first learns of a change at
// once, the last after the lag, the others in between.
const kmsHosts = 4

const maxKMSBody = 1 << 20

// lag makes KMS as eventually consistent as AWS documents (developer guide, "Eventual
// consistency" and "Authorization for tag changes"): for a while some hosts do not know a
// new key or its tags, and go on using a disabled one. Which host answers is chance, so an
// old answer may follow a new one.
type lag struct {
	mu       sync.Mutex
	duration time.Duration // 0 for none
	made     map[string]time.Time
	disabled map[string]time.Time
}

// SetKMSLag has keys that are made or disabled from now on become known to all of KMS only
// after d; 0 for at once. On AWS it is up to five minutes for tags, seconds for the rest.
func (s *Stack) SetKMSLag(d time.Duration) {
	l := &s.proxy.lag
	l.mu.Lock()
	defer l.mu.Unlock()
	l.duration, l.made, l.disabled = d, map[string]time.Time{}, map[string]time.Time{}
}

// old reports whether a host that is picked by chance does not know of a change yet.
func (l *lag) old(changes map[string]time.Time, key string) bool {
	at, ok := changes[key]
	since := time.Since(at)
	return ok && since < l.duration && since < l.duration*time.Duration(rand.IntN(kmsHosts))/(kmsHosts-1)
}

// pending reports whether a change may not be known to all yet.
func (l *lag) pending(changes map[string]time.Time, key string) bool {
	at, ok := changes[key]
	return ok && time.Since(at) < l.duration
}

// lags serves a call of KMS as a host does that has not heard of everything; false if it
// is to be served as usual. isFunction says that the caller's permissions on keys are
// conditioned on their tags.
func (p *proxy) lags(w http.ResponseWriter, r *http.Request, c wire.Call, isFunction bool) bool {
	l := &p.lag
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.duration == 0 || c.Service != "kms" {
		return false
	}
	body, err := wire.Body(r, maxKMSBody)
	if err != nil {
		return false
	}
	if c.Operation == "CreateKey" {
		l.create(p, w, r)
		return true
	}
	var in struct{ KeyId, TargetKeyId, SourceKeyId, DestinationKeyId string } //nolint:revive // KMS's names
	_ = json.Unmarshal(body, &in)                                             // moto says what is wrong with it
	for _, id := range []string{in.KeyId, in.TargetKeyId, in.SourceKeyId, in.DestinationKeyId} {
		key := id[strings.LastIndex(id, "/")+1:]
		switch {
		case key == "" || strings.HasPrefix(id, "alias/"):
		case l.old(l.made, key) && isFunction && rand.IntN(2) == 0:
			c.Write(w, c.Denied("the tags of key "+key+" are not known here yet"))
			return true
		case l.old(l.made, key):
			c.Write(w, &wire.Error{Status: http.StatusBadRequest, Code: "NotFoundException", Message: "Key '" + id + "' does not exist"})
			return true
		case c.Operation == "EnableKey":
			delete(l.disabled, key)
		case c.Operation == "DisableKey":
			l.disable(p, key, r, body)
			w.WriteHeader(http.StatusOK)
			return true
		case l.pending(l.disabled, key) && uses[c.Operation] && !l.old(l.disabled, key):
			c.Write(w, &wire.Error{Status: http.StatusBadRequest, Code: "DisabledException", Message: id + " is disabled."})
			return true
		}
	}
	return false
}

// uses are the operations that a disabled key does not do.
var uses = map[string]bool{"Encrypt": true, "Decrypt": true, "ReEncrypt": true, "GenerateDataKey": true}

// create notes when a key was made.
func (l *lag) create(p *proxy, w http.ResponseWriter, r *http.Request) {
	k := &kept{header: http.Header{}}
	p.moto.ServeHTTP(k, r)
	var out struct{ KeyMetadata struct{ KeyId string } } //nolint:revive // KMS's names
	if json.Unmarshal(k.body, &out) == nil && out.KeyMetadata.KeyId != "" {
		l.made[out.KeyMetadata.KeyId] = time.Now()
	}
	maps.Copy(w.Header(), k.header)
	w.WriteHeader(k.status)
	_, _ = w.Write(k.body) // the caller may be gone
}

// disable disables a key in moto once all hosts know.
func (l *lag) disable(p *proxy, key string, r *http.Request, body []byte) {
	if _, ok := l.disabled[key]; ok {
		return
	}
	l.disabled[key] = time.Now()
	req := r.Clone(context.WithoutCancel(r.Context()))
	time.AfterFunc(l.duration, func() {
		l.mu.Lock()
		_, still := l.disabled[key]
		l.mu.Unlock()
		if !still {
			return // enabled again
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		req.URL.Scheme, req.URL.Host = "http", strings.TrimPrefix(p.motoURL, "http://")
		req.RequestURI = ""
		if resp, err := p.moto.Transport.RoundTrip(req); err == nil {
			_ = resp.Body.Close() // nobody reads it
		}
	})
}
