package storetest

import (
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
)

// mutant is a change one of whose conditions does not hold.
type mutant struct {
	name   string
	change kek.Change
}

// mutants makes, for each condition of c, changes in which it is wrong.
func mutants(c kek.Change) []mutant {
	out := rotationMutants(c)
	out = append(out, pointerMutants(c)...)
	out = append(out, kekMutants(c)...)
	out = append(out, registryMutants(c)...)
	if c.Opens != "" {
		out = append(out, mutant{"opens a fence that is there", with(c, func(c *kek.Change) { c.Opens = "kek-fenced" })})
	}
	if c.OpensRecords != "" {
		out = append(out, mutant{"opens a fence of records that is there", with(c, func(c *kek.Change) { c.OpensRecords = "kek-fenced" })})
	}
	if c.Sealed != "" {
		out = append(out,
			mutant{"a fence that is open", with(c, func(c *kek.Change) { c.Sealed = "kek-fenced" })},
			mutant{"a fence with a shard less", with(c, func(c *kek.Change) { c.Shards++ })},
		)
	}
	return out
}

// with returns a copy of c that f has changed. f must replace what pointers point
// to, not write through them.
func with(c kek.Change, f func(*kek.Change)) kek.Change {
	c.KEKs = slices.Clone(c.KEKs)
	f(&c)
	return c
}

func rotationMutants(c kek.Change) []mutant {
	m := c.Rotation
	if m == nil {
		return nil
	}
	replace := func(before *kek.Rotation) kek.Change {
		return with(c, func(c *kek.Change) { c.Rotation = &kek.RotationMove{Before: before, After: m.After} })
	}
	if m.Before == nil {
		made := m.After
		return []mutant{{"a rotation that is not there", replace(&made)}}
	}
	phase, rev, older := *m.Before, *m.Before, *m.Before
	phase.Phase = "elsewhere"
	rev.Rev++
	older.Rev--
	return []mutant{
		{"no rotation", replace(nil)},
		{"another phase", replace(&phase)},
		{"a later revision", replace(&rev)},
		{"an earlier revision", replace(&older)},
	}
}

func pointerMutants(c kek.Change) []mutant {
	wrong := func(p kek.Pointer) map[string]*kek.Pointer {
		epoch, id := p, p
		epoch.Epoch++
		id.KEKID = "kek-other"
		return map[string]*kek.Pointer{"another epoch": &epoch, "another KEK": &id}
	}
	var out []mutant
	switch m := c.Pointer; {
	case m != nil && m.Before == nil:
		out = append(out, mutant{"a pointer that is not there", with(c, func(c *kek.Change) {
			c.Pointer = &kek.PointerMove{Before: &m.After, After: m.After}
		})})
	case m != nil:
		out = append(out, mutant{"no pointer", with(c, func(c *kek.Change) { c.Pointer = &kek.PointerMove{After: m.After} })})
		for name, p := range wrong(*m.Before) {
			out = append(out, mutant{"pointer with " + name, with(c, func(c *kek.Change) {
				c.Pointer = &kek.PointerMove{Before: p, After: m.After}
			})})
		}
	case c.Keeps != nil:
		for name, p := range wrong(*c.Keeps) {
			out = append(out, mutant{"keeps a pointer with " + name, with(c, func(c *kek.Change) { c.Keeps = p })})
		}
	}
	return out
}

func registryMutants(c kek.Change) []mutant {
	var out []mutant
	for name, by := range map[string]int64{"a later": 1, "an earlier": -1} {
		if m := c.Registry; m != nil {
			moved := *m
			moved.Before += by
			out = append(out, mutant{name + " revision of the registry", with(c, func(c *kek.Change) { c.Registry = &moved })})
		}
		if c.AtRegistry != nil {
			at := *c.AtRegistry + by
			out = append(out, mutant{"at " + name + " revision of the registry", with(c, func(c *kek.Change) { c.AtRegistry = &at })})
		}
	}
	if none := int64(0); c.AtRegistry != nil && *c.AtRegistry > 0 {
		out = append(out, mutant{"at no registry", with(c, func(c *kek.Change) { c.AtRegistry = &none })})
	}
	if m := c.Registry; m != nil && m.Forget != "" {
		moved := *m
		moved.Forget, moved.Absent = "", m.Forget
		out = append(out, mutant{"no mark where there is one", with(c, func(c *kek.Change) { c.Registry = &moved })})
	}
	if c.Shuts != "" {
		out = append(out, mutant{"shuts a fence that is there", with(c, func(c *kek.Change) { c.Shuts = "kek-fenced" })})
	}
	return out
}

func kekMutants(c kek.Change) []mutant {
	var out []mutant
	for i, m := range c.KEKs {
		replace := func(before *kek.KEK) kek.Change {
			return with(c, func(c *kek.Change) { c.KEKs[i] = kek.KEKMove{Before: before, After: m.After} })
		}
		id := string(m.After.ID)
		if m.Before == nil {
			made := m.After
			out = append(out, mutant{"an entry that is not there: " + id, replace(&made)})
			continue
		}
		state := *m.Before
		state.State = "elsewhere"
		out = append(out, mutant{"no entry " + id, replace(nil)}, mutant{"another state of " + id, replace(&state)})
	}
	return out
}
