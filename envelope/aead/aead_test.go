package aead_test

import (
	"bytes"
	"errors"
	"maps"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/rotation"
)

var _ rotation.Cipher = aead.Cipher{}

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
		if got := aead.AssociatedData(c.context); string(got) != c.want {
			t.Errorf("%v: %q, want %q", c.context, got, c.want)
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
