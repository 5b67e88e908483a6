package second

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	cfntypes "github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	sfntypes "github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/aws/smithy-go"
	"go.yaml.in/yaml/v3"
)

// lack is something that ministack 1.5.33 lacks or does otherwise than AWS documents. This
// list is all that stands between what ships and what runs here. A lack that is over fails
// the test, so that its entry is taken out.
type lack struct {
	name string
	why  string // what ministack does instead
	// strip says which resources of the template are left out. Nil: none.
	strip func(kind string, properties *yaml.Node) bool
	// names are properties that are set, to a name that no earlier deployment has used, by
	// the resource's logical id.
	names map[string]string
	// repair does by the API what the deployed stack should have had. Nil: nothing.
	repair func(ctx context.Context, w *world) error
	// lasts returns an error unless the lack is still there. It looks at ministack itself,
	// not through what stands before it, after the stack has been deployed.
	lasts func(ctx context.Context, w *world) error
}

var lacks = []lack{
	{
		name:  "AWS::SSM::Document",
		why:   "CreateChangeSet refuses the template: an unrecognized resource type. The form for the console is left out.",
		strip: func(kind string, _ *yaml.Node) bool { return kind == "AWS::SSM::Document" },
		lasts: func(ctx context.Context, w *world) error {
			return w.refuses(ctx, "Unrecognized resource types", `{"Type": "AWS::SSM::Document", "Properties": {"DocumentType": "Automation", "Content": {}}}`)
		},
	},
	{
		name: "metric math in AWS::CloudWatch::Alarm",
		why:  "the resource fails to be created. Alarms with Metrics are left out.",
		strip: func(kind string, properties *yaml.Node) bool {
			return kind == "AWS::CloudWatch::Alarm" && child(properties, "Metrics") != nil
		},
		lasts: func(ctx context.Context, w *world) error {
			return w.refuses(ctx, "metric math", `{"Type": "AWS::CloudWatch::Alarm", "Properties": {"ComparisonOperator": "GreaterThanThreshold",
				"EvaluationPeriods": 1, "Threshold": 1, "Metrics": [{"Id": "m", "Expression": "SUM(METRICS())", "ReturnData": true}]}}`)
		},
	},
	{
		name: "ObjectLockConfiguration of AWS::S3::Bucket",
		why:  "the bucket gets Object Lock but no rule, so that preflight refuses it (AuditUnlocked). The rule is put by the API.",
		repair: func(ctx context.Context, w *world) error {
			_, err := w.s3.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{
				Bucket: aws.String(w.outputs["AuditBucketName"]),
				ObjectLockConfiguration: &s3types.ObjectLockConfiguration{
					ObjectLockEnabled: s3types.ObjectLockEnabledEnabled,
					Rule: &s3types.ObjectLockRule{DefaultRetention: &s3types.DefaultRetention{
						Mode: s3types.ObjectLockRetentionModeCompliance, Days: aws.Int32(1),
					}},
				},
			})
			return err
		},
		lasts: func(ctx context.Context, w *world) error {
			out, err := w.s3.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: aws.String(w.outputs["AuditBucketName"])})
			if err == nil && out.ObjectLockConfiguration.Rule != nil {
				return errors.New("the bucket has the template's rule")
			}
			return nil
		},
	},
	{
		name: "physical names of its own for each stack",
		why: "names are derived from the stack's name and the logical id, so that a stack that is deployed again silently takes " +
			"over the table and the bucket that the deleted one has retained. AWS makes random ones. Both are named here.",
		names: map[string]string{"ControlTable": "TableName", "AuditBucket": "BucketName"},
		lasts: func(ctx context.Context, w *world) error {
			var names []string
			client := cloudformation.NewFromConfig(config(w.direct))
			for range 2 {
				stack := aws.String("lack-names")
				if _, err := client.CreateStack(ctx, &cloudformation.CreateStackInput{
					StackName: stack, TemplateBody: aws.String(`{"Resources": {"One": {"Type": "AWS::SNS::Topic"}}}`),
				}); err != nil {
					return err
				}
				if err := cloudformation.NewStackCreateCompleteWaiter(client, func(o *cloudformation.StackCreateCompleteWaiterOptions) {
					o.MinDelay = 100 * time.Millisecond
				}).Wait(ctx, &cloudformation.DescribeStacksInput{StackName: stack}, time.Minute); err != nil {
					return err
				}
				out, err := client.DescribeStackResource(ctx, &cloudformation.DescribeStackResourceInput{StackName: stack, LogicalResourceId: aws.String("One")})
				if err != nil {
					return err
				}
				names = append(names, aws.ToString(out.StackResourceDetail.PhysicalResourceId))
				if err := deleteStack(ctx, client, *stack); err != nil {
					return err
				}
			}
			if names[0] != names[1] {
				return fmt.Errorf("two stacks have %v", names)
			}
			return nil
		},
	},
	{
		name: "kms:GetKeyLastUsage",
		why:  "an unknown operation, which leaves the last use unknown (internal/awskms).",
		lasts: func(ctx context.Context, w *world) error {
			_, err := kms.NewFromConfig(config(w.direct)).GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: aws.String("x")})
			if errorCode(err) != "InvalidAction" {
				return fmt.Errorf("GetKeyLastUsage: %w", err)
			}
			return nil
		},
	},
	{
		name: "authenticated ciphertexts of KMS",
		why: "a ciphertext whose last bit is flipped unwraps to something else, where AWS answers InvalidCiphertextException. " +
			"No row is damaged here.",
		lasts: func(ctx context.Context, w *world) error {
			client := kms.NewFromConfig(config(w.direct))
			key, err := client.CreateKey(ctx, &kms.CreateKeyInput{})
			if err != nil {
				return err
			}
			out, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyMetadata.KeyId, Plaintext: []byte("text")})
			if err != nil {
				return err
			}
			out.CiphertextBlob[len(out.CiphertextBlob)-1] ^= 1
			_, err = client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob})
			if err != nil {
				return fmt.Errorf("a damaged ciphertext is refused: %w", err)
			}
			return nil
		},
	},
	{
		name: "errors of the function of a task that waits for its token",
		why: "the error is dropped and the task waits on, where AWS fails the task. The operator here answers after he was " +
			"asked, so that the function approve has no error Approved to return.",
		lasts: func(ctx context.Context, w *world) error {
			machine, err := w.sfn.CreateStateMachine(ctx, &sfn.CreateStateMachineInput{
				Name: aws.String("lack-token"), RoleArn: aws.String("arn:aws:iam::" + account + ":role/any"), Definition: aws.String(`{"StartAt": "Ask", "States": {"Ask": {
					"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken", "TimeoutSeconds": 2, "End": true,
					"Parameters": {"FunctionName": "` + stack + `-approve", "Payload": {"rotation_id": "none", "task_token.$": "$$.Task.Token"}}}}}`),
			})
			if err != nil {
				return err
			}
			x, err := w.sfn.StartExecution(ctx, &sfn.StartExecutionInput{StateMachineArn: machine.StateMachineArn})
			if err != nil {
				return err
			}
			for {
				d, err := w.sfn.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: x.ExecutionArn})
				if err != nil {
					return err
				}
				if d.Status != sfntypes.ExecutionStatusRunning {
					if got := aws.ToString(d.Error); got != "States.Timeout" {
						return fmt.Errorf("the task fails with %q", got)
					}
					return nil
				}
				time.Sleep(100 * time.Millisecond)
			}
		},
	},
	{
		name: "permissions",
		why:  "IAM policies, key policies and bucket policies are stored and not evaluated. test/localaws evaluates them.",
		lasts: func(ctx context.Context, w *world) error {
			bucket := aws.String("lack-permissions")
			if _, err := w.s3.CreateBucket(ctx, &s3.CreateBucketInput{
				Bucket: bucket, CreateBucketConfiguration: &s3types.CreateBucketConfiguration{LocationConstraint: region},
			}); err != nil {
				return err
			}
			if _, err := w.s3.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: bucket, Policy: aws.String(
				`{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::lack-permissions/*"}]}`,
			)}); err != nil {
				return err
			}
			if _, err := w.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: aws.String("any")}); err != nil {
				return fmt.Errorf("a deletion that the bucket's policy denies is refused: %w", err)
			}
			return nil
		},
	},
	{
		name: "kms:ReEncrypt",
		why:  "an unknown operation. withReEncrypt answers it by Decrypt and Encrypt.",
		lasts: func(ctx context.Context, w *world) error {
			_, err := kms.NewFromConfig(config(w.direct)).ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: []byte("x"), DestinationKeyId: aws.String("x")})
			if code := errorCode(err); code != "InvalidAction" && code != "UnknownOperationException" {
				return fmt.Errorf("ReEncrypt: %w", err)
			}
			return nil
		},
	},
}

// deleteStack deletes a stack and waits for its end.
func deleteStack(ctx context.Context, client *cloudformation.Client, name string) error {
	if _, err := client.DeleteStack(ctx, &cloudformation.DeleteStackInput{StackName: &name}); err != nil {
		return err
	}
	return cloudformation.NewStackDeleteCompleteWaiter(client, func(o *cloudformation.StackDeleteCompleteWaiterOptions) {
		o.MinDelay, o.MaxDelay = 100*time.Millisecond, time.Second
	}).Wait(ctx, &cloudformation.DescribeStacksInput{StackName: &name}, time.Minute)
}

// refuses deploys one resource and returns an error unless ministack refuses it for the
// reason.
func (w *world) refuses(ctx context.Context, reason, resource string) error {
	client := cloudformation.NewFromConfig(config(w.direct))
	name := aws.String(fmt.Sprintf("lack-%d", time.Now().UnixNano()))
	_, err := client.CreateStack(ctx, &cloudformation.CreateStackInput{StackName: name, TemplateBody: aws.String(`{"Resources": {"One": ` + resource + `}}`)})
	if err != nil {
		if strings.Contains(err.Error(), reason) {
			return nil
		}
		return err
	}
	for {
		out, err := client.DescribeStackEvents(ctx, &cloudformation.DescribeStackEventsInput{StackName: name})
		if err != nil {
			return err
		}
		for _, e := range out.StackEvents {
			if strings.Contains(aws.ToString(e.ResourceStatusReason), reason) {
				return nil
			}
			if e.ResourceStatus == cfntypes.ResourceStatusCreateComplete {
				return errors.New("it is created")
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func errorCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// stripped is the shipped template without what the list leaves out, and what that is. life
// tells deployments of one stack apart.
func stripped(t *testing.T, path, life string) (template []byte, out []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	resources := child(doc.Content[0], "Resources")
	for i := 0; i < len(resources.Content); {
		name, r := resources.Content[i].Value, resources.Content[i+1]
		by := slices.IndexFunc(lacks, func(l lack) bool {
			return l.strip != nil && l.strip(child(r, "Type").Value, child(r, "Properties"))
		})
		if by < 0 {
			for _, l := range lacks {
				if property := l.names[name]; property != "" {
					p := child(r, "Properties")
					p.Content = append(p.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: property}, &yaml.Node{Kind: yaml.ScalarNode, Value: strings.ToLower(stack + "-" + name + "-" + life)})
				}
			}
			i += 2
			continue
		}
		used[lacks[by].name] = true
		out = append(out, name)
		resources.Content = slices.Delete(resources.Content, i, i+2)
	}
	for _, l := range lacks {
		if l.strip != nil && !used[l.name] {
			t.Errorf("%s: the template has none", l.name)
		}
	}
	var text bytes.Buffer
	enc := yaml.NewEncoder(&text)
	if err := enc.Encode(&doc); err != nil {
		t.Fatal(err)
	}
	return text.Bytes(), out
}

// child is the value of a key of a mapping; nil if it is not there.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
