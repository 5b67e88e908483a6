package rotation

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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

// TestMoveWindow: every announcer is told of a window that is not long over, and those that
// cannot be reached are named.
func TestMoveWindow(t *testing.T) {
	now := at(0)
	for _, tc := range []struct {
		name         string
		to           time.Time
		err          error
		told, untold []string
	}{
		{"open", now.Add(time.Hour), nil, []string{"a l completed", "b l completed", "c l completed"}, []string{"b: the shelf is closed"}},
		{"just not over", now.Add(-windowLasts), nil, []string{"a l completed", "b l completed", "c l completed"}, []string{"b: the shelf is closed"}},
		{"over", now.Add(-windowLasts - time.Second), nil, nil, nil},
		{"never announced", time.Time{}, nil, nil, nil},
		{"unknown", now, errShelf, nil, []string{"announcement: the shelf is closed"}},
	} {
		var told []string
		s := Steps{Deps: Deps{
			Now: func() time.Time { return now }, Announcements: planned{to: tc.to, err: tc.err},
			Announcers: []Announcer{crier{"a", nil, &told}, crier{"b", errShelf, &told}, crier{"c", nil, &told}},
		}}
		untold := s.moveWindow(t.Context(), "l", StageCompleted)
		if d := cmp.Diff(tc.told, told) + cmp.Diff(tc.untold, untold); d != "" {
			t.Errorf("%s: told and untold (-want +got):\n%s", tc.name, d)
		}
	}
	if untold := (&Steps{}).moveWindow(t.Context(), "l", StageCompleted); untold != nil {
		t.Errorf("nobody to tell: %q", untold)
	}
}

// TestMissingIsTold: who reads that a rotation completed reads which rows are missing, and
// what to do about it, but is not sent after rows that are there.
func TestMissingIsTold(t *testing.T) {
	in := NotifyInput{Event: NotifyCompleted, RotationID: "id", Missing: "orders: the number of rows fell from 9 to 2"}
	subject, body, err := in.message()
	want := `KEK rotation completed, but rows are missing.

Rotation:  id
Missing:   orders: the number of rows fell from 9 to 2

What is safe: Every row that is there is under the new KEK; the old KMS key is disabled, not deleted, so a backup still opens once it is enabled. ` +
		`Whether the rows were deleted on purpose nobody knows but the owner of the table.
Next: ask the owner of the table who deleted them; matter ops report --rotation id has the rows of each pass; ` +
		`if nobody did, matter ops restore-rows brings them back from a backup
`
	if d := cmp.Diff("KEK rotation completed, but rows are missing\n"+want, subject+"\n"+body); d != "" || err != nil {
		t.Errorf("-want +got:\n%s%v", d, err)
	}
	in.Missing = ""
	if got := in.next(); got != nextStatus {
		t.Errorf("nothing is missing, and next is %q", got)
	}
}
