package rotation_test

import (
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestBlankInput checks everything that a console sends for nothing.
func TestBlankInput(t *testing.T) {
	for _, text := range []string{
		`null`, `""`, `"  "`, `{}`, ` { } `, `{"mode":"","reason":" ","label":null}`, `{"Comment":"Insert your JSON here"}`,
	} {
		in, err := lambdastep.DecodePayload[rotation.PreflightInput]([]byte(`{"execution_arn":"a","execution_name":"n","input":` + text + `}`))
		if err != nil || in.Input != (rotation.ExecutionInput{}) || in.ExecutionName != "n" {
			t.Errorf("%s: %+v, %v", text, in, err)
		}
	}
}

// TestTypedInput checks that spaces do not count.
func TestTypedInput(t *testing.T) {
	in, err := lambdastep.DecodePayload[rotation.PreflightInput]([]byte(
		`{"execution_arn":"a","execution_name":"n","input":{"mode":" emergency\n","reason":"\tthe key leaked ","requested_by":" alice "}}`))
	want := rotation.ExecutionInput{Mode: "emergency", Reason: "the key leaked", RequestedBy: "alice"}
	if err != nil || in.Input != want {
		t.Errorf("%+v, %v", in.Input, err)
	}
}

// TestRefusedInput checks that what cannot be meant is refused, and says what can.
func TestRefusedInput(t *testing.T) {
	for text, want := range map[string]string{
		`"emergency"`:            `the text "emergency"; send an object`,
		`[]`:                     "not an object",
		`7`:                      "not an object",
		`{"mod":"emergency"}`:    `unknown field "mod"; the fields are mode, label`,
		`{"mode":true}`:          "each a text",
		`{"mode":["emergency"]}`: "each a text",
	} {
		_, err := lambdastep.DecodePayload[rotation.PreflightInput]([]byte(`{"execution_arn":"a","execution_name":"n","input":` + text + `}`))
		wantKind(t, err, journal.InvalidInput)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
