package main

import (
	"fmt"
	"io"
	"time"

	"github.com/matter-ops/kms-rotation/internal/watch"
	"github.com/matter-ops/kms-rotation/kek"
)

// liveView shows the progress of an execution: on a terminal one line that is
// drawn again, elsewhere a line whenever the state changes, and at most one per
// quiet when only the numbers do.
type liveView struct {
	out   io.Writer
	live  bool
	rows  int64 // rows there are, about
	quiet time.Duration
	more  func() string // ends every line; nil: nothing does

	last  watch.Progress
	spoke time.Duration
	since time.Duration // when the first row moved
	from  int64
}

func (v *liveView) show(p watch.Progress) {
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
		line += fmt.Sprintf("  %d of %d rows", p.Rewrapped, v.rows)
		if p.Rewrapped > v.last.Rewrapped {
			m := meter{total: v.rows, from: v.from}
			line += m.rate(p.Rewrapped, p.Elapsed-v.since)
		}
	}
	if v.more != nil {
		line += "  " + v.more()
	}
	moved := p.Rewrapped != v.last.Rewrapped || p.Refs != v.last.Refs || p.Leases != v.last.Leases
	switch {
	case v.live:
		fmt.Fprintf(v.out, "\r\x1b[K%s", line)
	case p.State != v.last.State || p.Phase != v.last.Phase || moved && p.Elapsed-v.spoke >= v.quiet:
		fmt.Fprintln(v.out, line)
		v.spoke = p.Elapsed
	}
	v.last = p
}

func (v *liveView) end() {
	if v.live {
		fmt.Fprintln(v.out)
	}
}
