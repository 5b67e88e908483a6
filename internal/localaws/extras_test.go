package localaws

import (
	"errors"
	"fmt"
	"testing"

	"github.com/aws/smithy-go"
)

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
