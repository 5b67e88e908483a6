package console

import (
	"fmt"
	"io"
	"time"
)

// QuietFor is the least time between two lines of progress on an output that is not a
// terminal, if only numbers have changed. It keeps the log of a CI job short.
const QuietFor = 10 * time.Second

// StatusLine shows progress: on a terminal one line that is redrawn, elsewhere a new line
// whenever the text changes.
type StatusLine struct {
	Out  io.Writer
	Live bool // Out is a terminal

	last  string
	drawn bool
}

// NewStatusLine returns a status line on w, redrawn if w is a terminal.
func NewStatusLine(w io.Writer) *StatusLine { return &StatusLine{Out: w, Live: IsTerminal(w)} }

// Show shows text. Only a terminal also gets detail, which changes with every call.
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

// ShowItems shows how many items were read, of the source name if it is given. Only a terminal
// gets it: the number changes with every page.
func (l *StatusLine) ShowItems(name string, n int64) {
	if !l.Live {
		return
	}
	if name != "" {
		name += ": "
	}
	l.Show(fmt.Sprintf("%s%d items read", name, n), "")
}

// End moves the terminal to a new line if something was drawn.
func (l *StatusLine) End() {
	if l.drawn {
		fmt.Fprintln(l.Out)
		l.drawn = false
	}
}

// Meter turns counts of items into a rate and an estimate of the time left.
type Meter struct {
	Total int64 // estimate; 0: unknown

	start time.Time // when the first item was seen, and
	from  int64     // the count at that time
}

// FormatProgress says how far a pass has come: n items at the time now.
func (m *Meter) FormatProgress(what string, n int64, now time.Time) string {
	s := fmt.Sprintf("%s: %d of about %d items", what, n, m.Total)
	if m.start.IsZero() {
		if n > 0 {
			m.start, m.from = now, n
		}
		return s
	}
	return s + m.formatRate(n, now.Sub(m.start))
}

// formatRate says how many rows per second were done since the first was seen, and how
// long the rest takes at this rate.
func (m *Meter) formatRate(n int64, since time.Duration) string {
	if since <= 0 || n <= m.from {
		return ""
	}
	perSecond := float64(n-m.from) / since.Seconds()
	s := fmt.Sprintf("  %.0f rows/s", perSecond)
	if left := m.Total - n; left > 0 {
		s += "  ETA " + FormatDuration(time.Duration(float64(left)/perSecond*float64(time.Second)))
	}
	return s
}
