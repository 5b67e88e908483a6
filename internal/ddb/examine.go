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
)

var _ rotation.ControlItems = (*Store)(nil)

// Examine implements [rotation.ControlItems]: one consistent scan of the whole table.
func (s *Store) Examine(ctx context.Context) ([]rotation.Item, error) {
	in := &dynamodb.ScanInput{TableName: &s.table, ConsistentRead: aws.Bool(true)}
	var out []rotation.Item
	for {
		page, err := s.client.Scan(ctx, in)
		if err != nil {
			return nil, wrap("Scan "+s.table, err)
		}
		for _, i := range page.Items {
			out = append(out, s.examine(i))
		}
		if in.ExclusiveStartKey = page.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			return out, nil
		}
	}
}

// examine decodes an item with the decoder of its kind.
func (s *Store) examine(i item) rotation.Item {
	r := attr.Reader{Item: i}
	out := rotation.Item{Key: rotation.ItemKey{PK: r.Str("pk"), SK: r.Str("sk")}, Raw: i}
	for _, k := range kinds {
		if id, ok := k.id(out.Key); ok {
			out.Kind, out.ID = k.kind, id
			out.Value, out.Err = k.decode(s, i, out.Key, id)
			return out
		}
	}
	return out
}

// kind is how the items of one kind are known and decoded.
type kind struct {
	kind   rotation.ItemKind
	pk     string // the whole pk, or with prefix how it begins
	prefix bool
	bySK   bool // the id is the sk, not what follows the prefix
	decode func(s *Store, i item, key rotation.ItemKey, id string) (any, error)
}

func (k kind) id(key rotation.ItemKey) (string, bool) {
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
	{kind: rotation.ItemPointer, pk: pkPointer, decode: of(decodePointer)},
	{kind: rotation.ItemLock, pk: pkLock, decode: of(decodeLock)},
	{kind: rotation.ItemKEK, pk: pkKEK, prefix: true, decode: of(decodeKEK)},
	{kind: rotation.ItemFence, pk: pkFence, prefix: true, decode: of(decodeFence)},
	{kind: rotation.ItemRotation, pk: pkRotation, prefix: true, decode: of(decodeRotation)},
	{kind: rotation.ItemRegistry, pk: pkRegistry, decode: of(decodeRegistry)},
	{kind: rotation.ItemSource, pk: pkSource, bySK: true, decode: of(decodeSource)},
	{kind: rotation.ItemMark, pk: pkMark, bySK: true, decode: of(decodeMark)},
	{kind: rotation.ItemLease, pk: pkLease, prefix: true, decode: of(decodeLease)},
	{kind: rotation.ItemHead, pk: pkAuditHead, decode: func(s *Store, i item, _ rotation.ItemKey, _ string) (any, error) {
		h, err := s.decodeHead(i)
		return rotation.HeadItem{Head: h.Head, Published: h.published, Generations: h.Generations}, err
	}},
	{kind: rotation.ItemRecord, pk: pkAudit, bySK: true, decode: func(_ *Store, i item, _ rotation.ItemKey, _ string) (any, error) {
		e, err := decodeEntry(i)
		if err != nil { // the hash that is stored with it is what the next record commits to
			r := attr.Reader{Item: i}
			e = audit.Entry{Hash: r.Str("hash")}
		}
		return e, err
	}},
	{kind: rotation.ItemAnchor, pk: pkAnchor, decode: of(decodeAnchor)},
	{kind: rotation.ItemCheckpoint, pk: pkCheckpoint, prefix: true, decode: func(_ *Store, i item, key rotation.ItemKey, id string) (any, error) {
		parts := strings.SplitN(id, "#", 3) // see checkpointPK
		c := rotation.Checkpoint{RotationID: parts[0]}
		if len(parts) == 3 {
			c.Source, c.Pass = parts[1], parts[2]
		}
		c.Segment, _ = strconv.Atoi(key.SK) // of an earlier version the key has another form: nobody reads it any more
		return decodeCheckpoint(i, c)
	}},
	{kind: rotation.ItemAnnouncement, pk: pkAnnouncement, prefix: true, decode: func(_ *Store, i item, _ rotation.ItemKey, id string) (any, error) {
		return decodeAnnouncement(i, id)
	}},
	{kind: rotation.ItemDrill, pk: pkDrill, prefix: true, decode: func(_ *Store, i item, _ rotation.ItemKey, id string) (any, error) {
		return decodeDrill(i, id)
	}},
	{kind: rotation.ItemApproval, pk: pkApproval, prefix: true, decode: func(_ *Store, i item, _ rotation.ItemKey, id string) (any, error) {
		return decodeApproval(i, id)
	}},
	{kind: rotation.ItemHealth, pk: pkHealth, prefix: true, decode: func(_ *Store, i item, _ rotation.ItemKey, id string) (any, error) {
		return decodeHealth(id, i)
	}},
}

// of is the decoder of a kind that needs the item alone.
func of[T any](decode func(item) (T, error)) func(*Store, item, rotation.ItemKey, string) (any, error) {
	return func(_ *Store, i item, _ rotation.ItemKey, _ string) (any, error) {
		v, err := decode(i)
		return v, err
	}
}

func decodeLock(i item) (rotation.LockItem, error) {
	r := attr.Reader{Item: i}
	l := rotation.LockItem{RotationID: r.Str("rotation_id")}
	return l, damagedIf(r.Err, pkLock)
}

func decodeFence(i item) (rotation.FenceItem, error) {
	r := attr.Reader{Item: i}
	pk, sk := r.Str("pk"), r.Str("sk")
	f := rotation.FenceItem{KEK: kek.ID(strings.TrimPrefix(pk, pkFence)), Shard: -1}
	if n, _ := strconv.Atoi(sk); controltable.FenceSK(n) == sk {
		f.Shard = n
	}
	state := r.Str("state")
	f.Open = state == controltable.Open
	err := damagedIf(r.Err, pk+"/"+sk)
	if err == nil && (f.Shard < 0 || !f.Open && state != controltable.Sealed) {
		err = damaged(pk+"/"+sk, fmt.Errorf("its state is %q", state))
	}
	return f, err
}

func decodeRegistry(i item) (rotation.RegistryItem, error) {
	r := attr.Reader{Item: i}
	rev := rotation.RegistryItem{Rev: r.Num("rev")}
	return rev, damagedIf(r.Err, pkRegistry)
}

// Repair implements [rotation.ControlItems].
func (s *Store) Repair(ctx context.Context, changes []rotation.ItemChange, ev audit.Event) error {
	var actions []action
	var head *rotation.ItemChange
	for _, c := range changes {
		if _, ok := c.Put.(rotation.HeadItem); ok {
			head = &c
			continue
		}
		a, err := s.repair(c)
		if err != nil {
			return fmt.Errorf("repair %s: %w", c.Key, err)
		}
		actions = append(actions, a)
	}
	var err error
	if head == nil {
		err = s.commit(ctx, actions, ev, nil)
	} else {
		err = s.rebuildHead(ctx, actions, *head, ev)
	}
	if err != nil {
		return fmt.Errorf("repair %s: %w", changes[0].Key, err)
	}
	return nil
}

// rebuildHead writes the head with the record of its repair after it.
func (s *Store) rebuildHead(ctx context.Context, actions []action, c rotation.ItemChange, ev audit.Event) error {
	h := c.Put.(rotation.HeadItem) //nolint:forcetypeassert // its caller's choice
	e, err := audit.Next(s.chain, h.Head, s.now(), ev)
	if err != nil {
		return err
	}
	record := attr.Set(controltable.Key(pkAudit, auditSK(e.Record.Seq)), "record", e.Bytes, "hash", e.Hash)
	h.Head = e.Head()
	actions = append(actions, s.put(pkAudit+"/"+auditSK(e.Record.Seq), record, unless()), s.putAsRead(c, s.encodeHead(h)))
	_, err = s.transact(ctx, actions)
	return err
}

// repair is the action of one change.
func (s *Store) repair(c rotation.ItemChange) (action, error) {
	k := controltable.Key(c.Key.PK, c.Key.SK)
	switch v := c.Put.(type) {
	case nil:
		return s.removeAsRead(c, k), nil
	case kek.Pointer:
		return s.putAsRead(c, controltable.EncodePointer(v)), nil
	case kek.KEK:
		return s.putAsRead(c, controltable.EncodeKEK(v)), nil
	case kek.Rotation:
		return s.putAsRead(c, encodeRotation(v)), nil
	case kek.Source:
		return s.putAsRead(c, encodeSource(v)), nil
	case rotation.LockItem:
		return s.putAsRead(c, attr.Set(k, "rotation_id", v.RotationID)), nil
	case rotation.FenceItem:
		state := controltable.Sealed
		if v.Open {
			state = controltable.Open
		}
		return s.putAsRead(c, attr.Set(k, "state", state)), nil
	case rotation.RegistryItem:
		return s.putAsRead(c, attr.Set(k, "rev", v.Rev)), nil
	case audit.Entry:
		return s.putAsRead(c, attr.Set(k, "record", v.Bytes, "hash", v.Hash)), nil
	case rotation.AnchorState:
		return s.putAsRead(c, encodeAnchor(v)), nil
	default:
		return action{}, fmt.Errorf("no item is made of %T", v)
	}
}

func (s *Store) putAsRead(c rotation.ItemChange, i item) action {
	cond, names, vals := asRead(c.Was)
	return action{what: c.Key.String(), write: types.TransactWriteItem{Put: &types.Put{
		TableName: &s.table, Item: i, ConditionExpression: &cond, ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}}}
}

// removeAsRead removes an item, or only checks that it is what was read.
func (s *Store) removeAsRead(c rotation.ItemChange, k item) action {
	cond, names, vals := asRead(c.Was)
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

// asRead is the condition that an item is, attribute by attribute, what was read; nil:
// that there is none.
func asRead(was *rotation.Item) (cond string, names map[string]string, vals item) {
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

// encodeHead is the item AUDIT_HEAD.
func (s *Store) encodeHead(h rotation.HeadItem) item {
	return attr.Set(controltable.Key(pkAuditHead, noSK), "chain", s.chain, "seq", h.Head.Seq, "hash", h.Head.Hash,
		"generations", string(h.Generations), "published_seq", h.Published)
}
