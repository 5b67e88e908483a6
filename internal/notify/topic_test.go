package notify_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"

	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

func TestMain(m *testing.M) { mototest.Main(m) }

// delivery is what a subscriber gets.
type delivery struct{ Type, Subject, Message, TopicArn string }

// topic makes a topic and returns what is delivered to its one subscriber.
func topic(t *testing.T) (arn string, delivered <-chan delivery) {
	t.Helper()
	got := make(chan delivery, 10)
	subscriber := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var d delivery
		if err := json.NewDecoder(r.Body).Decode(&d); err != nil {
			t.Error(err)
		}
		if d.Type == "Notification" {
			got <- d
		}
	}))
	t.Cleanup(subscriber.Close)
	client := sns.NewFromConfig(mototest.Config(t))
	made, err := client.CreateTopic(t.Context(), &sns.CreateTopicInput{Name: aws.String(t.Name())})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Subscribe(t.Context(), &sns.SubscribeInput{
		TopicArn: made.TopicArn, Protocol: aws.String("http"), Endpoint: &subscriber.URL,
	}); err != nil {
		t.Fatal(err)
	}
	return *made.TopicArn, got
}

func receive(t *testing.T, delivered <-chan delivery) delivery {
	t.Helper()
	select {
	case d := <-delivered:
		return d
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was delivered")
		return delivery{}
	}
}

func TestNotify(t *testing.T) {
	arn, delivered := topic(t)
	n := notify.NewTopic(sns.NewFromConfig(mototest.Config(t)), arn, "matter")
	long := strings.Repeat("x", 99)
	for _, c := range []struct{ subject, message, wantSubject, wantMessage string }{
		{"KEK rotation halted", "What is safe: all.\nNext: redrive — soon.\n", "KEK rotation halted", "What is safe: all.\nNext: redrive — soon.\n"},
		{"", "m", "", "m"},
		{" \n two\nlines\t… ", "m", "two lines ?", "m"},
		{long + "y", "m", long + "y", "m"},
		{long + "yz", "m", long[:97] + "...", "m"},
		{strings.Repeat("é", 101), "m", strings.Repeat("?", 97) + "...", "m"},
		{"s", "", "s", "(no text)"},
		{"s", "bad \xff end", "s", "bad ? end"},
		{"s", strings.Repeat("é", 128<<10), "s", strings.Repeat("é", 128<<10)},
		{"s", strings.Repeat("é", 128<<10) + "!", "s", strings.Repeat("é", 128<<10-2) + "..."},
	} {
		if err := n.Notify(t.Context(), c.subject, c.message); err != nil {
			t.Fatalf("subject %q: %v", c.subject, err)
		}
		d := receive(t, delivered)
		if d.Subject != c.wantSubject || d.Message != c.wantMessage || d.TopicArn != arn {
			t.Errorf("subject %q, message %.60q (%d bytes) to %s, want %q, %.60q (%d bytes)",
				d.Subject, d.Message, len(d.Message), d.TopicArn, c.wantSubject, c.wantMessage, len(c.wantMessage))
		}
	}
}

// TestOperatorsReadWhere: the subject of a page names the stack and the rotation, and the cause in
// it is the error's text, not the JSON that Step Functions keeps.
func TestOperatorsReadWhere(t *testing.T) {
	arn, delivered := topic(t)
	halt := journal.Notice{Event: journal.NotifyHalted, RotationID: "Q2-2026", Error: "DrainTimeout", Cause: `{"errorMessage":"DrainTimeout: 2 leases","errorType":"DrainTimeout"}`}
	if err := notify.NewTopic(sns.NewFromConfig(mototest.Config(t)), arn, "payments").TellPeople(t.Context(), halt); err != nil {
		t.Fatal(err)
	}
	d := receive(t, delivered)
	if d.Subject != "payments: KEK rotation halted: Q2-2026" || !strings.Contains(d.Message, "\nError:     DrainTimeout\n           2 leases\n") {
		t.Errorf("%q, %q", d.Subject, d.Message)
	}
}

// TestBrokenWire: a notification whose request or answer was lost is sent again.
func TestBrokenWire(t *testing.T) {
	for name, sent := range map[string]bool{"request lost": false, "answer lost": true} {
		t.Run(name, func(t *testing.T) {
			made := sns.NewFromConfig(mototest.Config(t))
			out, err := made.CreateTopic(t.Context(), &sns.CreateTopicInput{Name: aws.String("broken-wire")})
			if err != nil {
				t.Fatal(err)
			}
			requests, failed := 0, 0 // a busy machine may lose more than the test does
			count := func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
				requests++
				resp, err := next(r)
				if err != nil || resp.StatusCode != http.StatusOK {
					failed++
				}
				return resp, err
			}
			bad := sns.NewFromConfig(mototest.Config(t, count, mototest.Break(func(*http.Request) bool { return true }, sent)))
			if err := notify.NewTopic(bad, *out.TopicArn, "matter").Notify(t.Context(), "s", "m"); err != nil || failed == 0 || requests != failed+1 {
				t.Errorf("%v after %d requests, of which %d failed", err, requests, failed)
			}
		})
	}
}

// TestErrors: a missing topic and a missing permission are named.
func TestErrors(t *testing.T) {
	const arn = "arn:aws:sns:eu-central-1:123456789012:no-such-topic"
	err := notify.NewTopic(sns.NewFromConfig(mototest.Config(t)), arn, "matter").Notify(t.Context(), "s", "m")
	if err == nil || errors.Is(err, journal.ErrDenied) || !strings.Contains(err.Error(), arn) {
		t.Errorf("no topic: %v", err)
	}
	denied := mototest.Config(t, func(r *http.Request, _ func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		body := `<ErrorResponse><Error><Type>Sender</Type><Code>AuthorizationError</Code><Message>no</Message></Error></ErrorResponse>`
		return &http.Response{StatusCode: http.StatusForbidden, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	})
	if err := notify.NewTopic(sns.NewFromConfig(denied), arn, "matter").Notify(t.Context(), "s", "m"); !errors.Is(err, journal.ErrDenied) {
		t.Errorf("denied: %v, want ErrDenied", err)
	}
}
