package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/matter-ops/kms-rotation/internal/watch"
	"github.com/matter-ops/kms-rotation/kek"
)

// quietFor is how long progress says nothing where there is no terminal, unless
// something other than numbers changes.
const quietFor = 10 * time.Second

// statusLine shows how something goes on: on a terminal one line that is drawn
// again, elsewhere a line whenever what is said changes.
type statusLine struct {
	out   io.Writer
	live  bool
	last  string
	drawn bool
}

// show shows text; detail changes all the time and is for a terminal alone.
func (l *statusLine) show(text, detail string) {
	switch {
	case l.live:
		fmt.Fprintf(l.out, "\r\x1b[K%s%s", text, detail)
		l.drawn = true
	case text != l.last:
		fmt.Fprintln(l.out, text)
	}
	l.last = text
}

// end ends a line that was drawn on a terminal.
func (l *statusLine) end() {
	if l.drawn {
		fmt.Fprintln(l.out)
		l.drawn = false
	}
}

// pass shows the progress of one pass over all rows while work runs.
func (o *operator) pass(ctx context.Context, r kek.Rotation, name string, work func(context.Context) error) error {
	total, err := o.RowsAbout(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { done <- work(ctx) }()
	line := &statusLine{out: o.err, live: isTerminal(o.err)}
	defer line.end()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	speak := time.Now()
	m := meter{total: total}
	for {
		select {
		case err := <-done:
			return err
		case <-look.C:
		}
		t, err := watch.Tally(ctx, o.Table, r, name)
		if err != nil { // the work itself will say it if it matters
			continue
		}
		if text := m.text(name, t.Scanned+t.Other+t.Declared, time.Now()); line.live || time.Since(speak) >= quietFor {
			line.show(text, "")
			speak = time.Now()
		}
	}
}

// meter turns counts into a rate and the time that is left.
type meter struct {
	total int64 // about; 0: unknown
	start time.Time
	from  int64
}

// text is how far a pass has come.
func (m *meter) text(what string, n int64, now time.Time) string {
	s := fmt.Sprintf("%s: %d of about %d items", what, n, m.total)
	if m.start.IsZero() {
		if n > 0 {
			m.start, m.from = now, n
		}
		return s
	}
	return s + m.rate(n, now.Sub(m.start))
}

// rate is rows per second since the first row was seen, and the time left.
func (m *meter) rate(n int64, since time.Duration) string {
	if since <= 0 || n <= m.from {
		return ""
	}
	perSecond := float64(n-m.from) / since.Seconds()
	s := fmt.Sprintf("  %.0f rows/s", perSecond)
	if left := m.total - n; left > 0 {
		s += "  ETA " + short(time.Duration(float64(left)/perSecond*float64(time.Second)))
	}
	return s
}
