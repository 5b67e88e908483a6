package envelope_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/matter-ops/kms-rotation/envelope"
)

func TestEMF(t *testing.T) {
	var out bytes.Buffer
	e := envelope.NewEMF(&out, "prod", func() time.Time { return time.UnixMilli(1_700_000_000_123) })
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
		Stack    string `json:"stack"`
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
		!cmp.Equal(m.Dimensions, [][]string{{"stack"}}) || got.Stack != "prod" {
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

// TestOrphanAlarm plants a row under a retired KEK and shows that what a client
// then writes sets off the alarm that template.yaml ships.
func TestOrphanAlarm(t *testing.T) {
	w := newSite(t)
	w.must("insert", w.open(w.client()).Insert(t.Context(), row("a"), []byte("x")))
	backup := w.item("a")
	w.rotatePast("r1")
	c := w.client()
	var out bytes.Buffer
	metrics := envelope.NewEMF(&out, "prod", time.Now)
	w.must("flush", metrics.Flush(c.Stats()))
	if alarm(t, out.Bytes()) {
		t.Fatal("the alarm is on before")
	}
	out.Reset()
	w.put(backup)
	if _, err := w.open(c).Get(t.Context(), rowKey("a")); !errors.Is(err, envelope.ErrOrphanedKey) {
		t.Fatalf("the planted row: %v", err)
	}
	w.must("flush", metrics.Flush(c.Stats()))
	if !alarm(t, out.Bytes()) {
		t.Errorf("the alarm stays off: %s", out.Bytes())
	}
}

// alarm judges one line of metrics as the alarm OrphanedKeyAlarm would.
func alarm(t *testing.T, line []byte) bool {
	t.Helper()
	text, err := os.ReadFile("../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var template struct {
		Resources map[string]struct {
			Properties yaml.Node `yaml:"Properties"`
		} `yaml:"Resources"`
	}
	if err := yaml.Unmarshal(text, &template); err != nil {
		t.Fatal(err)
	}
	var alarm struct {
		Namespace  string `yaml:"Namespace"`
		MetricName string `yaml:"MetricName"`
		Dimensions []struct {
			Name string `yaml:"Name"`
		} `yaml:"Dimensions"`
		Statistic          string  `yaml:"Statistic"`
		ComparisonOperator string  `yaml:"ComparisonOperator"`
		Threshold          float64 `yaml:"Threshold"`
	}
	properties := template.Resources["OrphanedKeyAlarm"].Properties
	if err := properties.Decode(&alarm); err != nil {
		t.Fatal(err)
	}
	if alarm.Statistic != "Sum" || alarm.ComparisonOperator != "GreaterThanOrEqualToThreshold" || len(alarm.Dimensions) != 1 {
		t.Fatalf("this test does not know such an alarm: %+v", alarm)
	}
	var emf struct {
		AWS struct {
			CloudWatchMetrics []struct {
				Namespace  string
				Dimensions [][]string
			}
		} `json:"_aws"`
	}
	var values map[string]any
	if err := errors.Join(json.Unmarshal(line, &emf), json.Unmarshal(line, &values)); err != nil {
		t.Fatal(err)
	}
	directive := emf.AWS.CloudWatchMetrics[0]
	if directive.Namespace != alarm.Namespace || !cmp.Equal(directive.Dimensions, [][]string{{alarm.Dimensions[0].Name}}) {
		t.Fatalf("the alarm watches %+v, the client writes %+v", alarm, directive)
	}
	value, ok := values[alarm.MetricName].(float64)
	return ok && value >= alarm.Threshold
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

// TestEMFRetry: counts that could not be written are in the next line.
func TestEMFRetry(t *testing.T) {
	w := &switchable{}
	e := envelope.NewEMF(w, "prod", time.Now)
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
