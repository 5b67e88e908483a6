package app

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/rotation/journal"
)

type answering func(*http.Request) (*http.Response, error)

// Do implements [aws.HTTPClient].
func (f answering) Do(r *http.Request) (*http.Response, error) { return f(r) }

// TestConflictIsRepeated: a single write of an item that a transaction holds is repeated, a
// cancelled transaction is left to who sent it.
func TestConflictIsRepeated(t *testing.T) {
	cfg, err := AWSConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := cfg.Retryer()
	if !r.IsErrorRetryable(fmt.Errorf("operation error: %w", &types.TransactionConflictException{})) {
		t.Error("a conflict is not repeated")
	}
	if r.IsErrorRetryable(&types.TransactionCanceledException{}) {
		t.Error("a cancelled transaction is repeated")
	}
}

// TestRefuseWrongClock: a machine whose clock is wrong records nothing, and is told.
func TestRefuseWrongClock(t *testing.T) {
	for name, c := range map[string]struct {
		off    time.Duration
		header string
		status int
		wrong  bool
	}{
		"right":          {off: 0, status: 200},
		"a little ahead": {off: time.Minute, status: 200},
		"a little late":  {off: -time.Minute, status: 200},
		"ahead":          {off: 3 * time.Minute, status: 200, wrong: true},
		"late":           {off: -3 * time.Minute, status: 200, wrong: true},
		"no date":        {header: "-", status: 200},
		"an error first": {off: time.Hour, status: 400},
	} {
		client := dynamodb.New(dynamodb.Options{
			Region: "eu-central-1", Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""), RetryMaxAttempts: 1,
			APIOptions: append(aws.Config{}.APIOptions, refuseWrongClock),
			HTTPClient: answering(func(*http.Request) (*http.Response, error) {
				h := http.Header{"Content-Type": {"application/x-amz-json-1.0"}, "Date": {time.Now().Add(c.off).UTC().Format(http.TimeFormat)}}
				if c.header != "" {
					h.Set("Date", c.header)
				}
				return &http.Response{StatusCode: c.status, Header: h, Body: io.NopCloser(strings.NewReader("{}"))}, nil
			}),
		})
		_, err := client.ListTables(t.Context(), &dynamodb.ListTablesInput{})
		var typed *journal.Error
		if wrong := errors.As(err, &typed); wrong != c.wrong || (err != nil) != (c.wrong || c.status != 200) {
			t.Errorf("%s: %v", name, err)
		} else if wrong && (typed.Kind != journal.Misconfigured || typed.Field != "clock") {
			t.Errorf("%s: %+v", name, typed)
		}
	}
}

// TestStoppedProcess: an answer that lay while the process was stopped says nothing
// against the clock.
func TestStoppedProcess(t *testing.T) {
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	date := at.Format(http.TimeFormat)
	for name, c := range map[string]struct {
		sent, received time.Duration
		wrong          bool
	}{
		"stopped for an hour": {0, time.Hour, false},
		"asked at the limit":  {2 * time.Minute, 3 * time.Minute, false},
		"asked after it":      {2*time.Minute + 1, 3 * time.Minute, true},
		"come at the limit":   {-time.Hour, -2 * time.Minute, false},
		"come before it":      {-time.Hour, -2*time.Minute - 1, true},
	} {
		if err := checkClock(date, at.Add(c.sent), at.Add(c.received)); (err != nil) != c.wrong {
			t.Errorf("%s: %v", name, err)
		}
	}
}
