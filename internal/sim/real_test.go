package sim

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/memddb"
	"github.com/matter-ops/kms-rotation/internal/memstore"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The second place: internal/ddb and package envelope as they are shipped, on a
// DynamoDB in memory, in a bubble of virtual time. The schedule decides about the
// same calls by the same names, before each and after it.

const (
	controlTable = "control"
	rowTable     = "rows"
)

var sourceConfig = ddb.SourceConfig{
	Name: "rows", Table: rowTable, KEKID: "kek_id", WrappedDEK: "dek", Ciphertext: "data",
	Context: map[string]string{"table": "rows", "id": "$id"}, Format: "matter",
}

// ended is what a run in the second place has come to.
type ended struct {
	calls int
	v     *Violation
	story string
}

// amidAdapters runs a schedule in the second place, in a bubble of its own.
func amidAdapters(t *testing.T, s Schedule, tell bool) (e ended) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		time.Sleep(time.Until(began()))
		r := emptyRun(s)
		if tell {
			r.story = &strings.Builder{}
			r.tell("schedule: %s", s)
		}
		procs := r.toAdapters()
		r.settle()
		r.mine = true
		r.begin(1, false, "") // so that the service has a data key of before
		procs.finish(1)
		r.mine = false
		r.play()
		procs.stop()
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
func (r *run) toAdapters() *processes {
	db := memddb.New()
	for _, name := range []string{controlTable, rowTable} {
		in := &dynamodb.CreateTableInput{TableName: aws.String(name)}
		keys := []string{"id"}
		if name == controlTable {
			keys = []string{"pk", "sk"}
		}
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
	world := memstore.New(chain, r.clock) // without a hook: the calls of steps are hooked here
	source, err := ddb.NewTableSource(db, sourceConfig)
	r.must(err)
	h := &hooked{r: r}
	store := &realStore{hooked: h, Store: ddb.New(&recorded{DB: db, r: r}, controlTable, chain, r.clock), db: db}
	table := &realRows{hooked: h, source: source, db: db}
	r.wire(place{
		world: world, store: store, table: table, vault: &realVault{h, world.Vault()}, keys: &realKeys{h, world.KMS()},
		corpus: &realCorpus{table}, start: "eyJpZCI6eyJTIjoiISJ9fQ", // {"id":{"S":"!"}}
		resolves: func(id kek.ID) bool {
			k, err := world.KMS().Describe(ctx, id)
			return store.state(id).Resolves() && err == nil && k.Enabled
		},
		sleep: func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
			r.now = time.Now().UTC()
		},
		watch: func() { h.watching = true },
	})
	p := &processes{actors: r.actors, db: db}
	r.apps, store.procs = p, p
	return p
}

// hooked lets the schedule decide about a call, and the checker see its effect, as
// memstore does.
type hooked struct {
	r        *run
	watching bool
}

func (h *hooked) call(op string, effect func() (any, error), args ...any) error {
	h.r.now = time.Now().UTC()
	if !h.watching {
		_, err := effect()
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
	db    *memddb.DB
	procs *processes
}

func (s *realStore) Load(c context.Context, id string) (kek.View, error) {
	return asked(s.hooked, "Store.Load", func() (kek.View, error) { return s.Store.Load(c, id) }, id)
}

func (s *realStore) Apply(c context.Context, change kek.Change, ev audit.Event) error {
	return s.call("Store.Apply", func() (any, error) {
		err := s.Store.Apply(c, change, ev)
		_, head, herr := s.Store.Head(ctx)
		s.r.must(herr)
		return head.Seq, err
	}, change, ev)
}

func (s *realStore) Unpublished(c context.Context) ([]audit.Entry, error) {
	return asked(s.hooked, "Store.Unpublished", func() ([]audit.Entry, error) { return s.Store.Unpublished(c) })
}

func (s *realStore) MarkPublished(c context.Context, seq int64) error {
	return s.call("Store.MarkPublished", func() (any, error) { return nil, s.Store.MarkPublished(c, seq) }, seq)
}

func (s *realStore) Head(c context.Context) (name string, head audit.Head, err error) {
	err = s.call("Store.Head", func() (any, error) {
		var err error
		name, head, err = s.Store.Head(c)
		return nil, err
	})
	return name, head, err
}

func (s *realStore) Leases(c context.Context, id kek.ID) ([]rotation.Lease, error) {
	return asked(s.hooked, "Store.Leases", func() ([]rotation.Lease, error) { return s.Store.Leases(c, id) }, id)
}

// Revoke checks that what is revoked is what was seen: who has renewed in between
// is alive.
func (s *realStore) Revoke(c context.Context, l rotation.Lease) (done bool, err error) {
	return asked(s.hooked, "Store.Revoke", func() (bool, error) {
		was, there := s.standing(l.KEK)[l.Holder]
		if there && !was.Expires.Equal(l.Expires) {
			s.r.tell("the lease of %s was renewed in between", l.Holder)
		}
		done, err := s.Store.Revoke(c, l)
		if done && there && !was.Expires.Equal(l.Expires) {
			s.r.violated("DrainRevokes", "%s had renewed its lease on %s until %s, and the one until %s is revoked", l.Holder, l.KEK,
				was.Expires.Format(time.TimeOnly), l.Expires.Format(time.TimeOnly))
		}
		return done, err
	}, l)
}

// SealFence tells the checker which leases stand.
func (s *realStore) SealFence(c context.Context, id kek.ID, n int) error {
	return s.call("Store.SealFence", func() (any, error) {
		clear(s.r.check.leases)
		for _, l := range s.standing(id) {
			s.r.check.leases[l] = true
		}
		s.waited(id)
		return nil, s.Store.SealFence(c, id, n)
	}, id, n)
}

// waited: DrainWaits. The process that is alive renews its lease, so nothing may be
// sealed under what it is about to write, unless in an emergency or by a wrong clock.
func (s *realStore) waited(id kek.ID) {
	e := s.procs.writers[1]
	if e == nil || e.under != id || s.r.skewed {
		return
	}
	all, err := s.Rotations(ctx)
	s.r.must(err)
	for _, rot := range all {
		if rot.OldKEK == id && rot.Mode == kek.Emergency {
			return
		}
	}
	s.r.violated("DrainWaits", "the fence of %s is being sealed while the service, which is alive, is about to write row %s", id, e.id)
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

// standing are the leases on a KEK by holder.
func (s *realStore) standing(id kek.ID) map[string]rotation.Lease {
	ls, err := s.Store.Leases(ctx, id)
	s.r.must(err)
	out := map[string]rotation.Lease{}
	for _, l := range ls {
		out[l.Holder] = l
	}
	return out
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

// recorded is DynamoDB under the steps. Every write of it that changes the registry
// moves the head of the audit chain too: EveryEffectRecorded, between any two writes.
type recorded struct {
	*memddb.DB
	r *run
}

func registry(table *string, i memddb.Item) bool {
	pk := text(i["pk"])
	return aws.ToString(table) == controlTable &&
		(pk == "POINTER" || pk == "LOCK" || strings.HasPrefix(pk, "KEK#") || strings.HasPrefix(pk, "ROTATION#"))
}

func (d *recorded) PutItem(c context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	out, err := d.DB.PutItem(c, in, o...)
	d.alone(err, registry(in.TableName, in.Item), in.Item)
	return out, err
}

func (d *recorded) UpdateItem(c context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	out, err := d.DB.UpdateItem(c, in, o...)
	d.alone(err, registry(in.TableName, in.Key), in.Key)
	return out, err
}

func (d *recorded) DeleteItem(c context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	out, err := d.DB.DeleteItem(c, in, o...)
	d.alone(err, registry(in.TableName, in.Key), in.Key)
	return out, err
}

func (d *recorded) alone(err error, touched bool, i memddb.Item) {
	if err == nil && touched {
		d.r.violated("EveryEffectRecorded", "%s is written without a record", text(i["pk"]))
	}
}

func (d *recorded) TransactWriteItems(c context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	out, err := d.DB.TransactWriteItems(c, in, o...)
	var touched memddb.Item
	head := false
	for _, i := range in.TransactItems {
		switch {
		case i.Put != nil && registry(i.Put.TableName, i.Put.Item):
			touched = i.Put.Item
		case i.Delete != nil && registry(i.Delete.TableName, i.Delete.Key):
			touched = i.Delete.Key
		case i.Update != nil && registry(i.Update.TableName, i.Update.Key):
			touched = i.Update.Key
		case i.Update != nil && text(i.Update.Key["pk"]) == "AUDIT_HEAD":
			head = true
		}
	}
	d.alone(err, touched != nil && !head, touched)
	return out, err
}
