package rotation_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// fault is what becomes of one call of a whole rotation.
type fault string

const (
	notApplied  fault = "failed, not applied"
	butApplied  fault = "failed, but applied"
	diesBefore  fault = "process dies before"
	diesAfter   fault = "process dies after"
	denied      fault = "denied"
	deniedTwice fault = "denied, and its repetition"
)

// faults are those that tell apart at a call: of a read it does not matter whether
// it took effect.
func faults(name string) []fault {
	for _, read := range []string{
		".Load", ".Check", ".Describe", ".Tagged", ".Unpublished", ".Get ", ".Leases", ".LoadCheckpoint", ".ListCheckpoints", ".Scan ", ".Decrypt ", ".Head", ".Use ", ".EncryptedBy ", ".Rehearse ",
	} {
		if strings.Contains(name, read) {
			return []fault{notApplied, diesBefore, denied}
		}
	}
	return []fault{notApplied, butApplied, diesBefore, diesAfter, denied, deniedTwice}
}

var errPlanted = errors.New("planted fault")

// effects names every call that the steps of a rotation make, so that a fault can
// be planted at exactly one of them. Rows are worked on at once, so a call is not
// known by its number but by the state it is made in, by what it works on, and by
// how often that was done before: such a name means the same call in every run.
type effects struct {
	d     *driver
	w     *watch
	mu    sync.Mutex
	count map[string]int
	names []string // in the order of their first run
	at    string   // the call to fault; "" for none
	kind  fault
	hit   bool
	left  int // calls of the same name to deny too
	onHit func(c call)
}

func newEffects(t *testing.T) *effects {
	t.Helper()
	d, w := watched(t)
	e := &effects{d: d, w: w, count: map[string]int{}}
	d.world.SetHook(e.hook)
	return e
}

func (e *effects) hook(op string, args ...any) (bool, error) {
	if e.d.at == "" || e.w.looks(op, args) {
		return true, nil
	}
	e.w.check("before " + op)
	if e.d.dead.Load() {
		return false, errPlanted
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	stem := e.d.at + " " + op + " " + subject(op, args)
	e.count[stem]++
	name := fmt.Sprintf("%s #%d", stem, e.count[stem])
	e.names = append(e.names, name)
	mine := name == e.at && !e.hit
	again := e.hit && e.left > 0 && op != "Store.Load"
	if mine {
		e.hit = true
	} else if again {
		e.left--
	}
	switch {
	case again:
		return false, journal.ErrDenied
	case !mine:
		return true, nil
	case e.onHit != nil:
		e.mu.Unlock() // what it runs comes back here
		defer e.mu.Lock()
		e.onHit(e.d.calls[len(e.d.calls)-1])
		return true, nil
	}
	return e.strike()
}

func (e *effects) strike() (bool, error) {
	switch e.kind {
	case notApplied:
		return false, errPlanted
	case butApplied:
		return true, errPlanted
	case diesBefore:
		e.d.dead.Store(true)
		return false, errPlanted
	case diesAfter:
		e.d.dead.Store(true)
		return true, errPlanted
	case deniedTwice:
		e.left = 1
		return false, journal.ErrDenied
	default:
		return false, journal.ErrDenied
	}
}

// subject is what a call works on.
func subject(op string, args []any) string {
	encctx := func(v any) string {
		m, _ := v.(map[string]string)
		return m["table"] + "/" + m["id"]
	}
	switch op {
	case "Store.Apply":
		return args[0].(kek.Change).Event
	case "Store.SaveCheckpoint":
		c := args[0].(rotation.Checkpoint)
		return fmt.Sprint(c.Source, c.Pass, c.Segment)
	case "Store.LoadCheckpoint":
		return fmt.Sprint(args[1:]...)
	case "Table.Scan":
		return fmt.Sprint(args[0], args[1].(source.ScanRequest).Segment)
	case "Table.Replace", "Table.Reread":
		return args[1].(source.Row).ID
	case "KMS.Decrypt":
		return fmt.Sprint(args[0], " ", encctx(args[2]))
	case "KMS.GenerateDataKey":
		return fmt.Sprint(args[0], " ", encctx(args[1]))
	case "KMS.ReEncrypt":
		return encctx(args[3])
	case "Vault.Put":
		return fmt.Sprint(args[1].(audit.Entry).Record.Seq)
	case "Vault.Get":
		return fmt.Sprint(args[0])
	default:
		return ""
	}
}

// faulted are the rotations that faults are planted in. One of them leaves a historic
// KEK too.
var faulted = map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency, "historic": {Label: "with a historic KEK"}}

// begin prepares the site for a rotation of [faulted].
func (e *effects) begin(in rotation.ExecutionInput) {
	if in == faulted["historic"] {
		e.d.past("before")
	}
}

// every lists the calls of a whole fault-free rotation.
func every(t *testing.T, in rotation.ExecutionInput) []string {
	t.Helper()
	all, today := everyCall(t, in), int(time.Now().Unix()/86400)
	var names []string
	for i := today % raced; i < len(all); i += raced {
		names = append(names, all[i])
	}
	return names
}

func everyCall(t *testing.T, in rotation.ExecutionInput) []string {
	t.Helper()
	e := newEffects(t)
	e.begin(in)
	e.d.complete(spring, in)
	slices.Sort(e.names)
	names := slices.Compact(e.names)
	for _, must := range []string{
		"Preflight Store.Apply rotation_started #1", "Mint KMS.Create  #1", "Mint KMS.Tagged  #1", "Switch Store.Apply pointer_switched #1",
		"Drain Store.SealFence  #2", "RewrapSegment Table.Replace o1 #1", "Retire KMS.Disable  #1", "Retire KMS.Use  #1",
		map[rotation.ExecutionInput]string{{}: "Verify Vault.Put 11 #1", emergency: "Verify Vault.Put 10 #1", faulted["historic"]: "Retire KMS.Disable  #2"}[in], "Rehearse Table.Rehearse  #1",
	} {
		if !slices.Contains(names, must) {
			t.Fatalf("the rotation does not make the call %q:\n%q", must, names)
		}
	}
	return names
}

// TestEverySingleFault plants each fault at each call of a whole rotation, one at
// a time, and drives the rotation on as the state machine and the person on call
// would. The invariants are checked before every call; at the end the rotation is
// completed or rolled back, nothing is left behind, and the next one succeeds.
func TestEverySingleFault(t *testing.T) {
	for mode, in := range faulted {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			names := every(t, in)
			ends := map[kek.Phase]int{}
			for _, name := range names {
				for _, f := range faults(name) {
					t.Run(name+"/"+string(f), func(t *testing.T) { ends[newEffects(t).single(in, name, f)]++ })
				}
			}
			if ends[kek.Completed] == 0 || (ends[kek.RolledBack] == 0) != (mode == "emergency") {
				t.Errorf("the rotations ended: %v", ends)
			}
		})
	}
}

// single runs one rotation with one fault and returns the phase it ended in, ""
// if it was refused.
func (e *effects) single(in rotation.ExecutionInput, name string, f fault) kek.Phase {
	t := e.d.t
	t.Helper()
	e.begin(in)
	e.at, e.kind = name, f
	run := e.d.finish(spring, in)
	if !e.hit {
		t.Fatalf("the call was not made; the run: %q", run.Trail)
	}
	v, err := e.d.store.Load(t.Context(), spring)
	if err != nil {
		t.Fatal(err)
	}
	r := v.Rotation
	for i := 0; r != nil && !r.Phase.Final() && i < 2; i++ { // an emergency keeps its lock when preflight fails
		run = e.d.finish(fmt.Sprintf("resume-%d", i), rotation.ExecutionInput{Resume: spring})
		now := e.d.record(spring)
		r = &now
	}
	var phase kek.Phase
	if r != nil {
		if phase = r.Phase; !phase.Final() {
			t.Fatalf("it ended at %s in %s: %v", phase, run.Final, run.Failure)
		}
	}
	if (run.Status == "SUCCEEDED") != (phase == kek.Completed) {
		t.Errorf("the execution %s in %s, the rotation is %q", run.Status, run.Final, phase)
	}
	e.w.check("at the end")
	if f == diesAfter {
		e.next()
	} else {
		e.d.settled()
	}
	return phase
}

// next shows that nothing is left behind: the next rotation succeeds.
func (e *effects) next() {
	e.d.t.Helper()
	e.d.world.SetHook(nil)
	e.d.complete(summer, rotation.ExecutionInput{})
	e.d.settled()
}

// TestDuplicatesAtEveryCall runs, at each call of each step, a whole duplicate of
// that step in between: both succeed, and the rotation completes.
func TestDuplicatesAtEveryCall(t *testing.T) {
	for mode, in := range faulted {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			for _, name := range every(t, in) {
				t.Run(name, func(t *testing.T) { newEffects(t).duplicated(in, name) })
			}
		})
	}
}

// duplicated runs one rotation with one duplicate.
func (e *effects) duplicated(in rotation.ExecutionInput, name string) {
	t := e.d.t
	t.Helper()
	e.begin(in)
	e.at = name
	e.onHit = func(c call) {
		if _, err := e.d.run(c); err != nil {
			t.Errorf("the duplicate: %v", err)
		}
	}
	run := e.d.machine.Start(spring, in)
	if !e.hit || run.Status != "SUCCEEDED" {
		t.Fatalf("hit %t; ended in %s: %v", e.hit, run.Final, run.Failure)
	}
	if slices.Contains(run.Trail, "HaltedRecord") || slices.Contains(run.Trail, "Remint") {
		t.Errorf("a duplicate made the rotation halt or mint again: %q", run.Trail)
	}
	e.d.settled()
}

// TestRollbackAtEveryCall lets PreSwitchFailure, or an emergency's re-mint, come
// late: at each call of a whole rotation. Before the switch it wins or is
// overtaken, after it it is refused; in between there is nothing.
func TestRollbackAtEveryCall(t *testing.T) {
	for mode, in := range faulted {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			for _, name := range every(t, in) {
				t.Run(name, func(t *testing.T) { newEffects(t).rolledBack(in, name) })
			}
		})
	}
}

// rolledBack runs one rotation with one late rollback or re-mint.
func (e *effects) rolledBack(in rotation.ExecutionInput, name string) {
	t := e.d.t
	t.Helper()
	action, normal := rotation.ActionPreSwitchFailure, in.Mode != emergency.Mode
	if !normal {
		action = rotation.ActionRemint
	}
	var retired bool
	e.begin(in)
	e.at = name
	e.onHit = func(call) {
		_, err := e.d.Retire(as("person"), rotation.RetireInput{RotationID: spring, Action: action, FailedAttempt: 1, Error: "States.Timeout"})
		retired = err == nil
	}
	run := e.d.finish(spring, in)
	if e.d.record(spring).Phase == kek.Started { // an emergency halted at its switch, whose KEK is gone
		run = e.d.finish("resumed", rotation.ExecutionInput{Resume: spring})
	}
	switch r := e.d.record(spring); {
	case !e.hit:
		t.Fatal("the call was not made")
	case r.Phase == kek.RolledBack && retired && normal && run.Status == "FAILED":
	case r.Phase == kek.Completed && run.Status == "SUCCEEDED" && (retired == (r.Attempt > 1)):
	default:
		t.Fatalf("at %s attempt %d, the late action took effect: %t; ended in %s: %v", r.Phase, r.Attempt, retired, run.Final, run.Failure)
	}
	if e.d.record(spring).Phase == kek.RolledBack {
		e.next()
	} else {
		e.d.settled()
	}
}

// TestStaleCalls repeats every call that a finished rotation ever made, and its
// rollback, before each step of the next one: nothing changes, ever.
func TestStaleCalls(t *testing.T) {
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			d, _ := watched(t)
			d.complete(spring, in)
			stale := maps.Collect(func(yield func(string, call) bool) {
				for _, c := range d.calls {
					if c.function != "Notify" && !yield(string(c.payload)+c.function, c) {
						return
					}
				}
			})
			for _, action := range []string{rotation.ActionPreSwitchFailure, rotation.ActionRemint, rotation.ActionAbandon, rotation.ActionRetire} {
				payload := fmt.Sprintf(`{"rotation_id":%q,"action":%q,"failed_attempt":1}`, spring, action)
				stale[action] = call{"stale", "Retire", []byte(payload)}
			}
			n := 0
			d.before = func(now call) {
				for name, c := range stale {
					if n++; n%raced != 0 {
						continue // all of them without the race detector
					}
					before := d.snapshot()
					_, err := d.run(c)
					var typed *journal.Error
					if err != nil && !errors.As(err, &typed) {
						t.Errorf("stale %s before %s: %v", name, now.state, err)
					}
					if diff := d.diff(before); diff != "" {
						t.Fatalf("stale %s before %s changed the world (-was +is):\n%s", name, now.state, diff)
					}
				}
			}
			d.complete(summer, rotation.ExecutionInput{})
			d.settled()
		})
	}
}

// TestLateCalls repeats, before each step of a rotation, all that it called so
// far, rollback included once the pointer has moved: the rotation continues.
func TestLateCalls(t *testing.T) {
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			d, _ := watched(t)
			d.before = func(now call) {
				late := slices.Clone(d.calls[:len(d.calls)-1])
				if now.state == "Drain" || now.state == "RewrapSegment" || now.state == "Retire" || now.state == "Verify" {
					for _, action := range []string{rotation.ActionPreSwitchFailure, rotation.ActionRemint, rotation.ActionAbandon} {
						payload := fmt.Sprintf(`{"rotation_id":%q,"action":%q,"failed_attempt":1}`, spring, action)
						late = append(late, call{"late", "Retire", []byte(payload)})
					}
				}
				for _, c := range late {
					if c.function == "Notify" {
						continue
					}
					before := d.snapshot()
					_, err := d.run(c)
					if err != nil && c.state != "late" && now.state != "NotifyCompleted" && now.state != "AnchorCompletion" {
						t.Errorf("%s, late before %s: %v", c.state, now.state, err)
					}
					if diff := d.diff(before); diff != "" {
						t.Fatalf("%s %s, late before %s, changed the world (-was +is):\n%s", c.state, c.payload, now.state, diff)
					}
				}
			}
			d.complete(spring, in)
			d.settled()
		})
	}
}

// TestSourceAddedAtEveryCall adds a table, whose writers have marked it, at each call of a
// whole rotation: its rows are moved before the old KEKs are retired, or the retirement
// waits until it is a source.
func TestSourceAddedAtEveryCall(t *testing.T) {
	for mode, in := range faulted {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ends := map[string]int{}
			for _, name := range every(t, in) {
				t.Run(name, func(t *testing.T) { ends[newEffects(t).added(in, name)]++ })
			}
			if ends["at once"] < 20/raced || ends["halted first"] < 20/raced {
				t.Errorf("the rotations ended: %v", ends)
			}
		})
	}
}

// added runs one rotation beside which a source is added.
func (e *effects) added(in rotation.ExecutionInput, name string) string {
	t := e.d.t
	t.Helper()
	e.begin(in)
	carts := e.d.newTable("carts", e.d.first, "c1", "c2")
	e.at = name
	add := func() error {
		_, err := e.d.AddSource(as("person"), carts.Source())
		return err
	}
	e.onHit = func(call) {
		if err := add(); err != nil && typed(err).Kind != journal.RotationInProgress {
			t.Errorf("add: %v", err)
		}
	}
	e.d.before = func(c call) {
		if c.state == "Mint" && !e.d.seen("carts") {
			e.d.mark("carts")
		}
	}
	run, end := e.d.machine.Start(spring, in), "at once"
	if run.Final == "Halted" && strings.Contains(run.Failure.Cause, "SourceForgotten") {
		end = "halted first"
		e.d.must(add())
		run.Redrive()
	}
	if run.Status != "SUCCEEDED" {
		t.Fatalf("it ended in %s: %v", run.Final, run.Failure)
	}
	e.w.check("at the end")
	if got := e.d.record(spring).Sources; len(got) != 4 {
		t.Errorf("the rotation has %v", got)
	}
	e.d.settled()
	return end
}

// seen reports whether a table is a source.
func (s *site) seen(table string) bool {
	return slices.ContainsFunc(s.view(looking).Sources, func(src kek.Source) bool { return src.Name == table })
}
