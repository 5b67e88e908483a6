// Command matter is the operator's tool for KEK rotations.
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

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

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
	var code console.Exit
	switch {
	case err == nil:
		return console.ExitDone
	case errors.As(err, &code):
		return int(code)
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "matter: interrupted; nothing is lost: repeat the command")
		return console.ExitRunning
	}
	output := cmd.Flag("output")
	n := exitCode(err)
	sayError(stderr, output != nil && output.Value.String() == "json", err, n)
	return n
}

func exitCode(err error) int {
	var usage console.UsageError
	var running stillRunning
	var open unproven
	switch {
	case errors.As(err, &open):
		return console.ExitUnproven
	case errors.As(err, &usage):
		return console.ExitUsage
	case errors.As(err, &running):
		return console.ExitRunning
	}
	switch lambdastep.Kind(err) {
	case rotation.InvalidInput, rotation.Misconfigured:
		return console.ExitUsage
	case rotation.OrphansFound:
		return console.ExitOrphans
	default:
		return console.ExitFailed
	}
}

func newRoot() *cobra.Command {
	root := console.Root(&cobra.Command{
		Use:   "matter",
		Short: "Rotate the key-encryption key of live, envelope-encrypted data",
		Long: `Rotates the KEK of live, envelope-encrypted data on AWS. The commands of matter ops
run the same steps as the state machine, with the same environment as its
functions: MATTER_* and AWS_* variables.

Exit codes: 0 done or green, 1 failed or tampered with, 2 usage, 3 rolled back,
4 orphans found, 5 unproven, 6 still running.`,
		Example: "  matter ops kms-status\n  matter ops kms-rotate --watch",
	})
	ops := console.Group(&cobra.Command{
		Use: "ops", Short: "Operate rotations, with the environment's MATTER_* and AWS_* variables",
		Example: "  matter ops kms-status\n  matter ops kms-mint-kek --label \"Q2-2026-rotation\"",
	})
	ops.AddCommand(newEnv(), newReinstall(), newGenesis(), newSource(), newCensus(), newAdopt(), newRegisterKEK(), newStatus(), newPlan(), newPreflight(), newMint(), newDualUnwrap(), newSwitch(),
		newDrain(), newRewrap(), newRetire(), newVerify(), newRotate(), newResume(), newRestore(), newReport(), newAudit(),
		newDrill(), newApprove(), newReject(), newAnnounce(), newDoctor(), newLease())
	root.AddCommand(ops, newLocal(), newMan())
	return root
}
