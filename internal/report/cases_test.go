package report

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// hostile is what a person or a service may write that is not meant well.
const hostile = `"><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)> {{.}} ${x}`

// fixtures are rotations with every outcome.
var fixtures = map[string]func(*testing.T) *site{
	"completed": completed, "rolledback": rolledBack, "halted": halted, "running": running, "emergency": emergency, "unproven": unproven,
	"historic": historic,
}

// completed is a normal rotation to the end, with writers that drain.
func completed(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.start(rotation.ExecutionInput{Label: spring})
	s.upTo(kek.Tested)
	s.lease("web-1", 12, 40*time.Second)
	s.lease("web-2", 5, 70*time.Second)
	s.lease("batch", 31, 25*time.Second)
	_, err := step(s, "Switch", 400*time.Millisecond, s.input(), s.Switch)
	must(t, err)
	must(t, s.drain())
	must(t, s.rewrap())
	_, err = step(s, "Retire", 41*time.Second, rotation.RetireInput{RotationID: spring}, s.Retire)
	must(t, err)
	s.anchor()
	must(t, s.verify())
	s.states.stop(s.at, types.ExecutionStatusSucceeded, "", "")
	s.anchor()
	s.pass(2 * time.Hour)
	return s
}

// rolledBack is a rotation that met a known cipher with a flipped bit.
func rolledBack(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	v, err := s.world.Store().Load(t.Context(), "")
	must(t, err)
	bad := s.sealed(s.corpus, "known-2.json", v.Pointer.KEKID)
	bad.Ciphertext[len(bad.Ciphertext)-1] ^= 1
	s.corpus.Plant("known-2.json", bad)
	s.start(rotation.ExecutionInput{Label: spring})
	s.upTo(kek.Minted)
	cause := s.test()
	if cause == nil {
		t.Fatal("dual unwrap passed")
	}
	_, err = step(s, "PreSwitchFailure", time.Second, rotation.RetireInput{
		RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "CorpusCorrupted", Cause: cause.Error(),
	}, s.Retire)
	must(t, err)
	s.states.stop(s.at, types.ExecutionStatusFailed, "CorpusCorrupted", cause.Error())
	s.anchor()
	s.pass(time.Hour)
	return s
}

// halted is a rotation that met rows it cannot move.
func halted(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.start(rotation.ExecutionInput{Label: spring})
	s.upTo(kek.Drained)
	s.orders.Plant("order-"+hostile, memstore.Record{KEK: "kek-0001", Context: map[string]string{"id": "x"}, Defect: "it has no wrapped DEK"})
	cause := s.rewrap()
	if cause == nil {
		t.Fatal("the rewrap passed")
	}
	var typed *journal.Error
	if !errors.As(cause, &typed) {
		t.Fatal(cause)
	}
	h, err := json.Marshal(journal.Halt{Rotation: spring, Kind: typed.Kind, Cause: cause.Error(), Next: "fix the cause"})
	if err != nil {
		t.Fatal(err)
	}
	function, err := json.Marshal(map[string]string{"errorMessage": string(h), "errorType": "Halted"})
	if err != nil {
		t.Fatal(err)
	}
	s.states.stop(s.at, types.ExecutionStatusFailed, "Halted", string(function))
	s.anchor()
	s.pass(time.Minute)
	return s
}

// running is a rotation under way, with a segment still at work.
func running(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.start(rotation.ExecutionInput{Label: spring})
	s.upTo(kek.Drained)
	v := s.states.branch(s.at, "RewrapSegment", `{"source":"orders","segment":0}`)
	_, err := stepIn(s, v, 9*time.Second, rotation.RewrapInput{RotationID: spring, Source: "orders"}, s.Rewrap)
	must(t, err)
	s.states.branch(s.at, "RewrapSegment", `{"source":"orders","segment":1}`)
	s.anchor()
	s.pass(4 * time.Second)
	return s
}

// emergency is one that minted twice, from the command line, with a reason that is
// an attack on the report.
func emergency(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	_, err := s.Preflight(t.Context(), rotation.PreflightInput{
		ExecutionName: spring, Input: rotation.ExecutionInput{Mode: "emergency", Reason: "key material seen in a paste " + hostile},
	})
	must(t, err)
	s.pass(2 * time.Second)
	_, err = s.Mint(t.Context(), s.input())
	must(t, err)
	s.pass(9 * time.Second)
	_, err = s.Retire(t.Context(), rotation.RetireInput{
		RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "CanaryFailed", Cause: "a wrong encryption context was accepted",
	})
	must(t, err)
	for _, run := range []func(context.Context, rotation.StepInput) error{
		func(ctx context.Context, in rotation.StepInput) error { _, err := s.Mint(ctx, in); return err },
		func(ctx context.Context, in rotation.StepInput) error {
			_, err := s.Rewrap(ctx, rotation.RewrapInput{RotationID: in.RotationID, Rehearse: true})
			return err
		},
		func(ctx context.Context, in rotation.StepInput) error { _, err := s.DualUnwrap(ctx, in); return err },
		func(ctx context.Context, in rotation.StepInput) error { _, err := s.Switch(ctx, in); return err },
		func(ctx context.Context, in rotation.StepInput) error { _, err := s.Drain(ctx, in); return err },
		func(context.Context, rotation.StepInput) error { return s.rewrap() },
		func(ctx context.Context, in rotation.StepInput) error {
			_, err := s.Retire(ctx, rotation.RetireInput{RotationID: in.RotationID})
			s.anchor()
			return err
		},
		func(ctx context.Context, in rotation.StepInput) error {
			_, err := s.Verify(ctx, rotation.VerifyInput{RotationID: in.RotationID})
			return err
		},
	} {
		s.pass(5 * time.Second)
		must(t, run(t.Context(), s.input()))
	}
	s.anchor()
	s.pass(time.Minute)
	return s
}

// unproven is a completed rotation of a deployment without a transparency log.
func unproven(t *testing.T) *site {
	t.Helper()
	s := completed(t)
	s.Anchor = nil
	for n := int64(1); n < 9; n++ {
		s.world.Vault().Tamper(audit.AnchorKey(stack, n), nil)
	}
	return s
}

// historic is a rotation that moves rows of a table which joined since the rotation
// before, under a KEK of the days before the deployment.
func historic(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	k, err := s.Keys.Admin.Create(t.Context(), "", 1, "before", keyring.Key{})
	must(t, err)
	must(t, s.RegisterKEK(t.Context(), k.ID, "before"))
	letters := s.world.NewTable("letters")
	for _, id := range []string{"one", "two", "three"} {
		letters.Plant(id, s.sealed(letters, id, k.ID))
	}
	_, err = s.AddSource(t.Context(), letters.Source())
	must(t, err)
	s.tables = append(s.tables, letters)
	s.start(rotation.ExecutionInput{Label: spring})
	s.upTo(kek.Completed)
	s.states.stop(s.at, types.ExecutionStatusSucceeded, "", "")
	s.pass(time.Hour)
	return s
}
