// Package snsnotify tells people by an SNS topic.
//
// A message is never refused for its form: what SNS would not take is cut or
// replaced, for a halt that nobody hears of is worse than a question mark.
package snsnotify

import (
	"context"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/sns"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

// API is what [Notifier] uses of the SNS client.
type API interface {
	Publish(context.Context, *sns.PublishInput, ...func(*sns.Options)) (*sns.PublishOutput, error)
}

// What SNS takes.
const (
	maxSubject = 100       // ASCII characters, none of them a control character
	maxMessage = 256 << 10 // bytes, attributes included; there are none
)

var _ rotation.Notifier = (*Notifier)(nil)

// Notifier publishes to one topic. It is safe for concurrent use.
type Notifier struct {
	client API
	topic  string
}

// New returns the notifier of a topic, named by its ARN.
func New(client API, topic string) *Notifier { return &Notifier{client: client, topic: topic} }

// Notify implements [rotation.Notifier]. A publication that the SDK repeats because
// its answer was lost may be told twice.
func (n *Notifier) Notify(ctx context.Context, subject, message string) error {
	in := &sns.PublishInput{TopicArn: &n.topic}
	if s := line(subject); s != "" {
		in.Subject = &s
	}
	m := cut(strings.ToValidUTF8(message, "?"), maxMessage)
	if m == "" {
		m = "(no text)"
	}
	in.Message = &m
	if _, err := n.client.Publish(ctx, in); err != nil {
		return awserr.Wrap("sns Publish to "+n.topic, err)
	}
	return nil
}

// line makes a subject that SNS takes.
func line(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s)
	return strings.TrimSpace(cut(strings.TrimSpace(s), maxSubject))
}

// cut shortens s to at most n bytes, between characters, and marks that it did.
func cut(s string, n int) string {
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
