package rotation

import (
	"context"

	"github.com/matter-ops/kms-rotation/audit"
)

// Recorder appends records that belong to no change of the control table.
type Recorder interface {
	Record(ctx context.Context, ev audit.Event) error
}

// Record appends what an operator does outside a rotation, and publishes it: when
// it returns, the record is under Object Lock.
func (s *Steps) Record(ctx context.Context, to Recorder, ev audit.Event) error {
	ev.Actor = s.Actor
	if err := to.Record(ctx, ev); err != nil {
		return unavailable("audit outbox", err)
	}
	return s.publish(ctx)
}
