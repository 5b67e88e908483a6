package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// The flags of matter ops that say which deployment a command is for, and how much it tells.
const (
	flagStack   = "stack"
	flagProfile = "profile"
	flagRegion  = "region"
	flagVerbose = "verbose"
)

// addDeploymentFlags adds them to the command matter ops, for all commands below it.
func addDeploymentFlags(f *pflag.FlagSet) {
	f.String(flagStack, "", "the CloudFormation stack; its settings replace the shell's MATTER_ variables")
	f.String(flagProfile, "", "profile of the AWS configuration; default: AWS_PROFILE")
	f.String(flagRegion, "", "the Region of the stack; default: AWS_REGION, or the profile's")
	f.BoolP(flagVerbose, "v", false, "tell every call to AWS, with its time, on standard error")
}

// deployment wires the stack that the flags of a command name, or else the one that the
// environment names.
func deployment(cmd *cobra.Command) (*operate.Deployment, error) {
	if err := useAccount(cmd); err != nil {
		return nil, err
	}
	if stack := cmd.Flag(flagStack).Value.String(); stack != "" {
		env, err := readStackEnv(cmd, stack)
		if err != nil {
			return nil, err
		}
		if err := useEnv(env); err != nil {
			return nil, err
		}
	}
	var calls []func(*aws.Config)
	if cmd.Flag(flagVerbose).Value.String() == "true" {
		calls = append(calls, remote.LogCalls(cmd.ErrOrStderr(), time.Now))
	}
	return operate.Deployed(cmd.Context(), calls...)
}

// useAccount sets the account and the Region that the flags name, for this process. The SDK and
// what it runs, such as a credential process, read them from the environment.
func useAccount(cmd *cobra.Command) error {
	for flag, variables := range map[string][]string{flagProfile: {"AWS_PROFILE"}, flagRegion: {"AWS_REGION", "AWS_DEFAULT_REGION"}} {
		value := cmd.Flag(flag).Value.String()
		if value == "" {
			continue
		}
		for _, name := range variables {
			if err := os.Setenv(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// useEnv makes a deployment's settings those of this process. No setting of another deployment
// stays.
func useEnv(env map[string]string) error {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "MATTER_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	for name, value := range env {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}

// explainAWS turns a failure of AWS itself, or of the way to it, into one sentence with what to
// do. An error that already says what to do stays as it is.
func explainAWS(err error) error {
	var typed *journal.Error
	var usage console.UsageError
	if errors.As(err, &typed) && !typed.Next.IsZero() || errors.As(err, &usage) || errors.Is(err, context.Canceled) {
		return err
	}
	var send *smithyhttp.RequestSendError
	var network net.Error
	code, kind := remote.ErrorCode(err), journal.Transient
	if typed != nil {
		kind = typed.Kind
	}
	switch {
	case code == "ExpiredToken" || code == "ExpiredTokenException" || code == "RequestExpired":
		return awsFault(kind, err, "the credentials of this shell have expired", "sign in again, for example: aws sso login; then repeat the command")
	case code == "InvalidClientTokenId" || code == "UnrecognizedClientException" || code == "SignatureDoesNotMatch" || code == "InvalidSignatureException":
		return awsFault(kind, err, "AWS does not accept the credentials of this shell", "aws sts get-caller-identity; check AWS_PROFILE and the Region, and the clock of this machine")
	case errors.Is(err, source.ErrDenied):
		return awsFault(journal.AccessDenied, err, "AWS denies this call to the identity that runs the command", "aws sts get-caller-identity shows who that is; ask for the permission that the message names, then repeat the command")
	case errors.As(err, &send) || errors.As(err, &network):
		return awsFault(kind, err, "AWS does not answer", "check the network, the proxy and the Region (AWS_REGION), then repeat the command; nothing is lost")
	}
	return err
}

// awsFault is a failure of AWS: what it means, the innermost cause, and what to do.
func awsFault(kind journal.Kind, err error, what, next string) error {
	return &journal.Error{Kind: kind, Msg: fmt.Sprintf("%s: %s", what, innermost(err)), Next: journal.Next{Say: next}}
}

// innermost returns the text of the first cause, which is what the service or the system said.
func innermost(err error) string {
	for {
		next := errors.Unwrap(err)
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			if all := joined.Unwrap(); len(all) > 0 {
				next = all[len(all)-1]
			}
		}
		if next == nil {
			return err.Error()
		}
		err = next
	}
}
