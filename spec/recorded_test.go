package spec

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/test/tlc"
)

// TLC says the same of the same text. So a verdict is kept in verdicts.txt with the digest of all
// that TLC was given, and a variant whose digest is there is not checked again each time: a
// seventh of them is each day, and all of them with MATTER_SPEC=all, as make spec does. Any change
// of a module, of a bound, of a property or of TLC changes the digest.

const verdictsFile = "verdicts.txt"

// tlcFile names the version of TLC, by the digest of its jar.
const tlcFile = "../tools/tlc/fetch.sh"

// recording is a verdict of an earlier run.
type recording struct {
	digest   string
	verdict  string
	distinct int64  // states; 0 of a violated property, where it differs from run to run
	steps    int    // of the counterexample
	taken    string // module.action, … of a counted variant; "-" of another
}

// result is what the table needs of it.
func (r recording) result() tlc.Result {
	out := tlc.Result{Verdict: r.verdict, Distinct: r.distinct, Actions: make([]string, r.steps)}
	for action := range strings.SplitSeq(r.taken, ",") {
		if module, name, ok := strings.Cut(action, "."); ok {
			out.Taken = append(out.Taken, tlc.Taken{Module: module, Action: name, Total: 1})
		}
	}
	return out
}

// record is the recording of a result.
func record(digest string, r tlc.Result) recording {
	out := recording{digest: digest, verdict: r.Verdict, distinct: r.Distinct, steps: len(r.Actions)}
	if r.Verdict != tlc.Holds {
		out.distinct = 0
	}
	if r.Verdict == tlc.Temporal { // one of several counterexamples
		out.steps = 0
	}
	var taken []string
	for _, a := range r.Taken {
		if a.Total > 0 {
			taken = append(taken, a.Module+"."+a.Action)
		}
	}
	slices.Sort(taken)
	out.taken = cmp.Or(strings.Join(slices.Compact(taken), ","), "-")
	return out
}

// digestOf is the digest of what TLC is given.
func digestOf(r tlc.Run, version []byte) string {
	h := sha256.New()
	write := func(parts ...string) {
		for _, p := range parts {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
	write(string(version), r.Module, r.Config, fmt.Sprint(r.Workers, r.Walk, r.Seed))
	if r.Count {
		write("counted")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		write(name, r.Files[name])
	}
	return hex.EncodeToString(h.Sum(nil))[:24]
}

// readRecordings reads verdicts.txt. A line that is not understood is left out, so that its
// variant is checked.
func readRecordings(text string) map[string]recording {
	out := map[string]recording{}
	for l := range strings.Lines(text) {
		var name string
		var r recording
		if n, err := fmt.Sscan(l, &name, &r.digest, &r.verdict, &r.distinct, &r.steps, &r.taken); n == 6 && err == nil {
			out[name] = r
		}
	}
	return out
}

// writeRecordings is the text of verdicts.txt.
func writeRecordings(all map[string]recording) string {
	var b strings.Builder
	b.WriteString("# Written by go test ./spec -run TestVariants -update: variant, digest of what TLC was given, verdict, states, steps, actions taken.\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name]
		fmt.Fprintln(&b, name, r.digest, r.verdict, r.distinct, r.steps, r.taken)
	}
	return b.String()
}

const days = 7 // of a round

// dealDays gives each recorded variant one of seven days, so that each day has as many of the
// large models as the others.
func dealDays(known map[string]recording) map[string]int64 {
	bySize := slices.SortedFunc(maps.Keys(known), func(a, b string) int {
		return cmp.Or(cmp.Compare(known[b].distinct, known[a].distinct), cmp.Compare(a, b))
	})
	var work [days]int64
	out := map[string]int64{}
	for _, name := range bySize {
		day := slices.Index(work[:], slices.Min(work[:]))
		work[day] += known[name].distinct + 500 // what TLC takes to start
		out[name] = int64(day)
	}
	return out
}

// recordings are the verdicts of earlier runs, and those of this one.
type recordings struct {
	version []byte
	known   map[string]recording
	dealt   map[string]int64 // which day each is checked on
	all     bool             // check everything
	day     int64
}

func newRecordings(t *testing.T) *recordings {
	t.Helper()
	version, err := os.ReadFile(tlcFile)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(verdictsFile)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	known := readRecordings(string(text))
	return &recordings{
		version: version, known: known, dealt: dealDays(known), day: time.Now().Unix() / 86400 % days,
		all: os.Getenv("MATTER_SPEC") == "all" || os.Getenv("MATTER_SPEC_BUDGET") != "" || *only != "",
	}
}

// find returns the verdict that is recorded of a variant, unless it must be checked now: nothing
// is recorded of this very text, the recorded verdict is not the one that it must have, or it is
// its day.
func (s *recordings) find(v variant, r tlc.Run) (tlc.Result, bool) {
	known, ok := s.known[v.name]
	if !ok || s.all || v.deep || known.digest != digestOf(r, s.version) || known.verdict != v.want || s.dealt[v.name] == s.day {
		return tlc.Result{}, false
	}
	return known.result(), true
}

// TestRecordings: a verdict is believed only of the very text that it was recorded of, and no
// variant goes unchecked for more than a week.
func TestRecordings(t *testing.T) {
	v := variant{name: "v", want: tlc.Holds}
	r := tlc.Run{Module: "m", Config: "c", Files: map[string]string{"m": "text", "n": "other"}}
	counted := []tlc.Taken{{Module: "m", Action: "Take", Total: 3}, {Module: "m", Action: "Never"}}
	was := record(digestOf(r, []byte("1")), tlc.Result{Verdict: tlc.Holds, Distinct: 5, Taken: counted})
	s := recordings{version: []byte("1"), known: readRecordings(writeRecordings(map[string]recording{"v": was, "w": {digest: "d", verdict: "NoKeyOrphans", steps: 7, taken: "-"}}))}
	if got := s.known["w"]; got != (recording{digest: "d", verdict: "NoKeyOrphans", steps: 7, taken: "-"}) {
		t.Errorf("%+v", got)
	}
	s.dealt, s.day = dealDays(s.known), 3
	if got, ok := s.find(v, r); !ok || got.Distinct != 5 || len(got.Taken) != 1 || got.Taken[0].Action != "Take" {
		t.Errorf("not believed of the same text: %+v", got)
	}
	for name, change := range map[string]func(*recordings, *variant, *tlc.Run){
		"another text":         func(_ *recordings, _ *variant, r *tlc.Run) { r.Files = map[string]string{"m": "text", "n": "changed"} },
		"a name moved":         func(_ *recordings, _ *variant, r *tlc.Run) { r.Files = map[string]string{"m": "textn", "": "other"} },
		"other bounds":         func(_ *recordings, _ *variant, r *tlc.Run) { r.Config = "d" },
		"another module":       func(_ *recordings, _ *variant, r *tlc.Run) { r.Module = "n" },
		"another TLC":          func(s *recordings, _ *variant, _ *tlc.Run) { s.version = []byte("2") },
		"another verdict":      func(_ *recordings, v *variant, _ *tlc.Run) { v.want = "NoKeyOrphans" },
		"another variant":      func(_ *recordings, v *variant, _ *tlc.Run) { v.name = "x" },
		"all are wanted":       func(s *recordings, _ *variant, _ *tlc.Run) { s.all = true },
		"actions counted":      func(_ *recordings, _ *variant, r *tlc.Run) { r.Count = true },
		"its day":              func(s *recordings, _ *variant, _ *tlc.Run) { s.day = s.dealt["v"] },
		"a walk, not a search": func(_ *recordings, _ *variant, r *tlc.Run) { r.Walk = 3 },
	} {
		s, v, r := s, v, r
		change(&s, &v, &r)
		if _, ok := s.find(v, r); ok {
			t.Errorf("%s: the recorded verdict is believed", name)
		}
	}
	size := map[int64]int64{}
	known := newRecordings(t).known
	for name, day := range dealDays(known) {
		size[day] += known[name].distinct
	}
	if len(size) != days || slices.Max(slices.Collect(maps.Values(size))) > 2*slices.Min(slices.Collect(maps.Values(size))) {
		t.Errorf("states of each day: %v", size)
	}
}
