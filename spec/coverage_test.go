package spec

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/tlc"
)

// counted are the variants in which TLC counts how often each action is taken. They are the
// models as they are, and small: counting makes TLC slower by a tenth to a half.
var counted = []string{
	"ok_plain", "ok_leases_renewed", "ok_pair_strays_rows", "ok_pair_remint_rows", "live_normal", "ok_restore_halted", "ok_known_rows",
	"ok_labels_lie", "ok_known_tables", "live_sources", "ok_pair_sources_takeover",
	"live_outbox_foreign", "ok_outbox_restored_one", "ok_doctor_fence", "ok_lag", "ok_set_back_unpublished", "ok_set_back_read", "ok_checkpoint", "ok_checkpoint_restarts", "ok_archive",
	"ok_keyed_two_rows", "ok_keyed_convert", "ok_keyed_upgraded", "ok_keyed_stale_early", "ok_keyed_move", "ok_keyed_rowless", "ok_keyed_old_rows", "ok_keyed_lose",
}

// nexts are the modules, and the next-state relation of each.
var nexts = []struct{ module, text, next string }{
	{"rotation", Rotation, "Next"},
	{"outbox", Outbox, "Next"},
	{"doctor", Doctor, "DNext"},
	{"lag", Lag, "LNext"},
	{"setback", SetBack, "BNext"},
	{"checkpoint", Checkpoint, "Next"},
	{"archive", Archive, "ANext"},
	{"keyed", Keyed, "Next"},
}

// actionsOf are the actions that a definition consists of: itself, or those that it uses.
func actionsOf(defs map[string]string, name string) []string {
	found := reachable(defs, name, changes)
	maps.DeleteFunc(found, func(name string, _ bool) bool { return !changes(defs[name]) })
	return slices.Sorted(maps.Keys(found))
}

// taken is the table of actions: in how many of the counted variants each is taken, and in
// which with the fewest states. One that is taken in none is an error: nothing is shown of it.
func (s *verdicts) taken(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| module | action | variants that take it | the smallest |\n|---|---|---|---|\n")
	for _, m := range nexts {
		defs := tlaDefinitions(m.text)
		by := s.takers(t, m.module, defs)
		all := actionsOf(defs, m.next)
		if len(all) < 2 {
			t.Fatalf("%s: %s consists of %q", m.module, m.next, all)
		}
		for _, action := range all {
			names := by[action]
			if len(names) == 0 {
				t.Errorf("%s: %s is taken in none of the variants that are counted", m.module, action)
				continue
			}
			smallest := slices.MinFunc(names, func(a, b string) int {
				return cmp.Or(cmp.Compare(s.rows[a].Distinct, s.rows[b].Distinct), cmp.Compare(a, b))
			})
			fmt.Fprintf(&b, "| %s | %s | %d | `%s` |\n", m.module, action, len(names), smallest)
		}
	}
	return b.String()
}

// takers are the counted variants of a module that take each of its actions.
func (s *verdicts) takers(t *testing.T, module string, defs map[string]string) map[string][]string {
	t.Helper()
	by := map[string][]string{}
	for _, v := range variants {
		if !slices.Contains(counted, v.name) || v.moduleName() != module {
			continue
		}
		if v.want != tlc.Holds || len(v.off)+len(v.edits) > 0 {
			t.Fatalf("%s is not the model as it is", v.name)
		}
		if len(s.rows[v.name].Taken) == 0 {
			t.Fatalf("TLC has counted no action of %s", v.name)
		}
		for _, a := range s.rows[v.name].Taken {
			if a.Module != module || a.Total == 0 || strings.HasSuffix(a.Action, "Init") {
				continue
			}
			of := actionsOf(defs, a.Action)
			if len(of) != 1 {
				t.Errorf("%s: TLC counts %q together, as %s: give each a definition of its own", module, of, a.Action)
			} else if !slices.Contains(by[of[0]], v.name) {
				by[of[0]] = append(by[of[0]], v.name)
			}
		}
	}
	return by
}
