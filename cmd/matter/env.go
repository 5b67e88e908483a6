package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newEnvCommand returns the command matter ops env. It needs no deployment in the
// environment, since it makes that environment.
func newEnvCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "env --stack STACK",
		Short: "Print the variables of a deployment, for a shell to evaluate",
		Long: `Reads the configuration of the stack's function preflight and prints it as export
lines, with the ARNs of the state machines and the seed that kms-genesis registers as
the first sources (MATTER_SOURCES and MATTER_CORPUS, from the stack's outputs). It
needs AWS credentials alone.

Commands that change the deployment are refused in a shell whose MATTER_ variables
differ from the function's: evaluate this again after a deployment. For one command alone,
give it --stack instead.`,
		Example: `  matter ops env --stack matter
  eval "$(matter ops env --stack matter)"`,
		Args: console.RefuseArgs,
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return console.UsageError{Err: fmt.Errorf("-o %q: use text or json", output)}
		}
		if err := useAccount(cmd); err != nil {
			return err
		}
		env, err := readStackEnv(cmd, cmp.Or(cmd.Flag(flagStack).Value.String(), "matter"))
		if err != nil {
			return err
		}
		var lines []string
		for _, name := range slices.Sorted(maps.Keys(env)) {
			lines = append(lines, fmt.Sprintf("export %s='%s'", name, strings.ReplaceAll(env[name], "'", `'\''`)))
		}
		return console.Console{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), JSON: output == "json"}.PrintResult(env, lines...)
	}
	return cmd
}

// preflightConfig reads the configuration of the stack's function preflight.
func preflightConfig(ctx context.Context, cfg aws.Config, stack string) (*lambda.GetFunctionConfigurationOutput, map[string]string, error) {
	f, err := lambda.NewFromConfig(cfg).GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{
		FunctionName: aws.String(stack + "-preflight"),
	})
	if err != nil {
		return nil, nil, remote.WrapError("lambda GetFunctionConfiguration "+stack+"-preflight", err)
	}
	env := map[string]string{}
	if f.Environment != nil {
		for k, v := range f.Environment.Variables {
			if strings.HasPrefix(k, "MATTER_") {
				env[k] = v
			}
		}
	}
	return f, env, nil
}

// readStackEnv collects the variables of a deployment from its function preflight and from
// the stack's outputs. Outputs that cannot be read are a warning: only kms-genesis needs
// them.
func readStackEnv(cmd *cobra.Command, stack string) (map[string]string, error) {
	cfg, err := operate.AWSConfig(cmd.Context())
	if err != nil {
		return nil, err
	}
	if cmd.Flag(flagVerbose).Value.String() == "true" {
		remote.LogCalls(cmd.ErrOrStderr(), time.Now)(&cfg)
	}
	f, env, err := preflightConfig(cmd.Context(), cfg, stack)
	var none *types.ResourceNotFoundException
	if errors.As(err, &none) {
		return nil, &journal.Error{
			Kind: journal.Misconfigured, Field: "--stack", Msg: fmt.Sprintf("Region %s has no deployment %s that these credentials see", cfg.Region, stack),
			Next: journal.Next{Say: "aws cloudformation list-stacks; give the stack's name and --region, or deploy template.yaml"},
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration of stack %s: %w", stack, err)
	}
	at, err := arn.Parse(aws.ToString(f.FunctionArn))
	if err != nil {
		return nil, fmt.Errorf("read the configuration of stack %s: %w", stack, err)
	}
	machine := fmt.Sprintf("arn:%s:states:%s:%s:stateMachine:%s-", at.Partition, at.Region, at.AccountID, stack)
	env["MATTER_STATE_MACHINE_ARN"], env["MATTER_EMERGENCY_STATE_MACHINE_ARN"] = machine+"rotation", machine+"emergency"
	out, err := cloudformation.NewFromConfig(cfg).DescribeStacks(cmd.Context(), &cloudformation.DescribeStacksInput{StackName: &stack})
	if err != nil { // only kms-genesis needs the seed
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: the seed of sources could not be read, give kms-genesis --sources: %s\n", advice.Explain(err))
		return env, nil
	}
	for _, o := range out.Stacks[0].Outputs {
		if name := seedOutputs[aws.ToString(o.OutputKey)]; name != "" {
			env[name] = aws.ToString(o.OutputValue)
		}
	}
	return env, nil
}

// seedOutputs names the variable for each output of the stack that kms-genesis reads.
var seedOutputs = map[string]string{"SeedSources": "MATTER_SOURCES", "SeedCorpus": "MATTER_CORPUS"}

// checkShell refuses to change the deployment from a shell whose settings are not those
// that its functions have. A deployment without functions has nothing to compare with.
func (o *operator) checkShell(ctx context.Context) error {
	_, deployed, err := preflightConfig(ctx, o.stack.AWS, o.stack.Config.Stack)
	var none *types.ResourceNotFoundException
	if errors.As(err, &none) {
		return nil
	}
	if err != nil { // by hand is what is left when AWS does not answer
		fmt.Fprintf(o.console.Err, "warning: the shell could not be compared with the functions' settings: %s\n", advice.Explain(err))
		return nil
	}
	var differ []string // names alone: a webhook's address may hold a secret
	for _, name := range slices.Sorted(maps.Keys(deployed)) {
		if os.Getenv(name) != deployed[name] {
			differ = append(differ, name)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	return &journal.Error{
		Kind: journal.Misconfigured, Field: strings.Join(differ, ", "), Msg: "the shell has other settings than the deployment's functions",
		Next: journal.Next{Say: fmt.Sprintf(`eval "$(matter ops env --stack %s)"`, o.stack.Config.Stack)},
	}
}
