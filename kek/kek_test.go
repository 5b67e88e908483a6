package kek

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestStates tries every pair of states.
func TestStates(t *testing.T) {
	all := []State{Pending, Active, Draining, Sealed, Retired}
	want := []string{"pending→active", "pending→retired", "active→draining", "draining→sealed", "sealed→retired"}
	for _, from := range append(all, "") {
		for _, to := range append(all, "") {
			k, err := KEK{ID: "k", State: from, Label: "l"}.moveTo(to)
			var illegal *IllegalTransition
			switch legal := slices.Contains(want, string(from)+"→"+string(to)); {
			case legal && (err != nil || k.State != to || k.Label != "l"):
				t.Errorf("%q to %q: %+v, %v", from, to, k, err)
			case !legal && (!errors.As(err, &illegal) || illegal.From != string(from) || illegal.To != string(to)):
				t.Errorf("%q to %q: %v", from, to, err)
			}
		}
		if got, want := from.Resolves(), from == Active || from == Draining || from == Sealed; got != want {
			t.Errorf("%q resolves: %t", from, got)
		}
	}
}

func TestPhases(t *testing.T) {
	way := []Phase{Started, Minted, Tested, Switched, Drained, Rewrapped, KEKRetired, Completed}
	for i, p := range way {
		for j, q := range way {
			if p.Reached(q) != (i >= j) {
				t.Errorf("%s reached %s: %t", p, q, p.Reached(q))
			}
		}
		for _, q := range []Phase{RolledBack, Superseded} {
			if p.Reached(q) || q.Reached(p) || Phase("").Reached(p) {
				t.Errorf("%s and %s, or nothing, reach one another", p, q)
			}
		}
		if Phase("").Reached("") || Phase("elsewhere").Reached("") {
			t.Error("what is no phase has reached something")
		}
		if p.Final() != (p == Completed) || p.PreSwitch() != (i < 3) {
			t.Errorf("%s: final %t, before the switch %t", p, p.Final(), p.PreSwitch())
		}
	}
	for _, p := range []Phase{RolledBack, Superseded} {
		if !p.Reached(p) || !p.Final() || p.PreSwitch() {
			t.Error(p)
		}
	}
}

func TestCheckRotationID(t *testing.T) {
	for id, ok := range map[string]bool{
		"Q2-2026-rotation": true, "a": true, "9_9": true, strings.Repeat("x", 80): true,
		"": false, "-a": false, "_a": false, strings.Repeat("x", 81): false, "a b": false, "a:b": false, "a/b": false, "a.b": false,
		"a\n": false, "\na": false, "é": false, "a#b": false, "a\x00": false, "../a": false,
	} {
		if err := CheckRotationID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestCheckLabel(t *testing.T) {
	for label, ok := range map[string]bool{
		"Q2-2026-rotation": true, "Q2 2026 / eu.1_a": true, "1": true, strings.Repeat("x", 80): true,
		"": false, " a": false, "/a": false, strings.Repeat("x", 81): false, "a\n": false, "a\tb": false, "a<b": false, "é": false, "a\x1b[31m": false,
	} {
		if err := CheckLabel(label); (err == nil) != ok {
			t.Errorf("%q: %v", label, err)
		}
	}
}

func TestQuarterLabel(t *testing.T) {
	for month, want := range map[time.Month]string{
		time.January: "Q1", time.March: "Q1", time.April: "Q2", time.June: "Q2", time.July: "Q3", time.September: "Q3", time.October: "Q4", time.December: "Q4",
	} {
		got := QuarterLabel(time.Date(2026, month, 28, 23, 0, 0, 0, time.UTC))
		if got != want+"-2026-rotation" || CheckLabel(got) != nil || CheckRotationID(got) != nil {
			t.Errorf("%s: %q", month, got)
		}
	}
}
