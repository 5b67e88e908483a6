package notify

import (
	"context"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Webhook posts a signed event to a URL.
type Webhook struct {
	client  HTTP
	url     string
	secrets Secrets
	now     func() time.Time
}

// NewWebhook returns the announcer of a URL. The URL may hold a secret; errors do not
// show it.
func NewWebhook(client HTTP, url string, secrets Secrets, now func() time.Time) *Webhook {
	return &Webhook{client, url, secrets, now}
}

// Name implements [gates.Announcer].
func (*Webhook) Name() string { return "webhook" }

// Event is the JSON body of a delivery.
type Event struct {
	ID    string      `json:"id"` // of the window: the label of the rotation
	Stage gates.Stage `json:"stage"`
	Title string      `json:"title"`
	Body  string      `json:"body"`
	From  time.Time   `json:"from"` // UTC, RFC 3339
	To    time.Time   `json:"to"`
}

// The headers of a delivery. Deliveries of one window at one stage have the same
// idempotency key, so that a receiver can drop a repeated one.
const (
	SignatureHeader   = "Matter-Signature"
	IdempotencyHeader = "Idempotency-Key"
)

// minApprovedKey is the length of the shortest key that FIPS 140-3 approves for an HMAC, 112 bits,
// in bytes. In that mode the HMAC of a shorter one panics.
const minApprovedKey = 14

// Tell implements [gates.Announcer].
func (w *Webhook) Tell(ctx context.Context, a gates.Announcement, stage gates.Stage) error {
	keys, err := w.secrets(ctx)
	if err != nil {
		return err
	}
	if keys.Webhook == "" {
		return fmt.Errorf("the secret has no webhook_hmac_key: %w", journal.ErrRejected)
	}
	if fips140.Enforced() && len(keys.Webhook) < minApprovedKey {
		return fmt.Errorf("the secret's webhook_hmac_key is shorter than %d bytes, which FIPS 140-3 mode refuses; put a longer one there: %w", minApprovedKey, journal.ErrRejected)
	}
	title, text := a.Text(stage)
	body, err := json.Marshal(Event{ID: a.Label, Stage: stage, Title: title, Body: text, From: a.From.UTC(), To: a.To.UTC()})
	if err != nil {
		return err
	}
	header := http.Header{
		"Content-Type":    {"application/json"},
		IdempotencyHeader: {fmt.Sprintf("%s/%s/%s", a.Label, a.From.UTC().Format(time.RFC3339), stage)},
		SignatureHeader:   {SignBody(keys.Webhook, w.now(), body)},
	}
	return sendRequest(ctx, w.client, request{method: http.MethodPost, url: w.url, header: header, body: body}, nil)
}

// SignBody returns the signature of a body that is sent at a time:
//
//	t=<Unix seconds>,v1=<hex of HMAC-SHA-256 with key over "<Unix seconds>.<body>">
//
// The signed time lets a receiver refuse a replayed delivery.
func SignBody(key string, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	m := hmac.New(sha256.New, []byte(key))
	fmt.Fprint(m, t, ".")
	m.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(m.Sum(nil))
}
