package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestForeignObjectAtEveryPlace puts an object in the place of each record of a rotation,
// normal or an emergency: it ends all the same, the object stays, and the chain names it.
func TestForeignObjectAtEveryPlace(t *testing.T) {
	for _, in := range []rotation.ExecutionInput{{}, {Mode: "emergency", Reason: "leaked"}} {
		undisturbed := newSite(t)
		undisturbed.advance(spring, in, kek.Completed)
		want := undisturbed.events()
		for seq := 2; seq <= len(want); seq++ {
			if raced > 1 && seq%raced != 2 { // the others run without the race detector
				continue
			}
			t.Run(fmt.Sprintf("%s %d", in.Mode, seq), func(t *testing.T) {
				s := newSite(t)
				key := audit.ObjectKey(chain, int64(seq))
				s.vault.Tamper(key, []byte("foreign"))
				meter := counts{}
				s.Journal.Meter = meter
				s.advance(spring, in, kek.Completed)
				if d := cmp.Diff(counts{journal.MetricGeneration: {1}}, meter); d != "" {
					t.Errorf("metrics, for the alarm (-want +got):\n%s", d)
				}
				s.settled()
				events := s.events()
				begun := slices.Index(events, audit.EventGeneration)
				if begun < seq {
					t.Fatalf("no record after %d names the object: %q", seq, events)
				}
				if diff := cmp.Diff(want, slices.Delete(slices.Clone(events), begun, begun+1)); diff != "" {
					t.Errorf("records (-undisturbed +got):\n%s", diff)
				}
				entries := must(s.store.AuditEntries(t.Context(), int64(begun+1)))
				b, ok := audit.ParseBegun(entries[0].Record)
				taken := *audit.TakenBy(key, "only", []byte("foreign"))
				if !ok || b.Of != audit.OfRecords || b.From != int64(seq) || b.Before != "" || b.Taken != taken || entries[0].Record.Actor != s.Journal.Actor {
					t.Errorf("%+v, %+v", b, entries[0].Record)
				}
				if left := must(s.vault.Get(t.Context(), key)); string(left) != "foreign" {
					t.Errorf("the object is %q now", left)
				}
			})
		}
	}
}

// TestGenerationIsTold: a command, whose output no log turns into metrics, sends the message,
// before the generation begins. One that cannot be sent stops nothing.
func TestGenerationIsTold(t *testing.T) {
	const subject = "Audit chain continues past a foreign object"
	s := newSite(t)
	s.vault.Tamper(audit.ObjectKey(chain, 2), []byte("foreign"))
	told := -1
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Store.Begin" {
			told = len(s.mail)
		}
		return true, nil
	})
	must(s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{})))
	if told != 1 || !slices.Equal(s.mail, []string{subject}) {
		t.Errorf("%d messages when it began, then %q", told, s.mail)
	}
	s = newSite(t)
	s.Journal.Notifier = unsent{}
	s.vault.Tamper(audit.ObjectKey(chain, 2), []byte("foreign"))
	must(s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{})))
}

// unsent is a notifier that cannot send.
type unsent struct{}

func (unsent) TellPeople(context.Context, journal.Notice) error { return errors.New("no answer") }

// TestForeignObjectsAhead: a writer who puts objects at places far ahead, and in the places of
// each generation that begins, does not stop the chain.
func TestForeignObjectsAhead(t *testing.T) {
	s := newSite(t)
	for _, seq := range []int64{3, 4, 9} {
		s.vault.Tamper(audit.ObjectKey(chain, seq), []byte("ahead"))
	}
	planted := 0
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Vault.Put" && planted < 5 && strings.Contains(args[0].(string), "/g") {
			planted++
			return false, audit.TakenBy(args[0].(string), "only", nil)
		}
		return true, nil
	})
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestBeginsOnce: of two steps that meet one object, one begins a generation.
func TestBeginsOnce(t *testing.T) {
	s := newSite(t)
	s.vault.Tamper(audit.ObjectKey(chain, 2), []byte("foreign"))
	s.world.SetHook(func(op string, _ ...any) (bool, error) { return op != "Vault.Put", nil }) // the bucket is away
	_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.Transient)
	again := false
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Store.Begin" && !again {
			again = true
			must(s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{})))
		}
		return true, nil
	})
	must(s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{})))
	s.world.SetHook(nil)
	if n := len(slices.DeleteFunc(s.events(), func(e string) bool { return e != audit.EventGeneration })); !again || n != 1 {
		t.Errorf("%d generations", n)
	}
}

// TestTooManyForeignObjects: a step gives up, to be repeated, where one object after the
// other is in its way.
func TestTooManyForeignObjects(t *testing.T) {
	s := newSite(t)
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Vault.Put" {
			return false, audit.TakenBy(args[0].(string), "only", nil)
		}
		return true, nil
	})
	_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.Transient)
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestSetBack: a bucket that holds a record after the control table's last one stops a
// normal rotation before it starts; an emergency notes it, moves the pointer and the rows,
// and is stopped before it retires a KEK.
func TestSetBack(t *testing.T) {
	s := newSite(t)
	at, head, err := s.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	forgotten := must(audit.Next(chain, head, s.Journal.Now(), audit.Event{ID: "x", Type: "pointer_switched"}))
	s.vault.Tamper(at.RecordKey(forgotten.Record.Seq), forgotten.Bytes)
	_, err = s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.AuditTampered)
	var typed *journal.Error
	if errors.As(err, &typed); typed.Field != "AUDIT_HEAD" || typed.Next.Do != journal.RunDoctor {
		t.Errorf("%v", err)
	}
	p := must(s.Preflight(t.Context(), preflightInput(summer, rotation.ExecutionInput{Mode: "emergency", Reason: "leaked"})))
	if i := slices.IndexFunc(p.Checks, func(c rotation.Check) bool { return c.Name == "audit head" }); i < 0 || !strings.Contains(p.Checks[i].Detail, "set back") {
		t.Errorf("%+v", p.Checks)
	}
	s.advance(summer, rotation.ExecutionInput{Mode: "emergency", Reason: "leaked"}, kek.Rewrapped)
	old := s.record(summer).OldKEK
	for range 2 {
		_, err = s.Retire(t.Context(), rotation.RetireInput{RotationID: summer})
		if wantKind(t, err, journal.AuditTampered); s.state(old) != kek.Sealed || !s.enabled(old) {
			t.Errorf("%s is %s, enabled %t", old, s.state(old), s.enabled(old))
		}
	}
	look := preflightInput("Q4-2026-rotation", rotation.ExecutionInput{Mode: "emergency", Reason: "leaked", Again: true})
	look.CheckOnly = true
	p = must(s.Preflight(t.Context(), look)) // the chain has gone on, the table is what it was; the other one has switched
	if i := slices.IndexFunc(p.Checks, func(c rotation.Check) bool { return c.Name == "audit head" }); i < 0 || !strings.Contains(p.Checks[i].Detail, "set back") {
		t.Errorf("%+v", p.Checks)
	}
}

// TestManyForeignObjects: a step goes past eleven objects in a row, and tells people of each
// by its key; where a function counts them for the alarm it sends nothing.
func TestManyForeignObjects(t *testing.T) {
	for _, counted := range []bool{false, true} {
		s := newSite(t)
		var b inbox
		s.Journal.Notifier = &b
		if counted {
			s.Journal.Meter = counts{}
		}
		planted, last := 0, ""
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "Vault.Put" && planted < 11 {
				planted++
				last = args[0].(string)
				return false, audit.TakenBy(last, "only", nil)
			}
			return true, nil
		})
		must(s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{})))
		if planted != 11 || counted != (b.message == "") || !counted && !strings.Contains(b.message, "Detail:    "+last+"\n") {
			t.Errorf("counted %t, after %d objects, the last %s: %q", counted, planted, last, b.message)
		}
		s.world.SetHook(nil)
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}
