package notify

import (
	"context"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/sns"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// SNS is the part of the SNS client that [Topic] uses.
type SNS interface {
	Publish(context.Context, *sns.PublishInput, ...func(*sns.Options)) (*sns.PublishOutput, error)
}

// What SNS accepts (API reference, Publish).
const (
	maxSubject = 100       // ASCII characters without control characters
	maxMessage = 256 << 10 // bytes, attributes included; this package sends none
)

// Topic publishes to one SNS topic: as [journal.Notifier] for operators, as
// [gates.Announcer] for customers. It is safe for concurrent use.
type Topic struct {
	client     SNS
	arn, stack string
}

// NewTopic returns the topic with this ARN. Operators read the name of the stack in front of each
// subject; "" for a topic of customers.
func NewTopic(client SNS, arn, stack string) *Topic {
	return &Topic{client: client, arn: arn, stack: stack}
}

// TellPeople implements [journal.Notifier].
func (t *Topic) TellPeople(ctx context.Context, n journal.Notice) error {
	subject, body := ComposeMessage(n)
	if n.RotationID != "" {
		subject += ": " + n.RotationID
	}
	return t.Notify(ctx, t.stack+": "+subject, body)
}

// Notify publishes one message. It cuts or replaces what SNS would not accept and
// never refuses a message for its form: a question mark in it is better than a halt that
// nobody hears of. The SDK repeats a publication if its answer was lost, so a message
// may arrive twice.
func (t *Topic) Notify(ctx context.Context, subject, message string) error {
	in := &sns.PublishInput{TopicArn: &t.arn}
	if s := cleanSubject(subject); s != "" {
		in.Subject = &s
	}
	m := truncateText(strings.ToValidUTF8(message, "?"), maxMessage)
	if m == "" {
		m = "(no text)"
	}
	in.Message = &m
	if _, err := t.client.Publish(ctx, in); err != nil {
		return remote.WrapError("sns Publish to "+t.arn, err)
	}
	return nil
}

// Name implements [gates.Announcer].
func (*Topic) Name() string { return "sns" }

// Tell implements [gates.Announcer].
func (t *Topic) Tell(ctx context.Context, a gates.Announcement, stage gates.Stage) error {
	title, body := a.Text(stage)
	return t.Notify(ctx, title, body)
}

// cleanSubject returns the subject in the form that SNS accepts: one line of ASCII.
func cleanSubject(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s)
	return strings.TrimSpace(truncateText(strings.TrimSpace(s), maxSubject))
}

// truncateText shortens s to at most n bytes. It cuts between characters and ends a
// shortened text with three dots.
func truncateText(s string, n int) string {
	const mark = "..."
	if len(s) <= n {
		return s
	}
	n -= len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}
