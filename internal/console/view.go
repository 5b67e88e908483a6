package console

import (
	"fmt"
	"io"
	"time"

	"github.com/matter-ops/kms-rotation/internal/watch"
	"github.com/matter-ops/kms-rotation/kek"
)

// LiveView shows the progress of an execution: on a terminal one line that is
// drawn again, elsewhere a line whenever the state changes, and at most one per
// quiet when only the numbers do.
type LiveView struct {
	Out   io.Writer
	Live  bool
	Rows  int64 // rows there are, about
	Quiet time.Duration
	More  func() string // ends every line; nil: nothing does

	last  watch.Progress
	spoke time.Duration
	since time.Duration // when the first row moved
	from  int64
}

// Show prints a line of progress if there is something new to say.
func (v *LiveView) Show(p watch.Progress) {
	if p.Rewrapped > 0 && v.since == 0 {
		v.since, v.from = p.Elapsed, p.Rewrapped
	}
	line := fmt.Sprintf("%6.1f s  %-18s %-10s", p.Elapsed.Seconds(), p.State, p.Phase)
	if p.Phase == kek.Switched {
		line += fmt.Sprintf("  %d in flight, %d leases", p.Refs, p.Leases)
	}
	switch {
	case p.Scanned > 0 && p.Phase == kek.Started:
		line += fmt.Sprintf("  %d items counted", p.Scanned)
	case p.Scanned > 0:
		line += fmt.Sprintf("  %d of %d rows", p.Rewrapped, v.Rows)
		if p.Rewrapped > v.last.Rewrapped {
			m := Meter{Total: v.Rows, from: v.from}
			line += m.rate(p.Rewrapped, p.Elapsed-v.since)
		}
	}
	if v.More != nil {
		line += "  " + v.More()
	}
	moved := p.Rewrapped != v.last.Rewrapped || p.Refs != v.last.Refs || p.Leases != v.last.Leases
	switch {
	case v.Live:
		fmt.Fprintf(v.Out, "\r\x1b[K%s", line)
	case p.State != v.last.State || p.Phase != v.last.Phase || moved && p.Elapsed-v.spoke >= v.Quiet:
		fmt.Fprintln(v.Out, line)
		v.spoke = p.Elapsed
	}
	v.last = p
}

// End ends the line that a live terminal shows.
func (v *LiveView) End() {
	if v.Live {
		fmt.Fprintln(v.Out)
	}
}
