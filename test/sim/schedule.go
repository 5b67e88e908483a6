// Package sim runs rotations under schedules of faults, in virtual time: the real
// steps of package rotation, beside applications that write and read, with
// everything going wrong that may. They run on test/memstore; the tests run them
// on the real adapters and the real client of package envelope too, with embedded rows and
// with keyed ones.
//
// A schedule is a list of faults, each due at a numbered call that a step makes.
// Everything else follows from it: no goroutine decides anything, so a schedule
// replays exactly. A step that is paused is one whose call does not return before
// other steps have run inside of it. After every effect the invariants of
// spec/rotation.tla are checked on what the stores hold, and at the end the
// rotation must be over: completed, or rolled back.
package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Kind is what goes wrong.
type Kind int

// The kinds of faults. Arg of a [Fault] chooses among variants.
const (
	CrashBefore Kind = iota // the process dies before the call takes effect
	CrashAfter              // and after it
	NotApplied              // the call fails
	Lost                    // the call takes effect and its answer is lost
	Throttle                // this call and the next two of the same kind are throttled
	Deny                    // AWS says that a permission is missing
	Timeout                 // the invocation's deadline passes: nothing it calls answers any more
	Conflict                // a condition fails because somebody else won
	Outage                  // the audit bucket is away for the next Arg puts
	Slow                    // the call takes Arg minutes
	Skew                    // the steps' clock is wrong by Arg minutes from now on
	Duplicate               // the same invocation runs a second time, inside of this one
	Pause                   // the process stands still while the rotation goes on by Arg invocations
	Rival                   // another execution starts; Arg 1: an emergency; 2: one that ends another emergency too
	TakeOver                // an emergency ends the rotation here; Arg 0: whose execution has ended, 1: whose process wakes up after the emergency
	Operator                // a person calls step Arg
	Begin                   // an application seals a row; Arg: which, and an insert or an update
	Finish                  // and writes it; Arg: which application
	Delete                  // an application deletes a row
	Restore                 // a backup puts a row under the old KEK back
	Foreign                 // somebody writes a row past the client, which names no KEK; Arg 1: under the old KEK, 2: by an alias
	NewTable                // an application begins to write into a table that is no source; Arg 1: a foreign row too
	Look                    // a reader reads a row
	Open                    // and opens it
	Object                  // somebody puts an object into the audit bucket, where Arg says
	ShortPage               // a scan returns a page without rows that is not the last
	LagNew                  // new keys and their tags are known only after five minutes
	LagDisable              // a disabled key goes on working for five minutes
	LagTags                 // the listing of tagged keys misses the youngest
	Hold                    // people pause the walks over the rows, and continue them after Arg minutes
	SetBack                 // the control table is restored to what it was Arg transactions ago
	Store                   // an application makes a data key for a row, and falls asleep before it stores its record; Arg as of Begin
	Lose                    // a record of a data key is deleted by mistake; Arg 0: that of a row, 1: the youngest
	PutBack                 // a person has records put back
	Convert                 // a person converts embedded rows to keyed ones
	kinds

	anywhere = SetBack // the kinds before this one happen in every world; those after it where rows are keyed
)

var kindNames = [kinds]string{
	"crash-before", "crash-after", "not-applied", "lost", "throttle", "deny", "timeout", "conflict", "outage", "slow", "skew",
	"duplicate", "pause", "rival", "take-over", "operator", "begin", "finish", "delete", "restore", "foreign", "new-table", "look", "open", "object", "short-page",
	"lag-new", "lag-disable", "lag-tags", "hold", "set-back", "store", "lose", "put-back", "convert",
}

func (k Kind) String() string { return kindNames[k] }

// variants are the values of Arg that differ.
func (k Kind) variants() []int {
	switch k {
	case Outage:
		return []int{1, 40}
	case Slow:
		return []int{1, 14, 45}
	case Hold:
		return []int{1, 14}
	case Skew:
		return []int{-90, 90}
	case Pause:
		return []int{1, 2, 4, 7, 12, 40}
	case Finish, NewTable, TakeOver, Lose:
		return []int{0, 1}
	case Rival, Foreign, Object:
		return []int{0, 1, 2}
	case SetBack:
		return []int{1, 2, 5, 12, 100}
	case Operator:
		return upTo(len(operatorCalls))
	case Begin, Store:
		return []int{0, 1, 2, 3}
	default:
		return []int{0}
	}
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// Fault is one thing that goes wrong, at the call of that number.
type Fault struct {
	At   int
	Kind Kind
	Arg  int
}

// Schedule is a rotation and all that goes wrong in it, in the order of calls.
type Schedule struct {
	Emergency bool
	Faults    []Fault
}

// String is the schedule as [Parse] reads it.
func (s Schedule) String() string {
	out := "normal"
	if s.Emergency {
		out = "emergency"
	}
	for _, f := range s.Faults {
		out += fmt.Sprintf(" %d:%s/%d", f.At, f.Kind, f.Arg)
	}
	return out
}

// Parse reads a schedule, as "normal 12:crash-before/0 40:pause/4".
func Parse(text string) (Schedule, error) {
	words := strings.Fields(text)
	if len(words) == 0 || words[0] != "normal" && words[0] != "emergency" {
		return Schedule{}, fmt.Errorf("schedule %q: it begins with normal or emergency", text)
	}
	s := Schedule{Emergency: words[0] == "emergency"}
	for _, w := range words[1:] {
		at, rest, _ := strings.Cut(w, ":")
		name, arg, _ := strings.Cut(rest, "/")
		k := slices.Index(kindNames[:], name)
		n, err := strconv.Atoi(at)
		a, err2 := strconv.Atoi(arg)
		if k < 0 || err != nil || err2 != nil {
			return Schedule{}, fmt.Errorf("schedule %q: %q is not <call>:<kind>/<number>", text, w)
		}
		s.Faults = append(s.Faults, Fault{n, Kind(k), a})
	}
	return s.sorted(), nil
}

// restores reports whether the control table is restored.
func (s Schedule) restores() bool {
	return slices.ContainsFunc(s.Faults, func(f Fault) bool { return f.Kind == SetBack })
}

func (s Schedule) sorted() Schedule {
	slices.SortStableFunc(s.Faults, func(a, b Fault) int { return a.At - b.At })
	return s
}

// without is the schedule with faults from i to j taken out.
func (s Schedule) without(i, j int) Schedule {
	return Schedule{s.Emergency, slices.Delete(slices.Clone(s.Faults), i, j)}
}

// Random is the schedule of a seed: mostly a few faults, among them bursts, and writers
// that are paused while they hold a lease, over the switch or the seal.
func Random(seed uint64) Schedule { return random(seed, Calls) }

func random(seed uint64, undisturbed func(emergency bool) int) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x6d61747465720a)) //nolint:gosec // a schedule must replay
	s := Schedule{Emergency: r.IntN(3) == 0}
	calls := undisturbed(s.Emergency)
	if r.IntN(2) == 0 { // a burst: something interrupts a step, and something else what runs meanwhile
		at := r.IntN(calls)
		interrupt := []Kind{Duplicate, Pause, Operator, Rival}
		s.add(r, at, interrupt[r.IntN(len(interrupt))])
		for range 1 + r.IntN(2) {
			at += 1 + r.IntN(12)
			s.add(r, at, Kind(r.IntN(int(Restore))))
		}
	}
	n := r.IntN(5)
	if r.IntN(8) == 0 {
		n += r.IntN(12)
	}
	for range n {
		k := Kind(r.IntN(int(anywhere)))
		s.add(r, r.IntN(calls), k)
	}
	if r.IntN(3) > 0 { // a paused holder
		early, late := r.IntN(calls*2/3), calls/3+r.IntN(calls*2/3)
		who, what := r.IntN(2), r.IntN(2)
		s.Faults = append(s.Faults, Fault{min(early, late), Begin, who*2 + what}, Fault{max(early, late), Finish, who})
	}
	if r.IntN(4) == 0 { // rows that no census has counted, and a person who cares for them, or thinks so
		at := r.IntN(calls)
		s.add(r, at, []Kind{Foreign, NewTable}[r.IntN(2)])
		at += r.IntN(calls - at)
		s.Faults = append(s.Faults, Fault{at, Operator, sourceCalls[r.IntN(len(sourceCalls))]})
		if disturb := []Kind{Pause, Duplicate, Operator, Foreign, NewTable, CrashAfter}; r.IntN(2) == 0 {
			s.add(r, at+1+r.IntN(12), disturb[r.IntN(len(disturb))])
		}
	}
	return s.sorted()
}

// holder is the schedule of a seed in which an application holds a lease, and has a
// row to write, while drain is disturbed.
func holder(seed uint64, undisturbed func(emergency bool) int) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x686f6c646572)) //nolint:gosec // a schedule must replay
	s := Schedule{Emergency: r.IntN(2) == 0}
	calls := undisturbed(s.Emergency)
	who := r.IntN(4)
	s.Faults = append(s.Faults, Fault{r.IntN(calls / 2), Begin, who})
	disturb := []Kind{Slow, Slow, Slow, Pause, Pause, Skew, Duplicate, CrashBefore, CrashAfter, Lost, Begin, Finish}
	c := undisturbedCourse(s.Emergency)
	drain := calls * c.drain / c.calls // where other calls are counted, about there
	for range 1 + r.IntN(3) {
		s.add(r, drain-5+r.IntN(calls/8), disturb[r.IntN(len(disturb))])
	}
	if r.IntN(2) == 0 {
		s.Faults = append(s.Faults, Fault{calls/4 + r.IntN(calls*3/4), Finish, who / 2})
	}
	return s.sorted()
}

// adopter is the schedule of a seed in which a person adopts rows and stands still
// meanwhile.
func adopter(seed uint64, undisturbed func(emergency bool) int) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x61646f707465720a)) //nolint:gosec // a schedule must replay
	s := Schedule{Emergency: r.IntN(3) == 0}
	calls := undisturbed(s.Emergency)
	at := r.IntN(calls * 2 / 3)
	s.add(r, at, Foreign)
	at += 1 + r.IntN(calls/3)
	adopt := slices.IndexFunc(operatorCalls, func(c operatorCall) bool { return c.name == "adopt rows" })
	s.Faults = append(s.Faults, Fault{at, Operator, adopt})
	for range 1 + r.IntN(2) {
		disturb := []Kind{Pause, Pause, Pause, Duplicate, CrashBefore, CrashAfter, Lost, Delete}
		s.add(r, at+1+r.IntN(20), disturb[r.IntN(len(disturb))])
	}
	return s.sorted()
}

// restorer is the schedule of a seed in which the control table is restored, mostly while
// an application holds a row of before, and what runs then is disturbed: steps that do not
// know of it yet, or whoever rebuilds the table.
func restorer(seed uint64, undisturbed func(emergency bool) int) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x726573746f726572)) //nolint:gosec // a schedule must replay
	s := Schedule{Emergency: r.IntN(3) == 0}
	calls := undisturbed(s.Emergency)
	at := r.IntN(calls)
	s.add(r, at, SetBack)
	if r.IntN(4) > 0 {
		s.add(r, r.IntN(at+1), Begin)
		s.add(r, at+r.IntN(100), Finish)
	}
	disturb := []Kind{CrashBefore, CrashAfter, NotApplied, Lost, Conflict, Pause, Pause, Duplicate, Object, Slow}
	for range r.IntN(4) {
		s.add(r, max(0, at-5)+r.IntN(100), disturb[r.IntN(len(disturb))])
	}
	return s.sorted()
}

func (s *Schedule) add(r *rand.Rand, at int, k Kind) {
	v := k.variants()
	s.Faults = append(s.Faults, Fault{at, k, v[r.IntN(len(v))]})
}

// Singles are all schedules of one fault.
func Singles(emergency bool) []Fault { return singles(Calls(emergency)) }

func singles(calls int) []Fault {
	var out []Fault
	for at := range calls {
		for k := range anywhere {
			for _, arg := range k.variants() {
				out = append(out, Fault{at, k, arg})
			}
		}
	}
	return out
}

// Cores are the faults of which every pair is tried: the kinds that interrupt,
// repeat or reorder a step, or write a row at the wrong moment.
func Cores(emergency bool) []Fault {
	var out []Fault
	for _, f := range Singles(emergency) {
		switch f.Kind {
		case CrashBefore, CrashAfter, NotApplied, Lost, Timeout, Conflict, Duplicate, Restore, Delete:
		case Pause:
			if f.Arg == 1 || f.Arg == 4 {
				continue
			}
		case Begin:
			if f.Arg > 1 {
				continue
			}
		case Finish, NewTable:
			if f.Arg > 0 {
				continue
			}
		case Foreign:
			if f.Arg != 1 {
				continue
			}
		default:
			continue
		}
		out = append(out, f)
	}
	return out
}
