package trace

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/spec"
	"github.com/matter-ops/kms-rotation/test/tlc"
)

// Runs with keyed rows are held to spec/keyed.tla. A [KeyedRecorder] is shown what the tables,
// the bucket of copies and KMS hold after each effect, and notes what has changed. It reads the
// items by itself: a decoder that it shared with the code would be wrong together with it.

//go:embed KeyedTrace.tla
var keyedModule string

// KeyedEvent is one effect, in the numbers of the model: KEKs in the order of the registry, data
// keys and rows in that of their appearance.
type KeyedEvent struct {
	Effect   string // as an action of KeyedTrace.tla names it
	Rotation int
	Mode     string // start
	KEK      int    // 0: one that is not in the registry
	Was      int    // rewrap: the KEK before; create: the epoch that the record says
	DEK      int
	Row      int
	Epoch    int // of the pointer, of the row, or in which the data key was made
}

// line is the event as a record of TLA+.
func (e KeyedEvent) line() string {
	return fmt.Sprintf("[a |-> %q, n |-> %d, m |-> %q, k |-> %d, w |-> %d, d |-> %d, r |-> %d, e |-> %d]",
		e.Effect, e.Rotation, e.Mode, e.KEK, e.Was, e.DEK, e.Row, e.Epoch)
}

// KeyedState is what there is.
type KeyedState struct {
	Control, Keys, Rows []map[string]types.AttributeValue
	Copies              map[string][]byte // by key
	Enabled             map[string]bool   // KEKs in KMS
}

// facts are what a state says, without what the model does not speak of.
type facts struct {
	states  map[string]string    // of KEKs in the registry
	pointer string               // KEK
	epoch   int                  // of the pointer
	open    map[string]bool      // KEKs with a shard of their fence of records open
	phases  map[string][3]string // of rotations: phase, mode, new KEK
	records map[string]keyed
	rows    map[string]keyed
	copies  map[string]bool
	enabled map[string]bool
}

// keyed is what an item names, and what it is.
type keyed struct {
	names       string // a record: its KEK; a row: its data key
	epoch, born int
	bytes       string
}

func textOf(v types.AttributeValue) string {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return v.Value
	case *types.AttributeValueMemberN:
		return v.Value
	case *types.AttributeValueMemberB:
		return string(v.Value)
	default:
		return ""
	}
}

func numberOf(v types.AttributeValue) (n int) {
	_, _ = fmt.Sscan(textOf(v), &n) // 0: the model has no such number
	return n
}

func readFacts(s KeyedState) facts {
	f := facts{
		states: map[string]string{}, open: map[string]bool{}, phases: map[string][3]string{}, records: map[string]keyed{}, rows: map[string]keyed{},
		copies: map[string]bool{}, enabled: s.Enabled,
	}
	for _, i := range s.Control {
		kind, id, _ := strings.Cut(textOf(i["pk"]), "#")
		switch kind {
		case "POINTER":
			f.pointer, f.epoch = textOf(i["kek_id"]), numberOf(i["epoch"])
		case "KEK":
			f.states[id] = textOf(i["state"])
		case "DEKFENCE":
			f.open[id] = f.open[id] || textOf(i["state"]) == "open"
		case "ROTATION":
			f.phases[id] = [3]string{textOf(i["phase"]), textOf(i["mode"]), textOf(i["new_kek_id"])}
		default: // nothing of the model
		}
	}
	for _, i := range s.Keys {
		_, id, _ := strings.Cut(textOf(i["pk"]), "#")
		f.records[id] = keyed{textOf(i["kek_id"]), numberOf(i["kek_epoch"]), numberOf(i["born_epoch"]), textOf(i["wrapped_dek"])}
	}
	for _, i := range s.Rows {
		if dek := textOf(i["dek_id"]); dek != "" {
			f.rows[textOf(i["id"])] = keyed{names: dek, epoch: numberOf(i["kek_epoch"]), bytes: textOf(i["data"])}
		}
	}
	for key := range s.Copies {
		f.copies[key] = true
	}
	return f
}

// KeyedRecorder makes a run of what it is shown. Who shows it an effect lets no other happen
// meanwhile.
type KeyedRecorder struct {
	was    facts
	keks   names
	deks   names
	rows   names
	events []KeyedEvent
	beyond string
	mishap bool // the next record that goes is deleted by mistake
}

// NewKeyedRecorder begins with a deployment before its first data key: its one KEK is the first
// of the model.
func NewKeyedRecorder(pointer string) *KeyedRecorder {
	r := &KeyedRecorder{keks: names{}, deks: names{}, rows: names{}}
	r.keks.of(pointer)
	r.was = readFacts(KeyedState{Enabled: map[string]bool{pointer: true}})
	r.was.pointer = pointer
	r.was.states[pointer] = "active"
	r.was.open[pointer] = true
	return r
}

// Events returns the run so far.
func (r *KeyedRecorder) Events() []KeyedEvent { return slices.Clone(r.events) }

// Beyond says why the model has no such run; "" if it may have. It has no rotation that ends
// before its switch.
func (r *KeyedRecorder) Beyond() string { return r.beyond }

// Mishap says that a person is about to delete a record. Without it no action of the model
// explains that one goes.
func (r *KeyedRecorder) Mishap() { r.mishap = true }

func (r *KeyedRecorder) add(e KeyedEvent) { r.events = append(r.events, e) }

// kek is the number of a registered KEK.
func (r *KeyedRecorder) kek(id string) int {
	if _, ok := r.keks[fmt.Sprint(id)]; !ok {
		return 0
	}
	return r.keks.of(id)
}

// Look notes what one effect has changed.
func (r *KeyedRecorder) Look(s KeyedState) {
	now := readFacts(s)
	r.lookAtKEKs(now)
	r.lookAtPhases(now)
	for _, key := range slices.Sorted(maps.Keys(now.copies)) {
		if !r.was.copies[key] {
			r.copied(s.Copies[key])
		}
	}
	r.lookAtRecords(now)
	r.lookAtRows(now)
	r.was = now
}

func (r *KeyedRecorder) lookAtKEKs(now facts) {
	for _, id := range slices.Sorted(maps.Keys(now.states)) {
		was, state := r.was.states[id], now.states[id]
		switch {
		case was == "" && state == "pending":
			n := r.keks.of(id) - 1
			for _, p := range now.phases {
				if p[2] == id {
					r.add(KeyedEvent{Effect: "start", Rotation: n, Mode: p[1]})
				}
			}
		case was == "pending" && state == "retired":
			r.beyond = "a rotation ended before its switch"
		}
	}
	if now.pointer != r.was.pointer {
		r.add(KeyedEvent{Effect: "switch", Rotation: r.kek(now.pointer) - 1, Epoch: now.epoch})
	}
	for _, id := range slices.Sorted(maps.Keys(r.was.open)) {
		if r.was.open[id] && !now.open[id] {
			r.add(KeyedEvent{Effect: "shut", KEK: r.kek(id)})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.was.enabled)) {
		if r.was.enabled[id] && !now.enabled[id] && r.kek(id) != 0 {
			r.add(KeyedEvent{Effect: "disable", KEK: r.kek(id)})
		}
	}
}

// inModel are the phases that the model has, by their names there.
var inModel = map[string]string{"drained": "seal", "rewrapped": "rewrapped", "retired": "retire", "completed": "complete"}

func (r *KeyedRecorder) lookAtPhases(now facts) {
	for _, id := range slices.Sorted(maps.Keys(now.phases)) {
		p := now.phases[id]
		if effect := inModel[p[0]]; p[0] != r.was.phases[id][0] && effect != "" {
			r.add(KeyedEvent{Effect: effect, Rotation: r.kek(p[2]) - 1})
		}
	}
}

func (r *KeyedRecorder) copied(body []byte) {
	var c struct {
		DEK  string `json:"dek_id"`
		KEK  string `json:"kek_id"`
		Born int    `json:"born_epoch"`
	}
	if err := json.Unmarshal(body, &c); err != nil {
		c.DEK = "no copy" // of a data key that no event has made
	}
	r.add(KeyedEvent{Effect: "copy", DEK: r.deks.of(c.DEK), KEK: r.kek(c.KEK), Epoch: c.Born})
}

func (r *KeyedRecorder) lookAtRecords(now facts) {
	for _, id := range slices.Sorted(maps.Keys(now.records)) {
		was, there := r.was.records[id]
		is := now.records[id]
		e := KeyedEvent{Effect: "create", DEK: r.deks.of(id), KEK: r.kek(is.names), Was: is.epoch, Epoch: is.born}
		if there {
			e.Effect = "rewrap"
			e.Was = r.kek(was.names)
		}
		if is != was {
			r.add(e)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.was.records)) {
		if _, there := now.records[id]; !there {
			e := KeyedEvent{Effect: "remove", DEK: r.deks.of(id)}
			if r.mishap {
				e.Effect = "lose"
			}
			r.mishap = false
			r.add(e)
		}
	}
}

func (r *KeyedRecorder) lookAtRows(now facts) {
	for _, id := range slices.Sorted(maps.Keys(now.rows)) {
		if is := now.rows[id]; is != r.was.rows[id] {
			r.add(KeyedEvent{Effect: "row", Row: r.rows.of(id), DEK: r.deks.of(is.names), Epoch: is.epoch})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.was.rows)) {
		if _, there := now.rows[id]; !there {
			r.add(KeyedEvent{Effect: "delete", Row: r.rows.of(id)})
		}
	}
}

// KeyedVerdict is what the model says of a run.
type KeyedVerdict struct {
	Accepted bool
	At       int    // of the first event that was not explained
	Violated string // the promise that it breaks; "" if no action explains it
}

// CheckKeyed checks runs against the model, all in one run of TLC. The verdicts are in the order
// of the runs.
func CheckKeyed(ctx context.Context, runs ...[]KeyedEvent) ([]KeyedVerdict, error) {
	steps := strings.ReplaceAll(stepsOf("keyed", spec.Keyed), "MODULE TraceSteps", "MODULE KeyedSteps")
	res, err := tlc.Check(ctx, tlc.Run{
		Module: "KeyedTrace",
		Files:  map[string]string{"keyed": spec.Keyed, "KeyedTrace": keyedModule, "KeyedData": keyedData(runs), "KeyedSteps": steps},
		Config: keyedBounds(runs),
	})
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	if res.Verdict != tlc.Holds {
		return nil, fmt.Errorf("trace: %w: TLC says %s:\n%s", errors.New("not checked"), res.Verdict, res.Output)
	}
	explained, violated, _ := readExplained(res.Output, len(runs))
	verdicts := make([]KeyedVerdict, len(runs))
	for n, run := range runs {
		verdicts[n] = KeyedVerdict{Accepted: explained[n] == len(run)}
		if !verdicts[n].Accepted {
			verdicts[n].At = explained[n]
			verdicts[n].Violated = violated[n]
		}
	}
	return verdicts, nil
}

func keyedData(runs [][]KeyedEvent) string {
	var b strings.Builder
	b.WriteString("---- MODULE KeyedData ----\nEXTENDS Naturals, Sequences\nTraces == <<")
	for n, run := range runs {
		if n > 0 {
			b.WriteString(",")
		}
		var lines []string
		for _, e := range run {
			lines = append(lines, e.line())
		}
		fmt.Fprintf(&b, "\n <<%s>>", strings.Join(lines, ",\n  "))
	}
	b.WriteString(">>\n====\n")
	return b.String()
}

// keyedBounds bounds the model by what the runs need.
func keyedBounds(runs [][]KeyedEvent) string {
	rots, deks, rows := 1, 1, 1
	for _, e := range slices.Concat(runs...) {
		rots, deks, rows = max(rots, e.Rotation, e.KEK-1), max(deks, e.DEK), max(rows, e.Row)
	}
	return fmt.Sprintf(`SPECIFICATION TSpec
CONSTANTS
  Row = {%s}
  Writer = {}
  Walker = {}
  Reader = {}
  MaxRot = %d
  MaxDek = %d
  MaxWrite = 0
  Modes = {"normal", "emergency"}
  Formats = {"key"}
  Convert = FALSE
  Back = FALSE
  Sweep = TRUE
  Deletes = TRUE
  Takeover = TRUE
  CloseEmb = TRUE
  Upgraded = FALSE
  Mishaps = {"lose"}
`, numbers(1, rows), rots, deks)
}
