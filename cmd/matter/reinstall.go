package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/matter-ops/kms-rotation/internal/console"
)

// What reinstall writes, in the working directory.
const (
	stateFile     = "reinstall-state.yaml"
	resourcesFile = "reinstall-resources.json"
)

// reinstallFlags name the state that a deleted stack has left.
type reinstallFlags struct {
	template, stack, table, keyTable, bucket, key string
	retention                                     int
}

// newReinstall returns the command matter ops reinstall. It calls nothing of AWS, so it
// needs no deployment.
func newReinstall() *cobra.Command {
	var f reinstallFlags
	var output string
	cmd := &cobra.Command{
		Use:   "reinstall --table TABLE --bucket BUCKET --anchor-key KEY",
		Short: "Prepare a new stack that takes over the state of a deleted one",
		Long: `A deleted stack leaves its control table, its audit bucket with the bucket's policy, and
its anchor key; since there are keyed rows, its key table too. A new stack of the same name takes them over by a CloudFormation import:
this writes the part of the template that describes them and the list of what is imported,
and prints the commands that import them and deploy the rest. It calls nothing of AWS.

Without it a new stack begins with an empty table and a chain of its own.`,
		Example: `  matter ops reinstall --table matter-ControlTable-1ABC --bucket matter-auditbucket-1abc \
    --anchor-key 1234abcd-12ab-34cd-56ef-1234567890ab --retention-days 365`,
		Args: console.RefuseArgs,
	}
	cmd.Flags().StringVar(&f.stack, "stack", "matter", "name of the deleted stack, which the new one takes")
	cmd.Flags().StringVar(&f.template, "template", "template.yaml", "the template that is deployed afterwards")
	cmd.Flags().StringVar(&f.table, "table", "", "the control table")
	cmd.Flags().StringVar(&f.keyTable, "key-table", "", "the key table; a stack from before keyed rows has none")
	cmd.Flags().StringVar(&f.bucket, "bucket", "", "the audit bucket")
	cmd.Flags().StringVar(&f.key, "anchor-key", "", "id of the anchor key")
	cmd.Flags().IntVar(&f.retention, "retention-days", 365, "RetentionDays of the deleted stack")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	for _, name := range []string{"table", "bucket", "anchor-key"} {
		_ = cmd.MarkFlagRequired(name)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return console.UsageError{Err: fmt.Errorf("-o %q: use text or json", output)}
		}
		return f.printReinstall(console.Console{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), JSON: output == "json"})
	}
	return cmd
}

// imported is an entry of --resources-to-import.
type imported struct {
	ResourceType       string
	LogicalResourceID  string `json:"LogicalResourceId"`
	ResourceIdentifier map[string]string
}

// importedResources are the resources that outlive a stack, by their names in the template.
func (f reinstallFlags) importedResources() []imported {
	all := []imported{
		{"AWS::DynamoDB::Table", "ControlTable", map[string]string{"TableName": f.table}},
		{"AWS::S3::Bucket", "AuditBucket", map[string]string{"BucketName": f.bucket}},
		{"AWS::S3::BucketPolicy", "AuditBucketPolicy", map[string]string{"Bucket": f.bucket}},
		{"AWS::KMS::Key", "AnchorKey", map[string]string{"KeyId": f.key}},
	}
	if f.keyTable != "" {
		all = append(all, imported{"AWS::DynamoDB::Table", "KeyTable", map[string]string{"TableName": f.keyTable}})
	}
	return all
}

// printReinstall writes the two files and prints the commands that use them. It checks the
// names first, because the commands are for a shell.
func (f reinstallFlags) printReinstall(c console.Console) error {
	for name, v := range map[string]string{"--table": f.table, "--key-table": f.keyTable, "--bucket": f.bucket, "--anchor-key": f.key, "--stack": f.stack} {
		if name == "--key-table" && v == "" {
			continue
		}
		if !regexp.MustCompile(`^[A-Za-z0-9_.-]+$`).MatchString(v) {
			return refusedError(name, fmt.Sprintf("%q is a name or an id, without slashes and colons", v), "matter ops reinstall --help")
		}
	}
	text, err := os.ReadFile(f.template)
	if err != nil {
		return refusedError("--template", err.Error(), "run it in the project's directory, or name the template")
	}
	state, err := stateTemplate(text, f.importedResources())
	if err != nil {
		return fmt.Errorf("%s: %w", f.template, err)
	}
	list, err := json.MarshalIndent(f.importedResources(), "", "  ")
	if err != nil {
		return err
	}
	for name, b := range map[string][]byte{stateFile: state, resourcesFile: append(list, '\n')} {
		if err := os.WriteFile(name, b, 0o644); err != nil { //nolint:gosec // a template is not secret
			return err
		}
	}
	commands := f.installCommands()
	return c.PrintResult(map[string]any{"files": []string{stateFile, resourcesFile}, "commands": commands},
		append([]string{"wrote " + stateFile + " and " + resourcesFile + "; now:", ""}, commands...)...)
}

// installCommands import the state, wait for it, and deploy the rest. A stack of which nothing but
// imported resources is there is updated by sam deploy like any other.
func (f reinstallFlags) installCommands() []string {
	const change = "take-over-state"
	set := fmt.Sprintf("--stack-name %s --change-set-name %s", f.stack, change)
	return []string{
		fmt.Sprintf("aws cloudformation create-change-set %s --change-set-type IMPORT --template-body file://%s "+
			"--resources-to-import file://%s --parameters ParameterKey=RetentionDays,ParameterValue=%d", set, stateFile, resourcesFile, f.retention),
		"aws cloudformation wait change-set-create-complete " + set,
		"aws cloudformation execute-change-set " + set,
		"aws cloudformation wait stack-import-complete --stack-name " + f.stack,
		fmt.Sprintf("sam deploy --stack-name %s --parameter-overrides RetentionDays=%d  # and the other parameters of the deleted stack", f.stack, f.retention),
	}
}

// stateTemplate is the part of a template that describes the resources, with the parameters
// that they refer to. An import takes neither transforms nor resources that it would have
// to create (CloudFormation User Guide, "Import AWS resources into a CloudFormation stack").
func stateTemplate(text []byte, resources []imported) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) != 1 {
		return nil, errors.New("is not a template")
	}
	all, parameters := childNode(doc.Content[0], "Resources"), childNode(doc.Content[0], "Parameters")
	if all == nil || parameters == nil {
		return nil, errors.New("has no Resources or no Parameters")
	}
	kept, used := &yaml.Node{Kind: yaml.MappingNode}, &yaml.Node{Kind: yaml.MappingNode}
	for _, r := range resources {
		v := childNode(all, r.LogicalResourceID)
		if v == nil {
			return nil, fmt.Errorf("has no resource %s", r.LogicalResourceID)
		}
		if policy := childNode(v, "DeletionPolicy"); policy == nil || !strings.HasPrefix(policy.Value, "Retain") {
			return nil, fmt.Errorf("resource %s does not outlive its stack", r.LogicalResourceID)
		}
		kept.Content = append(kept.Content, scalarNode(r.LogicalResourceID), v)
	}
	for i := 0; i < len(parameters.Content); i += 2 {
		if name := parameters.Content[i].Value; refersToParameter(kept, name) {
			used.Content = append(used.Content, parameters.Content[i], parameters.Content[i+1])
		}
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{
		scalarNode("AWSTemplateFormatVersion"),
		{Kind: yaml.ScalarNode, Value: "2010-09-09", Style: yaml.DoubleQuotedStyle},
		scalarNode("Description"), scalarNode("State of a deleted stack, taken over"),
	}}
	if len(used.Content) > 0 {
		out.Content = append(out.Content, scalarNode("Parameters"), used)
	}
	out.Content = append(out.Content, scalarNode("Resources"), kept)
	return yaml.Marshal(out)
}

// scalarNode is a plain scalar.
func scalarNode(v string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: v} }

// childNode is the value of a key of a mapping; nil if there is none.
func childNode(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// refersToParameter reports whether a !Ref or a !Sub below n names a parameter.
func refersToParameter(n *yaml.Node, name string) bool {
	if n.Kind == yaml.ScalarNode {
		return n.Tag == "!Ref" && n.Value == name || n.Tag == "!Sub" && strings.Contains(n.Value, "${"+name+"}")
	}
	return slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return refersToParameter(c, name) })
}
