package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
)

// newLocalCommand returns a command that hands its arguments to matter-local, the program of the
// local AWS. It is built beside this one and is not shipped: this program carries no
// emulator.
func newLocalCommand() *cobra.Command {
	return &cobra.Command{
		Use: "local", Hidden: true, DisableFlagParsing: true,
		Short: "The local AWS: matter-local", Example: "  matter local up --detach",
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			program := filepath.Join(filepath.Dir(self), "matter-local")
			child := exec.CommandContext(cmd.Context(), program, args...) //nolint:gosec // the program beside this one
			child.Stdin = os.Stdin
			child.Stdout = cmd.OutOrStdout()
			child.Stderr = cmd.ErrOrStderr()
			child.Cancel = func() error { return child.Process.Signal(os.Interrupt) }
			err = child.Run()
			var ended *exec.ExitError
			switch {
			case errors.As(err, &ended) && ended.ExitCode() > 0:
				return console.Exit(ended.ExitCode())
			case errors.Is(err, os.ErrNotExist):
				return console.UsageError{Err: fmt.Errorf("%s is not there: make build makes it in a checkout of the project", program)}
			}
			return err
		},
	}
}
