package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestAWSFailures: a failure of AWS, or of the way to it, is one sentence with what to do. An
// error that says what to do keeps its own words.
func TestAWSFailures(t *testing.T) {
	answer := func(code, message string) error {
		return remote.WrapError("kms Decrypt", fmt.Errorf("operation error KMS: Decrypt: %w", &smithy.GenericAPIError{Code: code, Message: message}))
	}
	own := &journal.Error{Kind: journal.Refused, Msg: "no", Err: answer("ExpiredToken", "m"), Next: journal.Next{Say: "something else"}}
	for _, c := range []struct {
		err  error
		want string
	}{
		{answer("ExpiredTokenException", "it is over"), `Transient: the credentials of this shell have expired: api error ExpiredTokenException: it is over (next: sign in again, for example: aws sso login; then repeat the command)`},
		{answer("UnrecognizedClientException", "bad token"), `Transient: AWS does not accept the credentials of this shell: api error UnrecognizedClientException: bad token (next: aws sts get-caller-identity; check AWS_PROFILE and the Region, and the clock of this machine)`},
		{answer("AccessDeniedException", "x is not authorized to perform kms:Decrypt"), `AccessDenied: AWS denies this call to the identity that runs the command: api error AccessDeniedException: x is not authorized to perform kms:Decrypt (next: aws sts get-caller-identity shows who that is; ask for the permission that the message names, then repeat the command)`},
		{fmt.Errorf("read the pointer: %w", &smithyhttp.RequestSendError{Err: errors.New("no route")}), `Transient: AWS does not answer: no route (next: check the network, the proxy and the Region (AWS_REGION), then repeat the command; nothing is lost)`},
		{&journal.Error{Kind: journal.ControlTableMissing, Msg: "m", Err: answer("AccessDenied", "d")}, `AccessDenied: AWS denies this call to the identity that runs the command: api error AccessDenied: d (next: aws sts get-caller-identity shows who that is; ask for the permission that the message names, then repeat the command)`},
		{own, advice.Explain(own)},
		{answer("ValidationException", "m"), advice.Explain(answer("ValidationException", "m"))},
		{context.Canceled, "context canceled"},
	} {
		if got := advice.Explain(explainAWS(c.err)); got != c.want {
			t.Errorf("%v:\n got %s\nwant %s", c.err, got, c.want)
		}
	}
}

// TestUseEnv: no setting of the shell's deployment stays beside those of the one that --stack names.
func TestUseEnv(t *testing.T) {
	t.Setenv("MATTER_WINDOW", "any")
	t.Setenv("MATTER_STACK", "old")
	if err := useEnv(map[string]string{"MATTER_STACK": "new"}); err != nil {
		t.Fatal(err)
	}
	if window, set := os.LookupEnv("MATTER_WINDOW"); set || os.Getenv("MATTER_STACK") != "new" {
		t.Errorf("window %q, stack %q", window, os.Getenv("MATTER_STACK"))
	}
}
