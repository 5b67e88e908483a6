package localaws

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestControlKeepsWebPagesOut: a web page that the developer looks at cannot put faults in
// force, neither by a request to another origin nor by a name that points here.
func TestControlKeepsWebPagesOut(t *testing.T) {
	p := &proxy{}
	api := p.controlAPI()
	for _, c := range []struct {
		host   string
		header map[string]string
		status int
	}{
		{"127.0.0.1:4566", nil, http.StatusOK},
		{"localhost:4566", nil, http.StatusOK},
		{"localhost", nil, http.StatusOK},
		{"[::1]:4566", nil, http.StatusOK},
		{"evil.example:4566", nil, http.StatusForbidden},
		{"10.0.0.7:4566", nil, http.StatusForbidden},
		{"localhost.evil.example", nil, http.StatusForbidden},
		{"127.0.0.1:4566", map[string]string{"Origin": "https://evil.example"}, http.StatusForbidden},
		{"127.0.0.1:4566", map[string]string{"Origin": "null"}, http.StatusForbidden},
		{"127.0.0.1:4566", map[string]string{"Sec-Fetch-Site": "cross-site"}, http.StatusForbidden},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			r := httptest.NewRequest(method, "/_local/faults", nil)
			r.Host = c.host
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			api.ServeHTTP(w, r)
			if (w.Code == http.StatusForbidden) != (c.status == http.StatusForbidden) {
				t.Errorf("%s of host %s with %v: %d", method, c.host, c.header, w.Code)
			}
		}
	}
}
