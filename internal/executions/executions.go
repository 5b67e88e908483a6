// Package executions starts, describes and resumes executions of the state machines.
package executions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/rotation"
)

// MachineAPI is the part of the Step Functions client that this package uses.
type MachineAPI interface {
	StartExecution(context.Context, *sfn.StartExecutionInput, ...func(*sfn.Options)) (*sfn.StartExecutionOutput, error)
	DescribeExecution(context.Context, *sfn.DescribeExecutionInput, ...func(*sfn.Options)) (*sfn.DescribeExecutionOutput, error)
	ListExecutions(context.Context, *sfn.ListExecutionsInput, ...func(*sfn.Options)) (*sfn.ListExecutionsOutput, error)
	RedriveExecution(context.Context, *sfn.RedriveExecutionInput, ...func(*sfn.Options)) (*sfn.RedriveExecutionOutput, error)
}

// Machine is one of the two deployed state machines.
type Machine struct {
	API MachineAPI
	ARN string
}

// Execution is one run of the state machine.
type Execution struct {
	Name       string                `json:"execution_name"`
	ARN        string                `json:"execution_arn"`
	Status     types.ExecutionStatus `json:"status"`
	RotationID string                `json:"rotation_id"` // its name, or the rotation it resumes
	Redrivable bool                  `json:"redrivable"`
	StartedAt  time.Time             `json:"started_at"`
	Error      string                `json:"error,omitempty"`
	Cause      string                `json:"cause,omitempty"`
}

var (
	// ErrTaken reports an execution name that was used before.
	ErrTaken = errors.New("the state machine has had an execution of this name")
	// ErrNoExecution reports an execution that does not exist.
	ErrNoExecution = errors.New("the state machine has no such execution")
)

// ExecutionARN returns the ARN of the execution with a name.
func (m *Machine) ExecutionARN(name string) string {
	return strings.Replace(m.ARN, ":stateMachine:", ":execution:", 1) + ":" + name
}

// Start starts an execution. StartExecution is idempotent: with the name and input of an
// execution that runs, it succeeds and returns that one (API reference, StartExecution). It
// returns [ErrTaken] if that execution has another input or has ended.
func (m *Machine) Start(ctx context.Context, name string, in rotation.ExecutionInput) (Execution, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return Execution{}, err
	}
	out, err := m.API.StartExecution(ctx, &sfn.StartExecutionInput{
		StateMachineArn: &m.ARN, Name: &name, Input: aws.String(string(body)),
	})
	var taken *types.ExecutionAlreadyExists
	if errors.As(err, &taken) {
		return Execution{}, fmt.Errorf("%s: %w", name, ErrTaken)
	}
	if err != nil {
		return Execution{}, fmt.Errorf("start execution %s: %w", name, err)
	}
	e := Execution{Name: name, ARN: aws.ToString(out.ExecutionArn), Status: types.ExecutionStatusRunning, StartedAt: aws.ToTime(out.StartDate)}
	e.RotationID = rotationOf(name, string(body))
	return e, nil
}

// rotationOf returns the id of the rotation that an execution works on: the one that it
// resumes, or else its own name.
func rotationOf(name, input string) string {
	var in rotation.ExecutionInput
	if json.Unmarshal([]byte(input), &in) == nil && in.Resume != "" {
		return in.Resume
	}
	return name
}

// Describe returns an execution; [ErrNoExecution] if there is none.
func (m *Machine) Describe(ctx context.Context, arn string) (Execution, error) {
	d, err := m.API.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: &arn})
	var none *types.ExecutionDoesNotExist
	if errors.As(err, &none) {
		return Execution{}, fmt.Errorf("%s: %w", arn, ErrNoExecution)
	}
	if err != nil {
		return Execution{}, fmt.Errorf("describe execution: %w", err)
	}
	name := aws.ToString(d.Name)
	return Execution{
		Name: name, ARN: arn, Status: d.Status, RotationID: rotationOf(name, aws.ToString(d.Input)),
		Redrivable: d.RedriveStatus == types.ExecutionRedriveStatusRedrivable, StartedAt: aws.ToTime(d.StartDate),
		Error: aws.ToString(d.Error), Cause: aws.ToString(d.Cause),
	}, nil
}

// ListRunning returns the executions that run now, with the rotation each works on.
func (m *Machine) ListRunning(ctx context.Context) ([]Execution, error) {
	var out []Execution
	pages := sfn.NewListExecutionsPaginator(m.API, &sfn.ListExecutionsInput{
		StateMachineArn: &m.ARN, StatusFilter: types.ExecutionStatusRunning,
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list executions: %w", err)
		}
		for _, item := range page.Executions {
			e, err := m.Describe(ctx, aws.ToString(item.ExecutionArn))
			if err != nil {
				return nil, err
			}
			if e.Status == types.ExecutionStatusRunning { // it may have ended meanwhile
				out = append(out, e)
			}
		}
	}
	return out, nil
}

// Resume continues a halted rotation. It redrives the execution last, which halted ("" if that
// is not known), if Step Functions still can: within 14 days of its end (developer guide,
// "Restarting state machine executions with redrive"). Otherwise it starts a new execution,
// which finds every finished step done.
func (m *Machine) Resume(ctx context.Context, rotationID, last string) (e Execution, redriven bool, err error) {
	if last != "" {
		e, err = m.Describe(ctx, last)
		if err != nil && !errors.Is(err, ErrNoExecution) {
			return e, false, err
		}
		if err == nil && e.Redrivable {
			if _, err := m.API.RedriveExecution(ctx, &sfn.RedriveExecutionInput{ExecutionArn: &last}); err != nil {
				return e, false, fmt.Errorf("redrive execution %s: %w", e.Name, err)
			}
			e.Status = types.ExecutionStatusRunning
			e.Redrivable = false
			e.Error = ""
			e.Cause = ""
			return e, true, nil
		}
	}
	for i := 1; i <= maxNames; i++ {
		name := AppendSuffix(rotationID, fmt.Sprintf("-resume-%d", i))
		if e, err := m.Describe(ctx, m.ExecutionARN(name)); err == nil {
			if e.Redrivable && e.RotationID == rotationID {
				return m.Resume(ctx, rotationID, e.ARN)
			}
			continue
		} else if !errors.Is(err, ErrNoExecution) {
			return e, false, err
		}
		e, err := m.Start(ctx, name, rotation.ExecutionInput{Resume: rotationID})
		if !errors.Is(err, ErrTaken) {
			return e, false, err
		}
	}
	return Execution{}, false, fmt.Errorf("resume %s: %w, %d times over", rotationID, ErrTaken, maxNames)
}

// FindLast returns the last execution of a rotation: first, the ARN of the one that began it ("" if
// it was begun by hand), or the last of those that [Machine.Resume] has named. One that a person
// started under a name of their own is not found. [ErrNoExecution] if there is none.
func (m *Machine) FindLast(ctx context.Context, rotationID, first string) (Execution, error) {
	last, err := Execution{}, ErrNoExecution
	if first != "" {
		last, err = m.Describe(ctx, first)
	}
	for i := 1; i <= maxNames && (err == nil || errors.Is(err, ErrNoExecution)); i++ {
		e, missing := m.Describe(ctx, m.ExecutionARN(AppendSuffix(rotationID, fmt.Sprintf("-resume-%d", i))))
		if errors.Is(missing, ErrNoExecution) {
			break
		}
		if missing != nil {
			return e, missing
		}
		if e.RotationID == rotationID {
			last, err = e, nil
		}
	}
	return last, err
}

// maxNames bounds the search for a free name.
const maxNames = 50

// AppendSuffix appends a suffix to a name, and shortens the name so that both fit into the 80
// characters of an execution's name.
func AppendSuffix(name, suffix string) string {
	return name[:min(len(name), 80-len(suffix))] + suffix
}
