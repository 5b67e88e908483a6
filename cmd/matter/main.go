// Command matter is the operator's tool for KEK rotations.
//
// It prints and does not decide. What a rotation is allowed to do is decided by packages kek
// and rotation, which the functions of the state machine use too; a command reads its flags,
// calls a step, and turns the facts that come back into sentences, JSON and an exit code. So a
// step by hand and the same step in Lambda cannot disagree.
//
// Invariants of every command: standard output has the result only, and with -o json exactly
// one value; nothing is destroyed without --confirm; a command that was interrupted may be
// repeated; a refusal names the command that comes next. A command that changes the
// deployment is refused in a shell whose settings are not the deployment's ([newStepCommand]).
//
// The files, beside one for each command:
//
//	main.go      the command line, the exit codes, the tree of commands
//	console.go   what the commands share: flags, wiring, errors as text and JSON
//	byhand.go    a rotation step by step: finds it, refuses a step out of turn, reports it
//	mint.go      the flags that say which rotation is meant
//	progress.go  progress of a pass over rows
//	complete.go  shell completion from the deployment
//	env.go       the deployment's variables, and the check of the shell against them
//	deployment.go  which deployment a command is for, and failures of AWS in one sentence
//	prices.go    the price table of kms-plan
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
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// main runs the command line until it ends or is interrupted.
func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(runCommand(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// runCommand executes one command line and returns its exit code.
func runCommand(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
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
	printError(stderr, output != nil && output.Value.String() == "json", explainAWS(err), n)
	return n
}

// exitCode is the exit code of an error. Orphans have a code of their own, so that a script
// can stop everything for them; a wrong environment is a usage error, since the command did
// nothing.
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
	switch lambdastep.ErrorKind(err) {
	case journal.InvalidInput, journal.Misconfigured:
		return console.ExitUsage
	case journal.OrphansFound:
		return console.ExitOrphans
	default:
		return console.ExitFailed
	}
}

// newRootCommand is the whole tree of commands.
func newRootCommand() *cobra.Command {
	root := console.CompleteRoot(&cobra.Command{
		Use:   "matter",
		Short: "Rotate the key-encryption key of live, envelope-encrypted data",
		Long: `Rotates the KEK of live, envelope-encrypted data on AWS. The commands of matter ops
run the same steps as the state machine, with the same environment as its
functions: MATTER_* and AWS_* variables.

Exit codes: 0 done or green, 1 failed or tampered with, 2 usage, 3 rolled back,
4 orphans found, 5 unproven, 6 still running.`,
		Example: "  matter ops kms-status\n  matter ops kms-rotate --watch",
	})
	ops := console.CompleteGroup(&cobra.Command{
		Use: "ops", Short: "Operate rotations, with the environment's MATTER_* and AWS_* variables",
		Example: "  matter ops kms-status\n  matter ops kms-mint-kek --label \"Q2-2026-rotation\"",
	})
	ops.AddCommand(newEnvCommand(), newReinstall(), newGenesisCommand(), newSourceCommand(), newCensusCommand(), newAdoptCommand(), newConvertCommand(), newRegisterKEK(), newStatusCommand(), newPlanCommand(), newPreflight(), newMintCommand(), newDualUnwrap(), newSwitchCommand(),
		newDrainCommand(), newRewrapCommand(), newRetireCommand(), newVerifyCommand(), newRotateCommand(), newResumeCommand(), newRestoreCommand(), newReportCommand(), newAuditCommand(),
		newDrillCommand(), newApproveCommand(), newRejectCommand(), newPauseCommand(), newContinueCommand(), newAnnounceCommand(), newDoctorCommand(), newLeaseCommand())
	addDeploymentFlags(ops.PersistentFlags())
	root.AddCommand(ops, newLocalCommand(), newManCommand())
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			console.CompleteGroup(cmd)
		}
	}
	console.RefuseRepeats(root)
	return root
}
