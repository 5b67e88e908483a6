package budget_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/matter-ops/kms-rotation/internal/budget"
)

// metrics answers GetMetricData with the values of each id, the newest first.
type metrics struct {
	t     *testing.T
	now   time.Time
	sums  map[string][]float64
	asked *cloudwatch.GetMetricDataInput
	bare  bool // results have no times
	times bool // results have a time, also those without values
	err   error
	late  map[string]time.Duration // of the results of an id
}

func (m *metrics) GetMetricData(_ context.Context, in *cloudwatch.GetMetricDataInput, _ ...func(*cloudwatch.Options)) (*cloudwatch.GetMetricDataOutput, error) {
	if m.asked = in; m.err != nil {
		return nil, m.err
	}
	out := &cloudwatch.GetMetricDataOutput{}
	for _, q := range in.MetricDataQueries {
		r := cwtypes.MetricDataResult{Id: q.Id, Values: m.sums[*q.Id]}
		for i := range r.Values {
			if m.bare {
				break
			}
			r.Timestamps = append(r.Timestamps, m.now.Add(-time.Duration(i+2)*time.Minute-m.late[*q.Id]))
		}
		if m.times {
			r.Timestamps = []time.Time{m.now}
		}
		out.MetricDataResults = append(out.MetricDataResults, r)
	}
	return out, nil
}

// TestKMSUsage: CloudWatch is asked for the quota's own metric, and the latest minute counts.
func TestKMSUsage(t *testing.T) {
	now := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	m := &metrics{t: t, now: now, sums: map[string][]float64{"used": {180_000, 6}, "share": {0.3, 0.1}}}
	s, err := budget.KMSUsage(m, func() time.Time { return now.Add(17 * time.Second) })(t.Context())
	if want := (budget.Sample{Minute: now.Add(-2 * time.Minute), Used: 3000, Capacity: 10_000}); err != nil || s != want {
		t.Errorf("%+v, %v, want %+v", s, err, want)
	}
	metric := m.asked.MetricDataQueries[0].MetricStat
	if *metric.Metric.Namespace != "AWS/Usage" || *metric.Metric.MetricName != "CallCount" || *metric.Stat != "Sum" || *metric.Period != 60 || !m.asked.EndTime.Equal(now) {
		t.Errorf("asked for %+v until %s", metric, m.asked.EndTime)
	}
	want := map[string]string{"Class": "None", "Resource": "CryptographicOperationsSymmetric", "Service": "KMS", "Type": "API"}
	if got := dimensions(metric); !maps.Equal(got, want) {
		t.Errorf("asked for %v, want %v", got, want)
	}
	if q := m.asked; aws.ToString(q.MetricDataQueries[1].Expression) != "used/SERVICE_QUOTA(used)" || q.ScanBy != cwtypes.ScanByTimestampDescending || !q.StartTime.Equal(now.Add(-10*time.Minute)) {
		t.Errorf("asked for %+v", q)
	}
	m.late = map[string]time.Duration{"share": time.Minute}
	for range 20 { // the results are in no order
		if s, err := budget.KMSUsage(m, func() time.Time { return now })(t.Context()); err == nil || s.Capacity != 0 {
			t.Errorf("of two minutes: %+v, %v", s, err)
		}
	}
	m.late, m.err = nil, io.ErrUnexpectedEOF
	if _, err := budget.KMSUsage(m, func() time.Time { return now })(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("without an answer: %v", err)
	}
	m.err = nil
	m.bare = true
	if s, err := budget.KMSUsage(m, func() time.Time { return now })(t.Context()); err != nil || s.Capacity != 0 {
		t.Errorf("without times: %+v, %v", s, err)
	}
	m.bare = false
	for _, nothing := range []map[string][]float64{{}, {"used": {5}}, {"used": {5}, "share": {0}}} {
		m.sums = nothing
		m.times = len(nothing) == 1
		if s, err := budget.KMSUsage(m, func() time.Time { return now })(t.Context()); err != nil || s.Capacity != 0 {
			t.Errorf("%v: %+v, %v", nothing, s, err)
		}
	}
}

func dimensions(s *cwtypes.MetricStat) map[string]string {
	out := map[string]string{}
	for _, d := range s.Metric.Dimensions {
		out[aws.ToString(d.Name)] = aws.ToString(d.Value)
	}
	return out
}

// failing is a table that cannot be described.
type failing struct{ asked int }

var errFails = errors.New("it fails")

func (f *failing) DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	f.asked++
	return nil, errFails
}

// TestTableUsageFails: without a sum the table is not described; what fails is not a sample.
func TestTableUsageFails(t *testing.T) {
	now := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	m, f := &metrics{t: t, now: now}, &failing{}
	usage := budget.TableUsage(m, f, "orders", func() time.Time { return now })
	if s, err := usage(t.Context()); err != nil || s != (budget.Sample{}) || f.asked != 0 {
		t.Errorf("without a sum: %+v, %v, described %d times", s, err, f.asked)
	}
	m.sums = map[string][]float64{"used": {6000}}
	if s, err := usage(t.Context()); !errors.Is(err, errFails) || s != (budget.Sample{}) {
		t.Errorf("without a description: %+v, %v", s, err)
	}
	m.err = io.ErrUnexpectedEOF
	if s, err := usage(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) || s != (budget.Sample{}) || f.asked != 1 {
		t.Errorf("without an answer: %+v, %v", s, err)
	}
}

type described types.TableDescription

func (d *described) DescribeTable(_ context.Context, in *dynamodb.DescribeTableInput, _ ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if aws.ToString(in.TableName) != "orders" {
		return nil, errFails
	}
	return &dynamodb.DescribeTableOutput{Table: (*types.TableDescription)(d)}, nil
}

// TestTableUsage: what a table takes is provisioned, or warm within its maximum and the quota.
func TestTableUsage(t *testing.T) {
	now := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	warm := func(units int64) *types.TableWarmThroughputDescription {
		return &types.TableWarmThroughputDescription{WriteUnitsPerSecond: &units}
	}
	for _, c := range []struct {
		table described
		want  float64
	}{
		{described{}, 0}, // an emulator knows none
		{described{WarmThroughput: warm(4000)}, 4000},
		{described{WarmThroughput: warm(90_000)}, 40_000},
		{described{WarmThroughput: warm(4000), OnDemandThroughput: &types.OnDemandThroughput{MaxWriteRequestUnits: aws.Int64(0)}}, 4000},
		{described{WarmThroughput: warm(4000), OnDemandThroughput: &types.OnDemandThroughput{MaxWriteRequestUnits: aws.Int64(1)}}, 1},
		{described{WarmThroughput: warm(4000), OnDemandThroughput: &types.OnDemandThroughput{MaxWriteRequestUnits: aws.Int64(9000)}}, 4000},
		{described{WarmThroughput: warm(4000), OnDemandThroughput: &types.OnDemandThroughput{MaxWriteRequestUnits: aws.Int64(500)}}, 500},
		{described{WarmThroughput: warm(4000), OnDemandThroughput: &types.OnDemandThroughput{MaxWriteRequestUnits: aws.Int64(-1)}}, 4000},
		{described{WarmThroughput: warm(4000), ProvisionedThroughput: &types.ProvisionedThroughputDescription{WriteCapacityUnits: aws.Int64(200)}}, 200},
		{described{WarmThroughput: warm(4000), ProvisionedThroughput: &types.ProvisionedThroughputDescription{WriteCapacityUnits: aws.Int64(1)}}, 1},
		{described{WarmThroughput: warm(4000), ProvisionedThroughput: &types.ProvisionedThroughputDescription{WriteCapacityUnits: aws.Int64(0)}}, 4000},
	} {
		m := &metrics{t: t, now: now, sums: map[string][]float64{"used": {6000}}}
		s, err := budget.TableUsage(m, &c.table, "orders", func() time.Time { return now })(t.Context())
		if err != nil || s.Used != 100 || s.Capacity != c.want {
			t.Errorf("%+v: %+v, %v", c.table, s, err)
		}
		if metric := m.asked.MetricDataQueries[0].MetricStat.Metric; aws.ToString(metric.Namespace) != "AWS/DynamoDB" || aws.ToString(metric.MetricName) != "ConsumedWriteCapacityUnits" {
			t.Errorf("asked for %+v", metric)
		}
		if got := dimensions(m.asked.MetricDataQueries[0].MetricStat); !maps.Equal(got, map[string]string{"TableName": "orders"}) {
			t.Errorf("asked for %v", got)
		}
	}
}

// wire is a DynamoDB that answers every request alike.
func wire(t *testing.T, status int, body string) (*dynamodb.Client, *budget.Budget, *[]string) {
	t.Helper()
	var sent []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		sent = append(sent, string(b))
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	b := budget.New(budget.Params{Ceiling: 1000, Workers: 1, Now: time.Now})
	cfg := aws.Config{Region: "eu-central-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("a", "b", "")}
	return dynamodb.NewFromConfig(cfg, func(o *dynamodb.Options) {
		o.APIOptions = append(o.APIOptions, budget.SpendWrites(func(table string) *budget.Budget {
			if table != "orders" {
				return nil
			}
			return b
		}))
		o.RetryMaxAttempts = 2
	}), b, &sent
}

// TestWritesSpend: an update spends the units that DynamoDB says it took; reads spend none;
// each throttled attempt counts.
func TestWritesSpend(t *testing.T) {
	update := &dynamodb.UpdateItemInput{TableName: aws.String("orders"), Key: map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: "1"}}}
	client, b, sent := wire(t, http.StatusOK, `{"ConsumedCapacity":{"TableName":"orders","CapacityUnits":1100}}`)
	if _, err := client.UpdateItem(t.Context(), update); err != nil || update.ReturnConsumedCapacity != "" {
		t.Fatal(err, update.ReturnConsumedCapacity)
	}
	if !strings.Contains((*sent)[0], `"ReturnConsumedCapacity":"TOTAL"`) {
		t.Errorf("sent %q", *sent)
	}
	began := time.Now()
	other := &dynamodb.UpdateItemInput{TableName: aws.String("another"), Key: update.Key} // a table without a budget
	if _, err := client.UpdateItem(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := client.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: aws.String("orders"), Key: update.Key}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("a write to another table and a read waited %s", took)
	}
	if b.Rate() != 1000 {
		t.Errorf("%g units a second after writes that were not refused", b.Rate())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := client.UpdateItem(ctx, update); err == nil { // a second's units are spent
		t.Error("the next write did not wait")
	}
	if len(*sent) != 3 {
		t.Errorf("sent %q", *sent)
	}
	client, b, sent = wire(t, http.StatusBadRequest, `{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"m"}`)
	if _, err := client.UpdateItem(t.Context(), update); err == nil {
		t.Error("no error")
	}
	if rate := b.Rate(); len(*sent) != 2 || rate > 10 { // 70 % of the few that this second has seen
		t.Errorf("%d attempts, then %g units a second", len(*sent), rate)
	}
	if _, err := client.UpdateItem(t.Context(), other); err == nil {
		t.Error("no error of a table without a budget")
	}
	if _, err := client.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: aws.String("orders"), Key: update.Key}); err == nil {
		t.Error("no error of a read")
	}
	client, _, _ = wire(t, http.StatusOK, `{}`)
	if _, err := client.UpdateItem(t.Context(), update); err != nil {
		t.Errorf("an answer without units: %v", err)
	}
}

// TestMiddlewareOrder: a stack without retries is refused: there each attempt could not be counted.
func TestMiddlewareOrder(t *testing.T) {
	b := budget.New(budget.Params{Ceiling: 1000, Workers: 1, Now: time.Now})
	writes := budget.SpendWrites(func(string) *budget.Budget { return b })
	if err := budget.SpendRequests(b)(middleware.NewStack("s", nil)); err == nil {
		t.Error("requests are counted without retries")
	}
	if err := writes(middleware.NewStack("s", nil)); err == nil {
		t.Error("writes are counted without retries")
	}
}
