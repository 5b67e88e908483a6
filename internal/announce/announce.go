// Package announce tells customers of maintenance windows: by an SNS topic, by a
// signed webhook, and on a status page that speaks Statuspage's API.
//
// To tell the same twice is harmless: a webhook carries an idempotency key, and the
// status page is asked for the incident of a window before one is made. No secret is
// ever in an error.
package announce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Keys are the secrets of the announcers, as the deployment's secret holds them in
// JSON.
type Keys struct {
	Webhook    string `json:"webhook_hmac_key"`
	Statuspage string `json:"statuspage_api_key"`
}

// Secrets fetches the keys when they are needed.
type Secrets func(context.Context) (Keys, error)

// HTTP is what is used of an HTTP client.
type HTTP interface {
	Do(*http.Request) (*http.Response, error)
}

// Timeout is how long one request may take.
const Timeout = 5 * time.Second

// How often a request is made that was not answered, or answered with 429 or 5xx.
const (
	tries     = 3
	firstWait = 200 * time.Millisecond
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

// Topic announces by SNS to whoever subscribed.
type Topic struct{ notifier rotation.Notifier }

var (
	_ rotation.Announcer = (*Topic)(nil)
	_ rotation.Announcer = (*Webhook)(nil)
	_ rotation.Announcer = (*Statuspage)(nil)
)

// NewTopic returns the announcer of a topic.
func NewTopic(n rotation.Notifier) *Topic { return &Topic{n} }

// Name implements [rotation.Announcer].
func (*Topic) Name() string { return "sns" }

// Tell implements [rotation.Announcer].
func (t *Topic) Tell(ctx context.Context, a rotation.Announcement, stage rotation.Stage) error {
	title, body := a.Text(stage)
	return t.notifier.Notify(ctx, title, body)
}

// send makes a request until it is answered for good and decodes the answer into out,
// unless that is nil. Errors name method, host and status, never a header or a body.
func send(ctx context.Context, client HTTP, method, url string, header http.Header, body []byte, out any) error {
	var last error
	for try := range tries {
		if err := pause(ctx, try); err != nil {
			return errors.Join(last, err)
		}
		again, err := once(ctx, client, method, url, header, body, out)
		if err == nil || !again {
			return err
		}
		last = err
	}
	return fmt.Errorf("gave up after %d tries: %w", tries, last)
}

func once(ctx context.Context, client HTTP, method, url string, header http.Header, body []byte, out any) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("the URL is none") // it may hold a secret
	}
	req.Header = header.Clone()
	where := method + " " + req.URL.Host
	resp, err := client.Do(req)
	if err != nil {
		return true, fmt.Errorf("%s: no answer", where)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return true, fmt.Errorf("%s: %w", where, err)
	}
	if s := resp.StatusCode; s < 200 || s > 299 {
		err := fmt.Errorf("%s: status %d", where, s)
		if s == http.StatusUnauthorized || s == http.StatusForbidden {
			return false, fmt.Errorf("%w: %w", err, rotation.ErrDenied)
		}
		if again := s == http.StatusTooManyRequests || s >= 500; again {
			return true, err
		}
		return false, fmt.Errorf("%w: %w", err, rotation.ErrRejected)
	}
	if out == nil {
		return false, nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return false, fmt.Errorf("%s: the answer is not what was expected: %w", where, rotation.ErrRejected)
	}
	return false, nil
}

func pause(ctx context.Context, n int) error {
	if n == 0 {
		return ctx.Err()
	}
	return backoff.Sleep(ctx, firstWait<<n)
}
