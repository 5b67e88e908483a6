package sim

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// stepsDB is DynamoDB under the steps. It holds every single write to what an adapter
// promises of it, and with requests the schedule decides about each.
type stepsDB struct {
	*memddb.DB
	*hooked
	procs    *processes
	requests bool
	plain    *ddb.Store      // past the hook
	revoking rotation.Lease  // what drain saw and revokes
	moments  [][]memddb.Item // the control table after each transaction, for who restores it
}

// requested makes one request. seen sees its effect.
func requested[In, Out any](c context.Context, d *stepsDB, op string, in *In,
	call func(context.Context, *In, ...func(*dynamodb.Options)) (*Out, error), seen func(err error),
) (out *Out, err error) {
	effect := func() (any, error) {
		var err error
		d.r.atomically(func() { out, err = call(c, in) })
		if seen != nil {
			seen(err)
		}
		return nil, err
	}
	if d.requests {
		err = d.call("DynamoDB."+op, effect)
	} else {
		_, err = effect()
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (d *stepsDB) GetItem(c context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return requested(c, d, "GetItem", in, d.DB.GetItem, nil)
}

func (d *stepsDB) Query(c context.Context, in *dynamodb.QueryInput, _ ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	return requested(c, d, "Query", in, d.DB.Query, nil)
}

func (d *stepsDB) Scan(c context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	return requested(c, d, "Scan", in, d.DB.Scan, nil)
}

func (d *stepsDB) TransactGetItems(c context.Context, in *dynamodb.TransactGetItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	return requested(c, d, "TransactGetItems", in, d.DB.TransactGetItems, nil)
}

func (d *stepsDB) PutItem(c context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return requested(c, d, "PutItem", in, func(c context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
		if id, ok := strings.CutPrefix(text(in.Item["pk"]), "FENCE#"); ok {
			d.sealing(kek.ID(id))
		}
		return d.DB.PutItem(c, in)
	}, func(err error) {
		d.alone(err, registry(in.TableName, in.Item), in.Item)
		if strings.HasPrefix(text(in.Item["pk"]), "FENCE#") {
			d.tell("Store.SealFence", err)
		}
	})
}

func (d *stepsDB) UpdateItem(c context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return requested(c, d, "UpdateItem", in, d.DB.UpdateItem, func(err error) {
		d.alone(err, registry(in.TableName, in.Key), in.Key)
		if *in.TableName != controlTable {
			d.tell("Table.Replace", err)
		}
	})
}

// DeleteItem: what is revoked is what was seen. Who has renewed in between is alive.
func (d *stepsDB) DeleteItem(c context.Context, in *dynamodb.DeleteItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	holder, renewed := text(in.Key["sk"]), false
	return requested(c, d, "DeleteItem", in, func(c context.Context, in *dynamodb.DeleteItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
		if id, ok := strings.CutPrefix(text(in.Key["pk"]), "LEASE#"); ok {
			was, there := d.standing(kek.ID(id))[holder]
			if renewed = there && !was.Expires.Equal(d.revoking.Expires); renewed {
				d.r.tell("the lease of %s was renewed in between, until %s", holder, was.Expires.Format(time.TimeOnly))
			}
		}
		return d.DB.DeleteItem(c, in)
	}, func(err error) {
		d.alone(err, registry(in.TableName, in.Key), in.Key)
		if err == nil && renewed {
			d.r.violated("DrainRevokes", "%s had renewed its lease, and it is revoked", holder)
		}
	})
}

func (d *stepsDB) TransactWriteItems(c context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	return requested(c, d, "TransactWriteItems", in, d.DB.TransactWriteItems, func(err error) {
		if err == nil {
			d.transacted(in.TransactItems)
			d.keep()
		}
	})
}

// keep notes what the control table holds, in schedules that restore it.
func (d *stepsDB) keep() {
	if !d.r.sched.restores() {
		return
	}
	var items []memddb.Item
	d.Each(controlTable, func(i memddb.Item) { items = append(items, maps.Clone(i)) })
	d.moments = append(d.moments, items)
}

// recover is point-in-time recovery of the control table to the moment so many transactions
// ago, or to its first.
func (d *stepsDB) recover(back int) {
	n := max(0, len(d.moments)-1-back)
	var keys []memddb.Item
	d.Each(controlTable, func(i memddb.Item) { keys = append(keys, memddb.Item{"pk": i["pk"], "sk": i["sk"]}) })
	for _, key := range keys {
		_, err := d.DB.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: aws.String(controlTable), Key: key})
		d.r.must(err)
	}
	for _, i := range d.moments[n] {
		_, err := d.DB.PutItem(ctx, &dynamodb.PutItemInput{TableName: aws.String(controlTable), Item: i})
		d.r.must(err)
	}
	d.moments = d.moments[:n+1]
}

// transacted: EveryEffectRecorded, for a transaction that was made. Whatever changes
// the registry moves the head of the audit chain.
func (d *stepsDB) transacted(items []types.TransactWriteItem) {
	var touched, head memddb.Item
	for _, i := range items {
		switch {
		case i.Put != nil && registry(i.Put.TableName, i.Put.Item):
			touched = i.Put.Item
		case i.Delete != nil && registry(i.Delete.TableName, i.Delete.Key):
			touched = i.Delete.Key
		case i.Update != nil && registry(i.Update.TableName, i.Update.Key):
			touched = i.Update.Key
		case i.Update != nil && text(i.Update.Key["pk"]) == "AUDIT_HEAD":
			head = i.Update.ExpressionAttributeValues
		}
	}
	d.alone(nil, touched != nil && head == nil, touched)
	if touched == nil && head == nil { // of rows, or of a data key
		d.tell("Table.Replace", nil)
	}
	if !d.requests || !d.watching || head == nil {
		return
	}
	if touched == nil {
		d.r.check.observe("Store.Record", nil, nil)
		return
	}
	n, _ := head[":seq"].(*types.AttributeValueMemberN)
	seq, err := strconv.ParseInt(n.Value, 10, 64)
	d.r.must(err)
	d.r.check.observe("Store.Apply", seq, nil, kek.Change{Event: "what a transaction wrote"})
}

// tell lets the checker see an effect, unless the adapter's call is what it sees.
func (d *stepsDB) tell(op string, err error) {
	if d.requests && d.watching {
		d.r.check.observe(op, nil, err)
	}
}

func (d *stepsDB) alone(err error, touched bool, i memddb.Item) {
	if err == nil && touched {
		d.r.violated("EveryEffectRecorded", "%s is written without a record", text(i["pk"]))
	}
}

func registry(table *string, i memddb.Item) bool {
	pk := text(i["pk"])
	return aws.ToString(table) == controlTable &&
		(pk == "POINTER" || pk == "LOCK" || pk == "REGISTRY" || pk == "SOURCE" || strings.HasPrefix(pk, "KEK#") || strings.HasPrefix(pk, "ROTATION#"))
}

// standing are the leases on a KEK by holder.
func (d *stepsDB) standing(id kek.ID) map[string]rotation.Lease {
	ls, err := d.plain.Leases(ctx, id)
	d.r.must(err)
	out := map[string]rotation.Lease{}
	for _, l := range ls {
		out[l.Holder] = l
	}
	return out
}

// sealing tells the checker which leases stand, and checks DrainWaits: the process
// that is alive renews its lease, so nothing may be sealed under what it is about to
// write, unless in an emergency or by a wrong clock.
func (d *stepsDB) sealing(id kek.ID) {
	if d.r.check == nil {
		return
	}
	clear(d.r.check.leases)
	for _, l := range d.standing(id) {
		d.r.check.leases[l] = true
	}
	e := d.procs.writers[1]
	if e == nil || e.under != id || d.r.skewed || d.r.lost {
		return
	}
	all, err := d.plain.Rotations(ctx)
	d.r.must(err)
	for _, rot := range all {
		if slices.Contains(rot.Olds, id) && rot.Mode == kek.Emergency {
			return
		}
	}
	d.r.violated("DrainWaits", "the fence of %s is being sealed while the service, which is alive, is about to write row %s", id, e.id)
}
