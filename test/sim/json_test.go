package sim

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/test/asltest"
)

// json calls a function over its payload, as Lambda does.
func (r *run) json(m *machine, state, function string, payload []byte) (out []byte, fail *asltest.Failure) {
	_, err, _ := r.invoke(m, state, func(ctx context.Context) (answer, error) {
		var err error
		switch s := r.steps; function {
		case "Preflight":
			out, err = decoded(ctx, payload, s.Preflight)
		case "Mint":
			out, err = decoded(ctx, payload, s.Mint)
		case "DualUnwrap":
			out, err = decoded(ctx, payload, s.DualUnwrap)
		case "Switch":
			out, err = decoded(ctx, payload, s.Switch)
		case "Drain":
			out, err = decoded(ctx, payload, s.Drain)
		case "Rewrap":
			out, err = decoded(ctx, payload, s.Rewrap)
		case "Retire":
			out, err = decoded(ctx, payload, s.Retire)
		case "Verify":
			out, err = decoded(ctx, payload, s.Verify)
		default:
			err = errors.New("unknown function " + function)
		}
		return answer{}, err
	})
	if err != nil {
		return nil, failure(err)
	}
	return out, nil
}

func decoded[In, Out any](ctx context.Context, payload []byte, step func(context.Context, In) (Out, error)) ([]byte, error) {
	in, err := lambdastep.DecodePayload[In](payload)
	if err != nil {
		return nil, err
	}
	out, err := step(ctx, in)
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}
