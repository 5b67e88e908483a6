package envelope

import "sync/atomic"

// Stats has the counts of a client since it was made. Package prom serves them to
// Prometheus, [EMF] writes them for CloudWatch.
type Stats struct {
	InFlight      int64 // references held now
	CacheHits     int64 // data keys that needed no call to KMS
	CacheMisses   int64 // data keys that needed a call to KMS
	RefusedWrites int64 // tries of a write that the fence or another write refused
	OrphanedKeys  int64 // rows read whose KEK is retired or unknown: alarm above 0
	RevokedLeases int64 // leases that a rotation revoked
	PointerErrors int64 // reads of the pointer or of leases that failed
}

// counters are the counts behind [Stats].
type counters struct {
	hits, misses, refused, orphans, revoked, pointerErrors atomic.Int64
}

// Stats returns the counts. It is cheap and may be called at any time, after
// [Client.Close] too.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	var refs int64
	for _, h := range c.leases {
		refs += h.refs.Load()
	}
	return Stats{
		InFlight: refs, CacheHits: c.count.hits.Load(), CacheMisses: c.count.misses.Load(),
		RefusedWrites: c.count.refused.Load(), OrphanedKeys: c.count.orphans.Load(),
		RevokedLeases: c.count.revoked.Load(), PointerErrors: c.count.pointerErrors.Load(),
	}
}
