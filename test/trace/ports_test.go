package trace_test

import (
	"context"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// The bugs of this file were planted in ports by a reviewer. The steps, and Verify
// among them, saw nothing of most of them.

// portedSource is a source with a bug.
type portedSource struct {
	source.Driver
	replace func(ctx context.Context, old source.Row, with source.Rewrapped) (bool, error)
	scan    func(ctx context.Context, req source.ScanRequest) (source.Page, error)
}

func (p portedSource) Replace(ctx context.Context, old source.Row, with source.Rewrapped) (bool, error) {
	if p.replace == nil {
		return p.Driver.Replace(ctx, old, with)
	}
	return p.replace(ctx, old, with)
}

func (p portedSource) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	if p.scan == nil {
		return p.Driver.Scan(ctx, req)
	}
	return p.scan(ctx, req)
}

// port lets every source that is opened from here on be what f makes of it.
func (s *site) port(f func(*memstore.Table) source.Driver) {
	s.OpenSource = func(kek.Source) (source.Driver, error) { return f(s.orders), nil }
}

// deleting deletes every row instead of moving it, and says that it was moved.
func deleting(s *site) {
	s.port(func(table *memstore.Table) source.Driver {
		return portedSource{Driver: table, replace: func(ctx context.Context, old source.Row, _ source.Rewrapped) (bool, error) {
			return true, table.Delete(ctx, old.ID)
		}}
	})
}

// blind reads nothing once the rows are rewrapped: the second scan and the last one find
// nothing to say.
func blind(s *site) {
	s.port(func(table *memstore.Table) source.Driver {
		return portedSource{Driver: table, scan: func(ctx context.Context, req source.ScanRequest) (source.Page, error) {
			v, err := s.world.Store().Load(ctx, id)
			if err == nil && v.Rotation != nil && v.Rotation.Phase.Reached(kek.Rewrapped) {
				return source.Page{}, nil
			}
			return table.Scan(ctx, req)
		}}
	})
}

// forgetful marks records as published that it has not put.
type forgetful struct{ journal.AuditBucket }

func (forgetful) Put(context.Context, string, audit.Entry) error { return nil }

// garbled writes bytes that wrap nothing into every row but the first.
func garbled(s *site) {
	n := 0
	s.port(func(table *memstore.Table) source.Driver {
		return portedSource{Driver: table, replace: func(ctx context.Context, old source.Row, with source.Rewrapped) (bool, error) {
			if n++; n > 1 {
				with.WrappedDEK = append([]byte(nil), with.WrappedDEK...)
				with.WrappedDEK[len(with.WrappedDEK)-1]++
			}
			return table.Replace(ctx, old, with)
		}}
	})
}

// stingy is a KMS that gives the DEK which it has just unwrapped for a fresh one.
type stingy struct {
	keyring.Wrapper
	from    kek.ID
	wrapped []byte
	dek     []byte
}

func (k *stingy) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	dek, err := k.Wrapper.Decrypt(ctx, id, wrapped, encctx)
	k.from, k.wrapped, k.dek = id, wrapped, append([]byte(nil), dek...)
	return dek, err
}

func (k *stingy) GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	if caller := "orders"; k.wrapped != nil && encctx["id"] != "" && caller != "" && k.from != id {
		if wrapped, err = k.ReEncrypt(ctx, k.from, id, k.wrapped, encctx); err == nil {
			return append([]byte(nil), k.dek...), wrapped, nil
		}
	}
	return k.Wrapper.GenerateDataKey(ctx, id, encctx)
}

// TestPortedBugsAreRejected runs rotations over a port with one of these bugs to wherever
// they come to, and has the model look at what they did.
func TestPortedBugsAreRejected(t *testing.T) {
	bugs := []struct {
		name, mode string
		plant      func(*site)
		at         string
	}{
		{"rewrap deletes every row", "normal", deleting, "Table.Delete"},
		{"the later scans read nothing", "normal", blind, "Store.SaveCheckpoint"},
		{"no record is put", "normal", func(s *site) { s.Journal.AuditBucket = forgetful{s.Journal.AuditBucket} }, "Store.MarkPublished"},
		{"what is written wraps nothing", "normal", garbled, "Table.Replace"},
		{"an emergency keeps the exposed DEKs", "emergency", func(s *site) { s.Keys.Wrapper = &stingy{Wrapper: s.Keys.Wrapper} }, "Table.Replace"},
	}
	var runs [][]trace.Event
	var ends []error
	for _, b := range bugs {
		s := newSite(t)
		b.plant(s)
		ends = append(ends, s.run(id, b.mode))
		runs = append(runs, s.recorder.Events())
	}
	for i, v := range check(t, runs...) {
		if v.Accepted || v.Event.Effect != bugs[i].at {
			t.Errorf("%s: %s, want it rejected at %q", bugs[i].name, v, bugs[i].at)
		}
		t.Logf("%-40s the rotation says %v; the model: %s", bugs[i].name, ends[i], v)
	}
}

// run is a whole rotation, or what is left of it; the error is of the step that stops it.
func (s *site) run(rotationID, mode string) error {
	until := func(step func() (bool, error)) error {
		for range 10 {
			if done, err := step(); done || err != nil {
				return err
			}
			s.at = s.at.Add(60e9)
		}
		return nil
	}
	in := rotation.StepInput{RotationID: rotationID}
	for _, step := range []func() (bool, error){
		func() (bool, error) {
			if v, err := s.world.Store().Load(s.as(trace.Person), rotationID); err != nil || v.Rotation != nil {
				return true, err
			}
			_, err := s.Preflight(s.as("preflight"), rotation.PreflightInput{
				ExecutionName: rotationID, Input: rotation.ExecutionInput{Mode: mode, Reason: "why", Window: "any"},
			})
			return true, err
		},
		func() (bool, error) {
			out, err := s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: rotationID, Census: true})
			return out.Done, err
		},
		func() (bool, error) { _, err := s.Mint(s.as("mint"), in); return true, err },
		func() (bool, error) {
			_, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: rotationID, Rehearse: true})
			return true, err
		},
		func() (bool, error) { _, err := s.DualUnwrap(s.as("dualunwrap"), in); return true, err },
		func() (bool, error) { _, err := s.Switch(s.as("switch"), in); return true, err },
		func() (bool, error) { out, err := s.Drain(s.as("drain"), in); return out.Done, err },
		func() (bool, error) {
			_, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: rotationID, Complete: true})
			return true, err
		},
		func() (bool, error) {
			out, err := s.Retire(s.as("retire"), rotation.RetireInput{RotationID: rotationID})
			return out.Done, err
		},
		func() (bool, error) {
			out, err := s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: rotationID})
			return out.Done, err
		},
	} {
		if err := until(step); err != nil {
			return err
		}
	}
	return nil
}
