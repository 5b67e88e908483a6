package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sns"

	"github.com/matter-ops/kms-rotation/internal/announce"
	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/internal/snsnotify"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Announce is where customers are told of maintenance windows; what is empty is not
// used.
type Announce struct {
	Topic         string `json:"topic"`          // ARN
	Webhook       string `json:"webhook"`        // URL
	Statuspage    string `json:"statuspage"`     // id of the page
	StatuspageAPI string `json:"statuspage_api"` // URL
	Secret        string `json:"secret"`         // ARN of the secret that holds announce.Keys
}

// announce reads the announcers strictly.
func (e *env) announce(name string) Announce {
	a, err := parseAnnounce(e.required(name))
	if err != nil && e.get(name) != "" {
		e.fault(name, err)
	}
	return a
}

func parseAnnounce(v string) (Announce, error) {
	var a Announce
	d := json.NewDecoder(bytes.NewReader([]byte(v)))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return a, fmt.Errorf("is no JSON of announcers: %w", err)
	}
	var faults []error
	for field, v := range map[string]string{"webhook": a.Webhook, "statuspage_api": a.StatuspageAPI} {
		if u, err := url.Parse(v); v != "" && (err != nil || u.Scheme != "https" && u.Hostname() != "127.0.0.1" || u.Host == "") {
			faults = append(faults, fmt.Errorf("%s is no https URL", field)) // it may hold a secret
		}
	}
	if (a.Webhook != "" || a.Statuspage != "") && a.Secret == "" {
		faults = append(faults, errors.New("a webhook or a status page needs secret, which holds their keys"))
	}
	if a.Statuspage != "" && a.StatuspageAPI == "" {
		faults = append(faults, errors.New("a status page needs statuspage_api"))
	}
	return a, errors.Join(faults...)
}

// announcers are those that a deployment names.
func announcers(a Announce, cfg aws.Config) []rotation.Announcer {
	var out []rotation.Announcer
	if a.Topic != "" {
		out = append(out, announce.NewTopic(snsnotify.New(sns.NewFromConfig(cfg), a.Topic)))
	}
	client := httpClient(announce.Timeout)
	keys := secrets(cfg, a.Secret)
	if a.Webhook != "" {
		out = append(out, announce.NewWebhook(client, a.Webhook, keys, time.Now))
	}
	if a.Statuspage != "" {
		out = append(out, announce.NewStatuspage(client, a.StatuspageAPI, a.Statuspage, keys))
	}
	return out
}

// httpClient follows no redirect: where a request, and the key in it, goes is configured,
// and no server may send it on, be it to http or into the function's own network.
func httpClient(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// secrets fetches the announcers' keys when they are first needed.
func secrets(cfg aws.Config, arn string) announce.Secrets {
	var mu sync.Mutex
	var known *announce.Keys
	return func(ctx context.Context) (announce.Keys, error) {
		mu.Lock()
		defer mu.Unlock()
		if known != nil {
			return *known, nil
		}
		out, err := secretsmanager.NewFromConfig(cfg).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &arn})
		if err != nil {
			return announce.Keys{}, awserr.Wrap("secretsmanager GetSecretValue", err)
		}
		var k announce.Keys
		if json.Unmarshal([]byte(aws.ToString(out.SecretString)), &k) != nil { // its error would quote the secret
			return announce.Keys{}, fmt.Errorf("secret %s is no JSON of keys: %w", arn, rotation.ErrRejected)
		}
		known = &k
		return k, nil
	}
}
