package announce

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/rotation"
)

// Statuspage keeps one incident per window on a page: scheduled, in_progress,
// verifying, completed.
type Statuspage struct {
	client  HTTP
	base    string
	secrets Secrets
}

// NewStatuspage returns the announcer of a page. api is where its API is, such as
// https://api.statuspage.io.
func NewStatuspage(client HTTP, api, page string, secrets Secrets) *Statuspage {
	return &Statuspage{client, strings.TrimSuffix(api, "/") + "/v1/pages/" + url.PathEscape(page) + "/incidents", secrets}
}

// Name implements [rotation.Announcer].
func (*Statuspage) Name() string { return "statuspage" }

// incident is what is used of one. Metadata tells ours from others.
type incident struct {
	ID             string                       `json:"id,omitempty"`
	Name           string                       `json:"name,omitempty"`
	Status         rotation.Stage               `json:"status"`
	Body           string                       `json:"body,omitempty"`
	ScheduledFor   *time.Time                   `json:"scheduled_for,omitempty"`
	ScheduledUntil *time.Time                   `json:"scheduled_until,omitempty"`
	Metadata       map[string]map[string]string `json:"metadata,omitempty"`
}

// Tell implements [rotation.Announcer].
func (s *Statuspage) Tell(ctx context.Context, a rotation.Announcement, stage rotation.Stage) error {
	keys, err := s.secrets(ctx)
	if err != nil {
		return err
	}
	if keys.Statuspage == "" {
		return fmt.Errorf("the secret has no statuspage_api_key: %w", rotation.ErrRejected)
	}
	header := http.Header{"Authorization": {"OAuth " + keys.Statuspage}, "Content-Type": {"application/json"}}
	there, err := s.find(ctx, header, a.Label)
	if err != nil {
		return err
	}
	want := incident{Status: stage}
	want.Name, want.Body = a.Text(stage)
	if stage == rotation.StageScheduled {
		from, to := a.From.UTC(), a.To.UTC()
		want.ScheduledFor, want.ScheduledUntil = &from, &to
		want.Metadata = map[string]map[string]string{"matter": {"window": a.Label}}
	}
	switch {
	case there == nil && stage != rotation.StageScheduled: // taken down by hand
		return nil
	case there == nil:
		return s.write(ctx, header, http.MethodPost, "", want)
	case there.Status == stage && (stage != rotation.StageScheduled || same(there, want)):
		return nil
	}
	return s.write(ctx, header, http.MethodPatch, "/"+url.PathEscape(there.ID), want)
}

func same(there *incident, want incident) bool {
	return there.ScheduledFor != nil && there.ScheduledUntil != nil &&
		there.ScheduledFor.Equal(*want.ScheduledFor) && there.ScheduledUntil.Equal(*want.ScheduledUntil)
}

// find returns the incident of a window that is not over, nil if there is none.
func (s *Statuspage) find(ctx context.Context, header http.Header, label string) (*incident, error) {
	var all []incident
	if err := send(ctx, s.client, http.MethodGet, s.base+"?limit=100", header, nil, &all); err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Metadata["matter"]["window"] == label && i.Status != rotation.StageCompleted {
			return &i, nil
		}
	}
	return nil, nil
}

func (s *Statuspage) write(ctx context.Context, header http.Header, method, path string, i incident) error {
	body, err := json.Marshal(map[string]incident{"incident": i})
	if err != nil {
		return err
	}
	return send(ctx, s.client, method, s.base+path, header, body, nil)
}
