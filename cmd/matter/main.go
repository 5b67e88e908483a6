// Command matter is the operator's tool for KEK rotations, and the local AWS that
// makes all of it run on a laptop.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The exit codes.
const (
	exitDone       = 0 // done, green
	exitFailed     = 1 // failed, or tampered with
	exitUsage      = 2
	exitRolledBack = 3
	exitOrphans    = 4
	exitUnproven   = 5
	exitRunning    = 6 // still running
)

// exit is an outcome that is said already and only sets the exit code.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a mistake on the command line.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exit
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(root.ErrOrStderr(), "matter:", err)
	return exitCode(err)
}

func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	switch lambdastep.Kind(err) {
	case rotation.InvalidInput, rotation.Misconfigured:
		return exitUsage
	case rotation.OrphansFound:
		return exitOrphans
	default:
		return exitFailed
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "matter",
		Short:         "Rotate the key-encryption key of live, envelope-encrypted data",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	ops := &cobra.Command{Use: "ops", Short: "Operate rotations, with the environment's MATTER_* and AWS_* variables"}
	ops.AddCommand(newGenesis(), newStatus())
	local := &cobra.Command{Use: "local", Short: "The local AWS: no account, no container"}
	local.AddCommand(newLocalUp(), newLocalDown(), newLocalDemo())
	root.AddCommand(ops, local)
	return root
}
