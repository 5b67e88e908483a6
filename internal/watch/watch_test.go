package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
)

// history answers with the events of an execution, two a page. An event is the state that
// was entered, "" for one of another kind.
type history struct {
	API
	events []string
	pages  int
	err    error
}

func (h *history) GetExecutionHistory(_ context.Context, in *sfn.GetExecutionHistoryInput, _ ...func(*sfn.Options)) (*sfn.GetExecutionHistoryOutput, error) {
	const size = 2
	if h.pages++; h.err != nil {
		return nil, h.err
	}
	events := slices.Clone(h.events)
	if in.ReverseOrder {
		slices.Reverse(events)
	}
	from := 0
	if in.NextToken != nil {
		if _, err := fmt.Sscan(*in.NextToken, &from); err != nil {
			return nil, err
		}
	}
	out := &sfn.GetExecutionHistoryOutput{}
	for _, name := range events[from:min(from+size, len(events))] {
		var e types.HistoryEvent
		if name != "" {
			e.StateEnteredEventDetails = &types.StateEnteredEventDetails{Name: aws.String(name)}
		}
		out.Events = append(out.Events, e)
	}
	if from+size < len(events) {
		out.NextToken = aws.String(fmt.Sprint(from + size))
	}
	return out, nil
}

// TestLastState: the state that was entered last is found from the end of the history,
// which may be thousands of events long, and no further back than it is.
func TestLastState(t *testing.T) {
	away := errors.New("away")
	for _, tc := range []struct {
		events []string
		err    error
		want   string
		pages  int
	}{
		{events: []string{"", "Preflight", "", "", "Mint", ""}, want: "Mint", pages: 1},
		{events: []string{"", "Preflight", "", "", "Mint", "", "", ""}, want: "Mint", pages: 2},
		{events: []string{"", "", ""}, pages: 2},
		{pages: 1},
		{events: []string{"Mint"}, err: away, pages: 1},
	} {
		h := &history{events: tc.events, err: tc.err}
		got, err := lastState(t.Context(), h, "arn")
		if got != tc.want || h.pages != tc.pages || !errors.Is(err, tc.err) {
			t.Errorf("of %q: %q after %d pages, %v; want %q after %d", tc.events, got, h.pages, err, tc.want, tc.pages)
		}
	}
}

// TestStates: the states are listed in order, over all pages.
func TestStates(t *testing.T) {
	got, err := States(t.Context(), &history{events: []string{"", "Preflight", "", "Census", "Mint"}}, "arn")
	if err != nil || !slices.Equal(got, []string{"Preflight", "Census", "Mint"}) {
		t.Errorf("%q, %v", got, err)
	}
}
