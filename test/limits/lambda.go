package limits

import (
	"sync"
	"time"
)

// FullCPUMemory is the memory in MB at which a function has one whole virtual processor; the
// share is proportional to the memory (Lambda developer guide, "Configure Lambda function
// memory").
const FullCPUMemory = 1769

// CPU is the processor of one function. Work that it has to do waits for work before it.
type CPU struct {
	MemoryMB float64

	mu   sync.Mutex
	free time.Time
}

// Share is how many virtual processors the function has.
func (c *CPU) Share() float64 { return c.MemoryMB / FullCPUMemory }

// Work does work that takes a whole processor so long.
func (c *CPU) Work(d time.Duration) {
	c.mu.Lock()
	now := time.Now()
	if c.free.Before(now) {
		c.free = now
	}
	c.free = c.free.Add(time.Duration(float64(d) / c.Share()))
	wait := c.free.Sub(now)
	c.mu.Unlock()
	time.Sleep(wait)
}
