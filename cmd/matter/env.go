package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/app"
)

func newEnv() *cobra.Command {
	var stack, output string
	cmd := &cobra.Command{
		Use:   "env --stack STACK",
		Short: "Print the variables of a deployment, for a shell to evaluate",
		Long: `Reads the configuration of the stack's function preflight and prints it as export
lines, with the ARN of the state machine. It needs AWS credentials alone.`,
		Example: `  matter ops env --stack matter
  eval "$(matter ops env --stack matter)"`,
		Args: noArgs,
	}
	cmd.Flags().StringVar(&stack, "stack", "matter", "name of the CloudFormation stack")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return usageError{fmt.Errorf("-o %q: use text or json", output)}
		}
		env, err := stackEnv(cmd, stack)
		if err != nil {
			return err
		}
		var lines []string
		for _, name := range slices.Sorted(maps.Keys(env)) {
			lines = append(lines, fmt.Sprintf("export %s='%s'", name, strings.ReplaceAll(env[name], "'", `'\''`)))
		}
		return console{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), json: output == "json"}.result(env, lines...)
	}
	return cmd
}

func stackEnv(cmd *cobra.Command, stack string) (map[string]string, error) {
	cfg, err := app.AWSConfig(cmd.Context())
	if err != nil {
		return nil, err
	}
	f, err := lambda.NewFromConfig(cfg).GetFunctionConfiguration(cmd.Context(), &lambda.GetFunctionConfigurationInput{
		FunctionName: aws.String(stack + "-preflight"),
	})
	if err != nil {
		return nil, fmt.Errorf("read the configuration of stack %s: %w", stack, err)
	}
	at, err := arn.Parse(aws.ToString(f.FunctionArn))
	if err != nil {
		return nil, fmt.Errorf("read the configuration of stack %s: %w", stack, err)
	}
	env := map[string]string{}
	if f.Environment != nil {
		for k, v := range f.Environment.Variables {
			if strings.HasPrefix(k, "MATTER_") {
				env[k] = v
			}
		}
	}
	env["MATTER_STATE_MACHINE_ARN"] = fmt.Sprintf("arn:%s:states:%s:%s:stateMachine:%s-rotation", at.Partition, at.Region, at.AccountID, stack)
	return env, nil
}
