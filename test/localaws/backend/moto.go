package backend

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

//go:embed moto.py
var motoProgram string

// MotoOptions are the choices for [Moto].
type MotoOptions struct {
	// CallbackPort is the loopback port at which moto's Step Functions calls Lambda;
	// 0 for moto itself.
	CallbackPort int
}

// Moto starts moto; ctx bounds only the start.
func Moto(ctx context.Context, o MotoOptions) (*Server, error) {
	command, err := motoCommand()
	if err != nil {
		return nil, err
	}
	return start(ctx, "moto", probe{path: "/moto-api/config", server: "moto"}, func(port int) *exec.Cmd {
		args := append(command[1:len(command):len(command)], "-H", "127.0.0.1", "-p", strconv.Itoa(port))
		cmd := exec.CommandContext(context.WithoutCancel(ctx), command[0], args...)
		cmd.Env = append(cmd.Env, "MOTO_ACCOUNT_ID="+Account, "MOTO_PORT="+strconv.Itoa(cmp.Or(o.CallbackPort, port)))
		return cmd
	})
}

// motoCommand returns how to run moto: our few lines around it, by the Python that
// the installed moto_server names in its first line. A program that is no Python
// script is run as it is.
func motoCommand() ([]string, error) {
	program, err := fromEnvOrRoot("MATTER_MOTO_SERVER", ".venv", "bin", "moto_server")
	if err != nil {
		return nil, err
	}
	f, err := os.Open(program)
	if err != nil {
		return nil, fmt.Errorf("moto is %w at %s: run make venv, or set MATTER_MOTO_SERVER to the program", ErrNotInstalled, program)
	}
	defer f.Close() //nolint:errcheck // read only
	line, err := bufio.NewReader(f).ReadString('\n')
	python, ok := strings.CutPrefix(strings.TrimSpace(line), "#!")
	if err != nil || !ok || !strings.HasPrefix(filepath.Base(python), "python") {
		return []string{program}, nil
	}
	return []string{python, "-I", "-c", motoProgram}, nil
}
