package app

import (
	"testing"
	"time"
)

// TestConnectionsAreKept: a page of rows is worked on over connections that stay open, with
// the handshakes of the first page alone.
func TestConnectionsAreKept(t *testing.T) {
	tr := awsClient().GetTransport()
	if tr.MaxIdleConnsPerHost < pace.RowsInFlight || tr.MaxIdleConns < tr.MaxIdleConnsPerHost || tr.MaxConnsPerHost != 0 && tr.MaxConnsPerHost < pace.RowsInFlight {
		t.Errorf("%d idle connections a host, %d in all, at most %d, for %d requests in flight",
			tr.MaxIdleConnsPerHost, tr.MaxIdleConns, tr.MaxConnsPerHost, pace.RowsInFlight)
	}
	if d := awsClient().GetDialer().Timeout; d <= 0 || d > 5*time.Second {
		t.Errorf("a host that does not answer is waited for %s", d)
	}
}
