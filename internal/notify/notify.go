// Package notify tells people about rotations. It has two ports: [journal.Notifier]
// tells operators that a rotation started, halted or completed, by an SNS topic and by an
// EventBridge event bus, which [Several] tells side by side. [gates.Announcer] tells customers of a maintenance window, by an SNS topic, a signed
// webhook or a status page with Statuspage's API.
//
// Invariants: a message may be sent twice, and that is harmless: a webhook carries an
// idempotency key, an event an id, and the status page is searched for the window's incident before one
// is created. An error never contains a secret: it names method, host and status only.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

var (
	_ journal.Notifier = (*Topic)(nil)
	_ journal.Notifier = (*EventBus)(nil)
	_ journal.Notifier = Several(nil)
	_ gates.Announcer  = (*Topic)(nil)
	_ gates.Announcer  = (*Webhook)(nil)
	_ gates.Announcer  = (*Statuspage)(nil)
)

// Keys are the secrets of the announcers. The deployment's secret in AWS Secrets Manager
// holds them as a JSON object.
type Keys struct {
	Webhook    string `json:"webhook_hmac_key"`
	Statuspage string `json:"statuspage_api_key"`
}

// Secrets fetches the keys when they are needed.
type Secrets func(context.Context) (Keys, error)

// HTTP is the part of an HTTP client that the announcers use.
type HTTP interface {
	Do(*http.Request) (*http.Response, error)
}

// Timeout is how long one request may take.
const Timeout = 5 * time.Second

// A request is repeated if it was not answered, or was answered with status 429 or 5xx.
const (
	maxTries  = 3
	firstWait = 200 * time.Millisecond
)

// maxAnswer bounds how many bytes of an answer are read.
const maxAnswer = 1 << 20

// request is one HTTP request of an announcer. Its URL, header and body may hold secrets.
type request struct {
	method string
	url    string
	header http.Header
	body   []byte
}

// sendRequest sends a request until its answer is final, and decodes the answer into out
// unless out is nil. A denied request becomes [journal.ErrDenied], a request that the
// server refuses [journal.ErrRejected]; any other error is transient.
func sendRequest(ctx context.Context, client HTTP, r request, out any) error {
	return repeatTries(ctx, func() (retry bool, err error) { return sendOnce(ctx, client, r, out) })
}

// repeatTries calls try until it succeeds, says that no retry helps, or has failed too often.
func repeatTries(ctx context.Context, try func() (retry bool, err error)) error {
	var last error
	for n := range maxTries {
		if err := waitForTry(ctx, n); err != nil {
			return errors.Join(last, err)
		}
		retry, err := try()
		if err == nil || !retry {
			return err
		}
		last = err
	}
	return fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// sendOnce sends a request once; retry says whether another try may succeed.
func sendOnce(ctx context.Context, client HTTP, r request, out any) (retry bool, err error) {
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return false, errors.New("the URL is invalid") // not quoted: it may hold a secret
	}
	req.Header = r.header.Clone()
	where := r.method + " " + req.URL.Host
	resp, err := client.Do(req)
	if err != nil {
		return true, fmt.Errorf("%s: no answer", where)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return true, fmt.Errorf("%s: %w", where, err)
	}
	if retry, err := checkStatus(where, resp.StatusCode); err != nil {
		return retry, err
	}
	if out == nil {
		return false, nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return false, fmt.Errorf("%s: the answer cannot be decoded: %w", where, journal.ErrRejected)
	}
	return false, nil
}

// checkStatus returns an error for a status that is not 2xx, and whether a repeated
// request may succeed.
func checkStatus(where string, status int) (retry bool, err error) {
	if status >= 200 && status <= 299 {
		return false, nil
	}
	err = fmt.Errorf("%s: status %d", where, status)
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return false, fmt.Errorf("%w: %w", err, journal.ErrDenied)
	case status == http.StatusTooManyRequests || status >= 500:
		return true, err
	}
	return false, fmt.Errorf("%w: %w", err, journal.ErrRejected)
}

// waitForTry waits before try n, counted from 0.
func waitForTry(ctx context.Context, n int) error {
	if n == 0 {
		return ctx.Err()
	}
	return remote.Wait(ctx, firstWait<<n)
}
