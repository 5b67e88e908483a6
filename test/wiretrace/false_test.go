package wiretrace_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
	"github.com/matter-ops/kms-rotation/test/trace"
	"github.com/matter-ops/kms-rotation/test/wiretrace"
)

// deployment is one that has rotated once: the pointer is on new, in epoch 2, old is
// retired, and the chain has four records.
type deployment struct{ table }

func (deployment) Scan(_ context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	item := func(pk, sk string, more ...string) map[string]types.AttributeValue {
		out := map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: pk}, "sk": &types.AttributeValueMemberS{Value: sk}}
		for i := 0; i < len(more); i += 2 {
			if strings.Trim(more[i+1], "0123456789") == "" {
				out[more[i]] = &types.AttributeValueMemberN{Value: more[i+1]}
			} else {
				out[more[i]] = &types.AttributeValueMemberS{Value: more[i+1]}
			}
		}
		return out
	}
	out := &dynamodb.ScanOutput{}
	if *in.TableName == config.ControlTable {
		out.Items = []map[string]types.AttributeValue{
			item("POINTER", "-", "kek_id", "new", "epoch", "2"), item("AUDIT_HEAD", "-", "seq", "4", "published_seq", "4"),
			item("KEK#new", "-", "state", "active"), item("KEK#old", "-", "state", "retired"),
			item("FENCE#new", "00", "state", "open"), item("FENCE#new", "01", "state", "open"),
			item("FENCE#new", "02", "state", "open"), item("FENCE#new", "03", "state", "open"),
		}
	}
	return out, nil
}

// nextBody is a payload of the row b/8.
var nextBody = sealed(map[string]string{"table": "orders", "block": "b", "number": "8"})

// recorded is the run of calls on the deployment.
func recorded(t *testing.T, calls ...call) []trace.Event {
	t.Helper()
	return recordedOn(t, deployment{}, calls...)
}

func recordedOn(t *testing.T, tables wiretrace.DynamoDB, calls ...call) []trace.Event {
	t.Helper()
	cfg := config
	cfg.Corpus, cfg.Behind.DynamoDB = "", tables
	r := wiretrace.New(cfg)
	if err := r.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range calls {
		r.See(c.exchange())
	}
	events, err := r.Events()
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// falseWires are calls that the wire allows and the deployment must not make, by name
// where TestSee has them.
func falseWires(t *testing.T) []call {
	t.Helper()
	var out []call
	for _, name := range []string{
		"the pointer moved back in the name of a genesis",
		"a pointer that is written blindly",
		"the pointer alone",
		"a change without its record",
		"a checkpoint over whatever is there",
		"marked on no condition",
		"marked back",
		"a shard opened alone",
		"an approval by a function that has none to give",
		"one in a transaction with its record",
		"the anchor's state deleted",
		"one that is set",
		"a mark left by a function",
		"an insert over whatever is there",
		"a row as it is, by a function",
		"an update on no condition",
		"an update of whatever payload is there",
		"an update in whatever epoch",
		"a row labelled blindly",
		"a row deleted by a function",
		"a rewrap",
		"not the record that was appended",
	} {
		out = append(out, named(t, name))
	}
	insert := func(edit func(body string) string) call {
		c := named(t, "an insert")
		c.body = strings.ReplaceAll(strings.Replace(c.body, `"N":"7"`, `"N":"8"`, 1), base64Of(rowBody), base64Of(nextBody))
		c.body = edit(c.body)
		return c
	}
	same := func(body string) string { return body }
	instead := func(was, is string) func(string) string {
		return func(body string) string { return strings.Replace(body, was, is, 1) }
	}
	free := `{"ConditionCheck":{"TableName":"it-control","Key":{"pk":{"S":"LOCK"},"sk":{"S":"-"}},` + absent + `}}`
	registry := putIf(counted, `"pk":{"S":"REGISTRY"},"rev":{"N":"4"}`)
	_, genesis := record(5, "kek_genesis", "")
	_, alone := record(5, "pointer_switched", "")
	called := func(name string, c call) call {
		c.name = name
		return c
	}
	ours := insert(same)
	ours.caller = "rewrap"
	const back = `"pk":{"S":"POINTER"},"kek_id":{"S":"old"},"epoch":{"N":"1"}`
	again := transaction(put(back), put(`"pk":{"S":"KEK#old"},"state":{"S":"active"}`), free, registry, genesis)
	return append(out,
		dynamo("a genesis where a pointer is", "TransactWriteItems", "switch", again),
		dynamo("one by a person", "TransactWriteItems", "", again),
		dynamo("a switch that is a record alone", "TransactWriteItems", "switch", transaction(alone)),
		dynamo("a lease held by a function", "PutItem", "drain", `{"TableName":"it-control","Item":{"pk":{"S":"LEASE#new"},"sk":{"S":"h"},"expires_at":{"N":"9"}}}`),
		call{name: "a key enabled by a function", service: "kms", op: "EnableKey", caller: "retire", body: `{"KeyId":"new"}`},
		call{name: "a key of others disabled by a function", service: "kms", op: "DisableKey", caller: "retire", body: `{"KeyId":"theirs"}`},
		called("an insert past the fence", insert(instead(","+fenced, ""))),
		called("a payload of another row", insert(instead(base64Of(nextBody), base64Of(rowBody)))),
		called("a wrapped DEK that is none", insert(instead(`"B":"ZGVr"`, `"B":"Z2FyYmFnZQ=="`))),
		called("a wrapped DEK of the retired KEK", insert(instead(`"B":"ZGVr"`, `"B":"d2Fz"`))),
		called("an insert in an epoch that was never", insert(instead(`"key_epoch":{"N":"2"}`, `"key_epoch":{"N":"3"}`))),
		called("an insert by a function", ours),
	)
}

// freshDEK is what an emergency gives the row; KMS wraps it as "fresh".
var freshDEK = bytes.Repeat([]byte{9}, 32)

// emergency are the calls of a whole emergency up to its rewrap: KEK next takes over from
// new, and the row is sealed again, with this text.
func emergency(text string) []call {
	rotation := func(phase, kek string, rev int) string {
		return fmt.Sprintf(`"pk":{"S":"ROTATION#q2"},"mode":{"S":"emergency"},"phase":{"S":%q},"attempt":{"N":"1"},"old_kek_id":{"S":"new"},"new_kek_id":{"S":%q},"rev":{"N":"%d"}`, phase, kek, rev)
	}
	check := func(pk, sk, condition string) string {
		return `{"ConditionCheck":{"TableName":"it-control","Key":{"pk":{"S":"` + pk + `"},"sk":{"S":"` + sk + `"}},` + condition + `}}`
	}
	state := func(is string) string {
		return `"ConditionExpression":"#s = :s","ExpressionAttributeNames":{"#s":"state"},"ExpressionAttributeValues":{":s":{"S":"` + is + `"}}`
	}
	kek := func(id, is string) string {
		return `"pk":{"S":"KEK#` + id + `"},"state":{"S":"` + is + `"},"fence_shards":{"N":"4"}`
	}
	changed := func(seq int64, caller, event, phase string, parts ...string) call {
		_, appended := record(seq, event, "q2")
		parts = append([]string{putIf(step, rotation(phase, "next", int(seq)-4)), held}, append(parts, appended)...)
		return dynamo(event, "TransactWriteItems", caller, strings.Replace(transaction(parts...), `"ClientRequestToken":"t"`, `"ClientRequestToken":"`+event+`"`, 1))
	}
	shard := func(kek string, s int, is string) string {
		return fmt.Sprintf(`"Item":{"pk":{"S":"FENCE#%s"},"sk":{"S":"%02d"},"state":{"S":%q}}`, kek, s, is)
	}
	var opened, shut []string
	var seals []call
	for s := range 4 {
		opened = append(opened, `{"Put":{"TableName":"it-control",`+absent+`,`+shard("next", s, "open")+`}}`)
		shut = append(shut, check("FENCE#new", fmt.Sprintf("%02d", s), state("sealed")), check("DEKFENCE#new", fmt.Sprintf("%02d", s), state("sealed")))
		seals = append(seals, dynamo("a shard sealed", "PutItem", "drain", `{"TableName":"it-control",`+shard("new", s, "sealed")+`}`))
	}
	_, started := record(5, "rotation_started", "q2")
	begun := rotation("started", "", 1) + `,"segments":{"N":"1"},"sources":{"S":"[{\"name\":\"orders\",\"kind\":\"dynamodb\"}]"}`
	taken := `{"Put":{"TableName":"it-control","ConditionExpression":"attribute_not_exists(#pk) OR #rotation_id = :rotation_id","Item":{"pk":{"S":"LOCK"},"sk":{"S":"-"}}}}`
	payload := sealedUnder(freshDEK, text, map[string]string{"table": "orders", "block": "b", "number": "7"})
	made := secret("a fresh DEK", "GenerateDataKey", "rewrap", `{"KeyId":"next"}`, strings.Replace(plainly("fresh", freshDEK), "key/new", "key/next", 1))
	leases := strings.Replace(look("", `"ConsistentRead":true`, `{}`).body, "LEASE#old", "LEASE#new", 1)
	rewrap := `{"TableName":"it-orders","Key":{` + rowKey + `},"UpdateExpression":"SET #k = :k, #d = :d, #e = :e, #b = :b","ConditionExpression":"#k = :ok AND #d = :od AND #b = :ob",
		"ExpressionAttributeNames":{"#k":"key_ref","#d":"edek","#e":"key_epoch","#b":"body"},"ExpressionAttributeValues":{":k":{"S":"next"},":d":{"B":"` + base64Of([]byte("fresh")) + `"},
		":e":{"N":"3"},":b":{"B":"` + base64Of(payload) + `"},":ok":{"S":"new"},":od":{"B":"ZGVr"},":ob":{"B":"` + base64Of(rowBody) + `"}}}`
	return slices.Concat([]call{
		secret("", "GenerateDataKey", wire.Application, `{"KeyId":"new"}`, plainly("dek", plainDEK)),
		dynamo("an insert", "TransactWriteItems", wire.Application, `{"TransactItems":[`+rowPut+`,`+fenced+`]}`),
		dynamo("the start", "TransactWriteItems", "preflight", transaction(putIf(absent, begun), taken, check("POINTER", "-", stood), check("REGISTRY", "-", counted), started)),
		{service: "kms", op: "CreateKey", caller: "mint", body: `{"Tags":[{"TagKey":"matter:rotation","TagValue":"q2"},{"TagKey":"matter:attempt","TagValue":"1"}]}`, answer: `{"KeyMetadata":{"KeyId":"next"}}`},
		{service: "kms", op: "CreateAlias", caller: "mint", body: `{"AliasName":"alias/matter/kek/it/1/q2/1","TargetKeyId":"next"}`},
		changed(6, "mint", "kek_minted", "minted", put(kek("next", "pending"))),
		changed(7, "rewrap", "rows_rehearsed", "minted"),
		changed(8, "dualunwrap", "dual_unwrap_passed", "tested"),
		changed(9, "switch", "pointer_switched", "switched", append(opened, putIf(stood, `"pk":{"S":"POINTER"},"kek_id":{"S":"next"},"epoch":{"N":"3"}`),
			putIf(state("pending"), kek("next", "active")), putIf(state("active"), kek("new", "draining")))...),
		{service: "dynamodb", op: "Query", caller: "drain", body: leases, answer: `{}`},
	}, seals, []call{
		changed(10, "drain", "old_kek_sealed", "drained", append(shut, putIf(state("draining"), kek("new", "sealed")))...),
		made,
		dynamo("a rewrap", "UpdateItem", "rewrap", rewrap),
	})
}

// sealedAgain is a deployment whose row an emergency has just sealed again.
type sealedAgain struct {
	deployment
	rewrap call
}

func (d sealedAgain) GetItem(ctx context.Context, in *dynamodb.GetItemInput, how ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	var set struct {
		ExpressionAttributeValues map[string]struct{ B []byte }
	}
	if err := json.Unmarshal([]byte(d.rewrap.body), &set); err != nil {
		return nil, err
	}
	out, err := d.deployment.GetItem(ctx, in, how...)
	for name, token := range map[string]string{"edek": ":d", "body": ":b"} {
		out.Item[name] = &types.AttributeValueMemberB{Value: set.ExpressionAttributeValues[token].B}
	}
	return out, err
}

func named(t *testing.T, name string) call {
	t.Helper()
	all := calls()
	i := slices.IndexFunc(all, func(c call) bool { return c.name == name })
	if i < 0 {
		t.Fatalf("no call %q", name)
	}
	return all[i]
}

// TestFalseWires has the model look at calls that must not be made, each after some that
// may: it explains these, and refuses the first event of the other.
func TestFalseWires(t *testing.T) {
	true7 := []call{
		named(t, "a lease put"), named(t, "a mark left"), named(t, "the anchor's state"),
		secret("", "GenerateDataKey", wire.Application, `{"KeyId":"new"}`, plainly("dek", plainDEK)),
		named(t, "an insert"), named(t, "an update"), named(t, "a canary counted"),
	}
	true7[0].body = strings.Replace(true7[0].body, "LEASE#old", "LEASE#new", 1)
	true7[4].body = strings.Replace(true7[4].body, `{"TransactItems"`, `{"ClientRequestToken":"first","TransactItems"`, 1)
	next := named(t, "an insert")
	next.body = strings.ReplaceAll(strings.Replace(next.body, `"N":"7"`, `"N":"8"`, 1), base64Of(rowBody), base64Of(nextBody))
	runs := [][]trace.Event{recorded(t, append(slices.Clone(true7), next)...)}
	begins := len(runs[0]) - 1
	wires := falseWires(t)
	for _, c := range wires {
		runs = append(runs, recorded(t, append(slices.Clone(true7), c)...))
	}
	emergencies := len(runs)
	for _, text := range []string{payload, "another text"} {
		calls := emergency(text)
		runs = append(runs, recordedOn(t, sealedAgain{rewrap: calls[len(calls)-1]}, calls...))
	}
	verdicts, err := trace.Check(t.Context(), runs...)
	tlctest.Must(t, err)
	if !verdicts[0].Accepted {
		t.Errorf("what may be done: %s\n%+v", verdicts[0], verdicts[0].Event)
	}
	for i, c := range wires {
		v := verdicts[i+1]
		switch {
		case len(runs[i+1]) == begins:
			t.Errorf("%s: nothing is recorded", c.name)
		case v.Accepted:
			t.Errorf("%s: accepted: %+v", c.name, runs[i+1][begins:])
		case v.At < begins:
			t.Errorf("%s: %s, %+v, which is not the call that is wrong", c.name, v, v.Event)
		default:
			t.Logf("%s: %s", c.name, v)
		}
	}
	if v := verdicts[emergencies]; !v.Accepted {
		t.Errorf("an emergency that keeps what the payload says: %s\n%+v", v, v.Event)
	}
	if v := verdicts[emergencies+1]; v.Accepted || v.Event.Effect != "Table.Replace" || v.Violated != "NoLostWrite" {
		t.Errorf("an emergency that seals another text: %s\n%+v", v, v.Event)
	}
}

// TestFaultyWires: calls that are no event at all are no account of a run.
func TestFaultyWires(t *testing.T) {
	n := 0
	for _, c := range append(calls(),
		call{name: "a key to be deleted by a function", service: "kms", op: "ScheduleKeyDeletion", caller: "retire", body: `{"KeyId":"new"}`, fails: true},
		call{name: "an alias moved by a function", service: "kms", op: "UpdateAlias", caller: "mint", body: `{"AliasName":"alias/matter/kek/it/1/q2/1","TargetKeyId":"k1"}`, fails: true},
		call{name: "an unheard-of operation", service: "dynamodb", op: "GetEverything", caller: "rewrap", body: `{"TableName":"it-orders"}`, fails: true},
		call{name: "a scan that nobody can read", service: "dynamodb", op: "Scan", caller: "rewrap", body: `{"TableName":"it-orders"}`, answer: `{"Items":7}`, fails: true},
		call{name: "rows of a batch", service: "dynamodb", op: "BatchWriteItem", caller: "rewrap", body: `{"RequestItems":{"it-orders":[]}}`, fails: true},
	) {
		if !c.fails {
			continue
		}
		n++
		r := wiretrace.New(config)
		r.See(c.exchange())
		if events, err := r.Events(); err == nil {
			t.Errorf("%s: no fault, and events %+v", c.name, events)
		}
	}
	t.Logf("%d calls", n)
}
