// Command matter is the operator's tool for KEK rotations, and the local AWS that
// makes all of it run on a laptop.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var code exit
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &code):
		return int(code)
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "matter: interrupted; nothing is lost: repeat the command")
		return exitRunning
	}
	output := cmd.Flag("output")
	n := exitCode(err)
	sayError(stderr, output != nil && output.Value.String() == "json", err, n)
	return n
}

func exitCode(err error) int {
	var usage usageError
	var running stillRunning
	var open unproven
	switch {
	case errors.As(err, &open):
		return exitUnproven
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &running):
		return exitRunning
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
	root := group(&cobra.Command{
		Use:   "matter",
		Short: "Rotate the key-encryption key of live, envelope-encrypted data",
		Long: `Rotates the KEK of live, envelope-encrypted data on AWS. The commands of matter ops
run the same steps as the state machine, with the same environment as its
functions: MATTER_* and AWS_* variables.

Exit codes: 0 done or green, 1 failed or tampered with, 2 usage, 3 rolled back,
4 orphans found, 5 unproven, 6 still running.`,
		Example:       "  matter ops kms-status\n  matter ops kms-rotate --watch\n  matter local up --detach",
		SilenceUsage:  true,
		SilenceErrors: true,
	})
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	ops := group(&cobra.Command{
		Use: "ops", Short: "Operate rotations, with the environment's MATTER_* and AWS_* variables",
		Example: "  matter ops kms-status\n  matter ops kms-mint-kek --label \"Q2-2026-rotation\"",
	})
	ops.AddCommand(newEnv(), newReinstall(), newGenesis(), newSource(), newCensus(), newAdopt(), newRegisterKEK(), newStatus(), newPlan(), newPreflight(), newMint(), newDualUnwrap(), newSwitch(),
		newDrain(), newRewrap(), newRetire(), newVerify(), newRotate(), newResume(), newRestore(), newReport(), newAudit(),
		newDrill(), newApprove(), newReject(), newAnnounce(), newDoctor(), newLease())
	local := group(&cobra.Command{
		Use: "local", Short: "The local AWS: no account, no container",
		Example: "  matter local up --detach && . .local/env && matter ops kms-status",
	})
	local.AddCommand(newLocalUp(), newLocalDown(), newLocalDemo())
	root.AddCommand(ops, local, newLoad(), newMan())
	return root
}
