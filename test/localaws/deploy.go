package localaws

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	cfntypes "github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/matter-ops/kms-rotation/test/localaws/iam"
	"github.com/matter-ops/kms-rotation/test/localaws/lambdahost"
)

// deployment deploys one template. It talks to the servers directly: what it does
// is no call of anybody, and no fault is for it.
type deployment struct {
	name, root, templatePath string
	region                   string
	moto                     aws.Config
	dynamo                   aws.Config
	host                     *lambdahost.Host
	programs                 map[string]string

	template    *template
	definitions map[string]string // of state machines, by logical id
	outputs     map[string]string // all of them, those of byOutput included
	physical    map[string]string // logical id → physical id

	stateMachineRole string
	bucketPolicies   map[string][]iam.Policy // by name of the bucket
	inline           map[string][]iam.Policy // by name of the role
}

// run deploys the template with the parameters.
func (d *deployment) run(ctx context.Context, parameters map[string]string) error {
	bucket := strings.ToLower(d.name) + "-local-artefacts"
	var err error
	if d.template, err = transform(ctx, d.root, d.templatePath, bucket, d.region); err != nil {
		return err
	}
	if err := d.upload(ctx, bucket); err != nil {
		return fmt.Errorf("upload the code: %w", err)
	}
	if err := executeStateMachines(ctx, d.moto); err != nil {
		return err
	}
	extras, err := d.planExtras()
	if err != nil {
		return err
	}
	if err := d.createStack(ctx, parameters); err != nil {
		return fmt.Errorf("create stack %s: %w", d.name, err)
	}
	for _, e := range extras {
		if err := e.create(ctx, d); err != nil {
			return fmt.Errorf("create %s: %w", e.logical, err)
		}
	}
	return d.addFunctions(ctx)
}

// upload makes the bucket of artefacts. The functions' code is an empty archive:
// the host runs the built binaries.
func (d *deployment) upload(ctx context.Context, bucket string) error {
	client := s3.NewFromConfig(d.moto)
	_, err := client.CreateBucket(ctx, &s3.CreateBucketInput{
		Bucket: &bucket,
		CreateBucketConfiguration: &s3types.CreateBucketConfiguration{
			LocationConstraint: s3types.BucketLocationConstraint(d.region),
		},
	})
	if made(err) != nil {
		return err
	}
	var empty bytes.Buffer
	if err := zip.NewWriter(&empty).Close(); err != nil {
		return err
	}
	objects := map[string][]byte{}
	for logical := range d.template.Code {
		objects[logical+".zip"] = empty.Bytes()
	}
	d.definitions = map[string]string{}
	for logical, path := range d.template.Definitions {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(d.templatePath), path))
		if err != nil {
			return err
		}
		objects[logical+".json"], d.definitions[logical] = b, string(b)
	}
	for key, body := range objects {
		if _, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(body)}); err != nil {
			return err
		}
	}
	return nil
}

// executeStateMachines has moto interpret state machines rather than pretend.
func executeStateMachines(ctx context.Context, moto aws.Config) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, aws.ToString(moto.BaseEndpoint)+"/moto-api/config",
		strings.NewReader(`{"stepfunctions":{"execute_state_machine":true}}`))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := moto.HTTPClient.Do(req)
	if err != nil {
		return fmt.Errorf("configure moto: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		err = fmt.Errorf("configure moto: status %d", resp.StatusCode)
	}
	return errors.Join(err, resp.Body.Close())
}

// createStack creates the stack and reads its outputs and resources.
func (d *deployment) createStack(ctx context.Context, parameters map[string]string) error {
	body, err := json.Marshal(d.template.Body)
	if err != nil {
		return err
	}
	client := cloudformation.NewFromConfig(d.moto)
	in := &cloudformation.CreateStackInput{
		StackName: &d.name, TemplateBody: aws.String(string(body)),
		Capabilities: []cfntypes.Capability{cfntypes.CapabilityCapabilityIam, cfntypes.CapabilityCapabilityNamedIam},
	}
	for k, v := range parameters {
		if _, ok := d.template.Body.Parameters[k]; !ok {
			return fmt.Errorf("the template has no parameter %s", k)
		}
		in.Parameters = append(in.Parameters, cfntypes.Parameter{ParameterKey: aws.String(k), ParameterValue: aws.String(v)})
	}
	if _, err := client.CreateStack(ctx, in); made(err) != nil {
		return err
	}
	stacks, err := client.DescribeStacks(ctx, &cloudformation.DescribeStacksInput{StackName: &d.name})
	if err != nil {
		return err
	}
	stack := stacks.Stacks[0]
	if stack.StackStatus != cfntypes.StackStatusCreateComplete {
		return fmt.Errorf("status %s: %s", stack.StackStatus, aws.ToString(stack.StackStatusReason))
	}
	d.outputs = map[string]string{}
	for _, o := range stack.Outputs {
		d.outputs[aws.ToString(o.OutputKey)] = aws.ToString(o.OutputValue)
	}
	resources, err := client.DescribeStackResources(ctx, &cloudformation.DescribeStackResourcesInput{StackName: &d.name})
	if err != nil {
		return err
	}
	d.physical = map[string]string{}
	for _, r := range resources.StackResources {
		d.physical[aws.ToString(r.LogicalResourceId)] = aws.ToString(r.PhysicalResourceId)
	}
	return nil
}

// addFunctions makes the functions known to the host, as CloudFormation deployed
// them: with the environment, timeout and memory that the template gives.
func (d *deployment) addFunctions(ctx context.Context) error {
	client := lambda.NewFromConfig(d.moto)
	for _, logical := range d.template.ofType("AWS::Lambda::Function") {
		name := d.physical[logical]
		c, err := client.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: &name})
		if err != nil {
			return fmt.Errorf("function %s: %w", name, err)
		}
		conf := c.Configuration
		short := shortName(d.name, name, d.template.Code[logical])
		f := lambdahost.Function{
			Name: name, Short: short, ARN: aws.ToString(conf.FunctionArn), Role: aws.ToString(conf.Role),
			Program:  cmp.Or(d.programs[short], filepath.Join(d.root, "build", "local", short, "bootstrap")),
			Timeout:  time.Duration(aws.ToInt32(conf.Timeout)) * time.Second,
			MemoryMB: int(aws.ToInt32(conf.MemorySize)),
		}
		if conf.Environment != nil {
			f.Env = conf.Environment.Variables
		}
		if c.Concurrency != nil {
			f.Reserved = int(aws.ToInt32(c.Concurrency.ReservedConcurrentExecutions))
		}
		if err := d.host.Add(f); err != nil {
			return err
		}
	}
	return nil
}

// shortName is the folder that the function is built from: the last part of its
// code's path, else its name without the stack's.
func shortName(stack, name, code string) string {
	if code != "" {
		return filepath.Base(code)
	}
	return strings.TrimPrefix(name, stack+"-")
}
