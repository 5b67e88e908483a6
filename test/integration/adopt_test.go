package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	tinkaead "github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/localaws"
)

// tinkKMS is a KMS key as Tink's envelope uses it: it binds nothing to a data key.
type tinkKMS struct {
	w   *world
	t   *testing.T
	key kek.ID
}

var _ tink.AEAD = tinkKMS{}

// Encrypt implements [tink.AEAD].
func (k tinkKMS) Encrypt(plain, _ []byte) ([]byte, error) {
	return k.w.kmsEncrypt(k.t, k.key, string(plain), nil), nil
}

// Decrypt implements [tink.AEAD].
func (k tinkKMS) Decrypt(sealed, _ []byte) ([]byte, error) {
	out, err := kms.NewFromConfig(k.w.AWSConfig()).Decrypt(k.t.Context(), &kms.DecryptInput{CiphertextBlob: sealed, KeyId: aws.String(string(k.key))})
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}

// foreign is a table of rows that were written without this project.
type foreign struct {
	source, table string
	holder        string                                // the attribute that holds what KMS has wrapped
	seal          func(id, plain string, k kek.ID) item // a row as its application writes it
	open          func(id string, i item, k kek.ID) (string, error)
	definition    string
}

const foreignRows = 9

// foreignTables are the forms that rows without a KEK's id are in: KMS ciphertexts of
// the data itself, what Tink writes, and a wrapped data key beside the payload.
func (w *world) foreignTables(t *testing.T) []foreign {
	t.Helper()
	encctx := func(id string) map[string]string { return map[string]string{"table": "letters", "id": id} }
	theirs := func(k kek.ID) tink.AEAD {
		return tinkaead.NewKMSEnvelopeAEAD2(tinkaead.AES256GCMKeyTemplate(), tinkKMS{w, t, k})
	}
	wrappedContext := map[string]string{"table": "wrapped"}
	bound := func(id string) map[string]string { return map[string]string{"table": "wrapped", "id": id} }
	return []foreign{
		{
			source: "letters", table: w.Name + "-letters", holder: "body",
			seal: func(id, plain string, k kek.ID) item {
				return item{"id": text(id), "from": text("somebody"), "body": blob(w.kmsEncrypt(t, k, plain, encctx(id)))}
			},
			open: func(id string, i item, k kek.ID) (string, error) {
				out, err := kms.NewFromConfig(w.AWSConfig()).Decrypt(t.Context(), &kms.DecryptInput{ // as boto3, which names no key
					CiphertextBlob: bytesOf(i["body"]), EncryptionContext: encctx(id),
				})
				if err == nil && !strings.HasSuffix(aws.ToString(out.KeyId), "/"+string(k)) {
					err = fmt.Errorf("it is under %s", aws.ToString(out.KeyId))
				}
				if err != nil {
					return "", err
				}
				return string(out.Plaintext), nil
			},
			definition: `"format": "kms", "kek_id_attribute": "kek_id", "ciphertext_attribute": "body", "context": {"table": "letters", "id": "$id"}`,
		},
		{
			source: "tinked", table: w.Name + "-tinked", holder: "data",
			seal: func(id, plain string, k kek.ID) item {
				sealed, err := theirs(k).Encrypt([]byte(plain), []byte(id))
				if err != nil {
					t.Fatal(err)
				}
				return item{"id": text(id), "from": text("somebody"), "data": blob(sealed)}
			},
			open: func(id string, i item, k kek.ID) (string, error) {
				plain, err := theirs(k).Decrypt(bytesOf(i["data"]), []byte(id))
				return string(plain), err
			},
			definition: `"format": "tink", "kek_id_attribute": "kek_id", "wrapped_dek_attribute": "dek", "ciphertext_attribute": "data"`,
		},
		{
			source: "wrapped", table: w.Name + "-wrapped", holder: "dek",
			seal: func(id, plain string, k kek.ID) item {
				dek, sealed := w.sealRow(t, k, plain, wrappedContext, bound(id))
				return item{"id": text(id), "from": text("somebody"), "dek": blob(dek), "data": blob(sealed)}
			},
			open: func(id string, i item, k kek.ID) (string, error) {
				dek, err := w.Set.KMS.Decrypt(t.Context(), k, bytesOf(i["dek"]), wrappedContext)
				if err != nil {
					return "", err
				}
				plain, err := aead.Cipher{}.Open(dek, bytesOf(i["data"]), bound(id))
				return string(plain), err
			},
			definition: `"kek_id_attribute": "kek_id", "wrapped_dek_attribute": "dek", "ciphertext_attribute": "data",
				"context": {"table": "wrapped"}, "bind": {"id": "$id"}`,
		},
	}
}

func bytesOf(v ddbtypes.AttributeValue) []byte {
	b, ok := v.(*ddbtypes.AttributeValueMemberB)
	if !ok {
		return nil
	}
	return b.Value
}

func (f foreign) text() string {
	return fmt.Sprintf(`{"name": %q, "table": %q, %s}`, f.source, f.table, f.definition)
}

func rowName(n int) string { return fmt.Sprintf("row-%d", n) }

// racingKMS lets an application write between the moment that adopting a row has read
// it and the moment that it labels it.
type racingKMS struct {
	keyring.Wrapper
	meanwhile func(wrapped []byte)
}

// Identify implements [keyring.Wrapper].
func (r racingKMS) Identify(ctx context.Context, wrapped []byte, encctx map[string]string) (kek.ID, string, error) {
	id, arn, err := r.Wrapper.Identify(ctx, wrapped, encctx)
	r.meanwhile(wrapped)
	return id, arn, err
}

// adoptAmidWrites adopts a table while its application writes each row at the worst
// moment: some are written again, some under another KEK, one is deleted. It returns
// what rows hold then, and under which KEK.
func (w *world) adoptAmidWrites(t *testing.T, f foreign, current, historic kek.ID) (plain map[string]string, under map[string]kek.ID) {
	t.Helper()
	plain, under = map[string]string{}, map[string]kek.ID{}
	at := map[string]int{} // rows that nobody has written yet, by what KMS has wrapped
	for n := range foreignRows {
		id := rowName(n)
		plain[id], under[id] = "first "+id, current
		i := w.get(t, f.table, id)
		prefix := bytesOf(i[f.holder])
		if f.source == "tinked" {
			var err error
			if prefix, _, err = aead.ParseTink(prefix); err != nil {
				t.Fatal(err)
			}
		}
		at[string(prefix)] = n
	}
	steps := *w.Deployment.Steps
	steps.Keys.Wrapper = racingKMS{steps.Keys.Wrapper, func(wrapped []byte) {
		n, ok := at[string(wrapped)]
		if !ok {
			return
		}
		delete(at, string(wrapped))
		id, k := rowName(n), current
		switch n % 4 {
		case 0: // nobody writes it
			return
		case 1:
			k = historic
		case 2:
			if n == 2 {
				w.remove(t, f.table, id)
				delete(plain, id)
				delete(under, id)
				return
			}
		}
		plain[id], under[id] = "second "+id, k
		w.put(t, f.table, f.seal(id, plain[id], k))
	}}
	out, err := steps.Adopt(t.Context(), w.Deployment.Table, rotation.AdoptInput{Source: f.source, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if out.Written != int64(len(plain)) || out.Changed != 0 || len(out.Left) > 0 || len(at) > 0 {
		t.Errorf("%s: %+v; %d rows met no writer", f.source, out, len(at))
	}
	return plain, under
}

// holds checks that each row of a table holds what was written last and names the KEK
// that it is under, and that no other row is there.
func (w *world) holds(t *testing.T, f foreign, plain map[string]string, under map[string]kek.ID) {
	t.Helper()
	for n := range foreignRows {
		id := rowName(n)
		i := w.get(t, f.table, id)
		if _, ok := plain[id]; !ok {
			if i != nil {
				t.Errorf("%s %s is back: %v", f.source, id, i)
			}
			continue
		}
		if name, ok := i["kek_id"].(*ddbtypes.AttributeValueMemberS); !ok || name.Value != string(under[id]) {
			t.Errorf("%s %s names KEK %v, want %s", f.source, id, i["kek_id"], under[id])
		}
		if got, err := f.open(id, i, under[id]); err != nil || got != plain[id] {
			t.Errorf("%s %s: %q, %v; want %q", f.source, id, got, err, plain[id])
		}
		if from, ok := i["from"].(*ddbtypes.AttributeValueMemberS); !ok || from.Value != "somebody" {
			t.Errorf("%s %s: its other attribute is %v", f.source, id, i["from"])
		}
	}
}

// opensForClient checks that the rows of a table open for an envelope client that is
// configured by the definition which the table is registered with.
func (w *world) opensForClient(t *testing.T, f foreign, plain map[string]string) {
	t.Helper()
	var cfg envelope.TableConfig
	if err := strictjson.Unmarshal([]byte(f.text()), &cfg); err != nil {
		t.Fatal(err)
	}
	cfg.TinkAssociated = func(i envelope.Item) []byte { return []byte(i["id"].(*ddbtypes.AttributeValueMemberS).Value) }
	w.application(t, func(c *envelope.Client) {
		table, err := c.Table(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range plain {
			if row, err := table.Get(t.Context(), item{"id": text(id)}); err != nil || string(row.Plaintext) != want {
				t.Errorf("%s %s: %q, %v; want %q", f.source, id, row.Plaintext, err, want)
			}
		}
	})
}

// TestAdoptRaw: rows that were written without this project, by boto3, by Tink and by
// an application that keeps a wrapped data key, are refused by the census, adopted
// while their applications write them, and rotated; an emergency moves them too.
func TestAdoptRaw(t *testing.T) {
	w := upWith(t, localaws.Options{}, "letters", "tinked", "wrapped")
	sh, tables := w.shell(nil), w.foreignTables(t)
	current, historic := w.view(t, "").Pointer.KEKID, w.newKey(t)
	sh.must(t, 0, "kms-register-kek", "--kek-id", string(historic), "--label", "historic", "--confirm")
	var definitions []string
	for _, f := range tables {
		w.newTable(t, f.table)
		for n := range foreignRows {
			w.put(t, f.table, f.seal(rowName(n), "first "+rowName(n), current))
		}
		definitions = append(definitions, f.text())
	}
	file := definitionFile(t, []byte("["+strings.Join(definitions, ",")+"]"))
	sh.must(t, 0, "source", "add", "--file", file, "--confirm")

	mentions(t, "census", sh.must(t, 1, "census"), fmt.Sprintf("rows: %d items cannot be accounted for (no_kek_id %[1]d)", 3*foreignRows))
	w.refused(t, "raw", "{}", string(journal.RowsUnaccounted), "sources[letters]")
	for _, f := range tables {
		before, control := w.dump(t, f.table), w.snapshot(t)
		mentions(t, "adopt", sh.must(t, 0, "adopt", "--source", f.source),
			fmt.Sprintf("%10d  can be adopted: no_kek_id under %s", foreignRows, current), "nothing was written: this was a dry run")
		if w.dump(t, f.table) != before || w.snapshot(t) != control {
			t.Errorf("%s: a dry run has written", f.source)
		}
	}

	plain, under := map[string]map[string]string{}, map[string]map[string]kek.ID{}
	for _, f := range tables {
		plain[f.source], under[f.source] = w.adoptAmidWrites(t, f, current, historic)
		w.holds(t, f, plain[f.source], under[f.source])
	}
	mentions(t, "census", sh.must(t, 0, "census"), "next: matter ops kms-preflight")

	// An application that goes on as before is found before the next rotation.
	w.put(t, tables[0].table, tables[0].seal(rowName(0), "third", current))
	mentions(t, "census", sh.must(t, 1, "census", "--source", tables[0].source), "unaccounted: no_kek_id 1")
	mentions(t, "adopt", sh.must(t, 0, "adopt", "--source", tables[0].source, "--confirm"), "1 rows were given the id of their KEK")
	plain[tables[0].source][rowName(0)] = "third"

	for n, input := range []string{"{}", `{"mode":"emergency","reason":"key material seen in a paste"}`} {
		if o := w.rotate(t, fmt.Sprintf("rotation-%d", n), input); o.Status != types.ExecutionStatusSucceeded {
			t.Fatal(describe(o))
		}
		now := w.view(t, "").Pointer.KEKID
		for _, f := range tables {
			for row := range under[f.source] {
				under[f.source][row] = now
			}
			w.holds(t, f, plain[f.source], under[f.source])
		}
		w.mustHold(t)
	}
	for _, f := range tables[1:] { // the client does not read format kms
		w.opensForClient(t, f, plain[f.source])
	}
}
