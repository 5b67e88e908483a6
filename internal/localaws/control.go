package localaws

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/matter-ops/kms-rotation/internal/localaws/fault"
	"github.com/matter-ops/kms-rotation/internal/localaws/wire"
)

const maxFaultBytes = 64 << 10

// controlAPI serves what is about the local AWS itself and not AWS:
//
//	GET    /_local/health   answers once everything is up
//	GET    /_local/calls    counted calls; DELETE starts again from none
//	GET    /_local/faults   faults in force, with how often each has fired
//	POST   /_local/faults   adds a fault and answers it with its id
//	DELETE /_local/faults   lifts all faults
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
	return mux
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
