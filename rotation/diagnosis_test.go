package rotation_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// diagnosis is damage to the control table, KMS or the bucket at a phase of a rotation.
type diagnosis struct {
	name string
	at   string // the name of a patient: the phase and the mode
	harm func(c *clinic)
}

// wantDiagnoses holds doctor to its words: what it and Inspect find, what a repair
// records and what it makes of each item.
func wantDiagnoses(t *testing.T, golden string, cases []diagnosis) {
	t.Helper()
	var text strings.Builder
	for _, d := range cases {
		c := patientAt(t, d.at).clone(t)
		d.harm(c)
		fmt.Fprintf(&text, "%s, at %s\n%s", d.name, d.at, c.treated())
	}
	wantGolden(t, golden, text.String())
}

// treated repairs the control table and tells what was found and done.
func (c *clinic) treated() string {
	c.t.Helper()
	ctx := c.t.Context()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) }
	before := must(c.table.Examine(ctx))
	for _, f := range doctor.Inspect(before) {
		line("inspect %s: %s; next %s", f.Item, f.Fault, advice.Command(f.Next))
	}
	tell := func(d doctor.Diagnosis, err error) {
		if err != nil {
			line("error: %s", advice.Explain(err))
			return
		}
		line("rests on %s", d.Chain)
		if d.SetBack != "" {
			line("set back: %s", d.SetBack)
		}
		for _, f := range d.Findings {
			line("found %s: %s; from %s; repair %s; next %s", f.Item, f.Fault, cmp.Or(f.From, "-"), cmp.Or(f.Repair, "-"), advice.Command(f.Next))
		}
		for _, n := range d.Notes {
			line("note %s", advice.Describe(n.Text, n.Next))
		}
	}
	d, err := c.Doctor.ExamineTable(ctx)
	tell(d, err)
	if len(d.Findings) == 0 {
		return masked(b.String())
	}
	done, err := c.Doctor.RepairTable(ctx)
	var repaired []string
	for _, f := range done.Repaired {
		repaired = append(repaired, f.Item)
	}
	line("repaired %s", strings.Join(repaired, ", "))
	was := map[doctor.ItemKey]doctor.Item{}
	for _, i := range before {
		was[i.Key] = i
	}
	for _, i := range must(c.table.Examine(ctx)) {
		old, there := was[i.Key]
		delete(was, i.Key)
		if e, ok := i.Value.(audit.Entry); ok && !there {
			r := e.Record
			line("record %d %s %s by %s: %s", r.Seq, r.Type, r.ID, r.Actor, set(c.t, r.Body))
			continue
		}
		if is := state(c.t, i); !there || is != state(c.t, old) {
			line("%s is now %s", i.Key, is)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(was), func(a, b doctor.ItemKey) int { return strings.Compare(a.String(), b.String()) }) {
		line("%s is gone", k)
	}
	tell(done, err)
	return masked(b.String())
}

// state is an item's value in words.
func state(t *testing.T, i doctor.Item) string {
	t.Helper()
	if i.Err != nil {
		return i.Err.Error()
	}
	if e, ok := i.Value.(audit.Entry); ok {
		return fmt.Sprintf("record %s %s", e.Record.ID, e.Hash)
	}
	return set(t, i.Value)
}

var (
	digest   = regexp.MustCompile(`[0-9a-f]{64}|\bg\d+-[0-9a-f]{16}`)
	logIndex = regexp.MustCompile(`"Index":(\d\d+|[4-9])`)
)

// masked numbers digests, of which some are of random keys. The patients' log has grown by
// what other tests have anchored in it.
func masked(s string) string {
	s = logIndex.ReplaceAllString(s, `"Index":"later"`)
	seen := map[string]int{}
	return digest.ReplaceAllStringFunc(s, func(d string) string {
		if seen[d] == 0 {
			seen[d] = len(seen) + 1
		}
		return fmt.Sprintf("hash%d", seen[d])
	})
}

// stored is an item of the control table.
func (c *clinic) stored(name string) memddb.Item {
	c.t.Helper()
	for _, i := range c.db.items() {
		if itemName(i) == name {
			return i
		}
	}
	c.t.Fatalf("there is no item %s", name)
	return nil
}

func (c *clinic) drop(names ...string) {
	c.t.Helper()
	for _, name := range names {
		c.hurt(c.stored(name), "deleted")
	}
}

// edit gives attributes of an item other values: numbers and texts as they look, "-" takes
// one away.
func (c *clinic) edit(name string, attributes ...string) {
	c.t.Helper()
	i := c.stored(name)
	for n := 0; n < len(attributes); n += 2 {
		i[attributes[n]] = attribute(attributes[n+1])
		if attributes[n+1] == "-" {
			delete(i, attributes[n])
		}
	}
	must(c.db.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: i}))
}

// add makes an item.
func (c *clinic) add(pk, sk string, attributes ...string) {
	c.t.Helper()
	i := memddb.Item{"pk": attribute(pk), "sk": &types.AttributeValueMemberS{Value: sk}}
	for n := 0; n < len(attributes); n += 2 {
		i[attributes[n]] = attribute(attributes[n+1])
	}
	must(c.db.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: i}))
}

func attribute(v string) types.AttributeValue {
	if _, err := strconv.Atoi(v); err == nil {
		return &types.AttributeValueMemberN{Value: v}
	}
	return &types.AttributeValueMemberS{Value: v}
}

// damaged are the diagnoses of items that are lost or cannot be read.
func damaged(at, how string, items ...string) []diagnosis {
	var out []diagnosis
	for _, name := range items {
		out = append(out, diagnosis{name + " " + how, at, func(c *clinic) { c.hurt(c.stored(name), how) }})
	}
	return out
}

// edited is the diagnosis of an item with other values.
func edited(name, at, item string, attributes ...string) diagnosis {
	return diagnosis{name, at, func(c *clinic) { c.edit(item, attributes...) }}
}

// These are the phases of the patients: the rotation before has moved kek-0001 to
// kek-0002, this one moves kek-0002 to kek-0003.
const (
	atStart    = "started/"
	atMint     = "minted/"
	atSwitch   = "switched/"
	atDrain    = "drained/"
	atRetire   = "retired/"
	atEnd      = "completed/"
	atUrgent   = "minted/emergency"
	springItem = "ROTATION#" + spring
)

// TestDiagnosesOfTheRegistry: pointer, KEKs, fences, lock and the registry's revision.
func TestDiagnosesOfTheRegistry(t *testing.T) {
	var cases []diagnosis
	for _, at := range []string{atMint, atSwitch, atDrain, atEnd, atUrgent} {
		for _, how := range []string{"deleted", "retyped"} {
			items := []string{"POINTER", "REGISTRY", "KEK#kek-0001", "KEK#kek-0002", "KEK#kek-0003", "FENCE#kek-0002/01"}
			if at != atEnd {
				items = append(items, "LOCK")
			}
			if at == atSwitch || at == atDrain || at == atEnd {
				items = append(items, "FENCE#kek-0003/00")
			}
			cases = append(cases, damaged(at, how, items...)...)
		}
	}
	disable := func(id kek.ID) func(c *clinic) {
		return func(c *clinic) { c.t.Helper(); c.disable(id) }
	}
	cases = append(cases, []diagnosis{
		{"nothing", atSwitch, func(*clinic) {}},
		edited("the pointer names another KEK", atSwitch, "POINTER", "kek_id", "kek-0002"),
		edited("the pointer has an earlier epoch", atSwitch, "POINTER", "epoch", "2"),
		edited("the pointer has a later epoch", atSwitch, "POINTER", "epoch", "7"),
		edited("the pointer has no epoch", atSwitch, "POINTER", "epoch", "0"),
		edited("the pointer names no KEK", atSwitch, "POINTER", "kek_id", "-"),
		edited("the pointer has a later epoch and another KEK", atSwitch, "POINTER", "kek_id", "kek-0001", "epoch", "9"),
		{"the pointer is lost and its key disabled", atSwitch, func(c *clinic) { c.drop("POINTER"); c.disable("kek-0003") }},
		{"the pointer's key is disabled", atSwitch, disable("kek-0003")},
		{"the pointer's key is not known to KMS", atSwitch, func(c *clinic) {
			c.answer("KMS.Describe", kek.ID("kek-0003"), journal.ErrNoKey)
		}},
		{"the key of a KEK that drains is disabled", atSwitch, disable("kek-0002")},
		{"the key of a sealed KEK is disabled", atDrain, disable("kek-0002")},
		{"the key of a pending KEK is disabled", atMint, disable("kek-0003")},
		{"the pending KEK is lost and its key disabled", atMint, func(c *clinic) { c.drop("KEK#kek-0003"); c.disable("kek-0003") }},
		edited("a KEK is active and should drain", atSwitch, "KEK#kek-0002", "state", "active"),
		edited("a KEK is retired and should drain", atSwitch, "KEK#kek-0002", "state", "retired"),
		edited("a KEK is sealed and should be retired", atEnd, "KEK#kek-0002", "state", "sealed"),
		edited("a KEK is draining and should be active", atSwitch, "KEK#kek-0003", "state", "draining"),
		edited("a KEK is pending and should be active", atSwitch, "KEK#kek-0003", "state", "pending"),
		edited("a KEK of a state that is none", atSwitch, "KEK#kek-0003", "state", "odd"),
		edited("a KEK without a key", atSwitch, "KEK#kek-0003", "key_arn", "-"),
		edited("a KEK without shards", atSwitch, "KEK#kek-0003", "fence_shards", "0"),
		edited("a KEK of more shards than it has", atSwitch, "KEK#kek-0003", "fence_shards", "3"),
		edited("a KEK of fewer shards than it has", atSwitch, "KEK#kek-0003", "fence_shards", "1"),
		{"a KEK and its fence", atSwitch, func(c *clinic) { c.drop("KEK#kek-0003", "FENCE#kek-0003/00", "FENCE#kek-0003/01") }},
		{"a KEK is lost, and the deployment makes another number of shards", atSwitch, func(c *clinic) { c.Doctor.FenceShards = 1; c.drop("KEK#kek-0003") }},
		{"a KEK is lost with one of two shards", atSwitch, func(c *clinic) { c.drop("KEK#kek-0003", "FENCE#kek-0003/01") }},
		{"a retired KEK and its fence", atEnd, func(c *clinic) { c.drop("KEK#kek-0002", "FENCE#kek-0002/00", "FENCE#kek-0002/01") }},
		{"a retired KEK whose key is enabled", atEnd, func(c *clinic) { c.world.KMS().Enable("kek-0001") }},
		{"a retired KEK that is about to be disabled", atRetire, func(c *clinic) { c.world.KMS().Enable("kek-0002") }},
		{"a retired KEK is lost and its key enabled", atEnd, func(c *clinic) { c.drop("KEK#kek-0001"); c.world.KMS().Enable("kek-0001") }},
		edited("the fence of the active KEK is sealed", atSwitch, "FENCE#kek-0003/01", "state", "sealed"),
		edited("the fence of a sealed KEK is open", atDrain, "FENCE#kek-0002/01", "state", "open"),
		edited("the fence of a KEK that drains is sealed", atSwitch, "FENCE#kek-0002/01", "state", "sealed"),
		edited("the fence of the active KEK is neither", atSwitch, "FENCE#kek-0003/01", "state", "ajar"),
		{"a fence shard more than the KEK has", atSwitch, func(c *clinic) { c.add("FENCE#kek-0003", "02", "state", "sealed") }},
		{"an open shard more than a sealed KEK has", atDrain, func(c *clinic) { c.add("FENCE#kek-0002", "03", "state", "open") }},
		{"a shard of no KEK", atSwitch, func(c *clinic) { c.add("FENCE#kek-0009", "00", "state", "open") }},
		{"a shard without a number", atSwitch, func(c *clinic) { c.add("FENCE#kek-0003", "x", "state", "open") }},
		{"a KEK that the chain does not know", atSwitch, func(c *clinic) {
			c.copied("KEK#kek-0003", "KEK#kek-0009", "-")
		}},
		{"a damaged KEK that the chain does not know", atSwitch, func(c *clinic) {
			c.add("KEK#kek-0009", "-", "state", "odd")
		}},
		edited("the lock names another rotation", atSwitch, "LOCK", "rotation_id", "before"),
		edited("the lock names no rotation", atSwitch, "LOCK", "rotation_id", "a b"),
		{"the lock of a rotation that is over", atEnd, func(c *clinic) { c.add("LOCK", "-", "rotation_id", spring) }},
		{"the lock of an unknown rotation", atEnd, func(c *clinic) { c.add("LOCK", "-", "rotation_id", "ghost") }},
		{"a damaged lock of nobody", atEnd, func(c *clinic) { c.add("LOCK", "-") }},
		edited("the registry's revision is none", atSwitch, "REGISTRY", "rev", "0"),
		edited("the registry's revision is the next", atSwitch, "REGISTRY", "rev", "2"),
		{"pointer and registry", atSwitch, func(c *clinic) { c.drop("POINTER", "REGISTRY", "LOCK", "KEK#kek-0002", "KEK#kek-0003") }},
		{"the KEK in use is retired in the chain, and its key disabled", atEnd, func(c *clinic) {
			if err := c.table.Record(c.t.Context(), audit.Event{ID: "x", Type: "x", Body: map[string]string{"kek.kek-0003": "retired"}}); err != nil {
				c.t.Fatal(err)
			}
			c.disable("kek-0003")
		}},
		{"the registry's revision is an earlier one", atEnd, func(c *clinic) {
			c.addSource("carts")
			c.edit("REGISTRY", "rev", "1")
		}},
		{"a key that carries the rotation's tag", atSwitch, func(c *clinic) {
			must(c.world.KMS().Create(c.t.Context(), spring, 1, "lost", keyring.Key{}))
		}},
	}...)
	wantDiagnoses(t, "doctor-registry.golden", cases)
}

// TestDiagnosesOfRotations: their records.
func TestDiagnosesOfRotations(t *testing.T) {
	var cases []diagnosis
	for _, at := range []string{atStart, atMint, atSwitch, atRetire, atEnd, atUrgent} {
		for _, how := range []string{"deleted", "emptied"} {
			cases = append(cases, damaged(at, how, springItem, "ROTATION#before")...)
		}
	}
	for _, attributes := range [][]string{
		{"mode", "odd"},
		{"mode", "-"},
		{"phase", "odd"},
		{"phase", "-"},
		{"rev", "0"},
		{"attempt", "0"},
		{"old_kek_id", "-"},
		{"new_kek_id", "-"},
		{"started_at", "7"},
		{"label", "7", "mode", "-"},
		{"rev", "99", "mode", "-"},
		{"epoch", "77", "mode", "-"},
		{"attempt", "3", "mode", "-"},
	} {
		cases = append(cases, edited("a rotation with "+strings.Join(attributes, " "), atSwitch, springItem, attributes...))
	}
	cases = append(cases, []diagnosis{
		edited("a rotation that is over runs", atEnd, springItem, "phase", "drained"),
		edited("a rotation that runs is over", atSwitch, springItem, "phase", "completed"),
		edited("a rotation that runs is ahead", atSwitch, springItem, "phase", "drained"),
		{"two rotations run", atSwitch, func(c *clinic) { c.copied(springItem, "ROTATION#another", "-") }},
		{"two rotations run, without a lock", atSwitch, func(c *clinic) { c.copied(springItem, "ROTATION#another", "-"); c.drop("LOCK") }},
		{"two rotations run, and another has the lock", atSwitch, func(c *clinic) {
			c.copied(springItem, "ROTATION#another", "-")
			c.edit("LOCK", "rotation_id", "another")
		}},
		{"two rotations run that the chain does not know", atEnd, func(c *clinic) {
			for _, id := range []string{"one", "two"} {
				c.copied(springItem, "ROTATION#"+id, "-")
				c.edit("ROTATION#"+id, "phase", "minted")
			}
		}},
		{"a damaged record that the chain does not know", atEnd, func(c *clinic) { c.add("ROTATION#ghost", "-", "mode", "emergency") }},
	}...)
	wantDiagnoses(t, "doctor-rotations.golden", cases)
}

// TestDiagnosesOfOthers: sources, the anchor, and what is made again.
func TestDiagnosesOfOthers(t *testing.T) {
	var cases []diagnosis
	for _, how := range []string{"deleted", "emptied", "retyped"} {
		cases = append(cases, damaged(atSwitch, how, "SOURCE/orders", "ANCHOR", "CHECKPOINT#before#orders#verify/000")...)
	}
	plant := func(pk, sk string, attributes ...string) diagnosis {
		return diagnosis{fmt.Sprintf("an item %s/%s with %q", pk, sk, attributes), atEnd, func(c *clinic) { c.add(pk, sk, attributes...) }}
	}
	cases = append(cases, []diagnosis{
		edited("a source without a kind", atSwitch, "SOURCE/orders", "kind", "-"),
		edited("a source without a place", atSwitch, "SOURCE/orders", "place", "-"),
		edited("a source without a definition", atSwitch, "SOURCE/orders", "definition", "-"),
		edited("a source of another definition", atSwitch, "SOURCE/orders", "definition", "{ }"),
		{"a damaged source that the chain does not know", atSwitch, func(c *clinic) { c.add("SOURCE", "ghost", "kind", "dynamodb") }},
		{"a source that the chain does not know", atSwitch, func(c *clinic) { c.copied("SOURCE/orders", "SOURCE", "ghost") }},
		{"a source that was added later", atEnd, func(c *clinic) { c.addSource("carts"); c.drop("SOURCE/carts") }},
		{"a source and the record of genesis", atEnd, func(c *clinic) {
			c.edit("SOURCE/orders", "place", "-")
			c.edit("SOURCE/corpus", "definition", "-")
			c.edit("ROTATION#before", "phase", "odd")
			c.drop("AUDIT/000000000001")
			c.world.Vault().Tamper(audit.ObjectKey(chain, 1), nil)
		}},
		{"both sources", atSwitch, func(c *clinic) { c.drop("SOURCE/orders", "SOURCE/corpus") }},
		edited("the anchor's revision is none", atEnd, "ANCHOR", "rev", "0"),
		edited("the anchor's number is negative", atEnd, "ANCHOR", "n", "-1"),
		edited("the anchor has no digest", atEnd, "ANCHOR", "digest", "-"),
		edited("the anchor is an earlier one", atEnd, "ANCHOR", "n", "1"),
		edited("there was no anchor", atEnd, "ANCHOR", "n", "0", "digest", "-"),
		edited("the anchor is a later one", atEnd, "ANCHOR", "n", "9"),
		edited("a checkpoint without a revision", atEnd, "CHECKPOINT#"+spring+"#orders#verify/000", "rev", "0"),
		plant("MARK", "carts"), plant("LEASE#kek-0003", "x"), plant("ANNOUNCEMENT#x", "-"), plant("DRILL#x", "-"), plant("APPROVAL#x", "-"), plant("HEALTH#x", "-"),
		plant("LEASE#kek-0003", "x", "holder", "x"), plant("ANNOUNCEMENT#x", "-", "rev", "x"), plant("DRILL#x", "-", "rev", "x"), plant("APPROVAL#x", "-", "rev", "x"), plant("OTHER", "a\nb"), plant("AUDIT", "x"), plant("AUDIT", "12"), plant("AUDIT", "0000000000012"),
		{"an anchor that is under way is nothing", atEnd, func(c *clinic) {
			was := c.stored("ANCHOR")
			must(c.Anchor.AnchorChain(c.t.Context(), anchor.Input{}))
			must(c.db.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: was}))
		}},
	}...)
	wantDiagnoses(t, "doctor-others.golden", cases)
}

// TestDiagnosesOfTheChain: records, their head, and what the bucket holds.
func TestDiagnosesOfTheChain(t *testing.T) {
	const last = "AUDIT/000000000019"
	var cases []diagnosis
	for _, how := range []string{"deleted", "emptied", "retyped"} {
		cases = append(cases, damaged(atSwitch, how, "AUDIT_HEAD", "AUDIT/000000000001", "AUDIT/000000000009", last)...)
	}
	gone := func(c *clinic, seqs ...int64) {
		for _, seq := range seqs {
			c.world.Vault().Tamper(audit.ObjectKey(chain, seq), nil)
		}
	}
	cases = append(cases, []diagnosis{
		edited("the head is behind", atSwitch, "AUDIT_HEAD", "seq", "18", "published_seq", "18"),
		edited("the head is ahead", atSwitch, "AUDIT_HEAD", "seq", "20"),
		edited("the head has another hash", atSwitch, "AUDIT_HEAD", "hash", "other"),
		edited("the head has no hash", atSwitch, "AUDIT_HEAD", "hash", "-"),
		edited("the head says record 0", atSwitch, "AUDIT_HEAD", "seq", "0", "published_seq", "0"),
		edited("the head has published less", atSwitch, "AUDIT_HEAD", "published_seq", "10"),
		edited("the head has published more than there is", atSwitch, "AUDIT_HEAD", "published_seq", "20"),
		{"the bucket has lost the last record", atSwitch, func(c *clinic) { gone(c, 19) }},
		{"the bucket has lost a record", atSwitch, func(c *clinic) { gone(c, 9) }},
		{"the bucket has another record", atSwitch, func(c *clinic) {
			c.world.Vault().Tamper(audit.ObjectKey(chain, 9), must(c.world.Vault().Get(c.t.Context(), audit.ObjectKey(chain, 8))))
		}},
		{"a record is in neither", atSwitch, func(c *clinic) { c.drop("AUDIT/000000000009"); gone(c, 9) }},
		{"two records are in neither", atSwitch, func(c *clinic) { c.drop("AUDIT/000000000009", "AUDIT/000000000010"); gone(c, 9, 10) }},
		{"the last record is in neither", atSwitch, func(c *clinic) { c.drop(last); gone(c, 19) }},
		{"the last record is in neither, nor the head", atSwitch, func(c *clinic) { c.drop(last, "AUDIT_HEAD"); gone(c, 19) }},
		{"a damaged record is in neither, nor the head", atSwitch, func(c *clinic) {
			c.hurt(c.stored(last), "retyped")
			c.drop("AUDIT_HEAD")
			gone(c, 19)
		}},
		{"a record is in neither, and the next in the bucket alone", atSwitch, func(c *clinic) {
			c.drop("AUDIT/000000000009", "AUDIT/000000000010")
			gone(c, 9)
		}},
		{"a record in the place of the next", atSwitch, func(c *clinic) {
			i, next := c.stored("AUDIT/000000000009"), c.stored("AUDIT/000000000010")
			i["sk"] = next["sk"]
			must(c.db.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: i}))
		}},
		{"the whole chain", atSwitch, func(c *clinic) { c.loseChain(19) }},
		{"the whole chain and the pointer", atSwitch, func(c *clinic) { c.loseChain(19); c.drop("POINTER") }},
		{"the whole chain and the pointer's KEK", atSwitch, func(c *clinic) { c.loseChain(19); c.drop("POINTER", "KEK#kek-0003") }},
		{"the whole chain and the pointer, with two active KEKs", atSwitch, func(c *clinic) {
			c.loseChain(19)
			c.drop("POINTER")
			c.edit("KEK#kek-0002", "state", "active")
		}},
		{"the whole chain, the registry and the KEKs", atSwitch, func(c *clinic) {
			c.loseChain(19)
			c.drop("POINTER", "REGISTRY", "KEK#kek-0001", "KEK#kek-0002", "KEK#kek-0003")
		}},
		{"everything", atSwitch, func(c *clinic) { c.loseChain(19); c.set(nil) }},
		{"the first record is in neither", atSwitch, func(c *clinic) { c.drop("AUDIT/000000000001"); gone(c, 1) }},
		{"the whole outbox", atSwitch, func(c *clinic) {
			for n := range 19 {
				c.drop(fmt.Sprintf("AUDIT/%012d", n+1))
			}
			c.drop("AUDIT_HEAD")
		}},
	}...)
	wantDiagnoses(t, "doctor-chain.golden", cases)
}

// TestDiagnosesOfSetBack: the control table is what it was at an earlier phase, or empty.
func TestDiagnosesOfSetBack(t *testing.T) {
	var cases []diagnosis
	back := func(at, to string, harm func(c *clinic)) {
		cases = append(cases, diagnosis{"set back to " + to, at, func(c *clinic) {
			c.set(patientAt(c.t, to).db.items())
			if harm != nil {
				harm(c)
			}
		}})
	}
	for _, to := range []string{atStart, atMint, atSwitch} {
		for _, at := range []string{atMint, atSwitch, atRetire, atEnd} {
			if to < at || to == atStart {
				back(at, to, nil)
			}
		}
	}
	back(atEnd, atDrain, nil)
	back(atEnd, atRetire, nil)
	back("completed/emergency", "switched/emergency", nil)
	back(atRetire, atMint, func(c *clinic) { c.drop("POINTER", "KEK#kek-0002", "LOCK") })
	back(atRetire, atMint, func(c *clinic) { c.drop("AUDIT_HEAD", springItem) })
	back(atRetire, atSwitch, func(c *clinic) { c.disable("kek-0003") })
	back(atSwitch, atMint, func(c *clinic) { c.disable("kek-0003") })
	back(atSwitch, atMint, func(c *clinic) { c.edit("SOURCE/orders", "definition", "{ }", "generation", "4") })
	cases = append(cases, diagnosis{"the whole table", atSwitch, func(c *clinic) { c.set(nil) }})
	wantDiagnoses(t, "doctor-setback.golden", cases)
}

// TestDiagnosesOfSetBackAgain: a table that was set back, repaired and rotated is set back
// again, to moments of its first life and of its second. What it forgot then is in
// generations of the chain that it does not know.
func TestDiagnosesOfSetBackAgain(t *testing.T) {
	var text strings.Builder
	c := patientAt(t, atEnd).clone(t)
	tell := func(name string, items []memddb.Item) []memddb.Item {
		c.clock.pass(time.Minute)
		c.set(items)
		fmt.Fprintf(&text, "%s\n%s", name, c.treated())
		return c.db.items()
	}
	first := tell("to the mint", patientAt(t, atMint).db.items())
	c.clock.pass(time.Minute)
	c.run("second-life", emergency, kek.Switched)
	c.clock.pass(time.Minute)
	c.drop("AUDIT_HEAD")
	fmt.Fprintf(&text, "without a head\n%s", c.treated())
	second := c.db.items()
	tell("to before the first repair", patientAt(t, atSwitch).db.items())
	c.clock.pass(time.Minute)
	c.run("third-life", emergency, kek.KEKRetired) // and is anchored
	tell("to the first repair", first)
	tell("to the second life", second)
	tell("to the beginning", nil)
	wantGolden(t, "doctor-setback-again.golden", text.String())
	c.cured()
}

// TestDiagnosesOfAnchors: which anchors in the bucket doctor believes.
func TestDiagnosesOfAnchors(t *testing.T) {
	anchorKey := func(n int64) string { return audit.Generations("").AnchorKeyIn(chain, n) }
	tamper := func(n int64, b func(c *clinic) []byte) func(c *clinic) {
		return func(c *clinic) {
			c.drop("ANCHOR")
			c.world.Vault().Tamper(anchorKey(n), b(c))
		}
	}
	anchorBytes := func(n int64) func(c *clinic) []byte {
		return func(c *clinic) []byte { return must(c.world.Vault().GetAnchor(c.t.Context(), anchorKey(n))) }
	}
	other := func(harm func(c *clinic)) func(c *clinic) {
		return func(c *clinic) {
			c.drop("ANCHOR")
			c.key = rekortest.NewKey(c.t)
			own := *c.Anchor
			own.Signer, own.Trust.AnchorKeys = c.key, nil
			c.Anchor, c.Doctor.Anchor = &own, &own
			harm(c)
		}
	}
	wantDiagnoses(t, "doctor-anchors.golden", []diagnosis{
		{"the state is lost", atEnd, func(c *clinic) { c.drop("ANCHOR") }},
		{"the last is gone", atEnd, tamper(4, func(*clinic) []byte { return nil })},
		{"one in between is gone", atEnd, tamper(2, func(*clinic) []byte { return nil })},
		{"the first is gone", atEnd, tamper(1, func(*clinic) []byte { return nil })},
		{"the last is none", atEnd, tamper(4, func(*clinic) []byte { return []byte("{}") })},
		{"the last is an earlier one", atEnd, tamper(4, anchorBytes(3))},
		{"the next is an earlier one", atEnd, tamper(5, anchorBytes(3))},
		{"the next is none", atEnd, tamper(5, func(*clinic) []byte { return []byte("{}") })},
		{"the deployment has another key", atEnd, other(func(*clinic) {})},
		{"the deployment has another key and trusts the old one", atEnd, other(func(c *clinic) {
			b := anchorBytes(1)(c)
			c.Anchor.Trust.AnchorKeys = []audit.PinnedKey{{Key: must(audit.ParseAnchor(b)).Signed.Key}}
		})},
		{"the deployment trusts no log", atEnd, other(func(c *clinic) {
			c.Anchor.Trust.AnchorKeys = []audit.PinnedKey{{Key: must(audit.ParseAnchor(anchorBytes(1)(c))).Signed.Key}}
			c.Anchor.Trust.Logs = nil
		})},
		{"the deployment anchors nothing", atEnd, func(c *clinic) { c.drop("ANCHOR"); c.Anchor, c.Doctor.Anchor = nil, nil }},
		{"anchors have gone on past another object, and the state is lost", atEnd, func(c *clinic) {
			c.world.Vault().Tamper(anchorKey(5), []byte("another object"))
			c.clock.pass(2 * time.Hour)
			must(c.Anchor.AnchorChain(c.t.Context(), anchor.Input{Heartbeat: true}))
			c.drop("ANCHOR")
		}},
		{"an anchor's maker has died", atEnd, func(c *clinic) {
			c.Anchor.Store = &dying{Store: c.table, saves: 1}
			if _, err := c.Anchor.AnchorChain(c.t.Context(), anchor.Input{Heartbeat: true}); err == nil {
				c.t.Error("it has not died")
			}
			c.Anchor.Store = c.table
		}},
		{"the state is two anchors behind", atEnd, func(c *clinic) {
			was := c.stored("ANCHOR")
			for range 2 {
				c.clock.pass(2 * time.Hour)
				must(c.Anchor.AnchorChain(c.t.Context(), anchor.Input{Heartbeat: true}))
			}
			must(c.db.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: was}))
		}},
	})
}

// dying is the state of anchoring in a process that dies after it has saved it a few times.
type dying struct {
	*ddb.Store
	saves int
}

func (d *dying) SaveAnchor(ctx context.Context, st anchor.State) error {
	if d.saves--; d.saves < 0 {
		return errAway
	}
	return d.Store.SaveAnchor(ctx, st)
}

// TestDiagnosesOfForgeries: objects in the bucket after the chain's last record that are
// not the chain's.
func TestDiagnosesOfForgeries(t *testing.T) {
	forge := func(chainName string, skip int64, body map[string]string) func(c *clinic) {
		return func(c *clinic) {
			at, head, err := c.table.Head(c.t.Context())
			if err != nil {
				c.t.Fatal(err)
			}
			e := must(audit.Next(chainName, audit.Head{Seq: head.Seq + skip, Hash: head.Hash}, c.clock.now(), audit.Event{ID: "x", Type: "x", Body: body}))
			c.world.Vault().Tamper(at.RecordKey(head.Seq+1), e.Bytes)
		}
	}
	body := map[string]string{"pointer": "kek-0002", "epoch": "9", "kek.kek-0002": "active", "kek.kek-0003": "draining"}
	wantDiagnoses(t, "doctor-forgeries.golden", []diagnosis{
		{"it moves the pointer back", atSwitch, forge(chain, 0, body)},
		{"it says nothing", atSwitch, forge(chain, 0, nil)},
		{"it is of another chain", atSwitch, forge("other", 0, body)},
		{"it has another number", atSwitch, forge(chain, 1, body)},
		{"it is none", atSwitch, func(c *clinic) { c.world.Vault().Tamper(audit.ObjectKey(chain, 20), []byte("{}")) }},
		{"it is an earlier one", atSwitch, func(c *clinic) {
			c.world.Vault().Tamper(audit.ObjectKey(chain, 20), must(c.world.Vault().Get(c.t.Context(), audit.ObjectKey(chain, 19))))
		}},
		{"it names an unknown KEK", atSwitch, forge(chain, 0, map[string]string{"kek.kek-0099": "sealed"})},
		{"it retires the KEK in use", atSwitch, forge(chain, 0, map[string]string{"kek.kek-0003": "retired"})},
		{"it ends the rotation", atSwitch, forge(chain, 0, map[string]string{"rotation." + spring: "completed"})},
	})
}

func patientAt(t *testing.T, name string) patient {
	t.Helper()
	all := makePatients(t)
	i := slices.IndexFunc(all, func(p patient) bool { return p.name == name })
	if i < 0 {
		t.Fatalf("there is no patient %s", name)
	}
	return all[i]
}

// TestDoctorGenesisForgotten: the whole table is lost before the first rotation. The KEK of
// genesis carries no tag of a rotation; that it is the deployment's own an anchor proves.
func TestDoctorGenesisForgotten(t *testing.T) {
	c := newClinic(t)
	old := must(c.world.KMS().Create(t.Context(), "", 0, "historic", keyring.Key{}))
	if err := c.RegisterKEK(t.Context(), old.ID, "historic"); err != nil {
		t.Fatal(err)
	}
	must(c.Anchor.AnchorChain(t.Context(), anchor.Input{Heartbeat: true}))
	c.set(nil)
	c.cured("POINTER", "KEK#kek-0001", "FENCE#kek-0001/00", "KEK#kek-0002")
}

// loseChain loses the first n records, which are all, and the anchors.
func (c *clinic) loseChain(n int64) {
	c.t.Helper()
	c.drop("AUDIT_HEAD")
	for seq := int64(1); seq <= n; seq++ {
		c.drop(fmt.Sprintf("AUDIT/%012d", seq))
		c.world.Vault().Tamper(audit.ObjectKey(chain, seq), nil)
	}
	for n := range int64(9) {
		c.world.Vault().Tamper(audit.Generations("").AnchorKeyIn(chain, n+1), nil)
	}
}

func (c *clinic) addSource(name string) {
	c.t.Helper()
	must(c.AddSource(c.t.Context(), c.world.NewTable(name).Source()))
}

func (c *clinic) disable(id kek.ID) {
	c.t.Helper()
	if err := c.world.KMS().Disable(c.t.Context(), id); err != nil {
		c.t.Fatal(err)
	}
}

// copied stores an item again under another key.
func (c *clinic) copied(name, pk, sk string) {
	c.t.Helper()
	i := c.stored(name)
	i["pk"], i["sk"] = attribute(pk), &types.AttributeValueMemberS{Value: sk}
	must(c.db.PutItem(c.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(control), Item: i}))
}

// answer fails the calls of an operation on one thing.
func (c *clinic) answer(op string, about any, err error) {
	c.world.SetHook(func(called string, args ...any) (bool, error) {
		if called == op && len(args) > 0 && args[0] == about {
			return false, err
		}
		return true, nil
	})
}
