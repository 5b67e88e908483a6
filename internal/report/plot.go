package report

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// plot is one figure: curves without text in an SVG that is scaled to the page, and the
// axes as text of the page, which stays readable at any width.
type plot struct {
	Title, Summary string
	Top            string // of the vertical axis
	From, To       string // of the horizontal one
	Area           string // path under the first curve; "" for none
	Curves         []curve
	Columns        []string
	Numbers        [][]string
}

// curve is one line of a plot, as an SVG path.
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

// nobodyHeld says that drain found no lease on the old KEK at its first read, and when.
// There is no curve then.
func nobodyHeld(r Report) string {
	if len(r.Drain) == 0 || r.Drain[0].Leases > 0 || r.Rotation.SwitchedAt.IsZero() {
		return ""
	}
	return "Nobody held the old KEK when drain first looked, " + formatDuration(max(0, r.Drain[0].At.Sub(r.Rotation.SwitchedAt))) + " after the switch."
}

// drainPlot shows the leases and in-flight references on the old KEK since the switch; nil
// if no read of them is known.
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
		p.Numbers = append(p.Numbers, []string{formatDuration(at), strconv.Itoa(d.Leases), strconv.FormatInt(d.Refs, 10)})
	}
	last := r.Drain[len(r.Drain)-1]
	end := refs[len(refs)-1].at
	p.Top = strconv.FormatInt(top, 10)
	p.From = "switch"
	p.To = "+" + formatDuration(end)
	p.Curves = []curve{
		{Name: "in-flight references", Path: stepPath(refs, end, top)},
		{Name: "leases", Path: stepPath(leases, end, top), Second: true},
	}
	p.Area = closePath(p.Curves[0].Path)
	p.Summary = fmt.Sprintf("Drain looked %d times; at most %d references were in flight.", len(r.Drain), maxValue(refs))
	if last.Sealed {
		p.Summary += fmt.Sprintf(" The old KEK was sealed %s after the switch.", formatDuration(end))
	}
	return p
}

// rewrapPlot shows how many rows were rewrapped over time.
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
		p.Numbers = append(p.Numbers, []string{formatDuration(at), strconv.FormatInt(s.Rewrapped, 10), formatRate(s.Rewrapped-before.value, at-before.at)})
		moved = append(moved, point{at, s.Rewrapped})
	}
	last := moved[len(moved)-1]
	p.Top = strconv.FormatInt(max(1, maxValue(moved)), 10)
	p.From = "start"
	p.To = "+" + formatDuration(last.at)
	p.Curves = []curve{{Name: "rows moved, all sources", Path: linePath(moved, last.at, max(1, maxValue(moved)))}}
	p.Area = closePath(p.Curves[0].Path)
	p.Summary = fmt.Sprintf("%d rows moved in %s: %s rows per second on average.", last.value, formatDuration(last.at), formatRate(last.value, last.at))
	return p
}

// rewrapBegan returns when the rewrap of the first segment began.
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

// maxValue is the highest value of a curve that has points.
func maxValue(points []point) int64 {
	top := points[0].value
	for _, p := range points {
		top = max(top, p.value)
	}
	return top
}

// formatRate formats rows per second; a dash if no time has passed.
func formatRate(rows int64, d time.Duration) string {
	if d <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f", float64(rows)/d.Seconds())
}

// placePoint returns the coordinates of a point in the drawing.
func placePoint(p point, end time.Duration, top int64) (x, y float64) {
	x = plotWidth
	if end > 0 {
		x = plotWidth * float64(p.at) / float64(end)
	}
	return x, plotHeight - plotHeight*float64(p.value)/float64(top)
}

// linePath returns the SVG path that joins the points.
func linePath(points []point, end time.Duration, top int64) string {
	var b strings.Builder
	for i, p := range points {
		x, y := placePoint(p, end, top)
		fmt.Fprintf(&b, "%s%.1f %.1f", map[bool]string{true: "M", false: "L"}[i == 0], x, y)
	}
	return b.String()
}

// stepPath returns an SVG path that keeps each value until the next one, because the
// values between two reads are not known. The first value begins at the start.
func stepPath(points []point, end time.Duration, top int64) string {
	var b strings.Builder
	for i, p := range points {
		x, y := placePoint(p, end, top)
		if i == 0 {
			fmt.Fprintf(&b, "M0 %.1f", y)
		}
		fmt.Fprintf(&b, "H%.1fV%.1f", x, y)
	}
	return b.String()
}

// closePath closes an SVG path along the horizontal axis, to fill the area below it.
func closePath(path string) string {
	return fmt.Sprintf("%sL%.1f %.1fL0 %.1fZ", path, plotWidth, plotHeight, plotHeight)
}
