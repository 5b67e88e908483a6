package dynamodb_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
)

// cannedAnswers answers each request with the body of its operation.
type cannedAnswers map[string][]byte

func (c cannedAnswers) Do(r *http.Request) (*http.Response, error) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Body: io.NopCloser(bytes.NewReader(c[op]))}, nil
}

// BenchmarkScan measures the processor's time of a row that is read: the SDK decodes the page,
// the driver its rows. The network and TLS are not in it.
func BenchmarkScan(b *testing.B) {
	const rows = 500
	blob := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	items := make([]string, rows)
	for i := range items {
		items[i] = fmt.Sprintf(`{"id":{"S":"row-%d"},"kek_id":{"S":"11111111-2222-3333-4444-555555555555"},"wrapped_dek":{"B":%q},"ciphertext":{"B":%q},"kek_epoch":{"N":"1"},"version":{"N":"1"}}`, i, blob(184), blob(600))
	}
	client := dynamodb.New(dynamodb.Options{
		Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""), BaseEndpoint: aws.String("http://localhost"),
		HTTPClient: cannedAnswers{
			"DescribeTable": []byte(`{"Table":{"TableStatus":"ACTIVE","KeySchema":[{"AttributeName":"id","KeyType":"HASH"}],"AttributeDefinitions":[{"AttributeName":"id","AttributeType":"S"}]}}`),
			"Scan":          []byte(`{"Items":[` + strings.Join(items, ",") + `]}`),
		},
	})
	table, err := dynamosource.New(client, dynamosource.Config{Name: "t", Table: "table", KEKID: "kek_id", WrappedDEK: "wrapped_dek", Ciphertext: "ciphertext", Version: "version", Context: map[string]string{"id": "$id"}})
	if err != nil {
		b.Fatal(err)
	}
	began := processorTime(b)
	for b.Loop() {
		page, err := table.Scan(b.Context(), source.ScanRequest{Total: 1, Whole: true})
		if err != nil || len(page.Rows) != rows || page.Rows[0].Defect != "" {
			b.Fatalf("%d rows, %v: %+v", len(page.Rows), err, page.Rows[0])
		}
	}
	b.ReportMetric(float64((processorTime(b)-began).Microseconds())/float64(b.N)/rows, "µs/row")
}

// processorTime returns how long the process has used a processor.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
