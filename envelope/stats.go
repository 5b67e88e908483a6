package envelope

import "sync/atomic"

// Stats is what a client has counted since it was made. Package prom serves it to
// Prometheus, [EMF] writes it for CloudWatch.
type Stats struct {
	InFlight      int64 // references held now
	CacheHits     int64 // data keys that needed no call to KMS
	CacheMisses   int64 // data keys that needed one
	RefusedWrites int64 // writes that the fence or another write refused, sealed and tried again
	OrphanedKeys  int64 // rows read whose KEK is retired or unknown: always an alarm
	RevokedLeases int64 // leases that a rotation took away
	PointerErrors int64 // reads of the pointer or of leases that failed
}

type counters struct {
	hits, misses, refused, orphans, revoked, pointerErrors atomic.Int64
}

// Stats returns the counts. It is cheap and may be called at any time, after
// [Client.Close] too.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	var refs int64
	for _, h := range c.holds {
		refs += h.refs.Load()
	}
	return Stats{
		InFlight: refs, CacheHits: c.count.hits.Load(), CacheMisses: c.count.misses.Load(),
		RefusedWrites: c.count.refused.Load(), OrphanedKeys: c.count.orphans.Load(),
		RevokedLeases: c.count.revoked.Load(), PointerErrors: c.count.pointerErrors.Load(),
	}
}
