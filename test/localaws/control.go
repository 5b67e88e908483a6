package localaws

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/matter-ops/kms-rotation/test/localaws/fault"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

const maxFaultBytes = 64 << 10

// controlAPI serves what is about the local AWS itself and not AWS:
//
//	GET    /_local/health   answers once everything is up
//	GET    /_local/calls    counted calls; DELETE starts again from none
//	GET    /_local/faults   faults in force, with how often each has fired
//	POST   /_local/faults   adds a fault and answers it with its id
//	DELETE /_local/faults   lifts all faults
//
// Web pages are kept out: a request that a browser sends for one says so (Origin,
// Sec-Fetch-Site), and a name that was made to point here (DNS rebinding) is another Host.
func (p *proxy) controlAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_local/health", func(w http.ResponseWriter, _ *http.Request) {
		if p.ready.Load() {
			writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
			return
		}
		writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "starting"})
	})
	mux.HandleFunc("GET /_local/calls", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, p.calls.list()) })
	mux.HandleFunc("DELETE /_local/calls", func(w http.ResponseWriter, _ *http.Request) {
		p.calls.reset()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /_local/faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, p.faults.List()) })
	mux.HandleFunc("POST /_local/faults", p.addFault)
	mux.HandleFunc("DELETE /_local/faults", func(w http.ResponseWriter, _ *http.Request) {
		p.faults.Clear()
		w.WriteHeader(http.StatusNoContent)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if why := foreign(r); why != "" {
			writeJSON(w, http.StatusForbidden, &fault.FieldError{Field: why, Msg: "the control API serves programs of this machine alone"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// foreign names what shows that a request is not of a program of this machine.
func foreign(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "Host"
	}
	for _, h := range []string{"Origin", "Sec-Fetch-Site"} {
		if r.Header.Get(h) != "" {
			return h
		}
	}
	return ""
}

func (p *proxy) addFault(w http.ResponseWriter, r *http.Request) {
	body, err := wire.Body(r, maxFaultBytes)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, &fault.FieldError{Msg: err.Error()})
		return
	}
	f, err := fault.Parse(body)
	if err == nil {
		f, err = p.faults.Add(f)
	}
	var wrong *fault.FieldError
	if errors.As(err, &wrong) {
		writeJSON(w, http.StatusBadRequest, wrong)
		return
	}
	writeJSON(w, http.StatusCreated, f)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // of plain structs; the client may be gone
}
