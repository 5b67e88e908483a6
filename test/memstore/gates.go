package memstore

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/gates"
)

// gateItems is what preflight and the switch ask for beyond the state of a rotation.
type gateItems struct {
	announcements map[string]gates.Announcement
	drills        map[string]gates.Drill
	approvals     map[string]gates.Approval
	health        map[string]gates.HealthDay
	pauses        map[string]gates.Pause
}

func newGates() gateItems {
	return gateItems{
		map[string]gates.Announcement{}, map[string]gates.Drill{}, map[string]gates.Approval{}, map[string]gates.HealthDay{}, map[string]gates.Pause{},
	}
}

// Gates is everything that is kept for preflight and the switch, for comparison: it is
// not subject to the hook.
func (s *Store) Gates() (out struct {
	Announcements map[string]gates.Announcement
	Drills        map[string]gates.Drill
	Approvals     map[string]gates.Approval
	Health        map[string]gates.HealthDay
	Pauses        map[string]gates.Pause
},
) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	out.Announcements, out.Drills = maps.Clone(s.gates.announcements), maps.Clone(s.gates.drills)
	out.Approvals, out.Health = maps.Clone(s.gates.approvals), maps.Clone(s.gates.health)
	out.Pauses = maps.Clone(s.gates.pauses)
	return out
}

// save changes what effect changes, with its audit record, if the revision found is
// the one expected.
func (s *Store) save(op, what string, found, want int64, ev audit.Event, effect func()) (any, error) {
	if found != want {
		return s.head.Seq, conflict("%s %s at revision %d", op, what, want)
	}
	if err := s.append(ev); err != nil {
		return s.head.Seq, err
	}
	effect()
	return s.head.Seq, nil
}

// LoadAnnouncement implements [gates.Announcements].
func (s *Store) LoadAnnouncement(ctx context.Context, label string) (a gates.Announcement, err error) {
	err = s.w.call(ctx, "Store.LoadAnnouncement", func() error {
		a = s.gates.announcements[label]
		a.Label, a.Told = label, slices.Clone(a.Told)
		return nil
	}, label)
	return a, err
}

// SaveAnnouncement implements [gates.Announcements].
func (s *Store) SaveAnnouncement(ctx context.Context, a gates.Announcement, ev audit.Event) error {
	return s.w.answer(ctx, "Store.SaveAnnouncement", func() (any, error) {
		return s.save("announcement", a.Label, s.gates.announcements[a.Label].Rev, a.Rev, ev, func() {
			a.Rev++
			a.From, a.To, a.At, a.Told = ms(a.From), ms(a.To), ms(a.At), slices.Clone(a.Told)
			s.gates.announcements[a.Label] = a
		})
	}, a, ev)
}

// LoadDrill implements [gates.Drills].
func (s *Store) LoadDrill(ctx context.Context, name string) (d gates.Drill, err error) {
	err = s.w.call(ctx, "Store.LoadDrill", func() error {
		d = s.gates.drills[name]
		d.Name = name
		return nil
	}, name)
	return d, err
}

// SaveDrill implements [gates.Drills].
func (s *Store) SaveDrill(ctx context.Context, d gates.Drill, ev audit.Event) error {
	return s.w.answer(ctx, "Store.SaveDrill", func() (any, error) {
		return s.save("drill", d.Name, s.gates.drills[d.Name].Rev, d.Rev, ev, func() {
			d.Rev++
			d.PassedAt = ms(d.PassedAt)
			s.gates.drills[d.Name] = d
		})
	}, d, ev)
}

// LoadApproval implements [gates.Approvals].
func (s *Store) LoadApproval(ctx context.Context, rotationID string) (a gates.Approval, err error) {
	err = s.w.call(ctx, "Store.LoadApproval", func() error {
		a = s.gates.approvals[rotationID]
		a.Rotation = rotationID
		return nil
	}, rotationID)
	return a, err
}

// SaveApproval implements [gates.Approvals].
func (s *Store) SaveApproval(ctx context.Context, a gates.Approval, ev audit.Event) error {
	return s.w.answer(ctx, "Store.SaveApproval", func() (any, error) {
		return s.save("approval", a.Rotation, s.gates.approvals[a.Rotation].Rev, a.Rev, ev, func() {
			a.Rev++
			a.Asked, a.Expires, a.At = ms(a.Asked), ms(a.Expires), ms(a.At)
			s.gates.approvals[a.Rotation] = a
		})
	}, a, ev)
}

// LoadPause implements [gates.Pauses].
func (s *Store) LoadPause(ctx context.Context, rotationID string) (p gates.Pause, err error) {
	err = s.w.call(ctx, "Store.LoadPause", func() error {
		p = s.gates.pauses[rotationID]
		p.Rotation = rotationID
		return nil
	}, rotationID)
	return p, err
}

// SavePause implements [gates.Pauses].
func (s *Store) SavePause(ctx context.Context, p gates.Pause, ev audit.Event) error {
	return s.w.answer(ctx, "Store.SavePause", func() (any, error) {
		return s.save("pause", p.Rotation, s.gates.pauses[p.Rotation].Rev, p.Rev, ev, func() {
			p.Rev++
			p.At = ms(p.At)
			s.gates.pauses[p.Rotation] = p
		})
	}, p, ev)
}

// CountHealth implements [gates.HealthLog].
func (s *Store) CountHealth(ctx context.Context, day string, green bool) (d gates.HealthDay, err error) {
	err = s.w.call(ctx, "Store.CountHealth", func() error {
		d = s.gates.health[day]
		d.Day = day
		if green {
			d.Green++
		} else {
			d.Red++
		}
		s.gates.health[day] = d
		return nil
	}, day, green)
	if err != nil {
		return gates.HealthDay{}, err
	}
	return d, nil
}

// ListHealth implements [gates.HealthLog].
func (s *Store) ListHealth(ctx context.Context, days []string) (out []gates.HealthDay, err error) {
	err = s.w.call(ctx, "Store.ListHealth", func() error {
		for _, day := range days {
			if d, ok := s.gates.health[day]; ok {
				out = append(out, d)
			}
		}
		slices.SortFunc(out, func(a, b gates.HealthDay) int { return cmp.Compare(a.Day, b.Day) })
		out = slices.Compact(out)
		return nil
	}, days)
	return out, err
}

var (
	_ gates.Announcements = (*Store)(nil)
	_ gates.Drills        = (*Store)(nil)
	_ gates.Approvals     = (*Store)(nil)
	_ gates.HealthLog     = (*Store)(nil)
	_ gates.Pauses        = (*Store)(nil)
)
