package strict

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// tracker keeps the last successful cryptographic operation with each key.
type tracker struct {
	since time.Time

	mu   sync.Mutex
	last map[string]lastUse // by the key's ARN: a replica's uses are its own
}

// lastUse is KeyLastUsageData of the AWS KMS API reference.
type lastUse struct {
	Operation         string
	Timestamp         float64 // seconds since 1970
	CloudTrailEventID string  `json:"CloudTrailEventId"`
	KMSRequestID      string  `json:"KmsRequestId"`
}

// note remembers an operation that succeeded. There is no CloudTrail here: the
// event's id is one that nobody finds.
func (t *tracker) note(operation, request string, keyARNs ...string) {
	use := lastUse{operation, seconds(time.Now()), wire.RequestID(), request}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]lastUse{}
	}
	for _, arn := range keyARNs {
		if arn != "" {
			t.last[arn] = use
		}
	}
}

// lastUsage answers GetKeyLastUsage as the AWS KMS API reference has it.
func (t *Transport) lastUsage(r *http.Request) (*http.Response, error) {
	var asked keyIDs
	if _, err := read(r, "GetKeyLastUsage", &asked); err != nil {
		return nil, err
	}
	if strings.Contains(asked.KeyID, "alias/") {
		return refusal(r, "NotFoundException", fmt.Sprintf("Invalid keyId '%s'", asked.KeyID)), nil
	}
	m, no, err := t.describe(r, asked.KeyID)
	if no != nil || err != nil {
		return no, err
	}
	answer := struct {
		KeyID             string `json:"KeyId"`
		KeyCreationDate   float64
		TrackingStartDate float64
		KeyLastUsage      any
	}{m.KeyID, m.CreationDate, max(m.CreationDate, seconds(t.usage.since)), struct{}{}}
	t.usage.mu.Lock()
	if use, ok := t.usage.last[m.Arn]; ok {
		answer.KeyLastUsage = use
	}
	t.usage.mu.Unlock()
	body, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return reply(r, body), nil
}

func seconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }
