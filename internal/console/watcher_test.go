package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// history answers with the events of an execution, two a page. An event is the state that
// was entered, "" for one of another kind.
type history struct {
	SFN
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
		got, err := findLastState(t.Context(), h, "arn")
		if got != tc.want || h.pages != tc.pages || !errors.Is(err, tc.err) {
			t.Errorf("of %q: %q after %d pages, %v; want %q after %d", tc.events, got, h.pages, err, tc.want, tc.pages)
		}
	}
}

// TestStates: the states are listed in order, over all pages.
func TestStates(t *testing.T) {
	got, err := ListStates(t.Context(), &history{events: []string{"", "Preflight", "", "Census", "Mint"}}, "arn")
	if err != nil || !slices.Equal(got, []string{"Preflight", "Census", "Mint"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// passTable has the checkpoints of one pass over one source.
type passTable struct {
	ControlTable
	cps []rotation.Checkpoint
}

func (p passTable) ListCheckpoints(context.Context, string, string, string) ([]rotation.Checkpoint, error) {
	return p.cps, nil
}

// TestSumCheckpoints: what is not proven is not counted, and the line of progress says so.
func TestSumCheckpoints(t *testing.T) {
	table := passTable{cps: []rotation.Checkpoint{
		{Segment: 0, Tally: rotation.Tally{Scanned: 5, Rewrapped: 3}},
		{Segment: 1, Tally: rotation.Tally{Scanned: 1e9, Rewrapped: 1e9}},
		{Segment: 2, Tally: rotation.Tally{Scanned: 7, Other: 2}},
	}}
	r := kek.Rotation{ID: "r", Sources: []kek.Source{{Name: "orders"}}}
	asked := 0
	for name, tc := range map[string]struct {
		prove    Prove
		want     rotation.Tally
		unproven int
		asked    int
	}{
		"one is forged": {func(_ context.Context, c rotation.Checkpoint) (rotation.Proof, error) {
			if c.Segment == 1 {
				return rotation.FalseMAC, nil
			}
			return rotation.Proven, nil
		}, rotation.Tally{Scanned: 12, Rewrapped: 3, Other: 2}, 1, 3},
		"KMS denies": {func(context.Context, rotation.Checkpoint) (rotation.Proof, error) {
			return rotation.Proven, errors.New("denied")
		}, rotation.Tally{}, 3, 1},
	} {
		asked = 0
		got, unproven, err := SumCheckpoints(t.Context(), table, func(ctx context.Context, c rotation.Checkpoint) (rotation.Proof, error) {
			asked++
			return tc.prove(ctx, c)
		}, r, rotation.PassRewrap)
		if diff := cmp.Diff(tc.want, got); diff != "" || unproven != tc.unproven || asked != tc.asked || err != nil {
			t.Errorf("%s: %d unproven, %d asked, %v, %s", name, unproven, asked, err, diff)
		}
		var b strings.Builder
		v := LiveView{Out: &b}
		v.Show(Progress{State: "RewrapSegment", Unproven: unproven})
		if want := fmt.Sprintf("(%d checkpoints are not proven, and not counted)", unproven); !strings.Contains(b.String(), want) {
			t.Errorf("%s: %q", name, b.String())
		}
	}
}
