// Package watch follows an execution of the state machine from outside: which
// state it is in, how far the rotation has come, how many rows have moved. It only
// reads, so it may be stopped and started again at any time.
package watch

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

// API is what is used of the Step Functions client.
type API interface {
	DescribeExecution(context.Context, *sfn.DescribeExecutionInput, ...func(*sfn.Options)) (*sfn.DescribeExecutionOutput, error)
	GetExecutionHistory(context.Context, *sfn.GetExecutionHistoryInput, ...func(*sfn.Options)) (*sfn.GetExecutionHistoryOutput, error)
}

// Table is what is used of the control table.
type Table interface {
	Load(ctx context.Context, rotationID string) (kek.View, error)
	ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]rotation.Checkpoint, error)
	Leases(ctx context.Context, id kek.ID) ([]rotation.Lease, error)
}

// Progress is one look at an execution.
type Progress struct {
	State     string // the state entered last
	Phase     kek.Phase
	Leases    int   // on the old KEK, while it drains
	Refs      int64 // in-flight references, the sum over them
	Scanned   int64 // items by the census before the mint, then rows by the rewrap
	Rewrapped int64
	Elapsed   time.Duration
}

// Outcome is how an execution ended.
type Outcome struct {
	Status types.ExecutionStatus
	Error  string
	Cause  string
	States []string // every state entered, in order
}

// Watcher follows one execution.
type Watcher struct {
	SFN      API
	Table    Table
	Every    time.Duration // between looks
	Rotation string        // its id, to find the record and the checkpoints
}

// Run looks until the execution ends and tells see of each look. It returns when
// the execution is over or ctx ends.
func (w Watcher) Run(ctx context.Context, arn string, see func(Progress)) (Outcome, error) {
	start := time.Now()
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	for {
		d, err := w.SFN.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: &arn})
		if err != nil {
			return Outcome{}, fmt.Errorf("describe execution: %w", err)
		}
		p, err := w.look(ctx, arn)
		if err != nil {
			return Outcome{}, err
		}
		p.Elapsed = time.Since(start)
		see(p)
		if d.Status != types.ExecutionStatusRunning {
			states, err := States(ctx, w.SFN, arn)
			return Outcome{Status: d.Status, Error: aws.ToString(d.Error), Cause: aws.ToString(d.Cause), States: states}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		}
	}
}

func (w Watcher) look(ctx context.Context, arn string) (Progress, error) {
	state, err := lastState(ctx, w.SFN, arn)
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
	t, err := Tally(ctx, w.Table, *v.Rotation, pass)
	p.Scanned, p.Rewrapped = t.Scanned, t.Rewrapped
	if pass == rotation.PassCensus {
		p.Scanned += t.Other + t.Declared
	}
	return p, err
}

// Tally adds up how far a pass over the sources of a rotation has come.
func Tally(ctx context.Context, table Table, r kek.Rotation, pass string) (rotation.Tally, error) {
	var t rotation.Tally
	for _, def := range r.Sources {
		cps, err := table.ListCheckpoints(ctx, r.ID, rotation.ProgressName(def), pass)
		if err != nil {
			return t, fmt.Errorf("read checkpoints: %w", err)
		}
		for _, cp := range cps {
			t.Scanned += cp.Tally.Scanned
			t.Other += cp.Tally.Other
			t.Declared += cp.Tally.Declared
			t.Rewrapped += cp.Tally.Rewrapped
			t.Quarantined += cp.Tally.Quarantined
		}
	}
	return t, nil
}

// lastState is the state that an execution has entered last, "" before the first. It reads
// the history from its end, a page as a rule, however long it is.
func lastState(ctx context.Context, api API, arn string) (string, error) {
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

// States lists the states that an execution has entered, in order.
func States(ctx context.Context, api API, arn string) ([]string, error) {
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
