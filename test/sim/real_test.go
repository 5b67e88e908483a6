package sim

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// The second place: internal/ddb and package envelope as they are shipped, on a
// DynamoDB in memory, in a bubble of virtual time. The schedule decides about the
// same calls by the same names, before each and after it.

const (
	controlTable = "control"
	rowTable     = "rows"
)

// tableConfig is the definition of either table, which have the same attributes.
func tableConfig(name string) dynamosource.Config {
	return dynamosource.Config{
		Name: name, Table: name, KEKID: "kek_id", WrappedDEK: "dek", Ciphertext: "data",
		Context: map[string]string{"table": name, "id": "$id"}, Format: "matter",
	}
}

// ended is what a run in the second place has come to.
type ended struct {
	calls int
	v     *Violation
	story string
	keys  *keyRecords // of a run with keyed rows
}

// amidAdapters runs a schedule in the second place, in a bubble of its own.
func amidAdapters(t *testing.T, s Schedule, tell bool) ended {
	t.Helper()
	return amid(t, s, tell, "adapters")
}

// amidRequests is the same with the schedule deciding about the requests to DynamoDB
// instead of the calls of its adapters: most of these are several.
func amidRequests(t *testing.T, s Schedule, tell bool) ended {
	t.Helper()
	return amid(t, s, tell, "requests")
}

func amid(t *testing.T, s Schedule, tell bool, name string) (e ended) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(began()))
		r := emptyRun(s)
		if tell {
			r.story = &strings.Builder{}
			r.tell("schedule: %s", s)
		}
		draw := rand.New(rand.NewPCG(1, 1))
		r.context = remote.WithJitter(ctx, draw.Int64N)
		procs := r.toAdapters(t, name)
		r.settle()
		r.mine = true
		r.begin(1, task{}) // so that the service has a data key of before
		procs.finish(1)
		if r.keyed != nil {
			r.begin(0, task{insert: true, id: "old-1"})
			procs.finish(0)
		}
		r.mine = false
		r.play()
		procs.stop()
		e.keys, _ = r.keyed.(*keyRecords)
		if e.calls, e.v = r.call, r.failed; tell {
			if r.failed != nil {
				r.tell("VIOLATED %v", r.failed)
			} else {
				r.tell("every promise held")
			}
			e.story = r.story.String()
		}
	})
	return e
}

// toAdapters wires a run to the real adapters, and starts applications.
func (r *run) toAdapters(t *testing.T, name string) *processes {
	t.Helper()
	db := memddb.New()
	for table, keys := range map[string][]string{controlTable: {"pk", "sk"}, rowTable: {"id"}, lateTable: {"id"}, deksTable: {keyrecord.AttrPK}} {
		in := &dynamodb.CreateTableInput{TableName: aws.String(table)}
		for i, k := range keys {
			kind := []types.KeyType{types.KeyTypeHash, types.KeyTypeRange}[i]
			in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: aws.String(k), KeyType: kind})
			in.AttributeDefinitions = append(in.AttributeDefinitions, types.AttributeDefinition{
				AttributeName: aws.String(k), AttributeType: types.ScalarAttributeTypeS,
			})
		}
		_, err := db.CreateTable(ctx, in)
		r.must(err)
	}
	// Without a hook: the calls of steps are hooked here. KMS notes when a key was used,
	// by applications too: its clock is the bubble's own.
	world := memstore.New(chain, func() time.Time { return time.Now().UTC() })
	h := &hooked{r: r}
	p := &processes{actors: r.actors, db: db}
	requests := name != "adapters"
	under := &stepsDB{DB: db, hooked: h, procs: p, requests: requests, plain: ddb.New(db, controlTable, chain, r.clock)}
	upper := h
	if requests {
		upper = &hooked{r: r, lower: h}
	}
	store := &realStore{hooked: upper, Store: ddb.New(under, controlTable, chain, r.clock), plain: under.plain, under: under, db: db}
	table := func(c dynamosource.Config) *realRows {
		source, err := dynamosource.New(under, c)
		r.must(err)
		return &realRows{hooked: upper, source: source.FencedBy(controlTable), db: db}
	}
	at := place{
		world: world, store: store, table: table(tableConfig(rowTable)), late: table(tableConfig(lateTable)), vault: &realVault{h, world.Vault()}, keys: &realKeys{h, world.KMS()},
		start: "eyJpZCI6eyJTIjoiISJ9fQ", // {"id":{"S":"!"}}
		resolves: func(id kek.ID) bool {
			k, err := world.KMS().Describe(ctx, id)
			return store.state(id).Resolves() && err == nil && k.Enabled
		},
		sleep: func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
			r.now = time.Now().UTC()
		},
		items: store, recover: under.recover, anchors: func() *anchor.Anchor { return anchoring(t, store.plain, world.Vault()) },
		watch: func() {
			h.watching = true
			under.keep()
		},
	}
	if name == "keyed" || name == recorded {
		rows := table(keyedConfig())
		rows.keys = newKeyRecords(r, under)
		rows.keys.recording = name == recorded
		at.table = rows
		at.keyed = rows.keys
	}
	r.wire(at)
	r.apps = p
	return p
}

// anchoring is a public log and a signing key of its own, for who verifies the chain at
// the end.
func anchoring(t *testing.T, store *ddb.Store, vault *memstore.Vault) *anchor.Anchor {
	t.Helper()
	log := rekortest.New(t)
	return &anchor.Anchor{
		Store: store, Objects: vault, Signer: rekortest.NewKey(t), Log: rekor.New(log.Client(nil)), Recorder: store, Bucket: vault,
		Trust:     audit.Trust{Logs: []audit.Log{log.Trust()}},
		Retention: 24 * time.Hour, Heartbeat: time.Hour, MaxTail: 24 * time.Hour, Deadline: time.Minute,
	}
}

// hooked lets the schedule decide about a call, and the checker see its effect, as
// memstore does.
type hooked struct {
	r        *run
	watching bool
	lower    *hooked // not nil: the schedule decides about the requests to DynamoDB instead
}

func (h *hooked) call(op string, effect func() (any, error), args ...any) error {
	h.r.now = time.Now().UTC()
	if !h.watching {
		result, err := effect()
		if h.lower != nil && h.lower.watching && op == "Store.Leases" { // what drain has seen
			h.r.check.observe(op, result, err, args...)
		}
		return err
	}
	apply, fault := h.r.hook(op, args...)
	if !apply {
		if fault == nil {
			fault = memstore.ErrInjected
		}
		return fault
	}
	result, err := effect()
	h.r.check.observe(op, result, err, args...)
	if fault != nil {
		return fault
	}
	return err
}

// asked is a call that only answers.
func asked[T any](h *hooked, op string, f func() (T, error), args ...any) (out T, err error) {
	err = h.call(op, func() (any, error) {
		var err error
		out, err = f()
		return out, err
	}, args...)
	if err != nil {
		var none T
		return none, err
	}
	return out, nil
}

// realStore is ddb's control table. What only the checker asks goes past the hook.
type realStore struct {
	*ddb.Store
	*hooked
	plain *ddb.Store // past the hook, always
	under *stepsDB
	db    *memddb.DB
}

func (s *realStore) Load(c context.Context, id string) (kek.View, error) {
	return asked(s.hooked, "Store.Load", func() (kek.View, error) { return s.Store.Load(c, id) }, id)
}

func (s *realStore) LoadAll(c context.Context, id string) (kek.View, error) {
	return asked(s.hooked, "Store.LoadAll", func() (kek.View, error) { return s.Store.LoadAll(c, id) }, id)
}

func (s *realStore) Apply(c context.Context, change kek.Change, ev audit.Event) error {
	return s.call("Store.Apply", func() (any, error) {
		err := s.Store.Apply(c, change, ev)
		_, head, herr := s.plain.Head(ctx)
		s.r.must(herr)
		return head.Seq, err
	}, change, ev)
}

func (s *realStore) Record(c context.Context, ev audit.Event) error {
	return s.call("Store.Record", func() (any, error) { return nil, s.Store.Record(c, ev) }, ev)
}

func (s *realStore) Unpublished(c context.Context) (out []audit.Entry, at audit.Line, err error) {
	out, err = asked(s.hooked, "Store.Unpublished", func() ([]audit.Entry, error) {
		var out []audit.Entry
		var err error
		out, at, err = s.Store.Unpublished(c)
		return out, err
	})
	return out, at, err
}

func (s *realStore) Begin(c context.Context, at audit.Line, head audit.Head, g audit.Generation, ev audit.Event) error {
	return s.call("Store.Begin", func() (any, error) {
		err := s.Store.Begin(c, at, head, g, ev)
		_, now, herr := s.plain.Head(ctx)
		s.r.must(herr)
		return now.Seq, err
	}, ev, at, head, g)
}

func (s *realStore) MarkPublished(c context.Context, seq int64) error {
	return s.call("Store.MarkPublished", func() (any, error) { return nil, s.Store.MarkPublished(c, seq) }, seq)
}

func (s *realStore) Head(c context.Context) (at audit.Line, head audit.Head, err error) {
	err = s.call("Store.Head", func() (any, error) {
		var err error
		at, head, err = s.Store.Head(c)
		return nil, err
	})
	return at, head, err
}

func (s *realStore) Examine(c context.Context) ([]doctor.Item, error) {
	return asked(s.hooked, "Store.Examine", func() ([]doctor.Item, error) { return s.Store.Examine(c) })
}

func (s *realStore) Repair(c context.Context, changes []doctor.ItemChange, ev audit.Event) error {
	return s.call("Store.Repair", func() (any, error) { return nil, s.Store.Repair(c, changes, ev) }, changes, ev)
}

func (s *realStore) Leases(c context.Context, id kek.ID) ([]rotation.Lease, error) {
	return asked(s.hooked, "Store.Leases", func() ([]rotation.Lease, error) { return s.Store.Leases(c, id) }, id)
}

func (s *realStore) Revoke(c context.Context, l rotation.Lease) (bool, error) {
	return asked(s.hooked, "Store.Revoke", func() (bool, error) {
		was := s.under.revoking
		s.under.revoking = l
		defer func() { s.under.revoking = was }() // of an invocation that this one is inside of
		return s.Store.Revoke(c, l)
	}, l)
}

func (s *realStore) SealFence(c context.Context, id kek.ID, n int) error {
	return s.call("Store.SealFence", func() (any, error) { return nil, s.Store.SealFence(c, id, n) }, id, n)
}

func (s *realStore) ListSpent(c context.Context) ([]rotation.SpentItem, error) {
	return asked(s.hooked, "Store.ListSpent", func() ([]rotation.SpentItem, error) { return s.Store.ListSpent(c) })
}

func (s *realStore) RemoveSpent(c context.Context, items []rotation.SpentItem, ev audit.Event) error {
	return s.call("Store.RemoveSpent", func() (any, error) { return nil, s.Store.RemoveSpent(c, items, ev) }, items, ev)
}

func (s *realStore) LoadCheckpoint(c context.Context, id, source, pass string, segment int) (rotation.Checkpoint, error) {
	return asked(s.hooked, "Store.LoadCheckpoint", func() (rotation.Checkpoint, error) {
		return s.Store.LoadCheckpoint(c, id, source, pass, segment)
	})
}

func (s *realStore) SaveCheckpoint(c context.Context, cp rotation.Checkpoint) error {
	return s.call("Store.SaveCheckpoint", func() (any, error) { return nil, s.Store.SaveCheckpoint(c, cp) }, cp)
}

func (s *realStore) ListCheckpoints(c context.Context, id, source, pass string) ([]rotation.Checkpoint, error) {
	return asked(s.hooked, "Store.ListCheckpoints", func() ([]rotation.Checkpoint, error) {
		return s.Store.ListCheckpoints(c, id, source, pass)
	})
}

// Fences are read item by item.
func (s *realStore) Fences(id kek.ID) map[int]string {
	out := map[int]string{}
	s.db.Each(controlTable, func(i memddb.Item) {
		if text(i["pk"]) == "FENCE#"+string(id) {
			sk := text(i["sk"])
			out[int(sk[0]-'0')*10+int(sk[1]-'0')] = text(i["state"])
		}
	})
	return out
}

// state is a KEK's in the registry.
func (s *realStore) state(id kek.ID) kek.State {
	out, err := s.db.GetItem(ctx, &dynamodb.GetItemInput{TableName: aws.String(controlTable), Key: memddb.Item{
		"pk": &types.AttributeValueMemberS{Value: "KEK#" + string(id)}, "sk": &types.AttributeValueMemberS{Value: "-"},
	}})
	s.r.must(err)
	return kek.State(text(out.Item["state"]))
}

func text(v types.AttributeValue) string {
	s, _ := v.(*types.AttributeValueMemberS)
	if s == nil {
		return ""
	}
	return s.Value
}
