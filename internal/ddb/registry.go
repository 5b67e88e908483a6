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

// LoadAll implements [rotation.Registry]. Two orders of its reads count. The registry's
// revision comes before what it counts the changes of: a change that conditions on it
// and succeeds has seen the sources and historic KEKs as they are. And the lock comes
// before the KEKs: where it was free, no rotation retires one that is listed as sealed.
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
	items, err := s.query(ctx, pkSource, "")
	if err != nil {
		return nil, err
	}
	return decodeAll(items, decodeSource, func(a, b kek.Source) int { return cmp.Compare(a.Name, b.Name) })
}

// Marks returns what writers have left, by table.
func (s *Store) Marks(ctx context.Context) ([]kek.Mark, error) {
	items, err := s.query(ctx, pkMark, "")
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

// decodeMark reads what a process of the data plane has written. A mark that cannot be
// read still names its table, which is what counts.
func decodeMark(i item) (kek.Mark, error) {
	m, err := controltable.DecodeMark(i)
	if m.Table == "" {
		return m, damagedIf(err, pkMark)
	}
	return m, nil
}

// registry is the part of a change that is about sources and historic KEKs.
func (s *Store) registry(c kek.Change) []action {
	var out []action
	if at := c.AtRegistry; at != nil && c.Registry == nil {
		out = append(out, s.check(pkRegistry, controltable.Key(pkRegistry, noSK), atRev(*at)))
	}
	if m := c.Registry; m != nil {
		out = append(out, s.put(pkRegistry, attr.Set(controltable.Key(pkRegistry, noSK), "rev", m.Before+1), atRev(m.Before)))
		for _, src := range m.Put {
			out = append(out, s.put(pkSource+"/"+src.Name, encodeSource(src), condition{}))
		}
		if m.Remove != "" {
			out = append(out, s.remove(pkSource+"/"+m.Remove, controltable.Key(pkSource, m.Remove), condition{}))
		}
		if m.Absent != "" {
			out = append(out, s.check(pkMark+"/"+m.Absent, controltable.Key(pkMark, m.Absent), unless()))
		}
		if m.Forget != "" {
			out = append(out, s.remove(pkMark+"/"+m.Forget, controltable.Key(pkMark, m.Forget), condition{}))
		}
	}
	if c.Shuts != "" {
		for i := range c.Shards {
			sealed := controltable.EncodeFence(c.Shuts, i, controltable.Sealed)
			out = append(out, s.put(controltable.FencePK(c.Shuts)+"/"+controltable.FenceSK(i), sealed, unless()))
		}
	}
	return out
}

// atRev holds if a stored item has revision rev, 0 being none.
func atRev(rev int64) condition {
	if rev == 0 {
		return unless()
	}
	return condition{"#rev = :rev", values{"rev": attr.Num(rev)}}
}

// frozenSource is a source within a rotation's record.
type frozenSource struct {
	Name       string `json:"name"`
	Kind       string `json:"kind"`
	Definition string `json:"definition"`
	Place      string `json:"place"`
	Generation int    `json:"generation,omitempty"`
}

// encodeFrozen adds what a rotation has frozen at its start to its record.
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

// decodeFrozen fills in what encodeFrozen has written.
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

func encodeJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
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
