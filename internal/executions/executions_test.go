package executions

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
)

// history is Step Functions with a redrive, which the local AWS does not have.
type history struct {
	MachineAPI
	known map[string]*sfn.DescribeExecutionOutput // by name
	calls []string
}

func (e *history) DescribeExecution(_ context.Context, in *sfn.DescribeExecutionInput, _ ...func(*sfn.Options)) (*sfn.DescribeExecutionOutput, error) {
	arn := aws.ToString(in.ExecutionArn)
	d, ok := e.known[arn[strings.LastIndexByte(arn, ':')+1:]]
	if !ok {
		return nil, &types.ExecutionDoesNotExist{}
	}
	return d, nil
}

func (e *history) RedriveExecution(_ context.Context, in *sfn.RedriveExecutionInput, _ ...func(*sfn.Options)) (*sfn.RedriveExecutionOutput, error) {
	e.calls = append(e.calls, "redrive "+aws.ToString(in.ExecutionArn))
	return &sfn.RedriveExecutionOutput{}, nil
}

func (e *history) StartExecution(_ context.Context, in *sfn.StartExecutionInput, _ ...func(*sfn.Options)) (*sfn.StartExecutionOutput, error) {
	name := aws.ToString(in.Name)
	if _, ok := e.known[name]; ok || strings.Contains(name, "taken") && strings.HasSuffix(name, "-1") {
		return nil, &types.ExecutionAlreadyExists{}
	}
	e.calls = append(e.calls, "start "+name+" "+aws.ToString(in.Input))
	return &sfn.StartExecutionOutput{ExecutionArn: aws.String("arn:" + name)}, nil
}

// TestResume: redrive what AWS can, else a new execution under a free name.
func TestResume(t *testing.T) {
	execution := func(name string, redrive types.ExecutionRedriveStatus, input string) *sfn.DescribeExecutionOutput {
		return &sfn.DescribeExecutionOutput{
			Name: &name, Status: types.ExecutionStatusFailed, RedriveStatus: redrive, Input: &input,
		}
	}
	const machine, prefix = "arn:aws:states:r:1:stateMachine:m", "arn:aws:states:r:1:execution:m:"
	redrivable, over := types.ExecutionRedriveStatusRedrivable, types.ExecutionRedriveStatusNotRedrivable
	for name, c := range map[string]struct {
		rotation, last string
		known          []*sfn.DescribeExecutionOutput
		want           string
		redriven       bool
	}{
		"redrivable": {
			"q", prefix + "q",
			[]*sfn.DescribeExecutionOutput{execution("q", redrivable, "{}")},
			"redrive " + prefix + "q", true,
		},
		"too old": {
			"q", prefix + "q",
			[]*sfn.DescribeExecutionOutput{execution("q", over, "{}")},
			`start q-resume-1 {"resume":"q"}`, false,
		},
		"by hand": {"q", "", nil, `start q-resume-1 {"resume":"q"}`, false},
		"forgotten by AWS": {
			"q", prefix + "q", nil, `start q-resume-1 {"resume":"q"}`, false,
		},
		"the resumed one halted too": {
			"q", prefix + "q", []*sfn.DescribeExecutionOutput{
				execution("q", over, "{}"), execution("q-resume-1", over, `{"resume":"q"}`), execution("q-resume-2", redrivable, `{"resume":"q"}`),
			}, "redrive " + prefix + "q-resume-2", true,
		},
		"a name of somebody else": {
			"q", "", []*sfn.DescribeExecutionOutput{execution("q-resume-1", redrivable, "{}")}, `start q-resume-2 {"resume":"q"}`, false,
		},
		"taken meanwhile": {"taken", "", nil, `start taken-resume-2 {"resume":"taken"}`, false},
		"long name": {
			strings.Repeat("x", 80), "", nil, "start " + strings.Repeat("x", 71) + `-resume-1 {"resume":"` + strings.Repeat("x", 80) + `"}`, false,
		},
	} {
		api := &history{known: map[string]*sfn.DescribeExecutionOutput{}}
		for _, d := range c.known {
			api.known[aws.ToString(d.Name)] = d
		}
		m := &Machine{API: api, ARN: machine}
		e, redriven, err := m.Resume(t.Context(), c.rotation, c.last)
		if err != nil || redriven != c.redriven || strings.Join(api.calls, "; ") != c.want {
			t.Errorf("%s: %q, redriven %t, %v; want %q", name, api.calls, redriven, err, c.want)
		}
		if e.RotationID != c.rotation || e.Status != types.ExecutionStatusRunning {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// TestFindLast: what a rotation has halted on is said by its last execution, not by the first.
func TestFindLast(t *testing.T) {
	const machine, prefix = "arn:aws:states:r:1:stateMachine:m", "arn:aws:states:r:1:execution:m:"
	execution := func(name, input string) *sfn.DescribeExecutionOutput {
		return &sfn.DescribeExecutionOutput{Name: &name, Status: types.ExecutionStatusFailed, Input: &input}
	}
	resumes := `{"resume":"q"}`
	for name, c := range map[string]struct {
		first string
		known []*sfn.DescribeExecutionOutput
		want  string // "": there is none
	}{
		"the first":         {prefix + "q", []*sfn.DescribeExecutionOutput{execution("q", "{}")}, "q"},
		"resumed twice":     {prefix + "q", []*sfn.DescribeExecutionOutput{execution("q", "{}"), execution("q-resume-1", resumes), execution("q-resume-2", resumes)}, "q-resume-2"},
		"begun by hand":     {"", []*sfn.DescribeExecutionOutput{execution("q-resume-1", resumes)}, "q-resume-1"},
		"somebody else's":   {prefix + "q", []*sfn.DescribeExecutionOutput{execution("q", "{}"), execution("q-resume-1", "{}")}, "q"},
		"forgotten by AWS":  {prefix + "q", nil, ""},
		"by hand, not done": {"", nil, ""},
	} {
		h := &history{known: map[string]*sfn.DescribeExecutionOutput{}}
		for _, e := range c.known {
			h.known[*e.Name] = e
		}
		got, err := (&Machine{API: h, ARN: machine}).FindLast(t.Context(), "q", c.first)
		if got.Name != c.want || (c.want == "") != errors.Is(err, ErrNoExecution) || c.want != "" && err != nil {
			t.Errorf("%s: %q, %v", name, got.Name, err)
		}
	}
}
