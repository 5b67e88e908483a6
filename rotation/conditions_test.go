package rotation_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// unusable is KMS of which one key is enabled and cannot be used, as one that waits for
// its material. "" is each.
type unusable struct {
	keyring.Admin
	id kek.ID
}

func (k unusable) Describe(ctx context.Context, id kek.ID) (keyring.Key, error) {
	out, err := k.Admin.Describe(ctx, id)
	if id == k.id || k.id == "" {
		out.Usable, out.State = false, "PendingImport"
	}
	return out, err
}

// later is a registry whose answers a test edits from a call on; the first is 0.
type later struct {
	journal.Registry
	from int
	edit func(*kek.View)
	n    *int
}

func (l later) look(v kek.View, err error) (kek.View, error) {
	if *l.n >= l.from {
		l.edit(&v)
	}
	*l.n++
	return v, err
}

func (l later) Load(ctx context.Context, id string) (kek.View, error) {
	return l.look(l.Registry.Load(ctx, id))
}

func (l later) LoadAll(ctx context.Context, id string) (kek.View, error) {
	return l.look(l.Registry.LoadAll(ctx, id))
}

// alterFrom edits what the registry answers from a call on.
func alterFrom(s *site, from int, edit func(*kek.View)) {
	s.Journal.Registry = later{s.store, from, edit, new(int)}
}

// keyRefusals are those of a key that cannot be used.
func keyRefusals() []refusal {
	ctx := context.Background()
	return []refusal{
		{name: "the pointer's key waits for its material", call: func(s *site) (any, error) {
			s.Keys.Admin = unusable{s.kms, s.first}
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "a historic KEK waits for its material", call: func(s *site) (any, error) {
			s.Keys.Admin = unusable{s.kms, ""}
			return nil, s.RegisterKEK(ctx, s.first, "l")
		}},
		{name: "a minted key waits for its material", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			s.Keys.Admin = unusable{s.kms, ""}
			return s.Mint(ctx, input(spring))
		}},
		{name: "the new KEK waits for its material", phase: kek.Tested, call: func(s *site) (any, error) {
			s.Keys.Admin = unusable{s.kms, ""}
			return s.Switch(ctx, input(spring))
		}},
		{name: "a multi-Region KEK without replicas", call: func(s *site) (any, error) {
			s.kms.SetMultiRegion(s.first)
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.CheckOnly = true
			plan, err := s.Preflight(ctx, in)
			return plan.Checks, err
		}},
		{name: "a KEK that KMS knows no use of", call: func(s *site) (any, error) {
			k := must(s.kms.Create(ctx, "", 0, "unused", keyring.Key{}))
			s.must(s.RegisterKEK(ctx, k.ID, "unused"))
			s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
			return s.body("old_kek_retired"), nil
		}},
		{name: "the use of a KEK cannot be read in an emergency", phase: kek.Rewrapped, in: emergency, call: func(s *site) (any, error) {
			s.world.SetHook(away("KMS.Use"))
			s.must(s.retire(spring))
			return s.body("old_kek_retired"), nil
		}},
		{name: "a look under the name of a rotation that is over", phase: kek.Completed, call: func(s *site) (any, error) {
			s.people.SetEncryptedBy(must(s.kms.Describe(ctx, s.pointer().KEKID)).ARN)
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.CheckOnly = true
			return s.Preflight(ctx, in)
		}},
		{name: "an emergency whose source does not answer", call: func(s *site) (any, error) {
			s.orders.FailCheck(errAway)
			return s.start(spring, emergency)
		}},
		{name: "any window", call: func(s *site) (any, error) {
			in := preflightInput(spring, rotation.ExecutionInput{Window: "any"})
			in.CheckOnly = true
			plan, err := s.Preflight(ctx, in)
			return plan.Checks, err
		}},
		{name: "a corpus of empty pages", call: func(s *site) (any, error) {
			s.corpus.Plant("a", memstore.Record{Other: true})
			s.corpus.SetEmptyPages(true)
			c := count(s, nil)
			_, err := s.start(spring, rotation.ExecutionInput{})
			return c.n, err
		}},
		{name: "a corpus that does not answer on its second page", call: func(s *site) (any, error) {
			s.corpus.Plant("a", memstore.Record{Other: true})
			var scans atomic.Int32
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "Table.Scan" && args[0] == "corpus" {
					if scans.Add(1) == 2 {
						return false, errAway
					}
				}
				return true, nil
			})
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "a corpus of many other items", call: func(s *site) (any, error) {
			for i := range 300 {
				s.corpus.Plant(fmt.Sprintf("a%d", i), memstore.Record{Other: true})
			}
			var mu sync.Mutex
			var limits []int
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "Table.Scan" && args[0] == "corpus" {
					mu.Lock()
					defer mu.Unlock()
					limits = append(limits, args[1].(source.ScanRequest).Limit)
				}
				return true, nil
			})
			_, err := s.start(spring, rotation.ExecutionInput{})
			return limits, err
		}},
	}
}

// raceRefusals are those of a step beside which something else happens.
func raceRefusals() []refusal {
	ctx := context.Background()
	var out []refusal
	gone := func(v *kek.View) { v.Rotation = nil }
	another := func(v *kek.View) {
		r := *v.Rotation
		r.NewKEK, r.Attempt, r.Rehearsed = "kek-0009", 2, "kek-0009"
		v.Rotation = &r
	}
	early := func(v *kek.View) {
		r := *v.Rotation
		r.Phase = kek.Tested
		v.Rotation = &r
	}
	drained := func(v *kek.View) {
		r := *v.Rotation
		r.Phase = kek.Drained
		v.Rotation = &r
	}
	back := func(v *kek.View) { p := *v.Pointer; p.KEKID = v.Rotation.OldKEK; v.Pointer = &p }
	lost := func(v *kek.View) { v.Pointer = nil }
	steps := map[string]struct {
		phase kek.Phase
		in    rotation.ExecutionInput
		run   func(s *site) (any, error)
	}{
		"mint":        {kek.Started, rotation.ExecutionInput{}, func(s *site) (any, error) { return s.Mint(ctx, input(spring)) }},
		"rehearsal":   {kek.Minted, rotation.ExecutionInput{}, func(s *site) (any, error) { return nil, s.rehearse(spring) }},
		"dual unwrap": {kek.Minted, rotation.ExecutionInput{}, func(s *site) (any, error) { return s.DualUnwrap(ctx, input(spring)) }},
		"drain":       {kek.Switched, rotation.ExecutionInput{}, func(s *site) (any, error) { return s.Drain(ctx, input(spring)) }},
		"retirement":  {kek.Rewrapped, rotation.ExecutionInput{}, func(s *site) (any, error) { return nil, s.retire(spring) }},
		"roll back": {kek.Minted, rotation.ExecutionInput{}, func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "E"})
		}},
		"drill's roll back": {kek.Minted, drill, func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: string(journal.CanaryFailed)})
		}},
		"next mint": {kek.Minted, emergency, func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "E"})
		}},
	}
	elsewhere := func(v *kek.View) { p := *v.Pointer; p.KEKID = "kek-0009"; v.Pointer = &p }
	edits := map[string]func(*kek.View){"the pointer is elsewhere": elsewhere, "the record is gone": gone, "another attempt runs": another, "it is drained": drained, "the pointer is lost": lost}
	for _, name := range slices.Sorted(maps.Keys(steps)) {
		step := steps[name]
		for _, what := range slices.Sorted(maps.Keys(edits)) {
			for from := 1; from <= 3; from++ {
				out = append(out, refusal{
					name: fmt.Sprintf("%s, and %s from look %d on", name, what, from), phase: step.phase, in: step.in, call: func(s *site) (any, error) {
						switch name {
						case "mint":
							s.must(s.census(spring))
						case "dual unwrap":
							s.must(s.rehearse(spring))
						}
						alterFrom(s, from, edits[what])
						return step.run(s)
					},
				})
			}
		}
	}
	for what, edit := range map[string]func(*kek.View){"it is tested": early, "the pointer is back": back} {
		out = append(out, refusal{name: "drain, and " + what, phase: kek.Switched, call: func(s *site) (any, error) {
			alterFrom(s, 1, edit)
			out, err := s.Drain(ctx, input(spring))
			return []any{out, s.store.Fences(s.first)}, err
		}})
	}
	sortRefusals(out[len(out)-2:])
	takeover := func(call func(s *site) (any, error), op string, fault error) func(s *site) (any, error) {
		return func(s *site) (any, error) {
			var done atomic.Bool // segments are walked side by side
			s.world.SetHook(func(got string, _ ...any) (bool, error) {
				if got != op || !done.CompareAndSwap(false, true) {
					return true, nil
				}
				must(s.Preflight(ctx, preflightInput(summer, emergency)))
				return false, fault
			})
			return call(s)
		}
	}
	for _, at := range []struct {
		name, op string
		phase    kek.Phase
		call     func(s *site) (any, error)
	}{
		{"switch", "KMS.Describe", kek.Tested, func(s *site) (any, error) { return s.Switch(ctx, input(spring)) }},
		{"drain", "Store.Leases", kek.Switched, func(s *site) (any, error) { return s.Drain(ctx, input(spring)) }},
		{"rewrap", "Table.Scan", kek.Drained, func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Complete: true})
		}},
		{"retirement", "KMS.Use", kek.Rewrapped, func(s *site) (any, error) { return nil, s.retire(spring) }},
		{"verify", "KMS.Describe", kek.KEKRetired, func(s *site) (any, error) { return s.Verify(ctx, verifyInput(spring)) }},
	} {
		for _, fault := range []error{errAway, journal.ErrDenied} {
			out = append(out, refusal{name: fmt.Sprintf("an emergency takes over, and the %s fails: %v", at.name, fault), phase: at.phase, call: takeover(at.call, at.op, fault)})
		}
		out = append(out, refusal{name: "the " + at.name + " fails without one", phase: at.phase, call: func(s *site) (any, error) {
			s.world.SetHook(func(got string, _ ...any) (bool, error) {
				if got == at.op {
					return false, journal.ErrDenied
				}
				return true, nil
			})
			return at.call(s)
		}})
	}
	return append(out, []refusal{
		{name: "a superseded start is abandoned", phase: kek.Started, call: func(s *site) (any, error) {
			must(s.Preflight(ctx, preflightInput(summer, emergency)))
			return s.abandon(s.t), nil
		}},
		{name: "a drill fails for another reason", phase: kek.Minted, in: drill, call: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "Rejected"})
		}},
		{name: "a drill fails before its mint", phase: kek.Started, in: drill, call: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: string(journal.CanaryFailed)})
		}},
		{name: "a drill's key is still enabled", phase: kek.Minted, in: drill, call: func(s *site) (any, error) {
			s.Keys.Admin = stuck{s.kms}
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: string(journal.CanaryFailed)})
		}},
		{name: "a second drill", phase: kek.Minted, in: drill, call: func(s *site) (any, error) {
			fail := func(id string) (rotation.RetireOutput, error) {
				return s.Retire(ctx, rotation.RetireInput{RotationID: id, Action: rotation.ActionPreSwitchFailure, Error: string(journal.CanaryFailed)})
			}
			must(fail(spring))
			s.clock.pass(time.Hour)
			s.advance(summer, drill, kek.Minted)
			out, err := fail(summer)
			return []any{out, must(s.store.LoadDrill(ctx, gates.DrillFailure)), must(fail(summer)), s.body("drill_passed")}, err
		}},
		{name: "what a rollback records of its cause", phase: kek.Minted, call: func(s *site) (any, error) {
			var errs []string
			for _, in := range []rotation.RetireInput{{Error: "E"}, {Error: "E", Cause: "c"}, {Error: "E", Cause: strings.Repeat("c", 496) + "d"}, {Error: "E", Cause: strings.Repeat("c", 497) + "d"}} {
				f := s.fork(s.t)
				in.RotationID, in.Action = spring, rotation.ActionPreSwitchFailure
				must(f.Retire(ctx, in))
				errs = append(errs, fmt.Sprint(len(f.record(spring).Err), f.record(spring).Err))
			}
			return errs, nil
		}},
		{name: "the attempts of a record that names none", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) {
			s.Config.MaxMints = 1
			alter(func(v *kek.View) {
				r := *v.Rotation
				r.Settings.MaxMints = 0
				v.Rotation = &r
			})(s)
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "E"})
		}},
		{name: "the same attempt fails twice", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) {
			in := rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "E"}
			failed := s.record(spring).NewKEK
			must(s.Retire(ctx, in))
			s.kms.Enable(failed)
			out, err := s.Retire(ctx, in)
			return []any{out, s.enabled(failed), s.enabled(s.first)}, err
		}},
		{name: "an attempt of the future fails", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 2, Error: "E"})
		}},
		{name: "a rehearsal of what was rolled back", phase: kek.Minted, call: func(s *site) (any, error) {
			must(s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "E"}))
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Rehearse: true})
		}},
		{name: "approval asked after the switch", phase: kek.Switched, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			return s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring})
		}},
		{name: "approval asked for a drill", phase: kek.Minted, in: drill, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			return s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring})
		}},
		{name: "a record that demands approval", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			alter(func(v *kek.View) {
				r := *v.Rotation
				r.Approval = true
				v.Rotation = &r
			})(s)
			return s.Switch(ctx, input(spring))
		}},
		{name: "who waits before the test", phase: kek.Minted, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			return s.Gates.FindWaitingPlan(ctx, s.record(spring))
		}},
		{name: "a forged approval of the requester", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			a := gates.Approval{Rotation: spring, Plan: s.Gates.HashPlan(s.record(spring)), State: gates.ApprovalGiven, By: alice}
			s.must(s.store.SaveApproval(ctx, a, audit.Event{ID: "forged", Type: "approval_given", Step: "approve"}))
			return s.Switch(ctx, input(spring))
		}},
		{name: "a look under the name of a rotation that is over while another runs", phase: kek.Completed, call: func(s *site) (any, error) {
			s.advance(summer, rotation.ExecutionInput{}, kek.Started)
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.CheckOnly = true
			return s.Preflight(ctx, in)
		}},
		{name: "the name of a superseded rotation of another execution", phase: kek.Switched, call: func(s *site) (any, error) {
			must(s.Preflight(ctx, preflightInput(summer, emergency)))
			in := preflightInput(spring, rotation.ExecutionInput{})
			in.ExecutionARN = "arn:another"
			return s.Preflight(ctx, in)
		}},
		{name: "a mint that is over, and strays that cannot be listed", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			alterFrom(s, 1, another)
			s.world.SetHook(away("KMS.Tagged"))
			return s.Mint(ctx, input(spring))
		}},
		{name: "a key of another maker, and mine cannot be disabled at first", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			k := must(s.kms.Create(ctx, spring, 1, "", keyring.Key{}))
			s.Keys.Admin = late{s.kms, k.ID, new(int)}
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "KMS.Disable" {
					s.world.SetHook(nil)
					return false, errAway
				}
				return true, nil
			})
			return s.Mint(ctx, input(spring))
		}},
		{name: "a table of an emergency that is misconfigured", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) {
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "Table.Scan" {
					return false, &journal.Error{Kind: journal.SourceMisconfigured, Field: "pk", Msg: "no key attribute pk"}
				}
				return true, nil
			})
			return s.rehearsed()
		}},
		{name: "the last uses of an old KEK", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			var errs []string
			for _, operation := range []string{"Encrypt", "GenerateDataKeyWithoutPlaintext", "Decrypt", "ReEncrypt"} {
				f := s.fork(s.t)
				f.Keys.Admin = used{f.kms, keyring.Use{LastUse: operation, LastUseAt: f.clock.now().Add(time.Hour), LastUseBy: "event-1"}}
				errs = append(errs, fmt.Sprint(f.retire(spring)))
			}
			return errs, nil
		}},
		{name: "a row that always changes is tried twelve times", phase: kek.Drained, call: func(s *site) (any, error) {
			s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return restless{src} })
			c := count(s, nil)
			_, err := s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "corpus"})
			return []any{c.n["Table.Reread"], typed(err).Kind}, nil
		}},
		{name: "a row that changes and cannot be read again", phase: kek.Drained, call: func(s *site) (any, error) {
			s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return restless{src} })
			s.world.SetHook(away("Table.Reread"))
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "corpus"})
		}},
		{name: "what the canaries are bound to", phase: kek.Minted, call: func(s *site) (any, error) {
			s.must(s.rehearse(spring))
			var contexts []any
			drawn := 0
			random := s.Keys.Random
			s.Keys.Random = func(b []byte) { drawn++; random(b) }
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "KMS.GenerateDataKey" {
					contexts = append(contexts, args[1])
				}
				return true, nil
			})
			must(s.Health(ctx, rotation.HealthInput{}))
			must(s.DualUnwrap(ctx, input(spring)))
			return []any{contexts, drawn}, nil
		}},
		{name: "a plan after the switch", phase: kek.Switched, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			return s.Preflight(ctx, preflightInput("again", rotation.ExecutionInput{Resume: spring}))
		}},
		{name: "a plan before it", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			return s.Preflight(ctx, preflightInput("again", rotation.ExecutionInput{Resume: spring}))
		}},
		{name: "who waits cannot be read", phase: kek.Tested, in: asked, call: func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			r := s.record(spring)
			s.world.SetHook(away("Store.LoadApproval"))
			return s.Gates.FindWaitingPlan(ctx, r)
		}},
		{name: "one of two old KEKs encrypts a table", call: func(s *site) (any, error) {
			s.past("before")
			s.people.SetEncryptedBy(must(s.kms.Describe(ctx, s.first)).ARN)
			return s.start(spring, rotation.ExecutionInput{})
		}},
		{name: "the payloads that are read again", phase: kek.Drained, call: rereads},
		{name: "the payloads that are read again in an emergency", phase: kek.Drained, in: emergency, call: rereads},
		{name: "an emergency cannot seal", phase: kek.Drained, in: emergency, call: func(s *site) (any, error) {
			s.Keys.Cipher = mute{s.Keys.Cipher}
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders"})
		}},
		{name: "the alias of the failed attempt names a historic KEK", in: emergency, call: func(s *site) (any, error) {
			past := s.past("before")
			s.advance(spring, emergency, kek.Minted)
			s.Keys.Admin = claimed{s.kms, past}
			out, err := s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "E"})
			return []any{out, s.enabled(past)}, err
		}},
		{name: "a claimed key", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			must(s.kms.Claim(ctx, spring, 1, must(s.kms.Create(ctx, spring, 1, "", keyring.Key{})).ID))
			out, err := s.Mint(ctx, input(spring))
			return []any{out, len(s.keys())}, err
		}},
		{name: "a key of another maker, and mine cannot be disabled", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			k := must(s.kms.Create(ctx, spring, 1, "", keyring.Key{}))
			s.Keys.Admin = late{s.kms, k.ID, new(int)}
			s.world.SetHook(away("KMS.Disable"))
			return s.Mint(ctx, input(spring))
		}},
		{name: "the retirement before the rewrap, which ends meanwhile", phase: kek.Drained, call: overtaken(kek.Rewrapped, func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring})
		})},
		{name: "verify before the retirement, which ends meanwhile", phase: kek.Rewrapped, call: overtaken(kek.KEKRetired, func(s *site) (any, error) {
			return s.Verify(ctx, verifyInput(spring))
		})},
		{name: "the switch before the test, which ends meanwhile", phase: kek.Minted, call: overtaken(kek.Tested, func(s *site) (any, error) {
			return s.Switch(ctx, input(spring))
		})},
		{name: "the rehearsal before the mint, which ends meanwhile", phase: kek.Started, call: overtaken(kek.Minted, func(s *site) (any, error) {
			return nil, s.rehearse(spring)
		})},
		{name: "a transient failure of verify keeps its pass", phase: kek.KEKRetired, call: halves(errAway)},
		{name: "another begins it again", phase: kek.KEKRetired, call: halves(journal.ErrDenied)},
		{name: "a rotation that could make no probe", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			s.kms.Enable(s.first)
			s.Keys.Admin = seemsDisabled{s.kms, s.first}
			alter(func(v *kek.View) {
				r := *v.Rotation
				r.Probes = nil
				v.Rotation = &r
			})(s)
			return s.Verify(ctx, verifyInput(spring))
		}},
		{name: "a record that is garbage", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			s.vault.Tamper(audit.ObjectKey(chain, 3), []byte("garbage"))
			return nil, s.VerifyChain(ctx)
		}},
		{name: "an attempt that nobody made fails", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) {
			out, err := s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 0, Error: "E"})
			return []any{out, s.enabled(s.record(spring).NewKEK)}, err
		}},
		{name: "the alias of the failed attempt names another KEK", phase: kek.Minted, in: emergency, call: func(s *site) (any, error) {
			must(s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "E"}))
			s.must(s.mint(spring))
			var out []any
			for _, id := range []kek.ID{s.first, s.record(spring).NewKEK, ""} {
				s.Keys.Admin = claimed{s.kms, id}
				must(s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "E"}))
				out = append(out, s.enabled(s.first), s.enabled(s.record(spring).NewKEK))
			}
			return out, nil
		}},
		{name: "a lease on a second old KEK", call: func(s *site) (any, error) {
			past := s.past("before")
			s.advance(spring, rotation.ExecutionInput{}, kek.Switched)
			for _, id := range []kek.ID{s.first, past} {
				l := rotation.Lease{KEK: id, Holder: "h", Host: "web-1", PID: 7, Refs: 2, Expires: s.clock.now().Add(time.Hour)}
				s.must(s.store.PutLease(ctx, l))
				l.Holder = "i"
				s.must(s.store.PutLease(ctx, l))
			}
			s.clock.pass(time.Minute)
			out, err := s.Drain(ctx, input(spring))
			return []any{out, s.store.Fences(s.first), s.store.Fences(past)}, err
		}},
		{name: "the fences of a second old KEK", call: func(s *site) (any, error) {
			past := s.past("before")
			s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
			return []any{s.store.Fences(s.first), s.store.Fences(past)}, nil
		}},
		{name: "a row that always changes", phase: kek.Drained, call: func(s *site) (any, error) {
			s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return restless{src} })
			return nil, s.rewrapAll(spring)
		}},
		{name: "a row that is deleted meanwhile", phase: kek.Drained, call: func(s *site) (any, error) {
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "Table.Replace" && args[1].(source.Row).ID == "o1" {
					s.world.SetHook(nil)
					s.remove(s.orders, "o1")
				}
				return true, nil
			})
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Complete: true})
		}},
		{name: "a label that always changes", call: func(s *site) (any, error) {
			unlabel(s, "o1")
			s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return restless{src} })
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders", Write: true})
		}},
		{name: "a row without a KEK and without a data key", call: func(s *site) (any, error) {
			r := s.rows()[place{s.orders, "o1"}]
			r.KEK, r.Kind, r.WrappedDEK = "", source.NoKEK, nil
			s.orders.Plant("o1", r)
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders"})
		}},
		{name: "a row that cannot be read again before its label", call: func(s *site) (any, error) {
			unlabel(s, "o1")
			s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return restless{src} })
			s.world.SetHook(away("Table.Reread"))
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders", Write: true})
		}},
		{name: "a row that is deleted before its label", call: func(s *site) (any, error) {
			unlabel(s, "o1")
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "Table.Label" {
					s.world.SetHook(nil)
					s.remove(s.orders, "o1")
				}
				return true, nil
			})
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders", Write: true})
		}},
		{name: "a row that is labelled by somebody else", call: func(s *site) (any, error) {
			unlabel(s, "o1")
			var payload []bool
			s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return rereader{src, src.(source.Labeler), &payload} })
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "Table.Label" {
					r := s.rows()[place{s.orders, "o1"}]
					r.Kind, r.KEK, r.Defect = "", s.first, ""
					s.orders.Plant("o1", r)
				}
				return true, nil
			})
			out, err := s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders", Write: true})
			return []any{out, payload}, err
		}},
		{name: "a row whose registered KEK has another ARN", call: func(s *site) (any, error) {
			unlabel(s, "o1")
			alter(func(v *kek.View) {
				k := v.KEKs[s.first]
				k.ARN = "arn:another"
				v.KEKs = map[kek.ID]kek.KEK{s.first: k}
			})(s)
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders"})
		}},
		{name: "a row of a KEK that is retired", phase: kek.Completed, call: func(s *site) (any, error) {
			s.kms.Enable(s.first)
			r := s.seal(s.orders, "o1", s.first, 1, "secret")
			r.KEK, r.Kind = "", source.NoKEK
			s.orders.Plant("o1", r)
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders"})
		}},
		{name: "rows of many keys that are not registered", call: func(s *site) (any, error) {
			for i := range 14 {
				k := must(s.kms.Create(ctx, "", 0, "", keyring.Key{}))
				for j := range 2 {
					if j != i%2 && i > 2 { // some keys are known by their label alone, some by their rows
						continue
					}
					id := fmt.Sprintf("p%02d%d", i, j)
					r := s.seal(s.orders, id, k.ID, 1, "secret")
					if j == 1 {
						r.KEK, r.Kind = "", source.NoKEK
					}
					s.orders.Plant(id, r)
				}
			}
			out, err := s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders"})
			return []any{out.First, out.Unknown}, err
		}},
	}...)
}

// late is KMS in which another maker claims the alias just before.
type late struct {
	keyring.Admin
	id kek.ID
	n  *int
}

func (l late) Claim(ctx context.Context, rotationID string, attempt int, _ kek.ID) (kek.ID, error) {
	if *l.n++; *l.n == 1 {
		return "", nil
	}
	return l.Admin.Claim(ctx, rotationID, attempt, l.id)
}

// used is KMS that says how keys were used.
type used struct {
	keyring.Admin
	use keyring.Use
}

func (u used) Use(context.Context, kek.ID) (keyring.Use, error) { return u.use, nil }

// overtaken calls a step of a rotation that reaches a phase after the step's first look.
func overtaken(phase kek.Phase, call func(*site) (any, error)) func(*site) (any, error) {
	return func(s *site) (any, error) {
		alterFrom(s, 1, func(v *kek.View) {
			r := *v.Rotation
			r.Phase, r.NewKEK = phase, cmp.Or(r.NewKEK, "kek-0002")
			v.Rotation = &r
		})
		return call(s)
	}
}

// halves lets verify fail after its pass, and says what is left of that.
func halves(fault error) func(*site) (any, error) {
	return func(s *site) (any, error) {
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "KMS.Describe" {
				return false, fault
			}
			return true, nil
		})
		_, err := s.Verify(s.t.Context(), verifyInput(spring))
		var done []bool
		for _, cp := range must(s.store.ListCheckpoints(s.t.Context(), spring, "orders", "verify")) {
			done = append(done, cp.Done)
		}
		return []any{done, typed(err).Kind}, nil
	}
}

// rereads says what rewrap asks for when a row has changed.
func rereads(s *site) (any, error) {
	var payload []bool
	s.OpenSource = fickle(s, func(src source.Driver) source.Driver { return rereader{src, src.(source.Labeler), &payload} })
	var changed atomic.Bool
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Table.Replace" && args[1].(source.Row).ID == "o1" && changed.CompareAndSwap(false, true) {
			r := s.rows()[place{s.orders, "o1"}]
			s.orders.Plant("o1", s.seal(s.orders, "o1", r.KEK, r.Epoch, "another secret"))
		}
		return true, nil
	})
	err := s.rewrapAll(spring)
	return []any{payload, s.rows()[place{s.orders, "o1"}].KEK}, err
}

// rereader is a source that remembers whether payloads were asked for again.
type rereader struct {
	source.Driver
	source.Labeler
	payload *[]bool
}

func (r rereader) Reread(ctx context.Context, old source.Row, payload bool) (source.Row, bool, error) {
	*r.payload = append(*r.payload, payload)
	return r.Driver.Reread(ctx, old, payload)
}

// stuck is KMS in which no key is ever disabled.
type stuck struct{ keyring.Admin }

func (stuck) Disable(context.Context, kek.ID) error { return nil }

// claimed is KMS in which every alias names one key.
type claimed struct {
	keyring.Admin
	id kek.ID
}

func (c claimed) Claim(context.Context, string, int, kek.ID) (kek.ID, error) { return c.id, nil }

// fickle opens sources of another behaviour.
func fickle(s *site, make func(source.Driver) source.Driver) func(kek.Source) (source.Driver, error) {
	return func(def kek.Source) (source.Driver, error) {
		src, err := s.world.Open(def)
		if err != nil {
			return nil, err
		}
		return make(src), nil
	}
}

// restless is a source whose rows never are what was read.
type restless struct{ source.Driver }

func (restless) Replace(context.Context, source.Row, source.Rewrapped) (bool, error) {
	return false, nil
}

func (restless) Label(context.Context, source.Row, kek.ID) (bool, error) { return false, nil }

// unlabel makes a row one that names no KEK.
func unlabel(s *site, id string) {
	r := s.rows()[place{s.orders, id}]
	r.KEK, r.Kind = "", source.NoKEK
	s.orders.Plant(id, r)
}

// manyRefusals are those of many rows, and of time that runs out.
func manyRefusals() []refusal {
	ctx := context.Background()
	many := func(s *site) {
		for i := range 13 {
			for _, table := range []*memstore.Table{s.orders, s.people} {
				id := fmt.Sprintf("x%02d", i)
				r := s.seal(table, id, s.pointer().KEKID, 1, "secret")
				r.Kind = source.NoContext
				if i%2 == 1 {
					r.Kind = source.Damaged
				}
				table.Plant(id, r)
			}
		}
	}
	of := func(op string, fault error, ids ...string) func(s *site) (any, error) {
		return func(s *site) (any, error) {
			s.world.SetHook(func(got string, args ...any) (bool, error) {
				if got == op && (len(ids) == 0 || slices.Contains(ids, args[1].(source.Row).ID)) {
					return false, fault
				}
				return true, nil
			})
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders"})
		}
	}
	soon := func(s *site) context.Context { return until{ctx, s.clock.now()} }
	return []refusal{
		{name: "many items that cannot be placed", phase: kek.Started, call: func(s *site) (any, error) { many(s); return nil, s.census(spring) }},
		{name: "many items, counted by hand", call: func(s *site) (any, error) { many(s); return s.TakeCensus(ctx, "", nil) }},
		{name: "many items that cannot be rewrapped", phase: kek.Drained, call: func(s *site) (any, error) { many(s); return nil, s.rewrapAll(spring) }},
		{name: "a source without an item", phase: kek.Started, call: func(s *site) (any, error) {
			must(s.Preflight(ctx, preflightInput(spring, rotation.ExecutionInput{})))
			for _, table := range []*memstore.Table{s.people} {
				for id := range rowsOf(table) {
					s.remove(table, id)
				}
			}
			return nil, s.census(spring)
		}},
		{name: "rows that are deleted after the census", phase: kek.Switched, call: deleteRows("o0", "o1", "o2", "o3")},
		{name: "rows of one segment that are deleted before it", phase: kek.Started, call: deleteRows("o0", "o2")},
		{name: "rows of the other segment", phase: kek.Started, call: deleteRows("o1", "o3")},
		{name: "a table of which no pass saw a row", phase: kek.Minted, in: emergency, call: deleteRows("o0", "o1", "o2", "o3")},
		{name: "a census of a source of no envelopes", call: func(s *site) (any, error) {
			for id := range rowsOf(s.orders) {
				s.orders.Plant(id, memstore.Record{Other: true})
			}
			return s.TakeCensus(ctx, "", nil)
		}},
		{name: "a census by hand of many pages", call: func(s *site) (any, error) {
			for i := range 250 {
				s.insert(s.orders, fmt.Sprintf("w%03d", i))
			}
			return s.TakeCensus(ctx, "", nil)
		}},
		{name: "the end of the rewrap again", call: func(s *site) (any, error) {
			s.Config.Deep = true
			s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Complete: true})
		}},
		{name: "a segment with a quarantined row continues after its first page", call: func(s *site) (any, error) {
			s.Config.Segments = 1
			for i := range 150 {
				s.insert(s.orders, fmt.Sprintf("w%03d", i))
			}
			s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
			r := s.rows()[place{s.orders, "o1"}]
			r.Kind = source.NoContext
			s.orders.Plant("o1", r)
			scans := 0
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				switch op {
				case "Store.SaveCheckpoint":
					s.clock.pass(time.Minute)
				case "Table.Scan":
					scans++
				}
				return true, nil
			})
			in := rotation.RewrapInput{RotationID: spring, Source: "orders"}
			first, err := s.Rewrap(until{ctx, s.clock.now().Add(time.Minute)}, in)
			second, err2 := s.Rewrap(ctx, in)
			third, err3 := s.Rewrap(ctx, in)
			return []any{first, second, third, scans}, errors.Join(err, err2, err3)
		}},
		{name: "the last source is rewrapped, and no time for the others", phase: kek.Drained, call: func(s *site) (any, error) {
			for i := range 2 {
				must(s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "people", Segment: i}))
			}
			return s.Rewrap(soon(s), rotation.RewrapInput{RotationID: spring, Complete: true})
		}},
		{name: "time for one page of the retirement", call: func(s *site) (any, error) {
			s.Config.Segments = 1
			for i := range 150 {
				s.insert(s.orders, fmt.Sprintf("w%03d", i))
			}
			s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "Store.SaveCheckpoint" && args[0].(rotation.Checkpoint).Source == "orders" {
					s.clock.pass(time.Minute)
				}
				return true, nil
			})
			return s.Retire(until{ctx, s.clock.now().Add(time.Minute)}, rotation.RetireInput{RotationID: spring})
		}},
		{name: "completed after a redrive", call: func(s *site) (any, error) {
			var b inbox
			s.Journal.Notifier = &b
			out, err := s.Notify(ctx, journal.Notice{Event: journal.NotifyCompleted, Execution: journal.Execution{RedriveCount: 1}, HaltedIn: &journal.Execution{}})
			return []any{out, b.subject}, err
		}},
		{name: "a rehearsal of an empty source reads it once", call: scans(func(s *site) {
			for id := range rowsOf(s.orders) {
				s.orders.Plant(id, memstore.Record{Declared: true})
			}
		})},
		{name: "a rehearsal of many rows reads a page", call: scans(func(s *site) {
			for i := range 150 {
				s.insert(s.orders, fmt.Sprintf("w%03d", i))
			}
		})},
		{name: "announced where any time is off-peak", call: func(s *site) (any, error) {
			s.Gates.Rules.Window = must(gates.ParseWindow("any", time.FixedZone("X", 3600)))
			return s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{From: s.clock.now().Add(day)})
		}},
		{name: "customers hear of no other event", call: func(s *site) (any, error) {
			page := &teller{}
			s.Gates.Announcers = []gates.Announcer{page}
			must(s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{Label: "Q2"}))
			for _, event := range []string{journal.NotifyRefused, journal.NotifyDrilled, journal.NotifyStarted} {
				must(s.Notify(ctx, journal.Notice{Event: event, Label: "Q2"}))
			}
			must(s.Notify(ctx, journal.Notice{Event: journal.NotifyCompleted, Label: "Q2", Drill: "d"}))
			must(s.Notify(ctx, journal.Notice{Event: journal.NotifyCompleted}))
			return page.told, nil
		}},
		{name: "every write is denied", phase: kek.Drained, call: of("Table.Replace", journal.ErrDenied)},
		{name: "one write is denied", phase: kek.Drained, call: of("Table.Replace", journal.ErrDenied, "o1")},
		{name: "the writes of one page are denied", phase: kek.Drained, call: of("Table.Replace", journal.ErrDenied, "o0", "o1", "o2", "o3")},
		{name: "every write is rejected", phase: kek.Drained, call: of("Table.Replace", journal.ErrRejected)},
		{name: "every rewrap is denied", phase: kek.Drained, call: func(s *site) (any, error) {
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "KMS.ReEncrypt" {
					return false, journal.ErrDenied
				}
				return true, nil
			})
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders"})
		}},
		{name: "rows that share a data key", phase: kek.Drained, call: func(s *site) (any, error) {
			r := s.rows()[place{s.orders, "o0"}]
			for i := range 5 {
				s.orders.Plant(fmt.Sprintf("o0%d", i), r)
			}
			other := r
			other.Context = map[string]string{"table": "orders", "id": "o1"}
			s.orders.Plant("o06", other)
			c := count(s, nil)
			out, err := s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders", Segment: 0})
			out2, err2 := s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders", Segment: 1})
			return []any{out, out2, c.n["KMS.ReEncrypt"]}, errors.Join(err, err2)
		}},
		{name: "no time for the census", phase: kek.Started, call: func(s *site) (any, error) {
			return s.Verify(soon(s), rotation.VerifyInput{RotationID: spring, Census: true})
		}},
		{name: "no time for the retirement", phase: kek.Rewrapped, call: func(s *site) (any, error) {
			return s.Retire(soon(s), rotation.RetireInput{RotationID: spring})
		}},
		{name: "no time for verify", phase: kek.KEKRetired, call: func(s *site) (any, error) { return s.Verify(soon(s), verifyInput(spring)) }},
		{name: "no time for a segment", phase: kek.Drained, call: func(s *site) (any, error) {
			return s.Rewrap(soon(s), rotation.RewrapInput{RotationID: spring, Source: "orders"})
		}},
		{name: "an emergency's old KEK still unwraps", phase: kek.KEKRetired, in: emergency, call: func(s *site) (any, error) {
			s.kms.Enable(s.first)
			s.Keys.Admin = seemsDisabled{s.kms, s.first}
			return s.Verify(ctx, verifyInput(spring))
		}},
		{name: "an emergency that could make no probe", phase: kek.KEKRetired, in: emergency, call: func(s *site) (any, error) {
			s.kms.Enable(s.first)
			s.Keys.Admin = seemsDisabled{s.kms, s.first}
			alter(func(v *kek.View) {
				r := *v.Rotation
				r.Probes = nil
				v.Rotation = &r
			})(s)
			return s.Verify(ctx, verifyInput(spring))
		}},
		{name: "a row under the old KEK at the end", phase: kek.KEKRetired, call: func(s *site) (any, error) {
			r := s.rows()[place{s.orders, "o1"}]
			r.KEK = s.first
			s.orders.Plant("o1", r)
			return s.Verify(ctx, verifyInput(spring))
		}},
		{name: "rotations of no segments", call: func(s *site) (any, error) {
			s.Config.Segments = 0
			s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
			return s.record(spring).Segments, nil
		}},
		{name: "a rehearsal takes three rows of a kind", call: func(s *site) (any, error) {
			s.Config.Segments = 1
			for i := range 6 {
				s.insert(s.orders, fmt.Sprintf("w%d", i))
				r := s.rows()[place{s.orders, fmt.Sprintf("w%d", i)}]
				r.Whole, r.Ciphertext = true, nil
				s.orders.Plant(fmt.Sprintf("w%d", i), r)
			}
			s.past("before")
			s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
			return s.rehearsed()
		}},
		{name: "a rehearsal reads forty pages for a row", call: func(s *site) (any, error) {
			s.Config.Segments = 1
			for i := range 1100 {
				s.orders.Plant(fmt.Sprintf("a%04d", i), memstore.Record{Declared: true})
			}
			s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
			s.orders.SetEmptyPages(true)
			scans := 0
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "Table.Scan" && args[0] == "orders" {
					scans++
				}
				return true, nil
			})
			out, err := s.rehearsed()
			return []any{out, scans}, err
		}},
		{name: "a resume begins every pass again", phase: kek.Started, call: func(s *site) (any, error) {
			s.must(s.census(spring))
			look := func() (out []string) {
				for _, pass := range []string{"census", "rewrap", "confirm", "verify"} {
					for _, cp := range must(s.store.ListCheckpoints(ctx, spring, "orders", pass)) {
						out = append(out, fmt.Sprintf("%s %d: rev %d, done %t, %d", pass, cp.Segment, cp.Rev, cp.Done, cp.Tally.Scanned))
					}
				}
				return out
			}
			before := look()
			s.resume()
			once := look()
			s.resume()
			twice := look()
			s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
			retired := look()
			s.resume()
			return []any{before, once, twice, retired, look()}, nil
		}},
		{name: "a source of another definition", phase: kek.Completed, call: func(s *site) (any, error) {
			def := s.orders.Source()
			def.Definition = `{"changed": true}`
			must(s.AddSource(ctx, def))
			s.advance(summer, rotation.ExecutionInput{}, kek.Started)
			s.must(s.census(summer))
			r := s.record(summer)
			return []any{r.Sources, len(must(s.store.ListCheckpoints(ctx, summer, "orders", "census"))), len(must(s.store.ListCheckpoints(ctx, summer, "orders~1", "census")))}, nil
		}},
		{name: "genesis with sources that somebody else added", call: func(s *site) (any, error) {
			other := memstore.New("other", s.clock.now)
			k := must(other.KMS().Create(ctx, "", 0, "", keyring.Key{}))
			steps, j := *s.Steps, *s.Journal
			j.Registry, j.Outbox, j.AuditBucket = other.Store(), other.Store(), other.Vault()
			steps.Journal, steps.Keys.Admin = &j, other.KMS()
			a, b := s.orders.Source(), s.people.Source()
			a.AddedBy, a.AddedAt = "somebody", s.clock.now().Add(-time.Hour)
			must(steps.Genesis(ctx, k.ID, "g", []kek.Source{a, b}))
			return must(other.Store().LoadAll(ctx, "")), nil
		}},
		{name: "announced by default, and again a day later", call: func(s *site) (any, error) {
			page := &teller{}
			s.Gates.Rules.AnnounceDays, s.Gates.Announcers = 7, []gates.Announcer{page, page}
			must(s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{}))
			s.clock.pass(day)
			a, err := s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{})
			return []any{a, page.told, s.body("window_announced")}, err
		}},
		{name: "nobody is told, and the announcement cannot be read", call: func(s *site) (any, error) {
			s.world.SetHook(away("Store.LoadAnnouncement"))
			return s.Notify(ctx, journal.Notice{Event: journal.NotifyCompleted, Label: "Q2"})
		}},
		{name: "a window that was over a month ago", call: func(s *site) (any, error) {
			page := &teller{}
			s.Gates.Announcers = []gates.Announcer{page}
			a := must(s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{Label: "Q2"}))
			s.clock.pass(a.To.Add(rotation.MachineLasts).Sub(s.clock.now()))
			must(s.Notify(ctx, journal.Notice{Event: journal.NotifyStarted, Label: "Q2"}))
			s.clock.pass(time.Second)
			must(s.Notify(ctx, journal.Notice{Event: journal.NotifyCompleted, Label: "Q2"}))
			return page.told, nil
		}},
	}
}

// scans says how often a rehearsal reads orders.
func scans(prepare func(*site)) func(*site) (any, error) {
	return func(s *site) (any, error) {
		s.Config.Segments = 1
		prepare(s)
		s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
		n := 0
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "Table.Scan" && args[0] == "orders" {
				n++
			}
			return true, nil
		})
		out, err := s.rehearsed()
		return []any{out, n}, err
	}
}

// deleteRows deletes rows of orders, some of them only after the census, and continues with
// the rotation to its end.
func deleteRows(ids ...string) func(s *site) (any, error) {
	return func(s *site) (any, error) {
		for _, id := range ids[:len(ids)/2] {
			s.remove(s.orders, id)
		}
		if s.record(spring).Phase == kek.Started {
			s.must(s.census(spring))
		}
		for _, id := range ids[len(ids)/2:] {
			s.remove(s.orders, id)
		}
		for id := range rowsOf(s.orders) {
			if s.record(spring).Phase == kek.Started {
				s.remove(s.orders, id)
			}
		}
		s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
		return nil, s.retire(spring)
	}
}

// unopened are the steps that open the sources.
func unopened() []refusal {
	ctx := context.Background()
	var out []refusal
	for _, step := range []struct {
		name  string
		phase kek.Phase
		run   func(s *site) (any, error)
	}{
		{"census", kek.Started, func(s *site) (any, error) { return nil, s.census(spring) }},
		{"census by hand", "", func(s *site) (any, error) { return s.TakeCensus(ctx, "", nil) }},
		{"sample of rows", "", func(s *site) (any, error) { return s.CheckRows(ctx, kek.Normal) }},
		{"rehearsal", kek.Minted, func(s *site) (any, error) { return nil, s.rehearse(spring) }},
		{"dual unwrap", kek.Minted, func(s *site) (any, error) { return s.DualUnwrap(ctx, input(spring)) }},
		{"rewrap", kek.Drained, func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders"})
		}},
		{"end of the rewrap", kek.Drained, func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Complete: true})
		}},
		{"retirement", kek.Rewrapped, func(s *site) (any, error) { return nil, s.retire(spring) }},
		{"verify", kek.KEKRetired, func(s *site) (any, error) { return s.Verify(ctx, verifyInput(spring)) }},
		{"resume", kek.KEKRetired, func(s *site) (any, error) { return s.start("again", rotation.ExecutionInput{Resume: spring}) }},
		{"start", "", func(s *site) (any, error) { return s.start(spring, rotation.ExecutionInput{}) }},
		{"repeated start", kek.Minted, func(s *site) (any, error) { return s.start(spring, rotation.ExecutionInput{}) }},
		{"adoption", "", func(s *site) (any, error) { return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders"}) }},
	} {
		for from := range 4 {
			out = append(out, refusal{name: fmt.Sprintf("the %s, and sources cannot be opened after %d", step.name, from), phase: step.phase, call: func(s *site) (any, error) {
				opened := 0
				s.OpenSource = func(def kek.Source) (source.Driver, error) {
					if opened++; opened > from {
						return nil, errAway
					}
					return s.world.Open(def)
				}
				return step.run(s)
			}})
		}
	}
	return out
}

// untold are those of whom nobody could be told.
func untold() []refusal {
	ctx := context.Background()
	deaf := func(call func(s *site) (any, error)) func(s *site) (any, error) {
		return func(s *site) (any, error) {
			s.Journal.Notifier = &inbox{err: errAway}
			return call(s)
		}
	}
	out := []refusal{
		{name: "announced, and nobody is told", call: deaf(func(s *site) (any, error) { return s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{}) })},
		{name: "asked for approval, and nobody is told", phase: kek.Tested, in: asked, call: deaf(func(s *site) (any, error) {
			s.Gates.Rules.ApprovalRequired = true
			return s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring})
		})},
		{name: "a red canary, and nobody is told", call: deaf(func(s *site) (any, error) {
			s.must(s.kms.Disable(ctx, s.first))
			return s.Health(ctx, rotation.HealthInput{})
		})},
		{name: "a look that announces", call: func(s *site) (any, error) {
			s.Gates.Rules.AnnounceDays = 7
			in := preflightInput(spring, rotation.ExecutionInput{Label: "Q2"})
			in.CheckOnly, in.Announce = true, true
			plan, err := s.Preflight(ctx, in)
			return []any{plan.Checks, s.body("window_announced")}, err
		}},
		{name: "a look that cannot announce", call: func(s *site) (any, error) {
			s.Gates.Rules.AnnounceDays, s.Gates.Announcers = 7, []gates.Announcer{&teller{err: errAway}}
			in := preflightInput(spring, rotation.ExecutionInput{Label: "Q2"})
			in.CheckOnly, in.Announce = true, true
			return s.Preflight(ctx, in)
		}},
		{name: "a start that does not announce", call: func(s *site) (any, error) {
			s.Gates.Rules.AnnounceDays = 7
			in := preflightInput(spring, rotation.ExecutionInput{Label: "Q2"})
			in.Announce = true
			return s.Preflight(ctx, in)
		}},
	}
	for _, event := range []string{
		journal.NotifyStarted, journal.NotifyVerifying, journal.NotifyCompleted, journal.NotifyRolledBack, journal.NotifyRefused, journal.NotifyHalted,
		journal.NotifyDrilled, journal.NotifyApproval, journal.NotifyAnnounced, journal.NotifyHealthRed, journal.NotifyGeneration,
	} {
		for _, kind := range []journal.Kind{journal.DrainTimeout, journal.OrphansFound} {
			out = append(out, refusal{name: fmt.Sprintf("the message of %s for %s", event, kind), call: func(s *site) (any, error) {
				var b inbox
				s.Journal.Notifier = &b
				out, err := s.Notify(ctx, journal.Notice{
					Event: event, RotationID: "id", Error: string(kind), Cause: "a cause\nof two lines", Execution: journal.Execution{ID: "arn:x", Name: "n"}, Drill: "d",
					Plan: "p", Detail: "a detail", Mode: "emergency", Label: "Q2",
				})
				return []any{out, typed(err), b.subject, b.message}, nil
			}})
		}
	}
	return out
}

// TestRowsAtOnce: sixteen rows of a page are worked on at once.
func TestRowsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.Config.Segments = 1
		for i := range 40 {
			s.insert(s.orders, fmt.Sprintf("more-%d", i))
		}
		s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
		var mu sync.Mutex
		now, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			now += n
			most = max(most, now)
		}
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "KMS.ReEncrypt" {
				count(1)
				time.Sleep(time.Minute) // until every row that may be is here
				count(-1)
			}
			return true, nil
		})
		s.must(s.rewrapAll(spring))
		if most != 16 {
			t.Errorf("%d rows at once", most)
		}
	})
}

// TestPauseEndsAPass: after a pause no page more is read.
func TestPauseEndsAPass(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	for i := range 150 {
		s.insert(s.orders, fmt.Sprintf("more-%03d", i))
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
	asleep, scans := false, 0
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Store.SaveCheckpoint" && !asleep && args[0].(rotation.Checkpoint).Source == "orders" {
			asleep = true
			s.clock.pass(10 * time.Minute)
			scans = 0
		}
		if op == "Table.Scan" {
			scans++
		}
		return true, nil
	})
	wantKind(t, s.retire(spring), journal.Transient)
	if !asleep || scans != 0 {
		t.Errorf("asleep %t, %d pages were read afterwards", asleep, scans)
	}
}

// TestLookBesideARotation is the regression test of a look that said that no rotation runs
// because it was made under the name of one that was over, or of the one that runs.
func TestLookBesideARotation(t *testing.T) {
	for _, name := range []string{spring, summer, "another"} {
		s := newSite(t)
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		in := preflightInput(name, rotation.ExecutionInput{})
		in.CheckOnly = true
		if plan, err := s.Preflight(t.Context(), in); err != nil || plan.RotationID != name {
			t.Errorf("as %s: %+v, %v", name, plan, err)
		}
		s.advance(summer, rotation.ExecutionInput{}, kek.Started)
		before := s.snapshot()
		_, err := s.Preflight(t.Context(), in)
		wantKind(t, err, journal.RotationInProgress)
		if e := typed(err); !strings.Contains(e.Msg, summer) {
			t.Errorf("as %s: %v", name, e)
		}
		if d := s.diff(before); d != "" {
			t.Errorf("the world changed (-was +is):\n%s", d)
		}
	}
}

// TestPauseSavesNothing: what was read before a pause is in no checkpoint.
func TestPauseSavesNothing(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
	var mu sync.Mutex
	asleep, saved := false, 0
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case op == "KMS.ReEncrypt" && !asleep && saved == 2: // people are the last source
			asleep = true
			s.clock.pass(10 * time.Minute)
		case op == "Store.SaveCheckpoint":
			saved++
		}
		return true, nil
	})
	wantKind(t, s.retire(spring), journal.Transient)
	if !asleep || saved != 2 {
		t.Errorf("asleep %t, %d checkpoints", asleep, saved)
	}
}

// TestFreshnessInDays: a drill counts for so many whole days; without a number forever.
func TestFreshnessInDays(t *testing.T) {
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		rev  int64
		ago  time.Duration
		days int
		want gates.Freshness
	}{
		{0, 0, 0, gates.Never},
		{0, 0, 9, gates.Never},
		{1, 900 * day, 0, gates.Fresh},
		{1, day, 1, gates.Fresh},
		{1, day + 1, 1, gates.Stale},
		{1, 2 * day, 2, gates.Fresh},
		{1, 2*day + 1, 2, gates.Stale},
	} {
		if got := (gates.Drill{Rev: tc.rev, PassedAt: at}).Freshness(at.Add(tc.ago), tc.days); got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}

// TestTriesAreBounded: of a transition that always loses its race there are twelve tries.
func TestTriesAreBounded(t *testing.T) {
	ctx := t.Context()
	for _, tc := range []struct {
		op    string
		phase kek.Phase
		in    rotation.ExecutionInput
		run   func(s *site) error
	}{
		{"Store.Apply", kek.Tested, rotation.ExecutionInput{}, func(s *site) error { _, err := s.Switch(ctx, input(spring)); return err }},
		{"Store.SaveAnnouncement", kek.Tested, rotation.ExecutionInput{}, func(s *site) error { _, err := s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{}); return err }},
		{"Store.SaveApproval", kek.Tested, asked, func(s *site) error {
			s.Gates.Rules.ApprovalRequired = true
			_, err := s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring})
			return err
		}},
		{"Store.SaveDrill", kek.Minted, drill, func(s *site) error {
			_, err := s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: string(journal.CanaryFailed)})
			return err
		}},
		{"Store.SaveAnchor", kek.Tested, rotation.ExecutionInput{}, func(s *site) error {
			s.anchor(t)
			_, err := s.Anchor.AnchorChain(ctx, anchor.Input{})
			return err
		}},
	} {
		s := newSite(t)
		s.advance(spring, tc.in, tc.phase)
		tries := 0
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == tc.op {
				tries++
				return false, kek.ErrConflict
			}
			return true, nil
		})
		err := tc.run(s)
		wantKind(t, err, journal.Transient)
		if tries != 12 || !errors.Is(err, kek.ErrConflict) {
			t.Errorf("%s: %d tries, %v", tc.op, tries, err)
		}
	}
}
