package backend

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/matter-ops/kms-rotation/test/localaws/proc"
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
	fork := ""
	if len(command) > 1 && runtime.GOOS == "linux" {
		if fork, err = forkers.address(ctx, command); err != nil {
			return nil, fmt.Errorf("start moto: %w", err)
		}
	}
	return start(ctx, "moto", probe{path: "/moto-api/config", server: "moto"}, func(port int) *exec.Cmd {
		callback := strconv.Itoa(cmp.Or(o.CallbackPort, port))
		args := []string{"-H", "127.0.0.1", "-p", strconv.Itoa(port)}
		switch {
		case fork != "":
			args = []string{"-I", "-S", "-c", motoForked, fork, strconv.Itoa(port), callback}
		default:
			args = append(command[1:len(command):len(command)], args...)
		}
		cmd := exec.CommandContext(context.WithoutCancel(ctx), command[0], args...)
		cmd.Env = append(cmd.Env, "MOTO_ACCOUNT_ID="+Account, "MOTO_PORT="+callback)
		return cmd
	})
}

// motoForked is the process of a forked server: it lives as long as the server, which ends with
// it. It asks for the server at an address, with the port and the callback port, and gives it
// its output.
const motoForked = `import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1].replace("@", "\0", 1))
socket.send_fds(s, [" ".join(sys.argv[2:]).encode()], [2])
s.recv(1)
sys.exit("moto has ended")
`

// forkers are the processes that fork servers (moto.py, --fork-at), by how moto is run. They die
// with this process.
var forkers = &motoForkers{known: map[string]*forker{}}

type motoForkers struct {
	mu    sync.Mutex
	known map[string]*forker
}

type forker struct {
	process *proc.Process
	address string
}

// address returns where to ask for a server. The first caller starts the process, and so does
// who finds it ended.
func (f *motoForkers) address(ctx context.Context, command []string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.known[command[0]]; known != nil {
		select {
		case <-known.process.Done():
		default:
			return known.address, nil
		}
	}
	started, err := startForker(ctx, command)
	if err != nil {
		return "", err
	}
	f.known[command[0]] = started
	return started.address, nil
}

func startForker(ctx context.Context, command []string) (*forker, error) {
	f := &forker{address: fmt.Sprintf("@matter-moto-%d-%x", os.Getpid(), rand.Uint64())}
	args := append(command[1:len(command):len(command)], "--fork-at", f.address)
	if root, err := Root(); err == nil {
		args = append(args, "--state-machine", filepath.Join(root, "statemachine.asl.json"))
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), command[0], args...)
	cmd.Env = append(serverEnv(), "MOTO_ACCOUNT_ID="+Account)
	output := &tail{}
	cmd.Stderr = output
	said, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("its output: %w", err)
	}
	if _, err := cmd.StdinPipe(); err != nil { // closed by the end of this process
		return nil, fmt.Errorf("its input: %w", err)
	}
	if f.process, err = proc.Start(cmd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, f.process.Kill)()
	if line, err := bufio.NewReader(said).ReadString('\n'); line != "listening\n" {
		f.process.Kill()
		return nil, fmt.Errorf("it does not listen: %w\n%s%s", err, line, output)
	}
	return f, nil
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
