package rotation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// refusal is something that is refused, or is said when it is not: what error a call
// returns, or else its output.
type refusal struct {
	name  string
	phase kek.Phase // of rotation spring; "": none was started
	in    rotation.ExecutionInput
	call  func(s *site) (any, error)
}

// TestRefusals holds every refusal to its words: kind, field, message and next step.
func TestRefusals(t *testing.T) {
	var text strings.Builder
	bases := map[string]*site{}
	for _, group := range [][]refusal{
		inputRefusals(), gateRefusals(), stepRefusals(), rowRefusals(), registryRefusals(), approvalRefusals(),
		keyRefusals(), raceRefusals(), manyRefusals(), unopened(), untold(), laterRefusals(),
	} {
		for _, r := range group {
			key := fmt.Sprint(r.phase, r.in)
			base := bases[key]
			if base == nil {
				base = newSite(t)
				if r.phase != "" {
					base.advance(spring, r.in, r.phase)
				}
				bases[key] = base
			}
			s := base.fork(t)
			out, err := r.call(s)
			answer := set(t, out)
			if err != nil {
				answer = toldError(err)
			}
			fmt.Fprintf(&text, "%s\n  %s\n", r.name, answer)
		}
	}
	wantGolden(t, "refusals.golden", text.String())
}

// toldError is an error as a person sees it, and the rows that it names.
func toldError(err error) string {
	text := advice.Explain(err)
	var typed *journal.Error
	if errors.As(err, &typed) && len(typed.Rows) > 0 {
		text += fmt.Sprintf(" rows %q", typed.Rows)
	}
	return text
}

// start is preflight under an execution's name.
func (s *site) start(name string, in rotation.ExecutionInput) (any, error) {
	_, err := s.Preflight(s.t.Context(), preflightInput(name, in))
	return "started", err
}

func inputRefusals() []refusal {
	var out []refusal
	long := strings.Repeat("r", 1000)
	for name, in := range map[string]rotation.ExecutionInput{
		"an unknown mode": {Mode: "urgent"}, "an emergency without a reason": {Mode: "emergency"},
		"a reason of 1001 bytes": {Reason: long + "r"}, "a reason of 1000 bytes": {Reason: long},
		"a reason of two lines": {Reason: "a\nb"}, "a label of two lines": {Label: "a\nb"}, "an empty window": {Window: "03:00-03:00"},
		"a window that is none": {Window: "night"}, "a window without a time": {Window: "25:00-26:00"}, "a window that ends never": {Window: "01:00-26:00"},
		"another window, which is closed": {Window: "22:00-01:30"}, "any window": {Window: "any"},
		"resume with a mode": {Resume: spring, Mode: "emergency"}, "resume with a label": {Resume: spring, Label: "l"},
		"resume with a window": {Resume: spring, Window: "any"}, "resume with a drill": {Resume: spring, Drill: gates.DrillFailure},
		"resume with again": {Resume: spring, Again: true}, "resume of a bad id": {Resume: "a b"}, "resume of nothing": {Resume: "Q9"},
		"an unknown drill": {Drill: "fire"}, "an emergency drill": {Drill: gates.DrillFailure, Mode: "emergency", Reason: "r"},
		"again without an emergency": {Again: true}, "a requester of 501 bytes": {RequestedBy: long[:501]}, "a requester of 500 bytes": {RequestedBy: long[:500]},
		"a requester of two lines": {RequestedBy: "a\nb"},
	} {
		out = append(out, refusal{name: name, call: func(s *site) (any, error) { return s.start(spring, in) }})
	}
	sortRefusals(out)
	for _, text := range []string{``, `null`, `""`, `" "`, `"emergency"`, `[]`, `7`, `{"mood": "emergency"}`, `{"mode": 7}`, `{`, `{"Comment": "x", "mode": " normal ", "label": " l ", ` +
		`"reason": " r ", "window": " any ", "resume": " id ", "drill": " d ", "requested_by": " me "}`} {
		out = append(out, refusal{name: "the input " + text, call: func(*site) (any, error) {
			in := rotation.ExecutionInput{Label: "left over"}
			return &in, in.UnmarshalJSON([]byte(text))
		}})
	}
	return append(out, []refusal{
		{name: "an execution's bad name", call: func(s *site) (any, error) { return s.start("Q2:2026", rotation.ExecutionInput{}) }},
		{name: "nobody asks where two must agree", call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired, s.Journal.Actor = true, "lambda/preflight"
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "a person asks where two must agree", call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired, s.Journal.Actor = true, "carol\xff"
			_, err := s.start(spring, rotation.ExecutionInput{})
			r := s.record(spring)
			return []any{r.Requester, r.Approval}, err
		}},
		{name: "a drill where two must agree", call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			_, err := s.start(spring, drill)
			r := s.record(spring)
			return []any{r.Approval, r.Label}, err
		}},
		{name: "the name of a finished rotation", phase: kek.Completed, call: func(s *site) (any, error) { return s.start(spring, rotation.ExecutionInput{}) }},
		{name: "the name of another execution's rotation", phase: kek.Minted, call: func(s *site) (any, error) {
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.ExecutionARN = "arn:another"
			return s.Preflight(s.t.Context(), in)
		}},
		{name: "resume of a finished rotation", phase: kek.Completed, call: func(s *site) (any, error) {
			return s.start("again", rotation.ExecutionInput{Resume: spring})
		}},
		{name: "a repeated start", phase: kek.Minted, call: func(s *site) (any, error) {
			return s.Preflight(s.t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
		}},
		{name: "a look under the name of a rotation that exists", phase: kek.Minted, call: func(s *site) (any, error) {
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.CheckOnly = true
			return s.Preflight(s.t.Context(), in)
		}},
		{name: "an emergency's look beside a rotation", phase: kek.Minted, call: func(s *site) (any, error) {
			in := preflightInput(summer, emergency)
			in.CheckOnly = true
			return s.Preflight(s.t.Context(), in)
		}},
		{name: "a drill's look", call: func(s *site) (any, error) {
			s.clock.pass(8 * time.Hour)
			strict(s)
			in := preflightInput(spring, drill)
			in.CheckOnly = true
			return s.Preflight(s.t.Context(), in)
		}},
		{name: "a second rotation", phase: kek.Minted, call: func(s *site) (any, error) { return s.start(summer, rotation.ExecutionInput{}) }},
		{name: "a second emergency", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) { return s.start(summer, emergency) }},
		{name: "a superseded rotation is started again", phase: kek.Minted, call: func(s *site) (any, error) {
			_, err := s.start(summer, emergency)
			s.must(err)
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "a superseded rotation's census", phase: kek.Started, call: func(s *site) (any, error) {
			_, err := s.start(summer, emergency)
			s.must(err)
			return nil, s.census(spring)
		}},
		{name: "a superseded rotation's switch", phase: kek.Tested, call: func(s *site) (any, error) {
			_, err := s.start(summer, emergency)
			s.must(err)
			return s.Switch(s.t.Context(), input(spring))
		}},
	}...)
}

func sortRefusals(list []refusal) {
	for i := range list {
		for j := i; j > 0 && list[j].name < list[j-1].name; j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
}

func gateRefusals() []refusal {
	opens := time.Date(2026, 4, 1, 1, 0, 0, 0, time.UTC) // the window of now
	start := func(prepare func(s *site)) func(*site) (any, error) {
		return func(s *site) (any, error) {
			prepare(s)
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.CheckOnly = true
			plan, err := s.Preflight(s.t.Context(), in)
			if err == nil {
				return plan.Checks, nil
			}
			return nil, err
		}
	}
	announced := func(ago time.Duration, days int) func(*site) (any, error) {
		return start(func(s *site) {
			s.Gates.Rules.AnnounceDays = 7
			s.announced("Q2-2026-rotation", ago, opens.AddDate(0, 0, days), opens.AddDate(0, 0, days).Add(4*time.Hour))
		})
	}
	announce := func(in gates.AnnounceInput, prepare func(*site)) func(*site) (any, error) {
		return func(s *site) (any, error) {
			if prepare != nil {
				prepare(s)
			}
			return s.Gates.AnnounceWindow(s.t.Context(), in)
		}
	}
	noon := time.Date(2026, 4, 10, 12, 0, 0, 0, time.UTC)
	return []refusal{
		{name: "outside of the window", call: start(func(s *site) { s.clock.pass(3 * time.Hour) })},
		{name: "in a window over midnight of another zone", call: start(func(s *site) {
			s.Gates.Rules.Window = must(gates.ParseWindow("22:30-02:01", time.FixedZone("X", 3600)))
			s.clock.pass(-time.Hour)
		})},
		{name: "never announced", call: start(func(s *site) { s.Gates.Rules.AnnounceDays = 7 })},
		{name: "announced for yesterday", call: announced(9*day, -1)},
		{name: "announced for tomorrow", call: announced(8*day, 1)},
		{name: "announced six days ago", call: announced(6*day, 0)},
		{name: "announced in time", call: announced(7*day-3*time.Hour, 0)},
		{name: "announced, and no zone", call: start(func(s *site) {
			s.Gates.Rules.AnnounceDays, s.Gates.Rules.Window.Zone = 7, nil
			s.announced("Q2-2026-rotation", 6*day, opens, opens.Add(4*time.Hour))
		})},
		{name: "no drill", call: start(func(s *site) { s.Gates.Rules.DrillFreshDays = 90 })},
		{name: "a stale drill", call: start(func(s *site) {
			s.Gates.Rules.DrillFreshDays = 90
			s.drill("drill-1")
			s.clock.pass(91*day + time.Second)
		})},
		{name: "no canary", call: start(func(s *site) { s.Gates.Rules.HealthDays = 2 })},
		{name: "a red canary", call: start(func(s *site) {
			s.Gates.Rules.HealthDays = 1
			s.green(3)
			s.must(s.kms.Disable(s.t.Context(), s.first))
			must(s.Health(s.t.Context(), rotation.HealthInput{}))
			s.kms.Enable(s.first)
			s.clock.pass(day)
			s.green(1)
		})},
		{name: "all is green", call: start(ready)},
		{name: "announce a window that is too soon", call: announce(gates.AnnounceInput{From: noon}, func(s *site) { s.Gates.Rules.AnnounceDays = 10 })},
		{name: "announce under a bad label", call: announce(gates.AnnounceInput{Label: "a\nb"}, nil)},
		{name: "announce the default", call: announce(gates.AnnounceInput{}, func(s *site) { s.Gates.Rules.AnnounceDays = 7 })},
		{name: "announce a moment", call: announce(gates.AnnounceInput{Label: "special", From: noon}, func(s *site) {
			s.Gates.Rules.AnnounceDays, s.Gates.Rules.Window.Zone = 7, time.FixedZone("X", 3600)
		})},
		{name: "announce the same again", call: announce(gates.AnnounceInput{Label: "special", From: noon}, func(s *site) {
			must(s.Gates.AnnounceWindow(s.t.Context(), gates.AnnounceInput{Label: "special", From: noon}))
		})},
		{name: "announce another window", call: announce(gates.AnnounceInput{Label: "special", From: noon}, func(s *site) {
			must(s.Gates.AnnounceWindow(s.t.Context(), gates.AnnounceInput{Label: "special", From: noon.AddDate(0, 0, 1)}))
		})},
		{name: "announce once that one is over", call: announce(gates.AnnounceInput{Label: "special"}, func(s *site) {
			must(s.Gates.AnnounceWindow(s.t.Context(), gates.AnnounceInput{Label: "special"}))
			s.clock.pass(3 * time.Hour)
		})},
		{name: "announce before that one is over", call: announce(gates.AnnounceInput{Label: "special"}, func(s *site) {
			must(s.Gates.AnnounceWindow(s.t.Context(), gates.AnnounceInput{Label: "special"}))
			s.clock.pass(3*time.Hour - time.Second)
		})},
		{name: "a status page that is down", call: announce(gates.AnnounceInput{}, func(s *site) { s.Gates.Announcers = []gates.Announcer{&teller{err: errAway}} })},
		{name: "it moves on without the page", call: func(s *site) (any, error) {
			must(s.Gates.AnnounceWindow(s.t.Context(), gates.AnnounceInput{Label: "Q2"}))
			s.Gates.Announcers = []gates.Announcer{&teller{err: errAway}, &teller{}}
			return s.Notify(s.t.Context(), journal.Notice{Event: journal.NotifyCompleted, Label: "Q2"})
		}},
		{name: "it moves on without the announcement", call: func(s *site) (any, error) {
			s.Gates.Announcers = []gates.Announcer{&teller{}}
			s.world.SetHook(away("Store.LoadAnnouncement"))
			return s.Notify(s.t.Context(), journal.Notice{Event: journal.NotifyCompleted, Label: "Q2"})
		}},
	}
}

func stepRefusals() []refusal {
	ctx := context.Background()
	var out []refusal
	for name, call := range map[string]func(s *site) (any, error){
		"mint": func(s *site) (any, error) { return s.Mint(ctx, input(spring)) },
		"rehearse": func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Rehearse: true})
		},
		"dual unwrap": func(s *site) (any, error) { return s.DualUnwrap(ctx, input(spring)) },
		"switch":      func(s *site) (any, error) { return s.Switch(ctx, input(spring)) },
		"drain":       func(s *site) (any, error) { return s.Drain(ctx, input(spring)) },
		"rewrap": func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders"})
		},
		"complete": func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Complete: true})
		},
		"retire": func(s *site) (any, error) { return s.Retire(ctx, rotation.RetireInput{RotationID: spring}) },
		"verify": func(s *site) (any, error) { return s.Verify(ctx, verifyInput(spring)) },
		"census": func(s *site) (any, error) { return nil, s.census(spring) },
		"ask":    func(s *site) (any, error) { return s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring}) },
		"judge":  func(s *site) (any, error) { return s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring}) },
		"roll back": func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "E"})
		},
		"mint again": func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "E"})
		},
		"abandon": func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionAbandon})
		},
		"another thing": func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: "delete"})
		},
	} {
		for _, phase := range []kek.Phase{"", kek.Started, kek.Minted, kek.Switched, kek.Rewrapped, kek.Completed} {
			out = append(out, refusal{name: fmt.Sprintf("%s at %q", name, phase), phase: phase, call: call})
		}
		out = append(out, refusal{name: name + " of an emergency that is minted", phase: kek.Minted, in: emergency, call: call})
	}
	sortRefusals(out)
	disable := func(s *site) { s.must(s.kms.Disable(ctx, s.record(spring).NewKEK)) }
	return append(out, []refusal{
		{name: "the rehearsal of a key that was disabled", phase: kek.Minted, call: func(s *site) (any, error) { disable(s); return nil, s.rehearse(spring) }},
		{name: "the test of a key that was disabled", phase: kek.Minted, call: func(s *site) (any, error) {
			s.must(s.rehearse(spring))
			disable(s)
			return nil, s.test(spring)
		}},
		{name: "the switch to a key that was disabled", phase: kek.Tested, call: func(s *site) (any, error) { disable(s); return s.Switch(ctx, input(spring)) }},
		{name: "a claimed key that was disabled", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			k := must(s.kms.Create(ctx, spring, 1, "", keyring.Key{}))
			must(s.kms.Claim(ctx, spring, 1, k.ID))
			s.must(s.kms.Disable(ctx, k.ID))
			return s.Mint(ctx, input(spring))
		}},
		{name: "a key of another maker, and mine", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "KMS.Claim" && args[2] != kek.ID("") {
					s.world.SetHook(nil)
					k := must(s.kms.Create(ctx, spring, 1, "", keyring.Key{}))
					must(s.kms.Claim(ctx, spring, 1, k.ID))
				}
				return true, nil
			})
			out, err := s.Mint(ctx, input(spring))
			return []any{out, s.enabled("kek-0002"), s.enabled("kek-0003")}, err
		}},
		{name: "strays of the rotation", phase: kek.Minted, call: func(s *site) (any, error) {
			k := must(s.kms.Create(ctx, spring, 1, "", keyring.Key{}))
			out, err := s.Mint(ctx, input(spring))
			return []any{out, s.enabled(k.ID), s.enabled(s.record(spring).NewKEK), s.enabled(s.first)}, err
		}},
		{name: "the attempts of an emergency are over", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) {
			var last error
			for i := range 3 {
				_, last = s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: i + 1, Error: "E"})
				if last == nil {
					s.must(s.mint(spring))
				}
			}
			return s.record(spring).Attempt, last
		}},
		{name: "leases outlive the wait", phase: kek.Switched, call: func(s *site) (any, error) {
			s.lease("a", time.Hour)
			s.clock.pass(maxWait)
			return s.Drain(ctx, input(spring))
		}},
		{name: "leases within the wait", phase: kek.Switched, call: func(s *site) (any, error) {
			s.lease("a", time.Hour)
			s.lease("b", time.Hour)
			s.lease("c", maxWait-2*time.Second)
			s.clock.pass(maxWait - time.Second)
			return s.Drain(ctx, input(spring))
		}},
		{name: "a lease that ends now", phase: kek.Switched, call: func(s *site) (any, error) {
			s.lease("a", time.Minute)
			s.clock.pass(time.Minute)
			return s.Drain(ctx, input(spring))
		}},
		{name: "an emergency's leases", phase: kek.Switched, in: emergency, call: func(s *site) (any, error) {
			s.lease("a", time.Hour)
			s.clock.pass(time.Minute)
			return s.Drain(ctx, input(spring))
		}},
		{name: "a segment that there is not", phase: kek.Drained, call: func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders", Segment: 2})
		}},
		{name: "a segment below zero", phase: kek.Drained, call: func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders", Segment: -1})
		}},
		{name: "a source that there is not", phase: kek.Drained, call: func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "letters"})
		}},
		{name: "completed before its segments", phase: kek.Drained, call: func(s *site) (any, error) {
			c, cancel := context.WithDeadline(ctx, s.clock.now())
			defer cancel()
			return s.Rewrap(until{c, s.clock.now()}, rotation.RewrapInput{RotationID: spring, Complete: true})
		}},
		{name: "an alias of another pointer", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			alter(func(v *kek.View) { v.Pointer.KEKID = "kek-9999" })(s)
			return s.Verify(ctx, verifyInput(spring))
		}},
		{name: "no pointer any more", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			alter(func(v *kek.View) { v.Pointer = nil })(s)
			return s.Verify(ctx, verifyInput(spring))
		}},
		{name: "the old key is enabled", phase: kek.KEKRetired, call: func(s *site) (any, error) { s.kms.Enable(s.first); return s.Verify(ctx, verifyInput(spring)) }},
		{name: "the old key still unwraps", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			s.kms.Enable(s.first)
			s.Keys.Admin = seemsDisabled{s.kms, s.first}
			return s.Verify(ctx, verifyInput(spring))
		}},
		{name: "the chain has a gap", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			s.vault.Tamper(audit.ObjectKey(chain, 3), nil)
			return nil, s.VerifyChain(ctx)
		}},
		{name: "a record is another's", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			s.vault.Tamper(audit.ObjectKey(chain, 3), must(s.vault.Get(ctx, audit.ObjectKey(chain, 2))))
			return nil, s.VerifyChain(ctx)
		}},
		{name: "the chain is whole", phase: kek.KEKRetired, call: func(s *site) (any, error) { return nil, s.VerifyChain(ctx) }},
		{name: "health without a pointer", call: func(s *site) (any, error) {
			alter(func(v *kek.View) { v.Pointer = nil })(s)
			return s.Health(ctx, rotation.HealthInput{})
		}},
		{name: "no transparency log", call: func(s *site) (any, error) { return s.Anchor.CheckAnchoring(ctx) }},
		{name: "an audit without one", call: func(s *site) (any, error) {
			_, err := s.Anchor.VerifyAudit(ctx, anchor.AuditOptions{})
			return nil, err
		}},
		{name: "an unknown event", call: func(s *site) (any, error) { return s.Notify(ctx, journal.Notice{Event: "done"}) }},
		{name: "a halt", call: func(s *site) (any, error) { return s.Notify(ctx, halted(0, nil)) }},
		{name: "a verdict that is none", call: func(*site) (any, error) { return nil, anchor.AuditVerdict(audit.Report{Result: "?"}) }},
		{name: "an unproven chain", call: func(*site) (any, error) {
			return nil, anchor.AuditVerdict(audit.Report{Result: audit.Unproven, Findings: []audit.Finding{{Kind: audit.TailTooOld, Object: "o", Detail: "d"}}})
		}},
		{name: "a tampered chain", call: func(*site) (any, error) {
			return nil, anchor.AuditVerdict(audit.Report{Result: audit.Tampered, More: 2, Findings: []audit.Finding{
				{Kind: audit.TailTooOld, Object: "o", Detail: "d"}, {Kind: audit.MissingRecord, Object: "p", Detail: "e"},
			}})
		}},
	}...)
}

// seemsDisabled is KMS of which one key says that it is disabled.
type seemsDisabled struct {
	keyring.Admin
	id kek.ID
}

func (k seemsDisabled) Describe(ctx context.Context, id kek.ID) (keyring.Key, error) {
	out, err := k.Admin.Describe(ctx, id)
	if id == k.id {
		out.Enabled, out.State = false, "Disabled"
	}
	return out, err
}

func rowRefusals() []refusal {
	ctx := context.Background()
	var out []refusal
	spoilt := func(table func(s *site) *memstore.Table, id string, edit func(s *site, r *memstore.Record)) func(*site) {
		return func(s *site) {
			r := s.rows()[place{table(s), id}]
			r.Ciphertext = append([]byte{}, r.Ciphertext...)
			edit(s, &r)
			table(s).Plant(id, r)
		}
	}
	orders := func(s *site) *memstore.Table { return s.orders }
	corpus := func(s *site) *memstore.Table { return s.corpus }
	for name, item := range unaccountedItems {
		spoil := spoilt(orders, "o2", func(_ *site, r *memstore.Record) { item.spoil(r) })
		for what, call := range map[string]struct {
			phase kek.Phase
			run   func(s *site) (any, error)
		}{
			"counted":   {"", func(s *site) (any, error) { return s.TakeCensus(ctx, "orders", nil) }},
			"sampled":   {"", func(s *site) (any, error) { return s.CheckRows(ctx, kek.Emergency) }},
			"in census": {kek.Started, func(s *site) (any, error) { return nil, s.census(spring) }},
			"rehearsed": {kek.Minted, func(s *site) (any, error) { return nil, s.rehearse(spring) }},
			"rewrapped": {kek.Drained, func(s *site) (any, error) { return nil, s.rewrapAll(spring) }},
			"verified":  {kek.KEKRetired, func(s *site) (any, error) { return nil, s.verify(spring) }},
		} {
			out = append(out, refusal{name: name + " is " + what, phase: call.phase, call: func(s *site) (any, error) { spoil(s); return call.run(s) }})
		}
	}
	for name, edit := range map[string]func(s *site, r *memstore.Record){
		"garbage":                  func(_ *site, r *memstore.Record) { r.WrappedDEK = []byte("garbage, but long enough to be one") },
		"altered":                  func(_ *site, r *memstore.Record) { r.Ciphertext[9] ^= 1 },
		"without a payload":        func(_ *site, r *memstore.Record) { r.Ciphertext = nil },
		"of another context":       func(_ *site, r *memstore.Record) { r.Context = nil },
		"of another plaintext":     func(_ *site, r *memstore.Record) { r.PlainSHA = "00" },
		"of no known plaintext":    func(_ *site, r *memstore.Record) { r.PlainSHA = "" },
		"of a payload of one byte": func(_ *site, r *memstore.Record) { r.Ciphertext = []byte{1} },
		"whole with a payload":     func(_ *site, r *memstore.Record) { r.Whole = true },
		"whole":                    func(_ *site, r *memstore.Record) { r.Whole, r.Ciphertext = true, nil },
		"under the new KEK": func(_ *site, r *memstore.Record) {
			r.KEK = "kek-0002"
		},
	} {
		for what, call := range map[string]struct {
			table func(s *site) *memstore.Table
			id    string
			phase kek.Phase
			in    rotation.ExecutionInput
			run   func(s *site) (any, error)
		}{
			"row is sampled":                  {orders, "o2", "", rotation.ExecutionInput{}, func(s *site) (any, error) { return s.CheckRows(ctx, kek.Normal) }},
			"row is sampled for an emergency": {orders, "o2", "", rotation.ExecutionInput{}, func(s *site) (any, error) { return s.CheckRows(ctx, kek.Emergency) }},
			"row is rehearsed":                {orders, "o2", kek.Minted, rotation.ExecutionInput{}, func(s *site) (any, error) { return s.rehearsed() }},
			"row is rehearsed in an emergency": {orders, "o2", kek.Minted, emergency, func(s *site) (any, error) {
				return s.rehearsed()
			}},
			"row is rewrapped":                 {orders, "o2", kek.Drained, rotation.ExecutionInput{}, func(s *site) (any, error) { return nil, s.rewrapAll(spring) }},
			"row is rewrapped in an emergency": {orders, "o2", kek.Drained, emergency, func(s *site) (any, error) { return nil, s.rewrapAll(spring) }},
			"row is verified":                  {orders, "o2", kek.KEKRetired, rotation.ExecutionInput{}, func(s *site) (any, error) { return nil, s.verify(spring) }},
			"entry is tested": {corpus, "known-2.json", kek.Minted, rotation.ExecutionInput{}, func(s *site) (any, error) {
				s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Rehearse: true}) //nolint:errcheck // the test is what is asked
				return s.DualUnwrap(ctx, input(spring))
			}},
		} {
			spoil := spoilt(call.table, call.id, edit)
			out = append(out, refusal{name: "a " + name + " " + what, phase: call.phase, in: call.in, call: func(s *site) (any, error) { spoil(s); return call.run(s) }})
		}
	}
	sortRefusals(out)
	test := func(prepare func(s *site)) func(*site) (any, error) {
		return func(s *site) (any, error) {
			s.must(s.rehearse(spring))
			prepare(s)
			return s.DualUnwrap(ctx, input(spring))
		}
	}
	return append(out, []refusal{
		{name: "a wrong context is accepted", phase: kek.Minted, call: test(func(s *site) { s.Keys.Wrapper = lax{s.kms} })},
		{name: "another DEK comes back", phase: kek.Minted, call: test(func(s *site) { s.Keys.Wrapper = forgetful{s.kms} })},
		{name: "the canary does not unwrap", phase: kek.Minted, call: test(func(s *site) { s.Keys.Wrapper = deaf{s.kms} })},
		{name: "another plaintext comes back", phase: kek.Minted, call: test(func(s *site) { s.Keys.Cipher = unfaithful{s.Keys.Cipher} })},
		{name: "sealing fails", phase: kek.Minted, call: test(func(s *site) { s.Keys.Cipher = mute{s.Keys.Cipher} })},
		{name: "a canary that opens to nothing", phase: kek.Minted, in: drill, call: test(func(s *site) { s.Keys.Cipher = hollow{s.Keys.Cipher} })},
		{name: "a corpus without a known cipher", phase: kek.Minted, call: test(func(s *site) {
			for _, id := range []string{"known-1.json", "known-2.json"} {
				s.remove(s.corpus, id)
			}
		})},
		{name: "a canary that proves nothing", phase: kek.Started, in: drill, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			s.must(s.mint(spring))
			s.must(s.rehearse(spring))
			alter(func(v *kek.View) {
				if v.Rotation != nil {
					v.Rotation.Settings.CanaryRounds = 0
				}
			})(s)
			return s.DualUnwrap(ctx, input(spring))
		}},
		{name: "a rewrap to another data key", phase: kek.Minted, call: func(s *site) (any, error) { s.Keys.Wrapper = swapping{s.kms}; return nil, s.rehearse(spring) }},
		{name: "a source of no envelopes", phase: kek.Started, call: func(s *site) (any, error) {
			for i := range 4 {
				s.orders.Plant(fmt.Sprintf("o%d", i), memstore.Record{Other: true})
			}
			return nil, s.census(spring)
		}},
		{name: "a source of declared items", phase: kek.Started, call: func(s *site) (any, error) {
			for i := range 4 {
				s.orders.Plant(fmt.Sprintf("o%d", i), memstore.Record{Declared: true})
			}
			return nil, s.census(spring)
		}},
		{name: "a corpus of no envelopes", phase: kek.Started, call: func(s *site) (any, error) {
			for i := range 2 {
				s.corpus.Plant(fmt.Sprintf("known-%d.json", i+1), memstore.Record{Other: true})
			}
			return nil, s.census(spring)
		}},
		{name: "an empty corpus at the start", call: func(s *site) (any, error) {
			for _, id := range []string{"known-1.json", "known-2.json"} {
				s.remove(s.corpus, id)
			}
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "grants at the retirement", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			s.kms.AddGrant(s.first, grant)
			s.kms.AddGrant(s.first, "to another")
			return nil, s.retire(spring)
		}},
		{name: "the old KEK wraps after its seal", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			s.clock.pass(time.Minute + time.Second)
			_, _, err := s.kms.GenerateDataKey(ctx, s.first, nil)
			s.must(err)
			return nil, s.retire(spring)
		}},
		{name: "a minute after its seal", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			s.clock.pass(time.Minute)
			_, _, err := s.kms.GenerateDataKey(ctx, s.first, nil)
			s.must(err)
			s.must(s.retire(spring))
			return s.body("old_kek_retired"), nil
		}},
		{name: "it wraps before somebody resumed", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			s.clock.pass(2 * time.Minute)
			_, _, err := s.kms.GenerateDataKey(ctx, s.first, nil)
			s.must(err)
			s.resume()
			s.must(s.retire(spring))
			return s.body("old_kek_retired"), nil
		}},
		{name: "it encrypts a table", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			s.people.SetEncryptedBy(must(s.kms.Describe(ctx, s.first)).ARN)
			return nil, s.retire(spring)
		}},
		{name: "an emergency whose KEK encrypts a table", phase: kek.Rewrapped, in: emergency, call: func(s *site) (any, error) {
			s.people.SetEncryptedBy(must(s.kms.Describe(ctx, s.first)).ARN)
			return nil, s.retire(spring)
		}},
		{name: "an emergency starts over everything", call: func(s *site) (any, error) {
			strict(s)
			s.Gates.Rules.ApprovalRequired = true
			s.clock.pass(8 * time.Hour)
			s.mark("unknown")
			s.kms.AddGrant(s.first, grant)
			s.kms.AddAlias(s.first, "alias/app")
			s.kms.SetMultiRegion(s.first, "eu-west-1")
			s.kms.SetPolicy(s.first, "AllowPartner", "AllowAudit")
			s.orders.SetNotes("it has a stream")
			s.orders.FailCheck(&journal.Error{Kind: journal.SourceMisconfigured, Field: "pk", Msg: "no key attribute pk"})
			s.people.FailCheck(&journal.Error{Kind: journal.RowsUnaccounted, Field: "rows", Msg: "some"})
			s.people.SetEncryptedBy(must(s.kms.Describe(ctx, s.first)).ARN)
			in := preflightInput(spring, emergency)
			plan, err := s.Preflight(ctx, in)
			return []any{plan.Checks, s.body("rotation_started")}, err
		}},
		{name: "a normal rotation does not", call: func(s *site) (any, error) {
			strict(s)
			s.clock.pass(8 * time.Hour)
			s.mark("unknown")
			s.orders.SetNotes("it has a stream")
			s.orders.FailCheck(&journal.Error{Kind: journal.SourceMisconfigured, Field: "pk", Msg: "no key attribute pk"})
			s.people.FailCheck(errors.New("no idea"))
			s.people.SetEncryptedBy(must(s.kms.Describe(ctx, s.first)).ARN)
			plan, err := s.Preflight(ctx, preflightInput(spring, rotation.ExecutionInput{}))
			b := must(json.Marshal(plan.Checks))
			return nil, errors.Join(err, errors.New(string(b)))
		}},
		{name: "who else uses the KEK cannot be read", call: func(s *site) (any, error) {
			s.world.SetHook(away("KMS.Use"))
			plan, err := s.Preflight(ctx, preflightInput(spring, emergency))
			return plan.Checks, err
		}},
	}...)
}

// away is a hook under which one kind of call gets no answer.
func away(op string) memstore.Hook {
	return func(got string, _ ...any) (bool, error) {
		if got == op {
			return false, errAway
		}
		return true, nil
	}
}

// rehearsed is what the record says of a rehearsal.
func (s *site) rehearsed() (any, error) {
	if err := s.rehearse(spring); err != nil {
		return nil, err
	}
	return s.body("rows_rehearsed"), nil
}

// mute is a cipher that does not seal.
type mute struct{ keyring.Cipher }

func (mute) Seal([]byte, []byte, map[string]string) ([]byte, error) { return nil, errAway }

// hollow is a cipher that opens to nothing.
type hollow struct{ keyring.Cipher }

func (hollow) Open([]byte, []byte, map[string]string) ([]byte, error) { return nil, nil }

func registryRefusals() []refusal {
	ctx := context.Background()
	return []refusal{
		{name: "genesis under a bad label", call: func(s *site) (any, error) { return s.Genesis(ctx, s.first, "a\nb", nil) }},
		{name: "genesis of no key", call: func(s *site) (any, error) { return s.Genesis(ctx, "kek-9999", "l", nil) }},
		{name: "genesis of a disabled key", call: func(s *site) (any, error) {
			s.must(s.kms.Disable(ctx, s.first))
			return s.Genesis(ctx, s.first, "l", nil)
		}},
		{name: "genesis again", call: func(s *site) (any, error) { return s.Genesis(ctx, s.first, "genesis", nil) }},
		{name: "genesis of another key", call: func(s *site) (any, error) {
			return s.Genesis(ctx, must(s.kms.Create(ctx, "", 0, "l", keyring.Key{})).ID, "genesis", nil)
		}},
		{name: "the pointer is lost", phase: kek.Completed, call: func(s *site) (any, error) {
			alter(func(v *kek.View) { v.Pointer = nil })(s)
			return s.Genesis(ctx, s.record(spring).NewKEK, "genesis", nil)
		}},
		{name: "no pointer", call: func(s *site) (any, error) {
			alter(func(v *kek.View) { v.Pointer = nil })(s)
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "no sources", call: func(s *site) (any, error) {
			alter(func(v *kek.View) { v.Sources = nil })(s)
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "the bucket is not locked", call: func(s *site) (any, error) {
			s.vault.Unlock()
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "the pointer's key is disabled", call: func(s *site) (any, error) {
			s.must(s.kms.Disable(ctx, s.first))
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "a table that is forgotten", call: func(s *site) (any, error) {
			s.mark("unknown")
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "a table that is forgotten before the census", phase: kek.Started, call: func(s *site) (any, error) { s.mark("unknown"); return nil, s.census(spring) }},
		{name: "a table that is forgotten before the retirement", phase: kek.Rewrapped, call: func(s *site) (any, error) { s.mark("unknown"); return nil, s.retire(spring) }},
		{name: "a source of a bad name", call: func(s *site) (any, error) { return s.AddSource(ctx, kek.Source{Name: "a b"}) }},
		{name: "a source that cannot be opened", call: func(s *site) (any, error) { return s.AddSource(ctx, kek.Source{Name: "letters"}) }},
		{name: "a source whose items are unaccounted", call: func(s *site) (any, error) {
			table := s.world.NewTable("letters")
			table.SetNotes("it has a stream")
			table.FailCheck(&journal.Error{Kind: journal.RowsUnaccounted, Field: "rows", Msg: "some"})
			return s.AddSource(ctx, table.Source())
		}},
		{name: "a source that is misconfigured", call: func(s *site) (any, error) {
			table := s.world.NewTable("letters")
			table.FailCheck(&journal.Error{Kind: journal.SourceMisconfigured, Field: "pk", Msg: "no key attribute pk"})
			return s.AddSource(ctx, table.Source())
		}},
		{name: "a source that does not answer", call: func(s *site) (any, error) {
			table := s.world.NewTable("letters")
			table.FailCheck(errAway)
			return s.AddSource(ctx, table.Source())
		}},
		{name: "a source while a rotation runs", phase: kek.Minted, call: func(s *site) (any, error) { return s.AddSource(ctx, s.world.NewTable("letters").Source()) }},
		{name: "a source after the switch", phase: kek.Switched, call: func(s *site) (any, error) { return s.AddSource(ctx, s.world.NewTable("letters").Source()) }},
		{name: "the removal of no source", call: func(s *site) (any, error) { return nil, s.RemoveSource(ctx, "letters", "") }},
		{name: "the removal of a source in use", call: func(s *site) (any, error) { return nil, s.RemoveSource(ctx, "orders", "") }},
		{name: "the removal of a source that cannot be opened", call: func(s *site) (any, error) {
			s.OpenSource = func(kek.Source) (source.Driver, error) { return nil, errAway }
			return nil, s.RemoveSource(ctx, "orders", "")
		}},
		{name: "the removal of a source of a retired KEK", phase: kek.Completed, call: func(s *site) (any, error) {
			for id, r := range rowsOf(s.orders) {
				r.KEK = s.first
				s.orders.Plant(id, r)
			}
			return nil, s.RemoveSource(ctx, "orders", "")
		}},
		{name: "the removal of a source with a defect", phase: kek.Completed, call: func(s *site) (any, error) {
			for id, r := range rowsOf(s.orders) {
				r.KEK, r.Defect = s.first, "it is odd"
				s.orders.Plant(id, r)
			}
			return nil, s.RemoveSource(ctx, "orders", "")
		}},
		{name: "the removal of a source into which somebody begins to write", call: func(s *site) (any, error) {
			for id := range rowsOf(s.orders) {
				s.remove(s.orders, id)
			}
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "Table.Scan" {
					s.world.SetHook(nil)
					s.mark("orders")
				}
				return true, nil
			})
			return nil, s.RemoveSource(ctx, "orders", "")
		}},
		{name: "the removal of a source that has a mark", call: func(s *site) (any, error) {
			for id := range rowsOf(s.orders) {
				s.remove(s.orders, id)
			}
			s.mark("orders")
			return nil, s.RemoveSource(ctx, "orders", "")
		}},
		{name: "a mark of a source is forgotten", call: func(s *site) (any, error) { s.mark("orders"); return nil, s.ForgetMark(ctx, "orders", "r") }},
		{name: "no mark is forgotten", call: func(s *site) (any, error) { return nil, s.ForgetMark(ctx, "letters", "r") }},
		{name: "a historic KEK of a bad label", call: func(s *site) (any, error) { return nil, s.RegisterKEK(ctx, s.first, "a\nb") }},
		{name: "a historic KEK that there is not", call: func(s *site) (any, error) { return nil, s.RegisterKEK(ctx, "kek-9999", "l") }},
		{name: "a historic KEK that is known", call: func(s *site) (any, error) { return nil, s.RegisterKEK(ctx, s.first, "l") }},
		{name: "a census of no source", call: func(s *site) (any, error) { return s.TakeCensus(ctx, "letters", nil) }},
		{name: "a census, and what it tells meanwhile", call: func(s *site) (any, error) {
			s.mark("unknown")
			var seen []int64
			c, err := s.TakeCensus(ctx, "", func(n int64) { seen = append(seen, n) })
			return []any{c, seen}, err
		}},
		{name: "adopt no source", call: func(s *site) (any, error) { return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "letters"}) }},
		{name: "adopt what cannot be labelled", call: func(s *site) (any, error) {
			open := s.OpenSource
			s.OpenSource = func(def kek.Source) (source.Driver, error) {
				src, err := open(def)
				return struct{ source.Driver }{src}, err
			}
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders"})
		}},
		{name: "adopt rows of every kind, dry", call: adoptLegacy(false)},
		{name: "adopt rows of every kind", call: adoptLegacy(true)},
		{name: "a person's record", call: func(s *site) (any, error) {
			err := s.Journal.RecordEvent(ctx, s.store, audit.Event{ID: "i", Type: "t", Step: "s", Actor: "nobody", Body: map[string]string{"k": "v"}})
			entries := must(s.store.AuditEntries(ctx, 1))
			r := entries[len(entries)-1].Record
			left, _ := must2(s.store.Unpublished(ctx))
			return []any{r.ID, r.Type, r.Step, r.Actor, r.Body, len(left)}, err
		}},
	}
}

// adoptLegacy adopts a table of rows that were written without this project.
func adoptLegacy(write bool) func(*site) (any, error) {
	return func(s *site) (any, error) {
		other, _ := legacy(s.t)
		var seen []int64
		out, err := other.Adopt(s.t.Context(), other.store, rotation.AdoptInput{Source: "legacy", Write: write, Seen: func(n int64) { seen = append(seen, n) }})
		if !write {
			return []any{out, seen}, err
		}
		return []any{out, seen, other.body("rows_adopted")}, err
	}
}

func approvalRefusals() []refusal {
	ctx := context.Background()
	judge := func(who string, v gates.Verdict, prepare func(*site)) func(*site) (any, error) {
		return func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired, s.Gates.Rules.ApprovalWait = true, time.Hour
			must(s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring, Token: "token"}))
			plan := s.Gates.HashPlan(s.record(spring))
			if prepare != nil {
				prepare(s)
			}
			s.Journal.Actor = who
			if v.RotationID = spring; v.Plan == "" {
				v.Plan = plan
			}
			return s.Gates.JudgePlan(ctx, v)
		}
	}
	say := func(who string, reject bool) func(*site) {
		return func(s *site) {
			s.Journal.Actor = who
			must(s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring, Plan: s.Gates.HashPlan(s.record(spring)), Reject: reject, Reason: "because"}))
		}
	}
	ask := func(prepare func(*site)) func(*site) (any, error) {
		return func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired, s.Gates.Rules.ApprovalWait = true, time.Hour
			prepare(s)
			s.Journal.Actor = "lambda/approve"
			return s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring, Token: "token"})
		}
	}
	const carol = "arn:aws:iam::123456789012:user/carol"
	return []refusal{
		{name: "bob approves", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{}, nil)},
		{name: "bob rejects", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{Reject: true, Reason: "no"}, nil)},
		{name: "bob rejects without a reason", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{Reject: true}, nil)},
		{name: "bob approves with a reason of two lines", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{Reason: "a\nb"}, nil)},
		{name: "bob approves another plan", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{Plan: "00"}, nil)},
		{name: "alice approves her own", phase: kek.Tested, in: asked, call: judge(alice, gates.Verdict{}, nil)},
		{name: "alice rejects her own", phase: kek.Tested, in: asked, call: judge(alice, gates.Verdict{Reject: true, Reason: "no"}, nil)},
		{name: "carol approves what bob has rejected", phase: kek.Tested, in: asked, call: judge(carol, gates.Verdict{}, say(bob, true))},
		{name: "carol approves what bob has approved", phase: kek.Tested, in: asked, call: judge(carol, gates.Verdict{}, say(bob, false))},
		{name: "bob approves again", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{}, say(bob, false))},
		{name: "bob approves too late", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{}, func(s *site) { s.clock.pass(time.Hour + time.Second) })},
		{name: "bob approves at the last moment", phase: kek.Tested, in: asked, call: judge(bob, gates.Verdict{}, func(s *site) { s.clock.pass(time.Hour) })},
		{name: "asked once more after bob approved", phase: kek.Tested, in: asked, call: ask(say(bob, false))},
		{name: "asked once more after bob rejected", phase: kek.Tested, in: asked, call: ask(say(bob, true))},
		{name: "asked once more", phase: kek.Tested, in: asked, call: ask(func(s *site) {
			must(s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring, Token: "an earlier one"}))
			s.clock.pass(time.Minute)
		})},
		{name: "asked where nobody must agree", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			return s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring})
		}},
		{name: "judged where nobody must agree", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			return s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring})
		}},
		{name: "judged before the test", phase: kek.Minted, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			s.Journal.Actor = bob
			return s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring, Plan: s.Gates.HashPlan(s.record(spring))})
		}},
		{name: "who waits", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			var out []string
			look := func() { out = append(out, must(s.Gates.FindWaitingPlan(ctx, s.record(spring)))) }
			look()
			s.Gates.Rules.ApprovalRequired, s.Gates.Rules.ApprovalWait = true, time.Hour
			look()
			must(s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring}))
			look()
			say(bob, false)(s)
			look()
			return out, nil
		}},
		{name: "nobody agreed to the switch", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			return s.Switch(ctx, input(spring))
		}},
		{name: "bob agreed to the switch", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			say(bob, false)(s)
			return s.Switch(ctx, input(spring))
		}},
		{name: "bob did not agree to the switch", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			say(bob, true)(s)
			return s.Switch(ctx, input(spring))
		}},
	}
}

// laterRefusals are those that mutation found unheld.
func laterRefusals() []refusal {
	ctx := context.Background()
	shut := func(s *site, phase kek.Phase) (any, error) {
		s.Gates.Rules.ApprovalRequired, s.Journal.Actor = true, bob
		s.clock.at = time.Date(2026, 4, 2, 12, 0, 0, 0, time.UTC)
		_, err := s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring, Plan: s.Gates.HashPlan(s.record(spring))})
		return phase, err
	}
	return []refusal{
		{name: "an entrance that is none", call: func(s *site) (any, error) {
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.Entrance = "side"
			return s.Preflight(ctx, in)
		}},
		{name: "approval outside the window", phase: kek.Tested, call: func(s *site) (any, error) { return shut(s, kek.Tested) }},
		{name: "approval of what was switched, outside the window", phase: kek.Switched, call: func(s *site) (any, error) { return shut(s, kek.Switched) }},
		{name: "mint before the census", phase: kek.Started, call: func(s *site) (any, error) {
			_, err := s.Mint(ctx, input(spring))
			return nil, fmt.Errorf("%w; %d keys", err, len(s.keys()))
		}},
		{name: "a key policy of others", phase: kek.Minted, call: func(s *site) (any, error) {
			s.must(s.rehearse(spring))
			s.kms.SetPolicy(s.record(spring).NewKEK, "AllowAll")
			return s.DualUnwrap(ctx, input(spring))
		}},
		{name: "a row that cannot be rewrapped", phase: kek.Minted, call: func(s *site) (any, error) {
			odd := s.seal(s.orders, "odd", s.first, 1, "odd")
			odd.WrappedDEK = []byte("garbage")
			for id := range rowsOf(s.orders) {
				s.remove(s.orders, id)
			}
			s.orders.Plant("odd", odd)
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Rehearse: true})
		}},
		{name: "items that cannot be accounted for", phase: kek.Started, call: func(s *site) (any, error) {
			s.orders.Plant("odd", memstore.Record{Defect: "it cannot be read"})
			return s.Verify(ctx, rotation.VerifyInput{RotationID: spring, Census: true})
		}},
		{name: "a census beside a rotation", phase: kek.Minted, call: func(s *site) (any, error) {
			s.orders.Plant("early", s.seal(s.orders, "early", s.record(spring).NewKEK, 2, "early"))
			return s.TakeCensus(ctx, "", nil)
		}},
		{name: "a lease that is taken back with two lines", phase: kek.Switched, call: func(s *site) (any, error) {
			return s.RevokeLease(ctx, s.store, s.first, "gone", "a\nb")
		}},
		{name: "a lease that is renewed each time", phase: kek.Switched, call: func(s *site) (any, error) {
			s.lease("alive", time.Hour)
			s.Drainage = renewed{s.store}
			return s.RevokeLease(ctx, s.store, s.first, "alive", "why")
		}},
		{name: "a lease that outlives the longest wait", phase: kek.Switched, call: func(s *site) (any, error) {
			s.clock.pass(maxWait + time.Second)
			s.lease("slow", time.Hour)
			s.Drainage = renewed{s.store}
			return s.Drain(ctx, input(spring))
		}},
		{name: "a lease that outlives the longest wait of an emergency", phase: kek.Switched, in: emergency, call: func(s *site) (any, error) {
			s.clock.pass(maxWait + time.Second)
			s.lease("slow", time.Hour)
			s.Drainage = renewed{s.store}
			return s.Drain(ctx, input(spring))
		}},
		{name: "retire by its name", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRetire})
		}},
		{name: "the schedule asks before genesis", call: func(s *site) (any, error) {
			s.Journal.Registry = memstore.New("none", s.clock.now).Store()
			return s.start(spring, rotation.ExecutionInput{RequestedBy: rotation.ScheduleRequester})
		}},
		{name: "a look ahead of a deployment whose canary is of today", call: func(s *site) (any, error) {
			strict(s)
			s.Gates.Rules.DrillFreshDays = 0
			s.green(1)
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.CheckOnly, in.Announce = true, true
			return s.Preflight(ctx, in)
		}},
		{name: "40 segments of eleven sources", call: func(s *site) (any, error) {
			s.Config.Segments = 40
			for n := range 8 {
				must(s.AddSource(ctx, s.newTable(fmt.Sprint("more-", n), s.first, "r").Source()))
			}
			_, err := s.start(spring, rotation.ExecutionInput{})
			return s.record(spring).Segments, err
		}},
		{name: "a second corpus without known ciphers", phase: kek.Started, call: func(s *site) (any, error) {
			return nil, s.secondCorpus()
		}},
	}
}

// renewed are leases whose holders live.
type renewed struct{ rotation.Drainage }

func (renewed) Revoke(context.Context, rotation.Lease) (bool, error) { return false, nil }

// secondCorpus registers a corpus after the first one, empties it beside the rotation and
// continues to dual unwrap.
func (s *site) secondCorpus() error {
	s.t.Helper()
	must(s.Retire(s.t.Context(), rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure}))
	second := s.newTable("second", s.first, "s1")
	def := second.Source()
	def.Kind = memstore.KindCorpus
	if _, err := s.AddSource(s.t.Context(), def); err != nil {
		return err
	}
	s.advance(summer, rotation.ExecutionInput{Label: "again"}, kek.Minted)
	s.must(s.rehearse(summer))
	s.remove(second, "s1")
	_, err := s.DualUnwrap(s.t.Context(), input(summer))
	return err
}
