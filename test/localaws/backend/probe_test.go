package backend

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestStrangerOnThePort: another server that has taken the port is not taken for the
// one that is being started.
func TestStrangerOnThePort(t *testing.T) {
	for name, want := range map[string]bool{"Jetty(12.1.11)": false, "Dynoxide/1.2.1": true, "Werkzeug/3.1.9": false, "": false} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if name != "" {
				w.Header().Set("Server", name)
			}
			w.WriteHeader(http.StatusBadRequest)
		}))
		if got := (probe{path: "/", server: "Dynoxide"}).answers(t.Context(), s.URL); got != want {
			t.Errorf("server %q: taken for dynoxide %v, want %v", name, got, want)
		}
		s.Close()
	}
}

// TestFreePort: ports are not of the range that connections and other listeners get.
func TestFreePort(t *testing.T) {
	for range 50 {
		port, err := FreePort()
		if err != nil || port < firstPort || port >= firstPort+ports {
			t.Fatalf("port %d, %v", port, err)
		}
	}
}
