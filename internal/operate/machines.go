package operate

import (
	"context"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/sfn"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/executions"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Machine returns the state machine that starts and resumes rotations of a mode.
func (d *Deployment) Machine(mode kek.Mode) (*executions.Machine, error) {
	arn := d.Config.StateMachines[mode]
	if !strings.Contains(arn, ":stateMachine:") {
		name := app.MachineVariables[mode]
		return nil, &journal.Error{
			Kind: journal.Misconfigured, Field: name, Msg: fmt.Sprintf("%q is not the ARN of a state machine", arn),
			Next: journal.Next{Say: fmt.Sprintf(`eval "$(matter ops env --stack %s)" exports %s`, d.Config.Stack, name)},
		}
	}
	return &executions.Machine{API: sfn.NewFromConfig(d.AWS), ARN: arn}, nil
}

// Machines returns the state machines that the environment names, that of normal
// rotations first.
func (d *Deployment) Machines() ([]*executions.Machine, error) {
	var all []*executions.Machine
	for _, mode := range []kek.Mode{kek.Normal, kek.Emergency} {
		if d.Config.StateMachines[mode] == "" {
			continue
		}
		m, err := d.Machine(mode)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// ListRunning returns the executions of all state machines that run now, with the rotation
// each works on.
func (d *Deployment) ListRunning(ctx context.Context) ([]executions.Execution, error) {
	machines, err := d.Machines()
	var all []executions.Execution
	for _, m := range machines {
		running, err := m.ListRunning(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, running...)
	}
	return all, err
}
