// Command matter-local is the workshop's program: a local AWS on which the shipped template
// and functions run without an account, the demonstration, and live traffic that checks
// what it reads. It is not shipped.
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

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
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
	err := root.ExecuteContext(ctx)
	var code console.Exit
	var usage console.UsageError
	switch {
	case err == nil:
		return console.ExitDone
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(stderr, "matter-local:", advice.Explain(err))
	if errors.As(err, &usage) {
		return console.ExitUsage
	}
	return console.ExitFailed
}

func newRoot() *cobra.Command {
	root := console.CompleteRoot(&cobra.Command{
		Use:   "matter-local",
		Short: "The local AWS: no account, no container",
		Long: `Runs the shipped template and functions on a local AWS, for rehearsals and tests: the
demonstration, and live traffic that checks what it reads.

Exit codes: 0 done, 1 failed, 2 usage.`,
		Example: "  matter-local up --detach && . .local/env && matter ops kms-status",
	})
	root.AddCommand(newUp(), newDown(), newDemo(), newLoad())
	return root
}
