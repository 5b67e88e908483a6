package announce

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/matter-ops/kms-rotation/rotation"
)

// Webhook posts an event to a URL, signed.
type Webhook struct {
	client  HTTP
	url     string
	secrets Secrets
	now     func() time.Time
}

// NewWebhook returns the announcer of a URL.
func NewWebhook(client HTTP, url string, secrets Secrets, now func() time.Time) *Webhook {
	return &Webhook{client, url, secrets, now}
}

// Name implements [rotation.Announcer].
func (*Webhook) Name() string { return "webhook" }

// Event is what is posted.
type Event struct {
	ID    string         `json:"id"` // of the window: the label of the rotation
	Stage rotation.Stage `json:"stage"`
	Title string         `json:"title"`
	Body  string         `json:"body"`
	From  time.Time      `json:"from"`
	To    time.Time      `json:"to"`
}

// The headers of a delivery. The same window at the same stage has the same key.
const (
	SignatureHeader   = "Matter-Signature"
	IdempotencyHeader = "Idempotency-Key"
)

// Tell implements [rotation.Announcer].
func (w *Webhook) Tell(ctx context.Context, a rotation.Announcement, stage rotation.Stage) error {
	keys, err := w.secrets(ctx)
	if err != nil {
		return err
	}
	if keys.Webhook == "" {
		return fmt.Errorf("the secret has no webhook_hmac_key: %w", rotation.ErrRejected)
	}
	title, text := a.Text(stage)
	body, err := json.Marshal(Event{ID: a.Label, Stage: stage, Title: title, Body: text, From: a.From.UTC(), To: a.To.UTC()})
	if err != nil {
		return err
	}
	return send(ctx, w.client, http.MethodPost, w.url, http.Header{
		"Content-Type":    {"application/json"},
		IdempotencyHeader: {fmt.Sprintf("%s/%s/%s", a.Label, a.From.UTC().Format(time.RFC3339), stage)},
		SignatureHeader:   {Sign(keys.Webhook, w.now(), body)},
	}, body, nil)
}

// Sign is the signature of a body: "t=<unix>,v1=<hex HMAC-SHA-256 of <unix>.<body>>".
func Sign(key string, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	m := hmac.New(sha256.New, []byte(key))
	fmt.Fprint(m, t, ".")
	m.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(m.Sum(nil))
}
