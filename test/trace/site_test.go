package trace_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
	"github.com/matter-ops/kms-rotation/test/trace"
)

const (
	id     = "Q2-2026-rotation"
	shards = 2
)

// site is a recorded deployment with rows.
type site struct {
	*rotation.Steps
	t        *testing.T
	world    *memstore.World
	orders   *memstore.Table
	recorder *trace.Recorder
	at       time.Time
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, at: time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)}
	now := func() time.Time { return s.at }
	s.world = memstore.New("test", now)
	s.orders = s.world.NewTable("orders")
	store, kms := s.world.Store(), s.world.KMS()
	var err error
	if s.recorder, err = trace.Record(t.Context(), s.world, s.orders); err != nil {
		t.Fatal(err)
	}
	j := &journal.Journal{Registry: store, Outbox: store, AuditBucket: s.world.Vault(), Now: now, Actor: "test"}
	s.Steps = &rotation.Steps{
		Config: rotation.Config{
			DrainMaxWait: time.Hour, DeleteHold: time.Hour, Segments: 2, FenceShards: shards, MaxMints: 3, CanaryRounds: 1,
		},
		Journal: j, Gates: gates.Gates{Journal: j}, Drainage: store, Checkpoints: rotation.SealCheckpoints(store, memstore.CheckpointKeys{}), Archive: store, OpenSource: s.world.Open,
		Keys: keyring.Keyring{Admin: kms, Wrapper: kms, Cipher: aead.Cipher{}, Random: func(b []byte) { copy(b, "known plaintext") }},
	}
	k, err := kms.Create(s.as(trace.Person), "", 0, "genesis", keyring.Key{})
	s.must(err)
	_, err = s.Genesis(s.as(trace.Person), k.ID, "genesis", []kek.Source{s.orders.Source()})
	s.must(err)
	for i := range 3 {
		s.must(s.insert(fmt.Sprintf("o%d", i), s.pointer(), 0))
	}
	return s
}

// as is the context of a caller.
func (s *site) as(caller string) context.Context {
	return memstore.WithCaller(s.t.Context(), caller)
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) pointer() kek.Pointer {
	s.t.Helper()
	p, err := s.world.Store().Pointer(s.t.Context())
	s.must(err)
	return p
}

// seal makes a row under the pointer that its writer loaded, which may be stale.
func (s *site) seal(row string, p kek.Pointer) memstore.Record {
	s.t.Helper()
	encctx := map[string]string{"id": row}
	dek, wrapped, err := s.Keys.Wrapper.GenerateDataKey(s.as(trace.Application), p.KEKID, encctx)
	s.must(err)
	ct, err := s.Keys.Cipher.Seal(dek, []byte("secret"), encctx)
	s.must(err)
	return memstore.Record{KEK: p.KEKID, Epoch: p.Epoch, WrappedDEK: wrapped, Ciphertext: ct, Context: encctx}
}

func (s *site) insert(row string, p kek.Pointer, shard int) error {
	return s.orders.Insert(s.as(trace.Application), row, s.seal(row, p), shard)
}

func (s *site) update(row string, p kek.Pointer) error {
	was, ok, err := s.orders.Get(s.as(trace.Application), row)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("row %s exists: %v", row, ok))
	}
	return s.orders.Update(s.as(trace.Application), row, was.Version, s.seal(row, p))
}

func (s *site) lease(holder string, p kek.Pointer) rotation.Lease {
	l := rotation.Lease{KEK: p.KEKID, Holder: holder, Refs: 1, Expires: s.at.Add(time.Minute)}
	s.must(s.world.Store().PutLease(s.as(trace.Application), l))
	return l
}

// The steps in order, each until it says that it is done.

func (s *site) start(rotationID, mode string) {
	s.t.Helper()
	_, err := s.Preflight(s.as("preflight"), rotation.PreflightInput{
		ExecutionName: rotationID, ExecutionARN: "arn/" + rotationID,
		Input: rotation.ExecutionInput{Mode: mode, Reason: "why", Window: "any"},
	})
	s.must(err)
}

func (s *site) in() rotation.StepInput { return rotation.StepInput{RotationID: id} }

func (s *site) toTested(mode string) {
	s.t.Helper()
	s.start(id, mode)
	s.rehearsed(id)
	_, err := s.DualUnwrap(s.as("dualunwrap"), s.in())
	s.must(err)
}

// rehearsed takes a rotation that has started through census, mint and rehearsal.
func (s *site) rehearsed(rotationID string) {
	s.t.Helper()
	_, err := s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: rotationID, Census: true})
	s.must(err)
	_, err = s.Mint(s.as("mint"), rotation.StepInput{RotationID: rotationID})
	s.must(err)
	_, err = s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: rotationID, Rehearse: true})
	s.must(err)
}

func (s *site) switched() {
	s.t.Helper()
	_, err := s.Switch(s.as("switch"), s.in())
	s.must(err)
}

func (s *site) drained() {
	s.t.Helper()
	for range 10 {
		out, err := s.Drain(s.as("drain"), s.in())
		s.must(err)
		if out.Done {
			return
		}
		s.at = s.at.Add(time.Minute)
	}
	s.t.Fatal("drain does not end")
}

func (s *site) rewrapped() {
	s.t.Helper()
	for i := range 2 {
		_, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Source: "orders", Segment: i})
		s.must(err)
	}
	_, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Complete: true})
	s.must(err)
}

func (s *site) retired() {
	s.t.Helper()
	for range 10 {
		out, err := s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id})
		s.must(err)
		if out.Done {
			return
		}
	}
	s.t.Fatal("retire does not end")
}

func (s *site) verified() {
	s.t.Helper()
	_, err := s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: id})
	s.must(err)
}

// check has the model look at runs, or skips where TLC is not installed.
func check(t *testing.T, runs ...[]trace.Event) []trace.Verdict {
	t.Helper()
	verdicts, err := trace.Check(context.WithoutCancel(t.Context()), runs...)
	tlctest.Must(t, err)
	return verdicts
}
