package console

import (
	"fmt"
	"io"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// LiveView shows the progress of an execution: on a terminal one line that is redrawn,
// elsewhere a new line whenever the state changes, and at most one in Quiet when only the
// numbers change.
type LiveView struct {
	Out   io.Writer
	Live  bool  // Out is a terminal
	Rows  int64 // estimate of all rows; 0: not known
	Quiet time.Duration
	More  func() string // text at the end of each line; may be nil

	last  Progress
	spoke time.Duration // elapsed time at the last line
	since time.Duration // elapsed time when the first row was rewrapped, and
	from  int64         // how many were rewrapped then
}

// Show shows the progress. Without a terminal it prints nothing if nothing has changed.
func (v *LiveView) Show(p Progress) {
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
		of := ""
		if v.Rows > 0 {
			of = fmt.Sprintf(" of %d", v.Rows)
		}
		line += fmt.Sprintf("  %d%s rows", p.Rewrapped, of)
		if p.Rewrapped > v.last.Rewrapped {
			m := Meter{Total: v.Rows, from: v.from}
			line += m.formatRate(p.Rewrapped, p.Elapsed-v.since)
		}
	}
	line += FormatUnproven(p.Unproven)
	if v.More != nil {
		line += "  " + v.More()
	}
	moved := p.Rewrapped != v.last.Rewrapped || p.Refs != v.last.Refs || p.Leases != v.last.Leases
	switch {
	case v.Live:
		fmt.Fprintf(v.Out, "\r\x1b[K%s", line)
	case p.State != v.last.State || p.Phase != v.last.Phase || (p.Unproven > 0) != (v.last.Unproven > 0) || moved && p.Elapsed-v.spoke >= v.Quiet:
		fmt.Fprintln(v.Out, line)
		v.spoke = p.Elapsed
	}
	v.last = p
}

// FormatUnproven is what a line of progress says of checkpoints that are not proven; "" of none.
func FormatUnproven(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("  (%d checkpoints are not proven, and not counted)", n)
}

// End moves the terminal to a new line.
func (v *LiveView) End() {
	if v.Live {
		fmt.Fprintln(v.Out)
	}
}
