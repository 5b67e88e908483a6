package memstore

import (
	"context"
	"fmt"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

var _ rotation.Archive = (*Store)(nil)

// ListSpent implements [rotation.Archive].
func (s *Store) ListSpent(ctx context.Context) (out []rotation.SpentItem, err error) {
	err = s.w.call(ctx, "Store.ListSpent", func() error {
		for _, c := range s.checkpoints {
			out = append(out, rotation.SpentItem{Key: fmt.Sprintf("CHECKPOINT#%s#%s#%s/%03d", c.RotationID, c.Source, c.Pass, c.Segment), Checkpoint: &c})
		}
		for _, f := range s.bothFences() {
			for at, sealed := range f.shards {
				out = append(out, rotation.SpentItem{Key: fmt.Sprintf("%s%s/%02d", f.pk, at.kek, at.n), KEK: at.kek, Shard: at.n, Open: !sealed, Records: f.pk == "DEKFENCE#"})
			}
		}
		rotation.SortSpent(out)
		return nil
	})
	return out, err
}

// RemoveSpent implements [rotation.Archive].
func (s *Store) RemoveSpent(ctx context.Context, items []rotation.SpentItem, ev audit.Event) error {
	return s.w.answer(ctx, "Store.RemoveSpent", func() (any, error) {
		for _, i := range items {
			if err := s.checkSpent(i); err != nil {
				return nil, err
			}
		}
		if err := s.append(ev); err != nil {
			return nil, err
		}
		for _, i := range items {
			if c := i.Checkpoint; c != nil {
				delete(s.checkpoints, place{c.RotationID, c.Source, c.Pass, c.Segment})
			} else {
				delete(s.fenceOf(i), shard{i.KEK, i.Shard})
			}
		}
		return s.head.Seq, nil
	}, items, ev)
}

func (s *Store) checkSpent(i rotation.SpentItem) error {
	if c := i.Checkpoint; c != nil {
		if stored, ok := s.checkpoints[place{c.RotationID, c.Source, c.Pass, c.Segment}]; !ok || stored.Rev != c.Rev {
			return conflict("%s", i.Key)
		}
		return nil
	}
	if sealed, ok := s.fenceOf(i)[shard{i.KEK, i.Shard}]; !ok || !sealed || s.keks[i.KEK].State != kek.Retired {
		return conflict("%s", i.Key)
	}
	return nil
}

// fenceOf returns the fence that a shard is of.
func (s *Store) fenceOf(i rotation.SpentItem) map[shard]bool {
	if i.Records {
		return s.keyFences
	}
	return s.fences
}
