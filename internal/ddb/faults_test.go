package ddb_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// rig is a control table behind a wire that breaks. With tries 1 the SDK does not
// repeat a request.
func rig(t *testing.T, w *ddbtest.Wire, tries int) (*ddb.Store, *ddbtest.DataPlane, *dynamodb.Client) {
	t.Helper()
	client := ddbtest.Client(t)
	table := ddbtest.ControlTable(t, client)
	bad := ddbtest.Client(t, func(o *dynamodb.Options) {
		o.HTTPClient = &http.Client{Transport: w}
		o.Retryer = retry.NewStandard(func(s *retry.StandardOptions) {
			s.MaxAttempts = tries
			s.MaxBackoff = time.Millisecond
		})
	})
	return ddb.New(bad, table, "test", storetest.Clock()), ddbtest.NewDataPlane(bad, table), client
}

func first(t *testing.T, s *ddb.Store) kek.Change {
	t.Helper()
	v, err := s.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Genesis(kek.KEK{ID: "kek-0", FenceShards: 3}, nil, storetest.Clock()())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func records(t *testing.T, s *ddb.Store) int {
	t.Helper()
	entries, err := s.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestApplyOnABrokenWire: whatever happens to a transaction's request or answer,
// the change and its record are made once or not at all, and reading again tells.
func TestApplyOnABrokenWire(t *testing.T) {
	for _, c := range []struct {
		name    string
		sent    bool
		tries   int
		fails   bool
		applied bool
	}{
		{name: "not sent, not repeated", tries: 1, fails: true},
		{name: "not sent, repeated", tries: 3, applied: true},
		{name: "answer lost, not repeated", sent: true, tries: 1, fails: true, applied: true},
		{name: "answer lost, repeated", sent: true, tries: 3, applied: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _, _ := rig(t, &ddbtest.Wire{Op: "TransactWriteItems", Sent: c.sent}, c.tries)
			change := first(t, s)
			err := s.Apply(t.Context(), change, audit.Event{ID: "genesis"})
			if (err != nil) != c.fails || errors.Is(err, kek.ErrConflict) {
				t.Fatalf("Apply: %v", err)
			}
			v, err := s.Load(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			if (v.Pointer != nil) != c.applied || (records(t, s) == 1) != c.applied {
				t.Fatalf("pointer %v, %d records, want applied %v", v.Pointer, records(t, s), c.applied)
			}
			if !c.applied {
				return
			}
			if err := s.Apply(t.Context(), change, audit.Event{ID: "genesis"}); !errors.Is(err, kek.ErrConflict) || !strings.Contains(err.Error(), "POINTER") {
				t.Fatalf("Apply again: %v, want ErrConflict that names the pointer", err)
			}
			if records(t, s) != 1 {
				t.Fatal("recorded twice")
			}
		})
	}
}

// TestLoadOnABrokenWire: reads are repeated.
func TestLoadOnABrokenWire(t *testing.T) {
	s, _, _ := rig(t, &ddbtest.Wire{Op: "TransactGetItems", Sent: true}, 3)
	first(t, s)
}

// TestSingleWritesOnABrokenWire: the SDK repeats a conditional write whose answer
// was lost; it fails its own condition, which the caller must survive.
func TestSingleWritesOnABrokenWire(t *testing.T) {
	expires := storetest.Clock()()
	lease := rotation.Lease{KEK: "kek-0", Holder: "a", Expires: expires}

	t.Run("SaveCheckpoint", func(t *testing.T) {
		s, _, _ := rig(t, &ddbtest.Wire{Op: "PutItem", Sent: true}, 3)
		c := rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "p", Cursor: "here"}
		if err := s.SaveCheckpoint(t.Context(), c); !errors.Is(err, kek.ErrConflict) {
			t.Fatalf("%v, want ErrConflict", err)
		}
		if got, err := s.LoadCheckpoint(t.Context(), "r", "s", "p", 0); err != nil || got.Rev != 1 || got.Cursor != "here" {
			t.Fatalf("%v, %v: the save must have been made", got, err)
		}
	})
	t.Run("Revoke", func(t *testing.T) {
		s, data, _ := rig(t, &ddbtest.Wire{Op: "DeleteItem", Sent: true}, 3)
		if err := data.PutLease(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		if ok, err := s.Revoke(t.Context(), lease); err != nil || ok {
			t.Fatalf("%v, %v, want false", ok, err)
		}
		if left, err := s.Leases(t.Context(), "kek-0"); err != nil || len(left) != 0 {
			t.Fatalf("%v, %v: the lease must be gone", left, err)
		}
	})
	t.Run("MarkPublished", func(t *testing.T) {
		s, _, _ := rig(t, &ddbtest.Wire{Op: "UpdateItem", Sent: true}, 3)
		if err := s.Record(t.Context(), audit.Event{ID: "a"}); err != nil {
			t.Fatal(err)
		}
		if err := s.MarkPublished(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNoControlTable: every operation on a table that is not there says so.
func TestNoControlTable(t *testing.T) {
	client := ddbtest.Client(t)
	s := ddb.New(client, "missing-table", "test", storetest.Clock())
	ctx := t.Context()
	lease := rotation.Lease{KEK: "k", Holder: "h"}
	calls := map[string]func() error{
		"Load":         func() error { _, err := s.Load(ctx, "r"); return err },
		"LoadAll":      func() error { _, err := s.LoadAll(ctx, "r"); return err },
		"Sources":      func() error { _, err := s.Sources(ctx); return err },
		"Marks":        func() error { _, err := s.Marks(ctx); return err },
		"Apply":        func() error { return s.Apply(ctx, kek.Change{Lock: kek.LockIgnore}, audit.Event{}) },
		"Record":       func() error { return s.Record(ctx, audit.Event{}) },
		"Unpublished":  func() error { _, _, err := s.Unpublished(ctx); return err },
		"AuditEntries": func() error { _, err := s.AuditEntries(ctx, 1); return err },
		"Begin": func() error {
			return s.Begin(ctx, audit.Line{Chain: "c"}, audit.Head{}, audit.Generation{From: 1}, audit.Event{})
		},
		"MarkPublished":   func() error { return s.MarkPublished(ctx, 1) },
		"Head":            func() error { _, _, err := s.Head(ctx); return err },
		"KEKs":            func() error { _, err := s.KEKs(ctx); return err },
		"Rotations":       func() error { _, err := s.Rotations(ctx); return err },
		"Leases":          func() error { _, err := s.Leases(ctx, "k"); return err },
		"Revoke":          func() error { _, err := s.Revoke(ctx, lease); return err },
		"SealFence":       func() error { return s.SealFence(ctx, "k", 0) },
		"LoadCheckpoint":  func() error { _, err := s.LoadCheckpoint(ctx, "r", "s", "p", 0); return err },
		"SaveCheckpoint":  func() error { return s.SaveCheckpoint(ctx, rotation.Checkpoint{}) },
		"ListCheckpoints": func() error { _, err := s.ListCheckpoints(ctx, "r", "s", "p"); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, journal.ErrNoControlTable) {
			t.Errorf("%s: %v, want ErrNoControlTable", name, err)
		}
	}
}

// TestWrongChain: a table never mixes two chains.
func TestWrongChain(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.ControlTable(t, client)
	if err := ddb.New(client, table, "one", storetest.Clock()).Record(t.Context(), audit.Event{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	other := ddb.New(client, table, "two", storetest.Clock())
	var typed *journal.Error
	if err := other.Record(t.Context(), audit.Event{ID: "b"}); !errors.As(err, &typed) || typed.Kind != journal.Misconfigured {
		t.Errorf("Record: %v, want Misconfigured", err)
	}
	if _, _, err := other.Head(t.Context()); !errors.As(err, &typed) || typed.Kind != journal.Misconfigured {
		t.Errorf("Head: %v, want Misconfigured", err)
	}
}

// TestDamagedOutbox: a record that somebody changed in the table is not published.
func TestDamagedOutbox(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.ControlTable(t, client)
	store := ddb.New(client, table, "test", storetest.Clock())
	if err := store.Record(t.Context(), audit.Event{ID: "a", Actor: "mallory"}); err != nil {
		t.Fatal(err)
	}
	key := item{"pk": &s{Value: "AUDIT"}, "sk": &s{Value: "000000000001"}}
	whole := get(t, client, table, key)
	original := string(whole["record"].(*b).Value)
	for name, bytes := range map[string]string{
		"another actor": strings.Replace(original, "mallory", "alice", 1),
		"white space":   original + " ",
		"not JSON":      "{",
		"empty":         "",
	} {
		whole["record"] = &b{Value: []byte(bytes)}
		put(t, client, table, whole)
		_, _, err := store.Unpublished(t.Context())
		var typed *journal.Error
		if !errors.As(err, &typed) || typed.Kind != journal.AuditTampered || typed.Field != "AUDIT/000000000001" {
			t.Errorf("%s: %v, want AuditTampered", name, err)
		}
	}
	_, err := client.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
		TableName: &table, Key: key, UpdateExpression: aws.String("SET #r = :s"),
		ExpressionAttributeNames: map[string]string{"#r": "record"}, ExpressionAttributeValues: item{":s": &s{Value: original}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := store.Unpublished(t.Context()); err == nil {
		t.Error("a record of another type was accepted")
	}
}
