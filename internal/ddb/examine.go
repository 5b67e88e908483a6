package ddb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
)

var _ doctor.Items = (*Store)(nil)

// Examine implements [doctor.Items]: one strongly consistent scan of the whole table. A
// scan is not a snapshot, so the caller compares the audit head before and after it. An
// item that cannot be decoded is returned with its error and does not stop the scan.
func (s *Store) Examine(ctx context.Context) ([]doctor.Item, error) {
	in := &dynamodb.ScanInput{TableName: &s.table, ConsistentRead: aws.Bool(true)}
	var out []doctor.Item
	for {
		page, err := s.client.Scan(ctx, in)
		if err != nil {
			return nil, wrapError("Scan "+s.table, err)
		}
		for _, i := range page.Items {
			out = append(out, s.decodeItem(i))
		}
		if in.ExclusiveStartKey = page.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			return out, nil
		}
	}
}

// decodeItem decodes an item with the decoder of its kind. An item of an unknown kind is
// returned with its key only.
func (s *Store) decodeItem(i item) doctor.Item {
	r := attr.Reader{Item: i}
	out := doctor.Item{Key: doctor.ItemKey{PK: r.Str("pk"), SK: r.Str("sk")}, Raw: i}
	for _, k := range kinds {
		if id, ok := k.matchKey(out.Key); ok {
			out.Kind, out.ID = k.kind, id
			out.Value, out.Err = k.decode(s, i, out.Key, id)
			return out
		}
	}
	return out
}

// kind says how the items of one kind are recognised and decoded.
type kind struct {
	kind   doctor.ItemKind
	pk     string // the whole pk, or with prefix how it begins
	prefix bool
	bySK   bool // the id is the sk, not what follows the prefix
	decode func(s *Store, i item, key doctor.ItemKey, id string) (any, error)
}

// matchKey returns the id in a key of this kind: what follows the prefix, or the sort key.
// It returns false for a key of another kind.
func (k kind) matchKey(key doctor.ItemKey) (string, bool) {
	id, ok := strings.CutPrefix(key.PK, k.pk)
	if !k.prefix {
		ok = key.PK == k.pk
	}
	if k.bySK {
		return key.SK, ok
	}
	return id, ok
}

// kinds lists every kind of item of the control table.
var kinds = []kind{
	{kind: doctor.ItemPointer, pk: pkPointer, decode: decodeWith(decodePointer)},
	{kind: doctor.ItemLock, pk: pkLock, decode: decodeWith(decodeLock)},
	{kind: doctor.ItemKEK, pk: pkKEK, prefix: true, decode: decodeWith(decodeKEK)},
	{kind: doctor.ItemFence, pk: pkFence, prefix: true, decode: decodeWith(decodeFence)},
	{kind: doctor.ItemKeyFence, pk: pkKeyFence, prefix: true, decode: decodeWith(decodeFence)},
	{kind: doctor.ItemRotation, pk: pkRotation, prefix: true, decode: decodeWith(decodeRotation)},
	{kind: doctor.ItemRegistry, pk: pkRegistry, decode: decodeWith(decodeRegistry)},
	{kind: doctor.ItemSource, pk: pkSource, bySK: true, decode: decodeWith(decodeSource)},
	{kind: doctor.ItemMark, pk: pkMark, bySK: true, decode: decodeWith(decodeMark)},
	{kind: doctor.ItemLease, pk: pkLease, prefix: true, decode: decodeWith(decodeLease)},
	{kind: doctor.ItemHead, pk: pkAuditHead, decode: func(s *Store, i item, _ doctor.ItemKey, _ string) (any, error) {
		h, err := s.decodeHead(i)
		return doctor.HeadItem{Head: h.Head, Published: h.published, Generations: h.Generations}, err
	}},
	{kind: doctor.ItemRecord, pk: pkAudit, bySK: true, decode: func(_ *Store, i item, _ doctor.ItemKey, _ string) (any, error) {
		e, err := decodeEntry(i)
		if err != nil { // the hash that is stored with it is what the next record commits to
			r := attr.Reader{Item: i}
			e = audit.Entry{Hash: r.Str("hash")}
		}
		return e, err
	}},
	{kind: doctor.ItemAnchor, pk: pkAnchor, decode: decodeWith(decodeAnchor)},
	{kind: doctor.ItemCheckpoint, pk: pkCheckpoint, prefix: true, decode: func(_ *Store, i item, key doctor.ItemKey, id string) (any, error) {
		parts := strings.SplitN(id, "#", 3) // see checkpointPK
		c := rotation.Checkpoint{RotationID: parts[0]}
		if len(parts) == 3 {
			c.Source, c.Pass = parts[1], parts[2]
		}
		c.Segment, _ = strconv.Atoi(key.SK) // an earlier version wrote another form, which nothing reads any more
		return decodeCheckpoint(i, c)
	}},
	{kind: doctor.ItemAnnouncement, pk: pkAnnouncement, prefix: true, decode: func(_ *Store, i item, _ doctor.ItemKey, id string) (any, error) {
		return decodeAnnouncement(i, id)
	}},
	{kind: doctor.ItemDrill, pk: pkDrill, prefix: true, decode: func(_ *Store, i item, _ doctor.ItemKey, id string) (any, error) {
		return decodeDrill(i, id)
	}},
	{kind: doctor.ItemApproval, pk: pkApproval, prefix: true, decode: func(_ *Store, i item, _ doctor.ItemKey, id string) (any, error) {
		return decodeApproval(i, id)
	}},
	{kind: doctor.ItemPause, pk: pkPause, prefix: true, decode: func(_ *Store, i item, _ doctor.ItemKey, id string) (any, error) {
		return decodePause(i, id)
	}},
	{kind: doctor.ItemHealth, pk: pkHealth, prefix: true, decode: func(_ *Store, i item, _ doctor.ItemKey, id string) (any, error) {
		return decodeHealth(id, i)
	}},
}

// decodeWith returns the decoder of a kind whose items hold all that it needs, without the
// store or the key.
func decodeWith[T any](decode func(item) (T, error)) func(*Store, item, doctor.ItemKey, string) (any, error) {
	return func(_ *Store, i item, _ doctor.ItemKey, _ string) (any, error) {
		v, err := decode(i)
		return v, err
	}
}

func decodeLock(i item) (doctor.LockItem, error) {
	r := attr.Reader{Item: i}
	l := doctor.LockItem{RotationID: r.Str("rotation_id")}
	return l, damagedIf(r.Err, pkLock)
}

func decodeFence(i item) (doctor.FenceItem, error) {
	r := attr.Reader{Item: i}
	pk, sk := r.Str("pk"), r.Str("sk")
	f := doctor.FenceItem{Shard: -1, Records: strings.HasPrefix(pk, pkKeyFence)}
	f.KEK = kek.ID(strings.TrimPrefix(strings.TrimPrefix(pk, pkKeyFence), pkFence))
	if n, _ := strconv.Atoi(sk); controltable.FenceSK(n) == sk {
		f.Shard = n
	}
	state := r.Str("state")
	f.Open = state == controltable.Open
	err := damagedIf(r.Err, pk+"/"+sk)
	if err == nil && (f.Shard < 0 || !f.Open && state != controltable.Sealed) {
		err = errDamaged(pk+"/"+sk, fmt.Errorf("its state is %q", state))
	}
	return f, err
}

func decodeRegistry(i item) (doctor.RegistryItem, error) {
	r := attr.Reader{Item: i}
	rev := doctor.RegistryItem{Rev: r.Num("rev")}
	return rev, damagedIf(r.Err, pkRegistry)
}

// Repair implements [doctor.Items]. A repair appends its record behind the audit head. If
// the head itself is repaired it cannot be read first, so then the new head is computed
// from the repair and written in the same transaction.
func (s *Store) Repair(ctx context.Context, changes []doctor.ItemChange, ev audit.Event) error {
	var actions []action
	var head *doctor.ItemChange
	for _, c := range changes {
		if _, ok := c.Put.(doctor.HeadItem); ok {
			head = &c
			continue
		}
		a, err := s.repairAction(c)
		if err != nil {
			return fmt.Errorf("repair %s: %w", c.Key, err)
		}
		actions = append(actions, a)
	}
	var err error
	if head == nil {
		err = s.commitWithRecord(ctx, actions, ev, nil)
	} else {
		err = s.rebuildHead(ctx, actions, *head, ev)
	}
	if err != nil {
		return fmt.Errorf("repair %s: %w", changes[0].Key, err)
	}
	return nil
}

// rebuildHead writes the repaired head, which already names the record of the repair, and
// that record.
func (s *Store) rebuildHead(ctx context.Context, actions []action, c doctor.ItemChange, ev audit.Event) error {
	h := c.Put.(doctor.HeadItem) //nolint:forcetypeassert // its caller's choice
	e, err := audit.Next(s.chain, h.Head, s.now(), ev)
	if err != nil {
		return err
	}
	record := attr.Set(controltable.Key(pkAudit, auditSK(e.Record.Seq)), "record", e.Bytes, "hash", e.Hash)
	h.Head = e.Head()
	actions = append(actions, s.putItem(pkAudit+"/"+auditSK(e.Record.Seq), record, ifAbsent()), s.putIfUnchanged(c, s.encodeHead(h)))
	_, err = s.sendTransaction(ctx, actions)
	return err
}

// repairAction returns the write of one repaired item, by the type of its new value.
func (s *Store) repairAction(c doctor.ItemChange) (action, error) {
	k := controltable.Key(c.Key.PK, c.Key.SK)
	switch v := c.Put.(type) {
	case nil:
		return s.removeIfUnchanged(c, k), nil
	case kek.Pointer:
		return s.putIfUnchanged(c, controltable.EncodePointer(v)), nil
	case kek.KEK:
		return s.putIfUnchanged(c, controltable.EncodeKEK(v)), nil
	case kek.Rotation:
		return s.putIfUnchanged(c, encodeRotation(v)), nil
	case kek.Source:
		return s.putIfUnchanged(c, encodeSource(v)), nil
	case doctor.LockItem:
		return s.putIfUnchanged(c, attr.Set(k, "rotation_id", v.RotationID)), nil
	case doctor.FenceItem:
		state := controltable.Sealed
		if v.Open {
			state = controltable.Open
		}
		return s.putIfUnchanged(c, attr.Set(k, "state", state)), nil
	case doctor.RegistryItem:
		return s.putIfUnchanged(c, attr.Set(k, "rev", v.Rev)), nil
	case audit.Entry:
		return s.putIfUnchanged(c, attr.Set(k, "record", v.Bytes, "hash", v.Hash)), nil
	case anchor.State:
		return s.putIfUnchanged(c, encodeAnchor(v)), nil
	default:
		return action{}, fmt.Errorf("no item is made of %T", v)
	}
}

// putIfUnchanged puts an item on condition that the stored one is still what the doctor
// examined.
func (s *Store) putIfUnchanged(c doctor.ItemChange, i item) action {
	cond, names, vals := ifUnchanged(c.Was)
	return action{what: c.Key.String(), write: types.TransactWriteItem{Put: &types.Put{
		TableName: &s.table, Item: i, ConditionExpression: &cond, ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}

// removeIfUnchanged removes an item on the same condition; with Keep it only checks it.
func (s *Store) removeIfUnchanged(c doctor.ItemChange, k item) action {
	cond, names, vals := ifUnchanged(c.Was)
	w := types.TransactWriteItem{Delete: &types.Delete{
		TableName: &s.table, Key: k, ConditionExpression: &cond, ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}
	if c.Keep {
		w = types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
			TableName: &s.table, Key: k, ConditionExpression: &cond, ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
		}}
	}
	return action{what: c.Key.String(), write: w}
}

// ifUnchanged is the condition that an item is still what was read, or does not exist if
// was is nil. It compares attribute by attribute, because a damaged item may have no
// revision that could stand for the rest.
func ifUnchanged(was *doctor.Item) (cond string, names map[string]string, vals item) {
	if was == nil {
		names, _ = controltable.Expression("attribute_not_exists(#pk)", nil)
		return "attribute_not_exists(#pk)", names, nil
	}
	raw := was.Raw.(item) //nolint:forcetypeassert // Examine's own
	names, vals = map[string]string{}, item{}
	var all []string
	for n, name := range slices.Sorted(maps.Keys(raw)) {
		names[fmt.Sprintf("#a%d", n)], vals[fmt.Sprintf(":v%d", n)] = name, raw[name]
		all = append(all, fmt.Sprintf("#a%d = :v%d", n, n))
	}
	return strings.Join(all, " AND "), names, vals
}

// encodeHead returns the item AUDIT_HEAD, see [chainHead].
func (s *Store) encodeHead(h doctor.HeadItem) item {
	return attr.Set(controltable.Key(pkAuditHead, noSK), "chain", s.chain, "seq", h.Head.Seq, "hash", h.Head.Hash,
		"generations", string(h.Generations), "published_seq", h.Published)
}
