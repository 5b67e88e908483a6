package acceptance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// SAM deploys the template as the README says, by sam deploy.
type SAM struct {
	Config   aws.Config
	Root     string   // of the project, with build/functions made
	Command  string   // sam
	Tool     string   // the operator's
	Template string   // "" for Root/template.yaml
	Env      []string // beside the process's own: an endpoint, credentials
	Args     []string // more for sam deploy
	Out      io.Writer
}

// AWS implements [Target].
func (s *SAM) AWS() aws.Config { return s.Config }

// Deploy implements [Target].
func (s *SAM) Deploy(ctx context.Context, stack string, parameters map[string]string) ([]string, error) {
	args := []string{"deploy", "--stack-name", stack, "--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset", "--no-fail-on-empty-changeset", "--no-progressbar"}
	if s.Template != "" {
		args = append(args, "--template-file", s.Template)
	}
	args = append(args, s.Args...)
	args = append(args, "--parameter-overrides")
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		args = append(args, name+"="+quoted(parameters[name]))
	}
	if err := s.run(ctx, s.Out, args...); err != nil {
		return nil, err
	}
	return s.environment(ctx, stack)
}

// quoted is a value as sam reads one behind --parameter-overrides: in double quotes, with
// those in it escaped. Without quotes an empty value would be none, and JSON would lose its
// own.
func quoted(v string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
}

// environment reads the variables of a deployment.
func (s *SAM) environment(ctx context.Context, stack string) ([]string, error) {
	cmd := exec.CommandContext(ctx, s.Tool, "ops", "env", "--stack", stack)
	cmd.Env = append(os.Environ(), s.Env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("matter ops env: %w: %s", err, errs.String())
	}
	env := slices.Clone(s.Env)
	for line := range strings.Lines(string(out)) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "export "), "=")
		if ok {
			env = append(env, name+"="+strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(value, "'"), "'"), `'\''`, "'"))
		}
	}
	return env, nil
}

// Delete implements [Target].
func (s *SAM) Delete(ctx context.Context, stack string) error {
	return s.run(ctx, s.Out, "delete", "--stack-name", stack, "--no-prompts", "--region", s.Config.Region)
}

func (s *SAM) run(ctx context.Context, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, s.Command, args...)
	cmd.Dir = s.Root
	cmd.Env = append(append(os.Environ(), "SAM_CLI_TELEMETRY=0", "AWS_REGION="+s.Config.Region, "AWS_DEFAULT_REGION="+s.Config.Region), s.Env...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	fmt.Fprintf(out, "   $ sam %s\n", strings.Join(args, " "))
	if err := cmd.Run(); err != nil {
		text := said.String()
		return fmt.Errorf("sam %s: %w: %s", args[0], err, text[max(0, len(text)-4000):])
	}
	return nil
}
