package envelope_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// TestOrphan plants a row under a retired KEK, as a careless restore from a backup
// does: reading it raises the alarm.
func TestOrphan(t *testing.T) {
	w := newSite(t)
	c := w.client()
	table := w.open(c)
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	backup := w.item("a")
	w.rotatePast("r1")
	if _, err := table.Get(t.Context(), rowKey("a")); err != nil || c.Stats().OrphanedKeys != 0 {
		t.Fatalf("the rewrapped row: %v, %d orphans", err, c.Stats().OrphanedKeys)
	}
	w.put(backup)
	fresh := w.client() // with no key in its cache
	_, err := w.open(fresh).Get(t.Context(), rowKey("a"))
	if !errors.Is(err, envelope.ErrOrphanedKey) || fresh.Stats().OrphanedKeys != 1 {
		t.Errorf("%v, %d orphans counted", err, fresh.Stats().OrphanedKeys)
	}
	// A person enables the key again: readers get their data, the alarm continues.
	w.keys.Enable("kek-0001")
	got, err := w.open(fresh).Get(t.Context(), rowKey("a"))
	if err != nil || string(got.Plaintext) != "x" || fresh.Stats().OrphanedKeys != 2 {
		t.Errorf("%q, %v, %d orphans counted", got.Plaintext, err, fresh.Stats().OrphanedKeys)
	}
	if errors.Is(err, envelope.ErrUnknownKEK) {
		t.Errorf("a retired KEK is called unknown: %v", err)
	}
}

// TestUnknownKEK: a row names a KEK that the registry does not know, or does not let
// rows name. Such a row is not genuine, however well KMS would unwrap it: KMS is not
// asked.
func TestUnknownKEK(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	good := w.item("a")

	// An attacker's key, which KMS would let the client use, and a new one of ours.
	theirs, err := w.keys.Create(t.Context(), "attacker", 1, "", keyring.Key{})
	w.must("create", err)
	wrapped, payload := w.forge(theirs.ID)
	pending, err := w.keys.Create(t.Context(), "r1", 1, "", keyring.Key{})
	w.must("create", err)
	w.register(pending.ID, pending.ARN, kek.Pending)

	for name, id := range map[string]string{
		"id":              string(theirs.ID),
		"ARN":             theirs.ARN,
		"ARN of our id":   "arn:aws:kms:eu-central-1:999999999999:key/kek-0001",
		"alias":           "alias/kek-0001",
		"alias ARN":       "arn:aws:kms:eu-central-1:000000000000:alias/kek-0001",
		"pending":         string(pending.ID),
		"another's entry": "kek-0001/../x",
	} {
		t.Run(name, func(t *testing.T) {
			c := w.client() // with no key in its cache
			forged := maps.Clone(good)
			forged["key"], forged["wrapped.dek"], forged["data"] = &s{Value: id}, &b{Value: wrapped}, &b{Value: payload}
			w.put(forged)
			calls := w.keys.count("Decrypt")
			for round := range int64(2) {
				_, err := w.open(c).Get(t.Context(), rowKey("a"))
				if !errors.Is(err, envelope.ErrUnknownKEK) || !errors.Is(err, envelope.ErrOrphanedKey) {
					t.Errorf("%v", err)
				}
				if n := c.Stats().OrphanedKeys; n != round+1 {
					t.Errorf("%d orphans counted", n)
				}
			}
			sealed := envelope.Sealed{KEKID: kek.ID(id), WrappedDEK: wrapped, Ciphertext: payload}
			if _, err := c.Open(t.Context(), sealed, rowContext, nil); !errors.Is(err, envelope.ErrUnknownKEK) {
				t.Errorf("a record kept elsewhere: %v", err)
			}
			if n := w.keys.count("Decrypt") - calls; n != 0 {
				t.Errorf("KMS was asked %d times", n)
			}
		})
	}
}

// TestKEKByARN: a row that names its KEK by the key's ARN, as GenerateDataKey answers
// it, is the same row. KMS is asked with the registry's ARN whatever the row says.
func TestKEKByARN(t *testing.T) {
	w := newSite(t)
	w.must("insert", w.open(w.client()).Insert(t.Context(), row("a"), []byte("x")))
	i := w.item("a")
	i["key"] = &s{Value: "arn:aws:kms:eu-central-1:000000000000:key/kek-0001"}
	w.put(i)
	asked := &names{keys: w.keys}
	table := w.open(w.client(slow, func(c *envelope.Config) { c.KMS = asked }))
	check := func(when string) {
		t.Helper()
		if got, err := table.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x" {
			t.Errorf("%s: %q, %v", when, got.Plaintext, err)
		}
	}
	check("under the pointer's KEK")
	w.begin("r1", kek.Normal)
	table = w.open(w.client(slow, func(c *envelope.Config) { c.KMS = asked }))
	check("under the old KEK")
	i["key"] = &s{Value: "kek-0001"}
	w.put(i)
	table = w.open(w.client(slow, func(c *envelope.Config) { c.KMS = asked }))
	check("by id")
	for _, id := range asked.ids {
		if id != "arn:aws:kms:eu-central-1:000000000000:key/kek-0001" {
			t.Errorf("KMS was asked for %s", id)
		}
	}
	if len(asked.ids) != 3 {
		t.Errorf("KMS was asked for %q", asked.ids)
	}
	w.must("update", table.Update(t.Context(), rowKey("a"), func(*envelope.Row) error { return nil }))
	if id := under(t, w.item("a")); id != "kek-0002" {
		t.Errorf("the updated row says %s", id)
	}
}

// names notes which keys KMS is asked to unwrap under.
type names struct {
	*keys
	ids []string
}

func (k *names) Decrypt(ctx context.Context, in *kms.DecryptInput, o ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	k.ids = append(k.ids, *in.KeyId)
	return k.keys.Decrypt(ctx, in, o...)
}

// TestPendingBecomesActive: a client that was told a moment ago that a KEK is unknown
// or pending opens its rows as soon as the switch lets there be any.
func TestPendingBecomesActive(t *testing.T) {
	w := newSite(t)
	c := w.client(slow)
	table := w.open(c)
	k, err := w.keys.Create(t.Context(), "r1", 1, "", keyring.Key{})
	w.must("create", err)
	wrapped, payload := w.forge(k.ID)
	i := row("a")
	i["key"], i["wrapped.dek"], i["data"] = &s{Value: string(k.ID)}, &b{Value: wrapped}, &b{Value: payload}
	w.put(i)
	for _, state := range []kek.State{"", kek.Pending, kek.Active} {
		if state != "" {
			w.register(k.ID, k.ARN, state)
		}
		got, err := table.Get(t.Context(), rowKey("a"))
		if state.Resolves() && (err != nil || string(got.Plaintext) != "forged") {
			t.Errorf("%s: %q, %v", state, got.Plaintext, err)
		}
		if !state.Resolves() && !errors.Is(err, envelope.ErrUnknownKEK) {
			t.Errorf("%q: %v", state, err)
		}
	}
}

// rowContext is the encryption context of [row].
var rowContext = map[string]string{"table": "orders", "tenant": "acme"}

// forge seals a payload of row a under a key, as anybody can who may use the key.
func (w *site) forge(id kek.ID) (wrapped, payload []byte) {
	w.t.Helper()
	dek, wrapped, err := w.keys.KMS.GenerateDataKey(w.t.Context(), id, rowContext)
	w.must("data key", err)
	payload, err = aead.Cipher{}.Seal(dek, []byte("forged"), map[string]string{"table": "orders", "tenant": "acme", "id": "a"})
	w.must("seal", err)
	return wrapped, payload
}

// register puts a KEK into the registry.
func (w *site) register(id kek.ID, arn string, state kek.State) {
	w.t.Helper()
	_, err := w.dynamo.PutItem(w.t.Context(), &dynamodb.PutItemInput{TableName: &w.control, Item: item{
		"pk": &s{Value: "KEK#" + string(id)}, "sk": &s{Value: "-"}, "key_arn": &s{Value: arn}, "state": &s{Value: string(state)},
	}})
	w.must("PutItem", err)
}

// rotatePast rotates without waiting for the leases of clients to run out.
func (w *site) rotatePast(id string) {
	w.t.Helper()
	old := w.pointer().KEKID
	w.begin(id, kek.Normal)
	w.revoke(old)
	w.drain(id)
	w.finish(id)
}

// TestOpenStale opens an item that was read before it was rewrapped, after its KEK
// was disabled: it is read again, and nobody calls it an orphan.
func TestOpenStale(t *testing.T) {
	for name, change := range map[string]func(*envelope.Config){"pointer is old": slow, "pointer is fresh": func(*envelope.Config) {}} {
		t.Run(name, func(t *testing.T) {
			w := newSite(t)
			c := w.client(change)
			table := w.open(c)
			w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
			w.must("insert", table.Insert(t.Context(), row("gone"), []byte("x")))
			stale, gone := w.item("a"), w.item("gone")
			_, err := w.dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &w.table, Key: rowKey("gone")})
			w.must("delete", err)
			w.rotatePast("r1")
			got, err := table.Open(t.Context(), stale)
			if err != nil || string(got.Plaintext) != "x" || got.Version != 2 {
				t.Errorf("%+v, %v", got, err)
			}
			if _, err := table.Open(t.Context(), gone); !errors.Is(err, envelope.ErrNotFound) {
				t.Errorf("a deleted row: %v", err)
			}
			if n := c.Stats().OrphanedKeys; n != 0 {
				t.Errorf("%d orphans", n)
			}
		})
	}
}

// TestTampered: whatever of a row is altered, it does not open.
func TestTampered(t *testing.T) {
	w := newSite(t)
	c := w.client()
	table := w.open(c)
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("secret")))
	flip := func(v any) *b {
		out := bytes.Clone(v.(*b).Value)
		out[len(out)-1] ^= 1
		return &b{Value: out}
	}
	for name, test := range map[string]struct {
		change func(item)
		want   error
	}{
		"payload":     {func(i item) { i["data"] = flip(i["data"]) }, envelope.ErrAltered},
		"version":     {func(i item) { i["data"] = &b{Value: append([]byte{9}, i["data"].(*b).Value[1:]...)} }, envelope.ErrFormat},
		"wrapped DEK": {func(i item) { i["wrapped.dek"] = flip(i["wrapped.dek"]) }, envelope.ErrContextMismatch},
		"context":     {func(i item) { i["tenant"] = &s{Value: "other"} }, envelope.ErrContextMismatch},
		"no payload":  {func(i item) { delete(i, "data") }, envelope.ErrNoEnvelope},
		"no KEK":      {func(i item) { delete(i, "key") }, envelope.ErrNoEnvelope},
		"odd version": {func(i item) { i["version"] = &s{Value: "1"} }, envelope.ErrNoEnvelope},
		"odd epoch":   {func(i item) { i["kek_epoch"] = &n{Value: "1.5"} }, envelope.ErrNoEnvelope},
	} {
		t.Run(name, func(t *testing.T) {
			i := maps.Clone(w.item("a"))
			test.change(i)
			i["id"] = &s{Value: "b"}
			w.put(i)
			_, err := table.Get(t.Context(), rowKey("b"))
			if !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if err != nil && (strings.Contains(err.Error(), "acme") || strings.Contains(err.Error(), "secret")) {
				t.Errorf("the error tells too much: %v", err)
			}
		})
	}
	i := w.item("a")
	delete(i, "tenant")
	if _, err := table.Open(t.Context(), i); err == nil {
		t.Error("a row without its context opens")
	}
}

func TestOpenSealed(t *testing.T) {
	w := newSite(t)
	c := w.client()
	ref, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	encctx := map[string]string{"purpose": "test"}
	buf := make([]byte, 3, 100)
	sealed, err := ref.AppendSeal(t.Context(), buf, []byte("x"), encctx)
	if err != nil {
		t.Fatal(err)
	}
	if ref.KEK() != "kek-0001" || sealed.KEKID != ref.KEK() || sealed.Epoch != 1 || &sealed.Ciphertext[0] != &buf[0] {
		t.Errorf("%+v under %s", sealed, ref.KEK())
	}
	sealed.Ciphertext = sealed.Ciphertext[3:]
	ref.End()
	if _, err := ref.Seal(t.Context(), nil, nil); err == nil {
		t.Error("a reference that has ended seals")
	}
	if got, err := c.Open(t.Context(), sealed, encctx, nil); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Open(t.Context(), sealed, nil, nil); !errors.Is(err, envelope.ErrContextMismatch) {
		t.Errorf("without its context: %v", err)
	}
	calls := w.keys.count("Decrypt")
	if _, err := c.Open(t.Context(), sealed, encctx, nil); err != nil || w.keys.count("Decrypt") != calls {
		t.Errorf("a second time it asks KMS again, or %v", err)
	}
}

// TestCacheOff asks KMS for every record.
func TestCacheOff(t *testing.T) {
	w := newSite(t)
	c := w.client(func(c *envelope.Config) { c.Cache.Off = true })
	table := w.open(c)
	w.must("insert", table.InsertAll(t.Context(), []envelope.Row{{Item: row("a")}, {Item: row("b")}}))
	for range 3 {
		if _, err := table.Get(t.Context(), rowKey("a")); err != nil {
			t.Fatal(err)
		}
	}
	if g, d := w.keys.count("GenerateDataKey"), w.keys.count("Decrypt"); g != 2 || d != 3 {
		t.Errorf("%d data keys, %d unwrapped; want 2 and 3", g, d)
	}
	if s := c.Stats(); s.CacheHits != 0 || s.CacheMisses != 5 {
		t.Errorf("%+v", s)
	}
}

// TestInFlight: a reference that lives holds drain up, and the rotation sees how
// many there are.
func TestInFlight(t *testing.T) {
	w := newSite(t)
	c := w.client(quick)
	ref, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.begin("r1", kek.Normal)
	eventually(t, "the lease says one reference", func() bool {
		l := w.leases("kek-0001")
		return len(l) == 1 && l[0].Refs == 1
	})
	eventually(t, "a lease on the new KEK", func() bool { return len(w.leases("kek-0002")) == 1 })
	ref.End()
	w.drain("r1")
}

func TestConfig(t *testing.T) {
	_, err := envelope.New(t.Context(), envelope.Config{})
	for _, want := range []string{"ControlTable", "DynamoDB", "KMS"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	w := newSite(t)
	_, err = envelope.New(t.Context(), envelope.Config{ControlTable: w.table + "-none", DynamoDB: w.dynamo, KMS: w.keys})
	if err == nil {
		t.Error("no control table is needed")
	}
	for name, change := range map[string]func(*envelope.TableConfig){
		"table: is required":                 func(c *envelope.TableConfig) { c.Table = "" },
		"kek_id_attribute: is required":      func(c *envelope.TableConfig) { c.KEKID = "" },
		"ciphertext_attribute: is required":  func(c *envelope.TableConfig) { c.Ciphertext = "" },
		"is already the kek_id_attribute":    func(c *envelope.TableConfig) { c.Ciphertext = c.KEKID },
		`format: "zip" is not known`:         func(c *envelope.TableConfig) { c.Format = "zip" },
		"cannot be bound":                    func(c *envelope.TableConfig) { c.Context = map[string]string{"k": "$data"} },
		"KMS takes no empty":                 func(c *envelope.TableConfig) { c.Context = map[string]string{"aws:k": "v"} },
		"part of the key":                    func(c *envelope.TableConfig) { c.KEKID, c.Bind = "id", nil },
		`bind: key "k": attribute "data"`:    func(c *envelope.TableConfig) { c.Bind = map[string]string{"k": "$data"} },
		`bind: "": "v"`:                      func(c *envelope.TableConfig) { c.Bind = map[string]string{"": "v"} },
		`bind: "k": ""`:                      func(c *envelope.TableConfig) { c.Bind = map[string]string{"k": ""} },
		`bind: "aws:k"`:                      func(c *envelope.TableConfig) { c.Bind = map[string]string{"aws:k": "v"} },
		`bind: key "tenant" is in context`:   func(c *envelope.TableConfig) { c.Bind = map[string]string{"tenant": "$id"} },
		`context: "k": "v\xff" is not UTF-8`: func(c *envelope.TableConfig) { c.Context = map[string]string{"k": "v\xff"} },
		`bind: "k\xff": "v" is not UTF-8`:    func(c *envelope.TableConfig) { c.Bind = map[string]string{"k\xff": "v"} },
		`ciphertext_attribute: "\xff" is`:    func(c *envelope.TableConfig) { c.Ciphertext = "\xff" },
		"rows of format kms":                 func(c *envelope.TableConfig) { c.Format, c.WrappedDEK = "kms", "" },
		`payloads: "clear" is not known`:     func(c *envelope.TableConfig) { c.Payloads = "clear" },
		"other: an attribute": func(c *envelope.TableConfig) {
			c.Other = &envelope.OtherItems{Attribute: "data", Values: []string{"x"}}
		},
		"other: an attribute that is none": func(c *envelope.TableConfig) { c.Other = &envelope.OtherItems{Attribute: "kind"} },
		"and values of it":                 func(c *envelope.TableConfig) { c.Other = &envelope.OtherItems{Values: []string{"x"}} },
	} {
		cfg := tableConfig(sourceConfig(w.table))
		change(&cfg)
		if _, err := w.client().Table(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
}

// TestNumberInContext: a number that DynamoDB would write otherwise is refused, for
// the row could not be opened again.
func TestNumberInContext(t *testing.T) {
	w := newSite(t)
	cfg := tableConfig(sourceConfig(w.table))
	cfg.Context = map[string]string{"size": "$size"}
	table, err := w.client().Table(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range []string{"0", "-1", "17.5", "-0.05", "100", "123456789012345678901234567890"} {
		i := item{"id": &s{Value: "n" + number}, "size": &n{Value: number}}
		w.must(number, table.Insert(t.Context(), i, []byte("x")))
		if _, err := table.Get(t.Context(), rowKey("n"+number)); err != nil {
			t.Errorf("%s: %v", number, err)
		}
	}
	for _, number := range []string{"1.0", "01", "1e3", "-0", "+1", ".5", "1E+100"} {
		i := item{"id": &s{Value: "n" + number}, "size": &n{Value: number}}
		if err := table.Insert(t.Context(), i, []byte("x")); err == nil {
			t.Errorf("%s is taken", number)
		}
	}
}

// TestReread: a record kept elsewhere is rewrapped and its old KEK disabled between
// the caller's read and Open, perhaps more than once.
func TestReread(t *testing.T) {
	w := newSite(t)
	c := w.client()
	ref, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	encctx := map[string]string{"purpose": "test"}
	sealed, err := ref.Seal(t.Context(), []byte("x"), encctx)
	if err != nil {
		t.Fatal(err)
	}
	ref.End()
	w.begin("r1", kek.Normal)
	newer := sealed
	newer.KEKID = "kek-0002"
	if newer.WrappedDEK, err = w.keys.ReEncrypt(t.Context(), "kek-0001", "kek-0002", sealed.WrappedDEK, encctx); err != nil {
		t.Fatal(err)
	}
	w.revoke("kek-0001")
	w.drain("r1")
	w.finish("r1")
	reads := 0
	got, err := c.Open(t.Context(), sealed, encctx, func(context.Context) (envelope.Sealed, bool, error) {
		reads++
		return newer, true, nil
	})
	if err != nil || string(got) != "x" || reads != 1 {
		t.Errorf("%q after %d reads, %v", got, reads, err)
	}
	_, err = c.Open(t.Context(), sealed, encctx, func(context.Context) (envelope.Sealed, bool, error) { return sealed, true, nil })
	if !errors.Is(err, envelope.ErrOrphanedKey) {
		t.Errorf("it is the same when read again: %v", err)
	}
	_, err = c.Open(t.Context(), sealed, encctx, func(context.Context) (envelope.Sealed, bool, error) { return sealed, false, nil })
	if !errors.Is(err, envelope.ErrNotFound) {
		t.Errorf("it is gone when read again: %v", err)
	}
	lost := errors.New("lost")
	_, err = c.Open(t.Context(), sealed, encctx, func(context.Context) (envelope.Sealed, bool, error) { return sealed, true, lost })
	if !errors.Is(err, lost) {
		t.Errorf("it cannot be read again: %v", err)
	}
	if n := c.Stats().OrphanedKeys; n != 1 {
		t.Errorf("%d orphans counted", n)
	}
}
