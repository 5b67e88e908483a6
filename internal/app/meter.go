package app

import (
	"encoding/json"
	"io"
	"sync"
	"time"
)

// meter writes counts in CloudWatch's embedded metric format: one line of JSON on the standard
// output, from which CloudWatch Logs makes a metric without a call of PutMetricData
// (CloudWatch user guide, "Embedding metrics within logs"). The alarms of template.yaml watch
// these names in the namespace Matter.
type meter struct {
	mu    sync.Mutex
	w     io.Writer
	stack string
	now   func() time.Time
}

// Count implements [journal.Meter].
func (m *meter) Count(name string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = json.NewEncoder(m.w).Encode(map[string]any{ // a failure to write to the log cannot be logged
		"stack": m.stack, name: n,
		"_aws": map[string]any{
			"Timestamp": m.now().UnixMilli(),
			"CloudWatchMetrics": []any{map[string]any{
				"Namespace": "Matter", "Dimensions": [][]string{{"stack"}}, "Metrics": []any{map[string]string{"Name": name, "Unit": "Count"}},
			}},
		},
	})
}
