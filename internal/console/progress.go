package console

import (
	"fmt"
	"io"
	"time"
)

// QuietFor is how long progress prints nothing where there is no terminal, unless
// something other than numbers changes.
const QuietFor = 10 * time.Second

// StatusLine shows progress: on a terminal one line that is drawn again, elsewhere a
// line whenever the text changes.
type StatusLine struct {
	Out  io.Writer
	Live bool // Out is a terminal

	last  string
	drawn bool
}

// NewStatusLine returns a line on w, which is drawn again if w is a terminal.
func NewStatusLine(w io.Writer) *StatusLine { return &StatusLine{Out: w, Live: IsTerminal(w)} }

// Show shows text; detail changes all the time and is only for a terminal.
func (l *StatusLine) Show(text, detail string) {
	switch {
	case l.Live:
		fmt.Fprintf(l.Out, "\r\x1b[K%s%s", text, detail)
		l.drawn = true
	case text != l.last:
		fmt.Fprintln(l.Out, text)
	}
	l.last = text
}

// End ends a line that was drawn on a terminal.
func (l *StatusLine) End() {
	if l.drawn {
		fmt.Fprintln(l.Out)
		l.drawn = false
	}
}

// Meter turns counts into a rate and the time that is left.
type Meter struct {
	Total int64 // about; 0: unknown

	start time.Time
	from  int64
}

// Text is how far a pass has come: n items at the time now.
func (m *Meter) Text(what string, n int64, now time.Time) string {
	s := fmt.Sprintf("%s: %d of about %d items", what, n, m.Total)
	if m.start.IsZero() {
		if n > 0 {
			m.start, m.from = now, n
		}
		return s
	}
	return s + m.rate(n, now.Sub(m.start))
}

// rate is rows per second since the first row was seen, and the time left.
func (m *Meter) rate(n int64, since time.Duration) string {
	if since <= 0 || n <= m.from {
		return ""
	}
	perSecond := float64(n-m.from) / since.Seconds()
	s := fmt.Sprintf("  %.0f rows/s", perSecond)
	if left := m.Total - n; left > 0 {
		s += "  ETA " + ShortDuration(time.Duration(float64(left)/perSecond*float64(time.Second)))
	}
	return s
}
