package report

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
)

// API is what [StepFunctions] uses of the client.
type API interface {
	DescribeExecution(context.Context, *sfn.DescribeExecutionInput, ...func(*sfn.Options)) (*sfn.DescribeExecutionOutput, error)
	GetExecutionHistory(context.Context, *sfn.GetExecutionHistoryInput, ...func(*sfn.Options)) (*sfn.GetExecutionHistoryOutput, error)
	ListExecutions(context.Context, *sfn.ListExecutionsInput, ...func(*sfn.Options)) (*sfn.ListExecutionsOutput, error)
}

// maxResumes bounds how many executions are looked at for one that resumed the
// rotation. A state machine that rotates every quarter has few.
const maxResumes = 100

// StepFunctions is the [History] that AWS keeps for 90 days.
type StepFunctions struct {
	Client   API
	Machines map[kek.Mode]string // ARN by mode, "" if it is not known
}

var _ History = StepFunctions{}

// Executions implements [History]: the execution that started the rotation, if one
// did, and those that were started later to resume it. What was found comes with an
// error.
func (h StepFunctions) Executions(ctx context.Context, r kek.Rotation) ([]Execution, error) {
	var all []Execution
	machines := []string{h.Machines[r.Mode]}
	if r.Execution != "" {
		first, of, err := h.execution(ctx, r.Execution)
		if err != nil {
			return nil, err
		}
		all = append(all, first)
		if of != machines[0] { // an emergency from before they had a state machine of their own
			machines = append(machines, of)
		}
	}
	var arns []string
	var err error
	for _, machine := range machines {
		if machine != "" && err == nil {
			var more []string
			more, err = h.resumes(ctx, machine, r)
			arns = append(arns, more...)
		}
	}
	for _, arn := range arns {
		e, _, err := h.execution(ctx, arn)
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b Execution) int { return a.StartedAt.Compare(b.StartedAt) })
	return all, err
}

// execution reads one execution and the ARN of its state machine.
func (h StepFunctions) execution(ctx context.Context, arn string) (Execution, string, error) {
	d, err := h.Client.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: &arn})
	if err != nil {
		return Execution{}, "", fmt.Errorf("describe execution %s: %w", arn, err)
	}
	e := Execution{
		ARN: arn, Status: string(d.Status), StartedAt: aws.ToTime(d.StartDate).UTC(), StoppedAt: utc(aws.ToTime(d.StopDate)),
		Redrives: int(aws.ToInt32(d.RedriveCount)), Error: aws.ToString(d.Error), Cause: aws.ToString(d.Cause),
	}
	e.Visits, err = h.visits(ctx, arn)
	return e, aws.ToString(d.StateMachineArn), err
}

// resumes lists the executions whose input resumes the rotation.
func (h StepFunctions) resumes(ctx context.Context, machine string, r kek.Rotation) ([]string, error) {
	var out []string
	looked := 0
	pages := sfn.NewListExecutionsPaginator(h.Client, &sfn.ListExecutionsInput{StateMachineArn: &machine})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return out, fmt.Errorf("list executions: %w", err)
		}
		for _, e := range page.Executions {
			started := aws.ToTime(e.StartDate)
			if aws.ToString(e.ExecutionArn) == r.Execution || started.Before(r.StartedAt) || r.Phase.Final() && started.After(r.UpdatedAt) {
				continue
			}
			if looked++; looked > maxResumes {
				return out, errors.New("there are too many executions to look for those that resumed this rotation")
			}
			d, err := h.Client.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: e.ExecutionArn})
			if err != nil {
				return out, fmt.Errorf("describe execution %s: %w", aws.ToString(e.ExecutionArn), err)
			}
			var in struct{ Resume string }
			if json.Unmarshal([]byte(aws.ToString(d.Input)), &in) == nil && in.Resume == r.ID {
				out = append(out, aws.ToString(e.ExecutionArn))
			}
		}
	}
	return out, nil
}

// visits reads the history of an execution as stays in states, in the order in
// which they were left; those that were not left come last.
func (h StepFunctions) visits(ctx context.Context, arn string) ([]Visit, error) {
	pages := sfn.NewGetExecutionHistoryPaginator(h.Client, &sfn.GetExecutionHistoryInput{
		ExecutionArn: &arn, MaxResults: 1000, IncludeExecutionData: aws.Bool(true),
	})
	t := tracker{before: map[int64]int64{}, entered: map[int64]Visit{}}
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return t.visits(), fmt.Errorf("history of execution %s: %w", arn, err)
		}
		for _, e := range page.Events {
			t.see(e)
		}
	}
	return t.visits(), nil
}

// tracker pairs the events that enter, answer and leave states. Events of a map's
// iterations interleave: an event belongs to the entry that its chain of previous
// events leads back to.
type tracker struct {
	before  map[int64]int64 // event → the one before it on its path
	entered map[int64]Visit // by the id of the entering event
	left    []Visit
}

func (t *tracker) see(e types.HistoryEvent) {
	t.before[e.Id] = e.PreviousEventId
	at := aws.ToTime(e.Timestamp).UTC()
	switch {
	case e.StateEnteredEventDetails != nil:
		d := e.StateEnteredEventDetails
		t.entered[e.Id] = Visit{State: aws.ToString(d.Name), Entered: at, input: []byte(aws.ToString(d.Input))}
	case e.TaskSucceededEventDetails != nil:
		var out struct{ Payload json.RawMessage }
		id, ok := t.entry(e.Id, "")
		if ok && json.Unmarshal([]byte(aws.ToString(e.TaskSucceededEventDetails.Output)), &out) == nil {
			v := t.entered[id]
			v.answer, v.answered = out.Payload, at
			t.entered[id] = v
		}
	case e.StateExitedEventDetails != nil:
		name := aws.ToString(e.StateExitedEventDetails.Name)
		id, ok := t.entry(e.Id, name)
		if !ok {
			return
		}
		v := t.entered[id]
		delete(t.entered, id)
		v.Exited = at
		t.left = append(t.left, v)
	}
}

// entry is the event that entered the state to which event id belongs; name is that
// state's if it is known.
func (t *tracker) entry(id int64, name string) (int64, bool) {
	for n := t.before[id]; n > 0; n = t.before[n] {
		if v, ok := t.entered[n]; ok && (name == "" || v.State == name) {
			return n, true
		}
	}
	return 0, false
}

func (t *tracker) visits() []Visit {
	var open []Visit
	for _, v := range t.entered {
		open = append(open, v)
	}
	slices.SortFunc(open, func(a, b Visit) int { return cmp.Or(a.Entered.Compare(b.Entered), cmp.Compare(a.State, b.State)) })
	return append(t.left, open...)
}

// latest returns the last execution, and whether there is one.
func (r Report) latest() (Execution, bool) {
	if len(r.Executions) == 0 {
		return Execution{}, false
	}
	return r.Executions[len(r.Executions)-1], true
}

// ended is when the last execution stopped; zero while one runs.
func (r Report) ended() time.Time {
	e, _ := r.latest()
	return e.StoppedAt
}
