package envelope_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope"
)

func TestEMF(t *testing.T) {
	var out bytes.Buffer
	e := envelope.NewEMF(&out, "Matter", map[string]string{"Stack": "prod"}, func() time.Time { return time.UnixMilli(1_700_000_000_123) })
	if err := e.Flush(envelope.Stats{InFlight: 2, CacheHits: 10, OrphanedKeys: 1}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		AWS struct {
			Timestamp         int64
			CloudWatchMetrics []struct {
				Namespace  string
				Dimensions [][]string
				Metrics    []struct{ Name, Unit string }
			}
		} `json:"_aws"`
		Stack    string
		InFlight int64  `json:"in_flight_references"`
		Hits     int64  `json:"dek_cache_hits"`
		Orphans  int64  `json:"orphaned_key_reference"`
		Refused  *int64 `json:"refused_writes"`
	}
	decode := func() {
		t.Helper()
		if bytes.Count(out.Bytes(), []byte("\n")) != 1 {
			t.Errorf("not one line: %q", out.Bytes())
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
	}
	decode()
	m := got.AWS.CloudWatchMetrics[0]
	if got.AWS.Timestamp != 1_700_000_000_123 || m.Namespace != "Matter" || len(m.Metrics) != 7 ||
		!cmp.Equal(m.Dimensions, [][]string{{"Stack"}}) || got.Stack != "prod" {
		t.Errorf("%+v", got)
	}
	if got.InFlight != 2 || got.Hits != 10 || got.Orphans != 1 || got.Refused == nil || *got.Refused != 0 {
		t.Errorf("%+v", got)
	}
	out.Reset()
	if err := e.Flush(envelope.Stats{InFlight: 1, CacheHits: 13, OrphanedKeys: 1}); err != nil {
		t.Fatal(err)
	}
	decode()
	if got.InFlight != 1 || got.Hits != 3 || got.Orphans != 0 {
		t.Errorf("since the flush before: %+v", got)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

// TestEMFRetry: counts that could not be written are in the next line.
func TestEMFRetry(t *testing.T) {
	w := &switchable{}
	e := envelope.NewEMF(w, "Matter", nil, time.Now)
	if err := e.Flush(envelope.Stats{OrphanedKeys: 1}); err == nil {
		t.Fatal("no error")
	}
	w.ok = true
	if err := e.Flush(envelope.Stats{OrphanedKeys: 1}); err != nil || !bytes.Contains(w.Bytes(), []byte(`"orphaned_key_reference":1,`)) {
		t.Errorf("%s, %v", w.Bytes(), err)
	}
}

type switchable struct {
	bytes.Buffer
	ok bool
}

func (s *switchable) Write(b []byte) (int, error) {
	if !s.ok {
		return failing{}.Write(b)
	}
	return s.Buffer.Write(b)
}
