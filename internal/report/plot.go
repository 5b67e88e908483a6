package report

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// plot is one figure: curves without text in an SVG that stretches, and their axes
// as text of the page, which stays readable at any width.
type plot struct {
	Title, Summary string
	Top            string // of the vertical axis
	From, To       string // of the horizontal one
	Area           string // path under the first curve; "" for none
	Curves         []curve
	Columns        []string
	Numbers        [][]string
}

type curve struct {
	Name, Path string
	Second     bool
}

// The drawing's size, in its own units.
const (
	plotWidth  = 1000.0
	plotHeight = 300.0
)

// point is a value at a moment after the start of the plot.
type point struct {
	at    time.Duration
	value int64
}

// nobodyHeld says when drain found at its first look that nobody held the old KEK:
// there is no curve then.
func nobodyHeld(r Report) string {
	if len(r.Drain) == 0 || r.Drain[0].Leases > 0 || r.Rotation.SwitchedAt.IsZero() {
		return ""
	}
	return "Nobody held the old KEK when drain first looked, " + human(max(0, r.Drain[0].At.Sub(r.Rotation.SwitchedAt))) + " after the switch."
}

// drainPlot shows the leases and in-flight references on the old KEK since the
// switch; nil where nobody looked while there were any.
func drainPlot(r Report) *plot {
	if len(r.Drain) == 0 || r.Rotation.SwitchedAt.IsZero() || nobodyHeld(r) != "" {
		return nil
	}
	var refs, leases []point
	p := &plot{Title: "Drain: who still held the old KEK", Columns: []string{"After the switch", "Leases", "In-flight references"}}
	top := int64(1)
	for _, d := range r.Drain {
		at := max(0, d.At.Sub(r.Rotation.SwitchedAt))
		refs, leases = append(refs, point{at, d.Refs}), append(leases, point{at, int64(d.Leases)})
		top = max(top, d.Refs, int64(d.Leases))
		p.Numbers = append(p.Numbers, []string{human(at), strconv.Itoa(d.Leases), strconv.FormatInt(d.Refs, 10)})
	}
	last := r.Drain[len(r.Drain)-1]
	end := refs[len(refs)-1].at
	p.Top = strconv.FormatInt(top, 10)
	p.From = "switch"
	p.To = "+" + human(end)
	p.Curves = []curve{
		{Name: "in-flight references", Path: steps(refs, end, top)},
		{Name: "leases", Path: steps(leases, end, top), Second: true},
	}
	p.Area = under(p.Curves[0].Path)
	p.Summary = fmt.Sprintf("Drain looked %d times; at most %d references were in flight.", len(r.Drain), highest(refs))
	if last.Sealed {
		p.Summary += fmt.Sprintf(" The old KEK was sealed %s after the switch.", human(end))
	}
	return p
}

// rewrapPlot shows how many rows had been moved at what time.
func rewrapPlot(r Report) *plot {
	if len(r.Rewrap) == 0 {
		return nil
	}
	from := r.rewrapBegan()
	p := &plot{Title: "Rewrap: rows moved to the new KEK", Columns: []string{"Time", "Rows moved", "Rows per second since the line before"}}
	moved := []point{{}}
	for _, s := range r.Rewrap {
		at := max(0, s.At.Sub(from))
		before := moved[len(moved)-1]
		p.Numbers = append(p.Numbers, []string{human(at), strconv.FormatInt(s.Rewrapped, 10), perSecond(s.Rewrapped-before.value, at-before.at)})
		moved = append(moved, point{at, s.Rewrapped})
	}
	last := moved[len(moved)-1]
	p.Top = strconv.FormatInt(max(1, highest(moved)), 10)
	p.From = "start"
	p.To = "+" + human(last.at)
	p.Curves = []curve{{Name: "rows moved, all sources", Path: line(moved, last.at, max(1, highest(moved)))}}
	p.Area = under(p.Curves[0].Path)
	p.Summary = fmt.Sprintf("%d rows moved in %s: %s rows per second on average.", last.value, human(last.at), perSecond(last.value, last.at))
	return p
}

// rewrapBegan is when the first segment was begun.
func (r Report) rewrapBegan() time.Time {
	began := r.Rewrap[0].At
	for _, e := range r.Executions {
		for _, v := range e.Visits {
			if v.State == "RewrapSegment" && v.Entered.Before(began) {
				began = v.Entered
			}
		}
	}
	return began
}

func highest(points []point) int64 {
	top := points[0].value
	for _, p := range points {
		top = max(top, p.value)
	}
	return top
}

func perSecond(rows int64, d time.Duration) string {
	if d <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f", float64(rows)/d.Seconds())
}

// place is a point in the drawing.
func place(p point, end time.Duration, top int64) (x, y float64) {
	x = plotWidth
	if end > 0 {
		x = plotWidth * float64(p.at) / float64(end)
	}
	return x, plotHeight - plotHeight*float64(p.value)/float64(top)
}

// line joins the points.
func line(points []point, end time.Duration, top int64) string {
	var b strings.Builder
	for i, p := range points {
		x, y := place(p, end, top)
		fmt.Fprintf(&b, "%s%.1f %.1f", map[bool]string{true: "M", false: "L"}[i == 0], x, y)
	}
	return b.String()
}

// steps holds each value until the next: what was seen, not what lay between. The
// first value holds from the start.
func steps(points []point, end time.Duration, top int64) string {
	var b strings.Builder
	for i, p := range points {
		x, y := place(p, end, top)
		if i == 0 {
			fmt.Fprintf(&b, "M0 %.1f", y)
		}
		fmt.Fprintf(&b, "H%.1fV%.1f", x, y)
	}
	return b.String()
}

// under closes a path along the horizontal axis.
func under(path string) string {
	return fmt.Sprintf("%sL%.1f %.1fL0 %.1fZ", path, plotWidth, plotHeight, plotHeight)
}
