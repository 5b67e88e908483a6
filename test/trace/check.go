package trace

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/matter-ops/kms-rotation/spec"
	"github.com/matter-ops/kms-rotation/test/tlc"
)

//go:embed RotationTrace.tla
var module string

// Verdict is what the model says of a run.
type Verdict struct {
	Accepted bool
	At       int    // index of the first event that was not explained
	Event    Event  // that event
	Violated string // the promise that it breaks; "" if no action explains it
	Refused  string // why it can be in no run, whatever the model says; "" if it may

	// Actions says how often each action of the model explained an event, or what was
	// done again without effect.
	Actions map[string]int
}

func (v Verdict) String() string {
	switch {
	case v.Accepted:
		return "accepted"
	case v.Refused != "":
		return fmt.Sprintf("rejected: event %d, %s: %s", v.Event.N, v.Event.name(), v.Refused)
	case v.Violated != "":
		return fmt.Sprintf("rejected: event %d, %s, breaks %s", v.Event.N, v.Event.name(), v.Violated)
	default:
		return fmt.Sprintf("rejected: no action explains event %d, %s", v.Event.N, v.Event.name())
	}
}

func (e Event) name() string { return strings.TrimSpace(e.Effect + " " + e.Event) }

// batch bounds how many events TLC is given at once.
const batch = 5000

// Check checks runs against the model, many in one run of TLC. The verdicts are
// in the order of the runs.
func Check(ctx context.Context, runs ...[]Event) ([]Verdict, error) {
	verdicts := make([]Verdict, len(runs))
	converted := make([]*run, len(runs))
	groups := map[[2]int][]int{} // by the numbers of shards and historic KEKs, which a model fixes
	for i, events := range runs {
		r := convert(events)
		converted[i] = r
		group := [2]int{r.shards, r.historic}
		groups[group] = append(groups[group], i)
	}
	for _, group := range groups {
		for len(group) > 0 {
			n, size := 0, 0
			for n < len(group) && (n == 0 || size+len(converted[group[n]].lines) <= batch) {
				size += len(converted[group[n]].lines)
				n++
			}
			if err := check(ctx, runs, converted, group[:n], verdicts); err != nil {
				return nil, err
			}
			group = group[n:]
		}
	}
	return verdicts, nil
}

var printed = regexp.MustCompile(`<<"(explained|violates)", (\d+), (\d+), "([\w ]+)">>`)

// check has TLC look at one group of runs.
func check(ctx context.Context, runs [][]Event, converted []*run, group []int, verdicts []Verdict) error {
	var some []*run
	for _, i := range group {
		some = append(some, converted[i])
	}
	res, err := tlc.Check(ctx, tlc.Run{
		Module: "RotationTrace",
		Files:  map[string]string{"rotation": spec.Rotation, "RotationTrace": module, "TraceData": data(some), "TraceSteps": stepsOf("rotation", spec.Rotation)},
		Config: config(some),
	})
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if res.Verdict != tlc.Holds {
		return fmt.Errorf("trace: %w: TLC says %s:\n%s", errors.New("not checked"), res.Verdict, res.Output)
	}
	explained, violated, actions := readExplained(res.Output, len(group))
	for j, i := range group {
		verdicts[i] = converted[i].verdict(runs[i], explained[j], violated[j])
		verdicts[i].Actions = map[string]int{}
		for k := range actions[j] {
			verdicts[i].Actions[k[1].(string)]++
		}
	}
	return nil
}

// readExplained reads of so many runs how many of their lines were explained, which promise the
// next one breaks, and by which actions.
func readExplained(output string, runs int) (explained []int, violated []string, actions []map[[2]any]bool) {
	explained = make([]int, runs)
	violated = make([]string, runs)
	actions = make([]map[[2]any]bool, runs)
	for _, m := range printed.FindAllStringSubmatch(output, -1) {
		t, _ := strconv.Atoi(m[2])
		i, _ := strconv.Atoi(m[3])
		if m[1] == "violates" {
			violated[t-1] = m[4]
			continue
		}
		explained[t-1] = max(explained[t-1], i)
		if actions[t-1] == nil {
			actions[t-1] = map[[2]any]bool{}
		}
		actions[t-1][[2]any{i, m[4]}] = true
	}
	return explained, violated, actions
}

// verdict is what is to be said of a run of which so many lines are explained.
func (r *run) verdict(events []Event, explained int, violated string) Verdict {
	if explained == len(r.lines) {
		return Verdict{Accepted: true}
	}
	v := Verdict{At: r.at[explained], Violated: violated}
	if v.At >= 0 && v.At < len(events) {
		v.Event = events[v.At]
	}
	if explained == len(r.lines)-1 {
		v.Refused = r.refused
	}
	return v
}

// data is the module TraceData. Unknown is a KEK that nobody makes.
func data(runs []*run) string {
	var b strings.Builder
	b.WriteString("---- MODULE TraceData ----\nEXTENDS Naturals, Sequences\n")
	unknown := 1
	for _, r := range runs {
		unknown = max(unknown, len(r.keks)+1)
	}
	fmt.Fprintf(&b, "Unknown == %d\n", unknown)
	var names, heads, stored, begun, places []string
	for i, r := range runs {
		fmt.Fprintf(&b, "Trace%d == <<\n  %s>>\n", i+1, strings.Join(r.lines, ",\n  "))
		names, heads = append(names, fmt.Sprintf("Trace%d", i+1)), append(heads, fmt.Sprint(r.head))
		stored, begun, places = append(stored, fmt.Sprint(r.stored)), append(begun, boolean(r.begun)), append(places, r.place())
	}
	fmt.Fprintf(&b, "Traces == <<%s>>\nHeads == <<%s>>\nPuts == <<%s>>\nBegun == <<%s>>\nPlaces == <<%s>>\n====\n",
		strings.Join(names, ", "), strings.Join(heads, ", "), strings.Join(stored, ", "), strings.Join(begun, ", "), strings.Join(places, ",\n  "))
	return b.String()
}

// property is a property of steps in a module.
var property = regexp.MustCompile(`(?ms)^(\w+)( *==[^\n]*?\n? *)\[\]\[(.*?)\]_(\w+|<<\w+>>) *$`)

// quiet are the properties of steps that hold unless somebody else has written a row since
// the rotation began.
var quiet = []string{"KnownBeforeSwitch", "RetiredIsMoved", "CompletedIsMoved"}

// stepsOf is the module TraceSteps: each property of steps in a module, of which it is given the
// text, as a formula of one step, which a trace is held to after each event.
func stepsOf(module, text string) string {
	var b, all strings.Builder
	fmt.Fprintf(&b, "---- MODULE TraceSteps ----\nEXTENDS %s\n", module)
	for _, m := range property.FindAllStringSubmatch(text, -1) {
		name, head, body, of := m[1], m[2], m[3], m[4]
		if name == "Spec" {
			continue
		}
		column := len(head) - 1 - strings.LastIndex(head, "\n") // TLA+ lists are indented
		if !strings.Contains(head, "\n") {
			column += len(name)
		}
		fmt.Fprintf(&b, "Of%s ==\n  (%s' = %[2]s) \\/ (\n%s%s)\n", name, of, strings.Repeat(" ", column+len("[][")), body)
		holds := "Of" + name
		if slices.Contains(quiet, name) {
			holds = "strange \\/ " + holds
		}
		fmt.Fprintf(&all, "\n  /\\ Says(%q, %s)", name, holds)
	}
	fmt.Fprintf(&b, "SoundSteps(Says(_, _), strange) ==%s\n====\n", all.String())
	return b.String()
}

// config bounds the model by what the runs need.
func config(runs []*run) string {
	rots, mints, rows, writers, keys, dup := 1, 1, 0, 0, 1, 1
	for _, r := range runs {
		rots, mints, rows, writers = max(rots, len(r.rots)), max(mints, r.mints), max(rows, len(r.rows)), max(writers, len(r.writers))
		keys = max(keys, len(r.keks))
		for _, n := range r.made {
			dup = max(dup, n)
		}
	}
	historic := runs[0].historic
	for 1+historic+rots*mints*(1+dup) < keys+1 {
		dup++
	}
	return fmt.Sprintf(`SPECIFICATION TSpec
CONSTANTS
  Row = {%s}
  Writer = {%s}
  Shard = {%s}
  MaxRot = %d
  MaxMint = %d
  Dup = %d
  Reader = {}
  Modes = {"normal", "emergency"}
  MaxWrite = 0
  MaxRenew = 0
  Leases = TRUE
  Recheck = FALSE
  DekCache = TRUE
  Deletes = TRUE
  Restore = "raw"
  Side = {}
  Historic = %d
  Foreign = "raw"
  Lies = TRUE
  Unfit = FALSE
  Unmarked = FALSE
  Takeover = "any"
`, numbers(1, rows), numbers(1, writers), numbers(0, runs[0].shards-1), rots, mints, dup, historic)
}

func numbers(from, to int) string {
	var out []string
	for i := from; i <= to; i++ {
		out = append(out, strconv.Itoa(i))
	}
	return strings.Join(out, ", ")
}
