package localaws

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// TestTranslationOfNoParameter: what the translator makes of template.yaml is the same
// whatever the parameters are, so that one translation serves every stack.
func TestTranslationOfNoParameter(t *testing.T) {
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	python, path := filepath.Join(root, ".venv", "bin", "python"), filepath.Join(root, "template.yaml")
	if _, err := os.Stat(python); err != nil && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip("the SAM translator is not installed: make venv")
	}
	of := func(parameters map[string]string) []byte {
		given, err := json.Marshal(parameters)
		if err != nil {
			t.Fatal(err)
		}
		out, err := translate(t.Context(), python, path, "bucket", "eu-central-1", string(given))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	without := of(map[string]string{})
	var of1 template
	if err := json.Unmarshal(without, &of1); err != nil || len(of1.Body.Parameters) < 20 {
		t.Fatalf("%d parameters, %v", len(of1.Body.Parameters), err)
	}
	given := map[string]string{}
	for name := range of1.Body.Parameters {
		given[name] = "another " + name
	}
	if !bytes.Equal(of(given), without) {
		t.Error("the translator has put values of parameters into the template")
	}
}

// TestMade: a repeated creation finds what the first try made.
func TestMade(t *testing.T) {
	for code, there := range map[string]bool{
		"AlreadyExistsException": true, "BucketAlreadyOwnedByYou": true, "ConflictException": true, "ResourceInUseException": true,
		"StateMachineAlreadyExists": true, "AccessDeniedException": false,
	} {
		err := fmt.Errorf("create: %w", &smithy.GenericAPIError{Code: code})
		if got := made(err); (got == nil) != there {
			t.Errorf("%s: %v", code, got)
		}
	}
	if err := errors.New("no answer"); made(err) == nil || made(nil) != nil {
		t.Error("any error counts as made, or none as an error")
	}
}
