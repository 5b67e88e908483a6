package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// kinds counts the items of the control table by the first part of their key.
func (c *clinic) kinds() map[string]int {
	out := map[string]int{}
	for _, i := range c.db.items() {
		kind, _, _ := strings.Cut(text(i, "pk"), "#")
		out[kind]++
	}
	return out
}

func text(i memddb.Item, name string) string {
	v, _ := i[name].(*types.AttributeValueMemberS)
	if v == nil {
		return ""
	}
	return v.Value
}

// keys lists the keys of the items that begin with a prefix.
func (c *clinic) keysOf(prefix string) []string {
	out := []string{}
	for _, i := range c.db.items() {
		if pk := text(i, "pk"); strings.HasPrefix(pk, prefix) {
			out = append(out, pk+"/"+text(i, "sk"))
		}
	}
	slices.Sort(out)
	return out
}

// rotate runs the nth rotation to its end.
func (c *clinic) rotate(n int) string {
	c.t.Helper()
	id := fmt.Sprintf("r%04d", n)
	c.clock.pass(time.Hour)
	c.run(id, rotation.ExecutionInput{}, kek.Completed)
	return id
}

func (c *clinic) records() []audit.Record {
	c.t.Helper()
	var out []audit.Record
	for _, e := range must(c.table.AuditEntries(c.t.Context(), 1)) {
		out = append(out, e.Record)
	}
	return out
}

// checkpoints lists the checkpoints of a rotation in the control table.
func (c *clinic) checkpoints(id string) []rotation.Checkpoint {
	c.t.Helper()
	var out []rotation.Checkpoint
	for _, i := range must(c.table.ListSpent(c.t.Context())) {
		if i.Checkpoint != nil && i.Checkpoint.RotationID == id {
			out = append(out, *i.Checkpoint)
		}
	}
	return out
}

// TestArchive: the end of a rotation archives what the one before has left, and nothing else.
// The chain keeps what was removed, doctor misses nothing, and no writer gets past a fence
// that is gone.
func TestArchive(t *testing.T) {
	c := newClinic(t)
	first := must(c.table.Load(t.Context(), "")).Pointer.KEKID
	c.rotate(1)
	made := c.checkpoints("r0001")
	if len(made) == 0 || len(c.keysOf("FENCE#"+string(first))) != shards || len(rotation.ArchivedCheckpoints(c.records(), "r0001")) > 0 {
		t.Fatalf("the first rotation has archived its own: %v", c.kinds())
	}
	c.rotate(2)
	if left := append(c.keysOf("CHECKPOINT#r0001"), c.keysOf("FENCE#"+string(first))...); len(left) > 0 {
		t.Errorf("the first rotation leaves %v", left)
	}
	if len(c.checkpoints("r0002")) != len(made) || len(c.keysOf("FENCE#")) != 2*shards {
		t.Errorf("the second one's own are gone: %v", c.kinds())
	}
	for i := range made { // what the chain does not keep, and what it says of the MAC
		made[i].Proof = rotation.Proven
		made[i].Cursor = ""
		made[i].Rev = 0
		made[i].MAC = nil
		made[i].Tally.Poison = nil
		made[i].Tally.DataKeys = nil
	}
	if diff := cmp.Diff(made, rotation.ArchivedCheckpoints(c.records(), "r0001")); diff != "" {
		t.Errorf("the chain keeps (-made +kept):\n%s", diff)
	}
	c.sound()
	if d := must(c.Doctor.ExamineTable(t.Context())); len(d.Findings) > 0 {
		t.Errorf("doctor: %s", told(d))
	}
	for n := range shards {
		if err := c.insertUnder(first, n); !errors.Is(err, kek.ErrConflict) {
			t.Errorf("an insert past shard %d of a fence that is gone: %v", n, err)
		}
	}
	if i := must(c.InspectRotation(t.Context(), *must(c.table.Load(t.Context(), "r0001")).Rotation, func(int64) {})); i.Chain.Verdict() != rotation.Fulfilled || i.Missing != "" {
		t.Errorf("an inspection of the first rotation: %+v", i)
	}
}

// lostKeys is a KMS that has no key for the checkpoints of one rotation.
type lostKeys struct {
	memstore.CheckpointKeys
	rotation string
}

func (k lostKeys) DeriveKey(ctx context.Context, rotationID string) ([]byte, error) {
	if rotationID == k.rotation {
		return nil, journal.ErrKeyDisabled
	}
	return k.CheckpointKeys.DeriveKey(ctx, rotationID)
}

// TestArchiveForged: somebody who can write the control table gets nothing into the locked
// bucket as if it were proven, and people are told of it.
func TestArchiveForged(t *testing.T) {
	forged := map[rotation.Proof]func(*rotation.Checkpoint){
		rotation.FalseMAC: func(*rotation.Checkpoint) {},
		rotation.NoMAC:    func(c *rotation.Checkpoint) { c.MAC = nil },
		rotation.KeyGone:  nil,
	}
	for proof, change := range forged {
		t.Run(string(proof), func(t *testing.T) {
			c := newClinic(t)
			c.rotate(1)
			made := c.checkpoints("r0001")
			false1 := made[len(made)-1]
			if change == nil {
				c.Checkpoints = rotation.SealCheckpoints(c.table, lostKeys{rotation: "r0001"})
			} else {
				change(&false1)
				false1.Tally = rotation.Tally{Scanned: 1e9, ByKEK: map[string]int64{"anything": 1e9}, ByKind: map[string]int64{"at all": 1}}
				check(t, c.table.SaveCheckpoint(t.Context(), false1))
			}
			c.clock.pass(time.Hour)
			c.run("r0002", rotation.ExecutionInput{}, kek.KEKRetired)
			out := must(c.Verify(t.Context(), verifyInput("r0002")))
			if !out.Done || !strings.Contains(out.Note, "not proven") || !strings.Contains(out.Note, proof.Describe()) {
				t.Errorf("%v, %q", out.Done, out.Note)
			}
			for i := range made {
				whole := change != nil && i < len(made)-1
				want := rotation.Checkpoint{RotationID: "r0001", Source: made[i].Source, Pass: made[i].Pass, Segment: made[i].Segment, Proof: proof}
				if whole {
					want = made[i]
					want.Cursor = ""
					want.Rev = 0
					want.MAC = nil
					want.Tally.Poison = nil
					want.Tally.DataKeys = nil
					want.Proof = rotation.Proven
				}
				made[i] = want
			}
			if diff := cmp.Diff(made, rotation.ArchivedCheckpoints(c.records(), "r0001")); diff != "" {
				t.Errorf("the chain keeps (-want +kept):\n%s", diff)
			}
			if left := c.keysOf("CHECKPOINT#r0001"); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// TestArchiveWaitsForKMS: while KMS does not answer nothing is archived, and the next rotation
// does it.
func TestArchiveWaitsForKMS(t *testing.T) {
	c := newClinic(t)
	c.rotate(1)
	c.clock.pass(time.Hour)
	c.run("r0002", rotation.ExecutionInput{}, kek.KEKRetired)
	c.Checkpoints = rotation.SealCheckpoints(c.table, awayKeys{rotation: "r0001"})
	before := c.keysOf("CHECKPOINT#r0001")
	if out := must(c.Verify(t.Context(), verifyInput("r0002"))); !out.Done || !strings.Contains(out.Note, "stay in the control table") {
		t.Errorf("%v, %q", out.Done, out.Note)
	}
	if diff := cmp.Diff(before, c.keysOf("CHECKPOINT#r0001")); diff != "" {
		t.Errorf("archived all the same:\n%s", diff)
	}
	c.Checkpoints = rotation.SealCheckpoints(c.table, memstore.CheckpointKeys{})
	c.rotate(3)
	if left := c.keysOf("CHECKPOINT#r0001"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// awayKeys is a KMS that does not answer for one rotation.
type awayKeys struct {
	memstore.CheckpointKeys
	rotation string
}

func (k awayKeys) DeriveKey(ctx context.Context, rotationID string) ([]byte, error) {
	if rotationID == k.rotation {
		return nil, errors.New("no answer")
	}
	return k.CheckpointKeys.DeriveKey(ctx, rotationID)
}

// insertUnder checks the fence of a KEK as the insert of a row does, in a transaction.
func (c *clinic) insertUnder(id kek.ID, shard int) error {
	check := controltable.FenceOpen(control, id, shard)
	_, err := c.db.TransactWriteItems(c.t.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{
		{ConditionCheck: check},
		{Put: &types.Put{TableName: aws.String(control), Item: controltable.EncodeLease(controltable.Lease{KEK: id, Holder: "a row"})}},
	}})
	if reasons := controltable.Reasons(err); len(reasons) > 0 && reasons[0] == controltable.Condition {
		return kek.ErrConflict
	}
	return err
}

// TestArchiveKeeps: what may still be needed stays.
func TestArchiveKeeps(t *testing.T) {
	t.Run("a key that is enabled", func(t *testing.T) {
		c := newClinic(t)
		first := must(c.table.Load(t.Context(), "")).Pointer.KEKID
		c.rotate(1)
		c.run("r0002", rotation.ExecutionInput{}, kek.KEKRetired)
		c.world.KMS().Enable(first)
		must(c.Verify(t.Context(), verifyInput("r0002")))
		if n := len(c.keysOf("FENCE#" + string(first))); n != shards {
			t.Errorf("%d fence shards of a KEK whose key is enabled", n)
		}
	})
	t.Run("a rotation that runs, beside a late verify", func(t *testing.T) {
		c := newClinic(t)
		c.rotate(1)
		c.rotate(2)
		c.clock.pass(time.Hour)
		c.run("r0003", rotation.ExecutionInput{}, kek.Tested)
		before := c.keysOf("CHECKPOINT#r0003")
		must(c.Verify(t.Context(), verifyInput("r0001")))
		if diff := cmp.Diff(before, c.keysOf("CHECKPOINT#r0003")); diff != "" || len(before) == 0 {
			t.Errorf("checkpoints of the rotation that runs: %s", diff)
		}
		c.run("r0003", rotation.ExecutionInput{}, kek.Completed)
		must(c.Verify(t.Context(), verifyInput("r0001")))
		if len(c.checkpoints("r0003")) == 0 {
			t.Error("a late verify of the first rotation has archived the last one")
		}
	})
	t.Run("a historic KEK, which is sealed", func(t *testing.T) {
		c := newClinic(t)
		c.rotate(1)
		c.rotate(2)
		past := must(c.world.KMS().Create(t.Context(), "", 0, "past", keyring.Key{})).ID
		if err := c.RegisterKEK(t.Context(), past, "past"); err != nil {
			t.Fatal(err)
		}
		must(c.Verify(t.Context(), verifyInput("r0001")))
		if n := len(c.keysOf("FENCE#" + string(past))); n != shards {
			t.Errorf("%d fence shards of a historic KEK", n)
		}
	})
	t.Run("a KEK that is sealed and not retired", func(t *testing.T) {
		c := newClinic(t)
		c.rotate(1)
		c.run("r0002", rotation.ExecutionInput{}, kek.Drained)
		old := must(c.table.Load(t.Context(), "r0002")).Rotation.OldKEK
		must(c.Verify(t.Context(), verifyInput("r0001")))
		if n := len(c.keysOf("FENCE#" + string(old))); n != shards {
			t.Errorf("%d fence shards of a KEK that is sealed", n)
		}
		c.run("r0002", rotation.ExecutionInput{}, kek.Completed)
	})
}

// TestArchivedAgain: items that are there again, because the control table was restored or a
// worker woke up late, are named and removed by doctor, and by the next rotation.
func TestArchivedAgain(t *testing.T) {
	c := newClinic(t)
	c.rotate(1)
	var items []memddb.Item
	for _, i := range c.db.items() {
		if pk := text(i, "pk"); strings.HasPrefix(pk, "CHECKPOINT#") || strings.HasPrefix(pk, "FENCE#") {
			items = append(items, i)
		}
	}
	c.rotate(2)
	kept := rotation.ArchivedCheckpoints(c.records(), "r0001")
	again := c.keysOf("CHECKPOINT#r0001")
	putBack := func(c *clinic) {
		for _, i := range items {
			if text(i, "state") != controltable.Open {
				must(c.db.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: maps.Clone(i)}))
			}
		}
	}
	t.Run("doctor", func(t *testing.T) {
		c := c.clone(t)
		putBack(c)
		named := append(c.keysOf("CHECKPOINT#r0001"), c.keysOf("FENCE#")[:1]...)
		if len(named) <= len(again)+1 {
			t.Fatal("nothing was put back")
		}
		done := c.cured(named[0])
		if !slices.ContainsFunc(done.Repaired, func(f doctor.Finding) bool { return strings.Contains(f.Fault, "archived by record") }) {
			t.Errorf("repaired: %+v", done.Repaired)
		}
		if left := c.keysOf("CHECKPOINT#r0001"); len(left) > 0 {
			t.Errorf("doctor leaves %v", left)
		}
	})
	t.Run("the next rotation", func(t *testing.T) {
		c := c.clone(t)
		putBack(c)
		c.rotate(3)
		if left := c.keysOf("CHECKPOINT#r0001"); len(left) > 0 {
			t.Errorf("it leaves %v", left)
		}
		if diff := cmp.Diff(kept, rotation.ArchivedCheckpoints(c.records(), "r0001")); diff != "" {
			t.Errorf("the first record counts (-was +now):\n%s", diff)
		}
	})
}

// TestArchiveDies: the process that archives dies before or after any of its writes, and
// another one, an hour later, archives what is left. Every item that is gone is in the chain,
// once, and in the bucket when the call has returned.
func TestArchiveDies(t *testing.T) {
	whole := newClinic(t)
	first := must(whole.table.Load(t.Context(), "")).Pointer.KEKID
	whole.Archive = nil
	whole.rotate(1)
	whole.rotate(2)
	gone := append(whole.keysOf("CHECKPOINT#r0001"), whole.keysOf("FENCE#"+string(first))...)
	for at := 1; ; at++ {
		ended := false
		for _, applied := range []bool{false, true} {
			c := whole.clone(t)
			var mu sync.Mutex // rows are visited side by side
			calls, dead := 0, false
			die := func() (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				if calls++; dead || calls == at {
					apply := !dead && applied
					dead = true
					return apply, memstore.ErrInjected
				}
				return true, nil
			}
			c.db.write = die
			c.world.SetHook(func(string, ...any) (bool, error) { return die() })
			out, err := c.Verify(t.Context(), verifyInput("r0002"))
			if ended = !dead; ended && (err != nil || out.Note != "") {
				t.Fatalf("%+v, %v", out, err)
			}
			if dead && err == nil && out.Note == "" {
				t.Errorf("dead at call %d: it says nothing", at)
			}
			c.db.write = nil
			c.world.SetHook(func(string, ...any) (bool, error) { return true, nil })
			c.mustKeep(gone)
			c.clock.pass(time.Hour)
			if out := must(c.Verify(t.Context(), verifyInput("r0002"))); out.Note != "" {
				t.Errorf("an hour later: %s", out.Note)
			}
			c.mustKeep(gone)
			if left := append(c.keysOf("CHECKPOINT#r0001"), c.keysOf("FENCE#"+string(first))...); len(left) > 0 {
				t.Errorf("dead at call %d: %v is left", at, left)
			}
			c.sound()
		}
		if ended {
			if at < 4 {
				t.Fatalf("it made %d calls alone", at-1)
			}
			return
		}
	}
}

// mustKeep fails the test unless each item is in the table or in one record of the chain.
func (c *clinic) mustKeep(keys []string) {
	c.t.Helper()
	kept := map[string]int{}
	for _, key := range append(c.keysOf("CHECKPOINT#"), c.keysOf("FENCE#")...) {
		kept[key]++
	}
	for _, r := range c.records() {
		if r.Type == journal.EventArchived {
			for key := range r.Body {
				kept[key]++
			}
		}
	}
	for _, key := range keys {
		if kept[key] != 1 {
			c.t.Errorf("%s is kept %d times", key, kept[key])
		}
	}
}

// The figures of docs/performance.md, "The thousandth rotation":
//
//	MATTER_ROTATIONS=1000 go test ./rotation -run TestThousandthRotation -v
const figuresAt = 30 // rotations, without that variable

// usage is what one rotation took, and what the control table holds after it.
type usage struct {
	S3, VerifyS3, KMS int
	Items             map[string]int
}

// TestThousandthRotation: a rotation takes no more calls to S3 and KMS, and leaves no more
// checkpoints and fence items, because others came before it. What grows is the record of the
// rotation, the entry of its KEK, and the outbox.
func TestThousandthRotation(t *testing.T) {
	last := figuresAt
	if s := os.Getenv("MATTER_ROTATIONS"); s != "" {
		last = must(strconv.Atoi(s))
	}
	c := newClinic(t)
	var mu sync.Mutex // rows are visited side by side
	var now usage
	verifying := false
	c.world.SetHook(func(op string, _ ...any) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.HasPrefix(op, "Vault."):
			if now.S3++; verifying {
				now.VerifyS3++
			}
		case strings.HasPrefix(op, "KMS."):
			now.KMS++
		}
		return true, nil
	})
	seen := map[int]usage{}
	for n := 1; n <= last; n++ {
		now = usage{}
		id := fmt.Sprintf("r%04d", n)
		c.clock.pass(time.Hour)
		c.run(id, rotation.ExecutionInput{}, kek.KEKRetired)
		verifying = true
		out := must(c.Verify(t.Context(), verifyInput(id)))
		verifying = false
		if !out.Done || out.Note != "" {
			t.Fatalf("rotation %d: %+v", n, out)
		}
		now.Items = c.kinds()
		seen[n] = now
		if slices.Contains([]int{1, 2, 10, 30, 60, 300, 1000}, n) {
			t.Logf("rotation %4d: %d S3 calls, %d of them by verify; %d KMS calls; control items %v", n, now.S3, now.VerifyS3, now.KMS, now.Items)
		}
	}
	for n, grows := range map[string]int{"KEK": 1, "ROTATION": 1, "AUDIT": seen[11].Items["AUDIT"] - seen[10].Items["AUDIT"]} {
		if got, want := seen[last].Items[n]-seen[10].Items[n], grows*(last-10); got != want {
			t.Errorf("%d more items %s after %d rotations, want %d", got, n, last-10, want)
		}
	}
	at10, at30 := seen[10], seen[last]
	for _, n := range []string{"KEK", "ROTATION", "AUDIT"} {
		delete(at10.Items, n)
		delete(at30.Items, n)
	}
	if diff := cmp.Diff(at10, at30); diff != "" {
		t.Errorf("rotation %d does not cost what the 10th does (-10th +now):\n%s", last, diff)
	}
}
