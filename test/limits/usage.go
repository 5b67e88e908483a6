package limits

import (
	"sync"
	"time"
)

// Usage is a usage metric of CloudWatch: AWS/Usage CallCount of KMS, or AWS/DynamoDB
// ConsumedWriteCapacityUnits of a table. It is a sum for each whole minute (CloudWatch user
// guide, "AWS usage metrics": "collected every minute"). How long after its minute a sum can
// be read is not documented, so a test states it.
type Usage struct {
	Delay    time.Duration // after the end of the minute
	Rejected bool          // whether throttled requests count, which is not documented either

	mu   sync.Mutex
	sums map[time.Time]float64
}

func (u *Usage) add(n float64, ok bool) {
	if u == nil || !ok && !u.Rejected {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sums == nil {
		u.sums = map[time.Time]float64{}
	}
	u.sums[time.Now().Truncate(time.Minute)] += n
}

// Latest returns the latest minute whose sum can be read, and the average a second in it;
// false if there is none yet. A minute without any request has no sum.
func (u *Usage) Latest() (minute time.Time, rate float64, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for m, sum := range u.sums {
		if readable := m.Add(time.Minute + u.Delay); m.After(minute) && !readable.After(time.Now()) {
			minute, rate, ok = m, sum/60, true
		}
	}
	return minute, rate, ok
}
