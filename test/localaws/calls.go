package localaws

import (
	"cmp"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// CallCount says how often a caller made a call, whatever the answer.
type CallCount struct {
	Service   string `json:"service"`
	Operation string `json:"operation"`
	Function  string `json:"function"` // short name of the caller, of the called one for Invoke; "" for who is no function
	Count     int    `json:"count"`
}

// counter counts calls.
type counter struct {
	mu     sync.Mutex
	counts map[CallCount]int // keyed with Count 0
}

func (c *counter) add(call wire.Call, function string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[CallCount]int{}
	}
	c.counts[CallCount{Service: call.Service, Operation: call.Operation, Function: function}]++
}

func (c *counter) list() []CallCount {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]CallCount, 0, len(c.counts))
	for k, n := range c.counts {
		k.Count = n
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b CallCount) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Function, b.Function))
	})
	return out
}

func (c *counter) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts = nil
}
