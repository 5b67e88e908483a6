package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/matter-ops/kms-rotation/internal/watch"
)

// isTerminal reports whether w is a terminal that may be drawn on.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// liveView shows the progress of an execution: on a terminal one line that is
// drawn again, elsewhere a line whenever the state changes.
type liveView struct {
	out  io.Writer
	live bool
	rows int64 // rows there are

	last  watch.Progress
	since time.Duration // when the first row moved
	from  int64
}

func (v *liveView) show(p watch.Progress) {
	if p.Rewrapped > 0 && v.since == 0 {
		v.since, v.from = p.Elapsed, p.Rewrapped
	}
	line := fmt.Sprintf("%6.1f s  %-18s %-10s", p.Elapsed.Seconds(), p.State, p.Phase)
	if p.Scanned > 0 {
		line += fmt.Sprintf("  %d of %d rows", p.Rewrapped, v.rows)
		if s := (p.Elapsed - v.since).Seconds(); s > 0 && p.Rewrapped > v.last.Rewrapped {
			line += fmt.Sprintf("  %.0f rows/s", float64(p.Rewrapped-v.from)/s)
		}
	}
	switch {
	case v.live:
		fmt.Fprintf(v.out, "\r\x1b[K%s", line)
	case p.State != v.last.State || p.Phase != v.last.Phase || p.Rewrapped != v.last.Rewrapped:
		fmt.Fprintln(v.out, line)
	}
	v.last = p
}

func (v *liveView) end() {
	if v.live {
		fmt.Fprintln(v.out)
	}
}
