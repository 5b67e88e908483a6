package rotation

import (
	"context"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// pauseLook is how often a walk looks whether people have paused it.
const pauseLook = 5 * time.Second

// pauseWatch looks, for all segments of one call, whether people have paused the rotation. A
// nil watch never says so. What is paused stays so for the rest of the call: it saves its
// checkpoints and returns, and a later call finds out whether it may continue. A pause only
// leaves steps out, so no promise of the protocol depends on it but that a rotation ends.
type pauseWatch struct {
	pauses   gates.Pauses
	rotation string

	mu     sync.Mutex
	looked time.Time
	paused bool
}

func (s *Steps) watchPause(rotationID string) *pauseWatch {
	if s.Gates.Pauses == nil {
		return nil
	}
	return &pauseWatch{pauses: s.Gates.Pauses, rotation: rotationID}
}

// isPaused reports whether the rotation is paused, as of the last few seconds.
func (p *pauseWatch) isPaused(ctx context.Context, now time.Time) (bool, error) {
	if p == nil {
		return false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused || now.Sub(p.looked) < pauseLook {
		return p.paused, nil
	}
	stored, err := p.pauses.LoadPause(ctx, p.rotation)
	if err != nil {
		return false, journal.WrapUnavailable("pause", err)
	}
	p.looked = now
	p.paused = stored.State == gates.Paused
	return p.paused, nil
}

// wasPaused reports whether the rotation was found paused.
func (p *pauseWatch) wasPaused() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// mustStop reports whether a walk has to stop: time is up, or people have paused it.
func (s *Steps) mustStop(ctx context.Context, w sweep) (bool, error) {
	now := s.Journal.Now()
	if !now.Before(w.until) {
		return true, nil
	}
	return w.pause.isPaused(ctx, now)
}
