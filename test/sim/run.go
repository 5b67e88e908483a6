package sim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
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
	from   int   // call that it began with
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

	held  time.Time // people have paused the walks until then
	sched Schedule
	next  int // first fault that is still to come
	call  int // calls of steps so far
	drain int // calls before drain was first invoked
	mine  bool
	inv   *invocation
	depth int
	inner int // how often something ran inside of an invocation

	rounds      int  // invocations that were not inside of another
	blocked     bool // a rotation has met rows or a table that a person must care for
	again       bool // and another was started when that was done
	removing    int  // how many persons are removing the late source
	main, rival *machine
	urgent      int // how many emergencies have been started that must be completed
	bucket          // what others have done to the audit bucket and the control table

	throttled         string
	throttles, outage int
	empty             bool
	lagNew, lagTags   bool
	lagDisable        bool
	made              map[kek.ID]time.Time
	dying             map[kek.ID]time.Time
	oneHost           bool // KMS learns of everything at one moment, as the model has it
	asked             int  // answers that depended on which host of KMS gave them

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
	r.wire(r.inMemory(world, world.NewTable("rows"), world.NewTable(lateTable)))
	r.apps = &copies{actors: r.actors}
	r.settle()
	return r
}

// began is when every rotation begins.
func began() time.Time { return time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC) }

// emptyRun is a run that takes place nowhere yet.
func emptyRun(s Schedule) *run {
	r := &run{context: ctx, sched: s, now: began(), made: map[kek.ID]time.Time{}, dying: map[kek.ID]time.Time{}}
	r.actors = &actors{run: r, want: map[string]string{}, overslept: map[string]int64{}}
	return r
}

// settle makes the deployment, before anything can fail.
func (r *run) settle() {
	r.mine = true
	byPerson := memstore.WithCaller(ctx, "person")
	k, err := r.kms.Create(byPerson, "", 0, "genesis", keyring.Key{})
	r.must(err)
	sources := []kek.Source{rowSource()}
	if r.keyed != nil {
		sources = append(sources, r.keyed.source())
	}
	_, err = r.steps.Genesis(byPerson, k.ID, "genesis", sources)
	r.must(err)
	r.check = newChecker(r)
	r.apps.start()
	r.begin(0, task{insert: true, id: "known-1"})
	r.apps.finish(0)
	r.begin(0, task{insert: true, id: aRow})
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

// rowSource is the one source: its rows of a known name are the known ciphers too.
func rowSource() kek.Source {
	return kek.Source{Name: "rows", Kind: memstore.KindCorpus, Definition: "{}", Place: "rows"}
}

func (r *run) clock() time.Time { return r.now }

// wire gives a run its stores, and the steps on them.
func (r *run) wire(p place) {
	r.place, r.kms = p, p.world.KMS()
	k := &keys{p.keys, r}
	j := &journal.Journal{
		Registry: r.store, Outbox: r.store, AuditBucket: r.vault, Now: func() time.Time { return r.clock().Add(r.skew) }, Actor: "sim",
	}
	r.steps = &rotation.Steps{
		Config: rotation.Config{
			DrainMaxWait: 30 * time.Minute, DrainPoll: 15 * time.Second, DeleteHold: 90 * 24 * time.Hour,
			Segments: 1, FenceShards: shards, MaxMints: maxMints, CanaryRounds: 1,
		},
		Journal: j, Gates: gates.Gates{Journal: j, Pauses: holds{r}}, Drainage: r.store, Checkpoints: rotation.SealCheckpoints(r.store, memstore.CheckpointKeys{}), Archive: r.store, OpenSource: r.open,
		Keys: keyring.Keyring{Admin: k, Wrapper: k, Cipher: aead.Cipher{}, Random: func(b []byte) { copy(b, "known plaintext") }},
	}
	if r.keyed != nil {
		r.steps.Keys.Random = func(b []byte) { _, _ = rand.Read(b) } // ids of data keys differ
	}
}

// holds are the pauses of a run: [Hold] says how long the walks of all rotations are paused. A
// look at them does not count as a call at which something may go wrong: a pause only leaves steps out.
type holds struct{ r *run }

// LoadPause implements [gates.Pauses].
func (h holds) LoadPause(_ context.Context, id string) (gates.Pause, error) {
	p := gates.Pause{Rotation: id}
	if h.r.now.Before(h.r.held) {
		p.State = gates.Paused
	}
	return p, nil
}

// SavePause implements [gates.Pauses].
func (holds) SavePause(context.Context, gates.Pause, audit.Event) error {
	return errors.New("nobody saves a pause here")
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

// pass lets time go by.
func (r *run) pass(d time.Duration) {
	r.sleep(d)
	for _, id := range slices.Sorted(maps.Keys(r.dying)) {
		if !r.now.Before(r.dying[id]) {
			delete(r.dying, id)
			was := r.mine
			r.mine = true
			r.must(r.kms.Disable(memstore.WithCaller(ctx, "retire"), id)) // which step asked for it is not kept
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
	case r.rebuilt() || r.resumed() || r.insisted() || r.restarted():
	default:
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
	if r.rival != nil && v.Lock == r.rival.id {
		r.rival = m
	} else {
		r.main = m
	}
	r.outage = 0 // whoever resumes has mended it
	r.skew = 0
	r.accountForRows()
	return true
}

// course is what an undisturbed rotation is, in calls of its steps.
type course struct{ calls, drain int } // how many it makes, and after how many drain begins

var courses = [2]func() course{courseOf(false), courseOf(true)}

func courseOf(emergency bool) func() course {
	return sync.OnceValue(func() course {
		r := fork(Schedule{Emergency: emergency})
		r.play()
		if r.failed != nil {
			panic(r.failed)
		}
		return course{r.call, r.drain}
	})
}

func undisturbedCourse(emergency bool) course {
	if emergency {
		return courses[1]()
	}
	return courses[0]()
}

// Calls is how many calls the steps of an undisturbed rotation make.
func Calls(emergency bool) int { return undisturbedCourse(emergency).calls }
