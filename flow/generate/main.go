// Command generate writes the state machine's definition to the file that it is given.
package main

import (
	"fmt"
	"os"

	"github.com/matter-ops/kms-rotation/flow"
)

func main() {
	if err := write(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func write(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d arguments: name one file", len(args))
	}
	b, err := flow.Definition()
	if err != nil {
		return err
	}
	return os.WriteFile(args[0], b, 0o644) //nolint:gosec // a file of the project, which all may read
}
