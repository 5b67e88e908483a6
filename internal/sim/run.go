package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/memstore"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

const (
	chain     = "sim"
	mainID    = "r1"
	rivalID   = "r2"
	shards    = 2
	maxMints  = 3
	maxDepth  = 3   // invocations inside of one another
	maxRounds = 400 // invocations until a rotation must be over
	lambda    = 15 * time.Minute
	lag       = 5 * time.Minute
)

var (
	errCrashed   = errors.New("the process died")
	errStopped   = errors.New("the schedule is over")
	errNoAnswer  = errors.New("no answer")
	errThrottled = errors.New("ThrottlingException: rate exceeded")
)

// Violation is what a schedule has brought to light.
type Violation struct {
	Promise string // as spec/rotation.tla names it
	Detail  string
	Call    int // how many calls had been made
}

func (v *Violation) Error() string { return v.Promise + ": " + v.Detail }

// invocation is one call of a function.
type invocation struct {
	name   string
	again  func() // runs a duplicate of it
	owner  *machine
	err    error // its process is dead, or its deadline has passed
	orphan bool  // nobody waits for its result any more
}

// run is one schedule under way.
type run struct {
	*actors
	place
	kms   *memstore.KMS // as it is, for applications and the checker
	steps *rotation.Steps
	check *checker

	context context.Context // of every step
	now     time.Time
	skew    time.Duration
	skewed  bool // the clock has been wrong
	sched   Schedule
	next    int // first fault that is still to come
	call    int // calls of steps so far
	mine    bool
	inv     *invocation
	depth   int
	inner   int // how often something ran inside of an invocation

	rounds      int // invocations that were not inside of another
	main, rival *machine

	throttled         string
	throttles, outage int
	empty             bool
	lagNew, lagTags   bool
	lagDisable        bool
	made              map[kek.ID]time.Time
	dying             map[kek.ID]time.Time

	failed *Violation
	story  *strings.Builder
}

// Run runs a schedule to its end. calls is how many calls the steps made. What lies
// before the first fault is taken from the undisturbed run.
func Run(s Schedule) (calls int, v *Violation) {
	r := fork(s)
	r.play()
	return r.call, r.failed
}

// Tell runs a schedule from its beginning and says in words what happened.
func Tell(s Schedule) (string, *Violation) {
	r := newRun(s)
	r.story = &strings.Builder{}
	r.tell("schedule: %s", s)
	r.play()
	if r.failed != nil {
		r.tell("VIOLATED %v", r.failed)
	} else {
		r.tell("every promise held")
	}
	return r.story.String(), r.failed
}

// newRun is a deployment with two rows, and a rotation of it that has not begun.
func newRun(s Schedule) *run {
	r := emptyRun(s)
	world := memstore.New(chain, r.clock)
	r.wire(r.inMemory(world, world.NewTable("rows")))
	r.apps = &copies{actors: r.actors}
	r.settle()
	return r
}

// began is when every rotation begins.
func began() time.Time { return time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC) }

// emptyRun is a run that takes place nowhere yet.
func emptyRun(s Schedule) *run {
	r := &run{context: ctx, sched: s, now: began(), made: map[kek.ID]time.Time{}, dying: map[kek.ID]time.Time{}}
	r.actors = &actors{run: r, want: map[string]string{}}
	return r
}

// settle makes the deployment, before anything can fail.
func (r *run) settle() {
	r.mine = true
	k, err := r.kms.Create(context.Background(), "", 0, "genesis")
	r.must(err)
	_, err = r.steps.Genesis(context.Background(), k.ID, "genesis")
	r.must(err)
	r.check = newChecker(r)
	r.apps.start()
	r.begin(0, true, "known-1")
	r.apps.finish(0)
	r.begin(0, true, "row-1")
	r.apps.finish(0)
	r.watch()
	r.check.dirty, r.check.shifted, r.check.fenced = true, true, true
	r.mine = false
	in := rotation.ExecutionInput{}
	if r.sched.Emergency {
		in = rotation.ExecutionInput{Mode: "emergency", Reason: "seen in a log"}
	}
	r.main = newMachine(r, mainID, in)
}

func (r *run) clock() time.Time { return r.now }

// wire gives a run its stores, and the steps on them.
func (r *run) wire(p place) {
	r.place, r.kms = p, p.world.KMS()
	k := &keys{p.keys, r}
	r.steps = &rotation.Steps{
		Config: rotation.Config{
			DrainMaxWait: 30 * time.Minute, DeleteHold: 90 * 24 * time.Hour,
			Segments: 1, FenceShards: shards, MaxMints: maxMints, CanaryRounds: 1,
		},
		Deps: rotation.Deps{
			Registry: r.store, Outbox: r.store, Drainage: r.store, Checkpoints: r.store, Vault: r.vault,
			Keys: k, KMS: k, Cipher: aead.Cipher{}, Sources: []rotation.Source{&source{r.table, r}}, Corpus: r.corpus,
			Random: func(b []byte) { copy(b, "known plaintext") }, Now: func() time.Time { return r.clock().Add(r.skew) }, Actor: "sim",
		},
	}
}

// must is for what cannot fail before the first fault.
func (r *run) must(err error) {
	if err != nil {
		panic(err)
	}
}

func (r *run) tell(format string, args ...any) {
	if r.story != nil {
		fmt.Fprintf(r.story, "%6s  %s%s\n", r.now.Format("15:04:05"), strings.Repeat("    ", r.depth), fmt.Sprintf(format, args...))
	}
}

func (r *run) violated(promise, format string, args ...any) {
	if r.failed == nil {
		r.failed = &Violation{promise, fmt.Sprintf(format, args...), r.call}
	}
}

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
		return false, rotation.ErrDenied
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
		r.inside(func() { r.startRival(f.Arg == 1) })
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
	case ShortPage:
		r.empty = true
	case LagNew:
		r.lagNew = true
	case LagDisable:
		r.lagDisable = true
	case LagTags:
		r.lagTags = true
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

// goOn lets the rotation go on without inv: whoever waits for it gives it up.
func (r *run) goOn(inv *invocation, n int) {
	if inv.owner != nil && !inv.orphan {
		inv.orphan = true
		r.pass(lambda)
		inv.owner.result(errCrashed)
	}
	for range n {
		switch {
		case r.failed != nil:
			return
		case !r.main.over():
			r.main.step()
		case r.rival == nil:
			r.startRival(false)
		case !r.rival.over():
			r.rival.step()
		default:
			return
		}
	}
}

func (r *run) startRival(emergency bool) {
	if r.rival != nil && !r.rival.over() {
		return
	}
	in := rotation.ExecutionInput{}
	if emergency {
		in = rotation.ExecutionInput{Mode: "emergency", Reason: "another one"}
	}
	r.rival = newMachine(r, rivalID, in)
	r.rival.step()
}

// pass lets time go by.
func (r *run) pass(d time.Duration) {
	r.sleep(d)
	for _, id := range slices.Sorted(maps.Keys(r.dying)) {
		if !r.now.Before(r.dying[id]) {
			delete(r.dying, id)
			was := r.mine
			r.mine = true
			r.must(r.kms.Disable(context.Background(), id))
			r.mine = was
		}
	}
}

// play runs the rotation and its rival to their ends.
func (r *run) play() {
	for r.advance() {
	}
}

// advance makes one invocation that is not inside of another; false: there is none
// left, and all is checked.
func (r *run) advance() bool {
	switch {
	case r.failed != nil:
		return false
	case r.rounds > maxRounds:
		r.violated("Terminates", "after %d invocations the rotation is at %s", r.rounds, r.main.state)
		return false
	case !r.main.over():
		r.main.step()
	case r.rival != nil && !r.rival.over():
		r.rival.step()
	case !r.resumed():
		r.end()
		return false
	}
	r.rounds++
	return true
}

// resumed starts an execution that resumes whatever rotation still holds the lock,
// as an operator does whom a halt has paged.
func (r *run) resumed() bool {
	r.mine = true
	v, err := r.store.Load(context.Background(), "")
	r.mine = false
	r.must(err)
	if v.Lock == "" {
		return false
	}
	m := newMachine(r, v.Lock, rotation.ExecutionInput{Resume: v.Lock})
	m.execution = "resume"
	if r.rival != nil && v.Lock == rivalID {
		r.rival = m
	} else {
		r.main = m
	}
	r.outage = 0 // whoever resumes has mended it
	r.skew = 0
	return true
}

var calls = [2]func() int{countCalls(false), countCalls(true)}

func countCalls(emergency bool) func() int {
	return sync.OnceValue(func() int {
		n, v := Run(Schedule{Emergency: emergency})
		if v != nil {
			panic(v)
		}
		return n
	})
}

// Calls is how many calls the steps of an undisturbed rotation make.
func Calls(emergency bool) int {
	if emergency {
		return calls[1]()
	}
	return calls[0]()
}
