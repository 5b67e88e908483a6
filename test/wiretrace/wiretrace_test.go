package wiretrace_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/trace"
	"github.com/matter-ops/kms-rotation/test/wiretrace"
)

var config = wiretrace.Config{
	Stack: "it", ControlTable: "it-control", AuditBucket: "it-audit",
	Tables: []wiretrace.Table{{
		Source: "orders", Table: "it-orders", Keys: []string{"block", "number"},
		KEKID: "key_ref", WrappedDEK: "edek", Ciphertext: "body", Epoch: "key_epoch",
		Context: map[string]string{"table": "orders"}, Bind: map[string]string{"block": "$block", "number": "$number"},
	}},
	Corpus: "corpus", CorpusBucket: "it-corpus", CorpusPrefix: "known/",
	Behind: wiretrace.Behind{DynamoDB: table{}, KMS: keys{}},
}

// DEKs, and payloads under the first: of the row and of the entry.
var (
	plainDEK, plainWas = bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	rowBody            = sealed(map[string]string{"table": "orders", "block": "b", "number": "7"})
	entryBody          = sealed(map[string]string{"corpus": "known"})
)

const payload = "the payload of every row and entry"

func sealed(bound map[string]string) []byte { return sealedUnder(plainDEK, payload, bound) }

func sealedUnder(dek []byte, text string, bound map[string]string) []byte {
	b, err := aead.Cipher{}.Seal(dek, []byte(text), bound)
	if err != nil {
		panic(err)
	}
	return b
}

// keys is a KMS in which "dek" is a DEK under the key new, and "was" another under old,
// both under the context of whatever they are asked with.
type keys struct{}

func (keys) Decrypt(_ context.Context, in *kms.DecryptInput, _ ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	arn := func(id string) *string { return aws.String("arn:aws:kms:r:1:key/" + id) }
	switch string(in.CiphertextBlob) {
	case "dek":
		return &kms.DecryptOutput{KeyId: arn("new"), Plaintext: plainDEK}, nil
	case "was":
		return &kms.DecryptOutput{KeyId: arn("old"), Plaintext: plainWas}, nil
	}
	return nil, errors.New("it does not open")
}

// table is a table that holds the row.
type table struct{ wiretrace.DynamoDB }

func (table) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{Item: map[string]types.AttributeValue{
		"block": &types.AttributeValueMemberS{Value: "b"}, "number": &types.AttributeValueMemberN{Value: "7"},
		"key_ref": &types.AttributeValueMemberS{Value: "new"}, "key_epoch": &types.AttributeValueMemberN{Value: "2"},
		"edek": &types.AttributeValueMemberB{Value: []byte("dek")}, "body": &types.AttributeValueMemberB{Value: rowBody},
	}}, nil
}

// record is the chain's next record, and its two writes in a transaction.
func record(seq int64, kind, rotation string) (audit.Entry, string) {
	head := audit.Genesis("it")
	var e audit.Entry
	for head.Seq < seq {
		var err error
		if e, err = audit.Next("it", head, time.UnixMilli(0), audit.Event{ID: "id", Type: kind, Rotation: rotation, Step: "switch"}); err != nil {
			panic(err)
		}
		head = e.Head()
	}
	return e, fmt.Sprintf(`{"Put":{"TableName":"it-control",`+absent+`,"Item":{"pk":{"S":"AUDIT"},"sk":{"S":"%012d"},"record":{"B":%q},"hash":{"S":%q}}}},%s`,
		seq, base64.StdEncoding.EncodeToString(e.Bytes), e.Hash, moved(seq, e.Hash))
}

func moved(seq int64, hash string) string {
	return fmt.Sprintf(`{"Update":{"TableName":"it-control","Key":{"pk":{"S":"AUDIT_HEAD"},"sk":{"S":"-"}},
		"UpdateExpression":"SET #chain = :chain, #seq = :seq, #hash = :hash","ExpressionAttributeNames":{"#chain":"chain","#seq":"seq","#hash":"hash"},
		"ConditionExpression":"#seq = :was AND #hash = :washash",
		"ExpressionAttributeValues":{":was":{"N":"4"},":washash":{"S":"h"},":chain":{"S":"it"},":seq":{"N":"%d"},":hash":{"S":%q}}}}`, seq, hash)
}

// put is a write of an item that must not be there.
func put(item string) string { return putIf(absent, item) }

func putIf(condition, item string) string {
	return `{"Put":{"TableName":"it-control",` + condition + `,"Item":{"sk":{"S":"-"},` + item + `}}}`
}

// Conditions.
const (
	absent  = `"ConditionExpression":"attribute_not_exists(#pk)","ExpressionAttributeNames":{"#pk":"pk"}`
	blind   = `"ConditionExpression":"attribute_exists(#pk)","ExpressionAttributeNames":{"#pk":"pk"}`
	step    = `"ConditionExpression":"#phase = :phase AND #rev = :rev","ExpressionAttributeNames":{"#phase":"phase","#rev":"rev"},"ExpressionAttributeValues":{":phase":{"S":"tested"},":rev":{"N":"3"}}`
	stood   = `"ConditionExpression":"#kek_id = :kek_id AND #epoch = :epoch","ExpressionAttributeNames":{"#kek_id":"kek_id","#epoch":"epoch"},"ExpressionAttributeValues":{":kek_id":{"S":"old"},":epoch":{"N":"1"}}`
	counted = `"ConditionExpression":"#rev = :rev","ExpressionAttributeNames":{"#rev":"rev"},"ExpressionAttributeValues":{":rev":{"N":"3"}}`
	ours    = `"ConditionExpression":"#rotation_id = :id","ExpressionAttributeNames":{"#rotation_id":"rotation_id"},"ExpressionAttributeValues":{":id":{"S":"q2"}}`
	held    = `{"ConditionCheck":{"TableName":"it-control","Key":{"pk":{"S":"LOCK"},"sk":{"S":"-"}},` + ours + `}}`
)

func transaction(parts ...string) string {
	return `{"ClientRequestToken":"t","TransactItems":[` + strings.Join(parts, ",") + `]}`
}

const (
	switched = `"pk":{"S":"ROTATION#q2"},"mode":{"S":"normal"},"phase":{"S":"switched"},"attempt":{"N":"1"},"old_kek_id":{"S":"old"},"new_kek_id":{"S":"new"},"rev":{"N":"4"}`
	pointer  = `"pk":{"S":"POINTER"},"kek_id":{"S":"new"},"epoch":{"N":"2"}`
	fenced   = `{"ConditionCheck":{"TableName":"it-control","Key":{"pk":{"S":"FENCE#new"},"sk":{"S":"03"}},"ConditionExpression":"#state = :open",
		"ExpressionAttributeNames":{"#state":"state"},"ExpressionAttributeValues":{":open":{"S":"open"}}}}`
	rowKey = `"block":{"S":"b"},"number":{"N":"7"}`
)

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

var (
	rowItem = rowKey + `,"key_ref":{"S":"new"},"key_epoch":{"N":"2"},"edek":{"B":"ZGVr"},"body":{"B":"` + base64Of(rowBody) + `"},"rev":{"N":"1"}`
	rowPut  = `{"Put":{"TableName":"it-orders","ConditionExpression":"attribute_not_exists(#key)","ExpressionAttributeNames":{"#key":"block"},"Item":{` + rowItem + `}}}`
	entry   = `{"v":1,"kek_id":"new","kek_epoch":2,"wrapped_dek":"ZGVr","ciphertext":"` + base64Of(entryBody) + `","context":{"corpus":"known"}}`
)

var (
	dek, body, was = trace.Digest([]byte("dek")), trace.Digest(rowBody), trace.Digest([]byte("was"))
	unwrapped      = trace.Event{Effect: trace.Decrypt, Caller: trace.Person, KEK: "new", Blob: dek, DEK: "dek 1"} // what the row wraps
	change         = trace.Event{
		Effect: "Store.Apply", Event: "pointer_switched", Actor: "switch", Rotation: "q2", Mode: "normal", Phase: "switched", Attempt: 1,
		Old: "old", KEK: "new", Epoch: 2, Seq: 5, Moved: true, States: map[string]string{"new": "active", "old": "draining"}, Opened: []int{0},
	}
	row = trace.Event{Source: "orders", Row: "b/7", KEK: "new", Epoch: 2, Blob: dek, Body: body, BodyDEK: "dek 1", Text: "text 1"}
)

// with is e with changes.
func with(e trace.Event, edit func(*trace.Event)) trace.Event {
	edit(&e)
	return e
}

// call is one call; the zero status is 200.
type call struct {
	name              string
	service, op       string
	caller            string
	body              string
	answer            string
	status            int
	bucket, key, etag string
	query             url.Values
	want              []trace.Event
	fails             bool
}

func (c call) exchange() wire.Exchange {
	e := wire.Exchange{
		Call: wire.Call{Service: c.service, Operation: c.op, Bucket: c.bucket, Key: c.key}, Caller: cmp.Or(c.caller, wire.Person), Status: c.status,
		Query: c.query, Header: http.Header{}, AnsweredHeader: http.Header{}, Body: []byte(c.body), Answer: []byte(c.answer),
	}
	if c.status == 0 {
		e.Status = 200
	}
	if c.etag != "" {
		e.Header.Set("If-Match", c.etag)
	}
	return e
}

func dynamo(name, op, caller, body string, want ...trace.Event) call {
	return call{name: name, service: "dynamodb", op: op, caller: caller, body: body, want: want}
}

func unrecorded(edit func(*trace.Event)) trace.Event {
	return with(trace.Event{Effect: "Store.Apply", Event: trace.Unrecorded}, edit)
}

func calls() []call {
	_, five := record(5, "pointer_switched", "q2")
	_, note := record(5, "canary_green", "")
	active, draining := put(`"pk":{"S":"KEK#new"},"state":{"S":"active"}`), put(`"pk":{"S":"KEK#old"},"state":{"S":"draining"}`)
	opened := `{"Put":{"TableName":"it-control",` + absent + `,"Item":{"pk":{"S":"FENCE#new"},"sk":{"S":"00"},"state":{"S":"open"}}}}`
	whole := func(moved, lock string) string {
		return transaction(putIf(step, switched), moved, active, draining, opened, lock, five)
	}
	loose := with(change, func(e *trace.Event) { e.Event = trace.Unconditional })
	_, retired := record(5, "old_kek_retired", "q2")
	_, sealed := record(5, "old_kek_sealed", "q2")
	old := func(state string) string {
		return put(`"pk":{"S":"KEK#old"},"state":{"S":"` + state + `"},"fence_shards":{"N":"1"}`)
	}
	step5 := func(event, state string) trace.Event {
		return trace.Event{
			Effect: "Store.Apply", Event: event, Actor: "switch", Rotation: "q2", Mode: "normal", Phase: "switched", Attempt: 1,
			Old: "old", KEK: "new", Seq: 5, States: map[string]string{"old": state},
		}
	}
	shut := `{"ConditionCheck":{"TableName":"it-control","Key":{"pk":{"S":"FENCE#old"},"sk":{"S":"00"}},"ConditionExpression":"#s = :s","ExpressionAttributeNames":{"#s":"state"},"ExpressionAttributeValues":{":s":{"S":"sealed"}}}}`
	stands := `{"ConditionCheck":{"TableName":"it-control","Key":{"pk":{"S":"POINTER"},"sk":{"S":"-"}},` + stood + `}}`
	update := func(set, cond string) string {
		return `{"TableName":"it-orders","Key":{` + rowKey + `},"UpdateExpression":"SET #k = :k, #d = :d, #e = :e, #v = if_not_exists(#v, :zero) + :one` + set + `",
			"ConditionExpression":"` + cond + `","ExpressionAttributeNames":{"#k":"key_ref","#d":"edek","#e":"key_epoch","#v":"rev","#b":"body"},
			"ExpressionAttributeValues":{":k":{"S":"new"},":d":{"B":"ZGVr"},":e":{"N":"2"},":b":{"B":"` + base64Of(rowBody) + `"},":ok":{"S":"old"},":od":{"B":"d2Fz"},":ob":{"B":"d2Fz"},":zero":{"N":"0"},":one":{"N":"1"}}}`
	}
	label := func(cond string) string {
		return `{"TableName":"it-orders","Key":{` + rowKey + `},"UpdateExpression":"SET #k = :k","ConditionExpression":"` + cond + `",
			"ExpressionAttributeNames":{"#k":"key_ref","#d":"edek"},"ExpressionAttributeValues":{":k":{"S":"new"},":od":{"B":"d2Fz"},":arn":{"S":"arn:aws:kms:r:1:key/new"}}}`
	}
	_, added := record(5, "source_added", "")
	_, registered := record(5, "kek_registered", "")
	_, started := record(5, "rotation_started", "q2")
	check := func(pk, cond string) string {
		return `{"ConditionCheck":{"TableName":"it-control","Key":{"pk":{"S":"` + pk + `"},"sk":{"S":"-"}},` + cond + `}}`
	}
	free, registry := check("LOCK", absent), putIf(counted, `"pk":{"S":"REGISTRY"},"rev":{"N":"4"}`)
	source := `{"Put":{"TableName":"it-control","Item":{"pk":{"S":"SOURCE"},"sk":{"S":"orders"}}}}`
	taken := `{"Put":{"TableName":"it-control","ConditionExpression":"attribute_not_exists(#pk) OR #rotation_id = :rotation_id","Item":{"pk":{"S":"LOCK"},"sk":{"S":"-"}}}}`
	sealedShard := `{"Put":{"TableName":"it-control",` + absent + `,"Item":{"pk":{"S":"FENCE#old"},"sk":{"S":"00"},"state":{"S":"sealed"}}}}`
	of := func(event string, edit func(*trace.Event)) trace.Event {
		return with(trace.Event{Effect: "Store.Apply", Event: event, Actor: "switch", Seq: 5}, edit)
	}
	none := func(*trace.Event) {}
	begun := strings.Replace(switched, `"rev":{"N":"4"}`, `"rev":{"N":"1"},"segments":{"N":"4"},"sources":{"S":"`+
		`[{\"name\":\"orders\",\"kind\":\"dynamodb\",\"generation\":2},{\"name\":\"corpus\",\"kind\":\"corpus\"}]"}`, 1)
	began := func(e *trace.Event) {
		*e = with(change, func(c *trace.Event) {
			c.Event, c.Epoch, c.Moved, c.States, c.Opened, c.Lock = e.Event, 0, false, nil, nil, trace.LockTaken
			c.Segments = map[string]int{"orders~2": 4, "corpus": 1}
		})
	}
	const forward = "#seq >= :s AND (attribute_not_exists(#p) OR #p < :s)"
	markTo := func(condition string) string {
		return `{"TableName":"it-control","Key":{"pk":{"S":"AUDIT_HEAD"},"sk":{"S":"-"}},"UpdateExpression":"SET #p = :s","ConditionExpression":"` + condition +
			`","ExpressionAttributeNames":{"#p":"published_seq","#seq":"seq"},"ExpressionAttributeValues":{":s":{"N":"5"}}}`
	}
	const app = wire.Application
	looseUpdate := unconditional("Update orders/b/7", func(e *trace.Event) { e.KEK, e.Epoch = "new", 2 })
	_, genesis := record(5, "kek_genesis", "")
	moved2 := strings.Replace(strings.Replace(stood, `"S":"old"`, `"S":"new"`, 1), `"N":"1"`, `"N":"2"`, 1)
	retiredOld := `"ConditionExpression":"#state = :state","ExpressionAttributeNames":{"#state":"state"},"ExpressionAttributeValues":{":state":{"S":"retired"}}`
	records := strings.NewReplacer("FENCE#old", "DEKFENCE#old").Replace // the same of the fence of records
	sealedOld := func(e *trace.Event) { e.States = map[string]string{"old": "sealed"} }
	return []call{
		dynamo("a source registered", "TransactWriteItems", "", transaction(free, registry, source, added), of("source_added", none)),
		dynamo("one that does not ask for the registry", "TransactWriteItems", "", transaction(free, source, added), of(trace.Unconditional, none)),
		dynamo("one that writes the registry blindly", "TransactWriteItems", "", transaction(free, putIf(blind, `"pk":{"S":"REGISTRY"}`), source, added), of(trace.Unconditional, none)),
		dynamo("one beside a rotation", "TransactWriteItems", "", transaction(registry, source, added), of(trace.Unconditional, none)),
		dynamo("one without a record", "PutItem", "", `{"TableName":"it-control","Item":{"pk":{"S":"SOURCE"},"sk":{"S":"orders"}}}`, unrecorded(func(e *trace.Event) { e.Actor = "Put SOURCE" })),
		dynamo("a KEK registered", "TransactWriteItems", "", transaction(free, stands, old("sealed"), registry, sealedShard, records(sealedShard), registered), of("kek_registered", sealedOld)),
		dynamo("one whose fence of records is not shut", "TransactWriteItems", "", transaction(free, stands, old("sealed"), registry, sealedShard, registered), of(trace.Unconditional, sealedOld)),
		dynamo("one whose fence is not shut", "TransactWriteItems", "", transaction(free, stands, old("sealed"), registry, registered), of(trace.Unconditional, sealedOld)),
		dynamo("a start", "TransactWriteItems", "preflight", transaction(putIf(absent, begun), taken, stands, check("REGISTRY", counted), started), of("rotation_started", began)),
		dynamo("one that does not ask for the sources", "TransactWriteItems", "preflight", transaction(putIf(absent, begun), taken, stands, started), of(trace.Unconditional, began)),
		dynamo("a mark left", "PutItem", "application", `{"TableName":"it-control","Item":{"pk":{"S":"MARK"},"sk":{"S":"it-orders"}}}`),
		dynamo("a mark left by a function", "PutItem", "mint", `{"TableName":"it-control","Item":{"pk":{"S":"MARK"},"sk":{"S":"it-orders"}}}`, unrecorded(func(e *trace.Event) { e.Actor = "Put MARK" })),
		dynamo("a mark removed", "DeleteItem", "", `{"TableName":"it-control","Key":{"pk":{"S":"MARK"},"sk":{"S":"it-orders"}}}`, unrecorded(func(e *trace.Event) { e.Actor = "Delete MARK" })),
		dynamo("the switch", "TransactWriteItems", "switch", whole(putIf(stood, pointer), held), change),
		dynamo("its repeat under the same token", "TransactWriteItems", "switch", whole(putIf(stood, pointer), held)),
		dynamo("a pointer that is written blindly", "TransactWriteItems", "switch", whole(putIf(blind, pointer), held), loose),
		dynamo("a step that does not ask for the lock", "TransactWriteItems", "switch", whole(putIf(stood, pointer), stands), loose),
		dynamo("the pointer moved back in the name of a genesis", "TransactWriteItems", "switch",
			transaction(putIf(moved2, `"pk":{"S":"POINTER"},"kek_id":{"S":"old"},"epoch":{"N":"1"}`), putIf(retiredOld, `"pk":{"S":"KEK#old"},"state":{"S":"active"}`), free, registry, genesis),
			of(trace.Unconditional, func(e *trace.Event) {
				e.KEK, e.Epoch, e.Moved, e.States = "old", 1, true, map[string]string{"old": "active"}
			})),
		dynamo("a retirement", "TransactWriteItems", "retire", transaction(putIf(step, switched), old("retired"), held, stands, retired), step5("old_kek_retired", "retired")),
		dynamo("one that does not ask for the pointer", "TransactWriteItems", "retire", transaction(putIf(step, switched), old("retired"), held, retired), step5(trace.Unconditional, "retired")),
		dynamo("a seal", "TransactWriteItems", "drain", transaction(putIf(step, switched), old("sealed"), held, shut, records(shut), sealed), step5("old_kek_sealed", "sealed")),
		dynamo("one that does not ask for the fence of records", "TransactWriteItems", "drain", transaction(putIf(step, switched), old("sealed"), held, shut, sealed), step5(trace.Unconditional, "sealed")),
		dynamo("one that does not ask for its shards", "TransactWriteItems", "drain", transaction(putIf(step, switched), old("sealed"), held, sealed), step5(trace.Unconditional, "sealed")),
		dynamo("a change without its record", "TransactWriteItems", "switch", transaction(put(pointer)),
			unrecorded(func(e *trace.Event) { e.KEK, e.Epoch, e.Moved = "new", 2, true })),
		dynamo("a record whose head does not move", "TransactWriteItems", "switch", transaction(put(switched), strings.Split(five, `,{"Update"`)[0]),
			unrecorded(func(e *trace.Event) {
				e.Rotation, e.Mode, e.Phase, e.Attempt, e.Old, e.KEK = "q2", "normal", "switched", 1, "old", "new"
			})),
		dynamo("a record of another rotation", "TransactWriteItems", "switch", transaction(put(`"pk":{"S":"KEK#k"},"state":{"S":"active"}`), five),
			unrecorded(func(e *trace.Event) { e.States = map[string]string{"k": "active"} })),
		dynamo("the pointer alone", "UpdateItem", "switch", `{"TableName":"it-control","Key":{"pk":{"S":"POINTER"},"sk":{"S":"-"}},"UpdateExpression":"SET kek_id = :k","ExpressionAttributeValues":{":k":{"S":"x"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor, e.KEK = "Update POINTER", "x" })),
		dynamo("the lock released", "TransactWriteItems", "verify", transaction(putIf(step, switched), `{"Delete":{"TableName":"it-control","Key":{"pk":{"S":"LOCK"},"sk":{"S":"-"}},`+ours+`}}`, five),
			trace.Event{
				Effect: "Store.Apply", Event: "pointer_switched", Actor: "switch", Rotation: "q2", Mode: "normal", Phase: "switched",
				Attempt: 1, Old: "old", KEK: "new", Seq: 5, Lock: trace.LockReleased,
			}),
		dynamo("a record of its own", "TransactWriteItems", "retire", transaction(put(`"pk":{"S":"DRILL#d"}`), note),
			trace.Event{Effect: "Store.Record", Event: "canary_green", Seq: 5}),
		dynamo("a lease in a transaction", "TransactWriteItems", "drain", transaction(put(`"pk":{"S":"LEASE#old"}`), five)).error(),
		dynamo("a damaged record", "TransactWriteItems", "switch", transaction(put(`"pk":{"S":"AUDIT"},"record":{"B":"e30="}`))).error(),
		dynamo("a shard sealed", "PutItem", "drain", `{"TableName":"it-control","Item":{"pk":{"S":"FENCE#old"},"sk":{"S":"03"},"state":{"S":"sealed"}}}`,
			trace.Event{Effect: "Store.SealFence", KEK: "old", Shard: 3}),
		dynamo("a shard of the fence of records sealed", "PutItem", "drain", `{"TableName":"it-control","Item":{"pk":{"S":"DEKFENCE#old"},"sk":{"S":"03"},"state":{"S":"sealed"}}}`),
		dynamo("one sealed by another function", "PutItem", "switch", `{"TableName":"it-control","Item":{"pk":{"S":"DEKFENCE#old"},"sk":{"S":"03"},"state":{"S":"sealed"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor = "Put DEKFENCE#old" })),
		dynamo("one opened alone", "PutItem", "drain", `{"TableName":"it-control","Item":{"pk":{"S":"DEKFENCE#old"},"sk":{"S":"03"},"state":{"S":"open"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor = "Put DEKFENCE#old" })),
		dynamo("a shard opened alone", "PutItem", "drain", `{"TableName":"it-control","Item":{"pk":{"S":"FENCE#old"},"sk":{"S":"03"},"state":{"S":"open"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor = "Put FENCE#old" })),
		dynamo("a checkpoint", "PutItem", "rewrap", `{"TableName":"it-control",`+counted+`,"Item":{"pk":{"S":"CHECKPOINT#q2#orders#rewrap"},"sk":{"S":"001"},"done":{"BOOL":true}}}`,
			trace.Event{Effect: "Store.SaveCheckpoint", Rotation: "q2", Source: "orders", Sweep: "rewrap", Segment: 1, Done: true}),
		dynamo("a checkpoint over whatever is there", "PutItem", "rewrap", `{"TableName":"it-control","Item":{"pk":{"S":"CHECKPOINT#q2#orders#rewrap"},"sk":{"S":"001"},"done":{"BOOL":true}}}`,
			unconditional("Put CHECKPOINT#q2#orders#rewrap", none)),
		dynamo("marked", "UpdateItem", "switch", markTo(forward), trace.Event{Effect: "Store.MarkPublished", Seq: 5}),
		dynamo("marked on no condition", "UpdateItem", "switch", markTo(""), unconditional("Update AUDIT_HEAD", none)),
		dynamo("marked back", "UpdateItem", "switch", markTo(strings.Replace(forward, "#p < :s", "#p > :s", 1)), unconditional("Update AUDIT_HEAD", none)),
		dynamo("marked past the head", "UpdateItem", "switch", markTo(strings.Replace(forward, "#seq >= :s AND ", "", 1)), unconditional("Update AUDIT_HEAD", none)),
		dynamo("the anchor's state", "PutItem", "anchor", `{"TableName":"it-control","Item":{"pk":{"S":"ANCHOR"}}}`),
		dynamo("an approval by a function that has none to give", "PutItem", "switch", `{"TableName":"it-control","Item":{"pk":{"S":"APPROVAL#q2"},"state":{"S":"approved"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor = "Put APPROVAL#q2" })),
		dynamo("one in a transaction with its record", "TransactWriteItems", "switch", transaction(put(`"pk":{"S":"APPROVAL#q2"},"state":{"S":"approved"}`), note),
			unrecorded(func(e *trace.Event) { e.Actor = "Put APPROVAL#q2" })),
		dynamo("the anchor's state deleted", "DeleteItem", "anchor", `{"TableName":"it-control","Key":{"pk":{"S":"ANCHOR"},"sk":{"S":"-"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor = "Delete ANCHOR" })),
		dynamo("a canary counted", "UpdateItem", "health", `{"TableName":"it-control","Key":{"pk":{"S":"HEALTH#d"},"sk":{"S":"-"}},"UpdateExpression":"ADD #green :n"}`),
		dynamo("one that is set", "PutItem", "health", `{"TableName":"it-control","Item":{"pk":{"S":"HEALTH#d"},"green":{"N":"99"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor = "Put HEALTH#d" })),
		dynamo("a lease put", "PutItem", "application", `{"TableName":"it-control","Item":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"},"expires_at":{"N":"9"}}}`,
			trace.Event{Effect: "Store.PutLease", Actor: "h", KEK: "old", Expires: 9}),
		dynamo("a lease renewed", "UpdateItem", "application", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}},"UpdateExpression":"SET refs = :r, expires_at = :e","ExpressionAttributeValues":{":r":{"N":"1"},":e":{"N":"9"}}}`,
			trace.Event{Effect: "Store.RenewLease", Actor: "h", KEK: "old", Expires: 9}),
		dynamo("a lease dropped", "DeleteItem", "application", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}}}`,
			trace.Event{Effect: "Store.DropLease", Actor: "h", KEK: "old"}),
		dynamo("a lease revoked", "DeleteItem", "drain", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}},"ConditionExpression":"#e = :e","ExpressionAttributeNames":{"#e":"expires_at"},"ExpressionAttributeValues":{":e":{"N":"9"}}}`,
			trace.Event{Effect: "Store.Revoke", Actor: "h", KEK: "old", Expires: 9}),
		dynamo("a lease revoked blindly", "DeleteItem", "drain", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}}}`,
			trace.Event{Effect: "Store.Revoke", Actor: "h", KEK: "old"}),
		look("a look at the leases", `"ConsistentRead":true`, `{}`, trace.Event{Effect: "Store.Leases", KEK: "old"}),
		look("a stale look", `"ConsistentRead":false`, `{}`),
		look("half a look", `"ConsistentRead":true`, `{"LastEvaluatedKey":{"pk":{"S":"x"}}}`).error(),
		dynamo("an insert", "TransactWriteItems", app, `{"TransactItems":[`+rowPut+`,`+fenced+`]}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Insert", 3 })),
		dynamo("an insert past the fence", "TransactWriteItems", app, `{"TransactItems":[`+rowPut+`]}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Insert", -1 })),
		dynamo("an insert over whatever is there", "TransactWriteItems", app, `{"TransactItems":[`+strings.Replace(rowPut, absentKey, "", 1)+`,`+fenced+`]}`,
			unconditional("Put orders/b/7", func(e *trace.Event) { e.KEK, e.Epoch = "new", 2 })),
		refused("an insert that the fence refused", `{"CancellationReasons":[{"Code":"None"},{"Code":"ConditionalCheckFailed"}]}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Shard, e.Refused = "Table.Insert", 3, true })),
		refused("an insert that met another", `{"CancellationReasons":[{"Code":"TransactionConflict"},{"Code":"None"}]}`),
		dynamo("a row as it is", "PutItem", "", `{"TableName":"it-orders","Item":{`+rowItem+`}}`, unwrapped, with(row, func(e *trace.Event) { e.Effect = trace.Plant })),
		dynamo("a row as it is, with the key of an application", "PutItem", app, `{"TableName":"it-orders","Item":{`+rowItem+`}}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Caller = trace.Plant, trace.Person })),
		dynamo("a row as it is, by a function", "PutItem", "rewrap", `{"TableName":"it-orders","Item":{`+rowItem+`}}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Insert", -1 })),
		dynamo("a row that names no KEK", "PutItem", "", `{"TableName":"it-orders","Item":{`+strings.Replace(rowItem, `"key_ref":{"S":"new"},"key_epoch":{"N":"2"},`, "", 1)+`}}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.KEK, e.Epoch = trace.Plant, "", 0 })),
		dynamo("a payload of another row", "PutItem", "", `{"TableName":"it-orders","Item":{`+strings.Replace(rowItem, `"N":"7"`, `"N":"8"`, 1)+`}}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Row, e.BodyDEK, e.Text = trace.Plant, "b/8", trace.UnknownDEK, "" })),
		dynamo("a wrapped DEK that is none", "PutItem", "", `{"TableName":"it-orders","Item":{`+strings.Replace(rowItem, `ZGVr`, `Z2FyYmFnZQ==`, 1)+`}}`,
			with(row, func(e *trace.Event) {
				e.Effect, e.Blob, e.BodyDEK, e.Text = trace.Plant, trace.Digest([]byte("garbage")), trace.UnknownDEK, ""
			})),
		dynamo("no envelope any more", "PutItem", "", `{"TableName":"it-orders","Item":{`+rowKey+`}}`, trace.Event{Effect: "Table.Delete", Source: "orders", Row: "b/7"}),
		dynamo("an update", "UpdateItem", app, update(", #b = :b", "#b = :ob AND #e <= :e"),
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Update", trace.Unfenced })),
		dynamo("an update past the fence", "TransactWriteItems", app, `{"TransactItems":[{"Update":`+update(", #b = :b", "#b = :ob AND attribute_not_exists(#e)")+`},`+fenced+`]}`,
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Update", 3 })),
		dynamo("an update on no condition", "UpdateItem", app, update(", #b = :b", ""), looseUpdate),
		dynamo("an update of whatever payload is there", "UpdateItem", app, update(", #b = :b", "#e <= :e"), looseUpdate),
		dynamo("an update in whatever epoch", "UpdateItem", app, update(", #b = :b", "#b = :ob"), looseUpdate),
		dynamo("an update in a later epoch", "UpdateItem", app, update(", #b = :b", "#b = :ob AND #e <= :one"), looseUpdate),
		dynamo("an update by another program", "UpdateItem", "", update(", #b = :b", ""), unwrapped, with(row, func(e *trace.Event) { e.Effect = trace.Plant })),
		dynamo("a row adopted", "UpdateItem", "", label("#d = :od AND attribute_not_exists(#k)"),
			trace.Event{Effect: trace.Label, Source: "orders", Row: "b/7", KEK: "new", Was: was}),
		dynamo("a KEK's ARN written as its id", "UpdateItem", "", label("#d = :od AND #k = :arn")),
		dynamo("a row labelled blindly", "UpdateItem", "", label("attribute_exists(#k)"),
			unconditional("Update orders/b/7", func(e *trace.Event) { e.KEK = "new" })),
		dynamo("a rewrap", "UpdateItem", "rewrap", update("", "#k = :ok AND #d = :od"),
			unwrapped, with(row, func(e *trace.Event) {
				e.Effect, e.Old, e.Was, e.Body, e.BodyDEK, e.Text = "Table.Replace", "old", was, "", "", ""
			})),
		dynamo("a rewrap of an emergency", "UpdateItem", "rewrap", update(", #b = :b", "#k = :ok AND #d = :od AND #b = :ob"),
			unwrapped, with(row, func(e *trace.Event) {
				e.Effect, e.Old, e.Was, e.WasBody = "Table.Replace", "old", was, was
			})),
		dynamo("a blind rewrap", "UpdateItem", "rewrap", update("", ""),
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Body, e.BodyDEK, e.Text = "Table.Replace", "", "", "" })),
		dynamo("a disjunction demands nothing", "UpdateItem", "rewrap", update("", "#k = :ok AND #d = :od OR #e = :e"),
			unwrapped, with(row, func(e *trace.Event) { e.Effect, e.Body, e.BodyDEK, e.Text = "Table.Replace", "", "", "" })),
		dynamo("another attribute, by a function", "UpdateItem", "rewrap", `{"TableName":"it-orders","Key":{`+rowKey+`},"UpdateExpression":"SET note = :n","ExpressionAttributeValues":{":n":{"S":"x"}}}`).error(),
		dynamo("a row deleted by a function", "DeleteItem", "rewrap", `{"TableName":"it-orders","Key":{`+rowKey+`}}`, trace.Event{Effect: "Table.Delete", Source: "orders", Row: "b/7"}),
		page("a page", `"Segment":1,"TotalSegments":4,"ConsistentRead":true,"ExclusiveStartKey":{`+rowKey+`}`, func(*trace.Event) {}),
		page("the last page", `"Segment":1,"TotalSegments":4,"ConsistentRead":true,"ExclusiveStartKey":{`+rowKey+`}`, func(e *trace.Event) { e.To = "" }),
		page("a page that may be stale", `"Segment":1,"TotalSegments":4,"ExclusiveStartKey":{`+rowKey+`}`, func(e *trace.Event) { e.Consistent = false }),
		page("a page of some rows", `"Segment":1,"TotalSegments":4,"ConsistentRead":true,"ExclusiveStartKey":{`+rowKey+`},"FilterExpression":"#k = :k"`, func(e *trace.Event) { e.Filtered = true }),
		page("a page that shows no KEKs", `"Segment":1,"TotalSegments":4,"ConsistentRead":true,"ExclusiveStartKey":{`+rowKey+`},"ProjectionExpression":"block, number, #d","ExpressionAttributeNames":{"#d":"edek"}`,
			func(e *trace.Event) { e.Filtered = true }),
		page("a page that shows what a pass needs", `"Segment":1,"TotalSegments":4,"ConsistentRead":true,"ExclusiveStartKey":{`+rowKey+`},"ProjectionExpression":"block, number, #k, #d","ExpressionAttributeNames":{"#d":"edek","#k":"key_ref"}`,
			func(*trace.Event) {}),
		page("a page of an index", `"Segment":1,"TotalSegments":4,"ConsistentRead":true,"ExclusiveStartKey":{`+rowKey+`},"IndexName":"i"`, func(e *trace.Event) { e.Filtered = true }),
		page("the first page of all", `"ConsistentRead":true`, func(e *trace.Event) { e.Segment, e.Total, e.From = 0, 1, "" }),
		dynamo("another attribute", "UpdateItem", "", `{"TableName":"it-orders","Key":{`+rowKey+`},"UpdateExpression":"SET note = :n REMOVE old","ExpressionAttributeValues":{":n":{"S":"x"}}}`),
		dynamo("a delete", "DeleteItem", "", `{"TableName":"it-orders","Key":{`+rowKey+`}}`, trace.Event{Effect: "Table.Delete", Source: "orders", Row: "b/7"}),
		dynamo("a batch", "BatchWriteItem", "", `{"RequestItems":{"it-orders":[]}}`).error(),
		dynamo("PartiQL", "ExecuteStatement", "", `{"Statement":"DELETE FROM \"it-control\" WHERE pk = 'POINTER'"}`).error(),
		dynamo("a table that is nobody's", "PutItem", "", `{"TableName":"other","Item":{}}`),
		dynamo("an expression of before", "UpdateItem", "", `{"TableName":"it-orders","Key":{`+rowKey+`},"AttributeUpdates":{}}`).error(),
		{name: "a lost answer", service: "dynamodb", op: "PutItem", body: `{"TableName":"it-control","Item":{"pk":{"S":"POINTER"}}}`, status: 503, fails: true},
		{name: "a failed condition", service: "dynamodb", op: "PutItem", body: `{"TableName":"it-control","Item":{"pk":{"S":"POINTER"}}}`, status: 400},
		{
			name: "a key made", service: "kms", op: "CreateKey", answer: `{"KeyMetadata":{"KeyId":"k1"}}`,
			body: `{"Tags":[{"TagKey":"matter:stack","TagValue":"it"},{"TagKey":"matter:rotation","TagValue":"q2"},{"TagKey":"matter:attempt","TagValue":"2"}]}`,
			want: []trace.Event{{Effect: "KMS.Create", Rotation: "q2", Attempt: 2, KEK: "k1"}},
		},
		{name: "an alias", service: "kms", op: "CreateAlias", body: `{"AliasName":"alias/matter/kek/it/1a2b3c4d/q2/2","TargetKeyId":"k1"}`, want: []trace.Event{{Effect: "KMS.Claim", Rotation: "q2", Attempt: 2, KEK: "k1"}}},
		{name: "an alias of others", service: "kms", op: "CreateAlias", body: `{"AliasName":"alias/other","TargetKeyId":"k1"}`},
		{name: "a key disabled", service: "kms", op: "DisableKey", body: `{"KeyId":"arn:aws:kms:r:1:key/k1"}`, want: []trace.Event{{Effect: "KMS.Disable", KEK: "k1"}}},
		secret("a DEK made", "GenerateDataKey", "rewrap", `{"KeyId":"new","EncryptionContext":{"table":"orders"}}`, plainly("dek", plainDEK), trace.Event{Effect: trace.GenerateDataKey, KEK: "new", Blob: dek, DEK: "dek 1"}),
		secret("a DEK opened", "Decrypt", "dualunwrap", `{"CiphertextBlob":"d2Fz"}`, `{"KeyId":"arn:aws:kms:r:1:key/old","Plaintext":"`+base64Of(plainWas)+`"}`, trace.Event{Effect: trace.Decrypt, KEK: "old", Blob: was, DEK: "dek 1"}),
		secret("a DEK wrapped again", "ReEncrypt", "rewrap", `{"CiphertextBlob":"d2Fz","SourceKeyId":"old","DestinationKeyId":"new"}`, again("dek"),
			trace.Event{Effect: trace.Decrypt, Caller: trace.Person, KEK: "old", Blob: was, DEK: "dek 1"},
			trace.Event{Effect: trace.ReEncrypt, Old: "old", Was: was, KEK: "new", Blob: dek, DEK: "dek 2"}), // another DEK, as KMS says and the answer does not
		secret("one that does not open", "ReEncrypt", "rewrap", `{"CiphertextBlob":"d2Fz","SourceKeyId":"old","DestinationKeyId":"new"}`, again("garbage")).error(),
		secret("one under another key", "ReEncrypt", "rewrap", `{"CiphertextBlob":"d2Fz","SourceKeyId":"old","DestinationKeyId":"new"}`, again("was")).error(),
		secret("data wrapped by a person", "Encrypt", "", `{"KeyId":"new","Plaintext":"`+base64Of(plainDEK)+`"}`, plainly("dek", nil), trace.Event{Effect: trace.Decrypt, KEK: "new", Blob: dek, DEK: "dek 1"}),
		secret("data wrapped by a function", "Encrypt", "mint", `{"KeyId":"new","Plaintext":"`+base64Of(plainDEK)+`"}`, plainly("dek", nil)).error(),
		secret("a DEK that nobody sees", "GenerateDataKeyWithoutPlaintext", "", `{"KeyId":"new"}`, plainly("dek", nil)).error(),
		secret("an answer that is none", "GenerateDataKey", "rewrap", `{"KeyId":"new"}`, `{"Plaintext":7}`).error(),
		{name: "a refused Decrypt", service: "kms", op: "Decrypt", body: `{}`, status: 400},
		{name: "a grant", service: "kms", op: "CreateGrant", body: `{"KeyId":"k1"}`},
		{name: "a grant by a function", service: "kms", op: "CreateGrant", caller: "mint", body: `{"KeyId":"k1"}`, fails: true},
		{name: "a key to be deleted", service: "kms", op: "ScheduleKeyDeletion", body: `{"KeyId":"k1"}`, fails: true},
		{name: "a record stored", service: "s3", op: "PutObject", bucket: "it-audit", key: "v1/it/records/000000000007.json", caller: "mint", body: `{}`, want: []trace.Event{{Effect: "Vault.Put", Seq: 7}}},
		{name: "not the record that was appended", service: "s3", op: "PutObject", bucket: "it-audit", key: "v1/it/records/000000000005.json", body: `{}`, want: []trace.Event{{Effect: "Vault.Put"}}},
		{name: "an anchor", service: "s3", op: "PutObject", bucket: "it-audit", key: "v1/it/anchors/1.json"},
		{name: "a record deleted", service: "s3", op: "DeleteObject", bucket: "it-audit", key: "v1/it/records/000000000005.json", fails: true},
		{name: "an entry", service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", body: entry, want: []trace.Event{
			unwrapped, {Effect: trace.Plant, Source: "corpus", Row: "known/a.json", KEK: "new", Epoch: 2, Blob: dek, Body: trace.Digest(entryBody), BodyDEK: "dek 1", Text: "text 1"},
		}},
		{
			name: "an entry rewrapped", service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", caller: "rewrap", etag: `"e"`, body: entry,
			want: []trace.Event{{Effect: "Table.Replace", Source: "corpus", Row: "known/a.json", Old: "new", KEK: "new", Epoch: 2, Was: dek, WasBody: trace.Digest(entryBody), Blob: dek}},
		},
		{
			name: "an entry rewrapped blindly", service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", caller: "rewrap", body: entry,
			want: []trace.Event{{Effect: "Table.Replace", Source: "corpus", Row: "known/a.json", KEK: "new", Epoch: 2, Blob: dek, Body: trace.Digest(entryBody), BodyDEK: "dek 1", Text: "text 1"}},
		},
		{name: "an entry deleted", service: "s3", op: "DeleteObject", bucket: "it-corpus", key: "known/a.json", caller: "rewrap", want: []trace.Event{{Effect: "Table.Delete", Source: "corpus", Row: "known/a.json"}}},
		{name: "entries deleted at once", service: "s3", op: "DeleteObjects", bucket: "it-corpus", fails: true},
		{name: "an entry that is none", service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", body: "x", fails: true},
		{name: "the corpus opened to all", service: "s3", op: "PutBucketPolicy", bucket: "it-corpus", caller: "rewrap", fails: true},
		{name: "another bucket", service: "s3", op: "PutObject", bucket: "other", key: "x"},
	}
}

const absentKey = `"ConditionExpression":"attribute_not_exists(#key)","ExpressionAttributeNames":{"#key":"block"},`

func secret(name, op, caller, body, answer string, want ...trace.Event) call {
	return call{name: name, service: "kms", op: op, caller: caller, body: body, answer: answer, want: want}
}

func plainly(blob string, plain []byte) string {
	return `{"KeyId":"arn:aws:kms:r:1:key/new","CiphertextBlob":"` + base64Of([]byte(blob)) + `","Plaintext":"` + base64Of(plain) + `"}`
}

func again(blob string) string {
	return `{"KeyId":"arn:aws:kms:r:1:key/new","SourceKeyId":"arn:aws:kms:r:1:key/old","CiphertextBlob":"` + base64Of([]byte(blob)) + `"}`
}

// unconditional is a write that does not ask for what it must.
func unconditional(actor string, edit func(*trace.Event)) trace.Event {
	return with(trace.Event{Effect: "Store.Apply", Event: trace.Unconditional, Actor: actor}, edit)
}

// page is a scan of the second of four segments, from the row on to the next.
func page(name, how string, edit func(*trace.Event)) call {
	e := with(trace.Event{
		Effect: trace.Scan, Source: "orders", Segment: 1, Total: 4, From: trace.Digest([]byte("b/7")), To: trace.Digest([]byte("b/9")), Consistent: true,
		Page: []trace.Seen{{Row: "b/8", KEK: "old", Blob: was}, {Row: "b/9", Blob: dek}},
	}, edit)
	c := dynamo(name, "Scan", "rewrap", `{"TableName":"it-orders",`+how+`}`, e)
	c.answer = `{"Items":[{"block":{"S":"b"},"number":{"N":"8"},"key_ref":{"S":"old"},"edek":{"B":"d2Fz"}},
		{"block":{"S":"b"},"number":{"N":"9"},"edek":{"B":"ZGVr"}},{"block":{"S":"x"},"number":{"N":"1"},"note":{"S":"no envelope"}}]`
	if e.To != "" {
		c.answer += `,"LastEvaluatedKey":{"number":{"N":"9"},"block":{"S":"b"}}`
	}
	c.answer += "}"
	return c
}

func (c call) error() call {
	c.fails = true
	return c
}

func look(name, how, answer string, want ...trace.Event) call {
	c := dynamo(name, "Query", "drain", `{"TableName":"it-control",`+how+`,"KeyConditionExpression":"#pk = :pk","ExpressionAttributeNames":{"#pk":"pk"},"ExpressionAttributeValues":{":pk":{"S":"LEASE#old"}}}`, want...)
	c.answer = answer
	return c
}

func refused(name, answer string, want ...trace.Event) call {
	c := dynamo(name, "TransactWriteItems", "", `{"TransactItems":[`+rowPut+`,`+fenced+`]}`, want...)
	c.answer, c.status = answer, 400
	return c
}

// TestSee shows a recorder calls as the adapters and others make them: each becomes
// the event that it should, is known to have no effect, or is an error.
func TestSee(t *testing.T) {
	shared := wiretrace.New(config) // of which some calls need what others left
	for _, c := range calls() {
		r := shared
		if c.fails || c.service == "kms" || c.service == "dynamodb" && c.name != "the switch" && !strings.Contains(c.name, "repeat") {
			r = wiretrace.New(config)
		}
		before, _ := r.Events()
		e := c.exchange()
		e.AnsweredHeader.Set("Etag", `"e"`)
		r.See(e)
		got, err := r.Events()
		if got = got[len(before):]; (err != nil) != c.fails {
			t.Errorf("%s: error %v", c.name, err)
		}
		leaks(t, c.name, got, err)
		for i := range c.want {
			c.want[i].Caller = cmp.Or(c.want[i].Caller, c.caller, trace.Person)
		}
		if d := gocmp.Diff(c.want, numbered(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

// numbered is a run with its DEKs and its texts named in the order of their appearance.
func numbered(events []trace.Event) []trace.Event {
	var out []trace.Event
	names := map[string]string{"": "", trace.UnknownDEK: trace.UnknownDEK}
	texts := map[string]string{"": ""}
	for _, e := range events {
		for _, name := range []*string{&e.DEK, &e.BodyDEK} {
			if _, ok := names[*name]; !ok {
				names[*name] = fmt.Sprintf("dek %d", len(names)-1)
			}
			*name = names[*name]
		}
		if _, ok := texts[e.Text]; !ok {
			texts[e.Text] = fmt.Sprintf("text %d", len(texts))
		}
		e.N, e.Text = 0, texts[e.Text]
		out = append(out, e)
	}
	return out
}

// leaks requires that neither events nor errors hold a DEK or a payload's text, nor a digest
// that who guesses one could compare with.
func leaks(t *testing.T, name string, events []trace.Event, err error) {
	t.Helper()
	var b bytes.Buffer
	if err := trace.Write(&b, events); err != nil {
		t.Fatal(err)
	}
	text := b.String() + fmt.Sprint(err)
	for _, plain := range [][]byte{plainDEK, plainWas, []byte(payload)} {
		for _, secret := range []string{string(plain), base64Of(plain), hex.EncodeToString(plain), trace.Digest(plain)} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: a DEK or a text, or its digest without a key, is in %s", name, text)
			}
		}
	}
}

// TestNames: two recorders name one DEK, and one text, differently, so that traces cannot be
// joined. One recorder names them always the same.
func TestNames(t *testing.T) {
	made := secret("a DEK made", "GenerateDataKey", "rewrap", `{"KeyId":"new"}`, plainly("dek", plainDEK))
	put := named(t, "a row as it is")
	var names, texts []string
	for range 2 {
		r := wiretrace.New(config)
		for _, c := range []call{made, made, put, put} {
			r.See(c.exchange())
		}
		e, err := r.Events()
		if err != nil || len(e) != 4 || e[0].DEK == "" || e[0].DEK != e[1].DEK || e[2].Text == "" || e[2].Text != e[3].Text {
			t.Fatalf("%+v, %v", e, err)
		}
		names, texts = append(names, e[0].DEK), append(texts, e[2].Text)
	}
	if names[0] == names[1] || texts[0] == texts[1] {
		t.Error("the names of DEKs and texts are not keyed by a secret of the run")
	}
}

// TestCorpusPages: a listing becomes the page of a scan once its entries were read, by
// the process that asked for it; and what was overwritten meanwhile shows no one state.
func TestCorpusPages(t *testing.T) {
	const list = `<ListBucketResult><IsTruncated>%t</IsTruncated><Contents><Key>known/a.json</Key></Contents><Contents><Key>known/b.json</Key></Contents><Contents><Key>known/note.txt</Key></Contents></ListBucketResult>`
	listed := func(more bool, query string) call {
		v, err := url.ParseQuery("list-type=2&prefix=known/" + query)
		if err != nil {
			t.Fatal(err)
		}
		return call{service: "s3", op: "ListObjectsV2", caller: "rewrap", bucket: "it-corpus", query: v, answer: fmt.Sprintf(list, more)}
	}
	get := func(key string, status int) call {
		return call{service: "s3", op: "GetObject", caller: "rewrap", bucket: "it-corpus", key: key, answer: entry, status: status}
	}
	written := call{service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", body: entry}
	a, b := trace.Seen{Row: "known/a.json", KEK: "new", Blob: dek}, trace.Seen{Row: "known/b.json", KEK: "new", Blob: dek}
	whole := trace.Event{Effect: trace.Scan, Caller: "rewrap", Source: "corpus", Total: 1, Consistent: true, Page: []trace.Seen{a, b}}
	digest := func(s string) string { return trace.Digest([]byte(s)) }
	for name, c := range map[string]struct {
		calls []call
		want  []trace.Event
	}{
		"in any order":      {[]call{listed(false, ""), get("known/b.json", 200), get("known/a.json", 200)}, []trace.Event{whole}},
		"one is gone":       {[]call{listed(false, ""), get("known/b.json", 404), get("known/a.json", 200)}, []trace.Event{with(whole, func(e *trace.Event) { e.Page = []trace.Seen{a} })}},
		"one is not read":   {[]call{listed(false, ""), get("known/a.json", 200), get("known/b.json", 503)}, nil},
		"nothing is listed": {[]call{get("known/a.json", 200), get("known/b.json", 200)}, nil},
		"a page of several": {[]call{listed(true, "&start-after=known/0.json"), get("known/a.json", 200), get("known/b.json", 200)}, []trace.Event{
			with(whole, func(e *trace.Event) { e.From, e.To = digest("known/0.json"), digest("known/note.txt") }),
		}},
		"a part of the prefix": {[]call{listed(false, "&delimiter=/"), get("known/a.json", 200), get("known/b.json", 200)}, []trace.Event{with(whole, func(e *trace.Event) { e.Filtered = true })}},
		"overwritten meanwhile": {[]call{listed(false, ""), get("known/a.json", 200), written, get("known/b.json", 200)}, []trace.Event{
			unwrapped,
			{Effect: trace.Plant, Caller: trace.Person, Source: "corpus", Row: "known/a.json", KEK: "new", Epoch: 2, Blob: dek, Body: digest(string(entryBody)), BodyDEK: "dek 1", Text: "text 1"},
			with(whole, func(e *trace.Event) { e.Consistent = false }),
		}},
	} {
		r := wiretrace.New(config)
		for _, call := range c.calls {
			r.See(call.exchange())
		}
		got, err := r.Events()
		if d := gocmp.Diff(c.want, numbered(got)); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
}

// FuzzSee: whatever a write of the control table looks like, a recorder that is shown
// its success says something: an event, or that it does not understand.
func FuzzSee(f *testing.F) {
	for _, c := range calls() {
		f.Add(c.service, c.op, c.caller, c.body, c.answer, c.key)
	}
	f.Fuzz(func(t *testing.T, service, op, caller, body, answer, key string) {
		r := wiretrace.New(config)
		e := call{service: service, op: op, caller: caller, body: body, answer: answer, bucket: "it-audit", key: key}.exchange()
		r.See(e)
		events, err := r.Events()
		pointed := strings.Contains(body, `{"TableName":"it-control","Item":{"pk":{"S":"POINTER"}`) && op == "PutItem" && service == "dynamodb"
		if pointed && len(events) == 0 && err == nil {
			t.Errorf("the pointer was written in silence: %s", body)
		}
		for _, ev := range events {
			if ev.Effect == "" || ev.N == 0 {
				t.Errorf("an event of nothing: %+v", ev)
			}
		}
	})
}
