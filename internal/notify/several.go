package notify

import (
	"context"
	"errors"
	"sync"

	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Several is a deployment's notifiers. All are told side by side, so that one that fails or
// hangs keeps no other from sending.
type Several []journal.Notifier

// TellPeople implements [journal.Notifier]. It returns the errors of all that failed; a caller
// that repeats it tells those again that did not fail.
func (s Several) TellPeople(ctx context.Context, n journal.Notice) error {
	errs := make([]error, len(s))
	var all sync.WaitGroup
	for i, one := range s {
		all.Go(func() { errs[i] = one.TellPeople(ctx, n) })
	}
	all.Wait()
	return errors.Join(errs...)
}
