package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
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

// fork is a deployment of its own that holds what this one holds.
func (s *site) fork(t *testing.T) *site {
	t.Helper()
	c := &clock{at: s.clock.now()}
	w := s.world.Clone(c.now)
	steps := *s.Steps
	f := &site{
		Steps: &steps, t: t, world: w, store: w.Store(), vault: w.Vault(), kms: w.KMS(), clock: c, first: s.first, plain: map[place]string{},
		orders: s.orders.CloneTo(w), people: s.people.CloneTo(w), corpus: s.corpus.CloneTo(w),
	}
	f.tables = []*memstore.Table{f.orders, f.people, f.corpus}
	f.Journal = &journal.Journal{Registry: f.store, Outbox: f.store, AuditBucket: f.vault, Notifier: f, Now: c.now, Actor: s.Journal.Actor}
	f.Gates = gates.Gates{Rules: s.Gates.Rules, Journal: f.Journal, Announcements: f.store, Drills: f.store, Approvals: f.store, HealthLog: f.store}
	f.Anchor = nil
	f.Keys.Admin, f.Keys.Wrapper = f.kms, f.kms
	f.Drainage, f.Checkpoints, f.OpenSource = f.store, rotation.SealCheckpoints(f.store, memstore.CheckpointKeys{}), w.Open
	f.Scheduler = &rotation.Scheduler{Journal: f.Journal, Gates: &f.Gates}
	return f
}

// errAway is that of a service that does not answer.
var errAway = errors.New("away")

// errTaken is that of a bucket that holds another object in the place of a record.
var errTaken error = audit.TakenBy("the place", "a version", []byte("another object"))

// names are those of the failures in the golden file.
var names = map[error]string{
	errAway: "away", journal.ErrDenied: "denied", journal.ErrRejected: "rejected", journal.ErrNoKey: "no key", journal.ErrKeyDisabled: "key disabled",
	journal.ErrUnwrap: "unwrap", journal.ErrNoControlTable: "no table", kek.ErrConflict: "conflict", errTaken: "taken", journal.ErrNoRecord: "no record",
	anchor.ErrLogRefused: "refused",
}

// failures are how a call of an adapter may fail.
func failures(op string) []error {
	out := []error{errAway, fmt.Errorf("%s: %w", op, journal.ErrDenied), fmt.Errorf("%s: %w", op, journal.ErrRejected)}
	op, _, _ = strings.Cut(op, " ") // what it is about
	switch op {
	case "KMS.Describe":
		out = append(out, journal.ErrNoKey)
	case "KMS.Disable":
		out = append(out, journal.ErrNoKey)
	case "KMS.Decrypt", "KMS.ReEncrypt", "KMS.GenerateDataKey", "KMS.Identify":
		out = append(out, journal.ErrNoKey, journal.ErrKeyDisabled, journal.ErrUnwrap)
	case "Store.Load", "Store.LoadAll", "Items.Examine":
		out = append(out, journal.ErrNoControlTable)
	case "Store.Apply", "Store.SaveAnnouncement", "Store.SaveApproval", "Store.SaveDrill", "Store.SaveAnchor", "Store.Begin", "Items.Repair":
		out = append(out, kek.ErrConflict, kek.ErrConflict)
	case "Store.SaveCheckpoint":
		out = append(out, kek.ErrConflict)
	case "Vault.Put":
		out = append(out, errTaken)
	case "Log.Submit":
		out = append(out, anchor.ErrLogRefused)
	case "Vault.Get", "Vault.GetAnchor":
		out = append(out, journal.ErrNoRecord)
	}
	return out
}

// TestEveryFailureIsTold: what each step says when one kind of its calls fails, from the
// first or from a later one on. Each line is an answer, and the failures that led to it.
func TestEveryFailureIsTold(t *testing.T) {
	var text strings.Builder
	for _, mode := range []struct {
		name string
		in   rotation.ExecutionInput
	}{{"normal", asked}, {"emergency", emergency}, {"drill", drill}} {
		var s *site
		for _, step := range failingSteps(mode.in) {
			switch {
			case step.in != nil && !step.in(mode.in):
				continue
			case s == nil || step.phase == "":
				s = newSite(t)
				s.Config.Segments = 1
				for _, table := range s.tables { // one row each, so that the calls have one order
					for id := range rowsOf(table) {
						if !strings.HasSuffix(id, "0") && id != "known-1.json" {
							s.remove(table, id)
						}
					}
				}
			}
			if step.phase != "" {
				s.advance(spring, mode.in, step.phase)
			}
			if step.prepare != nil {
				step.prepare(s)
			}
			fmt.Fprintf(&text, "%s, %s\n", mode.name, step.name)
			for _, line := range failing(t, func() *site { return s.fork(t) }, (*site).hook, step.run) {
				fmt.Fprintf(&text, "  %s\n", line)
			}
		}
	}
	wantGolden(t, "failures.golden", text.String())
}

// tickOnce is a tick of the schedule that starts what it starts nowhere.
func (s *site) tickOnce() (any, error) {
	s.Scheduler.Starter = &ordered{t: s.t}
	out, err := s.Scheduler.StartDue(s.t.Context(), rotation.ScheduleInput{Hour: hour2, State: rotation.ScheduleEnabled})
	return out, err
}

func rowsOf(table *memstore.Table) map[string]memstore.Record {
	rows := map[string]memstore.Record{}
	table.Each(func(id string, r memstore.Record) { rows[id] = r })
	delete(rows, "settings")
	return rows
}

// hook makes the world's calls subject to h.
func (s *site) hook(h memstore.Hook) { s.world.SetHook(h) }

// failing runs a step once for each kind of call that it makes and each way that fails,
// on a site of its own. It returns the answers, each with what led to it.
func failing[T any](t *testing.T, fresh func() T, hook func(T, memstore.Hook), run func(T) (any, error)) []string {
	t.Helper()
	var mu sync.Mutex
	var ops []string // each call of the undisturbed run
	f := fresh()
	hook(f, func(op string, _ ...any) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, op)
		return true, nil
	})
	out, err := run(f)
	var answers []string
	causes := map[string][]string{}
	note := func(cause string, out any, err error) {
		answer := set(t, out)
		if err != nil {
			answer = toldError(err)
		}
		if causes[answer] == nil {
			answers = append(answers, answer)
		}
		causes[answer] = append(causes[answer], cause)
	}
	note("nothing fails", out, err)
	count := map[string]int{}
	for _, op := range ops {
		count[op]++
	}
	slices.Sort(ops)
	for _, op := range slices.Compact(ops) {
		for from := range min(count[op], 8) {
			for i, failure := range failures(op) {
				f := fresh()
				seen, last := 0, from+1
				if errors.Is(failure, kek.ErrConflict) && i%2 == 0 { // once, and permanently
					last = math.MaxInt
				}
				hook(f, func(now string, _ ...any) (bool, error) {
					mu.Lock()
					defer mu.Unlock()
					if now != op {
						return true, nil
					}
					seen++
					if seen > from && seen <= last {
						return false, failure
					}
					return true, nil
				})
				out, err := run(f)
				cause, often := failure, ""
				if errors.Is(failure, kek.ErrConflict) && last > from+1 {
					often = " always"
				}
				for _, known := range []error{journal.ErrDenied, journal.ErrRejected} {
					if errors.Is(failure, known) {
						cause = known
					}
				}
				note(fmt.Sprintf("%s %d %s%s", op, from+1, names[cause], often), out, err)
			}
		}
	}
	for i, a := range answers {
		answers[i] = a + "\n    " + strings.Join(causes[a], ", ")
	}
	return answers
}

// failingStep is a step at the phase from which it is run.
type failingStep struct {
	name    string
	phase   kek.Phase // "": on a new site
	in      func(rotation.ExecutionInput) bool
	prepare func(*site)
	run     func(*site) (any, error)
}

func failingSteps(in rotation.ExecutionInput) []failingStep {
	ctx := context.Background()
	normal := func(in rotation.ExecutionInput) bool { return in.Mode == "" && in.Drill == "" }
	notDrill := func(in rotation.ExecutionInput) bool { return in.Drill == "" }
	isDrill := func(in rotation.ExecutionInput) bool { return in.Drill != "" }
	plan := ""
	return []failingStep{
		{name: "health", run: func(s *site) (any, error) { return s.Health(ctx, rotation.HealthInput{}) }, in: normal},
		{name: "a census by hand", run: func(s *site) (any, error) { return s.TakeCensus(ctx, "", nil) }, in: normal},
		{name: "a sample of rows", run: func(s *site) (any, error) { return s.CheckRows(ctx, kek.Normal) }, in: normal},
		{name: "announce", run: func(s *site) (any, error) { return s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{}) }, in: normal},
		{name: "announce where another object lies", in: normal, prepare: func(s *site) {
			at, head, err := s.store.Head(ctx)
			s.must(err)
			s.vault.Tamper(at.RecordKey(head.Seq+1), []byte("another object"))
		}, run: func(s *site) (any, error) { return s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{}) }},
		{name: "announce again", prepare: func(s *site) { must(s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{})) }, run: func(s *site) (any, error) {
			return s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{})
		}, in: normal},
		{name: "add source", run: func(s *site) (any, error) { return s.AddSource(ctx, s.world.NewTable("new").Source()) }, in: normal},
		{name: "remove source", run: func(s *site) (any, error) { return nil, s.RemoveSource(ctx, "orders", "") }, in: normal},
		{name: "register KEK", in: normal, run: func(s *site) (any, error) {
			k, err := s.kms.Create(ctx, "", 0, "old", keyring.Key{})
			return nil, errors.Join(err, s.RegisterKEK(ctx, k.ID, "old"))
		}},
		{name: "adopt", in: normal, run: func(s *site) (any, error) {
			return s.Adopt(ctx, s.store, rotation.AdoptInput{Source: "orders", Write: true})
		}, prepare: func(s *site) {
			r := s.seal(s.orders, "unlabelled", s.first, 0, "secret")
			r.KEK, r.Defect, r.Kind = "", "no kek_id", source.NoKEK
			s.orders.Plant("unlabelled", r)
		}},
		{name: "preflight of the schedule", in: normal, run: func(s *site) (any, error) {
			return s.Preflight(ctx, preflightInput(spring, rotation.ExecutionInput{RequestedBy: rotation.ScheduleRequester}))
		}},
		{name: "a tick of the schedule", in: normal, prepare: func(s *site) {
			s.clock.at = time.Date(2026, 7, 5, 2, 0, 0, 0, time.UTC)
			s.Gates.Rules.AnnounceDays, s.Gates.Rules.DrillFreshDays = 7, 90
			s.told("Q3-2026-rotation", s.clock.at, s.clock.at.Add(3*time.Hour), s.clock.at.AddDate(0, 0, -8))
			s.passed(s.clock.at.AddDate(0, 0, -14))
		}, run: func(s *site) (any, error) { return s.tickOnce() }},
		{name: "preflight of a table that was set back", in: normal, prepare: func(s *site) {
			at, head, err := s.store.Head(ctx)
			s.must(err)
			e := must(audit.Next(at.Chain, head, s.clock.now(), audit.Event{ID: "x", Type: "x"}))
			s.must(s.vault.Put(ctx, at.RecordKey(head.Seq+1), e))
		}, run: func(s *site) (any, error) { return s.Preflight(ctx, preflightInput(spring, in)) }},
		{name: "preflight of a chain that has gone on past objects of others", in: normal, prepare: func(s *site) {
			for n := range 2 {
				at, head, err := s.store.Head(ctx)
				s.must(err)
				s.vault.Tamper(at.RecordKey(head.Seq+1), []byte("another object"))
				s.forged = true
				s.must(s.store.Record(ctx, audit.Event{ID: fmt.Sprint("y", n), Type: "y"}))
				must(s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{Label: fmt.Sprint("window ", n)})) // a generation begins
			}
		}, run: func(s *site) (any, error) {
			p, err := s.Preflight(ctx, preflightInput(spring, in))
			return p.Label, err
		}},
		{name: "preflight of a chain that has gone on past a record of its own", in: normal, prepare: func(s *site) {
			at, head, err := s.store.Head(ctx)
			s.must(err)
			e := must(audit.Next(at.Chain, head, s.clock.now(), audit.Event{ID: "x", Type: "x"}))
			s.must(s.vault.Put(ctx, at.RecordKey(head.Seq+1), e))
			s.forged = true
			s.must(s.store.Record(ctx, audit.Event{ID: "y", Type: "y"}))
			must(s.Gates.AnnounceWindow(ctx, gates.AnnounceInput{})) // a generation begins
		}, run: func(s *site) (any, error) { return s.Preflight(ctx, preflightInput(spring, in)) }},
		{name: "preflight", in: notDrill, run: func(s *site) (any, error) { return s.Preflight(ctx, preflightInput(spring, in)) }},
		{name: "preflight of a strict deployment", prepare: ready, in: normal, run: func(s *site) (any, error) {
			return s.Preflight(ctx, preflightInput(spring, in))
		}},
		{name: "census", in: normal, phase: kek.Started, run: func(s *site) (any, error) {
			return s.Verify(ctx, rotation.VerifyInput{RotationID: spring, Census: true})
		}},
		{name: "preflight again", in: normal, phase: kek.Started, run: func(s *site) (any, error) { return s.Preflight(ctx, preflightInput(spring, in)) }},
		{name: "census again", in: normal, phase: kek.Started, prepare: func(s *site) { s.must(s.census(spring)) }, run: func(s *site) (any, error) {
			return s.Verify(ctx, rotation.VerifyInput{RotationID: spring, Census: true})
		}},
		{name: "abandon", in: normal, phase: kek.Started, run: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionAbandon, ExecutionARN: preflightInput(spring, in).ExecutionARN})
		}},
		{name: "mint", in: normal, phase: kek.Started, prepare: func(s *site) {
			s.must(s.census(spring))
			must(s.kms.Create(ctx, spring, 1, "a stray", keyring.Key{}))
		}, run: func(s *site) (any, error) {
			return s.Mint(ctx, input(spring))
		}},
		{name: "mint, a minute later", phase: kek.Started, in: normal, prepare: func(s *site) { s.clock.pass(11 * time.Minute) }, run: func(s *site) (any, error) {
			return s.Mint(ctx, input(spring))
		}},
		{name: "rehearse", in: notDrill, phase: kek.Minted, run: func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Rehearse: true})
		}},
		{name: "dual unwrap", phase: kek.Minted, prepare: func(s *site) { s.must(s.rehearse(spring)) }, run: func(s *site) (any, error) {
			return s.DualUnwrap(ctx, input(spring))
		}},
		{name: "rehearse again", in: normal, phase: kek.Minted, run: func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Rehearse: true})
		}},
		{name: "dual unwrap ten minutes later", phase: kek.Minted, in: normal, prepare: func(s *site) { s.clock.pass(10 * time.Minute) }, run: func(s *site) (any, error) {
			return s.DualUnwrap(ctx, input(spring))
		}},
		{name: "roll back", phase: kek.Minted, in: func(in rotation.ExecutionInput) bool { return in.Mode == "" }, run: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: string(journal.CanaryFailed), Cause: "it did"})
		}},
		{name: "mint again", phase: kek.Minted, in: func(in rotation.ExecutionInput) bool { return in.Mode != "" }, run: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1, Error: string(journal.CanaryFailed)})
		}},
		{name: "a drill that is over", phase: kek.Minted, in: isDrill, prepare: func(s *site) {
			must(s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: string(journal.CanaryFailed)}))
		}, run: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure})
		}},
		{name: "ask for approval", phase: kek.Tested, in: normal, prepare: func(s *site) { s.Gates.Rules.ApprovalRequired, s.Gates.Rules.ApprovalWait = true, time.Hour }, run: func(s *site) (any, error) {
			return s.Gates.AskApproval(ctx, gates.ApprovalInput{RotationID: spring, Token: "token"})
		}},
		{name: "approve", phase: kek.Tested, in: normal, prepare: func(s *site) { s.Journal.Actor, plan = bob, s.Gates.HashPlan(s.record(spring)) }, run: func(s *site) (any, error) {
			return s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring, Plan: plan})
		}},
		{name: "approve again", phase: kek.Tested, in: normal, prepare: func(s *site) {
			must(s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring, Plan: plan}))
		}, run: func(s *site) (any, error) {
			return s.Gates.JudgePlan(ctx, gates.Verdict{RotationID: spring, Plan: plan})
		}},
		{name: "switch without approval", phase: kek.Tested, in: normal, run: func(s *site) (any, error) {
			return s.Switch(ctx, input(spring))
		}},
		{name: "switch", in: normal, phase: kek.Tested, prepare: func(s *site) { s.Gates.Rules.ApprovalRequired, s.Journal.Actor = false, "test" }, run: func(s *site) (any, error) {
			return s.Switch(ctx, input(spring))
		}},
		{name: "drain", phase: kek.Switched, in: notDrill, prepare: func(s *site) {
			s.lease("gone", time.Second)
			s.clock.pass(time.Minute)
		}, run: func(s *site) (any, error) {
			return s.Drain(ctx, input(spring))
		}},
		{name: "take a lease back", phase: kek.Switched, in: normal, run: func(s *site) (any, error) {
			return s.RevokeLease(ctx, s.store, s.first, "gone", "its host is gone")
		}},
		{name: "a tick beside a rotation that is late", phase: kek.Switched, in: normal, prepare: func(s *site) {
			s.Gates.Rules.AnnounceDays, s.Gates.Rules.DrillFreshDays = 0, 0
		}, run: func(s *site) (any, error) {
			s.clock.at = time.Date(2026, 7, 9, 2, 0, 0, 0, time.UTC)
			return s.tickOnce()
		}},
		{name: "rewrap", phase: kek.Drained, in: notDrill, run: func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: "orders"})
		}},
		{name: "rewrap complete", phase: kek.Drained, in: notDrill, run: func(s *site) (any, error) {
			return s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Complete: true})
		}},
		{name: "retire", phase: kek.Rewrapped, in: notDrill, run: func(s *site) (any, error) {
			return s.Retire(ctx, rotation.RetireInput{RotationID: spring})
		}},
		{name: "verify", phase: kek.KEKRetired, in: notDrill, run: func(s *site) (any, error) { return s.Verify(ctx, verifyInput(spring)) }},
		{name: "resume", in: normal, phase: kek.KEKRetired, run: func(s *site) (any, error) {
			return s.Preflight(ctx, preflightInput("again", rotation.ExecutionInput{Resume: spring}))
		}},
		{name: "verify again", in: normal, phase: kek.Completed, run: func(s *site) (any, error) { return s.Verify(ctx, verifyInput(spring)) }},
	}
}
