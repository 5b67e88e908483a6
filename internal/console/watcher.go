package console

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// SFN is the part of the Step Functions client that [Watcher] uses.
type SFN interface {
	DescribeExecution(context.Context, *sfn.DescribeExecutionInput, ...func(*sfn.Options)) (*sfn.DescribeExecutionOutput, error)
	GetExecutionHistory(context.Context, *sfn.GetExecutionHistoryInput, ...func(*sfn.Options)) (*sfn.GetExecutionHistoryOutput, error)
}

// ControlTable is the part of the control table that [Watcher] reads.
type ControlTable interface {
	Load(ctx context.Context, rotationID string) (kek.View, error)
	ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]rotation.Checkpoint, error)
	Leases(ctx context.Context, id kek.ID) ([]rotation.Lease, error)
}

// Progress is what one read of an execution and its rotation found.
type Progress struct {
	State     string // the state that was entered last
	Phase     kek.Phase
	Leases    int   // on the old KEK, while it drains
	Refs      int64 // in-flight references, summed over the leases
	Scanned   int64 // items that the census has read; after the mint, rows that the rewrap has read
	Rewrapped int64 // rows
	Unproven  int   // checkpoints of which nothing is counted, see [rotation.Proof]
	Elapsed   time.Duration
}

// Outcome is the end of an execution.
type Outcome struct {
	Status types.ExecutionStatus
	Error  string
	Cause  string
	States []string // every state that was entered, in order
}

// Watcher follows one execution of the state machine. It only reads, so it may be stopped
// and started again at any time.
type Watcher struct {
	SFN      SFN
	Table    ControlTable
	Every    time.Duration // between two reads
	Rotation string        // id, to find the record and the checkpoints
	Prove    Prove
}

// Follow reads the progress until the execution ends, and passes each to show. It also
// returns when ctx ends.
func (w Watcher) Follow(ctx context.Context, arn string, show func(Progress)) (Outcome, error) {
	start := time.Now()
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	for {
		d, err := w.SFN.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: &arn})
		if err != nil {
			return Outcome{}, fmt.Errorf("describe execution: %w", err)
		}
		p, err := w.readProgress(ctx, arn)
		if err != nil {
			return Outcome{}, err
		}
		p.Elapsed = time.Since(start)
		show(p)
		if d.Status != types.ExecutionStatusRunning {
			states, err := ListStates(ctx, w.SFN, arn)
			return Outcome{Status: d.Status, Error: aws.ToString(d.Error), Cause: aws.ToString(d.Cause), States: states}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		}
	}
}

// readProgress reads the state of the execution, then the control table. The two reads are
// not one snapshot, so for a moment a state may be shown with the phase before it.
func (w Watcher) readProgress(ctx context.Context, arn string) (Progress, error) {
	state, err := findLastState(ctx, w.SFN, arn)
	if err != nil {
		return Progress{}, err
	}
	p := Progress{State: state}
	v, err := w.Table.Load(ctx, w.Rotation)
	if err != nil {
		return p, fmt.Errorf("read the rotation: %w", err)
	}
	if v.Rotation == nil {
		return p, nil
	}
	p.Phase = v.Rotation.Phase
	if p.Phase == kek.Switched {
		leases, err := w.Table.Leases(ctx, v.Rotation.OldKEK)
		if err != nil {
			return p, fmt.Errorf("read leases: %w", err)
		}
		p.Leases = len(leases)
		for _, l := range leases {
			p.Refs += l.Refs
		}
	}
	pass := rotation.PassRewrap
	if p.Phase == kek.Started {
		pass = rotation.PassCensus
	}
	t, unproven, err := SumCheckpoints(ctx, w.Table, w.Prove, *v.Rotation, pass)
	p.Scanned, p.Rewrapped = t.Scanned, t.Rewrapped
	p.Unproven = unproven
	if pass == rotation.PassCensus {
		p.Scanned += t.Other + t.Declared
	}
	return p, err
}

// Prove says what the MAC of a checkpoint proves ([rotation.Steps.ProveCheckpoint]).
type Prove func(context.Context, rotation.Checkpoint) (rotation.Proof, error)

// SumCheckpoints adds up the checkpoints of a pass over the sources of a rotation. Those that
// are not proven it only counts. If KMS cannot be asked for the key of the MACs, none is.
func SumCheckpoints(ctx context.Context, table ControlTable, prove Prove, r kek.Rotation, pass string) (t rotation.Tally, unproven int, err error) {
	var failed error
	for _, def := range r.Sources {
		cps, err := table.ListCheckpoints(ctx, r.ID, rotation.ProgressName(def), pass)
		if err != nil {
			return t, unproven, fmt.Errorf("read checkpoints: %w", err)
		}
		for _, cp := range cps {
			var proof rotation.Proof
			if failed == nil {
				proof, failed = prove(ctx, cp)
			}
			if failed != nil || proof != rotation.Proven {
				unproven++
				continue
			}
			t.Scanned += cp.Tally.Scanned
			t.Other += cp.Tally.Other
			t.Declared += cp.Tally.Declared
			t.Rewrapped += cp.Tally.Rewrapped
			t.Quarantined += cp.Tally.Quarantined
		}
	}
	return t, unproven, nil
}

// findLastState returns the state that an execution entered last; "" before the first. It
// reads the history backwards, so one page of a long history is usually enough.
func findLastState(ctx context.Context, api SFN, arn string) (string, error) {
	pages := sfn.NewGetExecutionHistoryPaginator(api, &sfn.GetExecutionHistoryInput{ExecutionArn: &arn, MaxResults: 100, ReverseOrder: true})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return "", fmt.Errorf("execution history: %w", err)
		}
		for _, e := range page.Events {
			if d := e.StateEnteredEventDetails; d != nil {
				return aws.ToString(d.Name), nil
			}
		}
	}
	return "", nil
}

// ListStates returns the states that an execution has entered, in order.
func ListStates(ctx context.Context, api SFN, arn string) ([]string, error) {
	var out []string
	pages := sfn.NewGetExecutionHistoryPaginator(api, &sfn.GetExecutionHistoryInput{ExecutionArn: &arn, MaxResults: 1000})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("execution history: %w", err)
		}
		for _, e := range page.Events {
			if d := e.StateEnteredEventDetails; d != nil {
				out = append(out, aws.ToString(d.Name))
			}
		}
	}
	return slices.Clip(out), nil
}
