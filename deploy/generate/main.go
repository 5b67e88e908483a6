// Command generate writes the template of a repository to a file: generate ROOT FILE.
package main

import (
	"fmt"
	"os"

	"github.com/matter-ops/kms-rotation/deploy"
)

func main() {
	if err := write(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func write(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments: name the repository and one file", len(args))
	}
	b, err := deploy.Template(os.DirFS(args[0]))
	if err != nil {
		return err
	}
	return os.WriteFile(args[1], b, 0o644) //nolint:gosec // a file of the project, which all may read
}
