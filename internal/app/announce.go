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

	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Announce says on which channels customers are told of maintenance windows. A channel whose
// field is empty is not used.
type Announce struct {
	Topic         string `json:"topic"`          // ARN
	Webhook       string `json:"webhook"`        // URL
	Statuspage    string `json:"statuspage"`     // id of the page
	StatuspageAPI string `json:"statuspage_api"` // URL
	Secret        string `json:"secret"`         // ARN of the secret that holds notify.Keys
}

// readAnnounce reads the channels.
func (e *env) readAnnounce(name string) Announce {
	a, err := parseAnnounce(e.readRequired(name))
	if err != nil && e.get(name) != "" {
		e.addFault(name, err)
	}
	return a
}

// parseAnnounce reads the channels strictly, and reports every fault at once. An error never
// quotes a URL, because a webhook's URL may contain a secret.
func parseAnnounce(v string) (Announce, error) {
	var a Announce
	d := json.NewDecoder(bytes.NewReader([]byte(v)))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return a, fmt.Errorf("is not the JSON of the announcers: %w", err)
	}
	var faults []error
	for field, v := range map[string]string{"webhook": a.Webhook, "statuspage_api": a.StatuspageAPI} {
		if u, err := url.Parse(v); v != "" && (err != nil || u.Scheme != "https" && u.Hostname() != "127.0.0.1" || u.Host == "") {
			faults = append(faults, fmt.Errorf("%s is not an https URL", field))
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

// wireAnnouncers returns an announcer for each channel of the deployment.
func wireAnnouncers(a Announce, cfg aws.Config) []gates.Announcer {
	var out []gates.Announcer
	if a.Topic != "" {
		out = append(out, notify.NewTopic(sns.NewFromConfig(cfg), a.Topic, ""))
	}
	client := httpClient(notify.Timeout)
	keys := fetchSecrets(cfg, a.Secret)
	if a.Webhook != "" {
		out = append(out, notify.NewWebhook(client, a.Webhook, keys, time.Now))
	}
	if a.Statuspage != "" {
		out = append(out, notify.NewStatuspage(client, a.StatuspageAPI, a.Statuspage, keys))
	}
	return out
}

// httpClient does not follow redirects. The configuration decides where a request, and the key
// in it, is sent: a server must not redirect it to http or into the function's own network.
func httpClient(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// fetchSecrets returns a function that fetches the announcers' keys from Secrets Manager when
// they are first needed, and keeps them for the life of the process.
func fetchSecrets(cfg aws.Config, arn string) notify.Secrets {
	var mu sync.Mutex
	var known *notify.Keys
	return func(ctx context.Context) (notify.Keys, error) {
		mu.Lock()
		defer mu.Unlock()
		if known != nil {
			return *known, nil
		}
		out, err := secretsmanager.NewFromConfig(cfg).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &arn})
		if err != nil {
			return notify.Keys{}, remote.WrapError("secretsmanager GetSecretValue", err)
		}
		var k notify.Keys
		if json.Unmarshal([]byte(aws.ToString(out.SecretString)), &k) != nil { // its error would quote the secret
			return notify.Keys{}, fmt.Errorf("secret %s is not the JSON of the keys: %w", arn, journal.ErrRejected)
		}
		known = &k
		return k, nil
	}
}
