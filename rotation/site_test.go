package rotation_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

const (
	chain   = "test"
	spring  = "Q2-2026-rotation" // the first rotation's id
	summer  = "Q3-2026-rotation" // the one after it
	shards  = 2
	limit   = 3 // mint attempts of an emergency
	maxWait = 30 * time.Minute
)

// clock is a clock that stands still until it is told to continue.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// site is one deployment with rows: everything a rotation touches.
type site struct {
	forged bool // the test itself writes records or the control table: its chain is none of the protocol

	*rotation.Steps
	Scheduler *rotation.Scheduler
	t         *testing.T
	world     *memstore.World
	store     *memstore.Store
	vault     *memstore.Vault
	kms       *memstore.KMS
	orders    *memstore.Table
	people    *memstore.Table
	corpus    *memstore.Table
	tables    []*memstore.Table // these and others that a test makes, sources or not
	clock     *clock
	first     kek.ID // the genesis KEK

	mu    sync.Mutex
	plain map[place]string // what each row opens to
	mail  []string         // subjects of notifications
}

// place is one row.
type place struct {
	table *memstore.Table
	id    string
}

// newSite returns a deployment after genesis, with rows and a corpus under the
// first KEK. Its clock stands at 02:00 UTC, within the window.
func newSite(t *testing.T) *site {
	t.Helper()
	return newSiteAt(t, time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC))
}

// newSiteAt is newSite with a genesis at another time.
func newSiteAt(t *testing.T, genesis time.Time) *site {
	t.Helper()
	c := &clock{at: genesis}
	w := memstore.New(chain, c.now)
	s := &site{
		t: t, world: w, store: w.Store(), vault: w.Vault(), kms: w.KMS(), clock: c, plain: map[place]string{},
		orders: w.NewTable("orders"), people: w.NewTable("people"), corpus: w.NewTable("corpus"),
	}
	s.tables = []*memstore.Table{s.orders, s.people, s.corpus}
	window, err := gates.ParseWindow("01:00-05:00", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal.Journal{Registry: s.store, Outbox: s.store, AuditBucket: s.vault, Notifier: s, Now: c.now, Actor: "test"}
	s.Steps = &rotation.Steps{
		Config: rotation.Config{
			DrainMaxWait: maxWait, DrainPoll: 15 * time.Second, DeleteHold: 90 * 24 * time.Hour,
			Segments: 2, FenceShards: shards, MaxMints: limit, CanaryRounds: 2,
		},
		Journal:  j,
		Gates:    gates.Gates{Rules: gates.Rules{Window: window}, Journal: j, Announcements: s.store, Drills: s.store, Approvals: s.store, HealthLog: s.store},
		Keys:     keyring.Keyring{Admin: s.kms, Wrapper: s.kms, Cipher: aead.Cipher{}, Random: func(b []byte) { copy(b, "known plaintext") }},
		Drainage: s.store, Checkpoints: rotation.SealCheckpoints(s.store, memstore.CheckpointKeys{}), Archive: s.store, OpenSource: w.Open,
	}
	s.Scheduler = &rotation.Scheduler{Journal: j, Gates: &s.Gates}
	k, err := s.kms.Create(as("person"), "", 0, "genesis", keyring.Key{})
	if err != nil {
		t.Fatal(err)
	}
	s.first = k.ID
	if _, err := s.Genesis(as("person"), k.ID, "genesis", []kek.Source{s.orders.Source(), s.people.Source(), s.known()}); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		s.insert(s.orders, fmt.Sprintf("o%d", i))
		s.insert(s.people, fmt.Sprintf("p%d", i))
	}
	s.insert(s.corpus, "known-1.json")
	s.insert(s.corpus, "known-2.json")
	s.orders.Plant("settings", memstore.Record{Other: true})
	t.Cleanup(s.replayChain)
	return s
}

// replayChain requires that each record of the chain is a step of spec/evidence.tla, whatever
// the test has done, unless the test itself forges records or changes the control table.
func (s *site) replayChain() {
	if s.forged || s.t.Failed() {
		return
	}
	s.world.SetHook(nil) // no fault of the test's is meant here
	var run replay.Run
	for _, e := range must(s.store.AuditEntries(context.Background(), 1)) {
		run.Take(e)
	}
	for _, f := range run.Report().Findings {
		s.t.Error(f)
	}
}

// as is the context of a call by a function, an application or a person.
func as(caller string) context.Context {
	return memstore.WithCaller(context.Background(), caller)
}

// known is the definition of the corpus.
func (s *site) known() kek.Source {
	def := s.corpus.Source()
	def.Kind = memstore.KindCorpus
	return def
}

// newTable makes a table that is not a source yet, with rows under a KEK.
func (s *site) newTable(name string, under kek.ID, rows ...string) *memstore.Table {
	s.t.Helper()
	table := s.world.NewTable(name)
	s.tables = append(s.tables, table)
	for _, id := range rows {
		s.plant(table, id, under)
	}
	return table
}

// add registers a table as a source.
func (s *site) add(table *memstore.Table) {
	s.t.Helper()
	if _, err := s.AddSource(as("person"), table.Source()); err != nil {
		s.t.Fatal(err)
	}
}

// past registers a historic KEK, under which there is a row.
func (s *site) past(label string) kek.ID {
	s.t.Helper()
	k := must(s.kms.Create(as("person"), "", 0, label, keyring.Key{}))
	s.must(s.RegisterKEK(as("person"), k.ID, label))
	s.plant(s.orders, "of "+label, k.ID)
	return k.ID
}

// mark is what an application leaves that writes into a table.
func (s *site) mark(table string) {
	s.t.Helper()
	s.must(s.store.Mark(as("application"), kek.Mark{Table: table, Holder: "app", SeenAt: s.clock.now()}))
}

// view reads the whole registry.
func (s *site) view(id string) kek.View {
	s.t.Helper()
	return must(s.store.LoadAll(s.t.Context(), id))
}

// TellPeople implements [journal.Notifier].
func (s *site) TellPeople(_ context.Context, n journal.Notice) error {
	subject, _ := notify.ComposeMessage(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mail = append(s.mail, subject)
	return nil
}

// seal makes a row of the given table under a KEK, with a fresh DEK.
func (s *site) seal(table *memstore.Table, id string, under kek.ID, epoch int64, plain string) memstore.Record {
	s.t.Helper()
	encctx := map[string]string{"table": table.Name(), "id": id}
	dek, wrapped, err := s.kms.GenerateDataKey(as("application"), under, encctx)
	if err != nil {
		s.t.Fatalf("seal %s under %s: %v", id, under, err)
	}
	ct, err := s.Keys.Cipher.Seal(dek, []byte(plain), encctx)
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(plain))
	return memstore.Record{
		KEK: under, Epoch: epoch, WrappedDEK: wrapped, Ciphertext: ct, Context: encctx, PlainSHA: hex.EncodeToString(sum[:]),
	}
}

func (s *site) expect(table *memstore.Table, id, plain string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plain[place{table, id}] = plain
}

// insert writes a row as an application does: under the pointer's KEK, fenced.
func (s *site) insert(table *memstore.Table, id string) {
	s.t.Helper()
	p := s.pointer()
	plain := "secret of " + id
	if err := table.Insert(as("application"), id, s.seal(table, id, p.KEKID, p.Epoch, plain), 0); err != nil {
		s.t.Fatal(err)
	}
	s.expect(table, id, plain)
}

// plant writes a row past the fence, as a restored backup would.
func (s *site) plant(table *memstore.Table, id string, under kek.ID) {
	s.t.Helper()
	plain := "restored " + id
	r := s.seal(table, id, under, 1, plain)
	r.Version = 1
	table.Plant(id, r)
	s.expect(table, id, plain)
}

// remove deletes a row permanently.
func (s *site) remove(table *memstore.Table, id string) {
	s.t.Helper()
	if err := table.Delete(as("application"), id); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.plain, place{table, id})
}

func (s *site) pointer() kek.Pointer {
	s.t.Helper()
	p, err := s.store.Pointer(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// record is a rotation's record, which must exist.
func (s *site) record(id string) kek.Rotation {
	s.t.Helper()
	v, err := s.store.Load(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	if v.Rotation == nil {
		s.t.Fatalf("rotation %s has no record", id)
	}
	return *v.Rotation
}

func (s *site) state(id kek.ID) kek.State {
	s.t.Helper()
	st, err := s.store.KEKState(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *site) enabled(id kek.ID) bool {
	s.t.Helper()
	k, err := s.kms.Describe(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return k.Enabled
}

// phase fails the test unless the rotation stands at want.
func (s *site) phase(id string, want kek.Phase) {
	s.t.Helper()
	if got := s.record(id).Phase; got != want {
		s.t.Fatalf("rotation %s is at %q, want %q", id, got, want)
	}
}

// wantKind fails the test unless err is a [*journal.Error] of that kind.
func wantKind(t *testing.T, err error, want journal.Kind) {
	t.Helper()
	if e := typed(err); e.Kind != want {
		t.Fatalf("error %v, want kind %s", err, want)
	}
}

// typed is the [*journal.Error] in err, a zero one if there is none.
func typed(err error) *journal.Error {
	e := &journal.Error{}
	errors.As(err, &e)
	return e
}
