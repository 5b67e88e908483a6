package memstore

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation"
)

// gates is what preflight and the switch ask for beyond the state of a rotation.
type gates struct {
	announcements map[string]rotation.Announcement
	drills        map[string]rotation.Drill
	approvals     map[string]rotation.Approval
	health        map[string]rotation.HealthDay
}

func newGates() gates {
	return gates{
		map[string]rotation.Announcement{}, map[string]rotation.Drill{}, map[string]rotation.Approval{}, map[string]rotation.HealthDay{},
	}
}

// Gates is everything that is kept for preflight and the switch, for comparison: it is
// not subject to the hook.
func (s *Store) Gates() (out struct {
	Announcements map[string]rotation.Announcement
	Drills        map[string]rotation.Drill
	Approvals     map[string]rotation.Approval
	Health        map[string]rotation.HealthDay
},
) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	out.Announcements, out.Drills = maps.Clone(s.gates.announcements), maps.Clone(s.gates.drills)
	out.Approvals, out.Health = maps.Clone(s.gates.approvals), maps.Clone(s.gates.health)
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

// LoadAnnouncement implements [rotation.Announcements].
func (s *Store) LoadAnnouncement(ctx context.Context, label string) (a rotation.Announcement, err error) {
	err = s.w.call(ctx, "Store.LoadAnnouncement", func() error {
		a = s.gates.announcements[label]
		a.Label, a.Told = label, slices.Clone(a.Told)
		return nil
	}, label)
	return a, err
}

// SaveAnnouncement implements [rotation.Announcements].
func (s *Store) SaveAnnouncement(ctx context.Context, a rotation.Announcement, ev audit.Event) error {
	return s.w.answer(ctx, "Store.SaveAnnouncement", func() (any, error) {
		return s.save("announcement", a.Label, s.gates.announcements[a.Label].Rev, a.Rev, ev, func() {
			a.Rev++
			a.From, a.To, a.At, a.Told = ms(a.From), ms(a.To), ms(a.At), slices.Clone(a.Told)
			s.gates.announcements[a.Label] = a
		})
	}, a, ev)
}

// LoadDrill implements [rotation.Drills].
func (s *Store) LoadDrill(ctx context.Context, name string) (d rotation.Drill, err error) {
	err = s.w.call(ctx, "Store.LoadDrill", func() error {
		d = s.gates.drills[name]
		d.Name = name
		return nil
	}, name)
	return d, err
}

// SaveDrill implements [rotation.Drills].
func (s *Store) SaveDrill(ctx context.Context, d rotation.Drill, ev audit.Event) error {
	return s.w.answer(ctx, "Store.SaveDrill", func() (any, error) {
		return s.save("drill", d.Name, s.gates.drills[d.Name].Rev, d.Rev, ev, func() {
			d.Rev++
			d.PassedAt = ms(d.PassedAt)
			s.gates.drills[d.Name] = d
		})
	}, d, ev)
}

// LoadApproval implements [rotation.Approvals].
func (s *Store) LoadApproval(ctx context.Context, rotationID string) (a rotation.Approval, err error) {
	err = s.w.call(ctx, "Store.LoadApproval", func() error {
		a = s.gates.approvals[rotationID]
		a.Rotation = rotationID
		return nil
	}, rotationID)
	return a, err
}

// SaveApproval implements [rotation.Approvals].
func (s *Store) SaveApproval(ctx context.Context, a rotation.Approval, ev audit.Event) error {
	return s.w.answer(ctx, "Store.SaveApproval", func() (any, error) {
		return s.save("approval", a.Rotation, s.gates.approvals[a.Rotation].Rev, a.Rev, ev, func() {
			a.Rev++
			a.Asked, a.Expires, a.At = ms(a.Asked), ms(a.Expires), ms(a.At)
			s.gates.approvals[a.Rotation] = a
		})
	}, a, ev)
}

// CountHealth implements [rotation.HealthLog].
func (s *Store) CountHealth(ctx context.Context, day string, green bool) (d rotation.HealthDay, err error) {
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
		return rotation.HealthDay{}, err
	}
	return d, nil
}

// ListHealth implements [rotation.HealthLog].
func (s *Store) ListHealth(ctx context.Context, days []string) (out []rotation.HealthDay, err error) {
	err = s.w.call(ctx, "Store.ListHealth", func() error {
		for _, day := range days {
			if d, ok := s.gates.health[day]; ok {
				out = append(out, d)
			}
		}
		slices.SortFunc(out, func(a, b rotation.HealthDay) int { return cmp.Compare(a.Day, b.Day) })
		out = slices.Compact(out)
		return nil
	}, days)
	return out, err
}

var (
	_ rotation.Announcements = (*Store)(nil)
	_ rotation.Drills        = (*Store)(nil)
	_ rotation.Approvals     = (*Store)(nil)
	_ rotation.HealthLog     = (*Store)(nil)
)
