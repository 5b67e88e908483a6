package localaws

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/scheduler"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	sfntypes "github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/aws/smithy-go"
)

// extra is what moto's CloudFormation skips of a resource, for its API to make up.
type extra struct {
	logical    string
	properties any // with leaves, see byOutput
	apply      func(ctx context.Context, d *deployment, e extra) error
}

func (e extra) create(ctx context.Context, d *deployment) error { return e.apply(ctx, d, e) }

// extraTypes are the types that need more than moto's CloudFormation does, in the
// order in which they must be made.
var extraTypes = []struct {
	kind  string
	apply func(ctx context.Context, d *deployment, e extra) error
}{
	{"AWS::DynamoDB::Table", createTable},
	{"AWS::S3::Bucket", completeBucket},
	{"AWS::StepFunctions::StateMachine", createStateMachine},
	{"AWS::Scheduler::ScheduleGroup", createScheduleGroup},
	{"AWS::Scheduler::Schedule", createSchedule},
	{"AWS::CloudWatch::Alarm", createAlarm},
	{"AWS::S3::BucketPolicy", keepBucketPolicy},
	{"AWS::IAM::Role", completeRole},
}

// planExtras adds the outputs to the template that the extras will need.
func (d *deployment) planExtras() ([]extra, error) {
	var out []extra
	for _, t := range extraTypes {
		for _, logical := range d.template.ofType(t.kind) {
			properties, err := d.template.byOutput(logical)
			if err != nil {
				return nil, err
			}
			out = append(out, extra{logical, properties, t.apply})
		}
	}
	return out, nil
}

// createTable creates in dynoxide the table that moto created, under its name.
func createTable(ctx context.Context, d *deployment, e extra) error {
	var in dynamodb.CreateTableInput
	if err := fill(e.properties, d.outputs, &struct {
		AttributeDefinitions *[]ddbtypes.AttributeDefinition
		KeySchema            *[]ddbtypes.KeySchemaElement
		BillingMode          *ddbtypes.BillingMode
	}{&in.AttributeDefinitions, &in.KeySchema, &in.BillingMode}); err != nil {
		return err
	}
	if in.BillingMode != ddbtypes.BillingModePayPerRequest {
		return fmt.Errorf("billing mode %q is not supported here: use PAY_PER_REQUEST", in.BillingMode)
	}
	in.TableName = aws.String(d.physical[e.logical])
	_, err := dynamodb.NewFromConfig(d.dynamo).CreateTable(ctx, &in)
	return made(err)
}

// completeBucket sets versioning, Object Lock and the public access block.
func completeBucket(ctx context.Context, d *deployment, e extra) error {
	var p struct {
		VersioningConfiguration        *s3types.VersioningConfiguration
		ObjectLockEnabled              bool
		ObjectLockConfiguration        *s3types.ObjectLockConfiguration
		PublicAccessBlockConfiguration *s3types.PublicAccessBlockConfiguration
	}
	if err := fill(e.properties, d.outputs, &p); err != nil {
		return err
	}
	client, bucket := s3.NewFromConfig(d.moto), aws.String(d.physical[e.logical])
	if p.ObjectLockEnabled && p.ObjectLockConfiguration == nil {
		p.ObjectLockConfiguration = &s3types.ObjectLockConfiguration{ObjectLockEnabled: s3types.ObjectLockEnabledEnabled}
	}
	if p.ObjectLockConfiguration != nil && p.VersioningConfiguration == nil {
		p.VersioningConfiguration = &s3types.VersioningConfiguration{Status: s3types.BucketVersioningStatusEnabled}
	}
	if p.VersioningConfiguration != nil {
		if _, err := client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: bucket, VersioningConfiguration: p.VersioningConfiguration}); err != nil {
			return err
		}
	}
	if p.ObjectLockConfiguration != nil {
		if _, err := client.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{
			Bucket: bucket, ObjectLockConfiguration: p.ObjectLockConfiguration,
		}); err != nil {
			return err
		}
	}
	if p.PublicAccessBlockConfiguration != nil {
		if _, err := client.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{
			Bucket: bucket, PublicAccessBlockConfiguration: p.PublicAccessBlockConfiguration,
		}); err != nil {
			return err
		}
	}
	return nil
}

// createStateMachine creates the state machine in the part of moto that executes
// it; CloudFormation created it in the part that pretends, and without definition.
func createStateMachine(ctx context.Context, d *deployment, e extra) error {
	var p struct {
		StateMachineName, RoleArn *string
		StateMachineType          sfntypes.StateMachineType
		DefinitionSubstitutions   map[string]any
	}
	if err := fill(e.properties, d.outputs, &p); err != nil {
		return err
	}
	definition, ok := d.definitions[e.logical]
	if !ok {
		return errors.New("has no local definition")
	}
	for name, value := range p.DefinitionSubstitutions {
		definition = strings.ReplaceAll(definition, "${"+name+"}", fmt.Sprint(value))
	}
	d.stateMachineRole = aws.ToString(p.RoleArn)
	_, err := sfn.NewFromConfig(d.moto).CreateStateMachine(ctx, &sfn.CreateStateMachineInput{
		Name: p.StateMachineName, RoleArn: p.RoleArn, Type: p.StateMachineType, Definition: &definition,
	})
	return made(err)
}

func createScheduleGroup(ctx context.Context, d *deployment, e extra) error {
	var in scheduler.CreateScheduleGroupInput
	if err := fill(e.properties, d.outputs, &in); err != nil {
		return err
	}
	_, err := scheduler.NewFromConfig(d.moto).CreateScheduleGroup(ctx, &in)
	return made(err)
}

func createSchedule(ctx context.Context, d *deployment, e extra) error {
	var in scheduler.CreateScheduleInput
	if err := fill(e.properties, d.outputs, &in); err != nil {
		return err
	}
	_, err := scheduler.NewFromConfig(d.moto).CreateSchedule(ctx, &in)
	return made(err)
}

// made is err, unless it says that what was to be created is there. The account is empty
// when a stack is created: the SDK has repeated a call whose answer was lost, as happens
// on a busy machine.
func made(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
		case "AlreadyExistsException", "BucketAlreadyOwnedByYou", "ConflictException", "ResourceInUseException", "StateMachineAlreadyExists":
			return nil
		}
	}
	return err
}
