package notify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// EventBridge is the part of the EventBridge client that [EventBus] uses.
type EventBridge interface {
	PutEvents(context.Context, *eventbridge.PutEventsInput, ...func(*eventbridge.Options)) (*eventbridge.PutEventsOutput, error)
}

// EventSource is the source of each event. Rules and the permissions of template.yaml name it.
const EventSource = "matter.kms-rotation"

// SchemaVersion changes when a field of [EventDetail] is removed or gets another meaning, and
// when a detail-type is renamed. New fields and detail-types do not change it.
const SchemaVersion = 1

// maxText bounds each text of an event, in bytes. All texts together, escaped for JSON, stay
// below the 256 KB that PutEvents takes.
const maxText = 2 << 10

// EventDetail is the detail of an event. docs/events.md describes it, and
// docs/events.schema.json is written from it.
type EventDetail struct {
	SchemaVersion int       `json:"schema_version" about:"version of this schema"`
	ID            string    `json:"id" about:"the same for an event that was sent twice: drop the second"`
	Time          time.Time `json:"time" about:"when the event was sent"`
	Stack         string    `json:"stack" about:"name of the stack"`
	Event         string    `json:"event" about:"what happened; each has its detail-type"`
	Severity      Severity  `json:"severity" about:"critical: page somebody now; warning: somebody must act in working hours; info: nothing to do"`
	Rotation      string    `json:"rotation,omitempty" about:"id of the rotation; of an announced window, its label"`
	Mode          string    `json:"mode,omitempty" about:"of the rotation that has started: normal or emergency"`
	Drill         string    `json:"drill,omitempty" about:"name of the drill that the rotation is"`
	Execution     string    `json:"execution,omitempty" about:"ARN of the execution of the state machine"`
	Error         string    `json:"error,omitempty" about:"kind of the error, as docs/troubleshooting.md lists them"`
	Cause         string    `json:"cause,omitempty" about:"the error in one line"`
	Plan          string    `json:"plan,omitempty" about:"hash of the plan that waits for approval"`
	Detail        string    `json:"detail,omitempty" about:"one line more"`
	RowsMissing   string    `json:"rows_missing,omitempty" about:"of a completed rotation: sources that have lost many rows"`
	Safe          string    `json:"safe" about:"what need not be feared"`
	Next          string    `json:"next" about:"what to do next, mostly a command"`
	Links         Links     `json:"links" about:"where to look"`
}

// Links are the URLs of an event.
type Links struct {
	Runbook   string `json:"runbook" about:"section of the runbook"`
	Execution string `json:"execution,omitempty" about:"the execution in the console of AWS"`
}

// EventBus publishes each message to operators as an event on one EventBridge event bus. It is
// safe for concurrent use.
type EventBus struct {
	client     EventBridge
	bus, stack string
	now        func() time.Time
}

// NewEventBus returns the notifier of the event bus with this name, in the account and Region of
// the client.
func NewEventBus(client EventBridge, bus, stack string, now func() time.Time) *EventBus {
	return &EventBus{client, bus, stack, now}
}

// TellPeople implements [journal.Notifier]. One event is one request: the condition keys of a
// policy then have one value each, and no part of a request can fail alone. The SDK and the
// functions' callers repeat a request whose answer was lost, so an event may arrive twice, with
// the same id in its detail.
func (b *EventBus) TellPeople(ctx context.Context, n journal.Notice) error {
	body, err := json.Marshal(b.composeDetail(n))
	if err != nil {
		return err
	}
	in := &eventbridge.PutEventsInput{Entries: []types.PutEventsRequestEntry{{
		EventBusName: &b.bus, Source: aws.String(EventSource), DetailType: aws.String(messages[n.Event].what), Detail: aws.String(string(body)),
	}}}
	err = repeatTries(ctx, func() (retry bool, err error) {
		out, err := b.client.PutEvents(ctx, in)
		if err != nil {
			return false, remote.WrapError("events PutEvents", err) // the SDK has retried
		}
		return checkEntries(out)
	})
	if err != nil {
		return fmt.Errorf("event bus %s: %w", b.bus, err)
	}
	return nil
}

// checkEntries returns the failure that an answer of status 200 reports for its one entry, and
// whether a repeated request may succeed. The codes are those that the API reference lists
// (PutEventsResultEntry); an unknown one is transient.
func checkEntries(out *eventbridge.PutEventsOutput) (retry bool, err error) {
	if out.FailedEntryCount == 0 {
		return false, nil
	}
	err = errors.New("events PutEvents: the entry failed")
	for _, e := range out.Entries {
		code := aws.ToString(e.ErrorCode)
		err = fmt.Errorf("events PutEvents: %s: %s", code, aws.ToString(e.ErrorMessage))
		switch code {
		case "AccessDeniedException", "NotAuthorizedForSourceException", "NotAuthorizedForDetailTypeException":
			return false, fmt.Errorf("%w: %w", err, journal.ErrDenied)
		case "InvalidAccountIdException", "InvalidArgument", "MalformedDetail", "RedactionFailure":
			return false, fmt.Errorf("%w: %w", err, journal.ErrRejected)
		}
	}
	return true, err
}

// composeDetail is the detail of the event that a notice becomes. Like a message to the topic it
// is never refused for its form: texts are cut and made visible.
func (b *EventBus) composeDetail(n journal.Notice) EventDetail {
	kind, cause := journal.ReadFailure(n.Error, n.Cause)
	at := b.now().UTC()
	d := EventDetail{
		SchemaVersion: SchemaVersion, ID: identifyEvent(b.stack, n, at), Time: at.Truncate(time.Second), Stack: b.stack, Event: n.Event, Severity: rateSeverity(n),
		Rotation: n.RotationID, Mode: n.Mode, Drill: n.Drill, Execution: n.Execution.ID, Error: string(kind), Cause: cause,
		Plan: n.Plan, Detail: n.Detail, RowsMissing: n.Missing, Safe: describeSafety(n), Next: advice.Command(n.NextStep()),
		Links: Links{Runbook: runbook + findSection(n), Execution: linkExecution(n.Execution.ID)},
	}
	for _, text := range []*string{&d.Rotation, &d.Mode, &d.Drill, &d.Execution, &d.Error, &d.Cause, &d.Plan, &d.Detail, &d.RowsMissing, &d.Next} {
		*text = truncateText(audit.Visible(*text), maxText)
	}
	return d
}

// identifyEvent is the same for a notice that is sent again. A notice that belongs to no
// execution may be right again later, so its id holds for an hour.
func identifyEvent(stack string, n journal.Notice, at time.Time) string {
	hour := ""
	if n.Execution.ID == "" {
		hour = at.Truncate(time.Hour).Format(time.RFC3339)
	}
	notice, _ := json.Marshal(n) // strings and numbers, which always encode
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", stack, hour, notice))
	return hex.EncodeToString(sum[:16])
}

// consoles are the consoles of the partitions (AWS General Reference).
var consoles = map[string]string{"aws": "console.aws.amazon.com", "aws-cn": "console.amazonaws.cn", "aws-us-gov": "console.amazonaws-us-gov.com"}

// linkExecution is the URL of an execution in the console; "" unless it is the ARN of one, and in
// other partitions.
func linkExecution(arn string) string {
	part := strings.Split(arn, ":")
	if len(part) != 8 || part[2] != "states" || consoles[part[1]] == "" || len(arn) > maxText {
		return ""
	}
	u := url.URL{Scheme: "https", Host: consoles[part[1]], Path: "/states/home", RawQuery: url.Values{"region": {part[3]}}.Encode(), Fragment: "/v2/executions/details/" + arn}
	return u.String()
}
