package asltest

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// facts are the dotted paths that the data of a state surely has.
type facts map[string]bool

func (f facts) with(prefix string, more facts) facts {
	out := maps.Clone(f)
	for p := range out {
		if p == prefix || strings.HasPrefix(p, prefix+".") {
			delete(out, p)
		}
	}
	out[prefix] = true
	for p := range more {
		out[prefix+"."+p] = true
	}
	return out
}

func (f facts) meet(g facts) facts {
	out := facts{}
	for p := range f {
		if g[p] {
			out[p] = true
		}
	}
	return out
}

var caught = facts{"Error": true, "Cause": true}

// flow checks that every path a state reads is there whichever way the state was
// reached: a missing one fails the execution, past every Catch of the state.
func (c *checker) flow(d *Definition) { c.flowFrom(d, facts{}) }

func (c *checker) flowFrom(d *Definition, start facts) {
	known := map[string]facts{d.StartAt: start}
	for changed := true; changed; {
		changed = false
		reach := func(next string, f facts) {
			was, ok := known[next]
			if ok {
				f = was.meet(f)
			}
			if !ok || len(f) != len(was) {
				known[next], changed = f, true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(d.States)) {
			f, ok := known[name]
			if !ok {
				continue
			}
			s := d.States[name]
			after := c.after(s, f)
			for _, r := range s.Choices {
				reach(r.Next, after)
			}
			for _, next := range []string{s.Next, s.Default} {
				if next != "" {
					reach(next, after)
				}
			}
			for _, k := range s.Catch {
				reach(k.Next, placed(f, k.ResultPath, caught))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.States)) {
		c.reads(name, d.States[name], known[name])
	}
}

// after is what the data has when s has succeeded.
func (c *checker) after(s *State, f facts) facts {
	result := facts{}
	switch {
	case s.Type == "Task" && s.ResultSelector == nil:
		out := facts{}
		if k, ok := c.contracts[strings.ToLower(s.Function())]; ok {
			always(k.Out, "", out)
		}
		result = facts{}.with("Payload", out)
	case s.Type == "Task":
		for key := range s.ResultSelector {
			result[strings.TrimSuffix(key, ".$")] = true
		}
	case s.Type == "Pass" && s.Parameters != nil:
		for key := range s.Parameters {
			result[strings.TrimSuffix(key, ".$")] = true
		}
	case s.Type == "Task", s.Type == "Map":
	default:
		return f
	}
	f = placed(f, s.ResultPath, result)
	if path := text(s.OutputPath); path != "" && path != "$" {
		return f.below(strings.TrimPrefix(path, "$."))
	}
	return f
}

func (f facts) below(prefix string) facts {
	out := facts{}
	for p := range f {
		if rest, ok := strings.CutPrefix(p, prefix+"."); ok {
			out[rest] = true
		}
	}
	return out
}

// placed is f with a result put at a ResultPath.
func placed(f facts, path json.RawMessage, result facts) facts {
	switch p := text(path); {
	case string(path) == "null":
		return f
	case p == "" || p == "$":
		return result
	default:
		return f.with(strings.TrimPrefix(p, "$."), result)
	}
}

// text is the string of a raw path; "" if it is absent or null.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

func (c *checker) reads(name string, s *State, f facts) {
	for _, path := range s.paths() {
		rest, ok := strings.CutPrefix(path, "$.")
		if ok && !f[rest] {
			c.add(name, "reads %s, which a way to it does not set", path)
		}
	}
	if s.ItemProcessor == nil {
		return
	}
	item := facts{}
	for key := range s.ItemSelector {
		item[strings.TrimSuffix(key, ".$")] = true
	}
	c.flowFrom(s.ItemProcessor, item)
}

// paths lists the paths that s reads from its data.
func (s *State) paths() []string {
	out := []string{s.ItemsPath, s.ErrorPath, s.CausePath, text(s.InputPath), s.TimeoutSecondsPath, s.SecondsPath, s.MaxConcurrencyPath}
	for _, r := range s.Choices {
		out = append(out, r.Variable)
	}
	var walk func(v any)
	walk = func(v any) {
		fields, _ := v.(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			if path, ok := fields[key].(string); ok && strings.HasSuffix(key, ".$") {
				out = append(out, path)
			}
			walk(fields[key])
		}
	}
	walk(s.Parameters)
	walk(s.ItemSelector)
	return out
}
