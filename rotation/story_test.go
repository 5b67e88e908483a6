package rotation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/asltest"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// story writes down all that a rotation says to anybody: each step's output or error,
// each audit record, each message to people and to customers, and what the control
// table holds at the end.
type story struct {
	*driver
	text  strings.Builder
	told  int            // audit records that are written down
	calls map[string]int // of the invocation
}

func newStory(t *testing.T) *story {
	t.Helper()
	d := newDriver(newSite(t))
	s := &story{driver: d, calls: map[string]int{}}
	s.Journal.Notifier, s.Gates.Announcers = s, []gates.Announcer{s}
	s.catchUp()
	s.world.SetHook(s.count)
	d.before = func(call) { s.clock.pass(7 * time.Second); clear(s.calls) }
	d.after = func(c call, out []byte, err error) {
		if err != nil {
			out = []byte(advice.Explain(err))
		}
		fmt.Fprintf(&s.text, "%s: %s\n", c.state, out)
		for _, op := range slices.Sorted(maps.Keys(s.calls)) {
			fmt.Fprintf(&s.text, "  %d %s\n", s.calls[op], op)
		}
		s.catchUp()
	}
	return s
}

// count is a hook that counts calls, those of scans by what they ask for.
func (s *story) count(op string, args ...any) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op == "Table.Scan" {
		req := args[1].(source.ScanRequest)
		op = fmt.Sprintf("%s of %d, limit %d, payload %t, whole %t", op, req.Total, req.Limit, req.Payload, req.Whole)
	}
	s.calls[op]++
	return true, nil
}

// catchUp writes down the audit records since the last time.
func (s *story) catchUp() {
	s.t.Helper()
	for _, e := range must(s.store.AuditEntries(s.t.Context(), 1))[s.told:] {
		r := e.Record
		fmt.Fprintf(&s.text, "  record %s, event %s, rotation %q, step %s, actor %s\n", r.Type, r.ID, r.Rotation, r.Step, r.Actor)
		for _, k := range slices.Sorted(maps.Keys(r.Body)) {
			fmt.Fprintf(&s.text, "    %s: %s\n", k, r.Body[k])
		}
		s.told++
	}
}

// TellPeople implements [journal.Notifier].
func (s *story) TellPeople(_ context.Context, n journal.Notice) error {
	subject, message := notify.ComposeMessage(n)
	fmt.Fprintf(&s.text, "  mail %s\n    %s\n", subject, strings.ReplaceAll(strings.TrimSpace(message), "\n", "\n    "))
	return nil
}

// Name implements [gates.Announcer].
func (*story) Name() string { return "status page" }

// Tell implements [gates.Announcer].
func (s *story) Tell(_ context.Context, a gates.Announcement, stage gates.Stage) error {
	title, body := a.Text(stage)
	fmt.Fprintf(&s.text, "  customers at %s of %s: %s. %s\n", stage, a.Label, title, body)
	return nil
}

// start runs an execution to its end and writes down where it ended.
func (s *story) start(name string, in rotation.ExecutionInput) *asltest.Execution {
	s.t.Helper()
	fmt.Fprintf(&s.text, "\nexecution %s\n", name)
	e := s.machine.Start(name, in)
	fmt.Fprintf(&s.text, "ended in %s, %s\n", e.Final, e.Status)
	return e
}

// say writes down what a person did, and what it came to.
func (s *story) say(what string, out any, err error) {
	s.t.Helper()
	b, jerr := json.Marshal(out)
	s.must(jerr)
	if err != nil {
		b = []byte(advice.Explain(err))
	}
	fmt.Fprintf(&s.text, "\n%s: %s\n", what, b)
	s.catchUp()
}

// tell adds the registry's end and compares the story with its file.
func (s *story) tell(name string) {
	s.t.Helper()
	s.text.WriteString("\nin the end\n")
	dump := func(kind string, v any) {
		fmt.Fprintf(&s.text, "%s %s\n", kind, set(s.t, v))
	}
	end := s.snapshot()
	dump("pointer", end.Pointer)
	for _, k := range end.KEKs {
		dump("KEK", k)
	}
	for _, r := range end.Rotations {
		dump("rotation", r)
	}
	for _, src := range end.Sources {
		dump("source", src)
	}
	for _, cp := range end.Checkpoints {
		cp.Cursor = ""          // the driver's
		cp.Tally.DataKeys = nil // two kilobytes
		dump("checkpoint", cp)
	}
	wantGolden(s.t, name+".golden", strings.TrimLeft(s.text.String(), "\n"))
}

// set is a value as JSON, without what is empty in it.
func set(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var x any
	if err := json.Unmarshal(b, &x); err != nil {
		t.Fatal(err)
	}
	b, err = json.Marshal(withoutEmpty(x))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func withoutEmpty(x any) any {
	m, ok := x.(map[string]any)
	if !ok {
		return x
	}
	for k, v := range m {
		switch v := withoutEmpty(v).(type) {
		case nil:
			delete(m, k)
		case string:
			if v == "" || v == "0001-01-01T00:00:00Z" {
				delete(m, k)
			}
		case float64:
			if v == 0 {
				delete(m, k)
			}
		case bool:
			if !v {
				delete(m, k)
			}
		case map[string]any:
			if len(v) == 0 {
				delete(m, k)
			}
		}
	}
	return m
}

// TestStories holds whole rotations to everything that they say.
func TestStories(t *testing.T) {
	for name, run := range map[string]func(s *story){
		"normal": func(s *story) {
			s.Config.Deep = true
			s.orders.Plant("a counter", memstore.Record{Declared: true})
			s.start(spring, rotation.ExecutionInput{RequestedBy: alice})
		},
		"emergency": func(s *story) {
			strict(s.site)
			s.Gates.Rules.ApprovalRequired = true
			s.clock.pass(8 * time.Hour)
			s.kms.AddGrant(s.first, "to somebody")
			s.start(spring, emergency)
		},
		"rolled back": func(s *story) {
			s.spoil()
			s.start(spring, rotation.ExecutionInput{Reason: "they asked for it"})
			s.mend()
			s.start(summer, rotation.ExecutionInput{Label: "again"})
		},
		"drill": func(s *story) {
			s.start("drill-1", drill)
		},
		"approved": func(s *story) {
			s.Gates.Rules.ApprovalRequired, s.Gates.Rules.ApprovalWait, s.Journal.Actor = true, time.Hour, "lambda/test"
			s.machine.Await = func(string, string) *asltest.Failure {
				a, err := s.verdict(bob, "looks right", false)
				a.Token = ""
				s.say("bob agrees", a, err)
				return nil
			}
			s.start(spring, asked)
		},
		"rejected": func(s *story) {
			s.Gates.Rules.ApprovalRequired, s.Gates.Rules.ApprovalWait, s.Journal.Actor = true, time.Hour, "lambda/test"
			s.machine.Await = func(string, string) *asltest.Failure {
				a, err := s.verdict(bob, "not tonight", true)
				a.Token = ""
				s.say("bob rejects", a, err)
				return &asltest.Failure{Name: string(journal.ApprovalRejected), Cause: a.Reason}
			}
			s.start(spring, asked)
		},
		"taken over": func(s *story) {
			s.past("an earlier one")
			s.lease("sleeper", time.Hour)
			s.start(spring, rotation.ExecutionInput{})
			s.start(summer, emergency)
			again := emergency
			again.Again = true
			s.start("Q4-2026-rotation", again)
		},
		"halted and resumed": func(s *story) {
			l := s.lease("sleeper", time.Minute)
			tick := s.before
			s.before = func(c call) {
				tick(c)
				if c.state == "Drain" { // each of its polls comes minutes later, so that there are few
					s.clock.pass(9 * time.Minute)
					s.renew(l, time.Minute)
				}
			}
			if e := s.start(spring, rotation.ExecutionInput{}); e.Final != "Halted" {
				s.t.Errorf("it has not halted, and ended in %s", e.Final)
			}
			s.before = tick
			s.must(s.store.DropLease(s.t.Context(), l))
			s.clock.pass(time.Hour)
			if e := s.start("resume-1", rotation.ExecutionInput{Resume: spring}); e.Status != "SUCCEEDED" {
				s.t.Errorf("resumed: %s in %s", e.Status, e.Final)
			}
		},
		"minted again": func(s *story) {
			failed := 0
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "KMS.GenerateDataKey" && s.at == "DualUnwrap" && failed < 2 {
					failed++
					return false, journal.ErrRejected
				}
				return s.count(op, args...)
			})
			s.start(spring, emergency)
		},
		"announced": func(s *story) {
			ready(s.site)
			s.start(spring, rotation.ExecutionInput{})
			s.must(s.kms.Disable(s.t.Context(), s.pointer().KEKID))
			out, err := s.Health(s.t.Context(), rotation.HealthInput{})
			s.say("the canary", out, err)
		},
		"refused": func(s *story) {
			s.clock.pass(8 * time.Hour)
			s.start(spring, rotation.ExecutionInput{})
		},
		"anchored": func(s *story) {
			s.anchor(s.t)
			s.start(spring, rotation.ExecutionInput{})
		},
		"sources": func(s *story) {
			ctx := s.t.Context()
			table := s.newTable("late", s.first, "l1")
			s.start(spring, rotation.ExecutionInput{Window: "01:00-03:00"})
			s.mark("unknown")
			s.plant(table, "l2", s.pointer().KEKID)
			notes, err := s.AddSource(ctx, table.Source())
			s.say("a source is added", notes, err)
			s.say("a historic KEK is registered", nil, s.RegisterKEK(ctx, must(s.kms.Create(ctx, "", 0, "old", keyring.Key{})).ID, "old"))
			s.say("a mark is forgotten", nil, s.ForgetMark(ctx, "unknown", "a test wrote there"))
			s.say("a source in use is removed", nil, s.RemoveSource(ctx, "late", ""))
			s.say("it is forced", nil, s.RemoveSource(ctx, "late", "nobody reads it"))
			c, err := s.TakeCensus(ctx, "", nil)
			s.say("a census", c, err)
			checks, err := s.CheckRows(ctx, kek.Normal)
			s.say("a sample", checks, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t)
			run(s)
			s.tell(strings.ReplaceAll(name, " ", "-"))
		})
	}
}
