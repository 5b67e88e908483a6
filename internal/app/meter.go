package app

import (
	"encoding/json"
	"io"
	"sync"
	"time"
)

// meter writes counts as CloudWatch's embedded metric format: one line of JSON, which
// Lambda's log turns into a metric without a call.
type meter struct {
	mu    sync.Mutex
	w     io.Writer
	stack string
	now   func() time.Time
}

// Count implements [rotation.Meter].
func (m *meter) Count(name string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = json.NewEncoder(m.w).Encode(map[string]any{ // a log that cannot be written to cannot be told of it
		"stack": m.stack, name: n,
		"_aws": map[string]any{
			"Timestamp": m.now().UnixMilli(),
			"CloudWatchMetrics": []any{map[string]any{
				"Namespace": "Matter", "Dimensions": [][]string{{"stack"}}, "Metrics": []any{map[string]string{"Name": name, "Unit": "Count"}},
			}},
		},
	})
}
