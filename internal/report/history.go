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

// API is the part of the Step Functions client that [StepFunctions] uses.
type API interface {
	DescribeExecution(context.Context, *sfn.DescribeExecutionInput, ...func(*sfn.Options)) (*sfn.DescribeExecutionOutput, error)
	GetExecutionHistory(context.Context, *sfn.GetExecutionHistoryInput, ...func(*sfn.Options)) (*sfn.GetExecutionHistoryOutput, error)
	ListExecutions(context.Context, *sfn.ListExecutionsInput, ...func(*sfn.Options)) (*sfn.ListExecutionsOutput, error)
}

// maxResumes bounds how many executions are read to find those that resumed the rotation.
// A state machine that rotates every quarter has few.
const maxResumes = 100

// StepFunctions is the [History] that AWS keeps for 90 days.
type StepFunctions struct {
	Client   API
	Machines map[kek.Mode]string // ARN by mode, "" if it is not known
}

var _ History = StepFunctions{}

// Executions implements [History]: the execution that started the rotation, if there is
// one, and those that were started later to resume it. With an error it returns those that
// it has found.
func (h StepFunctions) Executions(ctx context.Context, r kek.Rotation) ([]Execution, error) {
	var all []Execution
	machines := []string{h.Machines[r.Mode]}
	if r.Execution != "" {
		first, of, err := h.readExecution(ctx, r.Execution)
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
			more, err = h.listResumes(ctx, machine, r)
			arns = append(arns, more...)
		}
	}
	for _, arn := range arns {
		e, _, err := h.readExecution(ctx, arn)
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b Execution) int { return a.StartedAt.Compare(b.StartedAt) })
	return all, err
}

// readExecution reads one execution and the ARN of its state machine.
func (h StepFunctions) readExecution(ctx context.Context, arn string) (Execution, string, error) {
	d, err := h.Client.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: &arn})
	if err != nil {
		return Execution{}, "", fmt.Errorf("describe execution %s: %w", arn, err)
	}
	e := Execution{
		ARN: arn, Status: string(d.Status), StartedAt: aws.ToTime(d.StartDate).UTC(), StoppedAt: toUTC(aws.ToTime(d.StopDate)),
		Redrives: int(aws.ToInt32(d.RedriveCount)), Error: aws.ToString(d.Error), Cause: aws.ToString(d.Cause),
	}
	var runs []string
	e.Visits, runs, err = h.readVisits(ctx, arn)
	if err == nil && len(runs) > 0 {
		var inner []Visit
		inner, err = h.readChildren(ctx, runs)
		e.Visits = append(e.Visits, inner...)
		slices.SortStableFunc(e.Visits, compareExits)
	}
	return e, aws.ToString(d.StateMachineArn), err
}

// maxChildren bounds how many child executions of an execution are read. The plot of the rewrap
// then lacks the segments of the others.
const maxChildren = 500

// readChildren reads the visits of the child executions of map runs, whose histories are their
// own.
func (h StepFunctions) readChildren(ctx context.Context, runs []string) ([]Visit, error) {
	var visits []Visit
	read := 0
	for _, run := range runs {
		pages := sfn.NewListExecutionsPaginator(h.Client, &sfn.ListExecutionsInput{MapRunArn: &run})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return visits, fmt.Errorf("list the child executions of %s: %w", run, err)
			}
			for _, e := range page.Executions {
				if read++; read > maxChildren {
					return visits, nil
				}
				inner, _, err := h.readVisits(ctx, aws.ToString(e.ExecutionArn))
				visits = append(visits, inner...)
				if err != nil {
					return visits, err
				}
			}
		}
	}
	return visits, nil
}

// compareExits orders visits by when their states were exited; those that were not come last.
func compareExits(a, b Visit) int {
	if open := a.Exited.IsZero(); open != b.Exited.IsZero() {
		return map[bool]int{true: 1, false: -1}[open]
	}
	return a.Exited.Compare(b.Exited)
}

// listResumes returns the executions whose input resumes the rotation.
func (h StepFunctions) listResumes(ctx context.Context, machine string, r kek.Rotation) ([]string, error) {
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

// readVisits reads the history of an execution as visits to states, in the order in which
// the states were exited; those that were not exited come last. runs are the ARNs of the map
// runs that the execution has started.
func (h StepFunctions) readVisits(ctx context.Context, arn string) (visits []Visit, runs []string, err error) {
	pages := sfn.NewGetExecutionHistoryPaginator(h.Client, &sfn.GetExecutionHistoryInput{
		ExecutionArn: &arn, MaxResults: 1000, IncludeExecutionData: aws.Bool(true),
	})
	t := tracker{before: map[int64]int64{}, entered: map[int64]Visit{}}
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return t.listVisits(), runs, fmt.Errorf("history of execution %s: %w", arn, err)
		}
		for _, e := range page.Events {
			t.addEvent(e)
			if d := e.MapRunStartedEventDetails; d != nil {
				runs = append(runs, aws.ToString(d.MapRunArn))
			}
		}
	}
	return t.listVisits(), runs, nil
}

// tracker pairs the events that enter, answer and leave states. Events of a map's
// iterations interleave: an event belongs to the entry that its chain of previous
// events leads back to.
type tracker struct {
	before  map[int64]int64 // event → the one before it on its path
	entered map[int64]Visit // by the id of the entering event
	left    []Visit
}

// addEvent adds the next event of the history.
func (t *tracker) addEvent(e types.HistoryEvent) {
	t.before[e.Id] = e.PreviousEventId
	at := aws.ToTime(e.Timestamp).UTC()
	switch {
	case e.StateEnteredEventDetails != nil:
		d := e.StateEnteredEventDetails
		t.entered[e.Id] = Visit{State: aws.ToString(d.Name), Entered: at, input: []byte(aws.ToString(d.Input))}
	case e.TaskSucceededEventDetails != nil:
		var out struct{ Payload json.RawMessage }
		id, ok := t.findEntry(e.Id, "")
		if ok && json.Unmarshal([]byte(aws.ToString(e.TaskSucceededEventDetails.Output)), &out) == nil {
			v := t.entered[id]
			v.answer, v.answered = out.Payload, at
			t.entered[id] = v
		}
	case e.StateExitedEventDetails != nil:
		name := aws.ToString(e.StateExitedEventDetails.Name)
		id, ok := t.findEntry(e.Id, name)
		if !ok {
			return
		}
		v := t.entered[id]
		delete(t.entered, id)
		v.Exited = at
		t.left = append(t.left, v)
	}
}

// findEntry returns the event that entered the state to which event id belongs. name is
// the state's name, "" if it is not known.
func (t *tracker) findEntry(id int64, name string) (int64, bool) {
	for n := t.before[id]; n > 0; n = t.before[n] {
		if v, ok := t.entered[n]; ok && (name == "" || v.State == name) {
			return n, true
		}
	}
	return 0, false
}

// listVisits returns the visits: exited ones in order of their exit, then the others.
func (t *tracker) listVisits() []Visit {
	var open []Visit
	for _, v := range t.entered {
		open = append(open, v)
	}
	slices.SortFunc(open, func(a, b Visit) int { return cmp.Or(a.Entered.Compare(b.Entered), cmp.Compare(a.State, b.State)) })
	return append(t.left, open...)
}

// lastExecution returns the last execution, and whether there is one.
func (r Report) lastExecution() (Execution, bool) {
	if len(r.Executions) == 0 {
		return Execution{}, false
	}
	return r.Executions[len(r.Executions)-1], true
}

// endTime returns when the last execution stopped; zero while it runs.
func (r Report) endTime() time.Time {
	e, _ := r.lastExecution()
	return e.StoppedAt
}
