package replay

import (
	_ "embed"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/spec"
	"github.com/matter-ops/kms-rotation/test/tlc"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
)

//go:embed testdata/EvidenceTrace.tla
var traceModule string

const (
	chains   = 400 // chains that are judged twice
	longest  = 40  // records of one
	kekCount = 7
	rotCount = 3
)

var sourceNames = []string{"s1", "s2"}

// TestAgreesWithTLC draws chains, of which each record is likely to be a step and may say what is
// not so, and has both this package and TLC, by spec/evidence.tla, find the first that is none.
func TestAgreesWithTLC(t *testing.T) {
	_, err := tlc.Jar()
	tlctest.Must(t, err)
	rng := rand.New(rand.NewPCG(20261201, 1))
	var drawn [][]audit.Record
	var want []int // records that are steps
	ends := map[string]int{}
	for range chains {
		chain, steps := drawChain(rng)
		drawn, want = append(drawn, chain), append(want, steps)
		if steps < len(chain) {
			ends[actions[chain[steps].Type].name]++
		}
	}
	got := judge(t, drawn)
	for i := range drawn {
		if got[i] != want[i] {
			t.Errorf("chain %d: %d records are steps, TLC says %d\n%s", i, want[i], got[i], show(drawn[i]))
		}
	}
	// Every action has refused some record, or the comparison has not reached it.
	for _, a := range actions {
		if a.name != "" && a.name != "Init" && a.name != repair && ends[a.name] == 0 {
			t.Errorf("no record that claims to be %s was refused", a.name)
		}
	}
}

// drawChain draws a chain up to its first record that is not a step, and how many records are steps.
func drawChain(rng *rand.Rand) ([]audit.Record, int) {
	body := map[string]string{"pointer": "k1", "epoch": strconv.Itoa(1 + rng.IntN(3)), "kek.k1": "active"}
	for _, name := range sourceNames[:1+rng.IntN(2)] {
		body["source."+name] = "{}"
	}
	first := audit.Record{Seq: 1, Type: "kek_genesis", Body: body}
	chain := []audit.Record{first}
	var run Run
	run.Take(audit.Entry{Record: first})
	for len(chain) < longest {
		rec := drawRecord(rng, run.state)
		if rng.IntN(12) > 0 { // mostly a step, or the chain ends at once
			for tries := 0; tries < 60 && !isStep(run, rec, len(chain)+1); tries++ {
				rec = drawRecord(rng, run.state)
			}
		}
		rec.Seq = int64(len(chain) + 1)
		chain = append(chain, rec)
		run.Take(audit.Entry{Record: rec})
		if len(run.report.Findings) > 0 {
			return chain, len(chain) - 1
		}
	}
	return chain, len(chain)
}

func isStep(run Run, rec audit.Record, seq int) bool {
	rec.Seq = int64(seq)
	run.Take(audit.Entry{Record: rec})
	return len(run.report.Findings) == 0
}

// drawRecord draws a record of any type, which says what its step would make of the state; one in
// ten says something else.
func drawRecord(rng *rand.Rand, s state) audit.Record {
	types := slices.Sorted(maps.Keys(actions))
	types = slices.DeleteFunc(types, func(t string) bool {
		a := actions[t].name
		return a == "" || a == "Init" || a == repair
	})
	rec := audit.Record{Type: types[rng.IntN(len(types))], Rotation: fmt.Sprint("r", 1+rng.IntN(rotCount)), Body: map[string]string{}}
	if s.lock != "" && rng.IntN(3) > 0 && rec.Type != "emergency_took_over" {
		rec.Rotation = s.lock
	}
	k := fmt.Sprint("k", 1+rng.IntN(kekCount))
	n := s.rotations[rec.Rotation]
	n.phase, n.mode = "", []string{"normal", "emergency"}[rng.IntN(2)]
	switch actions[rec.Type].name {
	case "Register":
		rec.Rotation, rec.Body["kek_id"] = "", k
	case "AddSource", "RemoveSource":
		rec.Rotation, rec.Body["source"] = "", sourceNames[rng.IntN(len(sourceNames))]
	case "Start":
		rec.Body["mode"] = n.mode
	case "TakeOver":
		rec.Body["mode"], rec.Body["ended"] = "emergency", s.lock
	case "Mint":
		rec.Body["new_kek_id"] = k
	case "Seal":
		rec.Body["kek."+k] = "sealed"
	}
	if rng.IntN(10) > 0 {
		for _, name := range sourceNames {
			rec.Body["source."+name] = "seen"
		}
	}
	after := s.clone()
	if actions[rec.Type].take(&after, rec, readClaims(rec)) == nil {
		stateTruth(&rec, s, after)
	} else if rec.Rotation != "" {
		rec.Body["phase"] = "minted"
	}
	if rng.IntN(10) == 0 {
		lie(rng, &rec)
	}
	return rec
}

// stateTruth writes into a record what has become of the state.
func stateTruth(rec *audit.Record, before, after state) {
	if before.pointer != after.pointer {
		rec.Body["pointer"], rec.Body["epoch"] = after.pointer, fmt.Sprint(after.epoch)
	}
	for id, st := range after.keks {
		if before.keks[id] != st {
			rec.Body["kek."+id] = st
		}
	}
	if n, ok := after.rotations[rec.Rotation]; ok {
		for k, v := range map[string]string{"phase": n.phase, "mode": n.mode, "old_kek_id": n.old, "new_kek_id": n.made} {
			if delete(rec.Body, k); v != "" {
				rec.Body[k] = v
			}
		}
	}
}

// lie changes, adds or removes one thing that a record says.
func lie(rng *rand.Rand, rec *audit.Record) {
	states := []string{"pending", "active", "draining", "sealed", "retired"}
	phases := []string{"started", "minted", "tested", "switched", "drained", "rewrapped", "retired", "completed", "rolledback", "superseded"}
	k := fmt.Sprint("k", 1+rng.IntN(kekCount))
	switch rng.IntN(6) {
	case 0:
		rec.Body["kek."+k] = states[rng.IntN(len(states))]
	case 1:
		rec.Body["pointer"], rec.Body["epoch"] = k, fmt.Sprint(1+rng.IntN(4))
	case 2:
		if rec.Rotation != "" {
			rec.Body["phase"] = phases[rng.IntN(len(phases))]
		}
	case 3:
		rec.Body["old_kek_id"] = k
	case 4:
		if len(rec.Body) > 0 {
			keys := slices.Sorted(maps.Keys(rec.Body))
			delete(rec.Body, keys[rng.IntN(len(keys))])
		}
	case 5:
		rec.Body["mode"] = []string{"normal", "emergency"}[rng.IntN(2)]
	}
}

var explained = regexp.MustCompile(`<<"explained", (\d+), (\d+)>>`)

// judge has TLC say how many records of each chain are steps; genesis is one.
func judge(t *testing.T, drawn [][]audit.Record) []int {
	t.Helper()
	var names, begins []string
	var b strings.Builder
	b.WriteString("---- MODULE TraceData ----\nEXTENDS Naturals, Sequences\n")
	for i, chain := range drawn {
		var lines []string
		for _, rec := range chain[1:] {
			lines = append(lines, tlaRecord(rec))
		}
		fmt.Fprintf(&b, "Chain%d == <<\n  %s>>\n", i+1, strings.Join(lines, ",\n  "))
		names = append(names, fmt.Sprintf("Chain%d", i+1))
		begins = append(begins, fmt.Sprintf("[ep |-> %s, src |-> %s]", chain[0].Body["epoch"], tlaSources(chain[0])))
	}
	fmt.Fprintf(&b, "Chains == <<%s>>\nBegins == <<%s>>\n====\n", strings.Join(names, ", "), strings.Join(begins, ",\n  "))
	res, err := tlc.Check(t.Context(), tlc.Run{
		Module: "EvidenceTrace",
		Files:  map[string]string{"evidence": spec.Evidence, "EvidenceTrace": traceModule, "TraceData": b.String()},
		Config: fmt.Sprintf("SPECIFICATION TSpec\nCONSTANTS\n  KEK = {%s}\n  Rot = {%s}\n  Source = {1, 2}\n", listTo(kekCount), listTo(rotCount)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Verdict != tlc.Holds {
		t.Fatalf("TLC says %s:\n%s", res.Verdict, res.Output)
	}
	steps := make([]int, len(drawn))
	for i := range steps {
		steps[i] = 1
	}
	for _, m := range explained.FindAllStringSubmatch(res.Output, -1) {
		i, _ := strconv.Atoi(m[1])
		n, _ := strconv.Atoi(m[2])
		steps[i-1] = max(steps[i-1], n+1)
	}
	return steps
}

func listTo(n int) string {
	var all []string
	for i := range n {
		all = append(all, strconv.Itoa(i+1))
	}
	return strings.Join(all, ", ")
}

// tlaRecord is a record as a value of TLA+: ids are their numbers, 0 for none.
func tlaRecord(rec audit.Record) string {
	id := func(s string) string {
		if len(s) < 2 {
			return "0"
		}
		return s[1:]
	}
	said := func(field string) string {
		if v := rec.Body[field]; v != "" {
			return strconv.Quote(v)
		}
		return `"unsaid"`
	}
	var keks []string
	for i := range kekCount {
		keks = append(keks, said(fmt.Sprint("kek.k", i+1)))
	}
	of := rec.Body["kek_id"] + rec.Body["source"]
	epoch := rec.Body["epoch"]
	if epoch == "" {
		epoch = "0"
	}
	return fmt.Sprintf(`[a |-> %q, n |-> %s, k |-> %s, ended |-> %s, ptr |-> [kek |-> %s, ep |-> %s], keks |-> <<%s>>, ph |-> %s, mode |-> %s, old |-> %s, new |-> %s, srcs |-> %s]`,
		actions[rec.Type].name, id(rec.Rotation), id(of), id(rec.Body["ended"]), id(rec.Body["pointer"]), epoch, strings.Join(keks, ", "),
		said("phase"), said("mode"), id(rec.Body["old_kek_id"]), id(rec.Body["new_kek_id"]), tlaSources(rec))
}

func tlaSources(rec audit.Record) string {
	var all []string
	for i, name := range sourceNames {
		if rec.Body["source."+name] != "" {
			all = append(all, strconv.Itoa(i+1))
		}
	}
	return "{" + strings.Join(all, ", ") + "}"
}

func show(chain []audit.Record) string {
	var b strings.Builder
	for _, rec := range chain {
		fmt.Fprintf(&b, "  %d %s %s %v\n", rec.Seq, rec.Type, rec.Rotation, rec.Body)
	}
	return b.String()
}
