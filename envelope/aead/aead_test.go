package aead_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

var _ keyring.Cipher = aead.Cipher{}

var (
	dek     = bytes.Repeat([]byte{7}, aead.KeySize)
	context = map[string]string{"table": "orders", "id": "o-1"}
)

func TestRoundTrip(t *testing.T) {
	var c aead.Cipher
	for _, size := range []int{0, 1, 15, 16, 17, 4096, 1 << 20} {
		plain := bytes.Repeat([]byte("x"), size)
		payload, err := c.Seal(dek, plain, context)
		if err != nil {
			t.Fatal(err)
		}
		if len(payload) != size+aead.Overhead || payload[0] != aead.Version {
			t.Errorf("%d bytes: payload of %d bytes starts with %#x", size, len(payload), payload[0])
		}
		got, err := c.Open(dek, payload, maps.Clone(context))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: opened %d bytes, %v", size, len(got), err)
		}
	}
}

// TestTink shows that the payload after the version byte is Tink's, both ways.
func TestTink(t *testing.T) {
	tink, err := subtle.NewAESGCM(dek)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := aead.Cipher{}.Seal(dek, []byte("plain"), context)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tink.Decrypt(payload[1:], aead.AssociatedData(context)); err != nil || string(got) != "plain" {
		t.Errorf("Tink opened %q, %v", got, err)
	}
	theirs, err := tink.Encrypt([]byte("plain"), aead.AssociatedData(context))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (aead.Cipher{}).Open(dek, append([]byte{aead.Version}, theirs...), context); err != nil || string(got) != "plain" {
		t.Errorf("opened %q, %v", got, err)
	}
}

// TestAltered flips every bit of a payload, and tries every prefix of it.
func TestAltered(t *testing.T) {
	var c aead.Cipher
	payload, err := c.Seal(dek, []byte("plain"), context)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(payload) * 8 {
		bad := bytes.Clone(payload)
		bad[i/8] ^= 1 << (i % 8)
		want := aead.ErrOpen
		if i < 8 {
			want = aead.ErrFormat
		}
		if got, err := c.Open(dek, bad, context); !errors.Is(err, want) || got != nil {
			t.Fatalf("bit %d flipped: %q, %v", i, got, err)
		}
	}
	for n := range payload {
		want := aead.ErrFormat
		if n >= aead.Overhead {
			want = aead.ErrOpen
		}
		if _, err := c.Open(dek, payload[:n], context); !errors.Is(err, want) {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
}

func TestWrongKeyOrContext(t *testing.T) {
	var c aead.Cipher
	payload, err := c.Seal(dek, []byte("plain"), context)
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]map[string]string{
		"none":    nil,
		"less":    {"table": "orders"},
		"more":    {"table": "orders", "id": "o-1", "x": ""},
		"another": {"table": "orders", "id": "o-2"},
		"swapped": {"orders": "table", "o-1": "id"},
		"joined":  {"table": "ordersid", "": "o-1"},
	} {
		if _, err := c.Open(dek, payload, other); !errors.Is(err, aead.ErrOpen) {
			t.Errorf("context %s: %v", name, err)
		}
	}
	if _, err := c.Open(bytes.Repeat([]byte{8}, aead.KeySize), payload, context); !errors.Is(err, aead.ErrOpen) {
		t.Errorf("another key: %v", err)
	}
}

func TestKeySize(t *testing.T) {
	for _, n := range []int{0, 16, 24, 31, 33} {
		if _, err := (aead.Cipher{}).Seal(make([]byte, n), nil, nil); !errors.Is(err, aead.ErrKeySize) {
			t.Errorf("Seal under %d bytes: %v", n, err)
		}
		if _, err := (aead.Cipher{}).Open(make([]byte, n), nil, nil); !errors.Is(err, aead.ErrKeySize) {
			t.Errorf("Open under %d bytes: %v", n, err)
		}
	}
}

// TestAssociatedData pins the encoding: payloads in tables depend on it.
func TestAssociatedData(t *testing.T) {
	for _, c := range []struct {
		context map[string]string
		want    string
	}{
		{nil, "\x01"},
		{map[string]string{}, "\x01"},
		{map[string]string{"b": "2", "a": ""}, "\x01\x00\x00\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x01b\x00\x00\x00\x012"},
		{map[string]string{"a": "", "B": "", "ä": "x"}, "\x01\x00\x00\x00\x01B\x00\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x02ä\x00\x00\x00\x01x"},
	} {
		if got := aead.AssociatedData(c.context); string(got) != c.want || cap(got) != len(got) {
			t.Errorf("%v: %q with room for %d, want %q", c.context, got, cap(got), c.want)
		}
	}
}

// TestManyPairs: a context of many keys, which a map yields in any order, has one
// encoding.
func TestManyPairs(t *testing.T) {
	many, want := map[string]string{}, "\x01"
	for i := range 12 {
		key := string(rune('a' + i))
		many[key] = "v"
		want += "\x00\x00\x00\x01" + key + "\x00\x00\x00\x01v"
	}
	for range 20 {
		if got := aead.AssociatedData(many); string(got) != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	one, two, three := map[string]string{"b": "2", "d": "4"}, map[string]string{"a": "1"}, map[string]string{"c": "3"}
	together := aead.AssociatedData(map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"})
	if got := aead.AppendAssociatedData(nil, one, nil, two, three); !bytes.Equal(got, together) {
		t.Errorf("of several maps: %q, want %q", got, together)
	}
}

// TestTinkLengths pins what is split and joined: a length in four bytes, a wrapped
// key of 1 to 4096 bytes, and a payload.
func TestTinkLengths(t *testing.T) {
	for _, c := range []struct {
		wrapped, payload int
		ok               bool
	}{{1, 1, true}, {2, 7, true}, {4096, 1, true}, {0, 1, false}, {1, 0, false}, {0, 0, false}, {4097, 1, false}, {5000, 5000, false}} {
		wrapped, payload := bytes.Repeat([]byte("w"), c.wrapped), bytes.Repeat([]byte("p"), c.payload)
		envelope := binary.BigEndian.AppendUint32(nil, uint32(c.wrapped))
		envelope = append(append(envelope, wrapped...), payload...)
		joined, err := aead.JoinTink(wrapped, payload)
		if c.ok != (err == nil) || c.ok && !bytes.Equal(joined, envelope) || !c.ok && !errors.Is(err, aead.ErrFormat) {
			t.Errorf("%d and %d bytes are joined as %d bytes, %v", c.wrapped, c.payload, len(joined), err)
		}
		w, p, err := aead.ParseTink(envelope)
		if c.ok != (err == nil) || c.ok && (!bytes.Equal(w, wrapped) || !bytes.Equal(p, payload)) || !c.ok && !errors.Is(err, aead.ErrFormat) {
			t.Errorf("%d and %d bytes are split as %d and %d, %v", c.wrapped, c.payload, len(w), len(p), err)
		}
		if c.ok && cap(w) != len(w) {
			t.Errorf("what is appended to the wrapped key would be written over the payload")
		}
	}
	for n := range 6 {
		if _, _, err := aead.ParseTink([]byte("\x00\x00\x00\x01w")[:min(n, 5)]); !errors.Is(err, aead.ErrFormat) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// TestAppend shows that a reused buffer is appended to, and that sealing into one
// with room allocates nothing.
func TestAppend(t *testing.T) {
	k, err := aead.New(dek)
	if err != nil {
		t.Fatal(err)
	}
	plain, ad := bytes.Repeat([]byte("p"), 1024), aead.AssociatedData(context)
	buf := append(make([]byte, 0, 4096), "head"...)
	out, err := k.Seal(buf, plain, ad)
	if err != nil || !bytes.HasPrefix(out, []byte("head\x01")) || &out[0] != &buf[0] {
		t.Fatalf("Seal appended to a copy, or %v", err)
	}
	got, err := k.Open([]byte("head"), out[4:], ad)
	if err != nil || string(got) != "head"+string(plain) {
		t.Fatalf("Open appended %d bytes, %v", len(got), err)
	}
	if n := testing.AllocsPerRun(100, func() { out, _ = k.Seal(buf[:0], plain, ad) }); n > 0 {
		t.Errorf("Seal allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { ad = aead.AppendAssociatedData(ad[:0], context) }); n > 0 {
		t.Errorf("AppendAssociatedData allocates %v times", n)
	}
}

func FuzzOpen(f *testing.F) {
	payload, err := aead.Cipher{}.Seal(dek, []byte("plain"), context)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil))
	f.Add(payload[:aead.Overhead])
	f.Add(payload[:len(payload)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.Equal(b, payload) {
			return
		}
		if _, err := (aead.Cipher{}).Open(dek, b, context); err == nil {
			t.Errorf("%x opens", b)
		}
	})
}

func FuzzParseTink(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'w', 'p'})
	f.Add([]byte{0, 0, 0, 1, 'w'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		wrapped, payload, err := aead.ParseTink(in)
		if err != nil {
			if !errors.Is(err, aead.ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if out, err := aead.JoinTink(wrapped, payload); err != nil || !bytes.Equal(in, out) {
			t.Errorf("%x is joined as %x, %v", in, out, err)
		}
	})
}
