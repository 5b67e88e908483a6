package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

var (
	//go:embed report.html.tmpl
	pageText string
	//go:embed style.css
	styleText string

	page = template.Must(template.New("report").Funcs(template.FuncMap{
		"css":   func() template.CSS { return template.CSS(styleText) }, //nolint:gosec // this package's own file
		"stamp": formatTime, "exact": formatExact, "millis": formatMillis, "capital": capitalizeText, "took": totalTime, "verified": verifiedRows,
		"bars": layOutBars, "said": joinBody, "rows": countRows, "neither": countNeither, "keyed": describeKeyed, "path": formatPath, "failure": Execution.describeFailure,
		"bucket": describeBucket, "nobodyHeld": nobodyHeld, "drainPlot": drainPlot, "rewrapPlot": rewrapPlot,
		"tone": stateTone, "keyTone": keyTone, "statusTone": statusTone, "auditTone": auditTone, "claimTone": claimTone,
	}).Parse(pageText))
)

// WriteHTML writes the report as one HTML file that loads nothing.
func (r Report) WriteHTML(w io.Writer) error {
	if err := page.Execute(w, r); err != nil {
		return fmt.Errorf("report of %s: %w", r.Rotation.ID, err)
	}
	return nil
}

// formatTime formats a time in seconds; a dash for the zero time.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// formatExact is a time to the millisecond, as the audit records have it.
func formatExact(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000 UTC") }

// formatMillis is a number of milliseconds as a person says it.
func formatMillis(ms int64) string { return formatDuration(time.Duration(ms) * time.Millisecond) }

// capitalizeText begins a sentence with a word that is stored in lower case. It must not be
// empty.
func capitalizeText(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// totalTime formats how long a rotation took that has ended.
func totalTime(r Report) string { return formatDuration(r.Rotation.EndedAt.Sub(r.beginTime())) }

// beginTime returns when the first span begins.
func (r Report) beginTime() time.Time {
	if len(r.Timeline) == 0 {
		return r.Rotation.StartedAt
	}
	return r.Timeline[0].From
}

// verifiedRows returns how many rows the last scan has read; "" if it is not done.
func verifiedRows(r Report) string {
	t, ok := r.sumFinished(passVerify)
	if !ok {
		return ""
	}
	return strconv.FormatInt(t.Scanned, 10)
}

// bar is one line of the timeline.
type bar struct {
	Title, When, Actor, Took string
	Class, Left, Width       string
	Seq                      int64
}

// layOutBars returns the bars of the timeline, with positions in percent of the whole time.
func layOutBars(r Report) []bar {
	begun, end := r.beginTime(), r.beginTime()
	for _, s := range r.Timeline {
		if s.To.After(end) {
			end = s.To
		}
	}
	whole := max(end.Sub(begun), time.Millisecond)
	var out []bar
	for _, s := range r.Timeline {
		left := min(100*float64(s.From.Sub(begun))/float64(whole), 99.5)
		b := bar{
			Title: s.Title, Actor: s.Actor, Seq: s.Seq, Took: formatMillis(s.Millis), When: formatExact(s.To),
			Left: formatPercent(left), Width: formatPercent(min(100*float64(s.Millis)/float64(whole.Milliseconds()), 100-left)),
		}
		switch {
		case s.Open:
			b.Class, b.When = "open", "since "+formatExact(s.From)+", not finished at "+formatExact(s.To)
		case s.Event == kek.EventRolledBack || s.Event == kek.EventReminted:
			b.Class = "fail"
		case s.Instant:
			b.Took = "–"
		}
		out = append(out, b)
	}
	return out
}

// formatPercent is a share as CSS takes it. A negative one, of clocks that disagree, is 0.
func formatPercent(f float64) string { return strconv.FormatFloat(max(0, f), 'f', 2, 64) }

// countRows returns how many rows are under the KEKs of a role; a dash if they were not
// counted.
func countRows(counts []KeyCount, role string) string {
	rows, counted := int64(0), false
	for _, c := range counts {
		if c.Role == role {
			rows, counted = rows+c.Rows, true
		}
	}
	if !counted {
		return "–"
	}
	return strconv.FormatInt(rows, 10)
}

// joinBody returns the body of a record as one line.
func joinBody(body map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(body)) {
		parts = append(parts, name+": "+body[name])
	}
	return strings.Join(parts, "; ")
}

// countNeither returns how many rows the last count found under neither KEK.
func countNeither(s SourceRows) string {
	counts := s.After
	if len(counts) == 0 {
		counts = s.Before
	}
	if len(counts) == 0 {
		return "–"
	}
	if n := countRows(counts, roleNeither); n != "–" {
		return n
	}
	return "0"
}

// describeKeyed says how many rows of which sources name data keys; "" if none does.
func describeKeyed(sources []SourceRows) string {
	var parts []string
	for _, s := range sources {
		counts := s.After
		if len(counts) == 0 {
			counts = s.Before
		}
		if n := countRows(counts, roleKeyed); n != "–" {
			parts = append(parts, n+" of "+s.Source)
		}
	}
	return strings.Join(parts, ", ")
}

// describeBucket describes the result of comparing a record with the bucket.
func describeBucket(s string) string {
	switch s {
	case bucketSame:
		return "in the bucket"
	case bucketMissing:
		return "not in the bucket"
	case bucketDifferent:
		return "another in the bucket"
	default:
		return "bucket not read"
	}
}

// formatPath returns the states that an execution visited, in order, with the number of
// successive visits.
func formatPath(e Execution) string {
	var b strings.Builder
	for i := 0; i < len(e.Visits); {
		n := 1
		for i+n < len(e.Visits) && e.Visits[i+n].State == e.Visits[i].State {
			n++
		}
		if b.Len() > 0 {
			b.WriteString(" → ")
		}
		b.WriteString(e.Visits[i].State)
		if n > 1 {
			fmt.Fprintf(&b, " ×%d", n)
		}
		i += n
	}
	return b.String()
}

// stateTone and the functions below choose the CSS class of a badge: good, bad, warn, info
// or plain.
func stateTone(s State) string {
	switch s {
	case Completed:
		return "good"
	case Halted:
		return "bad"
	case RolledBack, Superseded:
		return "warn"
	case Running, Open:
		return "info"
	default:
		return "plain"
	}
}

// keyTone is the colour of a KEK: bad where the registry and KMS contradict each other.
func keyTone(k KEK) string {
	switch {
	case k.State == kek.Retired && k.Enabled, k.State.Resolves() && !k.Enabled && k.KMSState != unknown:
		return "bad"
	case k.State == kek.Active:
		return "good"
	case k.State == kek.Retired:
		return "plain"
	default:
		return "info"
	}
}

// statusTone is the colour of an execution's status.
func statusTone(s string) string {
	switch s {
	case "SUCCEEDED":
		return "good"
	case "RUNNING", "PENDING_REDRIVE":
		return "info"
	default:
		return "bad"
	}
}

// auditTone is the colour of the verification of the chain.
func auditTone(v Verification) string {
	switch v.Result {
	case audit.Green:
		return "good"
	case audit.Tampered:
		return "bad"
	default:
		return "warn"
	}
}

// claimTone is the colour of a claim.
func claimTone(s Status) string {
	switch s {
	case Shown:
		return "good"
	case Partly:
		return "warn"
	case NotShown:
		return "bad"
	default:
		return "plain"
	}
}
