package ddb

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

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
	return set(key(pkSource, src.Name), "kind", src.Kind, "definition", src.Definition, "place", src.Place,
		"generation", int64(src.Generation), "added_at", src.AddedAt, "added_by", src.AddedBy)
}

func decodeSource(i item) (kek.Source, error) {
	r := reader{item: i}
	src := kek.Source{
		Name: r.str("sk"), Kind: r.str("kind"), Definition: r.str("definition"), Place: r.str("place"),
		Generation: int(r.num("generation")), AddedAt: r.time("added_at"), AddedBy: r.str("added_by"),
	}
	return src, r.decoded(pkSource + "/" + src.Name)
}

// decodeMark reads what a process of the data plane has written. A mark that cannot be
// read still names its table, which is what counts.
func decodeMark(i item) (kek.Mark, error) {
	r := reader{item: i}
	m := kek.Mark{Table: r.str("sk"), Holder: r.str("holder"), SeenAt: r.time("seen_at")}
	if m.Table == "" {
		return m, r.decoded(pkMark)
	}
	return m, nil
}

// registry is the part of a change that is about sources and historic KEKs.
func (s *Store) registry(c kek.Change) []action {
	var out []action
	if at := c.AtRegistry; at != nil && c.Registry == nil {
		out = append(out, s.check(pkRegistry, key(pkRegistry, noSK), registryAt(*at)))
	}
	if m := c.Registry; m != nil {
		out = append(out, s.put(pkRegistry, set(key(pkRegistry, noSK), "rev", m.Before+1), registryAt(m.Before)))
		for _, src := range m.Put {
			out = append(out, s.put(pkSource+"/"+src.Name, encodeSource(src), condition{}))
		}
		if m.Remove != "" {
			out = append(out, s.remove(pkSource+"/"+m.Remove, key(pkSource, m.Remove), condition{}))
		}
		if m.Absent != "" {
			out = append(out, s.check(pkMark+"/"+m.Absent, key(pkMark, m.Absent), unless()))
		}
		if m.Forget != "" {
			out = append(out, s.remove(pkMark+"/"+m.Forget, key(pkMark, m.Forget), condition{}))
		}
	}
	if c.Shuts != "" {
		for i := range c.Shards {
			sealed := set(key(fencePK(c.Shuts), fenceSK(i)), "state", fenceSealed)
			out = append(out, s.put(fencePK(c.Shuts)+"/"+fenceSK(i), sealed, unless()))
		}
	}
	return out
}

func registryAt(rev int64) condition {
	if rev == 0 {
		return unless()
	}
	return condition{"#rev = :rev", values{"rev": num(rev)}}
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
		i["sources"] = str(encodeJSON(sources))
	}
	if r.Settings != (kek.Settings{}) {
		i["settings"] = str(encodeJSON(r.Settings))
	}
	if len(r.Olds) > 0 {
		i["old_kek_ids"] = strs(r.Olds)
	}
	if len(r.Probes) > 0 {
		probes := item{}
		for id, probe := range r.Probes {
			probes[string(id)] = blob(probe)
		}
		i["probes"] = &types.AttributeValueMemberM{Value: probes}
	}
	if r.Counted {
		i["counted"] = boolean(true)
	}
	if len(r.TookOver) > 0 {
		i["took_over"] = strs(r.TookOver)
	}
	if len(r.Leftover) > 0 {
		i["leftover_kek_ids"] = strs(r.Leftover)
	}
	set(i, "rehearsed", string(r.Rehearsed), "sealed_at", r.SealedAt, "resumed_at", r.ResumedAt, "ended_by", r.EndedBy)
}

// decodeFrozen fills in what encodeFrozen has written.
func decodeFrozen(rd *reader, r *kek.Rotation) {
	var sources []frozenSource
	rd.json("sources", &sources)
	for _, src := range sources {
		r.Sources = append(r.Sources, kek.Source{Name: src.Name, Kind: src.Kind, Definition: src.Definition, Place: src.Place, Generation: src.Generation})
	}
	rd.json("settings", &r.Settings)
	for _, id := range rd.strs("old_kek_ids") {
		r.Olds = append(r.Olds, kek.ID(id))
	}
	if probes := rd.nested("probes"); len(probes) > 0 {
		p := reader{item: probes}
		r.Probes = map[kek.ID][]byte{}
		for id := range probes {
			r.Probes[kek.ID(id)] = p.bytes(id)
		}
		if p.err != nil && rd.err == nil {
			rd.err = fmt.Errorf("attribute probes: %w", p.err)
		}
	}
	r.Counted, r.Rehearsed, r.SealedAt = rd.bool("counted"), kek.ID(rd.str("rehearsed")), rd.time("sealed_at")
	r.ResumedAt, r.TookOver, r.EndedBy = rd.time("resumed_at"), rd.strs("took_over"), rd.str("ended_by")
	for _, id := range rd.strs("leftover_kek_ids") {
		r.Leftover = append(r.Leftover, kek.ID(id))
	}
}

// strs is a list of strings.
func strs[S ~string](all []S) types.AttributeValue {
	list := make([]types.AttributeValue, len(all))
	for n, s := range all {
		list[n] = str(string(s))
	}
	return &types.AttributeValueMemberL{Value: list}
}

func encodeJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

// json decodes a string attribute that holds JSON.
func (r *reader) json(name string, into any) {
	text := r.str(name)
	if text == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), into); err != nil && r.err == nil {
		r.err = fmt.Errorf("attribute %s: %w", name, err)
	}
}

// nested is a map attribute.
func (r *reader) nested(name string) item {
	switch v := r.item[name].(type) {
	case nil:
	case *types.AttributeValueMemberM:
		return v.Value
	default:
		r.fail(name, "a map", v)
	}
	return nil
}

func encodeCounts(counts map[string]int64) types.AttributeValue {
	out := item{}
	for name, n := range counts {
		out[name] = num(n)
	}
	return &types.AttributeValueMemberM{Value: out}
}

// counts decodes a map of numbers; nil if it is absent.
func (r *reader) counts(name string) map[string]int64 {
	nested := r.nested(name)
	if len(nested) == 0 {
		return nil
	}
	in := reader{item: maps.Clone(nested)}
	out := make(map[string]int64, len(nested))
	for k := range nested {
		out[k] = in.num(k)
	}
	if in.err != nil && r.err == nil {
		r.err = fmt.Errorf("attribute %s: %w", name, in.err)
	}
	return out
}
