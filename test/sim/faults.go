package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// hook decides about every call.
func (r *run) hook(op string, _ ...any) (bool, error) {
	if r.mine {
		return true, nil
	}
	if r.failed == nil {
		r.check.look()
	}
	inv := r.inv
	switch {
	case r.failed != nil:
		return false, errStopped
	case inv == nil:
		return true, nil
	case inv.err != nil:
		return false, inv.err
	}
	n := r.call
	r.call++
	apply, err := r.standing(op)
	for r.next < len(r.sched.Faults) && r.sched.Faults[r.next].At <= n {
		f := r.sched.Faults[r.next]
		r.next++
		if r.story != nil {
			r.tell("call %d, %s of %s: %s", n, op, inv.name, f.describe())
		}
		if a, e := r.fault(f, op, inv); e != nil {
			apply, err = a, e
		}
		if inv.err != nil {
			return apply, inv.err
		}
	}
	if r.failed != nil {
		return false, errStopped
	}
	return apply, err
}

// standing is what earlier faults do to a call.
func (r *run) standing(op string) (bool, error) {
	if op == "Vault.Put" && r.outage > 0 {
		r.outage--
		return false, errNoAnswer
	}
	if r.throttles > 0 && op == r.throttled {
		r.throttles--
		return false, errThrottled
	}
	return true, nil
}

func (f Fault) describe() string {
	if f.Kind == Operator {
		return "operator calls " + operatorCalls[f.Arg].name
	}
	return fmt.Sprintf("%s %d", f.Kind, f.Arg)
}

// fault makes one fault. An error is the call's.
func (r *run) fault(f Fault, op string, inv *invocation) (apply bool, err error) {
	switch f.Kind {
	case CrashBefore:
		inv.err = errCrashed
		return false, errCrashed
	case CrashAfter:
		inv.err = errCrashed
		return true, errCrashed
	case Timeout:
		inv.err = context.DeadlineExceeded
		r.pass(lambda)
		return false, inv.err
	case NotApplied:
		return false, errNoAnswer
	case Lost:
		return true, errNoAnswer
	case Throttle:
		r.throttled, r.throttles = op, 2
		return false, errThrottled
	case Deny:
		return false, journal.ErrDenied
	case Conflict:
		if op == "Store.Apply" || op == "Store.SaveCheckpoint" {
			return false, kek.ErrConflict
		}
	case Duplicate:
		if inv.again != nil {
			r.inside(inv.again)
		}
	case Pause:
		r.inside(func() { r.goOn(inv, f.Arg) })
	case Rival:
		r.inside(func() { r.startRival(f.Arg) })
	case TakeOver:
		return r.takeOver(inv, f.Arg == 1)
	case Operator:
		r.inside(func() { r.operator(f.Arg) })
	default:
		r.circumstance(f)
	}
	return true, nil
}

// circumstance is a fault that is not the call's own.
func (r *run) circumstance(f Fault) {
	switch f.Kind {
	case Outage:
		r.outage = f.Arg
	case Slow:
		r.pass(time.Duration(f.Arg) * time.Minute)
	case Skew:
		r.skew, r.skewed = time.Duration(f.Arg)*time.Minute, true
	case Hold:
		r.held = r.now.Add(time.Duration(f.Arg) * time.Minute)
	case ShortPage:
		r.empty = true
	case LagNew:
		r.lagNew = true
	case LagDisable:
		r.lagDisable = true
	case LagTags:
		r.lagTags = true
	case SetBack:
		r.setBack(f.Arg)
	case Lose, PutBack, Convert:
		if r.keyed != nil {
			r.keyed.befall(f)
		}
	default:
		r.alone(func() { r.act(f) })
	}
}

// alone runs what no fault touches: applications.
func (r *run) alone(f func()) {
	was := r.mine
	r.mine = true
	f()
	r.mine = was
	r.check.look()
}

// inside runs f within the invocation that is under way, whose process stands
// still meanwhile.
func (r *run) inside(f func()) {
	if r.depth >= maxDepth || r.failed != nil {
		return
	}
	was := r.inv
	r.inv = nil
	r.depth++
	r.inner++
	f()
	r.depth--
	r.inv = was
}

// giveUp lets whoever waits for inv wait no longer: its time is over.
func (r *run) giveUp(inv *invocation) {
	if inv.owner != nil && !inv.orphan {
		inv.orphan = true
		r.pass(lambda)
		inv.owner.result(errCrashed)
	}
}

// goOn lets the rotation go on without inv, which stands still.
func (r *run) goOn(inv *invocation, n int) {
	r.giveUp(inv)
	for range n {
		switch {
		case r.failed != nil:
			return
		case !r.main.over():
			r.main.step()
		case r.rival == nil:
			r.startRival(0)
		case !r.rival.over():
			r.rival.step()
		default:
			return
		}
	}
}

func (r *run) startRival(variant int) {
	if r.rival != nil && !r.rival.over() {
		return
	}
	in := rotation.ExecutionInput{}
	if variant > 0 {
		in = rotation.ExecutionInput{Mode: "emergency", Reason: "another one", Again: variant == 2}
	}
	r.rival = newMachine(r, rivalID, in)
	r.rival.step()
}
