package budget

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/remote"
)

// MetricAPI is what a usage needs of CloudWatch.
type MetricAPI interface {
	GetMetricData(context.Context, *cloudwatch.GetMetricDataInput, ...func(*cloudwatch.Options)) (*cloudwatch.GetMetricDataOutput, error)
}

// TableAPI is what the usage of a table needs of DynamoDB.
type TableAPI interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
}

const (
	minute   = time.Minute
	lookBack = 10 * time.Minute // for the latest sum

	// maxTableWrites is the default quota of an on-demand table in write units a second
	// (DynamoDB developer guide, "Quotas in Amazon DynamoDB").
	maxTableWrites = 40_000
)

// KMSUsage returns the use of the account's quota of symmetric operations in the Region
// (CloudWatch user guide, "AWS usage metrics"). What the quota is says SERVICE_QUOTA of metric
// math: the use as a share of it is the expression that the Service Quotas console makes its
// alarms of, so it holds whatever the unit of the quota is.
func KMSUsage(client MetricAPI, now func() time.Time) Usage {
	metric := &cwtypes.Metric{Namespace: aws.String("AWS/Usage"), MetricName: aws.String("CallCount"), Dimensions: []cwtypes.Dimension{
		dimension("Class", "None"), dimension("Resource", "CryptographicOperationsSymmetric"), dimension("Service", "KMS"), dimension("Type", "API"),
	}}
	share := cwtypes.MetricDataQuery{Id: aws.String("share"), Expression: aws.String("used/SERVICE_QUOTA(used)")}
	return func(ctx context.Context) (Sample, error) {
		sums, err := latest(ctx, client, now(), metric, share)
		if err != nil || sums["share"].value <= 0 {
			return Sample{}, err
		}
		s := sums["used"].toSample()
		s.Capacity = s.Used / sums["share"].value
		return s, nil
	}
}

// TableUsage returns the use of a table's write capacity. The capacity is what the table takes
// at once, its warm throughput (DynamoDB developer guide, "Understanding DynamoDB warm
// throughput"), unless its provisioned capacity, its on-demand maximum or the quota is lower.
func TableUsage(client MetricAPI, tables TableAPI, table string, now func() time.Time) Usage {
	metric := &cwtypes.Metric{Namespace: aws.String("AWS/DynamoDB"), MetricName: aws.String("ConsumedWriteCapacityUnits"), Dimensions: []cwtypes.Dimension{dimension("TableName", table)}}
	return func(ctx context.Context) (Sample, error) {
		sums, err := latest(ctx, client, now(), metric)
		if err != nil || sums["used"].at.IsZero() {
			return Sample{}, err
		}
		d, err := tables.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &table})
		if err != nil {
			return Sample{}, remote.WrapError("dynamodb DescribeTable "+table, err)
		}
		s := sums["used"].toSample()
		s.Capacity = writeCapacity(d.Table)
		return s, nil
	}
}

// writeCapacity returns how many write units a second a table takes; 0 if that is not known.
func writeCapacity(d *types.TableDescription) float64 {
	if p := d.ProvisionedThroughput; p != nil && aws.ToInt64(p.WriteCapacityUnits) > 0 {
		return float64(*p.WriteCapacityUnits)
	}
	if d.WarmThroughput == nil {
		return 0
	}
	units := min(float64(aws.ToInt64(d.WarmThroughput.WriteUnitsPerSecond)), maxTableWrites)
	if o := d.OnDemandThroughput; o != nil && aws.ToInt64(o.MaxWriteRequestUnits) > 0 {
		units = min(units, float64(*o.MaxWriteRequestUnits))
	}
	return units
}

func dimension(name, value string) cwtypes.Dimension {
	return cwtypes.Dimension{Name: &name, Value: &value}
}

// sum is a metric's sum of one minute.
type sum struct {
	at    time.Time
	value float64
}

func (s sum) toSample() Sample { return Sample{Minute: s.at, Used: s.value / minute.Seconds()} }

// latest reads the latest sum of a metric, under the name used, and of expressions over it.
// A minute for which one of them is missing does not count.
func latest(ctx context.Context, client MetricAPI, now time.Time, metric *cwtypes.Metric, more ...cwtypes.MetricDataQuery) (map[string]sum, error) {
	queries := append([]cwtypes.MetricDataQuery{{
		Id:         aws.String("used"),
		MetricStat: &cwtypes.MetricStat{Metric: metric, Period: aws.Int32(int32(minute.Seconds())), Stat: aws.String("Sum")},
	}}, more...)
	end := now.Truncate(minute)
	out, err := client.GetMetricData(ctx, &cloudwatch.GetMetricDataInput{
		StartTime: aws.Time(end.Add(-lookBack)), EndTime: &end, MetricDataQueries: queries, ScanBy: cwtypes.ScanByTimestampDescending,
	})
	if err != nil {
		return nil, remote.WrapError("cloudwatch GetMetricData", err)
	}
	sums := map[string]sum{}
	for _, r := range out.MetricDataResults {
		if len(r.Timestamps) == 0 || len(r.Values) == 0 {
			return nil, nil
		}
		sums[aws.ToString(r.Id)] = sum{r.Timestamps[0], r.Values[0]}
	}
	for id, s := range sums {
		if !s.at.Equal(sums["used"].at) {
			return nil, fmt.Errorf("cloudwatch GetMetricData: %s is of %s, not of %s", id, s.at, sums["used"].at)
		}
	}
	return sums, nil
}
