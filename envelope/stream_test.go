package envelope_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/matter-ops/kms-rotation/envelope"
)

var streamContext = map[string]string{"bucket": "b", "object": "o"}

func encrypt(tb testing.TB, key, plain []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w, err := envelope.NewEncryptingWriter(&out, key, streamContext)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.Copy(w, iotest.OneByteReader(bytes.NewReader(plain[:min(len(plain), 100)]))); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(plain[min(len(plain), 100):]); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func decrypt(in io.Reader, key []byte, encctx map[string]string) ([]byte, error) {
	r, err := envelope.NewDecryptingReader(in, key, encctx)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestStream(t *testing.T) {
	key := envelope.NewStreamKey()
	for _, size := range []int{0, 1, 1<<20 - 100, 1 << 20, 3<<20 + 7} {
		plain := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
		sealed := encrypt(t, key, plain)
		if got, err := decrypt(iotest.HalfReader(bytes.NewReader(sealed)), key, streamContext); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %d, %v", size, len(got), err)
		}
		// Cut off anywhere, at a segment's end above all, it must not look whole.
		for _, n := range []int{0, 1, 10, 41, 42, 57, 58, 1 << 20, 1<<20 + 1, 2<<20 + 1, 3<<20 + 1, len(sealed) - 1} {
			if n >= len(sealed) {
				continue
			}
			if _, err := decrypt(bytes.NewReader(sealed[:n]), key, streamContext); !errors.Is(err, envelope.ErrAltered) && !errors.Is(err, envelope.ErrFormat) {
				t.Errorf("%d of %d bytes: %v", n, len(sealed), err)
			}
		}
		for _, n := range []int{1, 2, 40, len(sealed) - 1} {
			bad := bytes.Clone(sealed)
			bad[n] ^= 1
			if _, err := decrypt(bytes.NewReader(bad), key, streamContext); !errors.Is(err, envelope.ErrAltered) {
				t.Errorf("%d bytes, byte %d changed: %v", size, n, err)
			}
		}
	}
}

func TestStreamRefused(t *testing.T) {
	key := envelope.NewStreamKey()
	sealed := encrypt(t, key, []byte("plain"))
	if _, err := decrypt(bytes.NewReader(sealed), key, nil); !errors.Is(err, envelope.ErrAltered) {
		t.Errorf("another context: %v", err)
	}
	if _, err := decrypt(bytes.NewReader(sealed), envelope.NewStreamKey(), streamContext); !errors.Is(err, envelope.ErrAltered) {
		t.Errorf("another key: %v", err)
	}
	if _, err := decrypt(bytes.NewReader(append([]byte{1}, sealed[1:]...)), key, streamContext); !errors.Is(err, envelope.ErrFormat) {
		t.Errorf("another version: %v", err)
	}
	lost := errors.New("connection lost")
	for _, n := range []int{0, 1, 20, 50} {
		in := io.MultiReader(bytes.NewReader(sealed[:n]), iotest.ErrReader(lost))
		if _, err := decrypt(in, key, streamContext); n > 0 && !errors.Is(err, lost) {
			t.Errorf("connection lost after %d bytes: %v", n, err)
		}
	}
	if _, err := envelope.NewEncryptingWriter(io.Discard, key[:16], nil); err == nil {
		t.Error("a short key is taken")
	}
}

// TestObject keeps an object's key in a row: a rotation rewraps the row and the
// object stays readable, untouched.
func TestObject(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	key := envelope.NewStreamKey()
	object := encrypt(t, key, []byte("large"))
	w.must("insert", table.Insert(t.Context(), row("object"), key))
	w.rotatePast("r1")
	got, err := table.Get(t.Context(), rowKey("object"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := decrypt(bytes.NewReader(object), got.Plaintext, streamContext); err != nil || string(plain) != "large" {
		t.Errorf("%q, %v", plain, err)
	}
}

func FuzzDecryptingReader(f *testing.F) {
	key := bytes.Repeat([]byte{5}, envelope.StreamKeySize)
	sealed := encrypt(f, key, []byte("plain"))
	f.Add(sealed[:len(sealed)-1])
	f.Add([]byte{2, 40})
	f.Fuzz(func(t *testing.T, in []byte) {
		if bytes.Equal(in, sealed) {
			return
		}
		if got, err := decrypt(bytes.NewReader(in), key, streamContext); err == nil {
			t.Errorf("%x opens as %x", in, got)
		}
	})
}
