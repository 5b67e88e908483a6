package limits

import (
	"sync"
	"time"
)

// KMS is the request quota that all symmetric operations of an account in a Region share: in
// each one-second interval so many requests, and every further request of that second is
// refused (KMS developer guide, "Request quotas", "Shared quotas for cryptographic
// operations", and "Throttling AWS KMS requests"). Any mix of operations counts, each request
// once. That holds for ReEncrypt too, although it uses two keys: the page names each operation
// that counts more than once (ReplicateKey, UpdatePrimaryRegion), and it is not among them.
type KMS struct {
	Quota   float64 // requests a second
	Latency Latency
	Dice    *Dice
	Usage   *Usage // counts the requests; may be nil

	mu     sync.Mutex
	second int64
	taken  float64
}

// The quotas of symmetric operations by Region (KMS developer guide, "Request quotas").
const (
	QuotaMostRegions = 10_000
	QuotaSomeRegions = 20_000  // Ohio, Singapore, Sydney, Tokyo, Frankfurt, London
	QuotaThree       = 100_000 // N. Virginia, Oregon, Ireland
)

// Request makes one request of any symmetric operation. A refusal takes as long as an answer.
func (k *KMS) Request() error {
	ok := k.take()
	k.Latency.sleep(k.Dice)
	if !ok {
		return ErrThrottled
	}
	return nil
}

func (k *KMS) take() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now().Unix(); now != k.second {
		k.second, k.taken = now, 0
	}
	ok := k.taken+1 <= k.Quota
	if ok {
		k.taken++
	}
	k.Usage.add(1, ok)
	return ok
}
