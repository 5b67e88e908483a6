package envelope_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
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
	if _, err := decrypt(bytes.NewReader(nil), key, streamContext); !errors.Is(err, envelope.ErrFormat) {
		t.Errorf("an empty stream: %v", err)
	}
	lost := errors.New("connection lost")
	for _, n := range []int{0, 1, 20, 50} {
		in := io.MultiReader(bytes.NewReader(sealed[:n]), iotest.ErrReader(lost))
		if _, err := decrypt(in, key, streamContext); !errors.Is(err, lost) || errors.Is(err, envelope.ErrAltered) {
			t.Errorf("connection lost after %d bytes: %v", n, err)
		}
	}
	for _, n := range []int{0, 16, 31, 33, 64} { // Tink takes longer ones
		other := make([]byte, n)
		if w, err := envelope.NewEncryptingWriter(io.Discard, other, nil); !errors.Is(err, aead.ErrKeySize) || w != nil {
			t.Errorf("a key of %d bytes: %v", n, err)
		}
		if r, err := envelope.NewDecryptingReader(bytes.NewReader(sealed), other, nil); !errors.Is(err, aead.ErrKeySize) || r != nil {
			t.Errorf("a key of %d bytes opens: %v", n, err)
		}
	}
	if _, err := envelope.NewEncryptingWriter(io.Discard, key, map[string]string{"k": "\xff"}); err == nil {
		t.Error("a context that is not UTF-8 is taken")
	}
	if w, err := envelope.NewEncryptingWriter(full{}, key, nil); !errors.Is(err, errFull) || w != nil {
		t.Errorf("a stream that cannot be begun: %v, %v", w, err)
	}
}

// TestStreamBegins: a stream whose header cannot be written whole is none.
func TestStreamBegins(t *testing.T) {
	for n := range 2 { // the version, and what Tink writes at once
		w := &filling{room: n}
		if s, err := envelope.NewEncryptingWriter(w, envelope.NewStreamKey(), nil); !errors.Is(err, errFull) || s != nil || strings.Contains(err.Error(), "the stream's header") != (n == 0) {
			t.Errorf("room for %d writes: %v, %v", n, s, err)
		}
	}
}

// filling has room for a number of writes.
type filling struct{ room int }

func (f *filling) Write(p []byte) (int, error) {
	if f.room--; f.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

var errFull = errors.New("no space left")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestStreamReads: the read that ends a stream says so itself.
func TestStreamReads(t *testing.T) {
	key := envelope.NewStreamKey()
	sealed := encrypt(t, key, []byte("plain"))
	altered := bytes.Clone(sealed)
	altered[len(altered)-1] ^= 1
	r, err := envelope.NewDecryptingReader(bytes.NewReader(altered), key, streamContext)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 9)); n != 0 || !errors.Is(err, envelope.ErrAltered) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestStreamEnds: a stream that has ended, or failed, stays so.
func TestStreamEnds(t *testing.T) {
	key := envelope.NewStreamKey()
	sealed := encrypt(t, key, []byte("plain"))
	lost := errors.New("connection lost")
	altered := bytes.Clone(sealed)
	altered[len(altered)-1] ^= 1
	for name, c := range map[string]struct {
		in   io.Reader
		want error
	}{
		"whole":   {bytes.NewReader(sealed), io.EOF},
		"altered": {bytes.NewReader(altered), envelope.ErrAltered},
		"lost":    {io.MultiReader(bytes.NewReader(sealed[:50]), iotest.ErrReader(lost)), lost},
	} {
		r, err := envelope.NewDecryptingReader(c.in, key, streamContext)
		if err != nil {
			t.Fatal(err)
		}
		var end error
		for end == nil {
			_, end = r.Read(make([]byte, 100))
		}
		n, again := r.Read(make([]byte, 100))
		if !errors.Is(end, c.want) || !errors.Is(again, c.want) || n != 0 {
			t.Errorf("%s: it ends with %v, then %d bytes and %v, want %v", name, end, n, again, c.want)
		}
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
