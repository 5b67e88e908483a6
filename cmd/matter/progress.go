package main

import (
	"context"
	"time"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
)

// showPass shows the progress of one pass over all rows while work runs.
func (o *operator) showPass(ctx context.Context, r kek.Rotation, name string, work func(context.Context) error) error {
	total, err := o.stack.EstimateRows(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { done <- work(ctx) }()
	line := console.NewStatusLine(o.console.Err)
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
		t, unproven, err := console.SumCheckpoints(ctx, o.stack.Table, o.stack.Steps.ProveCheckpoint, r, name)
		if err != nil { // the work itself will say it if it matters
			continue
		}
		if text := m.FormatProgress(name, t.Scanned+t.Other+t.Declared, time.Now()); line.Live || time.Since(speak) >= console.QuietFor {
			line.Show(text+console.FormatUnproven(unproven), "")
			speak = time.Now()
		}
	}
}
