package integration

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/sample"
)

// letters is the table of characters, as a bug in a function or an application changes it.
type letters struct {
	*world
	t     *testing.T
	cfg   dynamosource.Config
	table *dynamodb.Client
	ids   []string
	was   map[string]item   // as they were read
	deks  map[string][]byte // likewise
}

// letters reads the table and unwraps its first data keys, as an attacker with the old KEK
// can.
func (w *world) letters(t *testing.T) *letters {
	t.Helper()
	l := &letters{world: w, t: t, cfg: w.Set.Sources()[0], table: dynamodb.NewFromConfig(w.AWSConfig()), was: map[string]item{}, deks: map[string][]byte{}}
	out, err := l.table.Scan(t.Context(), &dynamodb.ScanInput{TableName: &l.cfg.Table})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range out.Items {
		l.was[stringIn(i["codepoint"])] = i
	}
	l.ids = slices.Sorted(maps.Keys(l.was))
	for _, id := range l.ids[:8] {
		i := l.was[id]
		dek, err := w.Set.KMS.Decrypt(t.Context(), kek.ID(stringIn(i[l.cfg.KEKID])), i[l.cfg.WrappedDEK].(*types.AttributeValueMemberB).Value, l.context(i)) //nolint:forcetypeassert // as it was seeded
		if err != nil {
			t.Fatal(err)
		}
		l.deks[id] = dek
	}
	return l
}

func stringIn(v types.AttributeValue) string {
	s, _ := v.(*types.AttributeValueMemberS)
	if s == nil {
		return ""
	}
	return s.Value
}

func (l *letters) context(i item) map[string]string {
	l.t.Helper()
	encctx, err := l.cfg.ContextOf(i)
	if err != nil {
		l.t.Fatal(err)
	}
	return encctx
}

func (l *letters) put(i item) {
	l.t.Helper()
	if _, err := l.table.PutItem(l.t.Context(), &dynamodb.PutItemInput{TableName: &l.cfg.Table, Item: i}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *letters) remove(id string) {
	l.t.Helper()
	key := item{"codepoint": text(id)}
	if _, err := l.table.DeleteItem(l.t.Context(), &dynamodb.DeleteItemInput{TableName: &l.cfg.Table, Key: key}); err != nil {
		l.t.Fatal(err)
	}
}

// seal makes a row under a KEK with the data key given, or a fresh one.
func (l *letters) seal(id, payload string, under kek.ID, dek []byte) item {
	l.t.Helper()
	i := maps.Clone(l.was[l.ids[0]])
	i["codepoint"] = text(id)
	encctx := l.context(i)
	var wrapped []byte
	if dek == nil {
		var err error
		if dek, wrapped, err = l.Set.KMS.GenerateDataKey(l.t.Context(), under, encctx); err != nil {
			l.t.Fatal(err)
		}
	} else {
		out, err := kms.NewFromConfig(l.AWSConfig()).Encrypt(l.t.Context(), &kms.EncryptInput{KeyId: (*string)(&under), Plaintext: dek, EncryptionContext: encctx})
		if err != nil {
			l.t.Fatal(err)
		}
		wrapped = out.CiphertextBlob
	}
	bound, err := l.cfg.BoundOf(i)
	if err != nil {
		l.t.Fatal(err)
	}
	sealed, err := aead.Cipher{}.Seal(dek, []byte(payload), bound)
	if err != nil {
		l.t.Fatal(err)
	}
	i[l.cfg.KEKID] = text(string(under))
	i[l.cfg.WrappedDEK] = &types.AttributeValueMemberB{Value: wrapped}
	i[l.cfg.Ciphertext] = &types.AttributeValueMemberB{Value: sealed}
	return i
}

// rowCheckBites does to rows, after an emergency, what only a bug would, one kind of harm to
// a row, and what an application may. The ledger names each harm by the promise that it
// breaks, and nothing else.
func (l *letters) rowCheckBites(ledger *sample.Ledger, rotation string) {
	t, current, row := l.t, l.view(l.t, rotation).Rotation.NewKEK, func(n int) string { return "characters/codepoint=" + l.ids[n] }
	t.Helper()
	l.remove(l.ids[0])
	l.put(l.seal(l.ids[1], "other", current, nil))
	l.put(l.was[l.ids[2]])
	broken := l.seal(l.ids[3], "{}", current, nil)
	broken[l.cfg.WrappedDEK] = &types.AttributeValueMemberB{Value: []byte("garbage")}
	l.put(broken)
	l.put(l.seal("U+FFFF", "{}", current, nil))
	l.put(l.seal(l.ids[4], "exposed", current, l.deks[l.ids[4]]))
	ledger.Wrote(row(4), "exposed")

	l.remove(l.ids[5])
	ledger.Deleted(row(5))
	l.put(l.seal(l.ids[6], "updated", current, nil))
	ledger.Wrote(row(6), "updated")
	l.put(l.seal("U+FFFE", "inserted", current, nil))
	ledger.Wrote("characters/codepoint=U+FFFE", "inserted")

	old := stringIn(l.was[l.ids[2]][l.cfg.KEKID])
	want := []string{
		"CompletedRows: 1 rows are under " + old,
		"ExposedDeksGone: after " + rotation + " row " + row(4),
		"NoLostWrite: row " + row(0) + " is missing",
		`NoLostWrite: row ` + row(1) + ` opens to "other"`,
		"NoRowComesBack: row characters/codepoint=U+FFFF ",
		"RowIntegrity: row " + row(2) + " under " + old,
		"RowIntegrity: row " + row(3) + " under " + string(current),
	}
	slices.Sort(want)
	got := l.brokenRows(t, ledger, rotation)
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("the check of the rows says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
