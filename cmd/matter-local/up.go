package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/sample"
)

const (
	upTimeout   = 2 * time.Minute
	downTimeout = 20 * time.Second
	poll        = 50 * time.Millisecond
)

// localDir is where the local AWS keeps its files: env, pid, log and the logs of
// the functions.
func localDir() (string, error) {
	root, err := backend.Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, ".local")
	return dir, os.MkdirAll(dir, 0o700)
}

type upFlags struct {
	detach bool
	port   int
	rows   int
	stack  string
	params []string
}

func newUp() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the local AWS, deploy template.yaml and seed cipher rows",
		Long: `Starts moto, dynoxide and the proxy before them, deploys the shipped
template.yaml, registers a first KEK and seals real rows under it. It writes .local/env
with export lines; any AWS client works against it.

--param sets a parameter of the template, so that gates, approval and drills can be
rehearsed. EmergencyPermission is shared unless it is set: scripts that know only one
state machine start emergencies with it too.`,
		Example: "  matter-local up --detach && . .local/env && aws stepfunctions list-executions --state-machine-arn $MATTER_STATE_MACHINE_ARN",
		Args:    console.RefuseArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.rows < 0 || f.rows == 1 {
				return console.UsageError{Err: fmt.Errorf("--rows %d: use 2 or more, or 0 for all", f.rows)}
			}
			dir, err := localDir()
			if err != nil {
				return err
			}
			parameters, err := parseParameters(f.params)
			if err != nil {
				return err
			}
			if f.detach {
				return detach(cmd, dir, f.params)
			}
			return up(cmd, dir, f, parameters)
		},
	}
	cmd.Flags().BoolVar(&f.detach, "detach", false, "return when it is up; matter-local down ends it")
	cmd.Flags().IntVar(&f.port, "port", 0, "port of the loopback interface; 0 takes a free one")
	cmd.Flags().IntVar(&f.rows, "rows", 0, "rows to seed in the two tables; 0 for all there are")
	cmd.Flags().StringVar(&f.stack, "stack", "matter", "stack name")
	cmd.Flags().StringArrayVar(&f.params, "param", nil, "a parameter of template.yaml, as Name=Value; may be repeated")
	return cmd
}

// parseParameters returns the template's parameters from Name=Value.
func parseParameters(params []string) (map[string]string, error) {
	parameters := map[string]string{"EmergencyPermission": "shared"} // scripts that know one state machine, and no IAM
	for _, p := range params {
		name, value, ok := strings.Cut(p, "=")
		if !ok || name == "" {
			return nil, console.UsageError{Err: fmt.Errorf("--param %q: use Name=Value, with a parameter of template.yaml", p)}
		}
		parameters[name] = value
	}
	return parameters, nil
}

// up serves until it is told to stop.
func up(cmd *cobra.Command, dir string, f upFlags, parameters map[string]string) error {
	ctx := cmd.Context()
	lock, err := holdPID(dir)
	if err != nil {
		return err
	}
	defer lock.release()
	start := time.Now()
	l, err := sample.Up(ctx, sample.Options{Rows: f.rows, Options: localaws.Options{
		Port: f.port, StackName: f.stack, Dir: dir, Parameters: parameters,
	}})
	if err != nil {
		return err
	}
	defer l.Close()
	env := filepath.Join(dir, "env")
	if err := l.WriteEnv(env); err != nil {
		return err
	}
	defer os.Remove(env) //nolint:errcheck // the directory may be gone
	fmt.Fprintf(cmd.OutOrStdout(), "local AWS at %s: stack %s, %d rows sealed, up in %.1f s\n. %s   # then any AWS client works against it\n",
		l.URL, l.Name, l.Seeded, time.Since(start).Seconds(), env)
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.Failed():
		return err
	}
}

// detach starts this command again in a session of its own and waits until its
// environment file is there.
func detach(cmd *cobra.Command, dir string, params []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"up"}
	for _, name := range []string{"port", "rows", "stack"} {
		args = append(args, "--"+name, cmd.Flag(name).Value.String())
	}
	for _, p := range params {
		args = append(args, "--param", p)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the child writes it
	env := filepath.Join(dir, "env")
	if pid, running := runningPID(dir); running {
		return fmt.Errorf("the local AWS is up already, pid %d: matter-local down ends it", pid)
	}
	if err := os.Remove(env); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	child := exec.Command(self, args...) //nolint:gosec,noctx // this program, which must outlive this process
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- child.Wait() }()
	if err := awaitUp(cmd.Context(), env, exited); err != nil {
		_ = child.Process.Signal(syscall.SIGTERM)
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\n%s", err, text)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "local AWS is up, pid %d\n. %s\n", child.Process.Pid, env)
	return nil
}

func awaitUp(ctx context.Context, env string, exited <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	for {
		if _, err := os.Stat(env); err == nil {
			return nil
		}
		select {
		case err := <-exited:
			return fmt.Errorf("the local AWS ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("the local AWS did not come up: %w", ctx.Err())
		case <-time.After(poll):
		}
	}
}

func newDown() *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End the local AWS that runs detached",
		Example: "  matter-local down",
		Args:    console.RefuseArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := localDir()
			if err != nil {
				return err
			}
			pid, running := runningPID(dir)
			if !running {
				fmt.Fprintln(cmd.OutOrStdout(), "the local AWS is not up")
				return nil
			}
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				return fmt.Errorf("stop pid %d: %w", pid, err)
			}
			for end := time.Now().Add(downTimeout); running; _, running = runningPID(dir) {
				if time.Now().After(end) {
					return fmt.Errorf("pid %d does not end: kill -9 %d", pid, pid)
				}
				time.Sleep(poll)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the local AWS is down")
			return nil
		},
	}
}

// pidFile holds the process id under a lock that dies with the process, so that a
// stale file is never taken for a running one.
type pidFile struct{ f *os.File }

func holdPID(dir string) (*pidFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, "pid"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("the local AWS is up already: matter-local down ends it"), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return &pidFile{f}, err
}

func (p *pidFile) release() { _ = p.f.Close() }

func runningPID(dir string) (int, bool) {
	f, err := os.Open(filepath.Join(dir, "pid"))
	if err != nil {
		return 0, false
	}
	defer f.Close() //nolint:errcheck // read only
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0, false
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(string(b))
	return pid, err == nil
}
