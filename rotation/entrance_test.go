package rotation_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestEntrances: what a state machine's entrance is not for is refused with nothing changed,
// and the next step names the other machine; the rest starts.
func TestEntrances(t *testing.T) {
	normal := rotation.ExecutionInput{}
	drill := rotation.ExecutionInput{Drill: gates.DrillFailure}
	urgent := rotation.ExecutionInput{Mode: "emergency", Reason: "the key was seen in a log"}
	for _, tc := range []struct {
		at   rotation.Entrance
		in   rotation.ExecutionInput
		kind journal.Kind // "" if it starts
		next journal.Action
	}{
		{rotation.EntranceNormal, normal, "", ""},
		{rotation.EntranceNormal, drill, "", ""},
		{rotation.EntranceNormal, urgent, journal.InvalidInput, journal.StartEmergency},
		{rotation.EntranceEmergency, urgent, "", ""},
		{rotation.EntranceEmergency, normal, journal.InvalidInput, journal.StartNormal},
		{rotation.EntranceEmergency, drill, journal.InvalidInput, journal.StartNormal},
		{rotation.EntranceAny, normal, "", ""},
		{rotation.EntranceAny, urgent, "", ""},
		{"", urgent, "", ""},
		{"${Entrance}", urgent, journal.Misconfigured, journal.DeployOneVersion}, // a definition that nobody has filled in
		{"${Entrance}", normal, journal.Misconfigured, journal.DeployOneVersion},
	} {
		s := newSite(t)
		before := s.snapshot()
		_, err := s.Preflight(t.Context(), rotation.PreflightInput{ExecutionARN: "arn:" + spring, ExecutionName: spring, Input: tc.in, Entrance: tc.at})
		var typed *journal.Error
		if tc.kind == "" {
			if err != nil {
				t.Errorf("entrance %q, %+v: %v", tc.at, tc.in, err)
			}
			continue
		}
		if !errors.As(err, &typed) || typed.Kind != tc.kind || typed.Next.Do != tc.next {
			t.Errorf("entrance %q, %+v: %v", tc.at, tc.in, err)
		}
		if d := s.diff(before); d != "" {
			t.Errorf("entrance %q, %+v: the refusal has changed something (-was +is):\n%s", tc.at, tc.in, d)
		}
	}
}

// TestEntranceOfResume: a rotation is resumed where it could have been started, by the mode
// that its record has.
func TestEntranceOfResume(t *testing.T) {
	for _, tc := range []struct {
		mode       kek.Mode
		own, other rotation.Entrance
	}{
		{kek.Normal, rotation.EntranceNormal, rotation.EntranceEmergency},
		{kek.Emergency, rotation.EntranceEmergency, rotation.EntranceNormal},
	} {
		s := newSite(t)
		in := rotation.ExecutionInput{Mode: string(tc.mode), Reason: "the key was seen in a log"}
		if _, err := s.start(spring, in); err != nil {
			t.Fatal(err)
		}
		resume := func(at rotation.Entrance) error {
			_, err := s.Preflight(t.Context(), rotation.PreflightInput{ExecutionName: "resumed", Input: rotation.ExecutionInput{Resume: spring}, Entrance: at})
			return err
		}
		var typed *journal.Error
		if err := resume(tc.other); !errors.As(err, &typed) || typed.Kind != journal.InvalidInput || typed.Field != "mode" {
			t.Errorf("%s at the other entrance: %v", tc.mode, err)
		}
		if err := resume(tc.own); err != nil {
			t.Errorf("%s: %v", tc.mode, err)
		}
	}
}

// TestEntranceIsNotTheInputs: nothing in an execution's input reaches the entrance.
func TestEntranceIsNotTheInputs(t *testing.T) {
	payload := func(input string) json.RawMessage {
		return json.RawMessage(`{"execution_arn":"a","execution_name":"n","entrance":"normal","input":` + input + `}`)
	}
	for _, input := range []string{
		`{"mode":"emergency","reason":"r","entrance":"any"}`,
		`{"mode":"emergency","reason":"r","Entrance":"emergency"}`,
	} {
		if in, err := lambdastep.DecodePayload[rotation.PreflightInput](payload(input)); err == nil {
			t.Errorf("%s: %+v", input, in)
		}
	}
}
