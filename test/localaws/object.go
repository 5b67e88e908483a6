package localaws

import (
	"net/http"
	"strings"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// objectWriter answers a read of an S3 object as much as the caller may know: the
// lock takes GetObjectRetention, and that there is no such object takes ListBucket.
type objectWriter struct {
	http.ResponseWriter
	call     wire.Call
	noLock   bool
	noAbsent bool
	replaced bool
}

// WriteHeader implements [http.ResponseWriter].
func (w *objectWriter) WriteHeader(status int) {
	if w.noLock {
		for name := range w.Header() {
			if strings.HasPrefix(name, "X-Amz-Object-Lock-") {
				w.Header().Del(name)
			}
		}
	}
	if status == http.StatusNotFound && w.noAbsent {
		w.replaced = true
		w.Header().Del("Content-Length")
		w.call.Write(w.ResponseWriter, &wire.Error{Status: http.StatusForbidden, Code: "AccessDenied", Message: "Access Denied"})
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *objectWriter) Write(b []byte) (int, error) {
	if w.replaced {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (w *objectWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
