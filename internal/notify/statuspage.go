package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Statuspage announces on a status page: one incident per window, whose status follows
// the stages scheduled, in_progress, verifying, completed.
type Statuspage struct {
	client    HTTP
	incidents string // URL of the page's incidents
	secrets   Secrets
}

// NewStatuspage returns the announcer of a page. api is the URL of the API, such as
// https://api.statuspage.io.
func NewStatuspage(client HTTP, api, page string, secrets Secrets) *Statuspage {
	return &Statuspage{client, strings.TrimSuffix(api, "/") + "/v1/pages/" + url.PathEscape(page) + "/incidents", secrets}
}

// Name implements [gates.Announcer].
func (*Statuspage) Name() string { return "statuspage" }

// incident has the fields of an incident that are used (Statuspage API reference,
// Incidents). Metadata {"matter": {"window": label}} marks the incidents of this package.
type incident struct {
	ID             string                       `json:"id,omitempty"`
	Name           string                       `json:"name,omitempty"`
	Status         gates.Stage                  `json:"status"`
	Body           string                       `json:"body,omitempty"`
	ScheduledFor   *time.Time                   `json:"scheduled_for,omitempty"`
	ScheduledUntil *time.Time                   `json:"scheduled_until,omitempty"`
	Metadata       map[string]map[string]string `json:"metadata,omitempty"`
}

// Tell implements [gates.Announcer]. A later stage of a window without an incident is
// not told: a person has removed the incident from the page.
func (s *Statuspage) Tell(ctx context.Context, a gates.Announcement, stage gates.Stage) error {
	keys, err := s.secrets(ctx)
	if err != nil {
		return err
	}
	if keys.Statuspage == "" {
		return fmt.Errorf("the secret has no statuspage_api_key: %w", journal.ErrRejected)
	}
	header := http.Header{"Authorization": {"OAuth " + keys.Statuspage}, "Content-Type": {"application/json"}}
	found, err := s.findIncident(ctx, header, a.Label)
	if err != nil {
		return err
	}
	want := incident{Status: stage}
	want.Name, want.Body = a.Text(stage)
	if stage == gates.StageScheduled {
		from, to := a.From.UTC(), a.To.UTC()
		want.ScheduledFor, want.ScheduledUntil = &from, &to
		want.Metadata = map[string]map[string]string{"matter": {"window": a.Label}}
	}
	switch {
	case found == nil && stage != gates.StageScheduled:
		return nil
	case found == nil:
		return s.writeIncident(ctx, request{method: http.MethodPost, url: s.incidents, header: header}, want)
	case found.Status == stage && (stage != gates.StageScheduled || sameSchedule(found, want)):
		return nil
	}
	return s.writeIncident(ctx, request{method: http.MethodPatch, url: s.incidents + "/" + url.PathEscape(found.ID), header: header}, want)
}

// sameSchedule reports whether an incident has the wanted times. Another time means that
// the window was moved.
func sameSchedule(found *incident, want incident) bool {
	return found.ScheduledFor != nil && found.ScheduledUntil != nil &&
		found.ScheduledFor.Equal(*want.ScheduledFor) && found.ScheduledUntil.Equal(*want.ScheduledUntil)
}

// findIncident returns the incident of a window that has not completed; nil if there is
// none. A completed one belongs to an earlier window with the same label.
func (s *Statuspage) findIncident(ctx context.Context, header http.Header, label string) (*incident, error) {
	var all []incident
	if err := sendRequest(ctx, s.client, request{method: http.MethodGet, url: s.incidents + "?limit=100", header: header}, &all); err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Metadata["matter"]["window"] == label && i.Status != gates.StageCompleted {
			return &i, nil
		}
	}
	return nil, nil
}

// writeIncident creates or changes an incident.
func (s *Statuspage) writeIncident(ctx context.Context, r request, i incident) (err error) {
	if r.body, err = json.Marshal(map[string]incident{"incident": i}); err != nil {
		return err
	}
	return sendRequest(ctx, s.client, r, nil)
}
