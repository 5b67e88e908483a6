// Package limits is what AWS bounds a walk by, in virtual time: the request quota of KMS,
// the partitions of a DynamoDB table, the processor of a Lambda function, the delay of
// CloudWatch, and live traffic beside the walk. Its numbers are those that AWS documents;
// each is named where it is used, and the tests hold the simulator to them.
//
// It stands behind the ports of a walk, not behind HTTP: the AWS SDK waits on mutexes, which
// stop a bubble of testing/synctest. What the SDK costs is measured elsewhere
// (docs/performance.md).
//
// Everything reads time.Now and time.Sleep, so a test runs it in a bubble. No randomness is
// seeded by the clock: a test passes a [Dice].
package limits

import (
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// ErrThrottled is the answer to a request that exceeds a limit: ThrottlingException of KMS,
// ProvisionedThroughputExceededException or ThrottlingException of DynamoDB.
var ErrThrottled = errors.New("throttled")

// Dice is a source of random numbers that many goroutines share.
type Dice struct {
	mu     sync.Mutex
	random *rand.Rand
}

// NewDice returns the dice of a seed.
func NewDice(seed uint64) *Dice { return &Dice{random: rand.New(rand.NewPCG(seed, 17))} } //nolint:gosec // a simulator repeats itself

// Float64 returns a number in [0,1).
func (d *Dice) Float64() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.random.Float64()
}

// exponential returns a number of mean 1: the time between two events of a Poisson process.
func (d *Dice) exponential() float64 { return -math.Log(1 - d.Float64()) }

// Latency is the time that a service takes for an answer.
type Latency struct {
	Typical time.Duration
	Jitter  float64 // at most so much of Typical more or less
	Tail    float64 // share of the answers that take ten times as long
}

// tailFactor is how much longer the slowest answers take.
const tailFactor = 10

// sleep waits for one answer.
func (l Latency) sleep(d *Dice) {
	took := float64(l.Typical) * (1 + l.Jitter*(2*d.Float64()-1))
	if d.Float64() < l.Tail {
		took *= tailFactor
	}
	time.Sleep(time.Duration(took))
}

// bucket is a token bucket that begins full.
type bucket struct {
	rate   float64 // tokens a second; 0: unlimited
	depth  float64 // tokens that it holds
	tokens float64
	filled time.Time
}

func newBucket(rate, depth float64) bucket {
	return bucket{rate: rate, depth: depth, tokens: depth, filled: time.Now()}
}

// refill adds what has come since the last call, and reports whether n tokens are there.
func (b *bucket) refill(n float64) bool {
	now := time.Now()
	b.tokens = min(b.depth, b.tokens+now.Sub(b.filled).Seconds()*b.rate)
	b.filled = now
	return b.rate == 0 || b.tokens >= n
}
