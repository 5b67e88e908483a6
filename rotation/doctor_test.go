package rotation_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

const control = "control"

// clinic is a deployment whose control table is items, as DynamoDB has them, so that each
// can be deleted and damaged, and the table set back to an earlier time. KMS, rows and
// bucket stay.
type clinic struct {
	*rotation.Steps
	Doctor *doctor.Doctor
	t      *testing.T
	db     *snapshots
	table  *ddb.Store
	world  *memstore.World
	rows   []*memstore.Table
	clock  *clock
	log    *rekortest.Log
	key    *rekortest.Key
	plain  map[string]string // what each row opens to
}

// wire makes the deployment out of a world and the items of a control table.
func (c *clinic) wire(world *memstore.World, items []memddb.Item) {
	c.t.Helper()
	c.db, c.world = &snapshots{DB: memddb.New()}, world
	c.set(items)
	c.table = ddb.New(c.db, control, chain, c.clock.now)
	vault := c.world.Vault()
	j := &journal.Journal{Registry: c.table, Outbox: c.table, AuditBucket: vault, Now: c.clock.now, Actor: "test"}
	keys := c.world.KMS()
	c.Steps = &rotation.Steps{
		Config: rotation.Config{
			DrainMaxWait: maxWait, DrainPoll: 15 * time.Second, DeleteHold: 90 * 24 * time.Hour,
			Segments: 1, FenceShards: shards, MaxMints: limit, CanaryRounds: 1,
		},
		Journal: j,
		Gates: gates.Gates{
			Rules:   gates.Rules{Window: must(gates.ParseWindow("00:00-23:59", time.UTC))},
			Journal: j, Announcements: c.table, Drills: c.table, Approvals: c.table, HealthLog: c.table,
		},
		Anchor: &anchor.Anchor{
			Journal: j, Store: c.table, Objects: vault, Signer: c.key, Log: rekor.New(c.log.Client(nil)), Recorder: c.table, Bucket: vault,
			Trust:     audit.Trust{Logs: []audit.Log{c.log.Trust()}},
			Retention: 24 * time.Hour, Heartbeat: time.Hour, MaxTail: 24 * time.Hour, Deadline: time.Minute,
		},
		Keys:     keyring.Keyring{Admin: keys, Wrapper: keys, Cipher: aead.Cipher{}, Random: func(b []byte) { copy(b, "known plaintext") }},
		Drainage: c.table, Checkpoints: rotation.SealCheckpoints(c.table, memstore.CheckpointKeys{}), Archive: c.table, OpenSource: c.world.Open,
	}
	c.Doctor = &doctor.Doctor{Journal: j, Items: c.table, Keys: keys, Anchor: c.Anchor, FenceShards: shards, DeleteHold: c.Config.DeleteHold}
}

// clone is the deployment again, for one test to hurt.
func (c *clinic) clone(t *testing.T) *clinic {
	t.Helper()
	own := *c
	own.t, own.clock, own.rows, own.plain = t, &clock{at: c.clock.now()}, nil, maps.Clone(c.plain)
	own.wire(c.world.Clone(own.clock.now), c.db.items())
	for _, table := range c.rows {
		own.rows = append(own.rows, table.CloneTo(own.world))
	}
	return &own
}

// snapshots is a DynamoDB that keeps what its control table held after each transaction.
type snapshots struct {
	*memddb.DB
	on    bool
	all   [][]memddb.Item
	reads int                            // transactional ones so far
	after func()                         // runs after each of them
	write func() (apply bool, err error) // decides the fate of each write of several items or of the head; nil: goes through
}

func (d *snapshots) TransactGetItems(ctx context.Context, in *dynamodb.TransactGetItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	out, err := d.DB.TransactGetItems(ctx, in, o...)
	if d.reads++; d.after != nil {
		d.after()
	}
	return out, err
}

func (d *snapshots) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	apply, fault := d.decide()
	if !apply {
		return nil, fault
	}
	out, err := d.DB.TransactWriteItems(ctx, in, o...)
	if fault != nil {
		return nil, fault
	}
	if err == nil && d.on {
		d.all = append(d.all, d.items())
	}
	return out, err
}

func (d *snapshots) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	apply, fault := d.decide()
	if !apply {
		return nil, fault
	}
	out, err := d.DB.UpdateItem(ctx, in, o...)
	if fault != nil {
		return nil, fault
	}
	return out, err
}

// decide decides the fate of a write.
func (d *snapshots) decide() (apply bool, fault error) {
	if d.write == nil {
		return true, nil
	}
	return d.write()
}

func (d *snapshots) items() []memddb.Item {
	var out []memddb.Item
	d.Each(control, func(i memddb.Item) { out = append(out, maps.Clone(i)) })
	return out
}

func newClinic(t *testing.T) *clinic {
	t.Helper()
	c := &clinic{t: t, clock: &clock{at: time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)}, plain: map[string]string{}, log: rekortest.New(t), key: rekortest.NewKey(t)}
	c.wire(memstore.New(chain, c.clock.now), nil)
	k := must(c.world.KMS().Create(t.Context(), "", 0, "genesis", keyring.Key{}))
	var sources []kek.Source
	for _, name := range []string{"orders", "corpus"} {
		table := c.world.NewTable(name)
		c.rows = append(c.rows, table)
		def := table.Source()
		if name == "corpus" {
			def.Kind = memstore.KindCorpus
		}
		sources = append(sources, def)
	}
	must(c.Genesis(t.Context(), k.ID, "genesis", sources))
	for i := range 3 {
		c.plant(fmt.Sprint("row-", i), k.ID)
	}
	return c
}

// plant writes a row into each table.
func (c *clinic) plant(id string, under kek.ID) {
	c.t.Helper()
	for _, table := range c.rows {
		at := table.Name() + "/" + id
		encctx := map[string]string{"at": at}
		dek, wrapped, err := c.Keys.Wrapper.GenerateDataKey(c.t.Context(), under, encctx)
		if err != nil {
			c.t.Fatal(err)
		}
		r := memstore.Record{KEK: under, Epoch: 1, Version: 1, WrappedDEK: wrapped, Ciphertext: must(c.Keys.Cipher.Seal(dek, []byte("secret of "+at), encctx)), Context: encctx}
		sum := sha256.Sum256([]byte("secret of " + at))
		r.PlainSHA = hex.EncodeToString(sum[:])
		table.Plant(id, r)
		c.plain[at] = "secret of " + at
	}
}

// set makes the control table hold these items and no others.
func (c *clinic) set(items []memddb.Item) {
	c.t.Helper()
	ctx := c.t.Context()
	_, _ = c.db.DeleteTable(ctx, &dynamodb.DeleteTableInput{TableName: aws.String(control)}) // the first time there is none
	in := &dynamodb.CreateTableInput{TableName: aws.String(control)}
	for i, k := range []string{"pk", "sk"} {
		in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: aws.String(k), KeyType: []types.KeyType{types.KeyTypeHash, types.KeyTypeRange}[i]})
		in.AttributeDefinitions = append(in.AttributeDefinitions, types.AttributeDefinition{AttributeName: aws.String(k), AttributeType: types.ScalarAttributeTypeS})
	}
	must(c.db.CreateTable(ctx, in))
	for _, i := range items {
		must(c.db.PutItem(ctx, &dynamodb.PutItemInput{TableName: aws.String(control), Item: i}))
	}
}

// phases are the steps of a rotation, each to the phase that it ends in.
var phases = []struct {
	to  kek.Phase
	run func(c *clinic, id string, in rotation.ExecutionInput) error
}{
	{kek.Started, func(c *clinic, id string, in rotation.ExecutionInput) error {
		_, err := c.Preflight(c.t.Context(), preflightInput(id, in))
		return err
	}},
	{kek.Minted, func(c *clinic, id string, in rotation.ExecutionInput) error {
		if in.Mode == "" {
			if _, err := c.Verify(c.t.Context(), rotation.VerifyInput{RotationID: id, Census: true}); err != nil {
				return err
			}
		}
		_, err := c.Mint(c.t.Context(), input(id))
		return err
	}},
	{kek.Tested, func(c *clinic, id string, _ rotation.ExecutionInput) error {
		_, err := c.Rewrap(c.t.Context(), rotation.RewrapInput{RotationID: id, Rehearse: true})
		if err == nil {
			_, err = c.DualUnwrap(c.t.Context(), input(id))
		}
		return err
	}},
	{kek.Switched, func(c *clinic, id string, _ rotation.ExecutionInput) error {
		_, err := c.Switch(c.t.Context(), input(id))
		return err
	}},
	{kek.Drained, func(c *clinic, id string, _ rotation.ExecutionInput) error {
		_, err := c.Drain(c.t.Context(), input(id))
		return err
	}},
	{kek.Rewrapped, func(c *clinic, id string, _ rotation.ExecutionInput) error {
		for _, table := range c.rows {
			if _, err := c.Rewrap(c.t.Context(), rotation.RewrapInput{RotationID: id, Source: table.Name()}); err != nil {
				return err
			}
		}
		_, err := c.Rewrap(c.t.Context(), rotation.RewrapInput{RotationID: id, Complete: true})
		return err
	}},
	{kek.KEKRetired, func(c *clinic, id string, _ rotation.ExecutionInput) error {
		_, err := c.Retire(c.t.Context(), rotation.RetireInput{RotationID: id})
		if err == nil {
			_, err = c.Anchor.AnchorChain(c.t.Context(), anchor.Input{})
		}
		return err
	}},
	{kek.Completed, func(c *clinic, id string, _ rotation.ExecutionInput) error {
		_, err := c.Verify(c.t.Context(), verifyInput(id))
		return err
	}},
}

// run runs a rotation to a phase.
func (c *clinic) run(id string, in rotation.ExecutionInput, to kek.Phase) {
	c.t.Helper()
	for _, p := range phases {
		if err := p.run(c, id, in); err != nil {
			c.t.Fatalf("rotation %s to %s: %v", id, p.to, err)
		}
		if p.to == to {
			return
		}
	}
}

// cured repairs the control table, and shows that nothing is left to repair, that an
// emergency runs to its end, and that every row opens.
func (c *clinic) cured(named ...string) doctor.Diagnosis {
	c.t.Helper()
	ctx := c.t.Context()
	found, err := c.Doctor.ExamineTable(ctx)
	if err != nil {
		c.t.Fatalf("doctor: %v", err)
	}
	for _, item := range named {
		if !slices.ContainsFunc(found.Findings, func(f doctor.Finding) bool { return f.Item == item }) {
			c.t.Errorf("doctor does not name %s: %s", item, told(found))
		}
	}
	if len(found.Open()) > 0 {
		c.t.Fatalf("doctor leaves open: %s", told(found))
	}
	done, err := c.Doctor.RepairTable(ctx)
	if err != nil {
		c.t.Fatalf("repair: %v\n%s", err, told(found))
	}
	if again, err := c.Doctor.ExamineTable(ctx); err != nil || len(again.Findings) > 0 || again.SetBack != "" {
		c.t.Fatalf("doctor once more: %v %s\nafter %s", err, told(again), told(found))
	}
	c.clock.pass(time.Minute)
	c.run("emergency-after", rotation.ExecutionInput{Mode: "emergency", Reason: "after the repair", Again: true}, kek.Completed)
	c.opens()
	return done
}

func told(d doctor.Diagnosis) string {
	lines := []string{d.SetBack, d.Chain}
	for _, f := range d.Findings {
		lines = append(lines, fmt.Sprintf("%s: %s -> %s (%s) next: %s", f.Item, f.Fault, f.Repair, f.From, advice.Command(f.Next)))
	}
	for _, n := range d.Notes {
		lines = append(lines, advice.Describe(n.Text, n.Next))
	}
	return strings.Join(lines, "\n  ")
}

// opens fails the test unless every row is under the pointer's KEK and opens.
func (c *clinic) opens() {
	c.t.Helper()
	v := must(c.table.Load(c.t.Context(), ""))
	left := maps.Clone(c.plain)
	for _, table := range c.rows {
		var rows []memstore.Record
		table.Each(func(_ string, r memstore.Record) { rows = append(rows, r) })
		for _, r := range rows {
			at := r.Context["at"]
			dek, err := c.Keys.Wrapper.Decrypt(c.t.Context(), r.KEK, r.WrappedDEK, r.Context)
			if err == nil {
				var plain []byte
				if plain, err = c.Keys.Cipher.Open(dek, r.Ciphertext, r.Context); err == nil && string(plain) != c.plain[at] {
					err = errors.New("it opens to something else")
				}
			}
			if err != nil || r.KEK != v.Pointer.KEKID {
				c.t.Errorf("row %s under KEK %s, the pointer on %s: %v", at, r.KEK, v.Pointer.KEKID, err)
			}
			delete(left, at)
		}
	}
	if len(left) > 0 {
		c.t.Errorf("rows that are gone: %v", left)
	}
}

// sound is the verdict of a verification of the whole chain, which must be green.
func (c *clinic) sound() audit.Report {
	c.t.Helper()
	must(c.Anchor.AnchorChain(c.t.Context(), anchor.Input{}))
	r := must(c.Anchor.VerifyAudit(c.t.Context(), anchor.AuditOptions{}))
	if r.Result != audit.Green {
		c.t.Errorf("audit: %s: %v", r, r.Findings)
	}
	return r
}

// hurt deletes an item, or damages it: how says how.
func (c *clinic) hurt(i memddb.Item, how string) {
	c.t.Helper()
	key := memddb.Item{"pk": i["pk"], "sk": i["sk"]}
	if how == "deleted" {
		must(c.db.DeleteItem(c.t.Context(), &dynamodb.DeleteItemInput{TableName: aws.String(control), Key: key}))
		return
	}
	bad := memddb.Item{}
	for name, v := range i {
		switch {
		case name == "pk" || name == "sk":
			bad[name] = v
		case how == "emptied":
		default: // every attribute has another type
			bad[name] = &types.AttributeValueMemberL{Value: []types.AttributeValue{&types.AttributeValueMemberNULL{Value: true}}}
		}
	}
	must(c.db.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: bad}))
}

// TestDoctorWell finds nothing wrong at any phase of a rotation.
func TestDoctorWell(t *testing.T) {
	c := newClinic(t)
	look := func(when string) {
		t.Helper()
		if d, err := c.Doctor.ExamineTable(t.Context()); err != nil || len(d.Findings)+len(d.Notes) > 0 || d.SetBack != "" {
			t.Errorf("%s: %v %s", when, err, told(d))
		}
	}
	look("after genesis")
	for i, in := range []rotation.ExecutionInput{{}, emergency} {
		id := []string{spring, summer}[i]
		for _, p := range phases {
			if err := p.run(c, id, in); err != nil {
				t.Fatal(err)
			}
			look(string(p.to))
		}
	}
	if d := must(c.Doctor.RepairTable(t.Context())); len(d.Repaired) > 0 {
		t.Errorf("it repaired %v", d.Repaired)
	}
	c.sound()
}

// patient is a deployment at a phase of a rotation, to be cloned.
type patient struct {
	*clinic
	name  string
	hurts []string
}

// patients are one for each phase of a normal rotation and of an emergency. They are made
// once and never changed.
var patients []patient

func makePatients(t *testing.T) []patient {
	t.Helper()
	if raced > 1 {
		t.Skip("one thing after the other: it runs without the race detector")
	}
	if patients != nil {
		return patients
	}
	var all []patient
	for _, in := range []rotation.ExecutionInput{{}, emergency} {
		c := newClinic(t)
		c.run("before", rotation.ExecutionInput{}, kek.Completed)
		for n, p := range phases {
			c.clock.pass(time.Minute)
			if err := p.run(c, spring, in); err != nil {
				t.Fatal(err)
			}
			hurts := []string{"deleted", []string{"emptied", "retyped"}[n%2]}
			if in.Mode != "" {
				hurts = hurts[n%2 : n%2+1]
			}
			all = append(all, patient{c.clone(t), string(p.to) + "/" + in.Mode, hurts})
		}
	}
	patients = all
	return all
}

// kindsOfItems are those that have a test of their own.
var kindsOfItems = []string{
	"POINTER", "LOCK", "KEK#", "FENCE#", "DEKFENCE#", "ROTATION#", "REGISTRY", "SOURCE", "AUDIT_HEAD", "AUDIT/", "ANCHOR", "CHECKPOINT#",
}

func kindOfItem(t *testing.T, name string) string {
	t.Helper()
	i := slices.IndexFunc(kindsOfItems, func(kind string) bool { return strings.HasPrefix(name, kind) })
	if i < 0 {
		t.Fatalf("%s has no test", name)
	}
	return kindsOfItems[i]
}

// These tests show: whatever item of the control table is lost or damaged, at whatever
// phase of a rotation, doctor names it and rebuilds it, an emergency runs to its end, and
// every row opens. There is one for each kind, so that a mistake is tried on those that
// reach it.

func TestDoctorEachPointer(t *testing.T)    { hurtEach(t, "POINTER") }
func TestDoctorEachLock(t *testing.T)       { hurtEach(t, "LOCK") }
func TestDoctorEachKEK(t *testing.T)        { hurtEach(t, "KEK#") }
func TestDoctorEachFence(t *testing.T)      { hurtEach(t, "FENCE#") }
func TestDoctorEachKeyFence(t *testing.T)   { hurtEach(t, "DEKFENCE#") }
func TestDoctorEachRotation(t *testing.T)   { hurtEach(t, "ROTATION#") }
func TestDoctorEachRegistry(t *testing.T)   { hurtEach(t, "REGISTRY") }
func TestDoctorEachSource(t *testing.T)     { hurtEach(t, "SOURCE") }
func TestDoctorEachHead(t *testing.T)       { hurtEach(t, "AUDIT_HEAD") }
func TestDoctorEachRecord(t *testing.T)     { hurtEach(t, "AUDIT/") }
func TestDoctorEachAnchor(t *testing.T)     { hurtEach(t, "ANCHOR") }
func TestDoctorEachCheckpoint(t *testing.T) { hurtEach(t, "CHECKPOINT#") }

// hurtEach hurts items of a kind in each way: every other one, the rest tomorrow; with
// MATTER_SIM_BUDGET all.
func hurtEach(t *testing.T, kind string) {
	t.Helper()
	n, all := int(time.Now().Unix()/86400), os.Getenv("MATTER_SIM_BUDGET") != ""
	for _, p := range makePatients(t) {
		for _, i := range p.db.items() {
			what := itemName(i)
			if kindOfItem(t, what) != kind || !worthHurting(i) {
				continue
			}
			for _, how := range p.hurts {
				if n++; n%2 != 0 && !all {
					continue
				}
				t.Run(strings.Join([]string{p.name, what, how}, "/"), func(t *testing.T) {
					c := p.clone(t)
					c.hurt(i, how)
					if how == "deleted" && (replaced(what) || c.refusesAsWell(what)) {
						c.cured()
						return
					}
					c.cured(what)
					c.sound()
				})
			}
		}
	}
}

func itemName(i memddb.Item) string {
	return doctor.ItemKey{PK: i["pk"].(*types.AttributeValueMemberS).Value, SK: i["sk"].(*types.AttributeValueMemberS).Value}.String()
}

// worthHurting leaves out what is like another: of the records every seventh is enough, of
// the checkpoints those of one source.
func worthHurting(i memddb.Item) bool {
	var seq int
	if _, err := fmt.Sscanf(itemName(i), "AUDIT/%d", &seq); err == nil {
		return seq%7 == 1
	}
	return !strings.HasPrefix(itemName(i), "CHECKPOINT#") || strings.Contains(itemName(i), "#orders#")
}

// replaced reports what is made again where it is missing.
func replaced(item string) bool {
	for _, p := range []string{"CHECKPOINT#", "MARK/", "LEASE#", "HEALTH#", "DRILL#", "ANNOUNCEMENT#", "APPROVAL#"} {
		if strings.HasPrefix(item, p) {
			return true
		}
	}
	return false
}

// refusesAsWell reports a shard of the fence of records of a KEK that the pointer does not
// name: while it is missing it refuses, and the drain makes it.
func (c *clinic) refusesAsWell(item string) bool {
	p := must(c.table.Load(c.t.Context(), "")).Pointer
	return strings.HasPrefix(item, "DEKFENCE#") && p != nil && !strings.HasPrefix(item, "DEKFENCE#"+string(p.KEKID)+"/")
}

// TestDoctorSetBack: the control table is restored to each moment of a rotation, by
// point-in-time recovery, when the rotation has come to each phase; KMS, rows and the audit
// bucket stay as they are. Doctor says so, sets pointer and KEKs to what the chain says,
// ends the rotation that the table believes in, and an emergency runs to its end. The
// verification of the chain says that it continued in a new generation.
func TestDoctorSetBack(t *testing.T) {
	if raced > 1 {
		t.Skip("one thing after the other: it runs without the race detector")
	}
	for _, in := range []rotation.ExecutionInput{{}, emergency} {
		c := newClinic(t)
		c.run("before", rotation.ExecutionInput{}, kek.Completed)
		c.db.on = true
		for n, p := range phases {
			if err := p.run(c, spring, in); err != nil {
				t.Fatal(err)
			}
			moments := c.db.all
			if n+1 < len(phases) && n%3 != 0 {
				moments = moments[len(moments)-2:] // the one before alone
			}
			for m, items := range moments[:len(moments)-1] {
				t.Run(fmt.Sprintf("%s/%s to %02d", in.Mode, p.to, m), func(t *testing.T) {
					c := c.clone(t)
					pointer := must(c.table.Load(t.Context(), "")).Pointer
					c.set(items)
					if d := must(c.Doctor.ExamineTable(t.Context())); d.SetBack == "" {
						t.Errorf("doctor does not say that the table was set back: %s", told(d))
					}
					if m%2 == 1 { // the hourly anchor comes first
						c.clock.pass(2 * time.Hour)
						must(c.Anchor.AnchorChain(t.Context(), anchor.Input{Heartbeat: true}))
					}
					d := must(c.Doctor.RepairTable(t.Context()))
					pointer.Epoch++ // the next one may have been given to a switch that nobody recorded
					if v := must(c.table.Load(t.Context(), "")); v.Pointer.KEKID != pointer.KEKID || v.Pointer.Epoch != pointer.Epoch || v.Lock != "" {
						t.Errorf("the pointer was %+v, now %+v; the lock is %q\n%s", pointer, v.Pointer, v.Lock, told(d))
					}
					c.cured()
					if r := c.sound(); len(r.Generations) == 0 || !strings.Contains(r.String(), "continued") {
						t.Errorf("verification does not say what happened: %s", r)
					}
				})
			}
		}
	}
}

// TestDoctorBesideARotation: a rotation that starts between doctor's look at the control
// table and its look at the bucket is nothing that the table has forgotten.
func TestDoctorBesideARotation(t *testing.T) {
	c := newClinic(t)
	at, head, err := c.table.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	started := false
	c.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Vault.Get" && args[0] == at.RecordKey(head.Seq+1) && !started {
			started = true
			c.run(spring, rotation.ExecutionInput{}, kek.Started)
		}
		return true, nil
	})
	if d := must(c.Doctor.RepairTable(t.Context())); !started || d.SetBack != "" || len(d.Findings)+len(d.Repaired) > 0 {
		t.Errorf("started: %t; %s, repaired %v", started, told(d), d.Repaired)
	}
	c.world.SetHook(nil)
	if v := must(c.table.Load(t.Context(), spring)); v.Rotation.Phase != kek.Started || v.Lock != spring {
		t.Errorf("the rotation is %s, the lock %q", v.Rotation.Phase, v.Lock)
	}
}

// TestDoctorAbandonedKEK: the control table was restored to before a mint, or to before a
// switch that no record tells of. Doctor makes the new KEK sealed, so that rows under it
// resolve, and the next rotation moves them and disables it.
func TestDoctorAbandonedKEK(t *testing.T) {
	c := newClinic(t)
	c.run(spring, rotation.ExecutionInput{}, kek.Started)
	old := c.db.items()
	for _, p := range phases[1:3] { // to tested
		if err := p.run(c, spring, rotation.ExecutionInput{}); err != nil {
			t.Fatal(err)
		}
	}
	minted := must(c.table.Load(t.Context(), spring)).Rotation.NewKEK
	c.set(old)
	must(c.Doctor.RepairTable(t.Context()))
	v := must(c.table.LoadAll(t.Context(), ""))
	if v.KEKs[minted].State != kek.Sealed || v.Pointer.Epoch != 2 {
		t.Errorf("KEK %+v, pointer %+v", v.KEKs[minted], v.Pointer)
	}
	c.cured()
	if k := must(c.world.KMS().Describe(t.Context(), minted)); k.Enabled {
		t.Errorf("%s is enabled after the emergency", minted)
	}
}

// TestMintBesideARestore: a mint that has found its KEK registered, in a control table that
// is restored before it writes, registers no KEK without a key.
func TestMintBesideARestore(t *testing.T) {
	refused := 0
	for at := 1; at <= 4; at++ { // reads of the second mint
		c := newClinic(t)
		c.run(spring, rotation.ExecutionInput{}, kek.Started)
		must(c.Verify(t.Context(), rotation.VerifyInput{RotationID: spring, Census: true}))
		old := c.db.items()
		must(c.Mint(t.Context(), input(spring)))
		c.db.reads, c.db.after = 0, func() {
			if c.db.reads == at {
				c.set(old)
			}
		}
		if _, err := c.Mint(t.Context(), input(spring)); err != nil {
			wantKind(t, err, journal.Transient)
			refused++
		}
		if v := must(c.table.LoadAll(t.Context(), spring)); slices.ContainsFunc(slices.Collect(maps.Keys(v.KEKs)), func(id kek.ID) bool { return id == "" }) || v.Rotation.NewKEK == "" && v.Rotation.Phase != kek.Started {
			t.Errorf("restored after read %d: %s, KEKs %v", at, v.Rotation.Phase, v.KEKs)
		}
		must(c.Mint(t.Context(), input(spring)))
	}
	if refused == 0 {
		t.Error("no mint met the restore")
	}
}

// TestDoctorSetBackTwice: a table that was restored, repaired and rotated is restored
// again, to before the first restore. What the second life of the table did is in the
// bucket alone, in a generation that the table does not know.
func TestDoctorSetBackTwice(t *testing.T) {
	c := newClinic(t)
	c.run("before", rotation.ExecutionInput{}, kek.Completed)
	old := c.db.items()
	c.run(spring, rotation.ExecutionInput{}, kek.Switched)
	late := c.db.items()
	c.run(summer+"-not-reached", emergency, kek.Completed) // it ends spring
	for i, items := range [][]memddb.Item{late, old, late, old} {
		c.set(items)
		must(c.Doctor.RepairTable(t.Context()))
		if d := must(c.Doctor.ExamineTable(t.Context())); len(d.Findings) > 0 || d.SetBack != "" {
			t.Fatalf("restore %d: %s", i, told(d))
		}
		c.clock.pass(time.Hour)
		c.run(fmt.Sprint("emergency-", i), emergency, kek.Completed)
		c.opens()
		c.sound()
	}
}

// TestDoctorForged: a record that somebody has put into the bucket after the chain's last
// one, linked as it should be, moves the pointer to no KEK that was left, nor to a key that
// is not the stack's.
func TestDoctorForged(t *testing.T) {
	for name, forge := range map[string]func(c *clinic, old, now kek.ID) map[string]string{
		"back to a KEK that was left": func(_ *clinic, old, now kek.ID) map[string]string {
			return map[string]string{"pointer": string(old), "epoch": "9", "kek." + string(old): "active", "kek." + string(now): "draining"}
		},
		"to a key of others": func(c *clinic, _, now kek.ID) map[string]string {
			k := must(c.world.KMS().Create(c.t.Context(), "other", 1, "other", keyring.Key{}))
			return map[string]string{"pointer": string(k.ID), "epoch": "9", "kek." + string(k.ID): "active", "kek." + string(now): "draining"}
		},
		"retires the KEK in use": func(_ *clinic, _, now kek.ID) map[string]string {
			return map[string]string{"kek." + string(now): "retired"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClinic(t)
			c.run("before", rotation.ExecutionInput{}, kek.Switched) // both KEKs are enabled
			at, head, err := c.table.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			v := must(c.table.Load(t.Context(), "before"))
			forged := must(audit.Next(at.Chain, head, c.clock.now(), audit.Event{ID: "x", Type: "pointer_switched", Body: forge(c, v.Rotation.OldKEK, v.Pointer.KEKID)}))
			if err := c.Journal.AuditBucket.Put(t.Context(), at.RecordKey(forged.Record.Seq), forged); err != nil {
				t.Fatal(err)
			}
			must(c.Doctor.RepairTable(t.Context()))
			after := must(c.table.Load(t.Context(), "before"))
			if after.Pointer.KEKID != v.Pointer.KEKID || after.KEKs[v.Pointer.KEKID].State != kek.Active {
				t.Errorf("the pointer was %+v, now %+v, its KEK %+v", v.Pointer, after.Pointer, after.KEKs[v.Pointer.KEKID])
			}
			c.cured()
		})
	}
}

// TestDoctorDamagedBeforePublished: a record that is damaged or deleted before it was in the
// bucket is lost. The chain says so, continues, and verifies; without that record the gap is
// tampering.
func TestDoctorDamagedBeforePublished(t *testing.T) {
	for _, how := range []string{"deleted", "emptied", "retyped"} {
		t.Run(how, func(t *testing.T) {
			c := newClinic(t)
			if err := errors.Join(
				c.table.Record(t.Context(), audit.Event{ID: "one", Type: "one"}), c.table.Record(t.Context(), audit.Event{ID: "two", Type: "two"}),
			); err != nil {
				t.Fatal(err)
			}
			for _, i := range c.db.items() {
				if itemName(i) == "AUDIT/000000000002" {
					c.hurt(i, how)
				}
			}
			c.cured("AUDIT/000000000002")
			if r := c.sound(); len(r.Lost) != 1 || r.Lost[0].Seq != 2 {
				t.Errorf("the report says %+v", r)
			}
		})
	}
}

// TestDoctorOfAnotherChain: a shell that is configured for another deployment is refused;
// nothing of this one is taken for lost.
func TestDoctorOfAnotherChain(t *testing.T) {
	for _, how := range []string{"kept", "deleted"} {
		c := newClinic(t)
		if how == "deleted" {
			for _, i := range c.db.items() {
				if itemName(i) == "AUDIT_HEAD" {
					c.hurt(i, how)
				}
			}
		}
		other := ddb.New(c.db, control, "other", c.clock.now)
		c.Doctor.Items, c.Journal.Outbox = other, other
		_, err := c.Doctor.RepairTable(t.Context())
		wantKind(t, err, journal.Misconfigured)
		if e := typed(err); !strings.HasPrefix(e.Field, "AUDIT") || !strings.Contains(e.Msg, chain) || e.Next.IsZero() {
			t.Errorf("%s: %v", how, err)
		}
	}
}

// TestDoctorWhatWasAnchored: a record that an anchor covers was in the bucket. If it is gone
// from there and from the table, doctor's word that it is lost explains nothing.
func TestDoctorWhatWasAnchored(t *testing.T) {
	c := newClinic(t)
	for _, id := range []string{"one", "two"} {
		if err := c.table.Record(t.Context(), audit.Event{ID: id, Type: id}); err != nil {
			t.Fatal(err)
		}
	}
	must(c.Anchor.AnchorChain(t.Context(), anchor.Input{}))
	for _, i := range c.db.items() {
		if itemName(i) == "AUDIT/000000000002" {
			c.hurt(i, "deleted")
		}
	}
	c.world.Vault().Tamper(audit.ObjectKey(chain, 2), nil)
	must(c.Doctor.RepairTable(t.Context()))
	must(c.Anchor.AnchorChain(t.Context(), anchor.Input{}))
	r := must(c.Anchor.VerifyAudit(t.Context(), anchor.AuditOptions{}))
	if r.Result != audit.Tampered || len(r.Lost) > 0 || !slices.ContainsFunc(r.Findings, func(f audit.Finding) bool {
		return f.Kind == audit.MissingRecord && f.Object == audit.ObjectKey(chain, 2)
	}) {
		t.Errorf("%s: %v", r, r.Findings)
	}
}
