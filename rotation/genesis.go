package rotation

import (
	"context"
	"fmt"
	"math"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// Genesis registers the first KEK of a deployment, the KMS key that the rows are already
// wrapped under, and points at it. The key must carry the stack's tag, because the
// permissions of every function's role are conditional on it. A repeated call with the same
// key succeeds; a call with another key is refused, since only a rotation moves the
// pointer. sources are registered with it and may be empty: [Steps.AddSource] adds more.
// (Spec: Init.)
func (s *Steps) Genesis(ctx context.Context, id kek.ID, label string, sources []kek.Source) (kek.Pointer, error) {
	return s.GenesisAfter(ctx, id, label, sources, 0)
}

// GenesisAfter is Genesis for rows that an earlier deployment has moved. last is the highest
// epoch that any of them carries, see [Steps.LastEpoch]: the pointer begins after it.
func (s *Steps) GenesisAfter(ctx context.Context, id kek.ID, label string, sources []kek.Source, last int64) (kek.Pointer, error) {
	if err := kek.CheckLabel(label); err != nil {
		return kek.Pointer{}, journal.RejectInput("label", err.Error(), "choose another label")
	}
	k, err := s.Keys.DescribeUsable(ctx, id)
	if err != nil {
		return kek.Pointer{}, err
	}
	first := kek.KEK{ID: k.ID, ARN: k.ARN, Label: label, FenceShards: s.Config.FenceShards}
	var opened []frozenSource
	if len(sources) > 0 {
		if opened, err = s.openSources(sources); err == nil {
			err = checkKeyTable(opened)
		}
		if err != nil {
			return kek.Pointer{}, err
		}
	}
	body := map[string]string{"label": label}
	for i := range sources {
		if sources[i].AddedBy == "" {
			sources[i].AddedAt, sources[i].AddedBy = s.Journal.Now(), s.Journal.Actor
		}
		name := sources[i].Name
		body["source."+name] = sources[i].Definition
		body["kind."+name] = sources[i].Kind
		body["place."+name] = sources[i].Place
	}
	v, err := s.Journal.TransitionAll(ctx, "genesis", "", func(v kek.View) (kek.Change, error) {
		c, err := v.GenesisAfter(first, sources, last, s.Journal.Now())
		if err == nil {
			err = openFences(ctx, opened, first)
		}
		return c, err
	}, body)
	if err != nil {
		return kek.Pointer{}, err
	}
	return *v.Pointer, nil
}

// maxFirstEpoch bounds the epochs of rows that a deployment may begin with. A higher number
// cannot be a count of rotations, and the epochs after it must not overflow.
const maxFirstEpoch = math.MaxInt32

// LastEpoch reads every row of the sources and returns the highest epoch that any carries; 0
// if this project has written or moved none of them.
func (s *Steps) LastEpoch(ctx context.Context, sources []kek.Source) (int64, error) {
	if len(sources) == 0 {
		return 0, nil
	}
	opened, err := s.openSources(sources)
	if err != nil {
		return 0, err
	}
	var last int64
	for _, src := range opened {
		for req := (source.ScanRequest{Total: 1}); ; {
			page, err := src.Scan(ctx, req)
			if err != nil {
				return 0, journal.WrapUnavailable("source "+src.Name(), err)
			}
			for _, row := range append(page.Rows, page.Keyed...) { // updates of keyed rows ask for their epoch too
				if row.Epoch > maxFirstEpoch {
					return 0, &journal.Error{
						Kind: journal.RowsUnaccounted, Field: "sources[" + src.Name() + "]", Msg: fmt.Sprintf("item %s: epoch %d is too high to be a count of rotations", row.ID, row.Epoch),
						Next: journal.Next{Say: "correct the item's epoch attribute, or the name of that attribute in the source's definition"},
					}
				}
				last = max(last, row.Epoch)
			}
			if req.Cursor = page.Next; req.Cursor == "" {
				break
			}
		}
	}
	return last, nil
}
