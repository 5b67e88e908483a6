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
		"stamp": stamp, "exact": exact, "millis": millis, "capital": capital, "took": took, "verified": verified,
		"bars": bars, "said": said, "rows": rowsOf, "neither": neither, "path": path,
		"bucket": inBucket, "nobodyHeld": nobodyHeld, "drainPlot": drainPlot, "rewrapPlot": rewrapPlot,
		"tone": tone, "keyTone": keyTone, "statusTone": statusTone, "auditTone": auditTone, "claimTone": claimTone,
	}).Parse(pageText))
)

// WriteHTML writes the report as one HTML file that loads nothing.
func (r Report) WriteHTML(w io.Writer) error {
	if err := page.Execute(w, r); err != nil {
		return fmt.Errorf("report of %s: %w", r.Rotation.ID, err)
	}
	return nil
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func exact(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000 UTC") }

func millis(ms int64) string { return human(time.Duration(ms) * time.Millisecond) }

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// took is how long a rotation that is over took.
func took(r Report) string { return human(r.Rotation.EndedAt.Sub(r.begun())) }

// begun is when the first span begins.
func (r Report) begun() time.Time {
	if len(r.Timeline) == 0 {
		return r.Rotation.StartedAt
	}
	return r.Timeline[0].From
}

// verified is how many rows the last scan read; "" if it has not read all.
func verified(r Report) string {
	t, ok := r.total(passVerify)
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

// bars lays the spans out over the whole time, in percent.
func bars(r Report) []bar {
	begun, end := r.begun(), r.begun()
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
			Title: s.Title, Actor: s.Actor, Seq: s.Seq, Took: millis(s.Millis), When: exact(s.To),
			Left: percent(left), Width: percent(min(100*float64(s.Millis)/float64(whole.Milliseconds()), 100-left)),
		}
		switch {
		case s.Open:
			b.Class, b.When = "open", "since "+exact(s.From)+", not finished at "+exact(s.To)
		case s.Event == kek.EventRolledBack || s.Event == kek.EventReminted:
			b.Class = "fail"
		case s.Instant:
			b.Took = "–"
		}
		out = append(out, b)
	}
	return out
}

func percent(f float64) string { return strconv.FormatFloat(max(0, f), 'f', 2, 64) }

// rowsOf is how many rows are under the KEKs of a role; a dash where nobody counted.
func rowsOf(counts []KeyCount, role string) string {
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

// said is the body of a record in one line.
func said(body map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(body)) {
		parts = append(parts, name+": "+body[name])
	}
	return strings.Join(parts, "; ")
}

// neither is how many rows the last count found under neither KEK.
func neither(s SourceRows) string {
	counts := s.After
	if len(counts) == 0 {
		counts = s.Before
	}
	if len(counts) == 0 {
		return "–"
	}
	if n := rowsOf(counts, roleNeither); n != "–" {
		return n
	}
	return "0"
}

// inBucket says what the bucket holds in the place of a record.
func inBucket(s string) string {
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

// path is the way an execution took through the states, repetitions counted.
func path(e Execution) string {
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

func tone(s State) string {
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
