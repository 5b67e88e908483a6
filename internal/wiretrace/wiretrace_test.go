package wiretrace_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/localaws/wire"
	"github.com/matter-ops/kms-rotation/internal/wiretrace"
	"github.com/matter-ops/kms-rotation/spec/trace"
)

var config = wiretrace.Config{
	Stack: "it", ControlTable: "it-control", AuditBucket: "it-audit",
	Tables: []wiretrace.Table{{
		Source: "orders", Table: "it-orders", Keys: []string{"block", "number"},
		KEKID: "key_ref", WrappedDEK: "edek", Ciphertext: "body", Epoch: "key_epoch",
	}},
	Corpus: "corpus", CorpusBucket: "it-corpus", CorpusPrefix: "known/",
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
	rowKey  = `"block":{"S":"b"},"number":{"N":"7"}`
	rowItem = rowKey + `,"key_ref":{"S":"new"},"key_epoch":{"N":"2"},"edek":{"B":"ZGVr"},"body":{"B":"Ym9keQ=="},"rev":{"N":"1"}`
	rowPut  = `{"Put":{"TableName":"it-orders","ConditionExpression":"attribute_not_exists(#key)","ExpressionAttributeNames":{"#key":"block"},"Item":{` + rowItem + `}}}`
	entry   = `{"v":1,"kek_id":"new","kek_epoch":2,"wrapped_dek":"ZGVr","ciphertext":"Ym9keQ=="}`
)

var (
	dek, body, was = trace.Digest([]byte("dek")), trace.Digest([]byte("body")), trace.Digest([]byte("was"))
	change         = trace.Event{
		Effect: "Store.Apply", Event: "pointer_switched", Actor: "switch", Rotation: "q2", Mode: "normal", Phase: "switched", Attempt: 1,
		Old: "old", KEK: "new", Epoch: 2, Seq: 5, Moved: true, States: map[string]string{"new": "active", "old": "draining"}, Opened: []int{0},
	}
	row = trace.Event{Source: "orders", Row: "b/7", KEK: "new", Epoch: 2, Blob: dek, Body: body}
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
	want              []trace.Event
	fails             bool
}

func (c call) exchange() wire.Exchange {
	e := wire.Exchange{
		Call: wire.Call{Service: c.service, Operation: c.op, Bucket: c.bucket, Key: c.key}, Caller: c.caller, Status: c.status,
		Header: http.Header{}, AnsweredHeader: http.Header{}, Body: []byte(c.body), Answer: []byte(c.answer),
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
			"ExpressionAttributeValues":{":k":{"S":"new"},":d":{"B":"ZGVr"},":e":{"N":"2"},":b":{"B":"Ym9keQ=="},":ok":{"S":"old"},":od":{"B":"d2Fz"},":ob":{"B":"d2Fz"},":zero":{"N":"0"},":one":{"N":"1"}}}`
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
	sealedOld := func(e *trace.Event) { e.States = map[string]string{"old": "sealed"} }
	return []call{
		dynamo("a source registered", "TransactWriteItems", "", transaction(free, registry, source, added), of("source_added", none)),
		dynamo("one that does not ask for the registry", "TransactWriteItems", "", transaction(free, source, added), of(trace.Unconditional, none)),
		dynamo("one that writes the registry blindly", "TransactWriteItems", "", transaction(free, putIf(blind, `"pk":{"S":"REGISTRY"}`), source, added), of(trace.Unconditional, none)),
		dynamo("one beside a rotation", "TransactWriteItems", "", transaction(registry, source, added), of(trace.Unconditional, none)),
		dynamo("one without a record", "PutItem", "", `{"TableName":"it-control","Item":{"pk":{"S":"SOURCE"},"sk":{"S":"orders"}}}`, unrecorded(func(e *trace.Event) { e.Actor = "Put SOURCE" })),
		dynamo("a KEK registered", "TransactWriteItems", "", transaction(free, stands, old("sealed"), registry, sealedShard, registered), of("kek_registered", sealedOld)),
		dynamo("one whose fence is not shut", "TransactWriteItems", "", transaction(free, stands, old("sealed"), registry, registered), of(trace.Unconditional, sealedOld)),
		dynamo("a start", "TransactWriteItems", "preflight", transaction(putIf(absent, begun), taken, stands, check("REGISTRY", counted), started), of("rotation_started", began)),
		dynamo("one that does not ask for the sources", "TransactWriteItems", "preflight", transaction(putIf(absent, begun), taken, stands, started), of(trace.Unconditional, began)),
		dynamo("a mark left", "PutItem", "", `{"TableName":"it-control","Item":{"pk":{"S":"MARK"},"sk":{"S":"it-orders"}}}`),
		dynamo("a mark left by a function", "PutItem", "mint", `{"TableName":"it-control","Item":{"pk":{"S":"MARK"},"sk":{"S":"it-orders"}}}`, unrecorded(func(e *trace.Event) { e.Actor = "Put MARK" })),
		dynamo("a mark removed", "DeleteItem", "", `{"TableName":"it-control","Key":{"pk":{"S":"MARK"},"sk":{"S":"it-orders"}}}`, unrecorded(func(e *trace.Event) { e.Actor = "Delete MARK" })),
		dynamo("the switch", "TransactWriteItems", "switch", whole(putIf(stood, pointer), held), change),
		dynamo("its repeat under the same token", "TransactWriteItems", "switch", whole(putIf(stood, pointer), held)),
		dynamo("a pointer that is written blindly", "TransactWriteItems", "switch", whole(putIf(blind, pointer), held), loose),
		dynamo("a step that does not ask for the lock", "TransactWriteItems", "switch", whole(putIf(stood, pointer), stands), loose),
		dynamo("a retirement", "TransactWriteItems", "retire", transaction(putIf(step, switched), old("retired"), held, stands, retired), step5("old_kek_retired", "retired")),
		dynamo("one that does not ask for the pointer", "TransactWriteItems", "retire", transaction(putIf(step, switched), old("retired"), held, retired), step5(trace.Unconditional, "retired")),
		dynamo("a seal", "TransactWriteItems", "drain", transaction(putIf(step, switched), old("sealed"), held, shut, sealed), step5("old_kek_sealed", "sealed")),
		dynamo("one that does not ask for its shards", "TransactWriteItems", "drain", transaction(putIf(step, switched), old("sealed"), held, sealed), step5(trace.Unconditional, "sealed")),
		dynamo("a change without its record", "TransactWriteItems", "switch", transaction(put(pointer)),
			unrecorded(func(e *trace.Event) { e.KEK, e.Epoch, e.Moved = "new", 2, true })),
		dynamo("a record whose head does not move", "TransactWriteItems", "switch", transaction(put(switched), strings.Split(five, `,{"Update"`)[0]),
			unrecorded(func(e *trace.Event) {
				e.Rotation, e.Mode, e.Phase, e.Attempt, e.Old, e.KEK = "q2", "normal", "switched", 1, "old", "new"
			})),
		dynamo("a record of another rotation", "TransactWriteItems", "switch", transaction(put(`"pk":{"S":"KEK#k"},"state":{"S":"active"}`), five),
			unrecorded(func(e *trace.Event) { e.States = map[string]string{"k": "active"} })),
		dynamo("the pointer by itself", "UpdateItem", "switch", `{"TableName":"it-control","Key":{"pk":{"S":"POINTER"},"sk":{"S":"-"}},"UpdateExpression":"SET kek_id = :k","ExpressionAttributeValues":{":k":{"S":"x"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor, e.KEK = "Update POINTER", "x" })),
		dynamo("the lock released", "TransactWriteItems", "verify", transaction(putIf(step, switched), `{"Delete":{"TableName":"it-control","Key":{"pk":{"S":"LOCK"},"sk":{"S":"-"}},`+ours+`}}`, five),
			trace.Event{
				Effect: "Store.Apply", Event: "pointer_switched", Actor: "switch", Rotation: "q2", Mode: "normal", Phase: "switched",
				Attempt: 1, Old: "old", KEK: "new", Seq: 5, Lock: trace.LockReleased,
			}),
		dynamo("a record of its own", "TransactWriteItems", "health", transaction(put(`"pk":{"S":"DRILL#d"}`), note),
			trace.Event{Effect: "Store.Record", Event: "canary_green", Seq: 5}),
		dynamo("a lease in a transaction", "TransactWriteItems", "drain", transaction(put(`"pk":{"S":"LEASE#old"}`), five)).error(),
		dynamo("a damaged record", "TransactWriteItems", "switch", transaction(put(`"pk":{"S":"AUDIT"},"record":{"B":"e30="}`))).error(),
		dynamo("a shard sealed", "PutItem", "drain", `{"TableName":"it-control","Item":{"pk":{"S":"FENCE#old"},"sk":{"S":"03"},"state":{"S":"sealed"}}}`,
			trace.Event{Effect: "Store.SealFence", KEK: "old", Shard: 3}),
		dynamo("a shard opened by itself", "PutItem", "drain", `{"TableName":"it-control","Item":{"pk":{"S":"FENCE#old"},"sk":{"S":"03"},"state":{"S":"open"}}}`,
			unrecorded(func(e *trace.Event) { e.Actor = "Put FENCE#old" })),
		dynamo("a checkpoint", "PutItem", "rewrap", `{"TableName":"it-control","Item":{"pk":{"S":"CHECKPOINT#q2#orders#rewrap"},"sk":{"S":"001"},"done":{"BOOL":true}}}`,
			trace.Event{Effect: "Store.SaveCheckpoint", Rotation: "q2", Source: "orders", Sweep: "rewrap", Segment: 1, Done: true}),
		dynamo("marked", "UpdateItem", "switch", `{"TableName":"it-control","Key":{"pk":{"S":"AUDIT_HEAD"},"sk":{"S":"-"}},"UpdateExpression":"SET #p = :s","ExpressionAttributeNames":{"#p":"published_seq"},"ExpressionAttributeValues":{":s":{"N":"5"}}}`,
			trace.Event{Effect: "Store.MarkPublished", Seq: 5}),
		dynamo("the anchor's state", "PutItem", "anchor", `{"TableName":"it-control","Item":{"pk":{"S":"ANCHOR"}}}`),
		dynamo("a lease put", "PutItem", "", `{"TableName":"it-control","Item":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"},"expires_at":{"N":"9"}}}`,
			trace.Event{Effect: "Store.PutLease", Actor: "h", KEK: "old", Expires: 9}),
		dynamo("a lease renewed", "UpdateItem", "", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}},"UpdateExpression":"SET refs = :r, expires_at = :e","ExpressionAttributeValues":{":r":{"N":"1"},":e":{"N":"9"}}}`,
			trace.Event{Effect: "Store.RenewLease", Actor: "h", KEK: "old", Expires: 9}),
		dynamo("a lease dropped", "DeleteItem", "", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}}}`,
			trace.Event{Effect: "Store.DropLease", Actor: "h", KEK: "old"}),
		dynamo("a lease revoked", "DeleteItem", "drain", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}},"ConditionExpression":"#e = :e","ExpressionAttributeNames":{"#e":"expires_at"},"ExpressionAttributeValues":{":e":{"N":"9"}}}`,
			trace.Event{Effect: "Store.Revoke", Actor: "h", KEK: "old", Expires: 9}),
		dynamo("a lease revoked blindly", "DeleteItem", "drain", `{"TableName":"it-control","Key":{"pk":{"S":"LEASE#old"},"sk":{"S":"h"}}}`,
			trace.Event{Effect: "Store.Revoke", Actor: "h", KEK: "old"}),
		look("a look at the leases", `"ConsistentRead":true`, `{}`, trace.Event{Effect: "Store.Leases", KEK: "old"}),
		look("a stale look", `"ConsistentRead":false`, `{}`),
		look("half a look", `"ConsistentRead":true`, `{"LastEvaluatedKey":{"pk":{"S":"x"}}}`).error(),
		dynamo("an insert", "TransactWriteItems", "", `{"TransactItems":[`+rowPut+`,`+fenced+`]}`,
			with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Insert", 3 })),
		dynamo("an insert past the fence", "TransactWriteItems", "", `{"TransactItems":[`+rowPut+`]}`,
			with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Insert", -1 })),
		refused("an insert that the fence refused", `{"CancellationReasons":[{"Code":"None"},{"Code":"ConditionalCheckFailed"}]}`,
			with(row, func(e *trace.Event) { e.Effect, e.Shard, e.Refused = "Table.Insert", 3, true })),
		refused("an insert that met another", `{"CancellationReasons":[{"Code":"TransactionConflict"},{"Code":"None"}]}`),
		dynamo("a row as it is", "PutItem", "", `{"TableName":"it-orders","Item":{`+rowItem+`}}`, with(row, func(e *trace.Event) { e.Effect = trace.Plant })),
		dynamo("a row as it is, by a function", "PutItem", "rewrap", `{"TableName":"it-orders","Item":{`+rowItem+`}}`,
			with(row, func(e *trace.Event) { e.Effect, e.Shard, e.Actor = "Table.Insert", -1, "rewrap" })),
		dynamo("an update", "UpdateItem", "", update(", #b = :b", "attribute_exists(#k) AND (attribute_not_exists(#e) OR #e <= :e)"),
			with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Update", trace.Unfenced })),
		dynamo("an update past the fence", "TransactWriteItems", "", `{"TransactItems":[{"Update":`+update(", #b = :b", "#b = :ob AND attribute_not_exists(#e)")+`},`+fenced+`]}`,
			with(row, func(e *trace.Event) { e.Effect, e.Shard = "Table.Update", 3 })),
		dynamo("a row adopted", "UpdateItem", "", label("#d = :od AND attribute_not_exists(#k)"),
			trace.Event{Effect: trace.Plant, Source: "orders", Row: "b/7", KEK: "new", Blob: was}),
		dynamo("a KEK's ARN written as its id", "UpdateItem", "", label("#d = :od AND #k = :arn")),
		dynamo("a row labelled blindly", "UpdateItem", "", label("attribute_exists(#k)"),
			trace.Event{Effect: "Table.Update", Source: "orders", Row: "b/7", KEK: "new"}),
		dynamo("a rewrap", "UpdateItem", "rewrap", update("", "#k = :ok AND #d = :od"),
			with(row, func(e *trace.Event) {
				e.Effect, e.Actor, e.Old, e.Was, e.Body = "Table.Replace", "rewrap", "old", was, ""
			})),
		dynamo("a rewrap of an emergency", "UpdateItem", "rewrap", update(", #b = :b", "#k = :ok AND #d = :od AND #b = :ob"),
			with(row, func(e *trace.Event) {
				e.Effect, e.Actor, e.Old, e.Was, e.WasBody = "Table.Replace", "rewrap", "old", was, was
			})),
		dynamo("a blind rewrap", "UpdateItem", "rewrap", update("", ""),
			with(row, func(e *trace.Event) { e.Effect, e.Actor, e.Body = "Table.Replace", "rewrap", "" })),
		dynamo("a disjunction demands nothing", "UpdateItem", "rewrap", update("", "#k = :ok AND #d = :od OR #e = :e"),
			with(row, func(e *trace.Event) { e.Effect, e.Actor, e.Body = "Table.Replace", "rewrap", "" })),
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
		{name: "a grant", service: "kms", op: "CreateGrant", body: `{"KeyId":"k1"}`},
		{name: "a grant by a function", service: "kms", op: "CreateGrant", caller: "mint", body: `{"KeyId":"k1"}`, fails: true},
		{name: "a key to be deleted", service: "kms", op: "ScheduleKeyDeletion", body: `{"KeyId":"k1"}`, fails: true},
		{name: "a record stored", service: "s3", op: "PutObject", bucket: "it-audit", key: "v1/it/records/000000000007.json", caller: "mint", body: `{}`, want: []trace.Event{{Effect: "Vault.Put", Seq: 7, Actor: "mint"}}},
		{name: "not the record that was appended", service: "s3", op: "PutObject", bucket: "it-audit", key: "v1/it/records/000000000005.json", body: `{}`, want: []trace.Event{{Effect: "Vault.Put"}}},
		{name: "an anchor", service: "s3", op: "PutObject", bucket: "it-audit", key: "v1/it/anchors/1.json"},
		{name: "a record deleted", service: "s3", op: "DeleteObject", bucket: "it-audit", key: "v1/it/records/000000000005.json", fails: true},
		{name: "an entry", service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", body: entry, want: []trace.Event{{Effect: trace.Plant, Source: "corpus", Row: "known/a.json", KEK: "new", Epoch: 2, Blob: dek, Body: body}}},
		{
			name: "an entry rewrapped", service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", caller: "rewrap", etag: `"e"`, body: entry,
			want: []trace.Event{{Effect: "Table.Replace", Source: "corpus", Row: "known/a.json", Actor: "rewrap", Old: "new", KEK: "new", Epoch: 2, Was: dek, WasBody: body, Blob: dek}},
		},
		{
			name: "an entry rewrapped blindly", service: "s3", op: "PutObject", bucket: "it-corpus", key: "known/a.json", caller: "rewrap", body: entry,
			want: []trace.Event{{Effect: "Table.Replace", Source: "corpus", Row: "known/a.json", Actor: "rewrap", KEK: "new", Epoch: 2, Blob: dek, Body: body}},
		},
		{name: "another bucket", service: "s3", op: "PutObject", bucket: "other", key: "x"},
	}
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
		if c.fails || c.service == "dynamodb" && c.name != "the switch" && !strings.Contains(c.name, "repeat") {
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
		for i := range got {
			got[i].N = 0
		}
		if d := cmp.Diff(c.want, append([]trace.Event(nil), got...)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
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
