package sim

import (
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The emergency of a person who finds that an execution has [rivalID] already, and the one
// that a person starts when one was refused.
const (
	urgentID = "r7"
	insistID = "r4"
)

var urgently = rotation.ExecutionInput{Mode: "emergency", Reason: "the KEK is in a log"}

// takeOver starts an emergency at a call of whatever runs. The process that makes the call
// dies and its execution has ended, halted or stopped; or it is asleep until the emergency
// is over, and its execution retries the step then.
func (r *run) takeOver(inv *invocation, asleep bool) (apply bool, err error) {
	if r.urgent > 0 || r.rival != nil && !r.rival.over() {
		return true, nil
	}
	r.urgent++
	id := rivalID
	if slices.ContainsFunc(r.rotations(), func(rot kek.Rotation) bool { return rot.ID == rivalID }) {
		id = urgentID
	}
	r.rival = newMachine(r, id, urgently)
	if !asleep {
		inv.err, inv.orphan, r.main.state = errCrashed, true, halted
		return false, errCrashed
	}
	r.inside(func() {
		r.giveUp(inv)
		for r.failed == nil && !r.rival.over() {
			r.rival.step()
		}
	})
	return true, nil
}

// insisted starts an emergency again that was refused, as the person does who needs it: a
// quarter of an hour later, when what AWS has told late is known.
func (r *run) insisted() bool {
	if r.urgent != 1 || r.rival.state != refused {
		return false
	}
	if emergencyCompleted(r.rotations()) {
		return false
	}
	r.urgent++
	r.outage, r.skew = 0, 0
	r.pass(15 * time.Minute)
	r.rival = newMachine(r, insistID, urgently)
	return true
}

// rotations lists those that there are, which is no call of anybody.
func (r *run) rotations() []kek.Rotation {
	was := r.mine
	r.mine = true
	defer func() { r.mine = was }()
	all, err := r.store.Rotations(context.Background())
	r.must(err)
	return all
}

func emergencyCompleted(all []kek.Rotation) bool {
	return slices.ContainsFunc(all, func(rot kek.Rotation) bool { return rot.Mode == kek.Emergency && rot.Phase == kek.Completed })
}

// takeOverFaults are what goes wrong in the emergency, at each of its calls.
var takeOverFaults = []Kind{CrashBefore, CrashAfter, Lost, Deny}

// TakeOvers are an emergency begun at every call of a normal rotation, in both ways, each
// with every fault of [takeOverFaults] at every call after it. A share of less than 1 is a
// sample of them, that of the seed.
func TakeOvers(share float64, seed uint64) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		draw := rand.New(rand.NewPCG(seed, 0x74616b656f766572)) //nolint:gosec // a sample must repeat
		for at := range Calls(false) {
			for _, arg := range TakeOver.variants() {
				begin := Fault{at, TakeOver, arg}
				calls, v := Run(Schedule{Faults: []Fault{begin}})
				if v != nil { // the one without another fault says more
					yield(Schedule{Faults: []Fault{begin}})
					return
				}
				for i := range (calls - at - 1) * len(takeOverFaults) {
					f := Fault{at + 1 + i/len(takeOverFaults), takeOverFaults[i%len(takeOverFaults)], 0}
					if draw.Float64() < share && !yield(Schedule{Faults: []Fault{begin, f}}) {
						return
					}
				}
			}
		}
	}
}
