package ddb

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// LoadAll implements [journal.Registry]. Its reads are not one snapshot, and their order
// matters in two places. The registry's revision is read before the sources and the
// historic KEKs whose changes it counts: a change that is conditional on the revision, and
// succeeds, has seen them as they are. The lock is read before the KEKs: if it was free, no
// rotation can retire a KEK that the list shows as sealed.
func (s *Store) LoadAll(ctx context.Context, rotationID string) (kek.View, error) {
	rev, err := s.registryRev(ctx)
	if err != nil {
		return kek.View{}, err
	}
	v, err := s.Load(ctx, rotationID)
	if err == nil && rotationID == "" && v.Lock != "" {
		v, err = s.Load(ctx, v.Lock)
	}
	if err != nil {
		return kek.View{}, err
	}
	if v.Lock != "" && (v.Rotation == nil || v.Rotation.ID != v.Lock) {
		holder, err := s.Load(ctx, v.Lock)
		if err != nil {
			return kek.View{}, err
		}
		v.Holder = holder.Rotation
	}
	keks, err := s.KEKs(ctx)
	if err != nil {
		return kek.View{}, err
	}
	for _, k := range keks {
		if _, ok := v.KEKs[k.ID]; !ok {
			v.KEKs[k.ID] = k
		}
	}
	v.Registry = rev
	if v.Sources, err = s.Sources(ctx); err != nil {
		return kek.View{}, err
	}
	if v.Marks, err = s.Marks(ctx); err != nil {
		return kek.View{}, err
	}
	return v, nil
}

// registryRev reads how often the registry has changed; 0 before genesis.
func (s *Store) registryRev(ctx context.Context) (int64, error) {
	i, err := getItem(ctx, s.client, s.table, pkRegistry, noSK)
	if err != nil {
		return 0, err
	}
	r, err := decodeRegistry(i)
	return r.Rev, err
}

// Sources returns the registered sources by name.
func (s *Store) Sources(ctx context.Context) ([]kek.Source, error) {
	items, err := s.queryItems(ctx, pkSource, "")
	if err != nil {
		return nil, err
	}
	return decodeAll(items, decodeSource, func(a, b kek.Source) int { return cmp.Compare(a.Name, b.Name) })
}

// Marks returns the marks that writers of envelopes have left, by table.
func (s *Store) Marks(ctx context.Context) ([]kek.Mark, error) {
	items, err := s.queryItems(ctx, pkMark, "")
	if err != nil {
		return nil, err
	}
	return decodeAll(items, decodeMark, func(a, b kek.Mark) int { return cmp.Compare(a.Table, b.Table) })
}

func encodeSource(src kek.Source) item {
	return attr.Set(controltable.Key(pkSource, src.Name), "kind", src.Kind, "definition", src.Definition, "place", src.Place,
		"generation", int64(src.Generation), "added_at", src.AddedAt, "added_by", src.AddedBy)
}

func decodeSource(i item) (kek.Source, error) {
	r := attr.Reader{Item: i}
	src := kek.Source{
		Name: r.Str("sk"), Kind: r.Str("kind"), Definition: r.Str("definition"), Place: r.Str("place"),
		Generation: int(r.Num("generation")), AddedAt: r.Time("added_at"), AddedBy: r.Str("added_by"),
	}
	return src, damagedIf(r.Err, pkSource+"/"+src.Name)
}

// decodeMark decodes the mark that a process of the data plane left. A damaged mark still
// names its table in the sort key. That is enough to refuse a rotation that would leave the
// table out, so the damage is not an error.
func decodeMark(i item) (kek.Mark, error) {
	m, err := controltable.DecodeMark(i)
	if m.Table == "" {
		return m, damagedIf(err, pkMark)
	}
	return m, nil
}

// registryActions returns the part of a change that is about sources and historic KEKs. The
// revision of REGISTRY is the condition of all of them, so the items of the sources have
// none of their own.
func (s *Store) registryActions(c kek.Change) []action {
	var out []action
	if at := c.AtRegistry; at != nil && c.Registry == nil {
		out = append(out, s.checkItem(pkRegistry, controltable.Key(pkRegistry, noSK), ifRevision(*at)))
	}
	if m := c.Registry; m != nil {
		out = append(out, s.putItem(pkRegistry, attr.Set(controltable.Key(pkRegistry, noSK), "rev", m.Before+1), ifRevision(m.Before)))
		for _, src := range m.Put {
			out = append(out, s.putItem(pkSource+"/"+src.Name, encodeSource(src), condition{}))
		}
		if m.Remove != "" {
			out = append(out, s.removeItem(pkSource+"/"+m.Remove, controltable.Key(pkSource, m.Remove), condition{}))
		}
		if m.Absent != "" {
			out = append(out, s.checkItem(pkMark+"/"+m.Absent, controltable.Key(pkMark, m.Absent), ifAbsent()))
		}
		if m.Forget != "" {
			out = append(out, s.removeItem(pkMark+"/"+m.Forget, controltable.Key(pkMark, m.Forget), condition{}))
		}
	}
	return out
}

// ifRevision is the condition that a stored item has revision rev; 0: that there is none.
func ifRevision(rev int64) condition {
	if rev == 0 {
		return ifAbsent()
	}
	return condition{"#rev = :rev", values{"rev": attr.Num(rev)}}
}

// frozenSource is a source within a rotation's record, as JSON. The record keeps the whole
// definition: a source that is changed or removed later must still be read as it was when
// the rotation began.
type frozenSource struct {
	Name       string `json:"name"`
	Kind       string `json:"kind"`
	Definition string `json:"definition"`
	Place      string `json:"place"`
	Generation int    `json:"generation,omitempty"`
}

// encodeFrozen adds to a record what the rotation has frozen at its start, and what steps
// have added since. See encodeRotation for the attributes.
func encodeFrozen(i item, r kek.Rotation) {
	sources := make([]frozenSource, len(r.Sources))
	for n, src := range r.Sources {
		sources[n] = frozenSource{src.Name, src.Kind, src.Definition, src.Place, src.Generation}
	}
	if len(sources) > 0 {
		i["sources"] = attr.Str(encodeJSON(sources))
	}
	if r.Settings != (kek.Settings{}) {
		i["settings"] = attr.Str(encodeJSON(r.Settings))
	}
	if len(r.Olds) > 0 {
		i["old_kek_ids"] = attr.Strs(r.Olds)
	}
	if len(r.Probes) > 0 {
		probes := item{}
		for id, probe := range r.Probes {
			probes[string(id)] = attr.Blob(probe)
		}
		i["probes"] = &types.AttributeValueMemberM{Value: probes}
	}
	if r.Counted {
		i["counted"] = attr.Bool(true)
	}
	if len(r.TookOver) > 0 {
		i["took_over"] = attr.Strs(r.TookOver)
	}
	if len(r.Leftover) > 0 {
		i["leftover_kek_ids"] = attr.Strs(r.Leftover)
	}
	attr.Set(i, "rehearsed", string(r.Rehearsed), "sealed_at", r.SealedAt, "resumed_at", r.ResumedAt, "ended_by", r.EndedBy)
}

// decodeFrozen decodes what encodeFrozen has written.
func decodeFrozen(rd *attr.Reader, r *kek.Rotation) {
	var sources []frozenSource
	rd.JSON("sources", &sources)
	for _, src := range sources {
		r.Sources = append(r.Sources, kek.Source{Name: src.Name, Kind: src.Kind, Definition: src.Definition, Place: src.Place, Generation: src.Generation})
	}
	rd.JSON("settings", &r.Settings)
	for _, id := range rd.Strs("old_kek_ids") {
		r.Olds = append(r.Olds, kek.ID(id))
	}
	if probes := rd.Map("probes"); len(probes) > 0 {
		p := attr.Reader{Item: probes}
		r.Probes = map[kek.ID][]byte{}
		for id := range probes {
			r.Probes[kek.ID(id)] = p.Bytes(id)
		}
		if p.Err != nil && rd.Err == nil {
			rd.Err = fmt.Errorf("attribute probes: %w", p.Err)
		}
	}
	r.Counted = rd.Bool("counted")
	r.Rehearsed = kek.ID(rd.Str("rehearsed"))
	r.SealedAt = rd.Time("sealed_at")
	r.ResumedAt = rd.Time("resumed_at")
	r.TookOver = rd.Strs("took_over")
	r.EndedBy = rd.Str("ended_by")
	for _, id := range rd.Strs("leftover_kek_ids") {
		r.Leftover = append(r.Leftover, kek.ID(id))
	}
}

// encodeJSON encodes a value of strings, numbers and booleans, which cannot fail.
func encodeJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func encodeCounts(counts map[string]int64) types.AttributeValue {
	out := item{}
	for name, n := range counts {
		out[name] = attr.Num(n)
	}
	return &types.AttributeValueMemberM{Value: out}
}
