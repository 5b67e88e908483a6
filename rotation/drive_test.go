package rotation_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/asltest"
)

// definition is the shipped state machine.
var definition = sync.OnceValues(func() (*asltest.Definition, error) {
	text, err := os.ReadFile("../statemachine.asl.json")
	if err != nil {
		return nil, err
	}
	return asltest.Parse(asltest.Substitute(text))
})

// call is one invocation of a function.
type call struct {
	state, function string
	payload         []byte
}

// driver runs rotations as the state machine does, over the JSON payloads and
// error names of the Lambda functions.
type driver struct {
	*site
	machine *asltest.Machine
	calls   []call // every invocation, in order
	before  func(call)
	after   func(call, []byte, error)

	at   string      // the state whose invocation is under way; "" between two
	dead atomic.Bool // its process has died: nothing of it takes effect any more
}

func newDriver(s *site) *driver {
	s.t.Helper()
	d, err := definition()
	if err != nil {
		s.t.Fatal(err)
	}
	r := &driver{site: s}
	r.machine = &asltest.Machine{
		Definition: d, MaxSteps: 500, Invoke: r.invoke,
		Wait: func(seconds int) { s.clock.pass(time.Duration(seconds) * time.Second) },
	}
	return r
}

func (d *driver) invoke(state, function string, payload []byte) ([]byte, *asltest.Failure) {
	c := call{state, function, payload}
	d.calls = append(d.calls, c)
	if d.before != nil {
		d.before(c)
	}
	d.at = state
	out, err := d.run(c)
	d.at = ""
	if d.dead.Swap(false) {
		return nil, &asltest.Failure{Name: "Runtime.ExitError", Cause: "the process died"}
	}
	if d.after != nil {
		d.after(c, out, err)
	}
	if err != nil {
		return nil, &asltest.Failure{Name: string(lambdastep.ErrorKind(err)), Cause: advice.Explain(err)}
	}
	return out, nil
}

// run calls the step behind a function with the payload that was sent.
func (d *driver) run(c call) ([]byte, error) {
	switch s := d.Steps; c.function {
	case "Preflight":
		return decoded(strings.ToLower(c.function), c.payload, s.Preflight)
	case "Mint":
		return decoded(strings.ToLower(c.function), c.payload, s.Mint)
	case "DualUnwrap":
		return decoded(strings.ToLower(c.function), c.payload, s.DualUnwrap)
	case "Approve":
		return decoded(strings.ToLower(c.function), c.payload, s.Gates.AskApproval)
	case "Switch":
		return decoded(strings.ToLower(c.function), c.payload, s.Switch)
	case "Drain":
		return decoded(strings.ToLower(c.function), c.payload, s.Drain)
	case "Rewrap":
		return decoded(strings.ToLower(c.function), c.payload, s.Rewrap)
	case "Retire":
		return decoded(strings.ToLower(c.function), c.payload, s.Retire)
	case "Anchor":
		return decoded(strings.ToLower(c.function), c.payload, s.Anchor.AnchorChain)
	case "Verify":
		return decoded(strings.ToLower(c.function), c.payload, s.Verify)
	case "Notify":
		return decoded(strings.ToLower(c.function), c.payload, s.Notify)
	default:
		return nil, errors.New("unknown function " + c.function)
	}
}

func decoded[In, Out any](caller string, payload []byte, step func(context.Context, In) (Out, error)) ([]byte, error) {
	in, err := lambdastep.DecodePayload[In](payload)
	if err != nil {
		return nil, err
	}
	out, err := step(as(caller), in)
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// finish starts an execution and redrives it as often as it halts, up to a bound.
func (d *driver) finish(name string, in rotation.ExecutionInput) *asltest.Execution {
	e := d.machine.Start(name, in)
	for range 3 {
		if e.Status == "FAILED" && slices.Contains(asltest.HaltTasks, e.Final) {
			e.Redrive()
		}
	}
	return e
}

// complete runs a rotation that must succeed.
func (d *driver) complete(name string, in rotation.ExecutionInput) *asltest.Execution {
	d.t.Helper()
	e := d.machine.Start(name, in)
	if e.Status != "SUCCEEDED" {
		d.t.Fatalf("rotation %s ended in %s: %v", name, e.Final, e.Failure)
	}
	d.phase(name, kek.Completed)
	return e
}

var emergency = rotation.ExecutionInput{Mode: "emergency", Reason: "the key was seen in a log"}

// input is a step's input for a rotation.
func input(id string) rotation.StepInput { return rotation.StepInput{RotationID: id} }

// verifyInput is that of verify.
func verifyInput(id string) rotation.VerifyInput { return rotation.VerifyInput{RotationID: id} }

// preflightInput is what the state machine sends to preflight.
func preflightInput(id string, in rotation.ExecutionInput) rotation.PreflightInput {
	return rotation.PreflightInput{ExecutionARN: "arn:aws:states:execution:" + id, ExecutionName: id, Input: in}
}

// advance runs the steps of a rotation by hand until it stands at the phase.
func (s *site) advance(id string, in rotation.ExecutionInput, to kek.Phase) {
	s.t.Helper()
	ctx := s.t.Context()
	steps := []struct {
		phase kek.Phase
		run   func() error
	}{
		{kek.Started, func() error { _, err := s.Preflight(ctx, preflightInput(id, in)); return err }},
		{kek.Minted, func() error { return errors.Join(s.census(id), s.mint(id)) }},
		{kek.Tested, func() error { return errors.Join(s.rehearse(id), s.test(id)) }},
		{kek.Switched, func() error { _, err := s.Switch(ctx, input(id)); return err }},
		{kek.Drained, func() error { _, err := s.Drain(ctx, input(id)); return err }},
		{kek.Rewrapped, func() error { return s.rewrapAll(id) }},
		{kek.KEKRetired, func() error { return s.retire(id) }},
		{kek.Completed, func() error { return s.verify(id) }},
	}
	for _, step := range steps {
		v, err := s.store.Load(ctx, id)
		if err != nil {
			s.t.Fatal(err)
		}
		if v.Rotation == nil || !v.Rotation.Phase.Reached(step.phase) {
			if err := step.run(); err != nil {
				s.t.Fatalf("to %s: %v", step.phase, err)
			}
			s.phase(id, step.phase)
		}
		if step.phase == to {
			return
		}
	}
}

func (s *site) census(id string) error {
	return untilDone(func() (bool, error) {
		out, err := s.Verify(s.t.Context(), rotation.VerifyInput{RotationID: id, Census: true})
		return out.Done, err
	})
}

func (s *site) mint(id string) error {
	_, err := s.Mint(s.t.Context(), input(id))
	return err
}

func (s *site) rehearse(id string) error {
	_, err := s.Rewrap(s.t.Context(), rotation.RewrapInput{RotationID: id, Rehearse: true})
	return err
}

func (s *site) test(id string) error {
	_, err := s.DualUnwrap(s.t.Context(), input(id))
	return err
}

func (s *site) retire(id string) error {
	return untilDone(func() (bool, error) {
		out, err := s.Retire(s.t.Context(), rotation.RetireInput{RotationID: id})
		return out.Done, err
	})
}

func (s *site) verify(id string) error {
	return untilDone(func() (bool, error) {
		out, err := s.Verify(s.t.Context(), verifyInput(id))
		return out.Done, err
	})
}

// untilDone calls a step as often as the state machine does: until it is done.
func untilDone(call func() (bool, error)) error {
	for range 3 {
		if done, err := call(); err != nil || done {
			return err
		}
	}
	return errors.New("it is not done")
}

// rewrapAll rewraps every segment and records that it is done.
func (s *site) rewrapAll(id string) error {
	for _, def := range s.record(id).Sources {
		src := must(s.OpenSource(def))
		for i := range src.Segments(s.Config.Segments) {
			if _, err := s.Rewrap(s.t.Context(), rotation.RewrapInput{RotationID: id, Source: src.Name(), Segment: i}); err != nil {
				return err
			}
		}
	}
	_, err := s.Rewrap(s.t.Context(), rotation.RewrapInput{RotationID: id, Complete: true})
	return err
}

// at is a site whose rotation stands at a phase, watched from the genesis on.
func at(t *testing.T, in rotation.ExecutionInput, phase kek.Phase) (*site, *watch) {
	t.Helper()
	s := newSite(t)
	w := newWatch(s)
	s.world.SetHook(w.hook)
	s.advance(spring, in, phase)
	return s, w
}

// hook checks the invariants before every effect.
func (w *watch) hook(op string, args ...any) (bool, error) {
	if !w.looks(op, args) {
		w.check("before " + op)
	}
	return true, nil
}
