package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// realRows is a table of rows behind ddb's source.
type realRows struct {
	*hooked
	source *dynamosource.Table
	db     *memddb.DB
	keys   *keyRecords // nil: no row is keyed
}

func (t *realRows) Name() string          { return t.source.Name() }
func (t *realRows) Segments(n int) int    { return t.source.Segments(n) }
func (t *realRows) Traits() source.Traits { return t.source.Traits() }
func rowKey(id string) memddb.Item {
	return memddb.Item{"id": &types.AttributeValueMemberS{Value: id}}
}

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func (t *realRows) Check(c context.Context) ([]string, error) {
	return asked(t.hooked, "Table.Check", func() ([]string, error) { return t.source.Check(c) })
}

func (t *realRows) Rehearse(c context.Context, old source.Row) error {
	return t.call("Table.Rehearse", func() (any, error) { return nil, t.source.Rehearse(c, old) })
}

func (t *realRows) EncryptedBy(c context.Context) (string, error) {
	return asked(t.hooked, "Table.EncryptedBy", func() (string, error) { return t.source.EncryptedBy(c) })
}

// Scan knows what the rows open to, as those of a corpus say.
func (t *realRows) Scan(c context.Context, req source.ScanRequest) (source.Page, error) {
	p, err := asked(t.hooked, "Table.Scan", func() (source.Page, error) { return t.source.Scan(c, req) })
	for i, row := range p.Rows {
		sum := sha256.Sum256([]byte(t.r.want[strings.TrimPrefix(row.ID, "id=")]))
		p.Rows[i].PlainSHA = hex.EncodeToString(sum[:])
	}
	return p, err
}

func (t *realRows) Replace(c context.Context, old source.Row, with source.Rewrapped) (bool, error) {
	return asked(t.hooked, "Table.Replace", func() (bool, error) { return t.source.Replace(c, old, with) })
}

func (t *realRows) Reread(c context.Context, old source.Row, payload bool) (row source.Row, ok bool, err error) {
	err = t.call("Table.Reread", func() (any, error) {
		var err error
		row, ok, err = t.source.Reread(c, old, payload)
		return nil, err
	})
	return row, ok && err == nil, err
}

func (t *realRows) Label(c context.Context, old source.Row, id kek.ID) (bool, error) {
	return asked(t.hooked, "Table.Label", func() (bool, error) { return t.source.Label(c, old, id) })
}

// Delete is an application's: nothing is in its way.
func (t *realRows) Delete(c context.Context, id string) error {
	var err error
	t.r.atomically(func() {
		_, err = t.db.DeleteItem(c, &dynamodb.DeleteItemInput{TableName: aws.String(t.Name()), Key: rowKey(id)})
	})
	t.r.check.dirty = true
	return err
}

// foreignAlias is how a foreign row may name its KEK.
const foreignAlias = "alias/current"

func (t *realRows) Plant(id string, rec memstore.Record) {
	i := rowKey(id)
	i["dek"], i["data"] = &types.AttributeValueMemberB{Value: rec.WrappedDEK}, &types.AttributeValueMemberB{Value: rec.Ciphertext}
	switch rec.Kind {
	case "":
		i["kek_id"] = &types.AttributeValueMemberS{Value: string(rec.KEK)}
		i["kek_epoch"], i["version"] = number(rec.Epoch), number(rec.Version)
	case source.UnknownForm:
		i["kek_id"] = &types.AttributeValueMemberS{Value: foreignAlias}
	default:
	}
	_, err := t.db.PutItem(ctx, &dynamodb.PutItemInput{TableName: aws.String(t.Name()), Item: i})
	t.r.must(err)
	t.r.check.dirty = true
}

// Each finds out with KMS which KEK a row is under that does not name it.
func (t *realRows) Each(f func(id string, rec memstore.Record)) {
	var items []memddb.Item
	t.db.Each(t.Name(), func(i memddb.Item) { items = append(items, i) })
	for _, i := range items {
		id := text(i["id"])
		rec := memstore.Record{KEK: kek.ID(text(i["kek_id"])), Context: t.r.encctx(id)}
		if dek, ok := i["dek"].(*types.AttributeValueMemberB); ok {
			rec.WrappedDEK = dek.Value
		}
		if data, ok := i["data"].(*types.AttributeValueMemberB); ok {
			rec.Ciphertext = data.Value
		}
		if dek := text(i["dek_id"]); dek != "" {
			f(id, t.keys.resolve(i, dek, rec))
			continue
		}
		if rec.KEK == "" || rec.KEK == foreignAlias {
			rec.Kind = source.NoKEK
			rec.KEK, _, _ = t.r.kms.Identify(ctx, rec.WrappedDEK, rec.Context)
		}
		f(id, rec)
	}
}

// realVault is the bucket.
type realVault struct {
	*hooked
	vault *memstore.Vault
}

func (v *realVault) Put(c context.Context, key string, e audit.Entry) error {
	return v.call("Vault.Put", func() (any, error) { return nil, v.vault.Put(c, key, e) }, key, e)
}

// Get is no call of the schedule's where doctor makes it, which makes many at once.
func (v *realVault) Get(c context.Context, key string) ([]byte, error) {
	if inv := v.r.inv; inv != nil && strings.HasPrefix(inv.name, "operator: doctor") {
		return v.vault.Get(c, key)
	}
	return asked(v.hooked, "Vault.Get", func() ([]byte, error) { return v.vault.Get(c, key) })
}

func (v *realVault) Check(c context.Context) error {
	return v.call("Vault.Check", func() (any, error) { return nil, v.vault.Check(c) })
}

// Versions and Read make it an [audit.Bucket], for doctor.
func (v *realVault) Versions(c context.Context) ([]audit.ObjectVersion, error) {
	return asked(v.hooked, "Vault.Versions", func() ([]audit.ObjectVersion, error) { return v.vault.Versions(c) })
}

func (v *realVault) Read(c context.Context, o audit.ObjectVersion) (audit.Object, error) {
	return asked(v.hooked, "Vault.Read", func() (audit.Object, error) { return v.vault.Read(c, o) }, o)
}

// realKeys is KMS.
type realKeys struct {
	*hooked
	kms *memstore.KMS
}

func (k *realKeys) Create(c context.Context, id string, attempt int, label string, old keyring.Key) (keyring.Key, error) {
	return asked(k.hooked, "KMS.Create", func() (keyring.Key, error) { return k.kms.Create(c, id, attempt, label, old) })
}

func (k *realKeys) Use(c context.Context, id kek.ID) (keyring.Use, error) {
	return asked(k.hooked, "KMS.Use", func() (keyring.Use, error) { return k.kms.Use(c, id) })
}

func (k *realKeys) PolicyDifferences(c context.Context, id kek.ID) ([]string, error) {
	return asked(k.hooked, "KMS.PolicyDifferences", func() ([]string, error) { return k.kms.PolicyDifferences(c, id) })
}

func (k *realKeys) Identify(c context.Context, wrapped []byte, encctx map[string]string) (id kek.ID, arn string, err error) {
	err = k.call("KMS.Identify", func() (any, error) {
		var err error
		id, arn, err = k.kms.Identify(c, wrapped, encctx)
		return nil, err
	})
	return id, arn, err
}

func (k *realKeys) Claim(c context.Context, id string, attempt int, key kek.ID) (kek.ID, error) {
	return asked(k.hooked, "KMS.Claim", func() (kek.ID, error) { return k.kms.Claim(c, id, attempt, key) })
}

func (k *realKeys) Describe(c context.Context, id kek.ID) (keyring.Key, error) {
	return asked(k.hooked, "KMS.Describe", func() (keyring.Key, error) { return k.kms.Describe(c, id) })
}

func (k *realKeys) Disable(c context.Context, id kek.ID) error {
	return k.call("KMS.Disable", func() (any, error) { return nil, k.kms.Disable(c, id) }, id)
}

func (k *realKeys) Tagged(c context.Context, id string) ([]kek.ID, error) {
	return asked(k.hooked, "KMS.Tagged", func() ([]kek.ID, error) { return k.kms.Tagged(c, id) })
}

func (k *realKeys) GenerateDataKey(c context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	err = k.call("KMS.GenerateDataKey", func() (any, error) {
		var err error
		dek, wrapped, err = k.kms.GenerateDataKey(c, id, encctx)
		return nil, err
	})
	if err != nil {
		return nil, nil, err
	}
	return dek, wrapped, nil
}

func (k *realKeys) Decrypt(c context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	return asked(k.hooked, "KMS.Decrypt", func() ([]byte, error) { return k.kms.Decrypt(c, id, wrapped, encctx) })
}

func (k *realKeys) ReEncrypt(c context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	return asked(k.hooked, "KMS.ReEncrypt", func() ([]byte, error) { return k.kms.ReEncrypt(c, from, to, wrapped, encctx) })
}
