package gates

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

var midnight = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)

// errShelf is that of a service that does not answer.
var errShelf = errors.New("the shelf is closed")

// TestMoveWindow: every announcer is told of a window that is not long over, and those that
// cannot be reached are named.
func TestMoveWindow(t *testing.T) {
	now := midnight
	for _, tc := range []struct {
		name         string
		to           time.Time
		err          error
		told, untold []string
	}{
		{"open", now.Add(time.Hour), nil, []string{"a l completed", "b l completed", "c l completed"}, []string{"b: the shelf is closed"}},
		{"just not over", now.Add(-WindowLasts), nil, []string{"a l completed", "b l completed", "c l completed"}, []string{"b: the shelf is closed"}},
		{"over", now.Add(-WindowLasts - time.Second), nil, nil, nil},
		{"never announced", time.Time{}, nil, nil, nil},
		{"unknown", now, errShelf, nil, []string{"announcement: the shelf is closed"}},
	} {
		var told []string
		s := Gates{Journal: &journal.Journal{Now: func() time.Time { return now }}, Announcements: planned{to: tc.to, err: tc.err}, Announcers: []Announcer{crier{"a", nil, &told}, crier{"b", errShelf, &told}, crier{"c", nil, &told}}}
		untold := s.MoveWindow(t.Context(), "l", StageCompleted)
		if d := cmp.Diff(tc.told, told) + cmp.Diff(tc.untold, untold); d != "" {
			t.Errorf("%s: told and untold (-want +got):\n%s", tc.name, d)
		}
	}
	if untold := (&Gates{}).MoveWindow(t.Context(), "l", StageCompleted); untold != nil {
		t.Errorf("nobody to tell: %q", untold)
	}
}

// planned are announcements, one for each label that is asked for.
type planned struct {
	Announcements
	to  time.Time
	err error
}

func (p planned) LoadAnnouncement(_ context.Context, label string) (Announcement, error) {
	return Announcement{Label: label, To: p.to}, p.err
}

// crier notes what it is told.
type crier struct {
	name string
	err  error
	told *[]string
}

func (c crier) Name() string { return c.name }

func (c crier) Tell(_ context.Context, a Announcement, stage Stage) error {
	*c.told = append(*c.told, c.name+" "+a.Label+" "+string(stage))
	return c.err
}

// TestPerson: who is a user is nobody else.
func TestPerson(t *testing.T) {
	for arn, want := range map[string]string{
		"arn:aws:iam::1:user/a": "arn:aws:iam::1:user/a", "test": "test",
		"arn:aws:sts::1:assumed-role/ops/a":                   "arn:aws:sts::1 role ops",
		"arn:aws:sts::1:assumed-role/AWSReservedSSO_ops_00/a": "user a",
	} {
		if got := principalOf(arn); got != want {
			t.Errorf("%s is %q, want %q", arn, got, want)
		}
	}
}

// TestPlanHash: an approval is of one plan; another in any respect has another hash.
func TestPlanHash(t *testing.T) {
	s := &Gates{}
	plan := func() kek.Rotation {
		return kek.Rotation{
			ID: "i", Mode: kek.Normal, Label: "l", Reason: "r", OldKEK: "a", NewKEK: "c", Attempt: 1, Olds: []kek.ID{"a", "b"}, Sources: []kek.Source{{Name: "s"}},
		}
	}
	seen := map[string]string{s.HashPlan(plan()): "the plan"}
	for what, edit := range map[string]func(*kek.Rotation){
		"id": func(r *kek.Rotation) { r.ID = "j" }, "mode": func(r *kek.Rotation) { r.Mode = kek.Emergency }, "label": func(r *kek.Rotation) { r.Label = "m" },
		"reason": func(r *kek.Rotation) { r.Reason = "q" }, "old": func(r *kek.Rotation) { r.OldKEK = "b" }, "new": func(r *kek.Rotation) { r.NewKEK = "d" },
		"attempt": func(r *kek.Rotation) { r.Attempt = 2 }, "olds": func(r *kek.Rotation) { r.Olds = []kek.ID{"a", "c"} },
		"fewer olds": func(r *kek.Rotation) { r.Olds = r.Olds[:1] }, "sources": func(r *kek.Rotation) { r.Sources[0].Definition = "{}" },
	} {
		r := plan()
		edit(&r)
		h := s.HashPlan(r)
		if was := seen[h]; was != "" {
			t.Errorf("%s has the hash of %s", what, was)
		}
		seen[h] = what
	}
}

// TestCheckAwakeOfNoWindow: a record whose window cannot be read says what is wrong with it.
func TestCheckAwakeOfNoWindow(t *testing.T) {
	s := Gates{Rules: Rules{ApprovalRequired: true}}
	err := s.CheckAwake(kek.Rotation{ID: "id", Mode: kek.Normal, Settings: kek.Settings{Window: "night"}})
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.Misconfigured || typed.Field != "ROTATION#id.window" {
		t.Fatal(err)
	}
	_, want := ParseWindow("night", nil)
	if d := cmp.Diff(want.Error(), fmt.Sprint(typed.Err)); d != "" {
		t.Errorf("its cause (-want +got):\n%s", d)
	}
}

// TestAwakeOfAWindowThatIsNone: a rotation whose record has no window does not switch.
func TestAwakeOfAWindowThatIsNone(t *testing.T) {
	s := Gates{Journal: &journal.Journal{Now: func() time.Time { return midnight }}}
	var typed *journal.Error
	err := s.CheckAwake(kek.Rotation{ID: "r", Mode: kek.Normal, Approval: true, Settings: kek.Settings{Window: "odd"}})
	if !errors.As(err, &typed) || typed.Kind != journal.Misconfigured || typed.Field != "ROTATION#r.window" || !strings.Contains(typed.Msg, "no window that can be read") || typed.Next != (journal.Next{Do: journal.RunDoctor}) {
		t.Error(err)
	}
	if err := s.CheckAwake(kek.Rotation{ID: "r", Mode: kek.Emergency, Approval: true, Settings: kek.Settings{Window: "odd"}}); err != nil {
		t.Error(err)
	}
}
