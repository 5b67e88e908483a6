package main

import (
	"context"
	"time"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/watch"
	"github.com/matter-ops/kms-rotation/kek"
)

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
	line := console.NewStatusLine(o.Err)
	defer line.End()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	speak := time.Now()
	m := console.Meter{Total: total}
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
		if text := m.Text(name, t.Scanned+t.Other+t.Declared, time.Now()); line.Live || time.Since(speak) >= console.QuietFor {
			line.Show(text, "")
			speak = time.Now()
		}
	}
}
