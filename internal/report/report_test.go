package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(name, got, 0o600))
	}
	want, err := os.ReadFile(name)
	must(t, err)
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; go test ./internal/report -update writes it):\n%s", name, diff)
	}
}

// TestGolden holds the HTML to the models of testdata, which -update takes from the
// fixtures: another check of preflight, say, changes a report and not its form.
func TestGolden(t *testing.T) {
	for name, fixture := range fixtures {
		if !*update {
			break
		}
		var b bytes.Buffer
		must(t, fixture(t).collect(spring).WriteJSON(&b))
		golden(t, name+".json", b.Bytes())
	}
	for _, name := range []string{"completed", "halted"} {
		text, err := os.ReadFile(filepath.Join("testdata", name+".json"))
		must(t, err)
		var r Report
		must(t, json.Unmarshal(text, &r))
		var b bytes.Buffer
		must(t, r.WriteHTML(&b))
		golden(t, name+".html", b.Bytes())
	}
}

// TestOutcomes: what each report says of its rotation, in the fields that a reader
// decides on.
func TestOutcomes(t *testing.T) {
	type said struct {
		State       State
		Audit       audit.Result
		Open        bool // a span is under way
		Drain       int  // polls
		Rewrap      int  // points
		Verified    string
		Shown       int // claims
		OldDisabled bool
	}
	want := map[string]said{
		"completed":  {Completed, audit.Green, false, 6, 6, "244", 6, true},
		"unproven":   {Completed, audit.Unproven, false, 6, 6, "244", 0, true},
		"rolledback": {RolledBack, audit.Green, false, 0, 0, "", 0, false},
		"halted":     {Halted, audit.Green, true, 1, 6, "", 1, false},
		"running":    {Running, audit.Green, true, 1, 1, "", 1, false},
		"emergency":  {Completed, audit.Green, false, 0, 0, "244", 6, true},
		"historic":   {Completed, audit.Green, false, 1, 9, "247", 6, true},
	}
	for _, name := range slices.Sorted(maps.Keys(fixtures)) {
		r := fixtures[name](t).collect(spring)
		old, _ := r.oldKEK()
		got := said{
			r.Outcome.State, r.Audit.Verification.Result, r.Timeline[len(r.Timeline)-1].Open, len(r.Drain), len(r.Rewrap), verifiedRows(r), 0, !old.Enabled,
		}
		for _, k := range r.Claims {
			if k.Status == Shown {
				got.Shown++
			}
		}
		if diff := cmp.Diff(want[name], got); diff != "" {
			t.Errorf("%s (-want +got):\n%s\n%+v\n%+v", name, diff, r.Audit.Verification, r.Claims)
		}
	}
}

var (
	loads  = regexp.MustCompile(`(?i)<(script|iframe|object|embed|img|base|form)\b|@import|url\(|<[^>]*\son[a-z]+=`)
	linked = regexp.MustCompile(`(?i)\b(?:src|href|action)="([^"]*)"`)
)

// TestHTMLIsInert: no text of a record, a row or an error becomes markup, and the
// page loads nothing.
func TestHTMLIsInert(t *testing.T) {
	for name, fixture := range fixtures {
		var b bytes.Buffer
		must(t, fixture(t).collect(spring).WriteHTML(&b))
		text := b.String()
		if m := loads.FindString(text); m != "" {
			t.Errorf("%s: the page has %q", name, m)
		}
		for _, m := range linked.FindAllStringSubmatch(text, -1) {
			if m[1] != "data:," {
				t.Errorf("%s: the page links to %q", name, m[1])
			}
		}
		if strings.Contains(text, "ZgotmplZ") {
			t.Errorf("%s: a value was refused by html/template", name)
		}
		if (name == "emergency" || name == "halted") && !strings.Contains(text, "&lt;script&gt;alert(") {
			t.Errorf("%s: the hostile text is not shown at all", name)
		}
	}
}

// TestReadsOnly: collecting a report changes nothing in the deployment, even when
// records wait to be published.
func TestReadsOnly(t *testing.T) {
	s := completed(t)
	must(t, s.world.Store().Record(t.Context(), audit.Event{ID: "waits", Type: "waits", Step: "test"}))
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		for _, reads := range []string{"Load", "List", "Get", "Describe", "Head", "Unpublished", "AuditEntries", "KEKs", "Versions", "Read"} {
			if strings.Contains(op, reads) {
				return true, nil
			}
		}
		return false, errors.New(op + " is not a read")
	})
	r := s.collect(spring)
	if v := r.Audit.Verification; v.Result != audit.Green {
		t.Errorf("a record that waits for its publication: %+v", v)
	}
	if diff := cmp.Diff([]string{}, r.Notes[:0]); diff != "" || slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "is not a read") }) {
		t.Errorf("notes %q", r.Notes)
	}
}

// TestTampered: a changed record is found in the bucket, and nothing that rests on
// the chain is shown any more.
func TestTampered(t *testing.T) {
	s := completed(t)
	r := s.collect(spring)
	rec, ok := r.lastRecord("pointer_switched")
	if !ok {
		t.Fatal("no record of the switch")
	}
	s.world.Vault().Tamper(audit.ObjectKey(stack, rec.Seq), []byte(strings.Replace(rec.Canonical, "alice", "mallory", 1)))
	gone, _ := r.lastRecord("kek_minted")
	s.world.Vault().Tamper(audit.ObjectKey(stack, gone.Seq), nil)
	r = s.collect(spring)
	if got, _ := r.lastRecord("pointer_switched"); got.Bucket != bucketDifferent {
		t.Errorf("the changed record: %s", got.Bucket)
	}
	if got, _ := r.lastRecord("kek_minted"); got.Bucket != bucketMissing {
		t.Errorf("the missing record: %s", got.Bucket)
	}
	if r.Audit.Verification.Result != audit.Tampered {
		t.Errorf("verification: %+v", r.Audit.Verification)
	}
	for _, k := range r.Claims {
		if k.Status == Shown || k.Status == Partly {
			t.Errorf("%s %s is %s", k.Framework, k.Ref, k.Status)
		}
	}
	for _, k := range r.Checks {
		if strings.HasPrefix(k.Name, "audit") && k.OK {
			t.Errorf("check %q passed", k.Name)
		}
	}
}

// TestUnreadable: what cannot be read is said, and the rest is told all the same.
func TestUnreadable(t *testing.T) {
	s := completed(t)
	failing := errors.New("denied")
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		switch op {
		case "KMS.Describe", "Vault.Get", "Vault.GetAnchor", "Vault.Versions":
			return false, failing
		}
		return true, nil
	})
	from := s.reader()
	s.states.execs = map[string]*sfn.DescribeExecutionOutput{}
	r, err := Collect(t.Context(), from, spring)
	must(t, err)
	if r.Outcome.State != Completed || len(r.Timeline) != 10 {
		t.Errorf("outcome %+v, %d spans", r.Outcome, len(r.Timeline))
	}
	notes := strings.Join(r.Notes, "\n")
	for _, want := range []string{"KMS did not say", "could not be read from the bucket", "anchors could not be read", "execution history could not be read"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note says %q:\n%s", want, notes)
		}
	}
	for _, k := range r.Claims {
		if k.Status == Shown {
			t.Errorf("%s %s is shown by a chain that could not be read", k.Framework, k.Ref)
		}
	}
}

// TestUnknownRotation is an error that says what to do.
func TestUnknownRotation(t *testing.T) {
	_, err := Collect(t.Context(), newSite(t).reader(), "never")
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.InvalidInput || typed.Next.IsZero() {
		t.Errorf("error %v", err)
	}
}

// TestResumed: an execution that resumed the rotation is part of its story, and one
// of another rotation is not.
func TestResumed(t *testing.T) {
	s := halted(t)
	v, err := s.world.Store().Load(t.Context(), spring)
	must(t, err)
	for _, e := range []struct{ name, input string }{{"resume-1", `{"resume":"` + spring + `"}`}, {"other", `{"resume":"Q1-2026-rotation"}`}, {"blank", `{}`}} {
		s.states.start(s.at, strings.Replace(arn, spring, e.name, 1), e.input)
		s.states.stop(s.at, types.ExecutionStatusFailed, "Halted", "still")
	}
	all, err := StepFunctions{Client: s.states}.Executions(t.Context(), *v.Rotation)
	must(t, err)
	if len(all) != 2 || !strings.HasSuffix(all[1].ARN, ":resume-1") {
		t.Errorf("executions %+v", all)
	}
	byHand := *v.Rotation
	byHand.Execution = ""
	all, err = StepFunctions{Client: s.states, Machines: map[kek.Mode]string{kek.Normal: machine}}.Executions(t.Context(), byHand)
	must(t, err)
	if len(all) != 1 || !strings.HasSuffix(all[0].ARN, ":resume-1") {
		t.Errorf("executions of a rotation begun by hand %+v", all)
	}
}

// TestSpans: the spans of a rotation follow one another without a gap, from the
// start of the execution to its last record.
func TestSpans(t *testing.T) {
	for name, fixture := range fixtures {
		r := fixture(t).collect(spring)
		var last time.Time
		for _, s := range r.Timeline {
			if s.Instant {
				continue
			}
			if !last.IsZero() && !s.From.Equal(last) || s.To.Before(s.From) {
				t.Errorf("%s: %s runs from %s to %s after %s", name, s.Title, s.From, s.To, last)
			}
			last = s.To
		}
		if e, ok := r.lastExecution(); ok && !r.Timeline[0].From.Equal(e.StartedAt) {
			t.Errorf("%s: the timeline begins at %s, the execution at %s", name, r.Timeline[0].From, e.StartedAt)
		}
		if r.Rotation.Phase == kek.Completed && !last.Equal(r.Rotation.EndedAt) {
			t.Errorf("%s: the timeline ends at %s, the rotation at %s", name, last, r.Rotation.EndedAt)
		}
	}
}

// TestHistoric: the report counts the rows under each KEK that the rotation left, and
// lists what changed since the rotation before: who registered which KEK and source.
func TestHistoric(t *testing.T) {
	r := historic(t).collect(spring)
	letters := r.Rows[slices.IndexFunc(r.Rows, func(s SourceRows) bool { return s.Source == "letters" })]
	want := []KeyCount{{r.Rotation.OldKEK, roleOld, 0}, {r.Rotation.NewKEK, roleNew, 0}, {r.KEKs[1].ID, roleHistoric, 3}}
	if diff := cmp.Diff(want, letters.Before); diff != "" || letters.BeforeBy != rotation.PassCensus {
		t.Errorf("before, by %s (-want +got):\n%s", letters.BeforeBy, diff)
	}
	if k := r.KEKs[1]; k.Role != roleHistoric || k.State != kek.Retired || k.Enabled {
		t.Errorf("the historic KEK is %+v", k)
	}
	var events []string
	for _, c := range r.Registry {
		events = append(events, c.Type)
	}
	if diff := cmp.Diff([]string{"kek_genesis", "kek_registered", "source_added"}, events); diff != "" {
		t.Errorf("registry (-want +got):\n%s", diff)
	}
	var titles []string
	for _, s := range r.Timeline {
		titles = append(titles, s.Title)
	}
	if text := strings.Join(titles, ", "); !strings.HasPrefix(text, "Preflight, Census, Mint, Rehearsal, Dual unwrap, Switch") {
		t.Errorf("timeline %s", text)
	}
	checks := map[string]string{}
	for _, c := range r.Checks {
		checks[c.Name] = c.Detail
	}
	for name, says := range map[string]string{
		"census of every item before the mint":       "letters: 3 envelopes",
		"rehearsal with real rows before the switch": "letters: 3 rows tried",
		"verification": "unwrapped under it: a sample of",
		"other users of the KEKs that are disabled": string(r.KEKs[1].ID) + ": 0 grants",
	} {
		if !strings.Contains(checks[name], says) {
			t.Errorf("check %q says %q, not %q", name, checks[name], says)
		}
	}
	// The next rotation's report begins after this one.
	other := Report{Rotation: Rotation{ID: "later"}}
	c := &collection{report: &other, entries: historicEntries(t)}
	changes, err := c.listRegistryChanges(audit.Line{Chain: "chain"})
	must(t, err)
	if len(changes) != 1 || changes[0].Body["source"] != "mine" {
		t.Errorf("changes of the later rotation: %+v", changes)
	}
}

// historicEntries is a chain of two rotations, each after a source was added.
func historicEntries(t *testing.T) []audit.Entry {
	t.Helper()
	var out []audit.Entry
	for n, r := range []audit.Record{
		{Type: "source_added", Body: map[string]string{"source": "another's"}},
		{Type: "rotation_started", Rotation: "earlier"},
		{Type: "kms_rotation_completed", Rotation: "earlier"},
		{Type: "source_added", Body: map[string]string{"source": "mine"}},
		{Type: "rotation_started", Rotation: "later"},
		{Type: "kms_rotation_completed", Rotation: "later"},
		{Type: "source_removed", Body: map[string]string{"source": "after"}},
	} {
		r.Seq, r.Time = int64(n+1), "2026-01-04T02:00:00.000Z"
		out = append(out, audit.Entry{Record: r})
	}
	return out
}

// TestKeyedRows: rows that name data keys are counted under no KEK, before the rotation and after
// it. What an emergency's rewrap has moved does not say which rows were embedded.
func TestKeyedRows(t *testing.T) {
	r := Rotation{OldKEK: "old", NewKEK: "new", Mode: kek.Normal}
	pass := func(name string, rewrapped int64) Pass {
		return Pass{Pass: name, Segments: 1, Done: 1, Scanned: 10, Keyed: 6, Rewrapped: rewrapped, Quarantined: 1, byKEK: map[kek.ID]int64{"old": 3}}
	}
	count := func(old, fresh int64) []KeyCount {
		return []KeyCount{{"old", roleOld, old}, {"new", roleNew, fresh}, {"", roleKeyed, 6}, {"", roleNeither, 1}}
	}
	for name, c := range map[string]struct {
		mode   kek.Mode
		passes []Pass
		before []KeyCount
	}{
		"by the census":   {kek.Normal, []Pass{pass(rotation.PassCensus, 0), pass(rotation.PassRewrap, 3), pass(passVerify, 0)}, count(3, 0)},
		"by the rewrap":   {kek.Normal, []Pass{pass(rotation.PassRewrap, 2), pass(passVerify, 0)}, count(2, 1)},
		"in an emergency": {kek.Emergency, []Pass{pass(rotation.PassRewrap, 9), pass(passVerify, 0)}, nil},
	} {
		r.Mode = c.mode
		collected := &collection{report: &Report{Rotation: r}, view: kek.View{Rotation: &kek.Rotation{}}}
		s := SourceRows{Source: "notes", Passes: c.passes}
		collected.countByKEK(&s)
		if diff := cmp.Diff(c.before, s.Before); diff != "" {
			t.Errorf("%s: before (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(count(0, 3), s.After); diff != "" || s.By != passVerify {
			t.Errorf("%s: after (-want +got):\n%s", name, diff)
		}
		if got := describeKeyed([]SourceRows{s, {Source: "orders"}}); got != "6 of notes" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
